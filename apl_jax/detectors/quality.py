"""ALQA: what a detector of points makes of predicted localisation quality (APL 3.1, Eq. 1 to 5).

A point predicts how well its own segment will fit, as tIoU and tND (normalised centre distance). Their difference is
the *reliability*, and the class loss trains the joint score, reliability times class probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from apl_jax.declarations import Checked, number, one_of
from apl_jax.nn.quality import QUALITY_BRANCHES
from apl_jax.ops import losses
from apl_jax.structs import Array


@dataclass(frozen=True)
class QualitySettings(Checked):
    """The localisation-reliability heads and the joint score (APL 3.1, Eq. 1 to 5)."""

    # tiou_tnd (two branches) | diou | tiou (one, Table 3) | none (the detector without ALQA)
    branches: str = one_of("tiou_tnd", "diou", "tiou", "none")
    loss: str = one_of("bce", "kl")  # Table S1
    soft_focal: str = one_of("qfl", "af")  # quality focal | ActionFormer's focal form on the joint probability (A4)
    weight: float = number(0.1, at_least=0, at_most=1e6)  # lambda_locq
    epsilon: float = number(1e-4, above=0, below=1)  # floor of tIoU - tND (A3)
    tiou_bias: float = number(0.0, at_least=-50, at_most=50)  # logit at initialisation (A3)
    tnd_bias: float = number(-3.0, at_least=-50, at_most=50)  # a neutral bias would make the joint score zero (A3)
    background_gradient: bool = True  # let the class loss at background points reach the quality heads (A6b)


def joint_quality(quality_logits: Array, q: QualitySettings) -> tuple[Array, Array, Array]:
    """tIoU, tND and reliability ``max(tIoU - tND, epsilon)`` ``[B, P]`` from logits ``[B, P, Q]`` (APL Eq. 2, 4).

    With one branch (Table 3) its output is the reliability itself and stands in the tIoU column.
    """
    shape = quality_logits.shape[:-1]
    if q.branches == "none":
        return jnp.ones(shape), jnp.zeros(shape), jnp.ones(shape)
    probability = jax.nn.sigmoid(quality_logits)
    tiou = probability[..., 0]
    tnd = probability[..., 1] if q.branches == "tiou_tnd" else jnp.zeros(shape)
    return tiou, tnd, jnp.maximum(tiou - tnd, q.epsilon)


def true_quality(tiou: Array, tnd: Array, q: QualitySettings) -> Array:
    """The reliability that a segment of this true tIoU and tND has, of the form that ``branches`` predict."""
    return tiou if q.branches == "tiou" else jnp.maximum(tiou - tnd, q.epsilon)


def joint_class_loss(
    class_logits: Array, quality_logits: Array, classes: Array, target_quality: Array, q: QualitySettings,
    *, focal_alpha: float, focal_gamma: float,
) -> Array:  # fmt: skip
    """Loss of the joint score per point and class ``[B, P, C]`` (APL Eq. 5).

    ``classes [B, P, C]`` in {0, 1} · ``target_quality [B, P, S]`` in [0, 1], the true reliability of the point's own
    segment (S = 1), or of that of each class (S = C) · ``focal_alpha``, ``focal_gamma``: of ActionFormer's focal form.
    """
    _, _, reliability = joint_quality(quality_logits, q)
    if not q.background_gradient:
        background = classes.max(-1) == 0
        reliability = jnp.where(background, jax.lax.stop_gradient(reliability), reliability)
    joint = reliability[..., None] * jax.nn.sigmoid(class_logits)
    soft_label = classes * target_quality
    if q.soft_focal == "qfl":
        return losses.quality_focal(joint, soft_label)
    return losses.soft_focal(joint, soft_label, alpha=focal_alpha, gamma=focal_gamma)


def quality_loss(quality_logits: Array, tiou: Array, tnd: Array, q: QualitySettings) -> Array:
    """L_locq per segment ``[B, P, S]``: predicted quality, logits ``[B, P, 1, Q]``, against the true ``tiou``, ``tnd``
    ``[B, P, S]`` (APL Eq. 3)."""
    truth = {"tiou": tiou, "tnd": tnd, "diou": jnp.maximum(tiou - tnd, q.epsilon)}
    element = losses.binary_cross_entropy if q.loss == "bce" else losses.pointwise_kl
    probability = jnp.broadcast_to(jax.nn.sigmoid(quality_logits), (*tiou.shape, quality_logits.shape[-1]))
    parts = [element(probability[..., i], truth[name]) for i, name in enumerate(QUALITY_BRANCHES[q.branches])]
    return sum(parts, jnp.zeros_like(tiou))
