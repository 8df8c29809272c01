"""Masks of variable-length sequences, resampling that looks at valid steps only, and maps over many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def apply_mask(x: Shaped[Array, "B T C"], mask: Bool[Array, "B T"]) -> Shaped[Array, "B T C"]:
    """``x`` with zeros at invalid steps; unlike a product with the mask this also stops NaN and its gradient."""
    return jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def masked_mean(value: Float[Array, "*N"], mask: Bool[Array, "*N"]) -> Float[Array, ""]:
    """Mean of ``value`` where ``mask`` is true; 0 where nothing is."""
    return jnp.where(mask, value, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def reversed_rows(mask: Bool[Array, "*B T"]) -> Int[Array, "*B T"]:
    """Rows that reverse the valid steps, a prefix of the last axis: n - 1 .. 0, then the invalid ones where they are.

    Taken along time by these rows, a sequence is seen backwards and its padding stays at its end.
    """
    row = jnp.arange(mask.shape[-1])
    return jnp.where(mask, mask.sum(-1, keepdims=True) - 1 - row, row)


def reverse_time(x: Shaped[Array, "B T *C"], mask: Bool[Array, "B T"]) -> Shaped[Array, "B T *C"]:
    """``x`` with its valid steps, a prefix, in reverse order."""
    return jax.vmap(lambda x, rows: x[rows])(x, reversed_rows(mask))


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


def map_rows(function: Callable[[Any], Any], tree: Any, batch: int) -> Any:
    """``function`` of the V rows of a tree, ``batch`` of them at a time so that memory stays bounded.

    A chunk takes every (V / batch)-th row: where the rows are split over devices and their number divides ``batch``,
    each device maps over rows of its own and nothing travels. Rows of zeros fill the last chunk.
    """
    rows = jax.tree.leaves(tree)[0].shape[0]
    batch = min(batch, rows)
    chunks = -(-rows // batch)
    pad = lambda x: jnp.pad(x, [(0, chunks * batch - rows)] + [(0, 0)] * (x.ndim - 1))
    folded = jax.tree.map(lambda x: pad(x).reshape(batch, chunks, *x.shape[1:]), tree)
    chunk = lambda c: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, c, 1, keepdims=False), folded)
    results = jax.lax.map(lambda c: function(chunk(c)), jnp.arange(chunks))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(batch * chunks, *x.shape[2:])[:rows], results)
