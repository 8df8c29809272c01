"""From arrays to the rows that detectors see, and which second each row is (spec 1.2, 2.6).

``data.grid`` says how long grids are. ``rows``: as long as the recording. ``resize`` and ``pool``: ``fixed_length_t``
rows of every recording, whose stride S' and window are the same fraction of what the recording's own rows see,
S' = ((L - 1) * stride + window) / fixed_length_t frames: not a whole number, and half a step of offset.

``data.stride`` 0 is for rows that were published at one length, of an extraction that nobody states (the 400 x 100 TSN
tables of ActivityNet): they span their video in equal parts. Such a grid needs a duration and no frame rate, because
only stride / fps = duration / rows enters; an unknown rate counts as 1. Rows and duration cannot disagree then.
"""

from __future__ import annotations

import math

import numpy as np

from apl_jax.data.files import refusal
from apl_jax.settings import GridSettings
from apl_jax.structs import TimeGrid

TRANSPOSED = ", which look transposed, [D, T]"  # words of messages
_POINTS_PER_BIN = 3  # of BSN's pooling


def place_rows(
    array: np.ndarray, windowed: bool, fps: float, duration_s: float | None, settings: GridSettings, video: str
) -> tuple[TimeGrid, np.ndarray]:
    """The grid of one recording and its feature rows ``[T, D]`` float32, as training and prediction alike see them.

    Args:
        array: ready-made rows (``windowed``) or samples of a raw signal, float32 and finite.
        fps: frames, or samples, per second; 0 if unknown.
        duration_s: annotated; None if unknown, and then not checked.
        settings: ``window``, ``stride``, ``grid`` and ``fixed_length_t``.
        video: its name, for messages.

    Raises :class:`~apl_jax.data.files.DataError` for settings that make no grid, as :func:`build_grid` does, and for an
    unknown duration where ``stride`` is 0.
    """
    window, stride, length = settings.window, settings.stride, settings.fixed_length_t
    if stride == 0:
        grid, rows = _span_video(array, windowed, fps, duration_s, video), array
    else:
        samples = count_samples(len(array), windowed, settings)
        tolerance = settings.length_tolerance
        remedy = _turned(array, windowed, fps, duration_s, settings)
        remedy += _agreeing_stride(array, windowed, fps, duration_s, settings)
        grid = build_grid(
            fps, samples, window, stride, video=video, duration_s=duration_s, tolerance=tolerance, remedy=remedy
        )
        rows = array if windowed else window_signal(array, window, stride)
    if settings.grid == "rows":
        return grid, rows
    fixed = (grid.length - 1) * grid.stride + grid.window
    placed = TimeGrid(fps=grid.fps, stride=fixed / length, window=fixed / length, length=length)
    if settings.grid == "resize":
        return placed, resize_rows(rows, length)
    return placed, pool_rows(rows, length, grid.window / grid.stride)


def count_samples(count: int, windowed: bool, settings: GridSettings) -> int:
    """Samples, or frames, that an array of ``count`` rows or samples stands for; ``settings.stride`` is not 0."""
    return (count - 1) * settings.stride + settings.window if windowed else count


def covered_s(grid: TimeGrid) -> float:
    """Seconds from the beginning of a recording to the end of its last window."""
    return ((grid.length - 1) * grid.stride + grid.window) / grid.fps


def extracted_rows(grid: TimeGrid, settings: GridSettings) -> int | None:
    """Rows of a recording before they were brought to one length; None where the grid does not tell (``stride`` 0)."""
    if settings.grid == "rows":
        return grid.length
    if settings.stride == 0:
        return None
    return round((grid.stride * grid.length - settings.window) / settings.stride) + 1


def _turned(array: np.ndarray, windowed: bool, fps: float, duration_s: float | None, settings: GridSettings) -> str:
    """What to try beside all else where the channels of an array are as many as its recording should have rows."""
    if duration_s is None or not fps > 0:
        return ""
    off_s = abs(count_samples(array.shape[1], windowed, settings) / fps - duration_s)
    fits = off_s <= max(settings.length_tolerance * duration_s, settings.stride / fps)
    return "; or, if this array is transposed, [D, T], turn it" if fits else ""


def _agreeing_stride(
    array: np.ndarray, windowed: bool, fps: float, duration_s: float | None, settings: GridSettings
) -> str:
    """The stride at which ready-made rows would be as long as their recording, where there is another than the set
    one."""
    if not windowed or duration_s is None or not (0 < duration_s < math.inf and 0 < fps < math.inf and len(array)):
        return ""
    stride = round(duration_s * fps / len(array))
    fits = abs(stride * len(array) / fps - duration_s) <= settings.length_tolerance * duration_s
    return f"; `data.stride={stride}` would agree" if stride >= 1 and fits and stride != settings.stride else ""


