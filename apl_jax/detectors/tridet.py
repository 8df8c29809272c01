"""TriDet (Shi et al., CVPR 2023) with APL's quality heads, as specified in spec 1.12.

Like ActionFormer it classifies the points of a pyramid and finds a segment for each. Attention gives way to
convolutions of three granularities (nn/trident.py), and every class has a segment of its own, whose ends lie where the
steps around the point expect a start and an end. The class loss weighs a point by how well its segment fits; with ALQA
(quality.py) the soft label does that, so that fit is counted once.

Two things differ from the published code unless settings say otherwise: padding has no influence
(`masking="reference"` is the published way), and the convolutions of the SGP blocks start at small random weights,
since those that start at 0 never train (`initial_deviation=0`). Voting weighs by score times tIoU, as everywhere here.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.detectors.base import Detector, register_detector
from apl_jax.detectors.pyramid_outputs import PyramidOutputs, pyramid_detector
from apl_jax.detectors.pyramid_settings import without_quality
from apl_jax.detectors.tridet_settings import TriDetSettings, check_tridet
from apl_jax.nn.pyramid import Backbone, Neck
from apl_jax.nn.quality import QUALITY_BRANCHES, ClassHead, drop_gaps, join_levels
from apl_jax.nn.trident import SgpBlock, TridentHead
from apl_jax.ops.pyramid import Levels
from apl_jax.structs import Array, DataFacts


class TriDet(nn.Module):
    """The network: backbone of SGP blocks, neck, and heads shared over the levels."""

    settings: TriDetSettings
    num_classes: int

    @nn.compact
    def __call__(self, features: Array, mask: Array, deterministic: bool) -> tuple[Levels, PyramidOutputs]:
        s = self.settings
        strict, dtype = s.masking == "strict", jnp.dtype(s.dtype)

        def block(level: int, stride: int, name: str) -> SgpBlock:
            stem = stride == 1  # its residual branches are neither scaled nor dropped
            return SgpBlock(
                s.windows[level], s.kernel_factor, s.mlp_width, s.norm_groups, stride, s.initial_deviation,
                0.0 if stem else s.drop_path, s.layer_scale and not stem, s.layer_scale_init, strict, dtype, name=name,
            )  # fmt: skip

        levels = Backbone(
            s.width, s.branch_blocks + 1, block, s.embedding_convs, s.stem_blocks,
            s.position_length_t if s.absolute_position else 0, strict, dtype, name="backbone",
        )(features, mask, deterministic)  # fmt: skip
        levels = Neck("identity", s.width, strict, dtype, name="neck")(levels)
        joined = join_levels(levels, max(s.bins, s.head_kernel // 2, s.boundary_kernel // 2))
        size = (s.head_width, s.head_layers - 1, strict, dtype, s.head_kernel)
        class_logits = ClassHead(self.num_classes, s.prior_probability, *size, name="class_head")(joined)
        offsets, quality_logits = TridentHead(
            len(levels), self.num_classes, s.bins, s.prior_probability, s.boundary_kernel,
            QUALITY_BRANCHES[s.quality.branches], s.quality.tiou_bias, s.quality.tnd_bias, *size, name="trident_head",
        )(joined)  # fmt: skip
        class_logits, offsets, quality_logits = (
            drop_gaps(x, joined.level) for x in (class_logits, offsets, quality_logits)
        )
        point_mask = jnp.concatenate([m for _, m in levels], axis=1)
        return levels, PyramidOutputs(class_logits, offsets, quality_logits, point_mask, levels)


def build_tridet(settings: TriDetSettings, facts: DataFacts) -> Detector:
    """The detector record. Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one
    another."""
    check_tridet(settings)

    def noisy(features: Array, key: Array) -> Array:
        return features + settings.input_noise * jax.random.normal(jax.random.fold_in(key, 0), features.shape)

    perturb = noisy if settings.input_noise else None
    return pyramid_detector(TriDet(settings, facts.num_classes), settings, facts, perturb)


register_detector("tridet", TriDetSettings, build_tridet, plain=without_quality)
