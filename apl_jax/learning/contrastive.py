"""ACP: action-aware contrastive pre-training, coarse within a video and fine across videos (APL 3.3, Eq. 11)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from apl_jax.ops.kmeans import kmeans
from apl_jax.ops.losses import info_nce
from apl_jax.ops.segments import frame_labels
from apl_jax.settings import ContrastiveSettings
from apl_jax.structs import Array, Batch


def sample_frames(key: Array, mask: Array, partitions: int) -> tuple[Array, Array]:
    """One random valid step from each of N equal segments of each video (mask ``[B, T]``).

    Returns rows ``[B, N]`` int32 and their mask; a video shorter than N leaves the segments without a step out.
    """
    length = mask.sum(-1, keepdims=True)
    edge = jnp.arange(partitions + 1) * length // partitions
    first, size = edge[:, :-1], jnp.diff(edge, axis=-1)
    fraction = jax.random.uniform(key, first.shape)
    rows = first + jnp.floor(fraction * size).astype(jnp.int32)
    return jnp.minimum(rows, mask.shape[1] - 1), size > 0


def contrastive_loss(
    key: Array,
    represent: Callable[[Array], Array],
    batch: Batch,
    settings: ContrastiveSettings,
    num_classes: int | None = None,
) -> tuple[Array, dict[str, Array]]:
    """L_acp = coarse + fine contrast of sampled frames, over the global batch.

    Without ``num_classes`` the labels are k-means clusters of the sampled frames' own L2-normalised input features:
    two per video for the coarse contrast, B over each group of videos for the fine one. With it they are the batch's
    annotated (or pseudo-annotated) classes: action against background, and class against class, background being one.

    Args:
        represent: a detector's features ``[B, N, R]`` of grid steps ``[B, N]``.
        batch: features for clustering, targets for classes; steps under ignored instances are left out.

    Returns:
        The loss and its two terms.
    """
    frame_key, coarse_key, fine_key = jax.random.split(key, 3)
    rows, mask = sample_frames(frame_key, batch.mask, settings.partitions)
    take = lambda x: jnp.take_along_axis(x, rows.reshape(*rows.shape, *[1] * (x.ndim - 2)), axis=1)
    frames = represent(rows)
    videos, count = rows.shape
    group = settings.fine_group if 0 < settings.fine_group < videos else videos
    if videos % group:
        raise ValueError(f"contrastive.fine_group: found {group}, expected a divisor of the batch ({videos} videos)")
    regroup = lambda x: x.reshape(videos // group, group * count, *x.shape[2:])

    if num_classes is None:
        inputs = take(batch.features)
        inputs = inputs / jnp.sqrt(jnp.maximum((inputs**2).sum(-1, keepdims=True), 1e-12))
        cluster = lambda key, x, m, k: jax.vmap(
            lambda key, x, m: kmeans(key, x, m, clusters=k, iterations=settings.kmeans_iterations).labels
        )(jax.random.split(key, len(x)), x, m)
        coarse_labels = cluster(coarse_key, inputs, mask, settings.coarse_clusters)
        fine_labels = cluster(fine_key, regroup(inputs), regroup(mask), settings.fine_clusters)
    else:
        labels, ignored = _annotated_frames(batch, num_classes)
        mask = mask & ~take(ignored)
        coarse_labels = (take(labels) < num_classes).astype(jnp.int32)
        fine_labels = regroup(take(labels))

    contrast = jax.vmap(
        lambda x, y, m: info_nce(x, y, m, temperature=settings.temperature, exclude_self=settings.exclude_self)
    )
    zero = jnp.zeros(())
    coarse = contrast(frames, coarse_labels, mask).mean() if settings.coarse else zero
    fine = contrast(regroup(frames), fine_labels, regroup(mask)).mean() if settings.fine else zero
    return coarse + fine, {"contrast_coarse": coarse, "contrast_fine": fine}


def _annotated_frames(batch: Batch, num_classes: int) -> tuple[Array, Array]:
    """Class of every step ``[B, T]`` (background = ``num_classes``) and which steps lie under an ignored instance."""
    targets, steps = batch.targets, batch.mask.shape[1]
    label = jax.vmap(lambda s, y, m: frame_labels(s, y, m, steps, num_classes))
    labels = label(targets.segments_t, targets.labels, targets.mask & ~targets.ignore_mask)
    under = label(targets.segments_t, jnp.zeros_like(targets.labels), targets.mask & targets.ignore_mask) == 0
    return labels, under & (labels == num_classes)
