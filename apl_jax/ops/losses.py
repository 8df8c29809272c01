"""Losses, one value per element; reduction and weighting belong to the caller."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PROBABILITY_FLOOR = 1e-6  # probabilities are clamped to [floor, 1 - floor] before a logarithm (spec A3)


def _clamp(p: jax.Array) -> jax.Array:
    return jnp.clip(p, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)


def binary_cross_entropy(p: Float[Array, "*N"], y: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """-y log p - (1 - y) log(1 - p) of probabilities ``p`` and soft targets ``y``, both in [0, 1] (APL Eq. 3)."""
    p = _clamp(p)
    return -(y * jnp.log(p) + (1 - y) * jnp.log1p(-p))


def pointwise_kl(p: Float[Array, "*N"], y: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """y (log y - log p), the element that deep-learning libraries call the KL divergence (APL Table S1).

    The divergence between the two Bernoulli laws would differ from cross entropy by a constant of y alone, so it could
    not have given the different mAP that the table reports; this form does, because it does not punish overestimation.
    """
    return y * (jnp.log(_clamp(y)) - jnp.log(_clamp(p)))


def sigmoid_focal(
    logits: Float[Array, "*N"], targets: Float[Array, "*N"], *, alpha: float, gamma: float
) -> Float[Array, "*N"]:
    """Focal loss of logits against targets in [0, 1], which label smoothing may have softened (spec 1.7)."""
    p = jax.nn.sigmoid(logits)
    # log(sigmoid) directly: exact for large logits, where a clamped probability would flatten the gradient.
    cross_entropy = jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return _focal_weight(p, targets, alpha, gamma) * cross_entropy


def soft_focal(p: Float[Array, "*N"], y: Float[Array, "*N"], *, alpha: float, gamma: float) -> Float[Array, "*N"]:
    """ActionFormer's focal form applied to a probability and a soft label (APL Eq. 5 read literally; spec A4).

    Biased: for 0 < y < 1 its minimum over p is not at y (y = .7 gives p = .878).
    """
    return _focal_weight(p, y, alpha, gamma) * binary_cross_entropy(p, y)


def _focal_weight(p: jax.Array, y: jax.Array, alpha: float, gamma: float) -> jax.Array:
    p_true = p * y + (1 - p) * (1 - y)
    return (alpha * y + (1 - alpha) * (1 - y)) * (1 - p_true) ** gamma


def quality_focal(p: Float[Array, "*N"], y: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Quality focal loss (y - p)^2 BCE(p, y), whose minimum over p is at y (Li et al. 2020; spec A4)."""
    return (y - p) ** 2 * binary_cross_entropy(p, y)


def smooth_l1(difference: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Half the square of a difference up to 1, beyond it the absolute value less one half."""
    size = jnp.abs(difference)
    return jnp.where(size < 1, 0.5 * size**2, size - 0.5)


def info_nce(
    vectors: Float[Array, "n d"],
    labels: Int[Array, " n"],
    mask: Bool[Array, " n"],
    *,
    temperature: float,
    exclude_self: bool,
) -> Float[Array, ""]:
    """Supervised InfoNCE over all pairs of frames (APL Eq. 11): the mean over positive pairs, 0 when there is none.

    Each positive pair competes against all negatives of its anchor. Anchors without a positive or without a negative
    take no part. ``exclude_self`` leaves the pair (i, i) out, which the equation as printed counts (spec B4).

    Args:
        vectors: any length; normalised here.
        labels: cluster or class of each frame.
        mask: frames that count.
    """
    norm = jnp.sqrt(jnp.maximum((vectors**2).sum(-1, keepdims=True), 1e-12))
    unit = vectors / norm
    similarity = jnp.matmul(unit, unit.T) / temperature
    pair_mask = mask[:, None] & mask[None, :]
    same = labels[:, None] == labels[None, :]
    negative = pair_mask & ~same
    positive = pair_mask & same
    if exclude_self:
        positive &= ~jnp.eye(len(labels), dtype=bool)
    positive &= negative.any(-1, keepdims=True)
    negatives = jax.nn.logsumexp(jnp.where(negative, similarity, -1e9), axis=-1, keepdims=True)
    # -log(e^s / (e^s + sum of negatives)) = softplus(log(sum of negatives) - s)
    loss = jnp.where(positive, jax.nn.softplus(negatives - similarity), 0.0)
    return loss.sum() / jnp.maximum(positive.sum(), 1)
