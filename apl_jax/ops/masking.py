"""Masks of variable-length sequences, and resampling that looks at valid steps only."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def silence(x: Shaped[Array, "B T C"], mask: Bool[Array, "B T"]) -> Shaped[Array, "B T C"]:
    """``x`` with zeros at invalid steps; unlike a product with the mask this also stops NaN and its gradient."""
    return jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def upsample_linear(
    x: Float[Array, "B S C"], mask: Bool[Array, "B S"], rows: Int[Array, "B N"], steps: int
) -> Float[Array, "B N C"]:
    """Rows ``rows`` of ``x`` interpolated along time to ``steps``: linear, half-pixel centres, clamped at the last
    *valid* step.

    Clamping at the valid length rather than at the padded one is what keeps padding without effect (law 1). Asking for
    the wanted rows only keeps the gradient, a scatter, as small as they are few.
    """
    if x.shape[1] == steps:
        return jnp.take_along_axis(x, rows[..., None], axis=1)
    last = jnp.maximum(mask.sum(-1) - 1, 0)[:, None]
    position = jnp.maximum((rows + 0.5) * (x.shape[1] / steps) - 0.5, 0.0)
    left = jnp.minimum(jnp.floor(position).astype(jnp.int32), last)
    right = jnp.minimum(left + 1, last)
    fraction = (position - jnp.floor(position))[..., None].astype(x.dtype)
    take = lambda index: jnp.take_along_axis(x, index[..., None], axis=1)
    return take(left) * (1 - fraction) + take(right) * fraction
