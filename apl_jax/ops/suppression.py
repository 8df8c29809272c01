"""Non-maximum suppression as a fixed number of masked steps, unbatched; ``vmap`` it over videos."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Picks(NamedTuple):
    """What NMS kept, in the order of picking, which is also the order of falling score."""

    row: Int[Array, " K"]  # row of the candidate
    score: Float[Array, " K"]  # its score when picked, decayed by what was picked before it
    mask: Bool[Array, " K"]


def _pairwise_tiou(one: Float[Array, " 2"], many: Float[Array, "M 2"]) -> Float[Array, " M"]:
    # The reference adds 1e-6 to every length, which also settles the case of two empty segments.
    inner = jnp.maximum(jnp.minimum(one[1], many[:, 1]) - jnp.maximum(one[0], many[:, 0]), 0)
    lengths = (one[1] - one[0] + 1e-6) + (many[:, 1] - many[:, 0] + 1e-6)
    return inner / (lengths - inner)


def suppress(
    segments: Float[Array, "M 2"],
    scores: Float[Array, " M"],
    labels: Int[Array, " M"],
    mask: Bool[Array, " M"],
    *,
    method: str,
    sigma: float,
    iou_threshold: float,
    min_score: float,
    max_detections: int,
    class_wise: bool,
    decay_above: tuple[float, float] = (0.0, 0.0),
    longest: Float[Array, ""] | float = 1.0,
) -> Picks:
    """Greedy NMS: Gaussian soft-NMS (``method="gaussian"``) or ``"hard"`` (spec 1.9).

    Class-wise suppression needs no loop over classes: a pick decays candidates of its own class only, and since scores
    only fall, picking the best of all classes each time merges the classes' own sequences in sorted order. There is no
    ``min_score`` filter before the first pick of a class in the soft form, as in the reference; the hard form has one.

    Args:
        segments, scores, labels, mask: M candidates; any time unit.
        max_detections: K, the number of picks.
        decay_above: of the soft form: the tIoU above which a pick decays others, if the pick is very short, and if it
            is as long as ``longest``; linear between (BMN's rule, spec 2.7).
        longest: length of the video, in the unit of ``segments``.

    Returns:
        K picks; rows beyond the last candidate have a false mask.
    """
    alive = mask & (scores > min_score) if method == "hard" else mask
    remaining = jnp.where(alive, scores, -jnp.inf)

    def pick(remaining: jax.Array, _: None) -> tuple[jax.Array, Picks]:
        best = jnp.argmax(remaining)
        best_score = remaining[best]
        found = best_score > -jnp.inf
        overlap = _pairwise_tiou(segments[best], segments)
        related = labels == labels[best] if class_wise else jnp.ones_like(mask)
        if method == "hard":
            survives = overlap < iou_threshold
            decayed = remaining
        else:
            share = (segments[best, 1] - segments[best, 0]) / longest
            near = overlap > decay_above[0] + (decay_above[1] - decay_above[0]) * share
            decayed = jnp.where(near, remaining * jnp.exp(-(overlap**2) / sigma), remaining)
            survives = decayed >= min_score
        updated = jnp.where(survives, decayed, -jnp.inf)
        remaining = jnp.where(found & related, updated, remaining).at[best].set(-jnp.inf)
        return remaining, Picks(best, jnp.where(found, best_score, 0.0), found)

    return jax.lax.scan(pick, remaining, length=max_detections)[1]


def vote(
    picked: Float[Array, "K 2"],
    segments: Float[Array, "M 2"],
    scores: Float[Array, " M"],
    mask: Bool[Array, " M"],
    threshold: float,
) -> Float[Array, "K 2"]:
    """Replaces each picked segment by the mean, weighted by score x tIoU, of all candidates that overlap it enough."""
    overlap = jax.vmap(_pairwise_tiou, in_axes=(0, None))(picked, segments)
    weight = jnp.where((overlap >= threshold) & mask, scores * overlap, 0.0)
    total = weight.sum(-1, keepdims=True)
    return jnp.where(total > 0, weight @ segments / jnp.maximum(total, 1e-12), picked)
