"""The shapes of a run's tables, from annotations and settings alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.batching import padded_length
from apl_jax.data.dataset import open_truth
from apl_jax.data.features.folder import open_features
from apl_jax.data.features.limits import Unusable
from apl_jax.data.files import DataError, refusal
from apl_jax.data.splits import build_split
from apl_jax.data.synthetic import extraction_grid
from apl_jax.learning.method import PSEUDO_LABELLED
from apl_jax.settings import DataSettings
from apl_jax.structs import DataFacts, TimeGrid


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
    def rows(self) -> int:
        """R, of all videos."""
        return int(self.lengths.sum())

    @property
    def bytes(self) -> int:
        """Memory of all rows."""
        return 4 * self.rows * self.width


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
        """The videos of a pass (``learning.method.VIDEOS``)."""
        return self.unlabelled if videos == PSEUDO_LABELLED else getattr(self, videos)


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
    labelled, unlabelled, evaluation = (
        [annotations.videos[video] for video in videos]
        for videos in (split.labelled, split.unlabelled, split.evaluation)
    )
    grids = [_grid(record, settings) for record in (*labelled, *unlabelled)]
    lengths, seen = np.array([grid.length for grid in grids], int), len(labelled)
    training_t = padded_length(lengths, settings.length_multiple)
    evaluated = np.array([_grid(record, settings).length for record in evaluation], int)
    evaluation_t = padded_length(evaluated, settings.length_multiple)
    taught = np.concatenate([record.labels[~record.ignore] for record in labelled]).astype(int)
    counts = np.bincount(taught, minlength=len(annotations.classes))
    most = max(1, *(len(record.labels) for record in labelled))
    return RunShapes(
        DataFacts(width, len(annotations.classes), settings.max_length_t, grids[0].offset),
        TableShape(lengths[:seen], training_t, width, most),
        TableShape(lengths[seen:], training_t, width, 1),
        TableShape(evaluated, evaluation_t, width, 1),
        tuple(counts.tolist()),
    )


def _grid(record: VideoRecord, settings: DataSettings) -> TimeGrid:
    """The grid of a recording whose features an extractor would make; rows that are resized span their video."""
    try:
        return extraction_grid(record, settings if settings.grid == "rows" else replace(settings, stride=0))
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
