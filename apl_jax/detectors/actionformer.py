"""ActionFormer (Zhang et al., ECCV 2022) with APL's quality heads (ALQA), as specified in spec 1.3 to 1.9 and 7.A.

Every grid point of a temporal pyramid classifies the action under it and regresses the distances to its two ends. With
ALQA (quality.py) it also predicts how well its own segment will fit, and the class loss trains the *joint* score.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from apl_jax.detectors.actionformer_settings import ActionFormerSettings, check_actionformer
from apl_jax.detectors.base import Detector, register_detector
from apl_jax.detectors.pyramid_outputs import PyramidOutputs, pyramid_detector
from apl_jax.detectors.pyramid_settings import without_quality
from apl_jax.nn.blocks import TransformerBlock
from apl_jax.nn.pyramid import Backbone, Neck
from apl_jax.nn.quality import QUALITY_BRANCHES, ClassHead, RegressionHead, drop_gaps, join_levels
from apl_jax.ops.pyramid import Levels
from apl_jax.structs import Array, DataFacts


class ActionFormer(nn.Module):
    """The network: backbone, neck, and heads shared over the levels."""

    settings: ActionFormerSettings
    num_classes: int

    @nn.compact
    def __call__(self, features: Array, mask: Array, deterministic: bool) -> tuple[Levels, PyramidOutputs]:
        s = self.settings
        strict, dtype = s.masking == "strict", jnp.dtype(s.dtype)

        def block(level: int, stride: int, name: str) -> TransformerBlock:
            return TransformerBlock(
                s.heads, s.windows[level], stride, s.expansion, s.dropout, s.drop_path, s.layer_scale,
                s.layer_scale_init, strict, dtype, name=name,
            )  # fmt: skip

        levels = Backbone(
            s.width, s.branch_blocks + 1, block, s.embedding_convs, s.stem_blocks,
            s.position_length_t if s.absolute_position else 0, strict, dtype, name="backbone",
        )(features, mask, deterministic)  # fmt: skip
        levels = Neck(s.neck, s.width, strict, dtype, name="neck")(levels)
        joined = join_levels(levels)
        trunk = {"width": s.width, "layers": s.head_layers - 1, "strict": strict, "dtype": dtype}
        class_logits = ClassHead(self.num_classes, s.prior_probability, **trunk, name="class_head")(joined)
        class_logits = drop_gaps(class_logits, joined.level)
        offsets, quality_logits = RegressionHead(
            len(levels), QUALITY_BRANCHES[s.quality.branches], s.quality.tiou_bias, s.quality.tnd_bias, **trunk,
            name="regression_head",
        )(joined)  # fmt: skip
        point_mask = jnp.concatenate([m for _, m in levels], axis=1)
        return levels, PyramidOutputs(class_logits, offsets[:, :, None], quality_logits, point_mask, levels)


def build_actionformer(settings: ActionFormerSettings, facts: DataFacts) -> Detector:
    """The detector record. Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one
    another."""
    check_actionformer(settings)
    return pyramid_detector(ActionFormer(settings, facts.num_classes), settings, facts)


register_detector("actionformer", ActionFormerSettings, build_actionformer, plain=without_quality)
