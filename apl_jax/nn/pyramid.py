"""Backbone and neck: from a feature sequence to a temporal pyramid (spec 1.3)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from apl_jax.nn.blocks import ConvNormRelu, DepthwiseConv, LayerNorm, MaskedConv, sinusoid_positions
from apl_jax.ops.masking import apply_mask
from apl_jax.ops.pyramid import Levels
from apl_jax.structs import Array


class Backbone(nn.Module):
    """Embedding convolutions, stem blocks at stride 1, then one block of stride 2 for each further level."""

    width: int
    levels: int
    # ``block(level, stride, name)``: the module that maps features, their mask and whether dropout is off to features
    # and mask; of stride 1 in the stem, of stride 2 where a level begins
    block: Callable[[int, int, str], nn.Module]
    embedding_convs: int
    stem_blocks: int
    position_length_t: int  # length that the position table is built for; 0: no position
    strict: bool  # masking, see blocks.py
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> Levels:
        """Levels of ``x [B, T, D]``, ``mask [B, T]``; every stride divides T."""
        x = apply_mask(x, mask)
        for i in range(self.embedding_convs):
            x = ConvNormRelu(self.width, self.strict, self.dtype, name=f"embedding_{i}")(x, mask)
        x = x.astype(jnp.float32)  # the residual stream
        if self.position_length_t:
            x = x + self._positions(x.shape[1], deterministic) * mask[..., None]

        for i in range(self.stem_blocks):
            x, mask = self.block(0, 1, f"stem_{i}")(x, mask, deterministic)
        levels = [(x, mask)]
        for i in range(self.levels - 1):
            x, mask = self.block(i + 1, 2, f"branch_{i}")(x, mask, deterministic)
            levels.append((x, mask))
        return tuple(levels)

    def _positions(self, steps: int, deterministic: bool) -> Array:
        """The table; beyond its length the strict form goes on with the formula, the reference stretches the table."""
        if self.strict or deterministic is False or steps < self.position_length_t:
            return sinusoid_positions(steps, self.width)
        table = sinusoid_positions(self.position_length_t, self.width)
        return jax.image.resize(table, (steps, self.width), "linear", antialias=False)


class Neck(nn.Module):
    """``identity``: one LayerNorm per level. ``fpn``: lateral projections, top-down sums, depthwise convolutions."""

    kind: str
    width: int  # of the lateral projections; identity keeps the levels' own
    strict: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, levels: Levels) -> Levels:
        features, masks = [f for f, _ in levels], [m for _, m in levels]
        if self.kind == "fpn":
            features = self._top_down(features, masks)
        normed = [LayerNorm(name=f"norm_{i}")(f) for i, f in enumerate(features)]
        if self.strict:
            normed = [apply_mask(f, m) for f, m in zip(normed, masks, strict=True)]
        return tuple(zip(normed, masks, strict=True))

    def _top_down(self, features: list[Array], masks: list[Array]) -> list[Array]:
        merged = [
            MaskedConv(self.width, 1, dtype=self.dtype, name=f"lateral_{i}")(f, m).astype(jnp.float32)
            for i, (f, m) in enumerate(zip(features, masks, strict=True))
        ]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + jnp.repeat(merged[i], 2, axis=1)
        if self.strict:  # a coarse step can spill over the end of the finer level
            merged = [apply_mask(f, m) for f, m in zip(merged, masks, strict=True)]
        return [DepthwiseConv(name=f"conv_{i}")(f, m) for i, (f, m) in enumerate(zip(merged, masks, strict=True))]
