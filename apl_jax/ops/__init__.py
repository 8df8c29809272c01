"""Operations on arrays: pure, jitted where they are used, without state; each can be called by itself."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apl_jax.ops.clustering import Clusters, kmeans
from apl_jax.ops.segments import tiou
from apl_jax.ops.suppression import Picks, suppress
from apl_jax.settings import NmsSettings

__all__ = ["Clusters", "Picks", "kmeans", "nms", "tiou"]


def nms(
    segments: Float[Array, "M 2"],
    scores: Float[Array, " M"],
    labels: Int[Array, " M"],
    mask: Bool[Array, " M"] | None = None,
    settings: NmsSettings | None = None,
) -> Picks:
    """Non-maximum suppression of the candidates of one video (spec 1.9); ``vmap`` it over videos.

    Args:
        segments: start and end of M candidates, in any unit of time.
        scores: in [0, 1].
        labels: class of each; suppression is within a class unless ``settings.class_wise`` is False.
        mask: which candidates count; None means all.
        settings: method, sigma, thresholds and K; None means the defaults (Gaussian soft-NMS).

    Returns:
        K picks by falling score: row of the candidate, score when picked, and which of the K there are.
    """
    s = settings or NmsSettings()
    segments, scores, labels = jnp.asarray(segments), jnp.asarray(scores), jnp.asarray(labels)
    counts = jnp.ones(scores.shape, bool) if mask is None else jnp.asarray(mask)
    return suppress(
        segments, scores, labels, counts,
        method=s.method, sigma=s.sigma, iou_threshold=s.iou_threshold, min_score=s.min_score,
        max_detections=s.max_detections, class_wise=s.class_wise,
    )  # fmt: skip
