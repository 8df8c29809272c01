"""Pure functions over channel-last sequences ``[B, T, C]``: products, convolutions, pooling, normalisation, attention.

Every function computes in float32 (products accumulate in it, also for bfloat16 operands), returns the dtype of its
first argument, and leaves the batch axis alone, so that sharding it over a mesh passes through untouched.

All convolutions are matrix products and shifted sums. On XLA's CPU backend (jax 0.10.2, measured) the backward pass of
``lax.conv`` takes a hundred times longer inside a ``lax.scan``, where training lives, than outside, and a depthwise
``lax.conv`` fifteen to a hundred times longer than the three multiply-adds that it is. What autodiff makes of products
is about a fifth slower than need be, hence the hand-written backward passes. Accelerators were not measured; there the
same products go to the vendor's library. ``benchmarks/sequence_primitives.py`` prints the figures.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from apl_jax.structs import Array

_INVALID_KEY = -1e4  # spec 1.3: added to the logit of an invalid key inside the band
_OUTSIDE = -1e30  # stands for -inf: its exp() is exactly 0 too, but a row full of it has finite gradients
_QUERY_BLOCK = 32  # queries per block of local attention, at least


def linear(x: Array, kernel: Array) -> Array:
    """Pointwise projection of ``x`` [..., I] by ``kernel`` [I, O] to [..., O], without bias."""
    return _linear(x, kernel)


def add_bias(x: Array, bias: Array) -> Array:
    """``x`` [..., C] plus ``bias`` [C] in float32, so that the gradient of the bias, a sum over all positions and
    devices, is summed in float32 too."""
    return (x.astype(_accumulator(x)) + bias).astype(x.dtype)


def conv1d(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of ``x`` [B, T, I] with ``kernel`` [K, I, O], K odd, K // 2 zeros beyond both ends, without bias.

    Returns [B, ceil(T / stride), O]; output t sees inputs t * stride - K // 2 .. t * stride + K // 2.
    """
    if stride == 1:
        return _conv1d(x, kernel)
    taps = _taps(x, kernel.shape[0], stride, 0.0)
    return _sum([_dot(tap, kernel[k].astype(x.dtype)) for k, tap in enumerate(taps)]).astype(x.dtype)


