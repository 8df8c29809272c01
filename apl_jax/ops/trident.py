"""TriDet's trident decoding: a boundary is where a point's neighbours expect it (Shi et al., CVPR 2023; spec 1.12)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def trident_offsets(
    start: Float[Array, "B J C"], end: Float[Array, "B J C"], center: Float[Array, "B J K"], outside: float
) -> Float[Array, "B J C 2"]:
    """Expected distances from every step to the start and the end of the segment of every class, in steps.

    With N = K / 2 - 1 bins, the distance to the start is the mean of N, N - 1 .. 0 under the softmax of what the N
    steps before and the step itself say of a start, plus what the step says of each of these places; to the end
    likewise, over 0 .. N steps after.

    Args:
        start, end: logits of a boundary of each class at each step.
        center: logits of a step for its N + 1 places of a start, farthest first, then of an end, nearest first.
        outside: boundary logit of places before the first and behind the last step.

    Returns:
        Distances in [0, N], to the start and to the end.
    """
    count = center.shape[-1] // 2
    distance = jnp.arange(count, dtype=center.dtype)
    before = _neighbours(start, count, (count - 1, 0), outside)
    after = _neighbours(end, count, (0, count - 1), outside)
    left = jax.nn.softmax(before + center[:, :, None, :count]) @ distance[::-1]
    right = jax.nn.softmax(after + center[:, :, None, count:]) @ distance
    return jnp.stack([left, right], -1)


def _neighbours(logits: Array, count: int, padding: tuple[int, int], outside: float) -> Array:
    """``count`` successive steps ``[B, J, C, count]``, where ``padding`` steps lie before and behind."""
    steps = logits.shape[1]
    padded = jnp.pad(logits, ((0, 0), padding, (0, 0)), constant_values=outside)
    return jnp.stack([padded[:, j : j + steps] for j in range(count)], -1)
