"""Pure functions over channel-last sequences ``[B, T, C]``: convolutions, pooling, normalisation, attention.

Every function keeps the batch axis first and apart, so that sharding it over a mesh passes through, computes products
with float32 accumulation, and returns the dtype of its first argument (systems.md 1.3).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from apl_jax.structs import Array

_INVALID_KEY = -1e4  # systems.md 1.3: added to the logit of an invalid key inside the band
_OUTSIDE = -1e30  # stands for -inf where a whole row may be outside: exp() is still exactly 0, gradients stay finite


def linear(x: Array, kernel: Array) -> Array:
    """Pointwise projection of ``x`` [..., I] by ``kernel`` [I, O] to [..., O]."""
    out = jnp.einsum("...i,io->...o", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return out.astype(x.dtype)


def conv1d(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of ``x`` [B, T, I] with ``kernel`` [K, I, O], K odd, zeros K // 2 beyond both ends.

    Returns [B, ceil(T / stride), O]; output t looks at inputs t * stride - K // 2 .. t * stride + K // 2.
    """
    columns = _windows(x, kernel.shape[0], stride, 0.0)
    return linear(jnp.concatenate(columns, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def depthwise_conv1d(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of every channel of ``x`` [B, T, C] with its own column of ``kernel`` [K, C], padded as conv1d."""
    taps = _windows(x, kernel.shape[0], stride, 0.0)
    total = sum(tap.astype(jnp.float32) * kernel[k].astype(jnp.float32) for k, tap in enumerate(taps))
    return jnp.asarray(total).astype(x.dtype)


def max_pool1d(x: Array, stride: int = 2, width: int = 3) -> Array:
    """Largest of ``width`` (odd) neighbouring steps of ``x`` [B, T, C] at every ``stride``-th; -inf beyond the ends."""
    taps = _windows(x, width, stride, -jnp.inf)
    best = taps[0]
    for tap in taps[1:]:
        best = jnp.maximum(best, tap)
    return best


def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """``x`` [..., C] with zero mean and unit (biased) variance over C, times ``scale`` [C], plus ``bias`` [C]."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + epsilon) * scale + bias).astype(x.dtype)


def gelu(x: Array) -> Array:
    """Exact Gaussian error linear unit, x * Phi(x)."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def global_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Softmax attention of every step to all valid steps; ``q``, ``k``, ``v`` [B, T, H, E], ``mask`` [B, T] bool.

    ``q`` comes scaled. Invalid keys get no weight and their values count as zero (systems.md 1.3).
    """
    logits = jnp.einsum("bqhe,bkhe->bhqk", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(mask[:, None, None, :], logits, _OUTSIDE)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    v = v * mask[:, :, None, None].astype(v.dtype)
    return jnp.einsum("bhqk,bkhe->bqhe", weights, v, preferred_element_type=jnp.float32).astype(v.dtype)


def local_attention(q: Array, k: Array, v: Array, mask: Array, window: int) -> Array:
    """Softmax attention of step t to steps t - window // 2 .. t + window // 2 only, ``window`` odd.

    ``q`` (comes scaled), ``k``, ``v`` [B, T, H, E], ``mask`` [B, T] bool; returns [B, T, H, E]. Steps beyond the ends
    get no weight, invalid keys inside the band get -1e4, rows of invalid queries are zero (systems.md 1.3).
    """
    half = window // 2
    batch, length, heads, size = q.shape
    block = max(32, 2 * half)
    count = -(-length // block)
    pad = count * block - length
    query = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(batch, count, block, heads, size)
    keys, values = (_neighbourhoods(a, block, count, half) for a in (k, v))
    valid = _neighbourhoods(mask, block, count, half)
    bias = _band(block, count, length, half) + jnp.where(valid, 0.0, _INVALID_KEY)[:, :, None, :]
    logits = jnp.einsum("bnqhe,bnkhe->bnhqk", query, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits + bias[:, :, None], axis=-1).astype(v.dtype)
    out = jnp.einsum("bnhqk,bnkhe->bnqhe", weights, values, preferred_element_type=jnp.float32).astype(v.dtype)
    out = out.reshape(batch, count * block, heads, size)[:, :length]
    return jnp.where(mask[:, :, None, None], out, 0)


def _windows(x: Array, width: int, stride: int, fill: float) -> list[Array]:
    """The ``width`` shifted copies of ``x`` [B, T, C], each [B, ceil(T / stride), C], that a centred window reads."""
    half, length = width // 2, x.shape[1]
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)), constant_values=fill)
    return [padded[:, k : k + length : stride] for k in range(width)]


def _neighbourhoods(x: Array, block: int, count: int, half: int) -> Array:
    """``x`` [B, T, ...] as [B, count, block + 2 * half, ...]: every block with ``half`` steps on both sides."""
    length = x.shape[1]
    padding = [(0, 0), (half, (count + 1) * block - length - half)] + [(0, 0)] * (x.ndim - 2)
    blocks = jnp.pad(x, padding).reshape(x.shape[0], count + 1, block, *x.shape[2:])
    return jnp.concatenate([blocks[:, :-1], blocks[:, 1:, : 2 * half]], axis=2)


def _band(block: int, count: int, length: int, half: int) -> Array:
    """[count, block, block + 2 * half]: 0 where a query may look at a key, ``_OUTSIDE`` elsewhere."""
    query = jnp.arange(block)[:, None]
    offset = jnp.arange(block + 2 * half)[None, :] - half
    key = offset + block * jnp.arange(count)[:, None, None]
    inside = (jnp.abs(offset - query) <= half) & (key >= 0) & (key < length)
    return jnp.where(inside, 0.0, _OUTSIDE)
