"""ICD at work: the memory of labelled instances, the pairs it is trained on, and the similarity it gives (APL 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

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


@pytree
class ClassMembers:
    """Which rows of a bank are of each class; P is the size of the largest."""

    rows: Array  # [C, P] int32
    mask: Array  # [C, P] bool


def pool_instances(videos: Batch) -> Array:
    """Max-pooled features of all annotated instances of B videos: ``[B, N, D]``."""
    rows = videos.features, videos.targets.segments_t, videos.mask.sum(-1)
    return jax.lax.map(lambda row: pool_max(row[0], row[1], row[2]), rows)


def build_bank(pooled: Array, targets: Targets) -> InstanceBank:
    """The memory of a whole labelled set: :func:`pool_instances` of its V videos, ``[V, N, D]``, and their targets."""
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    return InstanceBank(flat(pooled), flat(targets.labels), flat(targets.mask & ~targets.ignore_mask))


def class_members(bank: InstanceBank, classes: int) -> ClassMembers:
    """The real rows of a bank by class, found on the host, for P is a shape.

    Of ActivityNet's bank with 10 % labels a detection concerns one row in 3,000: rows are padded to the most instances
    that a video has, and classes are many.
    """
    labels, mask = np.asarray(bank.labels), np.asarray(bank.mask)
    members = [np.flatnonzero(mask & (labels == label)) for label in range(classes)]
    sizes = np.array([len(rows) for rows in members])
    most = max(int(sizes.max()), 1)
    filled = np.stack([np.pad(rows, (0, most - len(rows))) for rows in members])
    return ClassMembers(jnp.asarray(filled, jnp.int32), jnp.asarray(np.arange(most) < sizes[:, None]))


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
    members: ClassMembers,
    unlabelled: Batch,
    segments_t: Array,
    labels: Array,
    discriminator: InstanceDiscriminator,
    settings: DiscriminatorSettings,
    batch: int = 1,
) -> Array:
    """Similarity S ``[V, K]`` of each detection to all labelled instances of its class (APL Eq. 10).

    A class without a labelled instance gives ``unknown_similarity``, at which nothing is dropped or promoted (A19).
    ``members`` are the bank's (:func:`class_members`). ``batch`` videos are asked about at a time.
    """
    known = discriminator.project(params, bank.features)

    def one_video(row: tuple[Array, Array, Array, Array]) -> Array:
        features, length, segments, classes = row
        asked = discriminator.project(params, pool_max(features, segments, length))
        each = jax.tree.map(lambda x: x[:, None], asked)
        related = jax.tree.map(lambda x: x[members.rows[classes]], known)  # [K, P, ...]
        mask = members.mask[classes]
        pairs = jnp.where(mask, discriminator.compare(params, each, related), 0.0)
        mean = pairs.sum(-1) / jnp.maximum(mask.sum(-1), 1)
        return jnp.where(mask.any(-1), mean, settings.unknown_similarity)

    return map_rows(jax.vmap(one_video), (unlabelled.features, unlabelled.mask.sum(-1), segments_t, labels), batch)
