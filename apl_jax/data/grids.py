"""From samples to feature rows, and which second each row is (systems.md 1.2)."""

from __future__ import annotations

import numpy as np

from apl_jax.data.files import refusal
from apl_jax.structs import TimeGrid

_DISAGREEMENT = 0.05  # of the duration; more means features of another rate or another cut (systems.md 8, row 11)


def build_grid(
    fps: float, samples: int, window: int, stride: int, *, video: str = "", duration_s: float | None = None
) -> TimeGrid:
    """The grid of a recording of ``samples`` at ``fps``: ``1 + (samples - window) // stride`` rows.

    ``window`` and ``stride`` in samples. With ``duration_s`` the recording's length is checked against it.
    Raises :class:`~apl_jax.data.annotations.DataError` for a recording shorter than one window, an unknown rate, or a
    length that differs from ``duration_s`` by more than 5 % and more than a stride.
    """
    where = f"video {video!r}" if video else "recording"
    if window < 1 or stride < 1:
        found = f"window {window}, stride {stride}"
        raise refusal("--config.data.window, --config.data.stride", found, "at least 1 sample each", "20 and 10")
    if not fps > 0:
        raise refusal(f"{where}, fps", f"{fps:g}", "samples per second", "add fps to its entry in the annotations")
    if samples < window:
        found = f"{samples} samples ({samples / fps:.3g} s)"
        expected = f"at least one window of {window} samples"
        raise refusal(where, found, expected, "leave it out of the annotations, or a smaller --config.data.window")
    slack_s = stride / fps  # whole rows may leave out as much at the end
    if duration_s is not None and abs(samples / fps - duration_s) > max(_DISAGREEMENT * duration_s, slack_s):
        found = f"{samples} samples at {fps:g} per second = {samples / fps:.2f} s of features"
        expected = f"its annotated duration, {duration_s:.2f} s, within 5 %"
        raise refusal(where, found, expected, "check fps, and --config.data.stride and window of ready-made features")
    return TimeGrid(fps=fps, stride=stride, window=window, length=1 + (samples - window) // stride)


def window_signal(signal: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Sliding windows of a signal ``[S, C]``, flattened sample by sample: ``[T, window * C]`` float32.

    Column ``i * C + c`` is channel c of sample i of the window. ``S >= window`` (see :func:`build_grid`).
    """
    views = np.lib.stride_tricks.sliding_window_view(signal, window, axis=0)[::stride]  # [T, C, window]
    return np.ascontiguousarray(views.transpose(0, 2, 1), np.float32).reshape(len(views), -1)
