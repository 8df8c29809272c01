"""The rules by which a configuration follows from the facts of a data set, one small function for each group of
settings.

The rules are for ActionFormer and APL; docs/configure.md has them as a table, with the reason for each. A rule returns
:class:`Line` objects: a setting, its value, and the fact that it follows from, in words. What no rule can know (steps,
pretext, thresholds) gets a first value, to be changed by trying.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from apl_jax.configuration.facts import Facts

# ActionFormer's pyramid: level l is for instances whose farther end is up to 4 * 2^l rows away from a point.
_FIRST_RANGE = 4.0
_OPEN_RANGE = 10000.0
_MOST_LEVELS = 9


class Line(NamedTuple):
    """One setting of a configuration, and why it has its value."""

    path: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Proposal:
    """A whole configuration: its lines in order, and what is to be known about it."""

    lines: tuple[Line, ...]
    warnings: tuple[str, ...]

    def without(self, known: Collection[str]) -> Proposal:
        """The same without the lines of settings that a person has given."""
        return Proposal(tuple(line for line in self.lines if line.path not in known), self.warnings)

    def value(self, path: str) -> Any:
        """What the configuration says about a setting. Raises ``KeyError``."""
        return {line.path: line.value for line in self.lines}[path]


@dataclass(frozen=True)
class Clock:
    """How stored rows become the rows that the detector sees."""

    lines: tuple[Line, ...]
    row_s: float  # seconds from one row to the next
    rows: np.ndarray  # [V] of each recording
    columns: int  # of a row
    warnings: tuple[str, ...] = ()


def propose(facts: Facts, tiou: Sequence[float], given: Mapping[str, Any] | None = None) -> Proposal:
    """The configuration that follows from a data set, for an evaluation at the thresholds ``tiou``, and from the
    settings that a person has ``given``, by dotted path: how rows are made, how many a crop has, and the levels."""
    given = given or {}
    clock = choose_clock(facts, max(tiou), given)
    lengths = facts.lengths_s / clock.row_s
    pyramid = choose_pyramid(facts, clock, lengths)
    levels = int(given.get("detector.branch_blocks", _of(pyramid, "detector.branch_blocks"))) + 1
    crop = choose_crop(clock, lengths, 2 ** (levels - 1))
    crop_t = int(given.get("data.max_length_t", _of(crop, "data.max_length_t")))
    training = choose_training(facts, clock, crop_t)
    lines = (*clock.lines, *crop, *pyramid, *training, *choose_decoding(facts, tiou))
    return Proposal(lines, (*clock.warnings, *_warnings(facts, clock)))


def _of(lines: Sequence[Line], path: str) -> Any:
    return next(line.value for line in lines if line.path == path)


# Rows


def choose_clock(facts: Facts, highest_tiou: float, given: Mapping[str, Any]) -> Clock:
    """Seconds from row to row: a 20th of the instances is shorter than 2 n of them, n = 1.3 / (1 - t).

    A border that is off by half a row at either end leaves an instance of n rows a tIoU of about 1 - 1.3 / n; so n rows
    let the shortest ones reach the highest threshold t at which they are scored, up to .8. Twice as many were better on
    recordings that were held out, and take longer (docs/results.md#configure). Where recordings would then have more
    than ``_LONG`` rows, instances get fewer, down to n.
    """
    needed = 1.3 / (1 - min(highest_tiou, 0.8))
    short_s = float(np.quantile(facts.lengths_s, 0.05))
    sample_s = facts.row_s if facts.windowed else 1 / facts.fps
    coarsest_s, recording_s = short_s / needed, float(np.quantile(facts.samples, 0.85)) * sample_s
    wanted_s = min(max(coarsest_s / 2, recording_s / _LONG), coarsest_s)
    reason = f"a 20th of the labelled instances is shorter than {short_s:.3g} s; {short_s / wanted_s:.2g} rows of them"
    if wanted_s > coarsest_s / 2:
        reason += f", because with more rows recordings would be longer than {_LONG}"
    if facts.windowed:
        return _stored_rows(facts, wanted_s, coarsest_s, reason, given)
    advised = max(math.floor(wanted_s * facts.fps), 1)
    stride = int(given.get("data.stride") or advised)  # 0 says that nobody knows
    window = int(given.get("data.window") or 2 * stride)
    rows = np.maximum((facts.samples - window) // stride + 1, 1)
    lines = (
        Line("data.stride", advised, f"{advised / facts.fps:.3g} s per row: {reason}"),
        Line("data.window", 2 * stride, "two strides"),
    )
    return Clock(lines, stride / facts.fps, rows, window * facts.columns)


_LONG = 512  # rows of a recording, beyond which finer rows cost too much
_WIDEST_ROW = 2048  # columns that rows may have when they are windowed


def _stored_rows(facts: Facts, wanted_s: float, coarsest_s: float, reason: str, given: Mapping[str, Any]) -> Clock:
    """Ready-made rows as they are, or, where they are much finer than the actions, windowed like a signal."""
    finer = 2 ** round(math.log2(max(wanted_s / facts.row_s, 1)))
    times = int(given.get("data.stride", finer)) if given.get("data.features") != "stored" else 1
    tiles = facts.stride == facts.window
    window = int(given.get("data.window") or 2 * times)
    columns = window * facts.columns
    alike = f"; neighbours correlate {facts.neighbours:.2f}" if math.isfinite(facts.neighbours) else ""
    if times > 1 and tiles and columns <= _WIDEST_ROW:
        rows = np.maximum((facts.samples - window) // times + 1, 1)
        row_s = times * facts.row_s
        lines = (
            Line(
                "data.features", "signal", f"ready-made rows are finer than the actions{alike}: windowed like a signal"
            ),
            Line("data.fps", 1 / facts.row_s, "rows per second"),
            Line("data.stride", finer, f"{finer * facts.row_s:.3g} s per row: {reason}, as a power of two"),
            Line("data.window", 2 * times, f"two strides: {2 * times} x {facts.columns} columns"),
        )
        return Clock(lines, row_s, rows, columns)
    window = facts.window or facts.stride
    said = "frames between rows, as rows and durations agree" if facts.stride > 1 else "one frame for each row"
    where = "as features.json says" if facts.window else "nobody says what a row sees: taken as the stride"
    lines = (
        Line("data.fps", facts.fps, "frames per second, of most annotations"),
        Line("data.stride", facts.stride, f"{said} ({facts.row_s:.3g} s)"),
        Line("data.window", window, where),
    )
    coarse = facts.row_s > 2 * coarsest_s
    warning = f"rows of {facts.row_s:.3g} s are coarse for these actions: {reason} would be {wanted_s:.2g} s each"
    return Clock(lines, facts.row_s, facts.samples, facts.columns, (warning,) if coarse else ())


def choose_crop(clock: Clock, lengths: np.ndarray, coarsest: int) -> tuple[Line, ...]:
    """How long a training crop is, in rows: most recordings whole, long ones in part."""
    longest, most = int(clock.rows.max()), float(np.quantile(clock.rows, 0.85))
    padded = lambda rows: math.ceil(rows / coarsest) * coarsest
    multiple = Line("data.length_multiple", max(coarsest, 2), "the stride of the coarsest level")
    if longest <= min(1.5 * most, 2304):
        whole = Line("data.max_length_t", padded(longest), f"the longest recording has {longest} rows: no crops")
        return multiple, whole
    crop = min(max(padded(min(most, 2304)), padded(4 * float(np.quantile(lengths, 0.98)))), padded(longest))
    reason = f"85 % of the recordings have at most {most:.0f} rows, the longest {longest}"
    return multiple, Line("data.max_length_t", crop, reason)


# The detector


def levels_of(lengths: np.ndarray) -> np.ndarray:
    """The pyramid level that instances of so many rows train: a point in the middle is half of it from either end."""
    return np.maximum(np.ceil(np.log2(np.maximum(lengths, 1e-9) / (2 * _FIRST_RANGE))), 0).astype(int)


def choose_pyramid(facts: Facts, clock: Clock, lengths: np.ndarray) -> tuple[Line, ...]:
    """Levels, what each is for, and how far attention looks."""
    long, recording = float(np.quantile(lengths, 0.98)), float(np.median(clock.rows))
    fills = long >= recording / 2
    start = _first_level(lengths)
    last = int(levels_of(np.array([long]))[0]) - start
    levels = int(np.clip(last + (1 if fills else 2), 1, _MOST_LEVELS))
    spare = "" if fills else ", and a spare one for longer ones"
    ranges, overlapping = _ranges(lengths, levels, start)
    window = 19 if facts.covered < 1 / 3 else 9
    windows = [window] * levels
    if fills:
        windows[-1] = 0
    share = f"actions cover {facts.covered:.0%} of the labelled time"
    fifth, middle = np.quantile(lengths, (0.05, 0.5))
    taught = f"labelled instances have {fifth:.1f} to {long:.1f} rows, {middle:.1f} on median"
    why = "; overlapping, for else a level would have a 20th of them or less" if overlapping else ""
    return (
        Line("detector.branch_blocks", levels - 1, f"{levels} levels for instances up to {long:.1f} rows{spare}"),
        Line("detector.regression_ranges", ranges, taught + why),
        Line("detector.windows", tuple(windows), share + ("; the coarsest level sees all" if fills else "")),
        _width(facts),
    )


def _first_level(lengths: np.ndarray) -> int:
    """How many of the lower ranges are left out: one for each doubling of the 5 % quantile of the lengths beyond the
    first range. It is 0 unless rows are much finer than the actions and cannot be made coarser."""
    short = float(np.quantile(lengths, 0.05)) / (2 * _FIRST_RANGE)
    return int(math.log2(short)) if short >= 2 else 0


def _ranges(lengths: np.ndarray, levels: int, start: int) -> tuple[tuple[tuple[float, float], ...], bool]:
    """Half-open ranges that double from level to level; overlapping ones where instances would leave a level bare."""
    edges = [_FIRST_RANGE * 2 ** (start + i) for i in range(levels)]
    counts = np.bincount(np.clip(levels_of(lengths) - start, 0, levels - 1), minlength=levels)
    filled = counts[: max(levels - 1, 1)]  # the last one may be the spare one
    overlapping = bool(levels > 1 and filled.min() <= 0.05 * len(lengths))
    lower = [0.0, *(edge / 2 if overlapping else edge for edge in edges[:-1])]
    upper = [*edges[:-1], max(_OPEN_RANGE, 16 * edges[-1])]
    return tuple(zip(lower, upper, strict=True)), overlapping


_FEW_INSTANCES = 300


def _width(facts: Facts) -> Line:
    if facts.instances < _FEW_INSTANCES:
        return Line("detector.width", 64, f"{facts.instances} labelled instances, fewer than {_FEW_INSTANCES}")
    if facts.classes == 1:
        return Line("detector.width", 256, "one class")
    return Line("detector.width", 512, f"{facts.classes} classes, {facts.instances} labelled instances")


# Training

_ROWS_PER_STEP = 8192
_LARGEST_SMALL_BATCH = 4


def choose_training(facts: Facts, clock: Clock, crop_t: int) -> tuple[Line, ...]:
    """Batches, learning rate, first number of steps, averaging, the loss's normaliser and the contrast of frames."""
    small = facts.instances < _FEW_INSTANCES
    largest = _LARGEST_SMALL_BATCH if small else 16
    batch = 2 ** int(math.log2(np.clip(_ROWS_PER_STEP / crop_t, 2, largest)))
    labelled = min(batch, 2 ** int(math.log2(facts.labelled)))
    rate = 1e-3 if small or facts.classes == 1 else 1e-4
    steps = int(np.clip(round(60 * math.sqrt(facts.instances), -1), 500, 10_000))
    per_recording = facts.instances / facts.labelled
    share = min(crop_t / float(np.mean(clock.rows)), 1.0)
    positives = max(round(3.6 * per_recording * share * labelled), 1)
    decay = round(1 - 3 / steps, 4)
    partitions = int(2 ** np.clip(round(math.log2(max(crop_t / 8, 1))), 4, 6))
    clusters = max(4, facts.classes + 1)
    reason = f"crops of {crop_t} rows"
    lines = [
        Line("learning.supervised.labelled_batch", labelled, f"{reason}, {facts.labelled} labelled recordings"),
        Line("learning.self_train.labelled_batch", labelled, "the same"),
        Line("learning.self_train.unlabelled_batch", labelled, "as many as labelled ones"),
        Line("learning.pretrain.unlabelled_batch", batch, reason),
    ]
    for stage in ("pretrain", "supervised", "self_train"):
        lines += [
            Line(
                f"learning.{stage}.steps", steps, f"60 x the root of {facts.instances} labelled instances, 500 to 10000"
            ),
            Line(f"learning.{stage}.optimizer.learning_rate", rate, "the width of the detector"),
            Line(f"learning.{stage}.optimizer.ema_decay", decay, f"averages over a third of {steps} steps"),
        ]
    lines += [
        Line("detector.normalizer_init", float(positives), f"3.6 points for each of {per_recording:.1f} instances of a "
             "recording, in a batch"),
        Line("learning.pretext.partitions", partitions, f"{reason}; as many frames of each are contrasted"),
        Line("learning.pretext.fine_clusters", clusters, f"{facts.classes} classes and background, at least 4"),
    ]  # fmt: skip
    return tuple(lines)


# Decoding


def choose_decoding(facts: Facts, tiou: Sequence[float]) -> tuple[Line, ...]:
    """Non-maximum suppression, and how many detections a recording may have."""
    sigma = round(float(np.mean(tiou)), 2)
    most = int(np.clip(2 * facts.most_instances, 100, 2000))
    several = facts.classes > 1
    where = "detector.decoding"
    return (
        Line(f"{where}.sigma", sigma, "mean of the thresholds that are scored"),
        Line(f"{where}.class_wise", several, f"{facts.classes} classes" if several else "one class"),
        Line(
            f"{where}.voting_threshold", 0.7 if several else 0.9, "voting is for one class" if several else "one class"
        ),
        Line(f"{where}.max_detections", most, f"twice the most instances of a recording, {facts.most_instances}"),
        Line(f"{where}.top_k_per_level", int(min(10 * most, 5000)), "ten times as many, before suppression"),
    )


# Words


def _warnings(facts: Facts, clock: Clock) -> list[str]:
    """What a person should know before relying on the configuration."""
    counts = facts.class_counts
    once, never = int((counts == 1).sum()), int((counts == 0).sum())
    said = [
        (never, f"{never} of {facts.classes} classes have no labelled instance: they cannot be learnt"),
        (once, f"{once} of {facts.classes} classes have one labelled instance: none to hold out while it is learnt"),
        (facts.constant, f"{facts.constant} of {facts.columns} columns never change"),
        (facts.rates > 1, f"recordings have {facts.rates} different rates; the rules used {facts.fps:g} per second"),
        (facts.concurrent > 0.01, f"{facts.concurrent:.0%} of the covered time shows several actions at once: none "
         "for a detector that knows one class a row (SPOT)"),
        (clock.columns > 8192, f"rows of {clock.columns} columns are wide: a smaller window takes less memory"),
        (facts.labelled < 3, f"{facts.labelled} labelled recordings: hardly anything can be held out"),
    ]  # fmt: skip
    return [words for holds, words in said if holds]
