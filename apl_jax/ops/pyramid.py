"""The points of a temporal pyramid: where they lie, what label assignment asks of them, how they are reversed in time.

Level l has stride 2^l and points 0, 2^l, 2 * 2^l ... (spec 1.4); the P points of all levels are laid end to end, the
finest level first. Only the number of grid steps T and of levels L decide which they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.ops.masking import reversed_rows, upsample_linear
from apl_jax.structs import Array, Targets

Levels = tuple[tuple[Array, Array], ...]  # per level: features [B, T_l, C], mask [B, T_l], T_l = T / 2^l


def legal_length(length: int, levels: int) -> int:
    """Smallest number of grid steps >= ``length`` that every stride of ``levels`` levels divides."""
    coarsest = 2 ** (levels - 1)
    return -(-length // coarsest) * coarsest


def grid_steps(points: int, levels: int) -> int:
    """T from P = T (1 + 1/2 + ... + 2^-(L-1))."""
    coarsest = 2 ** (levels - 1)
    return points * coarsest // (2 * coarsest - 1)


def level_sizes(steps: int, levels: int) -> list[int]:
    """Points of each level on a grid of ``steps`` steps."""
    return [-(-steps // 2**level) for level in range(levels)]


def point_times(steps: int, levels: int) -> np.ndarray:
    """Grid step ``[P]`` of every point, float32."""
    return np.concatenate([np.arange(0, steps, 2**level, dtype=np.float32) for level in range(levels)])


def pyramid_points(steps: int, regression_ranges: Sequence[tuple[float, float]]) -> np.ndarray:
    """Points ``[P, 4]``: time in grid steps, shortest and longest reach, stride (spec 1.4).

    ``regression_ranges``: of each level, which distances (grid steps) from a point to the farther end of an instance
    the level is for.
    """
    levels = len(regression_ranges)
    constants = np.array([(low, high, 2**level) for level, (low, high) in enumerate(regression_ranges)], np.float32)
    return np.column_stack([point_times(steps, levels), np.repeat(constants, level_sizes(steps, levels), axis=0)])


def rows_of_levels(pyramid: Levels, rows: Array) -> Array:
    """Grid steps ``rows [B, N]`` of all levels, up-sampled to the grid and concatenated: ``[B, N, L * C]`` (B5)."""
    steps = pyramid[0][1].shape[1]
    return jnp.concatenate([upsample_linear(x, mask, rows, steps) for x, mask in pyramid], axis=-1)


class Assignment(NamedTuple):
    """What label assignment asks of each point of one video."""

    positive: Array  # [P] bool
    classes: Array  # [P, C] union of the classes of equally short instances
    offsets: Array  # [P, 2] in strides, meaningful for positives
    weight: Array  # [P] weight of the assigned instance; 1 for background; 0 under an ignored instance
    silent: Array  # [P] bool, under an ignored instance and assigned to no other


TIE_T = 1e-3  # grid steps; instances as short as the shortest share a point (spec 1.5)


def assign(points: Array, targets: Targets, *, num_classes: int, center_radius: float) -> Assignment:
    """Label assignment of one video (spec 1.5): the shortest instance around whose centre, and in whose range, a
    point lies.

    Args:
        points: ``[P, 4]``, as :func:`pyramid_points` makes them.
        targets: unbatched fields ``[N, ...]``.
        num_classes: C.
        center_radius: strides; how far from an instance's centre a point may lie.
    """
    time, low, high, stride = (points[:, i, None] for i in range(4))
    start, end = targets.segments_t[:, 0], targets.segments_t[:, 1]
    left, right = time - start, end - time
    center, radius = 0.5 * (start + end), center_radius * stride
    inner = jnp.minimum(time - jnp.maximum(center - radius, start), jnp.minimum(center + radius, end) - time)
    reach = jnp.maximum(left, right)
    fits = (inner > 0) & (reach >= low) & (reach <= high) & targets.mask & ~targets.ignore_mask
    cost = jnp.where(fits, end - start, jnp.inf)
    chosen, least = cost.argmin(-1), cost.min(-1)
    positive = jnp.isfinite(least)
    shortest = fits & (cost <= least[:, None] + TIE_T)
    one_hot = jax.nn.one_hot(targets.labels, num_classes)
    classes = (shortest.astype(jnp.float32) @ one_hot > 0).astype(jnp.float32)
    pick = lambda x: jnp.take_along_axis(x, chosen[:, None], axis=1)
    under_ignored = ((left >= 0) & (right >= 0) & targets.mask & targets.ignore_mask).any(-1)
    silent = under_ignored & ~positive
    weight = jnp.where(positive, targets.weight[chosen], jnp.where(silent, 0.0, 1.0))
    offsets = jnp.concatenate([pick(left), pick(right)], -1) / points[:, 3:]
    return Assignment(positive, classes, offsets, weight, silent)


def reversed_points(point_mask: Array, levels: int) -> tuple[Array, Array]:
    """Where each point's counterpart is in the time-reversed view of a video.

    Args:
        point_mask: ``[B, P]`` valid points, a prefix of each level. The reversed view has the same.
        levels: L.

    Returns:
        The counterpart's row ``[B, P]``: the k-th valid point of a level has the k-th from the end; points that are not
        valid have themselves. And how far later than the point the counterpart stands, ``[B, P]`` in strides of the
        level, from 0 to less than 1: a video of n steps ends d steps after the last point of a level of stride s, so
        that reversed points of that level stand d steps later, d in [0, s); level 0 has d = 0.
    """
    sizes = level_sizes(grid_steps(point_mask.shape[1], levels), levels)
    masks = jnp.split(point_mask, np.cumsum(sizes)[:-1], axis=1)
    length = masks[0].sum(-1, keepdims=True)
    rows, later, first = [], [], 0
    for level, mask in enumerate(masks):
        rows.append(first + reversed_rows(mask))
        beyond = (length - 1) / 2**level - (mask.sum(-1, keepdims=True) - 1)
        later.append(jnp.where(mask, beyond, 0.0))
        first += sizes[level]
    return jnp.concatenate(rows, axis=1), jnp.concatenate(later, axis=1)
