"""Pieces that several detectors build their record from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import ClassDistribution, PointTargets
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
