"""One pass over the features of many videos that keeps every refusal instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.batching import read_rows
from apl_jax.data.features.sources import FeatureSource
from apl_jax.data.files import DataError
from apl_jax.data.grids import count_samples, extracted_rows, place_rows
from apl_jax.settings import DataSettings
from apl_jax.structs import TimeGrid

SHOWN = 3  # examples of each finding
_FLOAT_BYTES = 4  # tables are float32
_MISSING = "annotated videos without features"
_LENGTH = "videos whose features disagree with their duration by more than `data.length_tolerance`"
_NOT_FINITE = "videos with features that are not finite"

Follow = Callable[[Sequence[VideoRecord]], Iterable[VideoRecord]]


@dataclass(frozen=True)
class Finding:
    """One kind of error or note; ``what`` is a sentence, or with a ``count`` what was counted."""

    what: str
    count: int = 0  # 0: a sentence of its own
    examples: tuple[str, ...] = ()  # the first few, in words


@dataclass
class Reading:
    """What one pass over the features collects."""

    grids: dict[str, TimeGrid] = field(default_factory=dict)  # of the videos that a run could use
    width: int = 0  # D, 0 while no video could be read
    refused: dict[str, list[str]] = field(default_factory=dict)  # kind -> messages, "" where none was made
    shares: list[float] = field(default_factory=list)  # seconds of features / annotated ones, where these disagree

    def findings(self) -> list[Finding]:
        """The refusals by kind."""
        found = []
        for kind, messages in self.refused.items():
            what = kind
            if kind == _LENGTH:
                low, middle, high = np.quantile(self.shares, (0, 0.5, 1))
                what += f" ({low:.3g} to {high:.3g} times as long, {middle:.3g} on median)"
            found.append(Finding(what, len(messages), tuple(dict.fromkeys(filter(None, messages)))[:SHOWN]))
        return found


@dataclass(frozen=True, eq=False)
class Survey:
    """What the V videos that could be read, and their M instances, are on their grids."""

    windowed: bool  # ready-made rows; False: raw signals, windowed at load
    width: int  # D, 0 when no video could be read
    rows: np.ndarray  # [V] int, feature rows of each video
    extracted: np.ndarray  # [V] int, the same before they were brought to one length; empty where nothing tells
    seconds_per_row: np.ndarray  # [V]
    lengths_t: np.ndarray  # [M] instances, in grid steps
    round_trip_s: float  # largest deviation of seconds -> grid -> seconds
    round_trip_float32_s: float  # the same through float32, as targets are kept
    table_bytes: Mapping[str, int]  # training, evaluation: the rows of all videos


def read_all(
    records: Sequence[VideoRecord], source: FeatureSource, data: DataSettings, follow: Follow = lambda records: records
) -> Reading:
    """Reads every video once; those that are refused a second time, to tell why.

    ``follow`` hands on the records that are about to be read, one by one (a progress bar).
    """
    reading = Reading()
    for record in follow(records):
        if source.find(record.id) is None and len(reading.refused.get(_MISSING, ())) >= SHOWN:
            reading.refused[_MISSING].append("")  # the message would seek the nearest name, which takes long
            continue
        try:
            grid, rows = read_rows(record, source, data)
        except DataError as error:
            _note_refusal(reading, record, source, data, error)
        else:
            reading.grids[record.id] = grid
            reading.width = rows.shape[1]
    return reading


def _note_refusal(
    reading: Reading, record: VideoRecord, source: FeatureSource, data: DataSettings, error: DataError
) -> None:
    """Files a refusal under the kind of what is wrong."""
    message, expected = str(error), error.expected
    kind = f"videos that cannot be used; expected: {expected}" if expected else "videos that cannot be used"
    if source.find(record.id) is None:
        kind = _MISSING
    elif expected.startswith("finite numbers"):
        kind = _NOT_FINITE
    elif (share := _share(record, source, data)) is not None:
        kind = _LENGTH
        reading.shares.append(share)
    if message.startswith(f"video {record.id!r}"):  # complaints about clocks do not know the file
        message = f"{source.place(record.id)}: {message}"
    reading.refused.setdefault(kind, []).append(message)


def _share(record: VideoRecord, source: FeatureSource, data: DataSettings) -> float | None:
    """How long a video's features are, in durations, where that alone is what is wrong with them."""
    try:
        array = source.read(record.id)
        place_rows(array, source.windowed, record.fps, None, data, record.id)
    except DataError:
        return None
    try:
        place_rows(array, source.windowed, record.fps, record.duration_s, data, record.id)
    except DataError:
        return count_samples(len(array), source.windowed, data) / record.fps / record.duration_s
    return None


def survey(reading: Reading, records: Sequence[VideoRecord], evaluated: frozenset[str], source: FeatureSource,
           data: DataSettings) -> Survey:  # fmt: skip
    """The grids of the records that could be read, and the tables that they make; ``evaluated`` ids have their own."""
    readable = [(record, reading.grids[record.id]) for record in records if record.id in reading.grids]
    lengths_t, seconds, exact, rounded = [np.zeros(0)], [], 0.0, 0.0
    tables: dict[str, list[int]] = {"training": [], "evaluation": []}
    for record, grid in readable:
        times_s = np.append(record.segments_s.ravel(), [0.0, record.duration_s])
        times_t = grid.to_t(times_s)
        exact = max(exact, float(np.abs(grid.to_s(times_t) - times_s).max()))
        rounded = max(rounded, float(np.abs(grid.to_s(times_t.astype(np.float32)) - times_s).max()))
        lengths_t.append(np.diff(grid.to_t(record.segments_s))[:, 0])
        seconds.append(grid.stride / grid.fps)
        tables["evaluation" if record.id in evaluated else "training"].append(grid.length)
    rows = np.array([grid.length for _, grid in readable], np.int64)
    before = [count for _, grid in readable if (count := extracted_rows(grid, data)) is not None]
    return Survey(
        windowed=source.windowed,
        width=reading.width,
        rows=rows,
        extracted=np.array(before, np.int64),
        seconds_per_row=np.array(seconds),
        lengths_t=np.concatenate(lengths_t),
        round_trip_s=exact,
        round_trip_float32_s=rounded,
        table_bytes={name: _FLOAT_BYTES * reading.width * sum(rows) for name, rows in tables.items()},
    )