def depthwise_conv1d(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of every channel of ``x`` [B, T, C] with its own column of ``kernel`` [K, C], padded as `conv1d`."""
    wide = kernel.astype(_accumulator(x))
    taps = _taps(x, kernel.shape[0], stride, 0.0)
    return _sum([tap.astype(wide.dtype) * wide[k] for k, tap in enumerate(taps)]).astype(x.dtype)


def max_pool1d(x: Array, stride: int = 2, width: int = 3) -> Array:
    """Largest of ``width`` (odd) neighbours of every ``stride``-th step of ``x`` [B, T, C], -inf beyond both ends.

    Returns [B, ceil(T / stride), C]. Of equal neighbours the first receives the gradient, as in PyTorch.
    """

    def first_largest(a: Array, b: Array) -> Array:
        return jnp.where((a >= b) | jnp.isnan(a), a, b)

    return functools.reduce(first_largest, _taps(x, width, stride, -jnp.inf))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """``x`` [..., C] brought to mean 0 and (biased) variance 1 over C, times ``scale`` [C], plus ``bias`` [C]."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact Gaussian error linear unit, x * Phi(x); ``jax.nn.gelu`` computes erfc, which costs CPUs more than erf."""
    wide = x.astype(_accumulator(x))
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def global_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Softmax attention of every step to all valid steps: ``q``, ``k``, ``v`` [B, T, H, E], ``mask`` [B, T] bool.

    Logits are q . k: the caller scales ``q``. Invalid keys have no weight and their values count as zero; a video
    without any valid step gives zeros (spec 1.3).
    """
    accumulator = _accumulator(q)
    logits = jnp.einsum("bqhe,bkhe->bhqk", q, k, preferred_element_type=accumulator)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None, :], logits, _OUTSIDE), axis=-1)
    values = jnp.where(mask[:, :, None, None], v, 0)
    out = jnp.einsum("bhqk,bkhe->bqhe", weights.astype(v.dtype), values, preferred_element_type=accumulator)
    return out.astype(q.dtype)


def local_attention(q: Array, k: Array, v: Array, mask: Array, window: int) -> Array:
    """Softmax attention of step t to steps t - window // 2 .. t + window // 2: [B, T, H, E] three times, any T.

    Logits are q . k: the caller scales ``q``. Steps beyond the ends have no weight; invalid keys inside the band get
    -1e4; rows of invalid queries (``mask`` [B, T] bool) are zero; values are not masked. ``window`` is odd and > 1
    (spec 1.3). Blocks of queries meet their own and the neighbouring keys: cost grows with T, not with T * T.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"local_attention: window {window}, expected an odd number > 1 (0 or 1: use global_attention)")
    half = window // 2
    batch, length, heads, size = q.shape
    block = max(_QUERY_BLOCK, -(-2 * half // 16) * 16)
    count = -(-length // block)

    def heads_first(x: Array) -> Array:
        return jnp.moveaxis(x, 2, 1)

    queries = _pad_time(heads_first(q), 2, 0, count * block - length).reshape(batch, heads, count, block, size)
    keys, values = (_with_neighbours(heads_first(x), 2, block, count, half) for x in (k, v))
    key_mask = _with_neighbours(mask, 1, block, count, half)
    bias = _band(block, count, length, half) + jnp.where(key_mask, 0.0, _INVALID_KEY)[..., None]
    # Logits are [..., key, query]: a sixth faster on CPUs than [..., query, key].
    logits = jnp.einsum("bhnke,bhnqe->bhnkq", keys, queries, preferred_element_type=_accumulator(q))
    weights = jax.nn.softmax(logits + bias[:, None].astype(logits.dtype), axis=-2).astype(v.dtype)
    out = jnp.einsum("bhnkq,bhnke->bhnqe", weights, values, preferred_element_type=_accumulator(q)).astype(q.dtype)
    out = jnp.moveaxis(out.reshape(batch, heads, count * block, size)[:, :, :length], 1, 2)
    return jnp.where(mask[:, :, None, None], out, 0)


# ---------------------------------------------------------------------------------------------- products and their
# gradients. The CPU's fast product takes both operands in row-major order, so a kernel gradient x^T dy needs a
# transposed operand: the smaller of the two, written out once. Fused into the product or into what computes the
# operand, as XLA would like, the transposition costs more than the product gains.


def _accumulator(x: Array) -> jnp.dtype:
    """The dtype of sums over ``x``: float32, or float64 where that is asked for."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _materialised(x: Array) -> Array:
    """``x``, which XLA's CPU backend may not fuse into its neighbours; other backends are left alone."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda value: value)


def _dot(x: Array, kernel: Array) -> Array:
    """``x`` [..., I] times ``kernel`` [I, O], in the accumulator's dtype."""
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=_accumulator(x))


def _dot_transposed(dy: Array, kernel: Array) -> Array:
    """``dy`` [..., O] times the transpose of ``kernel`` [I, O], in the accumulator's dtype."""
    return lax.dot_general(dy, kernel, (((dy.ndim - 1,), (1,)), ((), ())), preferred_element_type=_accumulator(dy))


def _channels_first(x: Array) -> Array:
    """``x`` [..., C] written out as [C, ...]."""
    return _materialised(jnp.moveaxis(_materialised(x), -1, 0))


def _outer(a: Array, b: Array) -> Array:
    """Sum over all positions of ``a`` [M, ...] times ``b`` [..., N]: [M, N] in the accumulator's dtype."""
    axes = tuple(range(b.ndim - 1))
    dimensions = (tuple(axis + 1 for axis in axes), axes), ((), ())
    return lax.dot_general(a, b, dimensions, preferred_element_type=_accumulator(b))


@jax.custom_vjp
def _linear(x: Array, kernel: Array) -> Array:
    return _dot(x, kernel.astype(x.dtype)).astype(x.dtype)


def _linear_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _linear(x, kernel), (x, kernel)


def _linear_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    dx = _dot_transposed(dy, kernel.astype(x.dtype)).astype(x.dtype)
    if x.shape[-1] <= dy.shape[-1]:
        dkernel = _outer(_channels_first(x), dy)
    else:
        dkernel = _materialised(_outer(_channels_first(dy), x)).T
    return dx, dkernel.astype(kernel.dtype)


_linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def _conv1d(x: Array, kernel: Array) -> Array:
    half = kernel.shape[0] // 2
    products = [_dot(x, tap) for tap in kernel.astype(x.dtype)]
    return _sum([_shifted(product, half - k) for k, product in enumerate(products)]).astype(x.dtype)


def _conv1d_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv1d(x, kernel), (x, kernel)


def _conv1d_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    width, inputs, outputs = kernel.shape
    half = width // 2
    products = [_dot_transposed(dy, tap) for tap in kernel.astype(x.dtype)]
    dx = _sum([_shifted(product, k - half) for k, product in enumerate(products)]).astype(x.dtype)
    taps = [_shifted(dy, k - half) for k in range(width)]
    if inputs <= outputs:
        transposed = _channels_first(x)
        dkernel = jnp.stack([_outer(transposed, tap) for tap in taps])
    else:
        product = _materialised(_outer(_channels_first(jnp.concatenate(taps, axis=-1)), x))
        dkernel = product.reshape(width, outputs, inputs).swapaxes(1, 2)
    return dx, dkernel.astype(kernel.dtype)


_conv1d.defvjp(_conv1d_forward, _conv1d_backward)


# ------------------------------------------------------------------------------------- normalisation and activation


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    x = _materialised(x)  # else the sums below swallow its producers, whose broadcasts are then written out in full
    wide = x.astype(_accumulator(x))
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True) + epsilon)
    return ((wide - mean) * inverse * scale + bias).astype(x.dtype), (x, mean, inverse, scale, bias)


