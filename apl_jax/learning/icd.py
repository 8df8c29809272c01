"""ICD: instances compared with labelled ones, to drop doubtful pseudo labels and to promote missed ones (APL 3.2).

The memory of labelled instances, the term that trains the discriminator on pairs of them, and the link of the selection
chain that asks it.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.declarations import Checked, number, one_of
from apl_jax.learning.method import INSTANCES, GroupSettings, MethodContext, Term, TermInputs, TermValue
from apl_jax.learning.selection import UNKNOWN_SIMILARITY, Known, Link, register_selection, with_reason
from apl_jax.nn.discriminator import InstanceDiscriminator, build_discriminator
from apl_jax.ops.masking import map_rows
from apl_jax.ops.segments import pool_max, tiou
from apl_jax.structs import Array, Batch, DataFacts, Detections, PseudoLabels, PyTree, Reason, Targets, pytree

DISCRIMINATOR = "discriminator"  # owner of its parameters


@dataclass(frozen=True)
class IcdPairSettings(Checked):
    """Training of the discriminator (APL Eq. 7 to 9)."""

    enabled: bool = True
    hidden: int = number(128, at_least=1, at_most=65_536)  # A16
    pairs: int = number(10, at_least=1, at_most=100_000)  # positive pairs per step, and as many negative ones (A17)
    # apl: two instances of a class (Eq. 8), so that a class with one labelled instance is never in a positive pair |
    # cuts: two random cuts of instances of a class, which may be the same instance
    positives: str = one_of("apl", "cuts")
    learning_rate: float = number(1e-4, above=0, at_most=10)  # own AdamW (A17)
    weight_decay: float = number(1e-4, at_least=0, at_most=10)


@dataclass(frozen=True)
class IcdSettings(Checked):
    """Use of the discriminator (APL Eq. 10)."""

    eliminate: bool = True  # EAP
    promote: bool = True  # MPP
    eliminate_below: float = number(0.3, at_least=0, at_most=1)  # tau_icd
    promote_above: float = number(0.7, at_least=0, at_most=1)  # varsigma_icd
    # largest tIoU of a promoted candidate with a surer label of its class; 1 = any (APL)
    promote_overlap: float = number(1.0, at_least=0, at_most=1)
    symmetric: bool = True  # average D(a,b) and D(b,a) (A18)
    # labelled instances that a class must have: with fewer, its detections are unknown (.5), and nothing is dropped or
    # promoted; 1 = any (APL)
    least_instances: int = number(1, at_least=1, at_most=1_000_000)


PARTS = 8  # equal parts of an instance, of which cuts are made
_SHORTEST_CUT = PARTS // 2


@pytree
class InstanceBank:
    """All M labelled instances: max-pooled raw features, classes, and which rows are real."""

    features: Array  # [M, D]
    labels: Array  # [M] int32
    mask: Array  # [M] bool
    parts: Array  # [M, PARTS, D] the same of each part; their maximum is ``features``


@pytree
class ClassMembers:
    """Which rows of a bank are of each class; P is the size of the largest."""

    rows: Array  # [C, P] int32
    mask: Array  # [C, P] bool


def pool_instances(videos: Batch) -> Array:
    """Max-pooled features of the parts of all annotated instances of B videos: ``[B, N, PARTS, D]``."""

    def one_video(row: tuple[Array, Array, Array]) -> Array:
        features, segments, length = row
        ends = jnp.linspace(segments[:, 0], segments[:, 1], PARTS + 1, axis=-1)  # [N, PARTS + 1]
        parts = jnp.stack([ends[:, :-1], ends[:, 1:]], -1).reshape(-1, 2)
        return pool_max(features, parts, length).reshape(len(segments), PARTS, -1)

    return jax.lax.map(one_video, (videos.features, videos.targets.segments_t, videos.mask.sum(-1)))


def build_bank(pooled: Array, targets: Targets) -> InstanceBank:
    """The memory of a whole labelled set: :func:`pool_instances` of its V videos, and their targets."""
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    mask = flat(targets.mask & ~targets.ignore_mask)
    return InstanceBank(flat(pooled.max(2)), flat(targets.labels), mask, flat(pooled))


def random_cuts(key: Array, parts: Array) -> Array:
    """Max-pooled features ``[P, D]`` of a random cut of each of P instances ``[P, PARTS, D]``: half of it, or more."""
    length_key, start_key = jax.random.split(key)
    length = jax.random.randint(length_key, (len(parts), 1), _SHORTEST_CUT, PARTS + 1)
    start = jnp.floor(jax.random.uniform(start_key, (len(parts), 1)) * (PARTS - length + 1)).astype(jnp.int32)
    place = jnp.arange(PARTS)
    inside = (place >= start) & (place < start + length)
    return jnp.where(inside[..., None], parts, -jnp.inf).max(1)


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


def pair_loss(
    key: Array, params: PyTree, bank: InstanceBank, discriminator: InstanceDiscriminator, settings: IcdPairSettings
) -> tuple[Array, Array]:
    """L_icd on as many positive as negative pairs (APL Eq. 8), drawn from the memory of all labelled instances (A17).

    Each anchor meets one other instance of its class and one of another class. An anchor alone in its class, or in a
    set of a single class, contributes only the pair that exists. Both orders of a pair are trained. With ``positives``
    "cuts" every pair is of random cuts of its instances, and the other one of an anchor's class may be itself.

    Returns:
        The loss and the fraction of pairs judged right.
    """
    anchor_key, positive_key, negative_key = jax.random.split(key, 3)
    cuts, count_of_pairs = settings.positives == "cuts", settings.pairs
    any_row = jnp.where(bank.mask, 0.0, -jnp.inf)
    anchor = jax.random.categorical(anchor_key, any_row, shape=(count_of_pairs,))
    same = bank.labels[anchor][:, None] == bank.labels[None, :]
    itself = jnp.arange(len(bank.mask)) == anchor[:, None]
    partner_masks = {1.0: bank.mask & same & (cuts | ~itself), 0.0: bank.mask & ~same}

    def features_of(rows: Array, cut_key: Array) -> Array:
        return random_cuts(cut_key, bank.parts[rows]) if cuts else bank.features[rows]

    total, right, count = jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
    for (target, mask), draw_key in zip(partner_masks.items(), (positive_key, negative_key), strict=True):
        partner = jax.random.categorical(draw_key, jnp.where(mask, 0.0, -1e9))
        exists = mask.any(-1)
        both = (
            features_of(anchor, jax.random.fold_in(draw_key, 1)),
            features_of(partner, jax.random.fold_in(draw_key, 2)),
        )
        for left, other in (both, both[::-1]):
            logits = discriminator.logits(params, left, other)
            loss = jax.nn.softplus(logits) - target * logits
            total += jnp.where(exists, loss, 0.0).sum()
            right += jnp.where(exists, (logits > 0) == (target > 0.5), False).sum()
            count += exists.sum()
    # Eq. 8 adds the expectation over positive pairs to that over negative ones: twice the mean over both.
    return 2 * total / jnp.maximum(count, 1), right / jnp.maximum(count, 1)


def icd_pairs(context: MethodContext, settings: IcdPairSettings) -> Term:
    """The discriminator's loss on pairs of labelled instances; it owns the discriminator and its optimiser."""
    discriminator = build_discriminator(hidden=settings.hidden, symmetric=True)

    def init(key: Array) -> tuple[dict[str, PyTree], PyTree]:
        return {DISCRIMINATOR: discriminator.init(key, context.facts.feature_width)}, ()

    def loss(inputs: TermInputs) -> TermValue:
        params, bank = inputs.params[DISCRIMINATOR], inputs.constants[INSTANCES]
        value, accuracy = pair_loss(inputs.key, params, bank, discriminator, settings)
        return TermValue(value, {"icd/loss": value, "icd/accuracy": accuracy})

    group = GroupSettings(settings.learning_rate, settings.weight_decay)
    return Term(loss, (INSTANCES,), init, group=group)


