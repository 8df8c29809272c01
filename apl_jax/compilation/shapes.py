"""The shapes of a run's tables, from annotations and settings alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.batching import padded_length
from apl_jax.data.dataset import open_truth
from apl_jax.data.features.folder import open_features
from apl_jax.data.features.limits import Unusable
from apl_jax.data.files import DataError, refusal
from apl_jax.data.splits import build_split
from apl_jax.data.synthetic import extraction_grid
from apl_jax.settings import DataSettings
from apl_jax.structs import DataFacts


@dataclass(frozen=True)
class TableShape:
    """The shape of a table of V videos, ``[V, T, D]``, with at most N instances each."""

    lengths: np.ndarray  # [V] grid steps
    length_t: int  # T
    width: int  # D
    most_instances: int  # N, at least 1

    @property
    def videos(self) -> int:
        """V."""
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        """Memory of the padded features."""
        return 4 * self.videos * self.length_t * self.width


@dataclass(frozen=True)
class RunShapes:
    """The tables of a run."""

    facts: DataFacts
    labelled: TableShape
    unlabelled: TableShape
    evaluation: TableShape
    instances_of_class: tuple[int, ...]  # labelled ones, by class

    @property
    def training(self) -> TableShape:
        """Labelled and unlabelled videos together, without annotations."""
        one, other = self.labelled, self.unlabelled
        return TableShape(np.concatenate([one.lengths, other.lengths]), one.length_t, one.width, 1)

    def table(self, videos: str) -> TableShape:
        """One of labelled, unlabelled, pseudo_labelled, training, evaluation."""
        return self.unlabelled if videos == "pseudo_labelled" else getattr(self, videos)


def shapes_of(settings: DataSettings, width: int | None = None) -> RunShapes:
    """The shapes that a run with these settings has.

    ``width`` of a feature row; None asks the first recording's features, and where there are none takes that of
    synthetic features (``data.synthetic.width``). Lengths follow from durations, frame rates, window and stride, as an
    extractor would leave them; features that are there may differ by a row. Raises
    :class:`~apl_jax.data.files.DataError`.
    """
    split = build_split(open_truth(settings, named=True), settings)
    annotations = open_truth(settings)
    width = width or _width(settings)
    parts: dict[str, list[VideoRecord]] = {
        name: [annotations.videos[video] for video in getattr(split, name)]
        for name in ("labelled", "unlabelled", "evaluation")
    }
    lengths = {name: np.array([_length(r, settings) for r in records], int) for name, records in parts.items()}
    multiple = settings.length_multiple
    training_t = padded_length([*lengths["labelled"], *lengths["unlabelled"]], multiple)
    evaluation_t = padded_length(lengths["evaluation"], multiple)
    taught = np.concatenate([np.zeros(0, int), *(r.labels[~r.ignore] for r in parts["labelled"])]).astype(int)
    counts = np.bincount(taught, minlength=len(annotations.classes))
    spanned = settings.stride == 0 or settings.grid != "rows"  # rows are equal parts of their video
    edge_t = 0.5 if spanned else 0.5 * settings.window / settings.stride
    facts = DataFacts(width, len(annotations.classes), settings.max_length_t, edge_t)
    return RunShapes(
        facts,
        TableShape(lengths["labelled"], training_t, width, _most(parts["labelled"])),
        TableShape(lengths["unlabelled"], training_t, width, 1),
        TableShape(lengths["evaluation"], evaluation_t, width, 1),
        tuple(counts.tolist()),
    )


def _most(records: Sequence[VideoRecord]) -> int:
    return max((len(record.labels) for record in records), default=1) or 1


def _length(record: VideoRecord, settings: DataSettings) -> int:
    if settings.grid != "rows":
        return settings.fixed_length_t
    try:
        return extraction_grid(record, settings).length
    except Unusable as unusable:
        raise refusal(f"video {record.id!r}", *unusable.args) from None


def _width(settings: DataSettings) -> int:
    """Of the first recording's features, windowed where they are raw signals."""
    try:
        source = open_features(settings)
        array = source.read(source.ids[0])
    except (DataError, IndexError):
        return settings.synthetic.width
    return array.shape[1] * (1 if source.windowed else settings.window)