def _layer_norm_backward(epsilon: float, residuals: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    del epsilon
    x, mean, inverse, scale, bias = residuals
    normal = (x.astype(mean.dtype) - mean) * inverse
    dy = dy.astype(mean.dtype)
    product = _materialised(dy * normal)
    # Means over channels of dy * scale and dy * normal * scale, as matrix-vector products.
    weights = scale.astype(mean.dtype) / x.shape[-1]
    mean_dy = jnp.matmul(dy, weights[:, None], precision=lax.Precision.HIGHEST)
    mean_product = jnp.matmul(product, weights[:, None], precision=lax.Precision.HIGHEST)
    mean_dy, mean_product = _materialised(mean_dy), _materialised(mean_product)
    dx = inverse * (dy * scale - mean_dy - normal * mean_product)
    leading = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), product.sum(leading).astype(scale.dtype), dy.sum(leading).astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + lax.erf(x * math.sqrt(0.5)))


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    wide = x.astype(_accumulator(x))
    density = jnp.exp(-0.5 * wide * wide) * (1.0 / math.sqrt(2.0 * math.pi))
    return ((dy * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


# ------------------------------------------------------------------------------------------- neighbourhoods in time


def _sum(terms: list[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def _pad_time(x: Array, axis: int, before: int, after: int, fill: float = 0.0) -> Array:
    """``x`` with ``before`` and ``after`` steps of ``fill`` added along ``axis``; negative numbers remove steps."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, 0)
    return lax.pad(x, jnp.asarray(fill, x.dtype), config)


def _shifted(x: Array, steps: int) -> Array:
    """``x`` [B, T, C] moved ``steps`` later (earlier if negative), zeros moving in."""
    steps = max(-x.shape[1], min(x.shape[1], steps))
    return _pad_time(x, 1, steps, -steps) if steps else x


def _taps(x: Array, width: int, stride: int, fill: float) -> list[Array]:
    """The ``width`` strided copies of ``x`` [B, T, C], each [B, ceil(T / stride), C], that a centred window sees."""
    padded = _pad_time(x, 1, width // 2, width // 2, fill)
    return [padded[:, k : k + x.shape[1] : stride] for k in range(width)]


def _with_neighbours(x: Array, axis: int, block: int, count: int, half: int) -> Array:
    """Splits ``axis`` of ``x`` into [count, block + 2 * half]: every block with ``half`` steps on both its sides."""
    length = x.shape[axis]
    padded = _pad_time(x, axis, half, (count + 1) * block - length - half)
    blocks = padded.reshape(*x.shape[:axis], count + 1, block, *x.shape[axis + 1 :])
    here = lax.slice_in_dim(blocks, 0, count, axis=axis)
    after = lax.slice_in_dim(lax.slice_in_dim(blocks, 1, count + 1, axis=axis), 0, 2 * half, axis=axis + 1)
    return jnp.concatenate([here, after], axis=axis + 1)


def _band(block: int, count: int, length: int, half: int) -> Array:
    """[count, block + 2 * half, block]: 0 where a key (rows) is in the band of a query (columns), else `_OUTSIDE`."""
    offset = jnp.arange(block + 2 * half)[:, None] - half
    key = offset + block * jnp.arange(count)[:, None, None]
    near = jnp.abs(offset - jnp.arange(block)) <= half
    return jnp.where(near & (key >= 0) & (key < length), 0.0, _OUTSIDE)