def mean_similarity(
    known: Known, videos: Batch, detections: Detections, discriminator: InstanceDiscriminator, least: int = 1
) -> Array:
    """Similarity S ``[B, K]`` of each detection to all labelled instances of its class (APL Eq. 10).

    A class with fewer than ``least`` labelled instances gives .5, at which nothing is dropped or promoted (A19). One
    video is asked about at a time, so that memory stays bounded.
    """
    params, members = known.params[DISCRIMINATOR], known.members
    projected = discriminator.project(params, known.instances.features)

    def one_video(row: tuple[Array, Array, Array, Array]) -> Array:
        features, length, segments, classes = row
        asked = discriminator.project(params, pool_max(features, segments, length))
        each = jax.tree.map(lambda x: x[:, None], asked)
        related = jax.tree.map(lambda x: x[members.rows[classes]], projected)  # [K, P, ...]
        mask = members.mask[classes]
        pairs = jnp.where(mask, discriminator.compare(params, each, related), 0.0)
        mean = pairs.sum(-1) / jnp.maximum(mask.sum(-1), 1)
        return jnp.where(mask.sum(-1) >= least, mean, UNKNOWN_SIMILARITY)

    rows = videos.features, videos.mask.sum(-1), detections.segments_t, detections.labels
    return map_rows(jax.vmap(one_video), rows, jax.device_count())


