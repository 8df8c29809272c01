"""From scored candidates to at most K detections of one video; ``vmap`` it over videos (spec 1.9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apl_jax.ops import suppression


class Kept(NamedTuple):
    """What is left of M candidates, by falling confidence."""

    segments_t: Float[Array, "K 2"]  # after voting, where there is voting
    row: Int[Array, " K"]  # of the candidate
    confidence: Float[Array, " K"]  # when picked, decayed by what was picked before it
    mask: Bool[Array, " K"]


def surest_per_level(
    confidence: Float[Array, "P C"], sizes: Sequence[int], top_k: int
) -> tuple[Int[Array, " M"], Int[Array, " M"]]:
    """Point and class of the ``top_k`` surest predictions of each level, level by level.

    ``sizes``: how many of the P points, in order, are of each level.
    """
    classes = confidence.shape[1]
    chosen, first = [], 0
    for size in sizes:
        level = confidence[first : first + size].reshape(-1)
        chosen.append(first * classes + jax.lax.top_k(level, min(top_k, size * classes))[1])
        first += size
    index = jnp.concatenate(chosen)
    return index // classes, index % classes


def keep_best(
    segments_t: Float[Array, "M 2"],
    confidence: Float[Array, " M"],
    labels: Int[Array, " M"],
    mask: Bool[Array, " M"],
    *,
    score_threshold: float,
    duration_threshold_t: float,
    method: str,
    sigma: float,
    iou_threshold: float,
    min_score: float,
    max_detections: int,
    class_wise: bool,
    voting_threshold: float,
    decay_above: tuple[float, float] = (0.0, 0.0),
    longest: Float[Array, ""] | float = 1.0,
) -> Kept:
    """Thresholds, non-maximum suppression, and voting.

    Args:
        segments_t, confidence, labels, mask: M candidates.
        score_threshold: least confidence before suppression, exclusive.
        duration_threshold_t: least length, exclusive, in the unit of ``segments_t``.
        method, sigma, iou_threshold, min_score, max_detections, class_wise, decay_above, longest: those of
            :func:`apl_jax.ops.suppression.suppress`.
        voting_threshold: least tIoU of the candidates that a kept segment is averaged over, 0 being no voting; only
            suppression over all classes together has voting.
    """
    valid = mask & (confidence > score_threshold) & (segments_t[:, 1] - segments_t[:, 0] > duration_threshold_t)
    picks = suppression.suppress(
        segments_t, confidence, labels, valid,
        method=method, sigma=sigma, iou_threshold=iou_threshold, min_score=min_score,
        max_detections=max_detections, class_wise=class_wise, decay_above=decay_above, longest=longest,
    )  # fmt: skip
    kept = segments_t[picks.row]
    if not class_wise and voting_threshold > 0:
        kept = suppression.vote(kept, segments_t, confidence, valid, voting_threshold)
    return Kept(kept, picks.row, picks.score, picks.mask)
