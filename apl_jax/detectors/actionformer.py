"""ActionFormer (Zhang et al., ECCV 2022) with APL's quality heads (ALQA), as specified in systems 1.3 to 1.9 and 7.A.

Every grid point of a temporal pyramid classifies the action under it and regresses the distances to its two ends. With
ALQA it also predicts how well its own segment will fit (tIoU and tND), and the class loss trains the *joint* score.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.detectors.base import ClassDistribution, Detector, Losses, Roles
from apl_jax.nn.pyramid import Backbone, Levels, Neck
from apl_jax.nn.quality import QUALITY_BRANCHES, ClassHead, RegressionHead, join_levels
from apl_jax.ops import losses, nms
from apl_jax.ops.masking import upsample_linear
from apl_jax.ops.segments import offset_quality
from apl_jax.settings import ActionFormerSettings
from apl_jax.structs import Array, Batch, Detections, PyTree, Targets, pytree


@pytree
class PyramidOutputs:
    """Dense predictions; the P points of all levels are concatenated, finest level first."""

    class_logits: Array  # [B, P, C]
    offsets: Array  # [B, P, 2] distances to start and end, in strides of the point's level
    quality_logits: Array  # [B, P, Q]
    point_mask: Array  # [B, P]
    pyramid: Levels  # the neck's output

    def represent(self, rows: Array) -> Array:
        """Frames ``rows [B, N]`` of all levels, up-sampled to the grid and concatenated: ``[B, N, L * width]`` (B5)."""
        steps = self.pyramid[0][1].shape[1]
        return jnp.concatenate([upsample_linear(x, mask, rows, steps) for x, mask in self.pyramid], axis=-1)

    def distribution(self) -> ClassDistribution:
        """Independent sigmoids as one distribution: background is what the surest class leaves, and all is divided by
        the sum (systems C11). Losses on classes stay losses on sigmoids; background has no output that could learn."""
        floor = losses.PROBABILITY_FLOOR  # C4
        log = lambda logits: jnp.clip(jax.nn.log_sigmoid(logits), math.log(floor), math.log1p(-floor))
        score = jax.nn.sigmoid(self.class_logits)
        background = 1 - score.max(-1, keepdims=True)
        probability = jnp.concatenate([score, background], -1)
        no_output = jnp.zeros_like(background)
        return ClassDistribution(
            probability / probability.sum(-1, keepdims=True),
            jnp.concatenate([log(self.class_logits), no_output], -1),
            jnp.concatenate([log(-self.class_logits), no_output], -1),
            self._time_t(),
            self.point_mask,
        )

    def _time_t(self) -> Array:
        """Grid step of every point ``[B, P]``."""
        steps = self.pyramid[0][1].shape[1]
        time = jnp.concatenate([jnp.arange(0, steps, steps // mask.shape[1]) for _, mask in self.pyramid])
        return jnp.broadcast_to(time.astype(jnp.float32), self.point_mask.shape)


class Assignment(NamedTuple):
    """What label assignment asks of each point of one video."""

    positive: Array  # [P] bool
    classes: Array  # [P, C] union of the classes of equally short instances
    offsets: Array  # [P, 2] in strides, meaningful for positives
    weight: Array  # [P] weight of the assigned instance; 1 for background; 0 under an ignored instance
    silent: Array  # [P] bool, under an ignored instance and assigned to no other


class ActionFormer(nn.Module):
    """The network: backbone, neck, and heads shared over the levels."""

    settings: ActionFormerSettings
    num_classes: int

    @nn.compact
    def __call__(self, features: Array, mask: Array, deterministic: bool) -> tuple[Levels, PyramidOutputs]:
        levels = Backbone(self.settings, name="backbone")(features, mask, deterministic)
        levels = Neck(self.settings, name="neck")(levels)
        joined = join_levels(levels)
        class_logits = ClassHead(self.settings, self.num_classes, name="class_head")(joined)
        offsets, quality_logits = RegressionHead(self.settings, name="regression_head")(joined)
        point_mask = jnp.concatenate([m for _, m in levels], axis=1)
        return levels, PyramidOutputs(class_logits, offsets, quality_logits, point_mask, levels)


def pyramid_points(settings: ActionFormerSettings, steps: int) -> np.ndarray:
    """Points ``[P, 4]``: time in grid steps, shortest and longest reach, stride (systems 1.4)."""
    rows = []
    for level, (low, high) in enumerate(settings.regression_ranges):
        time = np.arange(0, steps, 2**level, dtype=np.float32)
        constants = np.array([low, high, 2**level], np.float32)
        rows.append(np.column_stack([time, np.tile(constants, (len(time), 1))]))
    return np.concatenate(rows)


def assign(points: Array, targets: Targets, *, num_classes: int, center_radius: float) -> Assignment:
    """Label assignment of one video (systems 1.5): the shortest instance around whose centre, and in whose range, a
    point lies. ``targets`` holds unbatched fields ``[N, ...]``."""
    time, low, high, stride = (points[:, i, None] for i in range(4))
    start, end = targets.segments_t[:, 0], targets.segments_t[:, 1]
    left, right = time - start, end - time
    center, radius = 0.5 * (start + end), center_radius * stride
    inner = jnp.minimum(time - jnp.maximum(center - radius, start), jnp.minimum(center + radius, end) - time)
    reach = jnp.maximum(left, right)
    fits = (inner > 0) & (reach >= low) & (reach <= high) & targets.mask & ~targets.ignore_mask
    cost = jnp.where(fits, end - start, jnp.inf)
    chosen, least = cost.argmin(-1), cost.min(-1)
    positive = jnp.isfinite(least)
    shortest = fits & (cost <= least[:, None] + 1e-3)
    one_hot = jax.nn.one_hot(targets.labels, num_classes)
    classes = (shortest.astype(jnp.float32) @ one_hot > 0).astype(jnp.float32)
    pick = lambda x: jnp.take_along_axis(x, chosen[:, None], axis=1)
    under_ignored = ((left >= 0) & (right >= 0) & targets.mask & targets.ignore_mask).any(-1)
    silent = under_ignored & ~positive
    weight = jnp.where(positive, targets.weight[chosen], jnp.where(silent, 0.0, 1.0))
    offsets = jnp.concatenate([pick(left), pick(right)], -1) / points[:, 3:]
    return Assignment(positive, classes, offsets, weight, silent)


def joint_quality(quality_logits: Array, settings: ActionFormerSettings) -> tuple[Array, Array, Array]:
    """tIoU, tND and reliability ``max(tIoU - tND, epsilon)`` ``[B, P]`` from quality logits (APL Eq. 2, 4).

    With one branch (Table 3) its output is the reliability itself and stands in the tIoU column.
    """
    q = settings.quality
    shape = quality_logits.shape[:-1]
    if q.branches == "none":
        return jnp.ones(shape), jnp.zeros(shape), jnp.ones(shape)
    probability = jax.nn.sigmoid(quality_logits)
    tiou = probability[..., 0]
    tnd = probability[..., 1] if q.branches == "tiou_tnd" else jnp.zeros(shape)
    return tiou, tnd, jnp.maximum(tiou - tnd, q.epsilon)


def _class_loss(outputs: PyramidOutputs, classes: Array, fit: Array, s: ActionFormerSettings) -> Array:
    """Per point and class ``[B, P, C]``; ``fit`` is the true reliability of the point's own segment (APL Eq. 5)."""
    if s.quality.branches == "none":
        smoothed = classes * (1 - s.label_smoothing) + s.label_smoothing / (classes.shape[-1] + 1)
        return losses.sigmoid_focal(outputs.class_logits, smoothed, alpha=s.focal_alpha, gamma=s.focal_gamma)
    _, _, reliability = joint_quality(outputs.quality_logits, s)
    if not s.quality.background_gradient:
        background = classes.max(-1) == 0
        reliability = jnp.where(background, jax.lax.stop_gradient(reliability), reliability)
    joint = reliability[..., None] * jax.nn.sigmoid(outputs.class_logits)
    soft_label = classes * fit[..., None]
    if s.quality.soft_focal == "qfl":
        return losses.quality_focal(joint, soft_label)
    return losses.soft_focal(joint, soft_label, alpha=s.focal_alpha, gamma=s.focal_gamma)


