"""P-GCN's losses: activity, completeness with the hardest negatives, regression, and APL's quality (spec 5.1, 5.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import DetectionLoss, PointTargets
from apl_jax.detectors.pgcn_outputs import PgcnOutputs, regressed, to_relative
from apl_jax.detectors.pgcn_settings import PgcnSettings
from apl_jax.detectors.pgcn_targets import ProposalTargets, Samples, assign_proposals, draw_samples
from apl_jax.detectors.quality import quality_loss
from apl_jax.ops import segments
from apl_jax.ops.losses import smooth_l1
from apl_jax.structs import Array, Targets

_LEAST_SCALE = 0.05  # of `regression_deviation`: proposals that fit all alike must not make the loss infinite
_ROUNDING = 1e-3  # so that 0.17 of 100 samples, whose weights add up to 99.9999, are still 17


def initial_state(settings: PgcnSettings) -> Array:
    """Means and mean squares ``[2, 2]`` of the regression targets before any batch."""
    mean, deviation = jnp.asarray(settings.regression_mean), jnp.asarray(settings.regression_deviation)
    return jnp.stack([mean, mean**2 + deviation**2])


def completeness_loss(
    completeness: Array, label: Array, weight: Array, positive: Array, negative: Array, settings: PgcnSettings
) -> Array:
    """Hinge on the class of each sample: above 1 where it is an instance, below -1 where it is a part of one.

    Of each video's negatives only the hardest count, ``hard_share`` of ``incomplete_samples`` and at least one; weights
    are cut at that sum, so that it is the same whether samples are drawn or stand for all. The divisor counts samples
    of both kinds (spec 5.1; 5.3, 6).

    Args:
        completeness, label, weight: ``[B, K, C]``, ``[B, K]``, ``[B, K]``.
        positive, negative: ``[B, K]``, how often each proposal is such a sample.
    """
    s = settings
    of_class = jnp.take_along_axis(completeness, label[..., None], axis=-1)[..., 0]
    above = jnp.where(positive > 0, jnp.maximum(1 - of_class, 0), 0)
    below = jnp.where(negative > 0, jnp.maximum(1 + of_class, 0), 0)
    order = jnp.argsort(jnp.where(negative > 0, -jax.lax.stop_gradient(below), jnp.inf), axis=-1)
    hardest, drawn, taught = (jnp.take_along_axis(x, order, axis=-1) for x in (below, negative, weight))
    counted = max(int(s.incomplete_samples * s.hard_share + _ROUNDING), 1)
    taken = jnp.clip(counted - (jnp.cumsum(drawn, axis=-1) - drawn), 0, drawn)
    share = jnp.floor(s.hard_share * negative.sum() + _ROUNDING)
    if s.missing == "masked":
        share = jnp.maximum(share, 1)
    total = (positive * weight * above).sum() + (taken * taught * hardest).sum()
    return total / jnp.maximum(positive.sum() + share, 1)


def activity_loss(logits: Array, goal: ProposalTargets, samples: Samples) -> Array:
    """Softmax cross-entropy over foreground and background samples ``[B, K]``."""
    foreground = (samples.foreground + samples.filled) * goal.weight
    log_p = jax.nn.log_softmax(logits, axis=-1)
    of_class = jnp.take_along_axis(log_p, goal.label[..., None], axis=-1)[..., 0]
    total = -(foreground * of_class + samples.background * log_p[..., -1]).sum()
    return total / jnp.maximum((foreground + samples.background).sum(), 1)


def proposal_losses(
    outputs: PgcnOutputs, targets: Targets, state: Array, key: Array | None, settings: PgcnSettings
) -> DetectionLoss:
    """The losses over the whole batch on samples that ``key`` draws."""
    goal = assign_proposals(outputs, targets, settings)
    return sampled_losses(outputs, goal, draw_samples(goal, key, settings), state, settings)


def sampled_losses(
    outputs: PgcnOutputs, goal: ProposalTargets, samples: Samples, state: Array, settings: PgcnSettings
) -> DetectionLoss:
    """Activity, completeness, regression and quality on given samples."""
    s = settings
    drawn = (samples.foreground + samples.filled) * goal.weight
    mean = lambda each: jnp.where(drawn > 0, drawn * each, 0).sum() / jnp.maximum(drawn.sum(), 1)

    # Elsewhere the instance is meaningless; the proposal itself keeps the gradient finite.
    proposal_t = jax.lax.stop_gradient(outputs.segments_t)
    segment_t = jnp.where(goal.foreground_mask[..., None], goal.segment_t, proposal_t)
    relative = segments.relative_segment(proposal_t, segment_t)
    state, scale = _regression_scale(relative, goal.foreground_mask & ~outputs.annotated_mask, state, s)
    picked = jnp.take_along_axis(outputs.regression, goal.label[..., None, None], axis=2)[:, :, 0]
    regression = 2 * mean(smooth_l1((to_relative(picked, s) - relative) / scale).mean(-1))

    corrected = jax.lax.stop_gradient(regressed(outputs, goal.label, s))
    true_tiou, true_tnd = (f(corrected, segment_t)[..., None] for f in (segments.tiou, segments.tnd))
    quality = mean(quality_loss(outputs.quality_logits[:, :, None], true_tiou, true_tnd, s.quality)[..., 0])

    parts = {
        "class": activity_loss(outputs.activity_logits, goal, samples),
        "completeness": completeness_loss(
            outputs.completeness, goal.label, goal.weight, samples.foreground, samples.hard, s
        ),
        "regression": regression,
        "quality": quality,
        "positives": jnp.where(goal.foreground_mask, goal.weight, 0).sum(),
    }
    class_loss = parts["class"] + s.completeness_weight * parts["completeness"]
    localisation = s.regression_weight * regression + s.quality.weight * quality
    points = _points(outputs, goal)
    return DetectionLoss(class_loss + localisation, class_loss, localisation, parts, state, points)


def _regression_scale(relative: Array, counts: Array, state: Array, s: PgcnSettings) -> tuple[Array, Array]:
    """Running means and mean squares of ``relative [B, K, 2]`` where ``counts``, and by what to divide differences.

    Annotated instances have no part in them (spec 5.3, 7). A mean of its own is not subtracted: it would cancel.
    """
    fixed = jnp.asarray(s.regression_deviation)
    if s.regression_scale == "fixed":
        return state, fixed
    size = jnp.maximum(counts.sum(), 1)
    moments = jnp.stack([jnp.where(counts[..., None], x, 0).sum((0, 1)) / size for x in (relative, relative**2)])
    moved = s.regression_momentum * state + (1 - s.regression_momentum) * jax.lax.stop_gradient(moments)
    state = jnp.where(counts.any(), moved, state)
    variance = state[1] - state[0] ** 2
    return state, jnp.sqrt(jnp.maximum(variance, (_LEAST_SCALE * fixed) ** 2))


def _points(outputs: PgcnOutputs, goal: ProposalTargets) -> PointTargets:
    """Foreground has its class, all else background; silent is what the activity head is taught nothing about."""
    classes = outputs.activity_logits.shape[-1]
    label = jnp.where(goal.foreground_mask, goal.label, classes - 1)
    taught = goal.foreground_mask | goal.background_mask
    return PointTargets(jax.nn.one_hot(label, classes), goal.foreground_mask, outputs.proposal_mask & ~taught)
