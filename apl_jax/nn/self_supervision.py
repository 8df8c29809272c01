"""SSTAP's two self-supervised heads: one rebuilds features of dropped steps, one tells whether time is in order (4.1).

Both stand on a detector's frame features ``[B, T, R]`` (:meth:`~apl_jax.detectors.base.Outputs.represent`).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.nn.blocks import GroupedConv, uniform_fan_in
from apl_jax.ops.masking import apply_mask
from apl_jax.structs import Array


class Reconstruction(nn.Module):
    """The input features ``[B, T, width]``, rebuilt from frame features ``[B, T, R]``.

    ``groups`` channels of both convolutions are apart; fewer where it does not divide the widths.
    """

    width: int
    groups: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        hidden = x.shape[-1]
        groups = math.gcd(self.groups, hidden, self.width)
        x = apply_mask(nn.relu(GroupedConv(hidden, groups, name="hidden")(x)), mask)
        return GroupedConv(self.width, groups, name="output")(x)


class ClipOrder(nn.Module):
    """Logits ``[B, 2]``: class 0, the halves of a video are exchanged; class 1, they are in order."""

    parts: int  # equal ones that the valid steps are divided into, whatever their number; an empty one counts as 0

    @nn.compact
    def __call__(self, x: Array, mask: Array, keep: Array) -> Array:
        """``x [B, T, R]`` where ``mask [B, T]``; ``keep [B, parts]`` is dropout's factor of each part."""
        summary = nn.relu(GroupedConv(1, 1, name="summary")(x))[..., 0]
        length, time = mask.sum(-1, keepdims=True), jnp.arange(x.shape[1])
        part = jnp.where(mask, time * self.parts // jnp.maximum(length, 1), self.parts)
        member = jax.nn.one_hot(part, self.parts)  # [B, T, parts]
        mean = (summary[..., None] * member).sum(1) / jnp.maximum(member.sum(1), 1)
        return nn.Dense(2, kernel_init=uniform_fan_in, name="output")(mean * keep)
