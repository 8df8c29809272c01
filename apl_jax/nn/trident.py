"""TriDet's blocks: scalable-granularity perception (SGP) and the trident head (Shi et al., CVPR 2023; spec 1.12).

``strict`` masking (see blocks.py) keeps padded steps out of means over time, of group statistics and of all branches;
the reference lets them in, so that its outputs depend on how much padding there is.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from apl_jax.nn.blocks import LAYER_NORM_EPSILON, LayerNorm, Linear, MaskedConv, ScaledResidual, pool_by_stride
from apl_jax.nn.quality import ClassHead, JoinedLevels, Trunk, prior_logit, quality_branches
from apl_jax.ops import sequence
from apl_jax.ops.masking import apply_mask
from apl_jax.ops.trident import trident_offsets
from apl_jax.structs import Array


def wide_kernel(window: int, factor: float) -> int:
    """Width of the wider of the two window-level convolutions: ``factor`` times window + 1, made odd."""
    width = round(factor * (window + 1))
    return width + (width % 2 == 0)


class ChannelConv(nn.Module):
    """Depthwise convolution with bias, its weights drawn from a normal distribution."""

    kernel_size: int
    deviation: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.normal(self.deviation), (self.kernel_size, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return sequence.depthwise_conv1d(x, kernel) + bias


class GroupNorm(nn.Module):
    """Mean 0 and (biased) variance 1 over time and the channels of a group."""

    groups: int

    @nn.compact
    def __call__(self, x: Array, seen: Array) -> Array:
        """``x [B, T, C]``; the steps ``seen [B, T]`` count."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        grouped = x.reshape(*x.shape[:2], self.groups, -1)
        where = seen[:, :, None, None]
        count = jnp.maximum(seen.sum(1), 1)[:, None, None, None] * grouped.shape[-1]
        mean_of = lambda v: jnp.where(where, v, 0.0).sum((1, 3), keepdims=True) / count
        centred = grouped - mean_of(grouped)
        normed = centred * jax.lax.rsqrt(mean_of(jnp.square(centred)) + LAYER_NORM_EPSILON)
        return normed.reshape(x.shape) * scale + bias


class SgpBlock(nn.Module):
    """Three granularities in place of attention: the step against the mean of the video, and two widths of windows.

    With stride 2 it halves the sequence first. With weights that start at 0 the gradients of every product are 0, and
    its convolutions never train (spec 1.12).
    """

    window: int
    kernel_factor: float  # of the wider convolution, see wide_kernel
    mlp_width: int
    groups: int
    stride: int
    deviation: float  # of the convolutions' weights at initialisation
    drop_path: float
    layer_scale: bool
    layer_scale_init: float
    strict: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> tuple[Array, Array]:
        out_mask = mask[:, :: self.stride]
        silenced = lambda v: apply_mask(v, out_mask) if self.strict else v
        seen = out_mask if self.strict else jnp.ones_like(out_mask)
        residual = lambda name: ScaledResidual(self.drop_path, self.layer_scale, self.layer_scale_init, name=name)
        x = silenced(pool_by_stride(x, mask, self.stride, self.strict))
        y = silenced(LayerNorm(name="norm_sgp")(x))
        conv = lambda name, width: ChannelConv(width, self.deviation, name=name)
        mean = y.sum(1, keepdims=True) / jnp.maximum(seen.sum(1), 1)[:, None, None]
        instant = conv("instant", 1)(y) * nn.relu(conv("global", 1)(mean))
        wide = conv("wide", wide_kernel(self.window, self.kernel_factor))(y)
        window = (conv("narrow", self.window)(y) + wide) * conv("gate", self.window)(y)
        branch = silenced(instant + window + y)
        out = apply_mask(x, out_mask) + residual("scale_sgp")(branch, deterministic)
        hidden = Linear(self.mlp_width, self.dtype, name="expand")(GroupNorm(self.groups, name="norm_mlp")(out, seen))
        branch = silenced(Linear(x.shape[-1], self.dtype, name="contract")(sequence.gelu(hidden)))
        return out + residual("scale_mlp")(branch, deterministic), out_mask


class TridentHead(nn.Module):
    """Class-wise offsets ``[B, J, C, 2]`` in strides, in [0, N], and quality logits ``[B, J, Q]``; gaps included.

    Two heads say where starts and ends are, from features that they do not train; the third says for each step where
    its own are to be expected, and holds the quality branches.
    """

    levels: int  # L, each with a scale of its own
    num_classes: int
    bins: int  # N, at most the gap between the levels
    prior_probability: float
    boundary_kernel: int
    branches: tuple[str, ...]  # Q of them, see QUALITY_BRANCHES
    tiou_bias: float
    tnd_bias: float
    width: int
    layers: int  # hidden ones
    strict: bool
    dtype: DTypeLike = jnp.float32
    kernel_size: int = 3

    @nn.compact
    def __call__(self, levels: JoinedLevels) -> tuple[Array, Array]:
        prior = prior_logit(self.prior_probability)
        outside = prior if self.strict else 0.0  # the reference: a surer boundary than anywhere inside at first
        given = levels._replace(features=jax.lax.stop_gradient(levels.features))
        size = (self.width, self.layers, self.strict, self.dtype)

        def boundary(name: str) -> Array:
            head = ClassHead(self.num_classes, self.prior_probability, *size, self.boundary_kernel, name=name)
            return jnp.where(levels.mask[..., None], head(given), outside)

        hidden = Trunk(*size, self.kernel_size, name="trunk")(levels)
        raw = MaskedConv(2 * (self.bins + 1), self.kernel_size, 0.0, name="predictor")(hidden, levels.mask)
        scales = [self.param(f"scale_{i}", nn.initializers.ones, ()) for i in range(self.levels)]
        center = nn.relu(jnp.stack(scales)[levels.level][:, None] * raw)
        offsets = trident_offsets(boundary("start_head"), boundary("end_head"), center, outside)
        quality = quality_branches(hidden, levels.mask, self.branches, self.tiou_bias, self.tnd_bias)
        return offsets, quality
