"""Which instances the points of a detector are taught, and why the others are not (spec section 8, row 14); numpy.

Causes are words that follow "instances that no grid point covers:".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from apl_jax.ops.pyramid import TIE_T

OUTSIDE = "outside of the features"
SHORT = "too short, they lie between two points"
RANGE = "in no pyramid level's regression range"
HIDDEN = "a shorter instance has every point near their centre"


def uncovered_by_pyramid(
    segments_t: np.ndarray, length: int, *, regression_ranges: Sequence[tuple[float, float]], center_radius: float
) -> list[str | None]:
    """Why no point of a pyramid is taught each of the instances of a video, by :func:`apl_jax.ops.pyramid.assign`.

    It is about the whole video; crops in training move the points of the coarser levels.

    Args:
        segments_t: ``[N, 2]`` grid steps.
        length: rows of the video.
        regression_ranges, center_radius: as of :func:`~apl_jax.ops.pyramid.assign`.

    Returns:
        A cause, or None for an instance that a point is taught.
    """
    segments_t = segments_t.astype(np.float32)  # as targets are kept: the same roundings decide
    start, end = segments_t[:, :1], segments_t[:, 1:]
    center, cost = np.float32(0.5) * (start + end), end - start
    near, fits, exists, taught = (np.zeros(len(segments_t), bool) for _ in range(4))
    for level, (low, high) in enumerate(regression_ranges):
        stride = np.float32(2**level)
        radius = np.float32(center_radius) * stride
        # Only these points of the level can lie around the centre; one more on either side for rounding.
        index = np.floor((center - radius) / stride).astype(np.int64)
        index = index + np.arange(-1, math.ceil(2 * center_radius) + 3)  # [N, K]
        time = index.astype(np.float32) * stride
        inner = np.minimum(time - np.maximum(center - radius, start), np.minimum(center + radius, end) - time) > 0
        reach = np.maximum(time - start, end - time)
        ranged = inner & (reach >= low) & (reach <= high)
        real = ranged & (time >= 0) & (time < length)
        # Of each point of the level, the length of the shortest instance that could own it.
        owner = np.full(max(-(-length // 2**level), 1), np.inf, np.float32)
        np.minimum.at(owner, index[real], np.broadcast_to(cost, index.shape)[real])
        shortest = cost <= owner[np.clip(index, 0, len(owner) - 1)] + np.float32(TIE_T)
        near |= inner.any(-1)
        fits |= ranged.any(-1)
        exists |= real.any(-1)
        taught |= (real & shortest).any(-1)
    cause_without_point = np.where(fits, OUTSIDE, np.where(near, RANGE, SHORT))
    causes = np.where(exists, HIDDEN, cause_without_point).tolist()
    return [None if known else cause for known, cause in zip(taught, causes, strict=True)]


def uncovered_by_snippets(segments_t: np.ndarray, length: int) -> list[str | None]:
    """The same for detectors that give at least one snippet to every instance whose middle lies on the features: row g
    reaches from g - .5 to g + .5."""
    middle = segments_t.mean(-1) + 0.5
    return [None if 0 <= m < length else OUTSIDE for m in middle]
