"""What BMN is taught, and its losses (spec 2.3, 2.4).

Everything is counted in snippets of a window: instance and cell reach from edge to edge, snippet i from i to i + 1.
Windows are averaged together, as the reference averages its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import DetectionLoss, PointTargets
from apl_jax.detectors.bmn_outputs import BmnOutputs
from apl_jax.detectors.bmn_settings import BmnSettings
from apl_jax.detectors.shared import own_snippets, segments_in_snippets
from apl_jax.ops import losses
from apl_jax.ops.segments import tiou
from apl_jax.structs import Array, PyTree, Targets

_LOG_FLOOR = 1e-6  # added to probabilities before a logarithm (spec 2.4)
_ANCHORS = {"J": (-0.5, 0.5), "S": (-0.5, 1.5), "O": (0.0, 1.0)}  # of snippet i, from i (spec 2.3)


class BmnTargets(NamedTuple):
    """What a batch is taught, dense. A weight is 0 where nothing is taught: off the video, or silent."""

    tiou: Array  # [B, n, D, W] of each cell with its best instance
    tnd: Array  # [B, n, D, W] of each cell with that instance
    cell_weight: Array  # [B, n, D, W]
    boundary: Array  # [B, n, W, 2] labels of start and end, in [0, 1]
    boundary_weight: Array  # [B, n, W, 2]
    classes: Array  # [B, n, W] int32 in [0, C], C being background
    snippet_weight: Array  # [B, n, W]
    owned_mask: Array  # [B, n, W] snippets of an instance
    silent_mask: Array  # [B, n, W] under an ignored instance and under no other


def _best(value: Array, taught: Array, silent: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Of ``value [..., N]``, how well each of N instances fits: the best one, its value, and what that teaches.

    ``taught``, ``silent``, ``weight``: of the instances. Nothing is taught where a silent instance fits better than any
    other; where none fits, that is background, of weight 1.
    """
    ours = jnp.where(taught, value, 0)
    owner, best = ours.argmax(-1), ours.max(-1)
    own_weight = jnp.take_along_axis(jnp.broadcast_to(weight, ours.shape), owner[..., None], axis=-1)[..., 0]
    quiet = jnp.where(silent, value, 0).max(-1) > best
    return owner, best, jnp.where(quiet, 0.0, jnp.where(best > 0, own_weight, 1.0))


