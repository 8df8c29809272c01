"""Backbone and neck: from a feature sequence to a temporal pyramid (systems 1.3)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.nn.blocks import ConvNormRelu, DepthwiseConv, LayerNorm, MaskedConv, TransformerBlock, sinusoid_positions
from apl_jax.ops.masking import apply_mask
from apl_jax.settings import ActionFormerSettings
from apl_jax.structs import Array

Levels = tuple[tuple[Array, Array], ...]  # per level: features [B, T_l, C], mask [B, T_l]


def legal_length(length: int, settings: ActionFormerSettings) -> int:
    """Smallest grid length >= ``length`` that every pyramid stride divides."""
    coarsest = 2**settings.branch_blocks
    return -(-length // coarsest) * coarsest


class Backbone(nn.Module):
    """Embedding convolutions, stem blocks at stride 1, branch blocks at stride 2; L = branch_blocks + 1 levels."""

    settings: ActionFormerSettings

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> Levels:
        s = self.settings
        strict, dtype = s.masking == "strict", jnp.dtype(s.dtype)
        x = apply_mask(x, mask)
        for i in range(s.embedding_convs):
            x = ConvNormRelu(s.width, strict, dtype, name=f"embedding_{i}")(x, mask)
        x = x.astype(jnp.float32)  # the residual stream
        if s.absolute_position:
            x = x + self._positions(x.shape[1], deterministic) * mask[..., None]

        def block(i: int, stride: int, name: str) -> TransformerBlock:
            return TransformerBlock(
                s.heads, s.windows[i], stride, s.expansion, s.dropout, s.drop_path,
                s.layer_scale, s.layer_scale_init, strict, dtype, name=name,
            )  # fmt: skip

        for i in range(s.stem_blocks):
            x, mask = block(0, 1, f"stem_{i}")(x, mask, deterministic)
        levels = [(x, mask)]
        for i in range(s.branch_blocks):
            x, mask = block(i + 1, 2, f"branch_{i}")(x, mask, deterministic)
            levels.append((x, mask))
        return tuple(levels)

    def _positions(self, steps: int, deterministic: bool) -> Array:
        """The table; beyond its length the strict form goes on with the formula, the reference stretches the table."""
        s = self.settings
        if s.masking == "strict" or deterministic is False or steps < s.position_length_t:
            return sinusoid_positions(steps, s.width)
        table = sinusoid_positions(s.position_length_t, s.width)
        return jax.image.resize(table, (steps, s.width), "linear", antialias=False)


class Neck(nn.Module):
    """``identity``: one LayerNorm per level. ``fpn``: lateral projections, top-down sums, depthwise convolutions."""

    settings: ActionFormerSettings

    @nn.compact
    def __call__(self, levels: Levels) -> Levels:
        s = self.settings
        features, masks = [f for f, _ in levels], [m for _, m in levels]
        if s.neck == "fpn":
            features = self._top_down(features, masks)
        normed = [LayerNorm(name=f"norm_{i}")(f) for i, f in enumerate(features)]
        if s.masking == "strict":
            normed = [apply_mask(f, m) for f, m in zip(normed, masks, strict=True)]
        return tuple(zip(normed, masks, strict=True))

    def _top_down(self, features: list[Array], masks: list[Array]) -> list[Array]:
        dtype = jnp.dtype(self.settings.dtype)
        merged = [
            MaskedConv(self.settings.width, 1, dtype=dtype, name=f"lateral_{i}")(f, m).astype(jnp.float32)
            for i, (f, m) in enumerate(zip(features, masks, strict=True))
        ]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + jnp.repeat(merged[i], 2, axis=1)
        if self.settings.masking == "strict":  # a coarse step can spill over the end of the finer level
            merged = [apply_mask(f, m) for f, m in zip(merged, masks, strict=True)]
        return [DepthwiseConv(name=f"conv_{i}")(f, m) for i, (f, m) in enumerate(zip(merged, masks, strict=True))]
