"""What detectors share that classify the points of a pyramid and find a segment for each: losses, decoding, comparing.

Such a detector is a network that predicts :class:`PyramidOutputs`, under settings that extend
:class:`~apl_jax.detectors.pyramid_settings.PyramidSettings`; :func:`pyramid_detector` makes the record of it. A point
has one segment, or one for each class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.detectors.base import ClassDistribution, DetectionLoss, Detector, DetectorFacts
from apl_jax.detectors.pyramid_settings import PyramidDecoding, PyramidSettings
from apl_jax.detectors.quality import joint_class_loss, joint_quality, quality_loss, true_quality
from apl_jax.detectors.shared import point_targets, sigmoid_distribution, suppression, targets_from_detections
from apl_jax.ops import losses, pyramid
from apl_jax.ops.coverage import uncovered_by_pyramid
from apl_jax.ops.decoding import keep_best, surest_per_level
from apl_jax.ops.masking import masked_mean, reverse_time
from apl_jax.ops.pyramid import Levels
from apl_jax.ops.segments import offset_quality
from apl_jax.structs import Array, Batch, DataFacts, Detections, PyTree, Targets, pytree

_LEAST_WEIGHT = 1e-4  # of a network's offsets in an average, where it is sure of nothing
_LEAST_TIOU = 1e-4  # that a power is taken of: at 0 its slope is infinite


@pytree
class PyramidOutputs:
    """Dense predictions; the P points of all levels are concatenated, finest level first."""

    class_logits: Array  # [B, P, C]
    # [B, P, S, 2] distances to start and end, in strides of the point's level; S = C where every class has a segment of
    # its own, otherwise 1
    offsets: Array
    quality_logits: Array  # [B, P, Q]
    point_mask: Array  # [B, P]
    pyramid: Levels  # the neck's output

    def represent(self, rows: Array) -> Array:
        """Frames ``rows [B, N]`` of all levels, up-sampled to the grid and concatenated: ``[B, N, L * width]`` (B5)."""
        return pyramid.rows_of_levels(self.pyramid, rows)

    def distribution(self) -> ClassDistribution:
        """Sigmoids as one distribution; a snippet is a point (C11)."""
        time_t = pyramid.point_times(self.pyramid[0][1].shape[1], len(self.pyramid))
        return sigmoid_distribution(self.class_logits, jnp.asarray(time_t), self.point_mask)

    def averaged(self) -> PyramidOutputs:
        """Of outputs ``[B, K, ...]`` of K networks, those of one ``[B, ...]``: class probabilities are averaged, and
        offsets by how sure each network is of the action, or of any where a point has one segment."""
        score = jax.nn.sigmoid(self.class_logits)
        by_class = self.offsets.shape[-2] == score.shape[-1]
        sure = (score if by_class else score.max(-1, keepdims=True))[..., None] + _LEAST_WEIGHT
        mean = jnp.clip(score.mean(1), losses.PROBABILITY_FLOOR, 1 - losses.PROBABILITY_FLOOR)
        offsets = (self.offsets * sure).sum(1) / sure.sum(1)
        levels = tuple((features.mean(1), mask[:, 0]) for features, mask in self.pyramid)
        logits = jnp.log(mean) - jnp.log1p(-mean)
        return PyramidOutputs(logits, offsets, self.quality_logits.mean(1), self.point_mask[:, 0], levels)


def points_of(outputs: PyramidOutputs, settings: PyramidSettings) -> tuple[Array, list[int]]:
    """The points ``[P, 4]`` of :func:`apl_jax.ops.pyramid.pyramid_points`, and how many are of each level."""
    levels = settings.branch_blocks + 1
    steps = pyramid.grid_steps(outputs.point_mask.shape[1], levels)
    points = jnp.asarray(pyramid.pyramid_points(steps, settings.regression_ranges))
    return points, pyramid.level_sizes(steps, levels)


def _class_loss(
    outputs: PyramidOutputs, classes: Array, target_quality: Array, tiou: Array, s: PyramidSettings
) -> Array:
    """Per point and class ``[B, P, C]``; ``target_quality [B, P, S]`` is the true reliability of the own segments,
    ``tiou [B, P, S]`` their overlap with the truth, 1 where none is taught."""
    focal = {"focal_alpha": s.focal_alpha, "focal_gamma": s.focal_gamma}
    if s.quality.branches != "none":
        logits = outputs.class_logits, outputs.quality_logits
        return joint_class_loss(*logits, classes, target_quality, s.quality, **focal)
    smoothed = classes * (1 - s.label_smoothing) + s.label_smoothing / (classes.shape[-1] + 1)
    loss = losses.sigmoid_focal(outputs.class_logits, smoothed, alpha=s.focal_alpha, gamma=s.focal_gamma)
    return loss * jnp.maximum(tiou, _LEAST_TIOU) ** s.tiou_power if s.tiou_power else loss


def detection_losses(
    outputs: PyramidOutputs, targets: Targets, normalizer: Array, settings: PyramidSettings
) -> DetectionLoss:
    """Class, regression (DIoU) and quality losses over the whole batch, each sum / N (spec 1.7, A6)."""
    s, points = settings, points_of(outputs, settings)[0]
    num_classes, radius = outputs.class_logits.shape[-1], s.center_radius
    assign = lambda t: pyramid.assign(points, t, num_classes=num_classes, center_radius=radius)
    goal = jax.vmap(assign)(targets)
    positive = goal.positive & outputs.point_mask
    weight = goal.weight * outputs.point_mask
    positive_weight = jnp.where(positive, weight, 0.0)
    count = jnp.maximum(positive_weight.sum(), 1.0)
    normalizer = s.normalizer_momentum * normalizer + (1 - s.normalizer_momentum) * count

    classes = goal.classes * positive[..., None]
    # A point teaches its one segment, or those of its classes. Elsewhere offsets are meaningless; a harmless pair keeps
    # the gradient finite.
    taught = positive[..., None] if outputs.offsets.shape[-2] == 1 else classes > 0  # [B, P, S]
    target_offsets = jnp.where(taught[..., None], goal.offsets[:, :, None], 1.0)
    predicted = jnp.where(taught[..., None], outputs.offsets, 1.0)
    tiou, tnd = offset_quality(predicted, target_offsets)
    fixed_tiou, fixed_tnd = jax.lax.stop_gradient((tiou, tnd))
    target_quality = true_quality(fixed_tiou, fixed_tnd, s.quality)

    class_loss = (_class_loss(outputs, classes, target_quality, tiou, s) * weight[..., None]).sum() / normalizer
    regression = ((1 - tiou + tnd) * taught * positive_weight[..., None]).sum() / normalizer
    quality = quality_loss(outputs.quality_logits[:, :, None], fixed_tiou, fixed_tnd, s.quality)
    quality = (quality * taught).sum(-1) / jnp.maximum(taught.sum(-1), 1)  # a point predicts one, for all its classes
    quality = (quality * positive_weight).sum() / normalizer
    balance = s.regression_weight
    if balance <= 0:
        balance = jax.lax.stop_gradient(class_loss) / jnp.maximum(jax.lax.stop_gradient(regression), 0.01)
    localisation = balance * regression + s.quality.weight * quality
    parts = {"class": class_loss, "regression": regression, "quality": quality, "positives": count}
    points_taught = point_targets(classes, positive, goal.silent & outputs.point_mask)
    return DetectionLoss(class_loss + localisation, class_loss, localisation, parts, normalizer, points_taught)


def own_targets(outputs: PyramidOutputs, settings: PyramidSettings) -> Targets:
    """The detections whose confidence reaches ``online_threshold``, as annotations ``[B, K]`` without gradient (C8).

    They are decoded as ``settings.online`` says; ``settings.decoding`` has no part in training.
    """
    found = decode_detections(jax.lax.stop_gradient(outputs), settings, settings.online)
    return targets_from_detections(found, settings.online_threshold)


def decode_detections(outputs: PyramidOutputs, settings: PyramidSettings, decoding: PyramidDecoding) -> Detections:
    """Dense predictions to at most K detections per video: top k per level, then NMS (spec 1.9)."""
    points, sizes = points_of(outputs, settings)
    tiou, tnd, reliability = joint_quality(outputs.quality_logits, settings.quality)
    score = jax.nn.sigmoid(outputs.class_logits) * outputs.point_mask[..., None]
    confidence = score * reliability[..., None] if decoding.rank_by_quality else score
    strides = points[:, 3, None, None]
    segments_t = points[:, :1, None] + outputs.offsets * strides * jnp.array([-1.0, 1.0])  # [B, P, S, 2]
    last = segments_t.shape[2] - 1

    def one_video(confidence: Array, score: Array, segments_t: Array, tiou: Array, tnd: Array) -> Detections:
        point, label = surest_per_level(confidence, sizes, decoding.top_k_per_level)
        exists = jnp.ones(label.shape, bool)
        segment = segments_t[point, jnp.minimum(label, last)]
        kept = keep_best(segment, confidence[point, label], label, exists, **suppression(decoding))
        point, label = point[kept.row], label[kept.row]
        return Detections(
            kept.segments_t, label, kept.confidence, score[point, label], tiou[point], tnd[point], kept.mask
        )

    return jax.vmap(one_video)(confidence, score, segments_t, tiou, tnd)


def compare_outputs(
    student: PyramidOutputs, teacher: PyramidOutputs, mask: Array, settings: PyramidSettings
) -> dict[str, Array]:
    """How far two outputs on one view are apart (spec 4.4).

    ``class``: mean squared difference of class probabilities over the valid points of the videos in ``mask [B]`` ·
    ``segment``: mean of 1 - DIoU of the two segments of the teacher's best class over those points where that class has
    a probability above ``compare_threshold``. Both 0 where there is no such point. No gradient reaches the teacher.
    """
    teacher = jax.lax.stop_gradient(teacher)
    valid = student.point_mask & mask[:, None]
    score, target = jax.nn.sigmoid(student.class_logits), jax.nn.sigmoid(teacher.class_logits)
    sure = valid & (target.max(-1) > settings.compare_threshold)
    best = jnp.minimum(target.argmax(-1), student.offsets.shape[2] - 1)[..., None, None]
    here, there = (jnp.take_along_axis(o.offsets, best, axis=2)[:, :, 0] for o in (student, teacher))
    some = (here + there).sum(-1) > 0  # two empty segments are equal; their tIoU would be 0
    compared = lambda offsets: jnp.where((sure & some)[..., None], offsets, 1.0)  # elsewhere a pair that agrees
    tiou, tnd = offset_quality(compared(here), compared(there))
    return {
        "class": masked_mean(jnp.square(score - target).mean(-1), valid),
        "segment": masked_mean(1 - tiou + tnd, sure),
    }


def flip_outputs(outputs: PyramidOutputs, settings: PyramidSettings) -> PyramidOutputs:
    """Outputs on a view whose valid steps are reversed, padding staying at the end, as outputs on the view (spec 4.4).

    The valid points of each level are reversed, distances to start and end exchanged. Exact are level 0, and the
    segments of all levels: a reversed point of a coarse level stands up to stride - 1 steps later than the point that
    it is given to (:func:`apl_jax.ops.pyramid.reversed_points`), and its offsets are moved by as much, so that one may
    fall below zero, by less than a stride. Approximate are classes, quality and features of coarse levels, which remain
    those of the place up to stride - 1 steps later. Twice the flip is the identity.
    """
    row, later = pyramid.reversed_points(outputs.point_mask, settings.branch_blocks + 1)
    take = lambda x: jnp.take_along_axis(x, row[..., None], axis=1)
    offsets = jnp.take_along_axis(outputs.offsets, row[..., None, None], axis=1)
    return PyramidOutputs(
        take(outputs.class_logits),
        offsets[..., ::-1] + jnp.stack([-later, later], -1)[:, :, None],
        take(outputs.quality_logits),
        outputs.point_mask,
        tuple((reverse_time(x, mask), mask) for x, mask in outputs.pyramid),
    )


def pyramid_detector(
    module: nn.Module,
    settings: PyramidSettings,
    facts: DataFacts,
    perturb: Callable[[Array, Array], Array] | None = None,
) -> Detector:
    """The detector record.

    ``module(features, mask, deterministic)`` gives the levels behind the neck and :class:`PyramidOutputs`;
    ``perturb(features, key)`` is what training does to its input besides, where anything.
    """

    def init(key: Array) -> tuple[PyTree, PyTree]:
        steps = 2**settings.branch_blocks
        shape = jnp.zeros((1, steps, facts.feature_width)), jnp.ones((1, steps), bool)
        params = module.init(key, *shape, deterministic=True)["params"]
        return params, jnp.float32(settings.normalizer_init)

    def apply(params: PyTree, batch: Batch, key: Array | None) -> PyramidOutputs:
        rngs = None if key is None else {"dropout": key}
        features = batch.features if key is None or perturb is None else perturb(batch.features, key)
        outputs: Any = module.apply({"params": params}, features, batch.mask, key is None, rngs=rngs)
        return outputs[1]

    ranges, radius = settings.regression_ranges, settings.center_radius
    return Detector(
        init,
        apply,
        loss=lambda outputs, targets, state, key: detection_losses(outputs, targets, state, settings),
        decode=lambda outputs: decode_detections(outputs, settings, settings.decoding),
        annotate=lambda outputs: own_targets(outputs, settings),
        compare=lambda student, teacher, mask: compare_outputs(student, teacher, mask, settings),
        flip=lambda outputs: flip_outputs(outputs, settings),
        facts=DetectorFacts(
            background_class=False,
            uncovered=lambda segments_t, length: uncovered_by_pyramid(
                segments_t, length, regression_ranges=ranges, center_radius=radius
            ),
        ),
    )
