"""Which instances a detector's grid points are taught, and why the others are not (spec 8, row 14)."""

from __future__ import annotations

import enum
import math

import numpy as np

from apl_jax.settings import ActionFormerSettings, Settings

_TIE_T = 1e-3  # grid steps; instances as short as the shortest share a point (spec 1.5)


class Cause(enum.Enum):
    """Why no grid point is taught an instance, in words that follow "instances that no grid point covers:"."""

    OUTSIDE = "outside of the features"
    SHORT = "too short, they lie between two points"
    RANGE = "in no pyramid level's regression range"
    HIDDEN = "a shorter instance has every point near their centre"


def uncovered_causes(segments_t: np.ndarray, length: int, settings: Settings) -> list[Cause | None]:
    """Why each of the instances ``[N, 2]`` (grid steps) of a video of ``length`` rows is not covered; None: it is.

    ActionFormer: by its label assignment on the whole video (:func:`apl_jax.detectors.actionformer.assign`, systems
    1.5); crops in training move the points of the coarser levels. Detectors of snippets (SPOT) give every instance
    whose middle lies on the features at least one snippet.
    """
    if settings.detector == "actionformer":
        return assignment_causes(segments_t, length, settings.actionformer)
    middle = segments_t.mean(-1) + 0.5
    return [None if 0 <= m < length else Cause.OUTSIDE for m in middle]


def assignment_causes(segments_t: np.ndarray, length: int, settings: ActionFormerSettings) -> list[Cause | None]:
    """As :func:`uncovered_causes`, for ActionFormer's points, regression ranges and centre sampling."""
    segments_t = segments_t.astype(np.float32)  # as targets are kept: the same roundings decide
    start, end = segments_t[:, :1], segments_t[:, 1:]
    center, cost = np.float32(0.5) * (start + end), end - start
    near, fits, exists, taught = (np.zeros(len(segments_t), bool) for _ in range(4))
    for level, (low, high) in enumerate(settings.regression_ranges):
        stride = np.float32(2**level)
        radius = np.float32(settings.center_radius) * stride
        # Only these points of the level can lie around the centre; one more on either side for rounding.
        index = np.floor((center - radius) / stride).astype(np.int64)
        index = index + np.arange(-1, math.ceil(2 * settings.center_radius) + 3)  # [N, K]
        time = index.astype(np.float32) * stride
        inner = np.minimum(time - np.maximum(center - radius, start), np.minimum(center + radius, end) - time) > 0
        reach = np.maximum(time - start, end - time)
        ranged = inner & (reach >= low) & (reach <= high)
        real = ranged & (time >= 0) & (time < length)
        owner = np.full(-(-length // 2**level), np.inf, np.float32)  # length of the shortest instance of each point
        np.minimum.at(owner, index[real], np.broadcast_to(cost, index.shape)[real])
        shortest = cost <= owner[np.clip(index, 0, len(owner) - 1)] + np.float32(_TIE_T)
        near |= inner.any(-1)
        fits |= ranged.any(-1)
        exists |= real.any(-1)
        taught |= (real & shortest).any(-1)
    causes: list[Cause | None] = []
    for i in range(len(segments_t)):
        if taught[i]:
            causes.append(None)
        elif exists[i]:
            causes.append(Cause.HIDDEN)
        elif fits[i]:
            causes.append(Cause.OUTSIDE)
        else:
            causes.append(Cause.RANGE if near[i] else Cause.SHORT)
    return causes
