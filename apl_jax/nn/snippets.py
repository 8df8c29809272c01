"""SPOT's parts: from grid rows to snippets, self-attention over snippets, class head and mask heads (spec 3.2).

Modules see windows: ``x [N, W, C]`` and ``mask [N, W]``, N = videos x windows per video.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from apl_jax.nn.blocks import ConvNormRelu, LayerNorm, Linear, MaskedConv, uniform_fan_in
from apl_jax.ops import sequence
from apl_jax.ops.masking import apply_mask, reversed_rows
from apl_jax.structs import Array

_NO_KEY = -1e30  # for -inf: a window without any valid snippet still has a finite softmax


class Snippets(NamedTuple):
    """n windows of W snippets per video; snippet i stands for grid step ``start_t + (i + .5) * scale_t - .5``."""

    inputs: Array  # [B, n, W, D]
    mask: Array  # [B, n, W]
    start_t: Array  # [B, n]
    scale_t: Array  # [B] grid steps per snippet
    lengths: Array  # [B] int32, valid grid steps


def window_stride(width: int, overlap: float) -> int:
    """Grid steps from one window of ``width`` steps to the next; neighbours share ``overlap`` of them, in [0, 1)."""
    return max(round(width * (1 - overlap)), 1)


def to_snippets(features: Array, mask: Array, *, width: int, window_mode: str, overlap: float) -> Snippets:
    """Resizes the valid rows of ``features [B, T, D]`` to W snippets, or cuts them in windows of W rows.

    Neither form looks at padding. Resizing: linear, half-pixel centres, clamped at the last valid row, no anti-aliasing
    (spec 1.2). Windows: n follows from T alone; a video that needs fewer has masked ones, and its last window ends with
    the video, so that only videos shorter than W see padding.

    Args:
        features, mask: ``[B, T, D]`` and ``[B, T]``, a prefix of true values.
        width: W.
        window_mode: ``resize`` or ``windows``.
        overlap: of neighbouring windows, in [0, 1).
    """
    batch, steps = mask.shape
    stride = window_stride(width, overlap)
    lengths = mask.sum(-1, dtype=jnp.int32)
    last_row = jnp.maximum(lengths - 1, 0)[:, None, None]
    take = lambda rows: jnp.take_along_axis(features, rows.reshape(batch, -1)[..., None], axis=1)
    if window_mode == "resize":
        scale = jnp.maximum(lengths, 1) / width
        start = jnp.zeros((batch, 1))
        snippet_mask = jnp.broadcast_to((lengths > 0)[:, None, None], (batch, 1, width))
        position = jnp.maximum((jnp.arange(width) + 0.5) * scale[:, None, None] - 0.5, 0.0)
        left = jnp.minimum(jnp.floor(position).astype(jnp.int32), last_row)
        fraction = (position - jnp.floor(position)).reshape(batch, width, 1).astype(features.dtype)
        inputs = take(left) * (1 - fraction) + take(jnp.minimum(left + 1, last_row)) * fraction
    else:
        count = 1 if steps <= width else -(-(steps - width) // stride) + 1
        scale = jnp.ones(batch)
        first = stride * jnp.arange(count)
        last_start = jnp.maximum(lengths - width, 0)[:, None]
        row = jnp.minimum(first, last_start)[..., None] + jnp.arange(width)
        snippet_mask = ((first < last_start + stride)[..., None]) & (row < lengths[:, None, None])
        start = row[..., 0].astype(scale.dtype)
        inputs = take(jnp.minimum(row, last_row))
    inputs = inputs.reshape(batch, -1, width, features.shape[-1])
    return Snippets(jnp.where(snippet_mask[..., None], inputs, 0), snippet_mask, start, scale, lengths)


def snippet_times(start_t: Array, scale_t: Array, width: int) -> Array:
    """The grid steps ``[B, n, W]`` that snippets stand for; ``start_t [B, n]``, ``scale_t [B]``."""
    return start_t[..., None] + (jnp.arange(width) + 0.5) * scale_t[:, None, None] - 0.5


def rows_of_snippets(features: Array, mask: Array, start_t: Array, scale_t: Array, rows: Array) -> Array:
    """Features ``[B, n, W, E]`` of snippets at grid steps ``rows [B, N]``, linear between snippets of the window whose
    centre is nearest: ``[B, N, E]``. ``mask [B, n, W]``, ``start_t [B, n]``, ``scale_t [B]``."""
    batch, windows, width, channels = features.shape
    scale = scale_t[:, None]
    exists = mask.any(-1)
    center = start_t + 0.5 * width * scale - 0.5
    distance = jnp.where(exists[:, None], jnp.abs(rows[..., None] - center[:, None]), jnp.inf)
    window = distance.argmin(-1)
    start = jnp.take_along_axis(start_t, window, axis=1)
    last = jnp.maximum(jnp.take_along_axis(mask.sum(-1), window, axis=1) - 1, 0)
    position = jnp.clip((rows + 0.5 - start) / scale - 0.5, 0.0, last)
    left = jnp.floor(position).astype(jnp.int32)
    fraction = (position - left)[..., None].astype(features.dtype)
    flat = features.reshape(batch, windows * width, channels)
    take = lambda index: jnp.take_along_axis(flat, (window * width + index)[..., None], axis=1)
    return take(left) * (1 - fraction) + take(jnp.minimum(left + 1, last)) * fraction


class ReversedWindows(NamedTuple):
    """How the snippets of a view whose valid grid steps are reversed, padding staying at the end, become those of the
    view: the valid windows are reversed, and in each the valid snippets."""

    window: Array  # [B, n] which window stands at each place
    row: Array  # [B, n, W] and then which of its snippets
    mask: Array  # [B, n, W]
    start_t: Array  # [B, n]

    def windows(self, x: Array) -> Array:
        """``x [B, n, ...]`` in the order of the view."""
        return jnp.take_along_axis(x, self.window.reshape(self.window.shape + (1,) * (x.ndim - 2)), axis=1)

    def snippets(self, x: Array) -> Array:
        """``x [B, n, W]`` or ``[B, n, W, E]``, windows and snippets in the order of the view."""
        return jnp.take_along_axis(self.windows(x), self.row[(..., *(None,) * (x.ndim - 3))], axis=2)


def reversed_windows(mask: Array, start_t: Array, scale_t: Array, lengths: Array) -> ReversedWindows:
    """The order for windows of ``mask [B, n, W]``, ``start_t [B, n]`` of videos with ``scale_t``, ``lengths`` ``[B]``.

    Exact is a resized video. In windows of grid steps every window stands where ``start_t`` says, so what is decoded is
    exact too; approximate is that a window takes the place of another in order: unless the video's length is a whole
    number of window strides beyond one window, the inner windows of the reversed view start up to stride - 1 steps
    before those whose places they take. Twice the order is the identity.
    """
    exists, snippets = mask.any(-1), mask.sum(-1)
    # Snippet i of v stands at start + (i + .5) scale - .5; reversed in time it is snippet v - 1 - i.
    start = jnp.where(exists, lengths[:, None] - (start_t + snippets * scale_t[:, None]), start_t)
    order = ReversedWindows(reversed_rows(exists), snippets, mask, start)
    turned = order.windows(mask)
    return order._replace(row=reversed_rows(turned), mask=turned, start_t=order.windows(start))


def products_in(dtype: str, x: Array) -> DTypeLike:
    """The dtype of large products: bfloat16 where asked for, otherwise that of the data."""
    return jnp.bfloat16 if dtype == "bfloat16" else jnp.promote_types(x.dtype, jnp.float32)


class SnippetAttention(nn.Module):
    """Multi-head self-attention without position, a skip path, LayerNorm: the embedding ``[N, W, E]``.

    Heads are visited one by one: their queries, keys and values then come out of their products as the next product
    wants them, where splitting one product in heads would write out the transposition of all of them.
    """

    width: int  # E; 0 = that of the input, without a projection
    embedding_convs: int  # 3-wide convolutions instead of the projection
    heads: int
    head_width: int  # of each head's queries, keys and values; 0 = E
    attention_dropout: float
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> tuple[Array, Array]:
        """Returns the input as the skip path takes it (projected or convolved, if so set) and the embedding."""
        dtype, dtype_of_data = products_in(self.dtype, x), x.dtype
        for i in range(self.embedding_convs):
            embed = ConvNormRelu(self.width or x.shape[-1], True, dtype, name=f"embedding_{i}")
            x = embed(x, mask).astype(dtype_of_data)
        if self.width and not self.embedding_convs:
            x = apply_mask(Linear(self.width, dtype, name="projection")(x).astype(x.dtype), mask)
        width = x.shape[-1]
        size = self.head_width or width
        normal = nn.initializers.normal(math.sqrt(2 / (width + size)))
        shape = width, self.heads * size
        kernels = [self.param(f"{name}_kernel", normal, shape) for name in ("query", "key", "value")]
        # The query's scale is taken into its kernel: the smaller of the two.
        kernels[0] = kernels[0] / math.sqrt(size)
        merge = self.param("merge_kernel", nn.initializers.xavier_normal(), shape[::-1])
        bias = self.param("merge_bias", nn.initializers.zeros, (width,))
        attention_dropout = nn.Dropout(self.attention_dropout, deterministic=deterministic)
        rows = x.astype(dtype)

        def head(h: int) -> Array:
            own = slice(h * size, (h + 1) * size)
            query, key, value = (sequence.linear(rows, kernel[:, own]) for kernel in kernels)
            wide = jnp.promote_types(dtype, jnp.float32)
            logits = jnp.einsum("nqe,nke->nqk", query, key, preferred_element_type=wide)
            weights = attention_dropout(jax.nn.softmax(jnp.where(mask[:, None], logits, _NO_KEY), axis=-1))
            seen = jnp.einsum("nqk,nke->nqe", weights.astype(dtype), value, preferred_element_type=wide)
            return sequence.linear(seen.astype(dtype), merge[own]).astype(x.dtype)

        y = sequence.add_bias(sum((head(h) for h in range(1, self.heads)), head(0)), bias)
        y = nn.Dropout(self.dropout, deterministic=deterministic)(y)
        return x, apply_mask(LayerNorm(name="norm")(y + x), mask)


class SnippetClassHead(nn.Module):
    """Softmax logits ``[N, W, C + 1]``, background last, in the dtype of the data."""

    num_classes: int

    @nn.compact
    def __call__(self, embedding: Array) -> Array:
        return Linear(self.num_classes + 1, embedding.dtype, name="predictor")(embedding)


class MaskHead(nn.Module):
    """Foreground logits ``[N, query, time]``: how likely snippet ``time`` is of the instance that ``query`` is of.

    ``rows``: the channels of the last layer are the queries, so its weights know the position of a snippet and depend
    on W. ``bilinear``: products of a query vector and a key vector of each snippet; the weights fit any W.
    """

    kind: str
    width: int  # of the hidden layer
    dtype: str = "float32"

    @nn.compact
    def __call__(self, embedding: Array, mask: Array) -> Array:
        dtype = products_in(self.dtype, embedding)
        hidden = nn.relu(MaskedConv(self.width, bias_init=0.0, dtype=dtype, name="hidden")(embedding, mask))
        hidden = hidden.astype(embedding.dtype)  # predictors do not round: logits never are bfloat16
        if self.kind == "rows":
            kernel = self.param("kernel", uniform_fan_in, (self.width, mask.shape[1]))
            return jnp.swapaxes(sequence.linear(hidden, kernel), 1, 2)
        query = Linear(self.width, embedding.dtype, name="query")(hidden) / math.sqrt(self.width)
        key = Linear(self.width, embedding.dtype, name="key")(hidden)
        return jnp.einsum("nqh,nth->nqt", query, key) + self.param("bias", nn.initializers.zeros, ())
