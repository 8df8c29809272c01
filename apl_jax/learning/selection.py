"""Which detections on unlabelled videos become pseudo labels: thresholds by rule, then ICD's second opinion.

Everything here is a masked computation on padded arrays ``[V, K]`` and runs inside ``jax.jit``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from apl_jax.ops.segments import tiou
from apl_jax.settings import SelectionSettings
from apl_jax.structs import Array, Detections, PseudoLabels, PyTree, Reason


class Selection(NamedTuple):
    """A rule's division of the detections ``[V, K]`` (APL Eq. 6)."""

    positive_mask: Array  # [V, K]
    candidate_mask: Array  # [V, K]
    tau_pos: Array  # [V, K], the threshold each detection met, for the record


class Selector(NamedTuple):
    """A selection rule: ``init() -> state``; ``select(state, detections, num_classes) -> (state, Selection)``.

    The state is what a rule remembers from round to round; rules that look at one round only carry ``()``.
    """

    init: Callable[[], PyTree]
    select: Callable[[PyTree, Detections, int], tuple[PyTree, Selection]]


def _divide(detections: Detections, tau_pos: Array, tau_neg: float) -> Selection:
    considered = detections.mask & (detections.confidence > tau_neg)
    tau_pos = jnp.broadcast_to(tau_pos, detections.confidence.shape)
    positive = considered & (detections.confidence >= tau_pos)
    return Selection(positive, considered & ~positive, tau_pos)


def _mean_and_deviation(values: Array, mask: Array, axis: int | tuple[int, ...]) -> tuple[Array, Array]:
    count = jnp.maximum(mask.sum(axis, keepdims=True), 1)
    mean = jnp.where(mask, values, 0).sum(axis, keepdims=True) / count
    variance = jnp.where(mask, (values - mean) ** 2, 0).sum(axis, keepdims=True) / count
    return mean, jnp.sqrt(variance)


def build_dynamic(settings: SelectionSettings) -> Selector:
    """tau_pos = mean + deviations x population std of the confidences above tau_neg, clipped (APL 3.1; systems A1).

    ``scope``: over the whole unlabelled set (``pooled``), per predicted class, or per video.
    """
    s = settings

    def select(state: PyTree, detections: Detections, num_classes: int) -> tuple[PyTree, Selection]:
        confidence = detections.confidence
        considered = detections.mask & (confidence > s.tau_neg)
        if s.scope == "class":
            member = considered[..., None] & (detections.labels[..., None] == jnp.arange(num_classes))
            mean, deviation = _mean_and_deviation(confidence[..., None], member, (0, 1))
            tau = (mean + s.deviations * deviation)[0, 0][detections.labels]
        else:
            mean, deviation = _mean_and_deviation(confidence, considered, (0, 1) if s.scope == "pooled" else 1)
            tau = mean + s.deviations * deviation
        return state, _divide(detections, jnp.clip(tau, s.tau_min, s.tau_max), s.tau_neg)

    return Selector(tuple, select)


def build_fixed(settings: SelectionSettings) -> Selector:
    """tau_pos = ``fixed_threshold`` (the baseline of APL Table 2)."""

    def select(state: PyTree, detections: Detections, num_classes: int) -> tuple[PyTree, Selection]:
        del num_classes
        return state, _divide(detections, jnp.float32(settings.fixed_threshold), settings.tau_neg)

    return Selector(tuple, select)


SELECTORS: dict[str, Callable[[SelectionSettings], Selector]] = {"dynamic": build_dynamic, "fixed": build_fixed}


def build_selector(settings: SelectionSettings) -> Selector:
    """The rule that ``settings.rule`` names. Raises ``ValueError`` for an unknown one."""
    if settings.rule not in SELECTORS:
        expected = ", ".join(SELECTORS)
        raise ValueError(f"config.learning.selection.rule: found {settings.rule!r}, expected one of {expected}")
    return SELECTORS[settings.rule](settings)


def _overlaps_surer(detections: Detections, label_mask: Array, limit: float) -> Array:
    """Which detections ``[V, K]`` overlap a label of their class and of higher confidence by a tIoU above ``limit``."""
    segments, labels, confidence = detections.segments_t, detections.labels, detections.confidence
    rival = label_mask[:, None, :] & (labels[:, None, :] == labels[..., None])
    rival &= confidence[:, None, :] > confidence[..., None]
    return (rival & (tiou(segments[:, :, None], segments[:, None]) > limit)).any(-1)


def refine(
    detections: Detections, selection: Selection, similarity: Array, settings: SelectionSettings
) -> PseudoLabels:
    """ICD's verdict: eliminate ambiguous positives (EAP), promote potential ones (MPP) (APL 3.2).

    ``similarity`` ``[V, K]`` is the mean similarity to labelled instances of the predicted class. Boundaries and class
    stay as predicted (systems A22). With ``promote_overlap`` below 1, a candidate that overlaps a surer label of its
    class by more is not promoted: soft-NMS leaves decayed duplicates of the positives among the candidates, and those
    are similar to labelled instances because the positives are.
    """
    enabled = settings.discriminator.enabled
    drop = selection.positive_mask & (similarity < settings.eliminate_below) & (enabled and settings.eliminate)
    promote = selection.candidate_mask & (similarity > settings.promote_above) & (enabled and settings.promote)
    if settings.promote_overlap < 1:
        promote &= ~_overlaps_surer(detections, selection.positive_mask | promote, settings.promote_overlap)
    reason = jnp.where(selection.positive_mask, Reason.KEPT, Reason.BELOW_THRESHOLD)
    reason = jnp.where(selection.candidate_mask, Reason.CANDIDATE, reason)
    reason = jnp.where(drop, Reason.DROPPED, jnp.where(promote, Reason.PROMOTED, reason)).astype(jnp.int32)
    weight = ((reason == Reason.KEPT) | (reason == Reason.PROMOTED)).astype(jnp.float32)
    return PseudoLabels(detections, similarity, reason, weight)
