"""What the stages of one run share: settings, data on the devices or on its way there, and the detector."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
from jax.sharding import Mesh

from apl_jax.data.annotations import Annotations
from apl_jax.data.batching import VideoTable, build_targets, padded_length
from apl_jax.data.dataset import Dataset, open_truth
from apl_jax.feeds.resident import whole_table
from apl_jax.detectors import build_detector
from apl_jax.detectors.base import Detector
from apl_jax.feeds.passes import BatchFn, BatchPlan, map_resident, map_streamed
from apl_jax.learning.instances import ClassMembers, InstanceBank, build_bank, class_members, pool_instances
from apl_jax.learning.objective import Ingredients
from apl_jax.nn.discriminator import build_discriminator
from apl_jax.runs.ledger import Ledger
from apl_jax.settings import Settings, StageSettings
from apl_jax.structs import Batch, PyTree
from apl_jax.devices import first_rows, place, replicated, shard_batch, to_host

Role = Literal["labelled", "unlabelled", "evaluation"]
_GIB = 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class Room:
    """One run's surroundings.

    Tables that fit are split over the devices when first asked for, and stay there; rows of zeros may follow their
    videos, to let the devices divide them. Otherwise they are ``streamed``.
    """

    settings: Settings
    dataset: Dataset
    ledger: Ledger
    mesh: Mesh
    device_bytes: int  # memory of all devices

    @functools.cached_property
    def truth(self) -> Annotations:
        """All annotations, the held-back ones included: for evaluation only."""
        return open_truth(self.settings.data)

    @functools.cached_property
    def scored_truth(self) -> Annotations:
        """What predictions are scored against: :attr:`truth`, but under the external protocol all names of classes."""
        return open_truth(self.settings.data, named=self.settings.evaluation.protocol == "external")

    @functools.cached_property
    def streamed(self) -> bool:
        """Whether batches are read while the devices compute (``runtime.feed``)."""
        runtime = self.settings.runtime
        if runtime.feed != "auto":
            return runtime.feed == "stream"
        return self._feature_bytes > runtime.device_share * self.device_bytes

    def describe_feed(self) -> str:
        """Where features are during the run and why, in words."""
        runtime = self.settings.runtime
        need, room = self._feature_bytes / _GIB, runtime.device_share * self.device_bytes / _GIB
        why = "as runtime.feed asks"
        if runtime.feed == "auto":
            why = f"they would take {need:.2f} GiB, runtime.device_share grants {room:.2f} GiB"
        place = "memory" if self.dataset.held else "their files, which is slower: they do not fit in memory"
        return f"streamed from {place} ({why})" if self.streamed else f"all features on the devices ({why})"

    @functools.cached_property
    def labelled(self) -> Batch:
        """All labelled videos with their annotations, on the devices."""
        return self._place(self.dataset.labelled)

    @functools.cached_property
    def unlabelled(self) -> Batch:
        """All unlabelled videos, without targets, on the devices."""
        return self._place(self.dataset.unlabelled)

    @functools.cached_property
    def evaluation(self) -> Batch:
        """The videos that are predicted and scored, on the devices."""
        return self._place(self.dataset.evaluation)

    @functools.cached_property
    def all_training(self) -> Batch:
        """What pre-training sees, on the devices."""
        return self._place(self.dataset.all_training)

    def pseudo_labelled(self, table: VideoTable, max_instances: int) -> Batch:
        """The unlabelled videos on the devices, with the annotations that they have in ``table``."""
        targets = shard_batch(build_targets(table.records, table.grids, max_instances), self.mesh)
        return dataclasses.replace(self.unlabelled, targets=targets)

    @functools.cached_property
    def bank(self) -> InstanceBank:
        """The memory of all labelled instances, on every device."""
        pooled = self.map_videos("labelled", lambda _, videos: pool_instances(videos), {})
        labelled = self.dataset.labelled
        targets = build_targets(labelled.records, labelled.grids)
        return jax.jit(build_bank, out_shardings=replicated(self.mesh))(pooled, targets)

    @functools.cached_property
    def members(self) -> ClassMembers:
        """The rows of the bank by class, on every device."""
        return place(class_members(to_host(self.bank), len(self.dataset.classes)), replicated(self.mesh))

    def map_videos(self, role: Role, function: BatchFn, params: PyTree) -> PyTree:
        """``function(params, videos)`` of all V videos of a role, some at a time: ``[V, ...]``, on the devices, or as
        numpy where data is streamed."""
        table: VideoTable = getattr(self.dataset, role)
        if self.streamed:
            return self._stream(table, function, params, self.settings.data.length_multiple)
        found = map_resident(function, params, getattr(self, role), self.settings.evaluation.batch, self.mesh)
        return jax.jit(lambda t: first_rows(t, len(table.ids)))(found)

    def map_few(self, table: VideoTable, function: BatchFn, params: PyTree) -> PyTree:
        """As :meth:`map_videos`, of the videos of a small table, as numpy; all padded to one length, so that one
        program serves them."""
        return self._stream(table, function, params, padded_length(table.lengths, self.settings.data.length_multiple))

    def _stream(self, table: VideoTable, function: BatchFn, params: PyTree, multiple: int) -> PyTree:
        settings = self.settings
        shape = BatchPlan(settings.evaluation.batch, settings.data.max_length_t, multiple, settings.runtime.read_threads)
        return map_streamed(function, params, table, shape, self.mesh)

    def detector(self, settings: Settings) -> Detector:
        """The detector of an arm's settings."""
        return build_detector(settings, self.feature_width, len(self.dataset.classes))

    def ingredients(self, settings: Settings, stage: StageSettings) -> Ingredients:
        """What a training stage's method is built from."""
        edge_t = self.dataset.labelled.grids[0].offset
        return build_ingredients(settings, stage, self.feature_width, len(self.dataset.classes), edge_t)

    @property
    def feature_width(self) -> int:
        """D."""
        return self.dataset.labelled.width

    def _place(self, table: VideoTable) -> Batch:
        return shard_batch(whole_table(table), self.mesh)

    @property
    def _feature_bytes(self) -> int:
        """Memory that features take where all are on the devices: the padded tables that the run's stages put there,
        a copy of the largest for a pass over it, and what the host holds where it is the device too."""
        dataset = self.dataset
        tables = [dataset.labelled, dataset.unlabelled, dataset.evaluation]
        if self.settings.learning.pretrain.steps and "semi_supervised" in self.settings.arms:
            tables.append(dataset.all_training)
        padded = [table.padded_bytes for table in tables]
        shared = dataset.held_bytes if self.mesh.devices.flat[0].platform == "cpu" else 0
        return sum(padded) + max(padded) + shared


def build_ingredients(
    settings: Settings, stage: StageSettings, feature_width: int, classes: int, edge_t: float = 0.0
) -> Ingredients:
    """What the methods of an arm are built from, for features ``[T, feature_width]`` and so many classes; ``edge_t`` as
    in :class:`Ingredients`."""
    learning = settings.learning
    return Ingredients(
        build_detector(settings, feature_width, classes), build_discriminator(learning.selection.discriminator),
        learning, stage, feature_width, classes, settings.data.max_length_t, edge_t,
    )  # fmt: skip
