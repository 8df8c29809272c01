"""Videos stacked into padded arrays, and their annotations into :class:`~apl_jax.structs.Targets`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
from tqdm import tqdm

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.features.manifest import check_clock
from apl_jax.data.features.sources import FeatureSource
from apl_jax.data.files import refusal
from apl_jax.data.grids import place_rows
from apl_jax.settings import DataSettings
from apl_jax.structs import Batch, Detections, Targets, TimeGrid

_ALIGNMENT = 64  # bytes
_SILENT_S = 3.0  # reading that is done sooner shows no progress bar


@dataclass(frozen=True, eq=False)
class VideoTable:
    """V videos on their grids, to be padded with zeros to a common T; V may be 0.

    Rows come from memory or are read anew whenever they are asked for (:class:`RowStore`); nothing here tells which.
    """

    records: tuple[VideoRecord, ...]
    grids: tuple[TimeGrid, ...]
    read: Callable[[int], np.ndarray]  # standardised feature rows [T_v, D] float32 of a video, by its place in records
    width: int  # D
    length_t: int  # T
    proposals: Detections | None = None  # [V, K] numpy, for detectors that want them

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """Video ids, by row."""
        return tuple(record.id for record in self.records)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Real rows of each video: ``[V]`` int32."""
        return np.array([grid.length for grid in self.grids], np.int32)

    @property
    def mask(self) -> np.ndarray:
        """Which steps are real: ``[V, T]`` bool."""
        return np.arange(self.length_t) < self.lengths[:, None]

    @property
    def features(self) -> np.ndarray:
        """All rows, padded: ``[V, T, D]`` float32, made anew each time."""
        features = np.zeros(self.shape, np.float32)
        for v, row in enumerate(features):
            row[: self.lengths[v]] = self.read(v)
        return features

    @property
    def shape(self) -> tuple[int, int, int]:
        """V, T and D."""
        return len(self.records), self.length_t, self.width

    @property
    def row_bytes(self) -> int:
        """Memory of all rows, without padding."""
        return 4 * int(self.lengths.sum()) * self.width

    def take(self, rows: Sequence[int] | np.ndarray) -> VideoTable:
        """The videos of some rows, padded to the longest of these only."""
        records, grids = tuple(self.records[v] for v in rows), tuple(self.grids[v] for v in rows)
        longest = max((grid.length for grid in grids), default=1)
        proposals = jax.tree.map(lambda x: x[np.asarray(rows)], self.proposals)
        return VideoTable(records, grids, lambda v: self.read(rows[v]), self.width, longest, proposals)

    def join(self, other: VideoTable) -> VideoTable:
        """The videos of two tables of equal T as one table."""
        count = len(self.records)
        read = lambda v: self.read(v) if v < count else other.read(v - count)
        records, grids = self.records + other.records, self.grids + other.grids
        return VideoTable(records, grids, read, self.width, max(self.length_t, other.length_t))

    def without_annotations(self) -> VideoTable:
        """The same videos, their annotations out of reach."""
        return dataclasses.replace(self, records=tuple(record.without_annotations() for record in self.records))


