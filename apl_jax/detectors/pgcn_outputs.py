"""What P-GCN predicts of proposals, and how its predictions are decoded, compared and reversed in time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import ClassDistribution
from apl_jax.detectors.pgcn_settings import PgcnDecoding, PgcnSettings
from apl_jax.detectors.quality import joint_quality
from apl_jax.detectors.shared import softmax_distribution, suppression, targets_from_detections
from apl_jax.ops import segments
from apl_jax.ops.decoding import keep_best
from apl_jax.ops.masking import masked_mean, reverse_time
from apl_jax.ops.segments import place_segment
from apl_jax.structs import Array, Detections, Targets, pytree


@pytree
class PgcnOutputs:
    """Predictions for the K proposals of each video."""

    activity_logits: Array  # [B, K, C + 1], background last
    completeness: Array  # [B, K, C], any real number; a complete instance of the class is above 1
    regression: Array  # [B, K, C, 2] shift and logarithm of the length's ratio, standardised by settings
    quality_logits: Array  # [B, K, Q]
    segments_t: Array  # [B, K, 2], the proposals
    proposal_mask: Array  # [B, K]
    annotated_mask: Array  # [B, K] an annotated instance in place of a proposal, in training only
    rows: Array  # [B, T, R] projected feature rows
    lengths: Array  # [B] int32, valid grid steps

    def represent(self, rows: Array) -> Array:
        """The projection of feature rows ``rows [B, N]``: ``[B, N, R]`` (spec 5.2, 6)."""
        return jnp.take_along_axis(self.rows, rows[..., None], axis=1)

    def distribution(self) -> ClassDistribution:
        """The softmax of the activity head; a snippet is a proposal, and stands for its centre."""
        return softmax_distribution(self.activity_logits, self.segments_t.mean(-1), self.proposal_mask)


def regressed(outputs: PgcnOutputs, label: Array, settings: PgcnSettings) -> Array:
    """The proposals ``[B, K, 2]`` (grid steps), each corrected as an instance of ``label [B, K]``."""
    picked = jnp.take_along_axis(outputs.regression, label[..., None, None], axis=2)[:, :, 0]
    return place_segment(outputs.segments_t, to_relative(picked, settings))


def to_relative(regression: Array, settings: PgcnSettings) -> Array:
    """Outputs ``[..., 2]`` of the regression head as shift and logarithm of the length's ratio."""
    return jnp.asarray(settings.regression_mean) + regression * jnp.asarray(settings.regression_deviation)


def class_scores(outputs: PgcnOutputs, completeness: str) -> Array:
    """Activity times completeness ``[B, K, C]`` in [0, 1], by the setting of that name; 0 where no proposal is.

    ``maximum`` divides the published score, activity · exp(completeness), by the largest of the video.
    """
    log_activity = jax.nn.log_softmax(outputs.activity_logits, axis=-1)[..., :-1]
    real = (outputs.proposal_mask & ~outputs.annotated_mask)[..., None]
    if completeness == "sigmoid":
        return jnp.where(real, jnp.exp(log_activity) * jax.nn.sigmoid(outputs.completeness), 0)
    joint = jnp.where(real, log_activity + outputs.completeness, -jnp.inf)
    largest = joint.max((1, 2), keepdims=True)
    return jnp.exp(jnp.where(real, joint - jnp.where(real.any(1, keepdims=True), largest, 0), -jnp.inf))


def decode_detections(outputs: PgcnOutputs, settings: PgcnSettings, decoding: PgcnDecoding) -> Detections:
    """The best pairs (proposal, class), suppressed within a class, and only then regressed (spec 5.3, 1)."""
    tiou, tnd, reliability = joint_quality(outputs.quality_logits, settings.quality)
    score = class_scores(outputs, decoding.completeness)
    confidence = score * reliability[..., None] if decoding.rank_by_quality else score
    classes = score.shape[-1]

    def one_video(out: PgcnOutputs, confidence: Array, score: Array, tiou: Array, tnd: Array) -> Detections:
        best, pair = jax.lax.top_k(confidence.reshape(-1), min(decoding.top_k_per_level, confidence.size))
        proposal, label = pair // classes, pair % classes
        exists = out.proposal_mask[proposal] & ~out.annotated_mask[proposal]
        kept = keep_best(out.segments_t[proposal], best, label, exists, **suppression(decoding))
        proposal, label = proposal[kept.row], label[kept.row]
        segments_t = place_segment(kept.segments_t, to_relative(out.regression[proposal, label], settings))
        return Detections(
            segments_t, label, kept.confidence, score[proposal, label], tiou[proposal], tnd[proposal], kept.mask
        )

    return jax.vmap(one_video)(outputs, confidence, score, tiou, tnd)


def own_targets(outputs: PgcnOutputs, settings: PgcnSettings) -> Targets:
    """The detections whose confidence reaches ``online_threshold``, as annotations ``[B, K]`` without gradient (C8)."""
    found = decode_detections(jax.lax.stop_gradient(outputs), settings, settings.online)
    return targets_from_detections(found, settings.online_threshold)


def compare_outputs(
    student: PgcnOutputs, teacher: PgcnOutputs, mask: Array, settings: PgcnSettings
) -> dict[str, Array]:
    """How far two outputs on the same proposals of one view are apart; our reading of spec 4.4.

    ``class``: mean squared difference of the activity's probabilities, background among them, over the proposals of
    the videos in ``mask [B]`` · ``completeness``: the same of the sigmoids of completeness · ``segment``: mean of
    1 - DIoU of the segments of the teacher's best class, over the proposals where that class has a score above
    ``compare_threshold``. Each 0 where there is none. No gradient reaches the teacher.
    """
    teacher = jax.lax.stop_gradient(teacher)
    valid = mask[:, None]
    for outputs in (student, teacher):
        valid = valid & outputs.proposal_mask & ~outputs.annotated_mask
    softmax = lambda o: jax.nn.softmax(o.activity_logits, axis=-1)
    complete = lambda o: jax.nn.sigmoid(o.completeness)
    score = class_scores(teacher, "sigmoid")
    best, sure = score.argmax(-1), valid & (score.max(-1) > settings.compare_threshold)
    here, there = (regressed(o, best, settings) for o in (student, teacher))
    # Elsewhere, and where both are empty, a pair that agrees keeps the gradient finite.
    compared = (sure & (here[..., 1] > here[..., 0]) & (there[..., 1] > there[..., 0]))[..., None]
    here, there = (jnp.where(compared, x, jnp.array([0.0, 1.0])) for x in (here, there))
    return {
        "class": masked_mean(jnp.square(softmax(student) - softmax(teacher)).mean(-1), valid),
        "completeness": masked_mean(jnp.square(complete(student) - complete(teacher)).mean(-1), valid),
        "segment": masked_mean(1 - segments.tiou(here, there) + segments.tnd(here, there), sure),
    }


def flip_outputs(outputs: PgcnOutputs) -> PgcnOutputs:
    """Outputs on a view whose valid steps are reversed, its proposals with them, as outputs on the view: each proposal
    keeps its place in the list. Exact; twice the flip is the identity."""
    last = outputs.lengths[:, None, None] - 1.0
    return dataclasses.replace(
        outputs,
        regression=outputs.regression * jnp.array([-1.0, 1.0]),
        segments_t=last - outputs.segments_t[..., ::-1],
        rows=reverse_time(outputs.rows, jnp.arange(outputs.rows.shape[1]) < outputs.lengths[:, None]),
    )
