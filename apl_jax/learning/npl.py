"""NPL-style ranking and filtering of pseudo labels, as a link of the selection chain (spec 6; our reconstruction).

The paper (Xia et al., ICCV 2023) has no public code. What it names is rebuilt here: labels are ranked by confidence
times how well the detections around them agree about their borders, and classes that are rarely predicted get a lower
threshold. The reliability of a label is its weight in training. Numbers made with it are of this reading, not of NPL.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from apl_jax.declarations import Checked, number
from apl_jax.learning.selection import Known, Link, register_selection, with_reason
from apl_jax.ops.segments import tiou
from apl_jax.structs import Array, Batch, DataFacts, Detections, PseudoLabels, PyTree, Reason


@dataclass(frozen=True)
class NplStyleSettings(Checked):
    """NPL-style ranking and filtering."""

    threshold: float = number(0.3, at_least=0, at_most=1)  # tau, of the most frequent class
    tau_neg: float = number(0.15, at_least=0, at_most=1)  # at most this ranking score: not considered at all
    gamma: float = number(0.5, at_least=0, at_most=10)  # how much lower thresholds of rarer classes are; 0: not
    least_threshold: float = number(0.1, at_least=0, at_most=1)  # of any class
    overlap: float = number(
        0.5, at_least=0, at_most=1
    )  # tIoU above which a detection has a say about another's borders


def border_agreement(detections: Detections, overlap: float) -> Array:
    """How well detections of one video agree about the borders of each, ``[K]`` in (0, 1].

    ``exp(-(var(start) + var(end)) / length^2)``, with the variances of those of its class that overlap it by more than
    ``overlap``, weighted by their class scores; 1 where no other does (spec 6).
    """
    segments_t, same = detections.segments_t, detections.labels[:, None] == detections.labels
    near = (tiou(segments_t[:, None], segments_t) > overlap) & same & detections.mask[:, None] & detections.mask
    weight = near * detections.score  # [K, K]
    weight = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-12)
    mean = weight @ segments_t
    variance = (weight[..., None] * jnp.square(segments_t - mean[:, None])).sum(1).sum(-1)
    length = segments_t[:, 1] - segments_t[:, 0]
    return jnp.exp(-variance / jnp.maximum(jnp.square(length), 1e-12))


def class_thresholds(score: Array, labels: Array, mask: Array, settings: NplStyleSettings, num_classes: int) -> Array:
    """The threshold of each class ``[C]``: tau times its share of sure predictions of the most frequent class's, to the
    power gamma. ``score``, ``labels``, ``mask`` ``[V, K]``."""
    sure = mask & (score >= settings.threshold)
    count = (sure[..., None] & (labels[..., None] == jnp.arange(num_classes))).sum((0, 1))
    share = count / jnp.maximum(count.max(), 1)
    return jnp.maximum(settings.threshold * share**settings.gamma, settings.least_threshold)


def build_npl_style(settings: NplStyleSettings, facts: DataFacts) -> Link:
    """Ranks by confidence times border agreement, filters by class, weights by border agreement."""
    s = settings

    def observe(known: Known, videos: Batch, detections: Detections) -> Array:
        del known, videos
        return jax.vmap(lambda one: border_agreement(one, s.overlap))(detections)

    def select(state: PyTree, labels: PseudoLabels, agreement: Array) -> tuple[PyTree, PseudoLabels]:
        detections = labels.detections
        score = detections.confidence * agreement
        considered = detections.mask & (score > s.tau_neg)
        tau = class_thresholds(score, detections.labels, detections.mask, s, facts.num_classes)[detections.labels]
        reason = jnp.where(considered, jnp.where(score >= tau, Reason.KEPT, Reason.CANDIDATE), labels.reason)
        # What a confidence must reach for its product with the agreement to reach tau.
        labels = with_reason(labels, reason, threshold=jnp.minimum(tau / jnp.maximum(agreement, 1e-6), 1.0))
        kept = labels.reason == Reason.KEPT
        weight = jnp.where(considered & kept, agreement, labels.weight)
        return state, dataclasses.replace(labels, weight=weight)

    return Link(tuple, observe, select)


register_selection("npl_style", NplStyleSettings, build_npl_style)
