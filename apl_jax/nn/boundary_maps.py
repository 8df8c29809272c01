"""BMN's parts: base, boundary heads (TEM) and the head of the map of segments (PEM), on windows of snippets (spec 2.1).

Modules see windows: ``x [N, W, C]`` and ``mask [N, W]``, N = videos x windows per video. What they return at invalid
snippets is zero, or means nothing.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from apl_jax.nn.blocks import GroupedConv, Linear, MaskedConv, uniform_fan_in
from apl_jax.ops.boundary_matching import Sampling, map_conv, projected_samples, squares_of, to_map
from apl_jax.ops.masking import apply_mask
from apl_jax.ops.sequence import add_bias
from apl_jax.structs import Array


class BoundaryBase(nn.Module):
    """The base module: two convolutions, ``[N, W, width]``."""

    width: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        for i in range(2):
            x = apply_mask(nn.relu(GroupedConv(self.width, self.groups, self.dtype, name=f"conv_{i}")(x)), mask)
        return x


class SnippetHead(nn.Module):
    """A convolution and a predictor of ``outputs`` logits for each snippet, ``[N, W, outputs]`` in float32 or wider."""

    outputs: int
    width: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        hidden = apply_mask(nn.relu(GroupedConv(self.width, self.groups, self.dtype, name="conv")(x)), mask)
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        return Linear(self.outputs, wide, name="predictor")(hidden)


class BoundaryHead(nn.Module):
    """TEM: logits ``[N, W, 2]`` that an action starts, or ends, at each snippet."""

    width: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        head = lambda name: SnippetHead(1, self.width, self.groups, self.dtype, name=name)(x, mask)
        return jnp.concatenate([head("start"), head("end")], -1)


class MapHead(nn.Module):
    """PEM: logits ``[N, D, W, M]`` of each cell (duration, start) of the map; meaningless where it is not valid.

    ``biases``: of the M outputs at initialisation.
    """

    sampling: Sampling
    matching_width: int
    sample_width: int
    width: int
    biases: tuple[float, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        sampling = self.sampling
        hidden = nn.relu(MaskedConv(self.matching_width, bias_init=0.0, dtype=self.dtype, name="reduce")(x, mask))
        shape = sampling.samples, hidden.shape[-1], self.sample_width
        kernel = self.param("kernel", uniform_fan_in, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.sample_width,))
        cells = projected_samples(hidden, kernel, sampling)  # [Q, N, sample_width]
        # Where a video ends before its window does, its map is as small as that of a shorter window.
        squares, lengths = squares_of(sampling), mask.sum(-1)
        segment = jnp.asarray(squares.duration + squares.start)[:, None] < lengths
        on_map = jnp.asarray(squares.edge)[:, None] <= lengths
        cells = nn.relu(add_bias(apply_mask(cells, segment), bias))
        cells = nn.relu(Linear(self.width, self.dtype, name="contract")(cells))
        cells, on_map = jnp.swapaxes(apply_mask(cells, on_map), 0, 1), on_map.T  # [N, Q, width]
        for i in range(2):
            kernel = self.param(f"conv_{i}_kernel", uniform_fan_in, (9, self.width, self.width))
            bias = self.param(f"conv_{i}_bias", nn.initializers.zeros, (self.width,))
            cells = apply_mask(nn.relu(add_bias(map_conv(cells, kernel, sampling), bias)), on_map)
        wide = jnp.promote_types(cells.dtype, jnp.float32)
        kernel = self.param("predictor_kernel", uniform_fan_in, (self.width, len(self.biases)))
        bias = self.param(
            "predictor_bias", lambda _, shape: jnp.asarray(self.biases).reshape(shape), (len(self.biases),)
        )
        return to_map(cells.astype(wide) @ kernel.astype(wide) + bias.astype(wide), sampling)