def assign(outputs: BmnOutputs, targets: Targets, settings: BmnSettings) -> BmnTargets:
    """Annotations on the map, the boundaries and the snippets of every window (spec 2.3).

    A window that holds too little of an instance is silent about it.
    """
    s, background = settings, outputs.class_logits.shape[-1] - 1
    durations, steps = outputs.map_logits.shape[2:4]
    lengths = outputs.snippet_mask.sum(-1)[..., None]  # [B, n, 1]
    whole = segments_in_snippets(targets.segments_t, outputs.start_t, outputs.scale_t)  # [B, n, N, 2]
    inner = jnp.clip(whole, 0.0, lengths[..., None])
    extent, seen = whole[..., 1] - whole[..., 0], inner[..., 1] - inner[..., 0]
    # An instance without extent is nowhere partly; it is taught as far as it has a snippet.
    enough = seen >= s.least_inside * extent
    # On a resized recording, what the view has of an instance is all that there is (as on a pyramid's grid).
    enough |= s.window_mode == "resize"
    taught = (targets.mask & ~targets.ignore_mask)[:, None] & enough
    silent = targets.mask[:, None] & ~taught
    weight = jnp.broadcast_to(targets.weight[:, None], taught.shape)
    over = lambda x, axes: x.reshape(*x.shape[:2], *(1,) * axes, x.shape[2])  # instances last

    first = jnp.arange(steps, dtype=inner.dtype)
    last = first + jnp.arange(1, durations + 1, dtype=inner.dtype)[:, None]
    cell = jnp.stack([jnp.broadcast_to(first, last.shape), last], -1)  # [D, W, 2]
    overlap = tiou(cell[:, :, None], inner[:, :, None, None])  # [B, n, D, W, N]
    owner, best, cell_weight = _best(overlap, over(taught, 2), over(silent, 2), over(weight, 2))
    flat_owner = owner.reshape(*owner.shape[:2], -1, 1)
    owned = jnp.take_along_axis(inner, flat_owner, axis=2).reshape(*owner.shape, 2)
    cover = jnp.maximum(cell[..., 1], owned[..., 1]) - jnp.minimum(cell[..., 0], owned[..., 0])
    tnd = (0.5 * (cell.sum(-1) - owned.sum(-1)) / cover) ** 2

    # Start and end of each instance become regions; a label is the share of the snippet's anchor within one.
    low, high = (jnp.arange(steps) + edge for edge in _ANCHORS[s.anchors])
    reach = 0.5 * s.boundary_width
    within = jnp.minimum(high[:, None, None], inner.swapaxes(2, 3)[:, :, None] + reach) - jnp.maximum(
        low[:, None, None], inner.swapaxes(2, 3)[:, :, None] - reach
    )  # [B, n, W, 2, N]
    share = jnp.maximum(within, 0) / (high - low)[:, None, None]
    share = jnp.where(over(seen > 0, 2), share, 0)
    _, boundary, boundary_weight = _best(share, over(taught, 2), over(silent, 2), over(weight, 2))

    # Classes: the snippets whose middle an instance holds, or the one that has its middle.
    to_edge = lambda x: jnp.floor(x + 0.5).astype(jnp.int32)
    lone = jnp.floor(whole.mean(-1)).astype(jnp.int32)
    begin, stop = to_edge(whole[..., 0]), to_edge(whole[..., 1])
    begin, stop = jnp.where(stop > begin, begin, lone), jnp.where(stop > begin, stop, lone + 1)
    own = own_snippets(begin, stop, targets, outputs.snippet_mask)
    of_owner = lambda x: jnp.take_along_axis(jnp.broadcast_to(x[:, None], begin.shape), own.owner, axis=-1)
    snippet_weight = jnp.where(own.owned, of_owner(targets.weight), jnp.where(own.silent, 0.0, 1.0))
    return BmnTargets(
        best, tnd, jnp.where(outputs.cell_mask, cell_weight, 0.0),
        boundary, jnp.where(outputs.snippet_mask[..., None], boundary_weight, 0.0),
        jnp.where(own.owned, of_owner(targets.labels), background),
        jnp.where(outputs.snippet_mask, snippet_weight, 0.0), own.owned, own.silent,
    )  # fmt: skip


def weighted_mean(value: Array, weight: Array) -> Array:
    """Mean of ``value`` by ``weight``; 0 where there is no weight."""
    total = weight.sum()
    return jnp.where(weight > 0, value * weight, 0.0).sum() / jnp.where(total > 0, total, 1.0)


def balanced_cross_entropy(p: Array, positive: Array, weight: Array) -> Array:
    """Cross-entropy in which positives and negatives each make up a half (spec 2.4); plain where one kind is missing.

    ``p`` probabilities, ``positive`` bool, ``weight`` of each entry, all of one shape.
    """
    count, positives = weight.sum(), jnp.where(positive, weight, 0.0).sum()
    negatives = count - positives
    both = (positives > 0) & (negatives > 0)
    half = lambda part: jnp.where(both, 0.5 * count / jnp.where(both, part, 1.0), 1.0)
    value = jnp.where(positive, half(positives) * jnp.log(p + _LOG_FLOOR), half(negatives) * jnp.log1p(_LOG_FLOOR - p))
    return -weighted_mean(value, weight)


