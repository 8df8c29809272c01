"""What P-GCN's proposals are taught: which kind each of them is, and which are drawn in a step (spec 5.1, 5.2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.detectors.pgcn_outputs import PgcnOutputs
from apl_jax.detectors.pgcn_settings import PgcnSettings
from apl_jax.ops import intervals
from apl_jax.ops.segments import tiou
from apl_jax.structs import Array, Targets


class ProposalTargets(NamedTuple):
    """The kind of each proposal, and the instance that it overlaps most."""

    foreground_mask: Array  # [B, K]
    incomplete_mask: Array  # [B, K]
    background_mask: Array  # [B, K]
    label: Array  # [B, K] int32, class of the instance
    segment_t: Array  # [B, K, 2], the instance
    weight: Array  # [B, K], how much the instance teaches; 1 for background


class Samples(NamedTuple):
    """How often each proposal is drawn as each kind: weights ``[B, K]``, whose sum over a video is the number of its
    samples of that kind, or 0 where it has no such proposal."""

    foreground: Array
    incomplete: Array
    background: Array
    filled: Array  # foreground in the places of kinds that are missing, in the public code
    hard: Array  # incomplete, and foreground in their places: what competes to be the hardest negative


def assign_proposals(outputs: PgcnOutputs, targets: Targets, settings: PgcnSettings) -> ProposalTargets:
    """Kinds by the overlap with instances (spec 5.1, *Sampling*); the instance is the one of largest tIoU.

    An ignored instance teaches nothing. A proposal that overlaps it more than any other instance, and is not
    foreground, is of no kind: what is under it may be an action (spec 5.2, 5).
    """
    s = settings
    proposals = outputs.segments_t[:, :, None]  # [B, K, 1, 2]
    instances = targets.segments_t[:, None]
    overlap = jnp.where(targets.mask[:, None], tiou(proposals, instances), 0)  # [B, K, N]
    shared = jnp.minimum(proposals[..., 1], instances[..., 1]) - jnp.maximum(proposals[..., 0], instances[..., 0])
    length = proposals[..., 1] - proposals[..., 0]
    inside = jnp.where(targets.mask[:, None], jnp.maximum(shared, 0) / jnp.maximum(length, 1e-6), 0)
    ignored = targets.ignore_mask[:, None]
    of = lambda x, chosen: jnp.where(chosen, x, 0).max(-1)
    best, best_ignored = of(overlap, ~ignored), of(overlap, ignored)
    owner = jnp.where(ignored, -1, overlap).argmax(-1)

    real = outputs.proposal_mask
    foreground = real & (best > s.foreground_tiou)
    hidden = (of(inside, ignored) > s.incomplete_overlap) & (best_ignored >= best)
    eligible = real & ~foreground & ~hidden
    incomplete = eligible & (best < s.incomplete_tiou) & (of(inside, ~ignored) > s.incomplete_overlap)
    coverage = length[..., 0] / jnp.maximum(outputs.lengths, 1)[:, None]
    background = eligible & ~incomplete & (best < s.background_tiou) & (coverage > s.background_coverage)
    of_owner = lambda x: jnp.take_along_axis(x, owner, axis=1)
    return ProposalTargets(
        foreground,
        incomplete,
        background,
        of_owner(targets.labels),
        jnp.take_along_axis(targets.segments_t, owner[..., None], axis=1),
        jnp.where(foreground | incomplete, of_owner(targets.weight), 1.0),
    )


def draw_samples(goal: ProposalTargets, key: Array | None, settings: PgcnSettings) -> Samples:
    """The samples of a step, drawn by ``key`` from each kind; without a key what is drawn on average.

    Of a kind with fewer proposals than samples each counts more than once. With ``missing="literal"``, the places of a
    kind that a video lacks are filled with foreground, as the public code does (spec 5.3, 6).
    """
    keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
    counts = settings.foreground_samples, settings.incomplete_samples, settings.background_samples
    foreground, incomplete, background = (
        _drawn(own, mask, count) for own, mask, count in zip(keys[:3], goal[:3], counts, strict=True)
    )
    nothing = jnp.zeros_like(foreground)
    if settings.missing == "masked":
        return Samples(foreground, incomplete, background, nothing, incomplete)
    lacks = lambda mask: ~mask.any(-1, keepdims=True)
    fill = lambda key, mask, count: jnp.where(lacks(mask), _drawn(key, goal.foreground_mask, count), 0)
    negative = fill(keys[3], goal.incomplete_mask, counts[1])
    filled = negative + fill(keys[4], goal.background_mask, counts[2])
    return Samples(foreground, incomplete, background, filled, incomplete + negative)


def _drawn(key: Array | None, mask: Array, count: int) -> Array:
    picked = mask
    if key is not None:
        worth = jnp.where(mask, jax.random.uniform(key, mask.shape), -1.0)
        picked = intervals.top_mask(worth, count) & mask
    return picked * (count / jnp.maximum(picked.sum(-1, keepdims=True), 1))
