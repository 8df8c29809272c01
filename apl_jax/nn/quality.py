"""Heads shared over pyramid levels: classes, offsets, and ALQA's localisation quality (APL 3.1, Eq. 2).

The levels are laid end to end with silent steps between them, so that a head is one convolution over one sequence
instead of one per level: the gap is what zero padding would be.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from apl_jax.nn.blocks import ConvNormRelu, MaskedConv
from apl_jax.ops.masking import apply_mask
from apl_jax.ops.pyramid import Levels
from apl_jax.structs import Array

QUALITY_BRANCHES = {"none": (), "tiou": ("tiou",), "diou": ("diou",), "tiou_tnd": ("tiou", "tnd")}


class JoinedLevels(NamedTuple):
    """All levels in one sequence of J steps: P points, and gaps between levels."""

    features: Array  # [B, J, C]
    mask: Array  # [B, J], false at gaps
    level: np.ndarray  # [J] level of each step, -1 at gaps


def join_levels(levels: Levels, gap: int = 1) -> JoinedLevels:
    """Lays the levels end to end, ``gap`` silent steps between neighbours: as many as a head sees to either side."""
    features, masks, level = [], [], []
    for i, (x, mask) in enumerate(levels):
        after = gap if i + 1 < len(levels) else 0
        features.append(jnp.pad(x, ((0, 0), (0, after), (0, 0))))
        masks.append(jnp.pad(mask, ((0, 0), (0, after))))
        level.append(np.array([i] * x.shape[1] + [-1] * after))
    return JoinedLevels(jnp.concatenate(features, 1), jnp.concatenate(masks, 1), np.concatenate(level))


def drop_gaps(x: Array, level: np.ndarray) -> Array:
    """``x [B, J, ...]`` without the silent steps: ``[B, P, ...]``."""
    runs = [np.flatnonzero(level == i) for i in range(level.max() + 1)]
    return jnp.concatenate([x[:, run[0] : run[-1] + 1] for run in runs], axis=1)


class Trunk(nn.Module):
    """The hidden layers of a head: ``[B, J, width]`` in float32."""

    width: int
    layers: int
    strict: bool  # masking, see blocks.py
    dtype: DTypeLike = jnp.float32
    kernel_size: int = 3

    @nn.compact
    def __call__(self, levels: JoinedLevels) -> Array:
        x = levels.features
        for i in range(self.layers):
            layer = ConvNormRelu(self.width, self.strict, self.dtype, self.kernel_size, name=f"layer_{i}")
            x = layer(x, levels.mask)
            if not self.strict:  # LayerNorm's bias may stay at padded steps, as in the reference, but not in the gaps
                x = apply_mask(x, jnp.broadcast_to(levels.level >= 0, levels.mask.shape))
        return x.astype(jnp.float32)  # predictors run in float32: logits never are bfloat16


def prior_logit(probability: float) -> float:
    """The logit of a probability in (0, 1)."""
    return -math.log((1 - probability) / probability)


class ClassHead(nn.Module):
    """Sigmoid class logits ``[B, J, C]``, gaps included; initial probability ``prior_probability``."""

    num_classes: int
    prior_probability: float
    width: int
    layers: int  # hidden ones
    strict: bool
    dtype: DTypeLike = jnp.float32
    kernel_size: int = 3

    @nn.compact
    def __call__(self, levels: JoinedLevels) -> Array:
        hidden = Trunk(self.width, self.layers, self.strict, self.dtype, self.kernel_size, name="trunk")(levels)
        bias = prior_logit(self.prior_probability)
        return MaskedConv(self.num_classes, self.kernel_size, bias, name="predictor")(hidden, levels.mask)


def quality_branches(hidden: Array, mask: Array, branches: tuple[str, ...], tiou_bias: float, tnd_bias: float) -> Array:
    """Quality logits ``[B, J, Q]`` of hidden features ``[B, J, C]``: a kernel-3 convolution for each of ``branches``.

    To be called within the ``__call__`` of a head, which then holds the convolutions, named after their branch.
    ``tiou_bias``, ``tnd_bias``: logits at initialisation; a branch "diou" starts as "tiou" does.
    """
    bias = {"tiou": tiou_bias, "diou": tiou_bias, "tnd": tnd_bias}
    logits = [MaskedConv(1, bias_init=bias[name], name=name)(hidden, mask) for name in branches]
    return jnp.concatenate(logits, -1) if logits else jnp.zeros((*mask.shape, 0))


class RegressionHead(nn.Module):
    """Offsets ``[B, P, 2]`` in strides, not negative, and quality logits ``[B, P, Q]`` from one trunk (spec A16)."""

    levels: int  # L, each with a scale of its own
    branches: tuple[str, ...]  # Q of them, see QUALITY_BRANCHES
    tiou_bias: float
    tnd_bias: float
    width: int
    layers: int  # hidden ones
    strict: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, levels: JoinedLevels) -> tuple[Array, Array]:
        hidden = Trunk(self.width, self.layers, self.strict, self.dtype, name="trunk")(levels)
        raw = MaskedConv(2, bias_init=0.0, name="predictor")(hidden, levels.mask)
        scales = [self.param(f"scale_{i}", nn.initializers.ones, ()) for i in range(self.levels)]
        offsets = nn.relu(jnp.stack(scales)[levels.level][:, None] * raw)
        quality = quality_branches(hidden, levels.mask, self.branches, self.tiou_bias, self.tnd_bias)
        return drop_gaps(offsets, levels.level), drop_gaps(quality, levels.level)
