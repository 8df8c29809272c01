"""ICD at work: the memory of labelled instances, the pairs it is trained on, and the similarity it gives (APL 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from apl_jax.nn.discriminator import InstanceDiscriminator
from apl_jax.ops.masking import map_rows
from apl_jax.ops.segments import pool_max
from apl_jax.settings import DiscriminatorSettings
from apl_jax.structs import Array, Batch, PyTree, Targets, pytree


@pytree
class InstanceBank:
    """All M labelled instances: max-pooled raw features, classes, and which rows are real."""

    features: Array  # [M, D]
    labels: Array  # [M] int32
    mask: Array  # [M] bool


def pool_instances(videos: Batch) -> Array:
    """Max-pooled features of all annotated instances of B videos: ``[B, N, D]``."""
    rows = videos.features, videos.targets.segments_t, videos.mask.sum(-1)
    return jax.lax.map(lambda row: pool_max(row[0], row[1], row[2]), rows)


def build_bank(pooled: Array, targets: Targets) -> InstanceBank:
    """The memory of a whole labelled set: :func:`pool_instances` of its V videos, ``[V, N, D]``, and their targets."""
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    return InstanceBank(flat(pooled), flat(targets.labels), flat(targets.mask & ~targets.ignore_mask))


def discriminator_loss(
    key: Array,
    params: PyTree,
    bank: InstanceBank,
    discriminator: InstanceDiscriminator,
    settings: DiscriminatorSettings,
) -> tuple[Array, Array]:
    """L_icd on as many positive as negative pairs (APL Eq. 8), drawn from the memory of all labelled instances (A17).

    Each anchor meets one other instance of its class and one of another class. An anchor alone in its class, or in a
    set of a single class, contributes only the pair that exists. Both orders of a pair are trained.

    Returns:
        The loss and the fraction of pairs judged right.
    """
    anchor_key, positive_key, negative_key = jax.random.split(key, 3)
    any_row = jnp.where(bank.mask, 0.0, -jnp.inf)
    anchor = jax.random.categorical(anchor_key, any_row, shape=(settings.pairs,))
    same = bank.labels[anchor][:, None] == bank.labels[None, :]
    partner_masks = {
        1.0: bank.mask & same & (jnp.arange(len(bank.mask)) != anchor[:, None]),
        0.0: bank.mask & ~same,
    }
    total, right, count = jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
    for (target, mask), draw_key in zip(partner_masks.items(), (positive_key, negative_key), strict=True):
        partner = jax.random.categorical(draw_key, jnp.where(mask, 0.0, -1e9))
        exists = mask.any(-1)
        for left, right_row in ((anchor, partner), (partner, anchor)):
            logits = discriminator.logits(params, bank.features[left], bank.features[right_row])
            loss = jax.nn.softplus(logits) - target * logits
            total += jnp.where(exists, loss, 0.0).sum()
            right += jnp.where(exists, (logits > 0) == (target > 0.5), False).sum()
            count += exists.sum()
    # Eq. 8 adds the expectation over positive pairs to that over negative ones: twice the mean over both.
    return 2 * total / jnp.maximum(count, 1), right / jnp.maximum(count, 1)


def mean_similarity(
    params: PyTree,
    bank: InstanceBank,
    unlabelled: Batch,
    segments_t: Array,
    labels: Array,
    discriminator: InstanceDiscriminator,
    settings: DiscriminatorSettings,
    batch: int = 1,
) -> Array:
    """Similarity S ``[V, K]`` of each detection to all labelled instances of its class (APL Eq. 10).

    A class without a labelled instance gives ``unknown_similarity``, at which nothing is dropped or promoted (A19).
    ``batch`` videos are asked about at a time: one per device is enough, each meets the whole bank.
    """

    def one_video(row: tuple[Array, Array, Array, Array]) -> Array:
        features, length, segments, classes = row
        pooled = pool_max(features, segments, length)
        pairs = discriminator.similarity(params, pooled[:, None], bank.features[None])  # [K, M]
        related = (classes[:, None] == bank.labels[None, :]) & bank.mask
        mean = jnp.where(related, pairs, 0.0).sum(-1) / jnp.maximum(related.sum(-1), 1)
        return jnp.where(related.any(-1), mean, settings.unknown_similarity)

    return map_rows(jax.vmap(one_video), (unlabelled.features, unlabelled.mask.sum(-1), segments_t, labels), batch)
