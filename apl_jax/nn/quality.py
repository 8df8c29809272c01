"""Heads shared over pyramid levels: classes, offsets, and ALQA's localisation quality (APL 3.1, Eq. 2).

The levels are laid end to end with one silent step between them, so that a head is one convolution over one sequence
instead of one per level: the gap is what zero padding would be.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from apl_jax.nn.blocks import ConvNormRelu, MaskedConv
from apl_jax.nn.pyramid import Levels
from apl_jax.ops.masking import apply_mask
from apl_jax.settings import ActionFormerSettings
from apl_jax.structs import Array

QUALITY_BRANCHES = {"none": (), "tiou": ("tiou",), "diou": ("diou",), "tiou_tnd": ("tiou", "tnd")}


class JoinedLevels(NamedTuple):
    """All levels in one sequence of J = P + L - 1 steps."""

    features: Array  # [B, J, C]
    mask: Array  # [B, J], false at gaps
    level: np.ndarray  # [J] level of each step, -1 at gaps


def join_levels(levels: Levels) -> JoinedLevels:
    """Lays the levels end to end, one silent step between neighbours."""
    features, masks, level = [], [], []
    for i, (x, mask) in enumerate(levels):
        gap = 1 if i + 1 < len(levels) else 0
        features.append(jnp.pad(x, ((0, 0), (0, gap), (0, 0))))
        masks.append(jnp.pad(mask, ((0, 0), (0, gap))))
        level.append(np.array([i] * x.shape[1] + [-1] * gap))
    return JoinedLevels(jnp.concatenate(features, 1), jnp.concatenate(masks, 1), np.concatenate(level))


def drop_gaps(x: Array, level: np.ndarray) -> Array:
    """``x [B, J, ...]`` without the silent steps: ``[B, P, ...]``."""
    runs = [np.flatnonzero(level == i) for i in range(level.max() + 1)]
    return jnp.concatenate([x[:, run[0] : run[-1] + 1] for run in runs], axis=1)


class Trunk(nn.Module):
    """The hidden layers of a head."""

    settings: ActionFormerSettings

    @nn.compact
    def __call__(self, levels: JoinedLevels) -> Array:
        s = self.settings
        x, strict = levels.features, s.masking == "strict"
        for i in range(s.head_layers - 1):
            x = ConvNormRelu(s.width, strict, jnp.dtype(s.dtype), name=f"layer_{i}")(x, levels.mask)
            if not strict:  # LayerNorm's bias may stay at padded steps, as in the reference, but not in the gaps
                x = apply_mask(x, jnp.broadcast_to(levels.level >= 0, levels.mask.shape))
        return x.astype(jnp.float32)  # predictors run in float32: logits never are bfloat16


class ClassHead(nn.Module):
    """Sigmoid class logits ``[B, P, C]``; initial probability ``prior_probability``."""

    settings: ActionFormerSettings
    num_classes: int

    @nn.compact
    def __call__(self, levels: JoinedLevels) -> Array:
        prior = self.settings.prior_probability
        hidden = Trunk(self.settings, name="trunk")(levels)
        predictor = MaskedConv(self.num_classes, bias_init=-math.log((1 - prior) / prior), name="predictor")
        return drop_gaps(predictor(hidden, levels.mask), levels.level)


class RegressionHead(nn.Module):
    """Offsets ``[B, P, 2]`` in strides and quality logits ``[B, P, Q]`` from one trunk (systems A16).

    Q is 0, 1 or 2 by ``quality.branches``; each branch is one kernel-3 convolution.
    """

    settings: ActionFormerSettings

    @nn.compact
    def __call__(self, levels: JoinedLevels) -> tuple[Array, Array]:
        s = self.settings
        hidden = Trunk(s, name="trunk")(levels)
        raw = MaskedConv(2, bias_init=0.0, name="predictor")(hidden, levels.mask)
        scales = [self.param(f"scale_{i}", nn.initializers.ones, ()) for i in range(s.branch_blocks + 1)]
        offsets = nn.relu(jnp.stack(scales)[levels.level][:, None] * raw)
        bias = {"tiou": s.quality.tiou_bias, "diou": s.quality.tiou_bias, "tnd": s.quality.tnd_bias}
        quality = [
            MaskedConv(1, bias_init=bias[name], name=name)(hidden, levels.mask)
            for name in QUALITY_BRANCHES[s.quality.branches]
        ]
        quality_logits = jnp.concatenate(quality, -1) if quality else jnp.zeros((*levels.mask.shape, 0))
        return drop_gaps(offsets, levels.level), drop_gaps(quality_logits, levels.level)