def balanced_cells(goal_tiou: Array, weight: Array, key: Array | None, s: BmnSettings) -> Array:
    """Weights of the cells that the regression keeps: all of high tIoU, by chance about as many of middle and of low
    tIoU (spec 2.4). Without a ``key``, each has the weight that it has on average."""
    above = goal_tiou > 0 if s.low_cells == "overlapping" else jnp.ones_like(goal_tiou, bool)
    high = goal_tiou > s.high_tiou
    middle = (goal_tiou > s.middle_tiou) & ~high
    low = above & ~middle & ~high
    high_count = jnp.where(high, weight, 0.0).sum()
    kept = jnp.where(high, weight, 0.0)
    for i, group in enumerate((middle, low)):
        count = jnp.where(group, weight, 0.0).sum()
        chance = jnp.minimum(high_count / jnp.where(count > 0, count, 1.0), 1.0)
        if key is not None:
            chance = jax.random.uniform(jax.random.fold_in(key, i), group.shape) > 1 - chance
        kept += jnp.where(group, weight * chance, 0.0)
    return kept


def bmn_losses(
    outputs: BmnOutputs, targets: Targets, state: PyTree, key: Array | None, settings: BmnSettings
) -> DetectionLoss:
    """L_TEM + 10 L_reg + L_cls over all windows of the batch (spec 2.4), APL's cross-entropies on tIoU and tND (2.9),
    and the class loss of the snippets.

    Where there is no cell of high tIoU, the regression is the plain mean of the squared error, as in O. The reference
    keeps every cell of the map where more cells are of high than of middle tIoU; here it keeps those of the group.
    """
    s, goal = settings, jax.lax.stop_gradient(assign(outputs, targets, settings))
    cells = jax.nn.sigmoid(outputs.map_logits)
    boundary = jax.nn.sigmoid(outputs.boundary_logits)
    of_boundary = lambda i: balanced_cross_entropy(
        boundary[..., i], goal.boundary[..., i] > s.boundary_positive, goal.boundary_weight[..., i]
    )
    parts = {
        "boundary": of_boundary(0) + of_boundary(1),
        "map": balanced_cross_entropy(cells[..., 1], goal.tiou > s.map_positive, goal.cell_weight),
    }
    kept = balanced_cells(goal.tiou, goal.cell_weight, key, s)
    some = (jnp.where(goal.tiou > s.high_tiou, goal.cell_weight, 0.0) > 0).any()
    kept = jnp.where(some, kept, goal.cell_weight)
    parts["regression"] = 0.5 * weighted_mean(jnp.square(cells[..., 0] - goal.tiou), kept)
    # Half the error has the factor 10; O's plain mean has neither the half nor the factor.
    regression = parts["regression"] * jnp.where(some, s.regression_weight, 2.0)
    localisation = s.boundary_weight * parts["boundary"] + regression + s.map_weight * parts["map"]
    q = s.quality
    if q.branches != "none":
        element = losses.binary_cross_entropy if q.loss == "bce" else losses.pointwise_kl
        each = element(cells[..., 0], goal.tiou)
        if q.branches == "tiou_tnd":
            each += element(cells[..., 2], goal.tnd)
        parts["quality"] = weighted_mean(each, jnp.where(goal.tiou > 0, kept, 0.0))
        localisation += q.weight * parts["quality"]
    class_loss = jnp.zeros(())
    if s.classes == "snippet":
        log_p = jax.nn.log_softmax(outputs.class_logits, axis=-1)
        picked = jnp.take_along_axis(log_p, goal.classes[..., None], axis=-1)[..., 0]
        parts["class"] = -weighted_mean(picked, goal.snippet_weight)
        class_loss = s.class_weight * parts["class"]
    return DetectionLoss(class_loss + localisation, class_loss, localisation, parts, state, _points(outputs, goal))


def _points(outputs: BmnOutputs, goal: BmnTargets) -> PointTargets:
    """What each snippet was taught; classes without a class head are action and background."""
    flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
    count = max(outputs.class_logits.shape[-1], 2)
    classes = goal.classes
    if outputs.class_logits.shape[-1] == 1:
        classes = jnp.where(goal.owned_mask, 0, 1)
    return PointTargets(flat(jax.nn.one_hot(classes, count)), flat(goal.owned_mask), flat(goal.silent_mask))
