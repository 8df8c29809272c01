"""Feature values that are possible but seldom meant: far from all others, or float16's largest number.

One row of 65504, where an extractor's float16 has run over, costs most of a data set's mAP without any error. What is
usual is told by the first recordings, each without its own farthest row: one that is wrong cannot hide itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apl_jax.text import shown

LARGEST_VALUE = 1e15  # no feature is larger; its square must fit in float32
_FLOAT16_LARGEST = 65504.0
_DEVIATIONS = 100  # from the mean of a channel; features and signals stay within some 30
_REFERENCES, _SAMPLED = 64, 256  # recordings that tell what is usual, and rows of each
_TRUSTED = 0.9  # share of them whose spread is believed, the smallest of each channel
_CANDIDATES = 3  # channels of a recording that are looked at, and the one with the largest value
_SHOWN = 3


@dataclass(frozen=True)
class Peak:
    """A value of a recording that is the farthest of its channel."""

    recording: str
    row: int
    channel: int
    value: float


class Outliers:
    """Looks at every recording once, and tells which hold improbable values."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._peaks: list[Peak] = []
        self._means: list[np.ndarray] = []  # [C] float64, of the first recordings (medians)
        self._variances: list[np.ndarray] = []  # [C], without the farthest row
        self._usual: tuple[np.ndarray, np.ndarray] | None = None

    def expect(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Takes ``mean [C]`` and ``std [C]``, those of training, for what is usual."""
        self._usual = mean.astype(np.float64), std.astype(np.float64)

    def add(self, recording: str, array: np.ndarray) -> None:
        """Looks at a recording ``[samples, channels]`` float32, finite; a second time changes nothing."""
        if recording in self._seen:
            return
        self._seen.add(recording)
        count, mean = len(array), array.mean(0, dtype=np.float64)
        squares = np.einsum("tc,tc->c", array, array, dtype=np.float64)
        far = np.maximum(array.max(0) - mean, mean - array.min(0))
        if len(self._means) < _REFERENCES:
            self._refer(array)
        scale = np.sqrt(np.maximum(squares / count - mean**2, 0))
        ranks = far / np.maximum(scale, np.median(scale) or 1.0)
        channels = {*np.argsort(-ranks)[:_CANDIDATES].tolist(), int(far.argmax())}
        for channel in sorted(channels):
            row = int(np.abs(array[:, channel] - mean[channel]).argmax())
            self._peaks.append(Peak(recording, row, channel, float(array[row, channel])))

    def _refer(self, array: np.ndarray) -> None:
        """Keeps what is usual in a recording: of some rows, the median and the deviation from it, without the farthest
        row of each channel."""
        rows = array[:: max(1, len(array) // _SAMPLED)].astype(np.float64)
        centre = np.median(rows, axis=0)
        squares = np.sort(np.square(rows - centre), axis=0)
        self._means.append(centre)
        self._variances.append(squares[: max(1, len(rows) - 1)].mean(0))

    def found(self) -> list[str]:
        """One description for each recording with improbable values, in the order in which they were read."""
        if not self._peaks:
            return []
        centre, scale = self._usual or self._reference()
        words: dict[str, str] = {}
        for peak in self._peaks:
            usual, deviation = centre[peak.channel], scale[peak.channel]
            far = deviation > 0 and abs(peak.value - usual) > _DEVIATIONS * deviation
            if far or abs(peak.value) == _FLOAT16_LARGEST:
                where = f"recording {shown(peak.recording)}, row {peak.row}, channel {peak.channel}"
                words.setdefault(peak.recording, f"{where}: {peak.value:g} (usual: {usual:.3g} ± {deviation:.2g})")
        return list(words.values())

    def _reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each channel that are usual; at least the median channel's deviation, for a channel
        that is nearly always 0 says nothing of what it may be."""
        centre = np.median(self._means, axis=0)
        squares = np.sort(np.asarray(self._variances) + np.square(self._means - centre), axis=0)
        scale = np.sqrt(squares[: max(1, int(_TRUSTED * len(squares)))].mean(0))
        return centre, np.maximum(scale, np.median(scale))


OUTLIERS = (
    f"recordings with values more than {_DEVIATIONS} standard deviations from the others, or float16's largest "
    f"({_FLOAT16_LARGEST:g})"
)


def outlier_note(found: Sequence[str]) -> tuple[str, ...]:
    """What :meth:`Outliers.found` tells as one sentence with the first few examples; empty where it found nothing."""
    return (f"{len(found)} {OUTLIERS}: {'; '.join(found[:_SHOWN])}",) if found else ()
