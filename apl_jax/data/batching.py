"""Videos stacked into padded arrays, and their annotations into :class:`~apl_jax.structs.Targets`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.features import FeatureSource
from apl_jax.data.files import refusal
from apl_jax.data.grids import build_grid, window_signal
from apl_jax.data.manifest import check_clock
from apl_jax.settings import DataSettings
from apl_jax.structs import Targets, TimeGrid


@dataclass(frozen=True, eq=False)
class VideoTable:
    """V videos on their grids, padded with zeros to a common T; V may be 0."""

    records: tuple[VideoRecord, ...]
    grids: tuple[TimeGrid, ...]
    features: np.ndarray  # [V, T, D] float32
    lengths: np.ndarray  # [V] int32, real rows of each video

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """Video ids, by row."""
        return tuple(record.id for record in self.records)

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """Which steps are real: ``[V, T]`` bool."""
        return np.arange(self.features.shape[1]) < self.lengths[:, None]


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Shift and scale per feature."""

    mean: np.ndarray  # [D] float32
    std: np.ndarray  # [D] float32, > 0

    @classmethod
    def fit(cls, rows: Sequence[np.ndarray], floor: float) -> Standardizer:
        """Statistics of all rows of several videos ``[T_i, D]``, in float64.

        A feature whose deviation is below ``floor`` (in its own unit) is centred but not scaled.
        """
        count = sum(len(r) for r in rows)
        mean = sum((r.sum(0, dtype=np.float64) for r in rows), np.zeros(rows[0].shape[1])) / count
        squares = sum((np.square(r - mean).sum(0) for r in rows), np.zeros_like(mean))
        std = np.sqrt(squares / count)
        return cls(mean.astype(np.float32), np.where(std < floor, 1.0, std).astype(np.float32))

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Standardised rows ``[..., D]`` float32."""
        return ((rows - self.mean) / self.std).astype(np.float32)


def read_rows(record: VideoRecord, source: FeatureSource, settings: DataSettings) -> tuple[TimeGrid, np.ndarray]:
    """One video's grid and its feature rows ``[T, D]`` float32, not standardised.

    Raises :class:`~apl_jax.data.annotations.DataError` (see :meth:`FeatureSource.read`, :func:`check_clock` and
    :func:`build_grid`).
    """
    if source.manifest is not None:
        check_clock(source.manifest, record)
    array = source.read(record.id)
    window, stride = settings.window, settings.stride
    samples = (len(array) - 1) * stride + window if source.windowed else len(array)
    grid = build_grid(record.fps, samples, window, stride, video=record.id, duration_s=record.duration_s)
    return grid, array if source.windowed else window_signal(array, window, stride)


def padded_length(lengths: Sequence[int], multiple: int) -> int:
    """The longest length, rounded up to a multiple; ``multiple`` itself when there is none."""
    return -(-max(lengths, default=1) // multiple) * multiple


def stack_table(
    records: Sequence[VideoRecord],
    read: Sequence[tuple[TimeGrid, np.ndarray]],
    standardizer: Standardizer,
    length_t: int,
) -> VideoTable:
    """A table from rows already read (:func:`read_rows`), padded to ``length_t``."""
    features = np.zeros((len(records), length_t, len(standardizer.mean)), np.float32)
    for row, (_, values) in zip(features, read, strict=True):
        row[: len(values)] = standardizer.apply(values)
    lengths = np.array([len(values) for _, values in read], np.int32)
    return VideoTable(tuple(records), tuple(grid for grid, _ in read), features, lengths)


def build_table(
    records: Sequence[VideoRecord], source: FeatureSource, settings: DataSettings, standardizer: Standardizer
) -> VideoTable:
    """Reads, windows, standardises and stacks videos; T is the longest, rounded up to ``length_multiple``.

    Raises :class:`~apl_jax.data.annotations.DataError` (see :func:`read_rows`), also when the feature width is not the
    standardizer's.
    """
    read = [read_rows(record, source, settings) for record in records]
    for record, (_, values) in zip(records, read, strict=True):
        if values.shape[1] != len(standardizer.mean):
            where = f"{source.place(record.id)}: video {record.id!r}"
            expected = f"{len(standardizer.mean)} as in training"
            raise refusal(where, f"{values.shape[1]} values per row", expected, "the window and channels of training")
    length_t = padded_length([len(values) for _, values in read], settings.length_multiple)
    return stack_table(records, read, standardizer, length_t)


def build_targets(
    records: Sequence[VideoRecord], grids: Sequence[TimeGrid], max_instances: int | None = None
) -> Targets:
    """Annotations of V videos on their grids, as numpy arrays ``[V, N, ...]``.

    N is ``max_instances``, else the largest count (at least 1). Instances keep their order in the file. Raises
    :class:`~apl_jax.data.annotations.DataError` when a video has more than ``max_instances``.
    """
    most = max((len(record.labels) for record in records), default=0)
    count = max(1, most) if max_instances is None else max_instances
    if most > count:
        video = max(records, key=lambda record: len(record.labels)).id
        raise refusal(f"video {video!r}", f"{most} instances", f"at most {count}", "a larger max_instances")
    shape = len(records), count
    segments_t = np.zeros((*shape, 2), np.float32)
    labels, weight = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    mask, ignore_mask = np.zeros(shape, bool), np.zeros(shape, bool)
    for b, (record, grid) in enumerate(zip(records, grids, strict=True)):
        n = len(record.labels)
        segments_t[b, :n] = grid.to_t(record.segments_s)
        labels[b, :n], weight[b, :n] = record.labels, record.weight
        mask[b, :n], ignore_mask[b, :n] = True, record.ignore
    return cast(Any, Targets)(segments_t=segments_t, labels=labels, mask=mask, weight=weight, ignore_mask=ignore_mask)