def build_icd(settings: IcdSettings, facts: DataFacts) -> Link:
    """Drops kept labels that resemble no labelled instance (EAP), promotes candidates that do (MPP)."""
    del facts

    def observe(known: Known, videos: Batch, detections: Detections) -> Array:
        hidden = known.params[DISCRIMINATOR]["kernel"].shape[1]
        discriminator = build_discriminator(hidden=hidden, symmetric=settings.symmetric)
        return mean_similarity(known, videos, detections, discriminator, settings.least_instances)

    def select(state: PyTree, labels: PseudoLabels, similarity: Array) -> tuple[PyTree, PseudoLabels]:
        return state, refine(labels, similarity, settings)

    return Link(tuple, observe, select, (DISCRIMINATOR,))


def refine(labels: PseudoLabels, similarity: Array, settings: IcdSettings) -> PseudoLabels:
    """What ICD makes of a rule's decision (APL 3.2).

    ``similarity`` ``[V, K]`` is the mean similarity to labelled instances of the predicted class. Boundaries and class
    stay as predicted (A22). With ``promote_overlap`` below 1, a candidate that overlaps a surer label of its class by
    more is not promoted: soft-NMS leaves decayed duplicates of the labels among the candidates, and those are similar
    to labelled instances because the labels are.
    """
    kept, candidate = labels.reason == Reason.KEPT, labels.reason == Reason.CANDIDATE
    drop = kept & (similarity < settings.eliminate_below) & settings.eliminate
    promote = candidate & (similarity > settings.promote_above) & settings.promote
    if settings.promote_overlap < 1:
        promote &= ~_overlaps_surer(labels.detections, kept | promote, settings.promote_overlap)
    reason = jnp.where(drop, Reason.DROPPED, jnp.where(promote, Reason.PROMOTED, labels.reason))
    return with_reason(labels, reason, similarity=similarity)


def _overlaps_surer(detections: Detections, label_mask: Array, limit: float) -> Array:
    """Which detections ``[V, K]`` overlap a label of their class and of higher confidence by a tIoU above ``limit``."""
    segments, labels, confidence = detections.segments_t, detections.labels, detections.confidence
    rival = label_mask[:, None, :] & (labels[:, None, :] == labels[..., None])
    rival &= confidence[:, None, :] > confidence[..., None]
    return (rival & (tiou(segments[:, :, None], segments[:, None]) > limit)).any(-1)


register_selection("icd", IcdSettings, build_icd)