def _quality_loss(outputs: PyramidOutputs, tiou: Array, tnd: Array, s: ActionFormerSettings) -> Array:
    """L_locq per point ``[B, P]`` (APL Eq. 3)."""
    truth = {"tiou": tiou, "tnd": tnd, "diou": jnp.maximum(tiou - tnd, s.quality.epsilon)}
    element = losses.binary_cross_entropy if s.quality.loss == "bce" else losses.pointwise_kl
    probability = jax.nn.sigmoid(outputs.quality_logits)
    parts = [element(probability[..., i], truth[name]) for i, name in enumerate(QUALITY_BRANCHES[s.quality.branches])]
    return sum(parts, jnp.zeros_like(tiou))


def detection_losses(
    outputs: PyramidOutputs, targets: Targets, normalizer: Array, settings: ActionFormerSettings
) -> Losses:
    """Class, regression (DIoU) and quality losses over the whole batch, each sum / N (systems 1.7, A6)."""
    s = settings
    steps = _grid_steps(outputs.class_logits.shape[1], s)
    points = jnp.asarray(pyramid_points(s, steps))
    goal = jax.vmap(
        lambda t: assign(points, t, num_classes=outputs.class_logits.shape[-1], center_radius=s.center_radius)
    )(targets)
    positive = goal.positive & outputs.point_mask
    weight = goal.weight * outputs.point_mask
    positive_weight = jnp.where(positive, weight, 0.0)
    count = jnp.maximum(positive_weight.sum(), 1.0)
    normalizer = s.normalizer_momentum * normalizer + (1 - s.normalizer_momentum) * count

    # Where a point is not positive its offsets are meaningless; a harmless pair keeps the gradient finite.
    target_offsets = jnp.where(positive[..., None], goal.offsets, 1.0)
    predicted = jnp.where(positive[..., None], outputs.offsets, 1.0)
    tiou, tnd = offset_quality(predicted, target_offsets)
    fixed_tiou, fixed_tnd = jax.lax.stop_gradient((tiou, tnd))
    fit = fixed_tiou if s.quality.branches == "tiou" else jnp.maximum(fixed_tiou - fixed_tnd, s.quality.epsilon)

    classes = goal.classes * positive[..., None]
    class_loss = (_class_loss(outputs, classes, fit, s) * weight[..., None]).sum() / normalizer
    regression = ((1 - tiou + tnd) * positive_weight).sum() / normalizer
    quality = (_quality_loss(outputs, fixed_tiou, fixed_tnd, s) * positive_weight).sum() / normalizer
    balance = s.regression_weight
    if balance <= 0:
        balance = jax.lax.stop_gradient(class_loss) / jnp.maximum(jax.lax.stop_gradient(regression), 0.01)
    localisation = balance * regression + s.quality.weight * quality
    terms = {"class": class_loss, "regression": regression, "quality": quality, "positives": count}
    with_background = jnp.concatenate([classes, 1 - classes.max(-1, keepdims=True)], -1)
    roles = Roles(with_background, positive, goal.silent & outputs.point_mask)
    return Losses(class_loss + localisation, class_loss, localisation, terms, normalizer, roles)


