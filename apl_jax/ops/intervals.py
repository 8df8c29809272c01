"""Runs of true values along the last axis, as masked array operations; an extent is half-open, ``[first, last)``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num, Shaped


def component(active: Bool[Array, "*N W"], at: Int[Array, "*M"]) -> tuple[Int[Array, "*K"], Int[Array, "*K"]]:
    """The run that holds position ``at``, else the nearest one (the earlier of two equally near); empty if none is.

    ``at`` and the leading axes of ``active`` broadcast to those of the result.
    """
    position = jnp.arange(active.shape[-1])
    far = 2 * active.shape[-1]
    distance = jnp.where(active, jnp.abs(position - at[..., None]), far)
    anchor = distance.argmin(-1, keepdims=True)
    first = jnp.where(~active & (position < anchor), position + 1, 0).max(-1)
    last = jnp.where(~active & (position > anchor), position, active.shape[-1]).min(-1)
    return first, jnp.where(active.any(-1), last, first)


def span(active: Bool[Array, "*N W"]) -> tuple[Int[Array, "*N"], Int[Array, "*N"]]:
    """From the first to the last true value, whatever lies between; empty if there is none."""
    position = jnp.arange(active.shape[-1])
    last = jnp.where(active, position + 1, 0).max(-1)
    return jnp.minimum(jnp.where(active, position, active.shape[-1]).min(-1), last), last


def run_starts(active: Bool[Array, "*N W"]) -> tuple[Int[Array, "*N W"], Bool[Array, "*N W"]]:
    """For every position the first one of its run (meaningless where inactive), and whether a run ends there."""
    position = jnp.arange(active.shape[-1])
    after_gap = jnp.where(active, 0, position + 1)
    ends = active & ~jnp.pad(active[..., 1:], [(0, 0)] * (active.ndim - 1) + [(0, 1)])
    return running_max(after_gap, jnp.zeros_like(after_gap)), ends


def running_max(values: Num[Array, "*N W"], first: Int[Array, "*N W"]) -> Num[Array, "*N W"]:
    """Maximum over positions ``first[t] .. t``, by doubling: O(W log W). ``first`` must not fall within a run."""
    width = values.shape[-1]
    position = jnp.arange(width)
    step = 1
    while step < width:
        earlier = jnp.pad(values[..., :-step], [(0, 0)] * (values.ndim - 1) + [(step, 0)])
        values = jnp.where(position - step >= first, jnp.maximum(values, earlier), values)
        step *= 2
    return values


def within(first: Int[Array, "*N"], last: Int[Array, "*N"], width: int) -> Bool[Array, "*N W"]:
    """Membership of the positions 0 .. ``width`` - 1."""
    position = jnp.arange(width)
    return (position >= first[..., None]) & (position < last[..., None])


def top_mask(values: Shaped[Array, "*N W"], count: int) -> Bool[Array, "*N W"]:
    """Which positions hold the ``count`` largest values; of equal ones the earlier."""
    width = values.shape[-1]
    _, index = jax.lax.top_k(values, min(count, width))
    return (index[..., None] == jnp.arange(width)).any(-2)


def dilate(active: Bool[Array, "N W V"], size: int) -> Bool[Array, "N W V"]:
    """Dilation of maps by a square of ones, ``size`` x ``size``, that reaches size // 2 back and (size - 1) // 2 ahead.

    A square is two passes along the axes, and each pass doubles its reach: O(log size) instead of size^2 operations.
    """
    for axis in (1, 2):
        pads = [(0, 0)] * 3
        pads[axis] = (size // 2, (size - 1) // 2)
        active, reach = jnp.pad(active, pads), 1
        while reach < size:
            step = min(reach, size - reach)
            length = active.shape[axis] - step
            active = jax.lax.slice_in_dim(active, 0, length, axis=axis) | jax.lax.slice_in_dim(
                active, step, step + length, axis=axis
            )
            reach += step
    return active
