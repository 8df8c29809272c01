"""What the stages of one run share: settings, data on the devices, and the detector."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.batching import VideoTable
from apl_jax.data.dataset import Dataset, open_truth
from apl_jax.data.feeds import whole_table
from apl_jax.detectors import build_detector
from apl_jax.detectors.base import Detector
from apl_jax.learning.instances import InstanceBank, build_bank
from apl_jax.learning.objective import Ingredients
from apl_jax.nn.discriminator import build_discriminator
from apl_jax.pipeline.ledger import Ledger
from apl_jax.settings import Settings, StageSettings
from apl_jax.structs import Batch
from apl_jax.training.mesh import replicated, split_rows


@dataclasses.dataclass(frozen=True, eq=False)
class Room:
    """One run's surroundings. Tables are split over the devices when first asked for, and stay there; rows of zeros
    may follow their videos, to let the devices divide them."""

    settings: Settings
    dataset: Dataset
    ledger: Ledger
    mesh: Mesh

    @functools.cached_property
    def truth(self) -> Annotations:
        """All annotations, the held-back ones included: for evaluation only."""
        return open_truth(self.settings.data)

    @functools.cached_property
    def labelled(self) -> Batch:
        """All labelled videos with their annotations."""
        return self._place(self.dataset.labelled)

    @functools.cached_property
    def bank(self) -> InstanceBank:
        """The memory of all labelled instances."""
        return jax.jit(build_bank, out_shardings=replicated(self.mesh))(self.labelled)

    @functools.cached_property
    def unlabelled(self) -> Batch:
        """All unlabelled videos, without targets."""
        return self._place(self.dataset.unlabelled)

    @functools.cached_property
    def evaluation(self) -> Batch:
        """The videos that are predicted and scored."""
        return self._place(self.dataset.evaluation)

    @functools.cached_property
    def all_training(self) -> Batch:
        """Labelled and unlabelled videos together, all without targets: what pre-training sees."""
        labelled, unlabelled = self.dataset.labelled, self.dataset.unlabelled
        return self._place(join_tables(labelled, unlabelled))

    def pseudo_labelled(self, records: Sequence[VideoRecord]) -> Batch:
        """The unlabelled videos with pseudo-annotations in place of the annotations they do not have.

        N is rounded up to a power of two, so that another round of labels seldom means another program.
        """
        table = dataclasses.replace(self.dataset.unlabelled, records=tuple(records))
        most = max(len(record.labels) for record in records)
        return split_rows(whole_table(table, 1 << max(most - 1, 0).bit_length()), self.mesh)

    def detector(self, settings: Settings) -> Detector:
        """The detector of an arm's settings."""
        return build_detector(settings, self.feature_width, len(self.dataset.classes))

    def ingredients(self, settings: Settings, stage: StageSettings) -> Ingredients:
        """What a training stage's method is built from."""
        return Ingredients(
            self.detector(settings), build_discriminator(settings.learning.selection.discriminator),
            settings.learning, stage, self.feature_width, len(self.dataset.classes), settings.data.max_length_t,
            0.5 * settings.data.window / settings.data.stride,
        )  # fmt: skip

    @property
    def feature_width(self) -> int:
        """D."""
        return self.dataset.labelled.features.shape[-1]

    def _place(self, table: VideoTable) -> Batch:
        return split_rows(whole_table(table), self.mesh)


def join_tables(first: VideoTable, second: VideoTable) -> VideoTable:
    """Two tables of equal T as one, without annotations."""

    return VideoTable(
        tuple(record.without_annotations() for record in (*first.records, *second.records)),
        first.grids + second.grids,
        np.concatenate([first.features, second.features]),
        np.concatenate([first.lengths, second.lengths]),
    )