class RowStore:
    """Feature rows of many videos, not standardised: each read and checked once, then kept while all fit.

    Once more than ``hold_bytes`` would be kept, none is: every row is then read from its file when it is asked for.
    Raises :class:`~apl_jax.data.annotations.DataError` as :func:`read_rows` does.
    """

    def __init__(
        self, records: Sequence[VideoRecord], source: FeatureSource, settings: DataSettings, hold_bytes: float
    ) -> None:
        self._records, self._source, self._settings = tuple(records), source, settings
        self._held: list[np.ndarray] | None = []
        self.grids: list[TimeGrid] = []
        self.digests: list[str] = []  # of every video's rows, all of them
        self.width = 0
        self.bytes = 0
        for record in tqdm(self._records, desc="reading features", unit="video", delay=_SILENT_S, disable=None):
            grid, rows = read_rows(record, source, settings)
            self.grids.append(grid)
            self.digests.append(hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()[:16])
            self.width, self.bytes = rows.shape[1], self.bytes + rows.nbytes
            if self.bytes > hold_bytes:
                self._held = None
            if self._held is not None:
                self._held.append(rows)

    @property
    def held(self) -> bool:
        """Whether the rows are in memory."""
        return self._held is not None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, v: int) -> np.ndarray:
        """Rows ``[T_v, D]`` float32 of one video."""
        if self._held is not None:
            return self._held[v]
        return read_rows(self._records[v], self._source, self._settings)[1]

    def table(
        self, records: Sequence[VideoRecord], first: int, standardizer: Standardizer, length_t: int
    ) -> VideoTable:
        """The videos from ``first`` on that ``records`` are, as a table."""
        grids = tuple(self.grids[first : first + len(records)])
        read = lambda v: standardizer.apply(self[first + v])
        return VideoTable(tuple(records), grids, read, self.width, length_t)


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Shift and scale per feature."""

    mean: np.ndarray  # [D] float32
    std: np.ndarray  # [D] float32, > 0

    @classmethod
    def fit(cls, rows: Sequence[np.ndarray] | RowStore, floor: float) -> Standardizer:
        """Statistics of all rows of several videos ``[T_i, D]``, in float64.

        A feature whose deviation is below ``floor`` (in its own unit) is centred but not scaled. Every video is looked
        at twice, which is exact and needs no more memory than one.
        """
        count, mean, squares = 0, np.zeros(rows[0].shape[1]), np.zeros(rows[0].shape[1])
        for v in range(len(rows)):
            video = rows[v]
            count, mean = count + len(video), mean + video.sum(0, dtype=np.float64)
        mean /= count
        for v in range(len(rows)):
            squares += np.square(rows[v] - mean).sum(0)
        std = np.sqrt(squares / count)
        return cls(mean.astype(np.float32), np.where((std < floor) | (std == 0), 1.0, std).astype(np.float32))

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Standardised rows ``[..., D]`` float32."""
        standardised = np.subtract(rows, self.mean, dtype=np.float32)
        standardised /= self.std
        return standardised


def read_rows(record: VideoRecord, source: FeatureSource, settings: DataSettings) -> tuple[TimeGrid, np.ndarray]:
    """One video's grid and its feature rows ``[T, D]`` float32, not standardised.

    Raises :class:`~apl_jax.data.annotations.DataError` (see :meth:`FeatureSource.read`, :func:`check_clock` and
    :func:`place_rows`).
    """
    if source.manifest is not None:
        check_clock(source.manifest, record)
    array = source.read(record.id)
    return place_rows(array, source.windowed, record.fps, record.duration_s, settings, record.id)


def padded_length(lengths: Sequence[int] | np.ndarray, multiple: int) -> int:
    """The longest length, rounded up to a multiple; ``multiple`` itself when there is none."""
    return int(-(-max(lengths, default=1) // multiple) * multiple)


def aligned_zeros(shape: Sequence[int]) -> np.ndarray:
    """Zeros, float32, that begin at a multiple of 64 bytes: CPU devices then take them as they are, without a copy."""
    count = math.prod(shape)
    raw = np.zeros(4 * count + _ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    return raw[first : first + 4 * count].view(np.float32).reshape(tuple(shape))


def bucket_length(length: int, multiple: int, longest: int) -> int:
    """A length rounded up to a power of two times ``multiple``, so that few shapes serve videos of all lengths; at most
    ``longest``, the longest there is, rounded up to ``multiple``."""
    return min(multiple << (-(-length // multiple) - 1).bit_length(), padded_length([longest], multiple))


def stack_table(
    records: Sequence[VideoRecord],
    read: Sequence[tuple[TimeGrid, np.ndarray]],
    standardizer: Standardizer,
    length_t: int,
) -> VideoTable:
    """A table from rows already read (:func:`read_rows`), to be padded to ``length_t``."""
    grids = tuple(grid for grid, _ in read)
    return VideoTable(tuple(records), grids, lambda v: standardizer.apply(read[v][1]), len(standardizer.mean), length_t)


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


def whole_table(table: VideoTable, max_instances: int | None = None) -> Batch:
    """All V videos of a table as one host-side :class:`Batch`; row v is video v."""
    targets = build_targets(table.records, table.grids, max_instances)
    numbers = np.arange(len(table.records), dtype=np.int32)
    return Batch(table.features, table.mask, targets, numbers, table.proposals)  # pyright: ignore[reportArgumentType]  # numpy leaves, until they are placed
