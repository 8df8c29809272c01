"""Pieces that several detectors build their record from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import ClassDistribution, PointTargets
from apl_jax.ops import intervals
from apl_jax.ops.decoding import Kept
from apl_jax.ops.losses import PROBABILITY_FLOOR
from apl_jax.settings import NmsSettings
from apl_jax.structs import Array, Detections, Targets


def sigmoid_distribution(class_logits: Array, time_t: Array, mask: Array) -> ClassDistribution:
    """Independent sigmoids ``[B, S, C]`` as one distribution: background is what the surest class leaves, and all is
    divided by the sum (spec C11).

    Losses on classes stay losses on sigmoids; background has no output that could learn, its logarithms are 0.
    Probabilities are clamped before logarithms (C4). ``time_t [S]`` or ``[B, S]``, ``mask [B, S]``.
    """
    log = lambda logits: jnp.clip(
        jax.nn.log_sigmoid(logits), math.log(PROBABILITY_FLOOR), math.log1p(-PROBABILITY_FLOOR)
    )
    score = jax.nn.sigmoid(class_logits)
    background = 1 - score.max(-1, keepdims=True)
    probability = jnp.concatenate([score, background], -1)
    no_output = jnp.zeros_like(background)
    return ClassDistribution(
        probability / probability.sum(-1, keepdims=True),
        jnp.concatenate([log(class_logits), no_output], -1),
        jnp.concatenate([log(-class_logits), no_output], -1),
        jnp.broadcast_to(time_t, mask.shape),
        mask,
    )


def softmax_distribution(class_logits: Array, time_t: Array, mask: Array) -> ClassDistribution:
    """The softmax of logits ``[B, S, C + 1]``, background last. Probabilities are clamped before logarithms (C4).

    ``time_t [B, S]``, ``mask [B, S]``.
    """
    log_p = jax.nn.log_softmax(class_logits, axis=-1)
    log_in = jnp.clip(log_p, math.log(PROBABILITY_FLOOR), math.log1p(-PROBABILITY_FLOOR))
    # 1 - p of a class with nearly all of the probability is what the others have; the difference would round.
    probability = jnp.exp(log_p)
    likely = probability > 0.5
    others = jnp.where(likely, 0, probability).sum(-1, keepdims=True)
    unlikely = jnp.where(likely, 0, jnp.maximum(probability, PROBABILITY_FLOOR))
    log_out = jnp.where(likely, jnp.log(jnp.maximum(others, PROBABILITY_FLOOR)), jnp.log1p(-unlikely))
    return ClassDistribution(probability, log_in, log_out, time_t, mask)


class SnippetOwners(NamedTuple):
    """Which instance each snippet of each window is of."""

    owner: Array  # [B, n, W] row of the shortest instance that has it; 0 where none has
    owned: Array  # [B, n, W] whether one has
    silent: Array  # [B, n, W] under an ignored instance and in no other


def segments_in_snippets(segments_t: Array, start_t: Array, scale_t: Array) -> Array:
    """Segments ``[B, N, 2]`` in the snippets of each window ``[B, n, N, 2]``: snippet i reaches from i to i + 1.

    ``start_t [B, n]``, ``scale_t [B]``, see :class:`~apl_jax.nn.snippets.Snippets`.
    """
    return (segments_t[:, None] + 0.5 - start_t[..., None, None]) / scale_t[:, None, None, None]


def own_snippets(first: Array, last: Array, targets: Targets, snippet_mask: Array) -> SnippetOwners:
    """The owners of snippets ``snippet_mask [B, n, W]``: the shortest instance, in grid steps, where several lie.

    The instances have the snippets ``first`` to ``last - 1``, ``[B, n, N]``.
    """
    covered = jnp.swapaxes(intervals.within(first, last, snippet_mask.shape[-1]), -1, -2)  # [B, n, W, N]
    length = (targets.segments_t[..., 1] - targets.segments_t[..., 0])[:, None, None]
    teaches = (targets.mask & ~targets.ignore_mask)[:, None, None] & covered
    owned = teaches.any(-1) & snippet_mask
    silent = ((targets.mask & targets.ignore_mask)[:, None, None] & covered).any(-1) & ~owned & snippet_mask
    return SnippetOwners(jnp.where(teaches, length, jnp.inf).argmin(-1), owned, silent)


def point_targets(classes: Array, foreground_mask: Array, silent_mask: Array) -> PointTargets:
    """The :class:`PointTargets` of a head of independent sigmoids: ``classes [B, S, C]`` have no background yet; it is
    where there is no class."""
    with_background = jnp.concatenate([classes, 1 - classes.max(-1, keepdims=True)], -1)
    return PointTargets(with_background, foreground_mask, silent_mask)


def targets_from_detections(found: Detections, threshold: float) -> Targets:
    """The detections whose confidence reaches ``threshold`` as annotations ``[B, K]``: on-line pseudo labels (C8)."""
    mask = found.mask & (found.confidence >= threshold)
    return Targets(found.segments_t, found.labels, mask, jnp.ones_like(found.confidence), jnp.zeros_like(mask))


def kept_detections(kept: Kept, label: Array, score: Array) -> Detections:
    """What NMS kept of M candidates with ``label [M]`` and class ``score [M]``, of a detector without quality heads."""
    one = jnp.ones_like(kept.confidence)
    return Detections(kept.segments_t, label[kept.row], kept.confidence, score[kept.row], one, 0 * one, kept.mask)


def suppression(decoding: NmsSettings) -> dict[str, Any]:
    """The settings that :func:`apl_jax.ops.decoding.keep_best` takes, by name."""
    names = {f.name for f in dataclasses.fields(NmsSettings)} - {"top_k_per_level"}
    return {name: getattr(decoding, name) for name in names}
