"""Heads shared over pyramid levels: classes, offsets, and ALQA's localisation quality (APL 3.1, Eq. 2)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from apl_jax.nn.blocks import ConvNormRelu, MaskedConv
from apl_jax.nn.pyramid import Levels
from apl_jax.settings import ActionFormerSettings
from apl_jax.structs import Array

QUALITY_BRANCHES = {"none": (), "tiou": ("tiou",), "diou": ("diou",), "tiou_tnd": ("tiou", "tnd")}


class Trunk(nn.Module):
    """The hidden layers of a head."""

    settings: ActionFormerSettings

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        s = self.settings
        for i in range(s.head_layers - 1):
            x = ConvNormRelu(s.width, s.masking == "strict", jnp.dtype(s.dtype), name=f"layer_{i}")(x, mask)
        return x


class ClassHead(nn.Module):
    """Sigmoid class logits ``[B, T_l, C]`` per level; initial probability ``prior_probability``."""

    settings: ActionFormerSettings
    num_classes: int

    def setup(self) -> None:
        prior = self.settings.prior_probability
        self.trunk = Trunk(self.settings)
        self.predictor = MaskedConv(self.num_classes, bias_init=-math.log((1 - prior) / prior))

    def __call__(self, levels: Levels) -> list[Array]:
        # The predictor runs in float32: logits never are bfloat16.
        return [self.predictor(self.trunk(x, mask).astype(jnp.float32), mask) for x, mask in levels]


class RegressionHead(nn.Module):
    """Offsets ``[B, T_l, 2]`` in strides and quality logits ``[B, T_l, Q]`` from one trunk (systems A16).

    Q is 0, 1 or 2 by ``quality.branches``; each branch is one kernel-3 convolution.
    """

    settings: ActionFormerSettings

    def setup(self) -> None:
        s = self.settings
        self.trunk = Trunk(s)
        self.predictor = MaskedConv(2, bias_init=0.0)
        bias = {"tiou": s.quality.tiou_bias, "diou": s.quality.tiou_bias, "tnd": s.quality.tnd_bias}
        self.branches = [
            MaskedConv(1, bias_init=bias[name], name=name) for name in QUALITY_BRANCHES[s.quality.branches]
        ]
        self.scales = [
            self.param(f"scale_{i}", nn.initializers.ones, ()) for i in range(s.branch_blocks + 1)
        ]

    def __call__(self, levels: Levels) -> tuple[list[Array], list[Array]]:
        offsets, quality_logits = [], []
        for scale, (x, mask) in zip(self.scales, levels, strict=True):
            hidden = self.trunk(x, mask).astype(jnp.float32)
            offsets.append(nn.relu(scale * self.predictor(hidden, mask)))
            columns = [branch(hidden, mask) for branch in self.branches]
            quality_logits.append(jnp.concatenate(columns, -1) if columns else jnp.zeros((*mask.shape, 0)))
        return offsets, quality_logits