def own_targets(outputs: PyramidOutputs, settings: ActionFormerSettings) -> Targets:
    """The detections whose confidence reaches ``online_threshold``, as annotations ``[B, K]`` without gradient."""
    found = decode_detections(jax.lax.stop_gradient(outputs), settings)
    mask = found.mask & (found.confidence >= settings.online_threshold)
    return Targets(found.segments_t, found.labels, mask, jnp.ones_like(found.confidence), jnp.zeros_like(mask))


def decode_detections(outputs: PyramidOutputs, settings: ActionFormerSettings) -> Detections:
    """Dense predictions to at most K detections per video: top k per level, then NMS (systems 1.9)."""
    n = settings.nms
    num_classes = outputs.class_logits.shape[-1]
    points = jnp.asarray(pyramid_points(settings, _grid_steps(outputs.class_logits.shape[1], settings)))
    tiou, tnd, reliability = joint_quality(outputs.quality_logits, settings)
    score = jax.nn.sigmoid(outputs.class_logits) * outputs.point_mask[..., None]
    confidence = score * reliability[..., None] if settings.quality.rank_by_quality else score

    def one_video(confidence: Array, score: Array, offsets: Array, tiou: Array, tnd: Array) -> Detections:
        flat = confidence.reshape(-1)
        chosen, first = [], 0
        for level in range(settings.branch_blocks + 1):
            size = _level_steps(len(points), settings)[level] * num_classes
            chosen.append(first + jax.lax.top_k(flat[first : first + size], min(n.top_k_per_level, size))[1])
            first += size
        index = jnp.concatenate(chosen)
        point, label = index // num_classes, index % num_classes
        time, stride = points[point, 0], points[point, 3]
        segments = jnp.stack([time - offsets[point, 0] * stride, time + offsets[point, 1] * stride], -1)
        valid = (flat[index] > n.score_threshold) & (segments[:, 1] - segments[:, 0] > n.duration_threshold_t)
        picks = nms.suppress(
            segments, flat[index], label, valid,
            method=n.method, sigma=n.sigma, iou_threshold=n.iou_threshold, min_score=n.min_score,
            max_detections=n.max_detections, class_wise=n.class_wise,
        )  # fmt: skip
        kept = segments[picks.row]
        if not n.class_wise and n.voting_threshold > 0:
            kept = nms.vote(kept, segments, flat[index], valid, n.voting_threshold)
        origin = point[picks.row]
        return Detections(
            kept, label[picks.row], picks.score, score.reshape(-1)[index[picks.row]],
            tiou[origin], tnd[origin], picks.mask,
        )  # fmt: skip

    return jax.vmap(one_video)(confidence, score, outputs.offsets, tiou, tnd)


