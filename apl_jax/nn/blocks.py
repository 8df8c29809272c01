"""Linen building blocks of one-stage temporal detectors: masked convolution, normalisation, attention (spec 1.3).

All of them take ``x [B, T, C]`` and ``mask [B, T]``. ``strict`` chooses between the two maskings: the reference leaves
LayerNorm's bias at padded steps, from where kernel-3 convolutions carry it into the last valid step; the strict form
silences padded steps again after every normalisation, so that padding changes nothing (law 1).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from apl_jax.ops import sequence
from apl_jax.ops.masking import apply_mask
from apl_jax.structs import Array

LAYER_NORM_EPSILON = 1e-5
# PyTorch's default for convolutions: uniform in +-1/sqrt(fan_in).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _depthwise_init(key: Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> Array:
    bound = 1 / math.sqrt(shape[0])  # fan_in of a depthwise kernel is its width
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class LayerNorm(nn.Module):
    """LayerNorm over channels in float32, biased variance, returned in the dtype of the input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return sequence.layer_norm(x, scale, bias, LAYER_NORM_EPSILON)


class Linear(nn.Module):
    """Pointwise convolution with bias."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", uniform_fan_in, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return sequence.add_bias(sequence.linear(x.astype(self.dtype), kernel), bias)


class MaskedConv(nn.Module):
    """Zero-padded convolution over time, silenced at invalid steps of the (sub-sampled) mask."""

    features: int
    kernel_size: int = 3
    bias_init: float | None = None  # None: no bias, as wherever a LayerNorm follows
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        kernel = self.param("kernel", uniform_fan_in, (self.kernel_size, x.shape[-1], self.features))
        y = sequence.conv1d(x.astype(self.dtype), kernel)
        if self.bias_init is not None:
            bias = self.param("bias", nn.initializers.constant(self.bias_init), (self.features,))
            y = sequence.add_bias(y, bias)
        return apply_mask(y, mask)


class GroupedConv(nn.Module):
    """Zero-padded 3-wide convolution over time with bias, within groups of channels; not silenced anywhere."""

    features: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, steps, channels = x.shape
        size = channels // self.groups
        kernel = self.param("kernel", uniform_fan_in, (3, size, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (0, 0)))
        taps = jnp.stack([padded[:, k : k + steps] for k in range(3)], 2).reshape(batch, steps, 3, self.groups, size)
        by_group = kernel.astype(taps.dtype).reshape(3, size, self.groups, -1)
        wide = jnp.promote_types(taps.dtype, jnp.float32)
        y = jnp.einsum("btkgi,kigo->btgo", taps, by_group, preferred_element_type=wide)
        return (y.reshape(batch, steps, -1) + bias).astype(taps.dtype)


class DepthwiseConv(nn.Module):
    """Kernel-3 depthwise convolution with stride, no bias, silenced at invalid output steps."""

    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, out_mask: Array) -> Array:
        kernel = self.param("kernel", _depthwise_init, (3, x.shape[-1]))
        return apply_mask(sequence.depthwise_conv1d(x, kernel, self.stride), out_mask)


class ConvNormRelu(nn.Module):
    """Masked convolution, LayerNorm, ReLU: a layer of the embedding and of the heads."""

    features: int
    strict: bool
    dtype: DTypeLike = jnp.float32
    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        y = MaskedConv(self.features, self.kernel_size, dtype=self.dtype, name="conv")(x, mask)
        y = nn.relu(LayerNorm(name="norm")(y))
        return apply_mask(y, mask) if self.strict else y


class ConvAttention(nn.Module):
    """Multi-head attention whose queries, keys and values pass a strided depthwise convolution first.

    ``window`` <= 1 is global attention, otherwise step t sees t - window // 2 .. t + window // 2 of its own level.
    """

    heads: int
    window: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, out_mask: Array) -> Array:
        width = x.shape[-1]

        def project(name: str) -> Array:
            y = DepthwiseConv(self.stride, name=f"{name}_conv")(x, out_mask)
            y = Linear(width, self.dtype, name=name)(LayerNorm(name=f"{name}_norm")(y))
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        query, key, value = project("query"), project("key"), project("value")
        query = query * jnp.asarray(1 / math.sqrt(width // self.heads), query.dtype)
        if self.window > 1:
            y = sequence.local_attention(query, key, value, out_mask, self.window)
        else:
            y = sequence.global_attention(query, key, value, out_mask)
        return apply_mask(Linear(width, self.dtype, name="projection")(y.reshape(*y.shape[:-2], width)), out_mask)


class ScaledResidual(nn.Module):
    """Layer scale, then stochastic depth drawn per sample, on a residual branch."""

    drop_path: float
    layer_scale: bool
    initial: float

    @nn.compact
    def __call__(self, branch: Array, deterministic: bool) -> Array:
        if self.layer_scale:
            branch = branch * self.param("scale", nn.initializers.constant(self.initial), (branch.shape[-1],))
        if deterministic or self.drop_path == 0:
            return branch
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.drop_path, (branch.shape[0], 1, 1))
        return jnp.where(keep, branch / (1 - self.drop_path), 0.0)


def pool_by_stride(x: Array, mask: Array, stride: int, strict: bool) -> Array:
    """``x [B, T, C]`` of which every ``stride``-th step is the maximum of its neighbourhood; stride 1: ``x`` itself.

    What comes out at invalid steps means nothing. In the reference a value of the first padded step can win the maximum
    at the last valid output; the strict form takes it of valid steps alone.
    """
    if stride == 1:
        return x
    x = jnp.where(mask[..., None], x, jnp.asarray(-jnp.inf, x.dtype)) if strict else x
    return sequence.max_pool1d(x, stride)


class TransformerBlock(nn.Module):
    """Pre-norm block; with stride 2 it halves the sequence, its skip path being a max-pool."""

    heads: int
    window: int
    stride: int
    expansion: int
    dropout: float
    drop_path: float
    layer_scale: bool
    layer_scale_init: float
    strict: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> tuple[Array, Array]:
        out_mask = mask[:, :: self.stride]
        residual = lambda name: ScaledResidual(self.drop_path, self.layer_scale, self.layer_scale_init, name=name)

        normed = LayerNorm(name="norm_attention")(x)
        normed = apply_mask(normed, mask) if self.strict else normed
        attended = ConvAttention(self.heads, self.window, self.stride, self.dtype, name="attention")(normed, out_mask)
        skipped = apply_mask(pool_by_stride(x, mask, self.stride, self.strict), out_mask)
        y = skipped + residual("scale_attention")(attended, deterministic)

        hidden = Linear(self.expansion * x.shape[-1], self.dtype, name="expand")(LayerNorm(name="norm_mlp")(y))
        hidden = nn.Dropout(self.dropout, deterministic=deterministic)(sequence.gelu(hidden))
        branch = Linear(x.shape[-1], self.dtype, name="contract")(hidden)
        branch = apply_mask(nn.Dropout(self.dropout, deterministic=deterministic)(branch), out_mask)
        return y + residual("scale_mlp")(branch, deterministic), out_mask


def sinusoid_positions(length: int, width: int) -> Array:
    """Position table ``[length, width]``: sine on even, cosine on odd channels, divided by sqrt(width)."""
    channel = jnp.arange(width)
    angle = jnp.arange(length)[:, None] / 10000 ** (2 * (channel // 2) / width)
    return jnp.where(channel % 2 == 0, jnp.sin(angle), jnp.cos(angle)) / math.sqrt(width)