def build_grid(
    fps: float, samples: int, window: int, stride: int, *, video: str = "", duration_s: float | None = None,
    tolerance: float = GridSettings.length_tolerance, remedy: str = "",
) -> TimeGrid:  # fmt: skip
    """The grid of a recording of ``samples`` at ``fps``: ``1 + (samples - window) // stride`` rows.

    ``window`` and ``stride`` in samples. With ``duration_s`` the recording's length is checked against it; ``remedy``
    is what else to try where it differs.
    Raises :class:`~apl_jax.data.annotations.DataError` for a recording shorter than one window, an unknown rate, or a
    length that differs from ``duration_s`` by more than the share ``tolerance`` of it and more than a stride.
    """
    where = f"video {video!r}" if video else "recording"
    if window < 1 or stride < 1:
        found = f"window {window}, stride {stride}"
        expected = "at least 1 sample each (ready-made rows that span their video: stride 0)"
        raise refusal("`data.window`, `data.stride`", found, expected, "20 and 10")
    if not fps > 0:
        raise refusal(f"{where}, fps", f"{fps:g}", "samples per second", "add fps to its entry in the annotations")
    if samples < window:
        found = f"{samples} samples ({samples / fps:.3g} s)"
        expected = f"at least one window of {window} samples"
        raise refusal(where, found, expected, "leave it out of the annotations, or a smaller `data.window`")
    slack_s = stride / fps  # whole rows may leave out as much at the end
    if duration_s is not None and abs(samples / fps - duration_s) > max(tolerance * duration_s, slack_s):
        found = f"{samples} samples at {fps:g} per second = {samples / fps:.2f} s of features"
        expected = f"its annotated duration, {duration_s:.2f} s, within {100 * tolerance:g} %"
        advice = "check fps, and `data.stride` and window of ready-made features; or a larger `data.length_tolerance`"
        raise refusal(where, found, expected, f"{advice}, or leave it out with `data.exclude`{remedy}")
    return TimeGrid(fps=fps, stride=stride, window=window, length=1 + (samples - window) // stride)


def _span_video(array: np.ndarray, windowed: bool, fps: float, duration_s: float | None, video: str) -> TimeGrid:
    """The grid of ready-made rows that span their video in equal parts (``stride`` 0)."""
    if not windowed:
        expected = "at least 1: 0 is for ready-made rows that span their video"
        raise refusal("`data.stride`", "0, and raw signals", expected, "samples from one window to the next")
    if duration_s is None:
        remedy = "`duration=<seconds>`, or `annotations=<json with durations>`"
        raise refusal(f"video {video!r}", "no duration", "seconds: its rows span it (`data.stride=0`)", remedy)
    fps = fps or 1.0
    share = duration_s * fps / len(array)
    return TimeGrid(fps=fps, stride=share, window=share, length=len(array))


def window_signal(signal: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Sliding windows of a signal ``[S, C]``, flattened sample by sample: ``[T, window * C]`` float32.

    Column ``i * C + c`` is channel c of sample i of the window. ``S >= window`` (see :func:`build_grid`).
    """
    views = np.lib.stride_tricks.sliding_window_view(signal, window, axis=0)[::stride]  # [T, C, window]
    return np.ascontiguousarray(views.transpose(0, 2, 1), np.float32).reshape(len(views), -1)


def resize_rows(rows: np.ndarray, length: int) -> np.ndarray:
    """Rows ``[L, D]`` at another length ``[length, D]`` float32: linear, half-pixel centres, no anti-aliasing.

    New row i is taken at (i + .5) * L / length - .5, clamped to the rows that exist (spec 1.2). Where windows are
    wider than strides this spreads the rows, as the reference does, by (window - stride) / 2 frames at either end.
    """
    if len(rows) == length:
        return rows
    return _interpolate(rows, (np.arange(length) + 0.5) * len(rows) / length - 0.5)


def pool_rows(rows: np.ndarray, length: int, window_t: float = 1.0) -> np.ndarray:
    """Rows ``[L, D]`` averaged in ``length`` equal bins ``[length, D]`` float32: BSN's pooling (spec 2.6 a).

    In strides, row i lies at ``window_t / 2 + i`` of L - 1 + ``window_t``, which the bins divide; BSN's snippets have
    ``window_t`` = 1. The three samples of a bin in its public code (``poolData``) are both ends and the middle of the
    part of the bin that lies between the first row's centre and the last one's; bins without such a part, at either end
    of short recordings, are zero. A single row fills all bins. BSN's margin of 1e-4 s at the outer centres is left out:
    it keeps scipy's interpolation within its range, and moves a sample by as much.
    """
    count = len(rows)
    if count == 1:
        return np.repeat(rows, length, axis=0)
    edges = (count - 1 + window_t) * np.arange(length + 1) / length - 0.5 * window_t  # in rows: row i lies at i
    start, end = np.maximum(edges[:-1], 0), np.minimum(edges[1:], count - 1)
    points = start[:, None] + (end - start)[:, None] * np.linspace(0, 1, _POINTS_PER_BIN)
    pooled = _interpolate(rows, points.ravel()).reshape(length, _POINTS_PER_BIN, -1).mean(1)
    pooled[start > end] = 0
    return pooled


def _interpolate(rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows ``[P, D]`` float32 at fractional ``positions [P]`` of ``rows [L, D]``, clamped to the first and last row."""
    positions = np.clip(positions, 0, len(rows) - 1)
    before = positions.astype(np.int64)
    after = np.minimum(before + 1, len(rows) - 1)
    share = (positions - before).astype(np.float32)[:, None]
    result, there = rows[before], rows[after]
    result *= 1 - share
    there *= share
    result += there
    return result