def _grid_steps(points: int, settings: ActionFormerSettings) -> int:
    """T from P = T (1 + 1/2 + ... + 2^-(L-1))."""
    coarsest = 2**settings.branch_blocks
    return points * coarsest // (2 * coarsest - 1)


def _level_steps(points: int, settings: ActionFormerSettings) -> list[int]:
    steps = _grid_steps(points, settings)
    return [steps // 2**level for level in range(settings.branch_blocks + 1)]


def build_actionformer(settings: ActionFormerSettings, feature_width: int, num_classes: int) -> Detector:
    """The detector record. Raises ``ValueError`` for settings that contradict one another."""
    _check(settings)
    module = ActionFormer(settings, num_classes)

    def init(key: Array) -> tuple[PyTree, PyTree]:
        steps = 2**settings.branch_blocks
        shape = jnp.zeros((1, steps, feature_width)), jnp.ones((1, steps), bool)
        params = module.init(key, *shape, deterministic=True)["params"]
        return params, jnp.float32(settings.normalizer_init)

    def apply(params: PyTree, batch: Batch, key: Array | None) -> PyramidOutputs:
        rngs = None if key is None else {"dropout": key}
        outputs: Any = module.apply({"params": params}, batch.features, batch.mask, key is None, rngs=rngs)
        return outputs[1]

    return Detector(
        init,
        apply,
        lambda outputs, targets, state: detection_losses(outputs, targets, state, settings),
        lambda outputs: decode_detections(outputs, settings),
        lambda outputs: own_targets(outputs, settings),
        background=False,
    )


def _check(s: ActionFormerSettings) -> None:
    levels = s.branch_blocks + 1
    problems = [
        (len(s.windows) != levels, f"windows: found {len(s.windows)} values, expected one per level ({levels})"),
        (len(s.regression_ranges) != levels,
         f"regression_ranges: found {len(s.regression_ranges)} pairs, expected one per level ({levels})"),
        (s.width % s.heads != 0, f"width: found {s.width}, expected a multiple of heads ({s.heads})"),
        (any(w > 1 and w % 2 == 0 for w in s.windows), f"windows: found {s.windows}, expected odd, or 0 = global"),
    ]  # fmt: skip
    for wrong, message in problems:
        if wrong:
            raise ValueError(f"config.actionformer.{message}")
