"""SPOT's proposals: thresholded mask rows and runs of class sequences of one window (spec 3.5), unbatched."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.detectors.spot_settings import SpotDecoding
from apl_jax.ops import intervals
from apl_jax.structs import Array


class Proposals(NamedTuple):
    """M candidates, each ``[..., M]``; extents are in snippets of their window."""

    first: Array
    last: Array
    label: Array
    score: Array  # largest probability of the class inside
    location: Array  # how surely the mask says that this is the extent
    mask: Array


def mask_proposals(action: Array, mask_logits: Array, valid: Array, label: Array | None, s: SpotDecoding) -> Proposals:
    """Rows of the snippets that are surest of an action, at every threshold.

    One window: class probabilities ``action [W, C]``, ``mask_logits [W, W]`` (query x time), ``valid [W]``. ``label``:
    the class of all proposals, or None for each snippet's own.
    """
    width = len(valid)
    query = jax.lax.top_k(action.max(-1), min(s.top_snippets, width))[1]
    label = action[query].argmax(-1) if label is None else jnp.broadcast_to(label, query.shape)
    row = jnp.where(valid, jax.nn.sigmoid(mask_logits[query]), 0)[:, None]  # [Q, 1, W]
    active = (row > jnp.asarray(s.mask_thresholds)[:, None]) & valid  # [Q, R, W]
    first, last = intervals.component(active, query[:, None]) if s.extent == "component" else intervals.span(active)
    inside = intervals.within(first, last, width)
    # Of equal extents at several thresholds one is enough: NMS would remove the others.
    same = (first[:, 1:] == first[:, :-1]) & (last[:, 1:] == last[:, :-1])
    fresh = ~jnp.pad(same, [(0, 0), (1, 0)])
    score = jnp.where(inside, action[:, label].T[:, None], 0).max(-1)
    location = jnp.where(inside, row, 0).sum(-1) / jnp.maximum(last - first, 1)
    labels = jnp.broadcast_to(label[:, None], first.shape)
    exists = fresh & (last - first > s.shortest_share * width) & valid[query][:, None]
    return Proposals(*(x.reshape(-1) for x in (first, last, labels, score, location, exists)))


def class_proposals(action: Array, mask_logits: Array, valid: Array, classes: Array, s: SpotDecoding) -> Proposals:
    """Runs of the sequences of ``classes`` at every threshold, the surest ``top_k_per_level``; one window, as above."""
    width = len(valid)
    sequence = action[:, classes].T  # [C', W]
    active = (sequence[:, None] > jnp.asarray(s.class_thresholds)[:, None]) & valid  # [C', R, W]
    first, ends = intervals.run_starts(active)
    same = ends[:, 1:] & ends[:, :-1] & (first[:, 1:] == first[:, :-1])
    exists = ends & ~jnp.pad(same, [(0, 0), (1, 0), (0, 0)])
    exists &= jnp.arange(width) + 1 - first > s.shortest_share * width
    peak = intervals.running_max(jnp.broadcast_to(sequence[:, None], first.shape), first)
    score, chosen = jax.lax.top_k(jnp.where(exists, peak, 0).reshape(-1), min(s.top_k_per_level, exists.size))
    row = chosen // (active.shape[1] * width)
    start, stop = first.reshape(-1)[chosen], chosen % width + 1
    inside = intervals.within(start, stop, width)
    surest = jnp.where(inside, sequence[row], -1).argmax(-1)
    location = jnp.where(inside, jax.nn.sigmoid(mask_logits[surest]), 0).max(-1)
    return Proposals(start, stop, classes[row], score, location, score > 0)


def truncated_by_window(first: Array, last: Array, start_t: Array, length: Array, *, width: int, stride: int) -> Array:
    """Proposals ``[n, M]`` that a window's end cuts off although the neighbouring window sees more of them.

    ``first``, ``last`` ``[n, M]``, snippets of their window · ``start_t [n]`` of the windows, ``length`` of the video;
    windows of ``width`` grid steps, one every ``stride``.
    """
    size, shared = last - first, width - stride
    before = (first == 0) & (start_t[:, None] > 0) & (size < shared)
    after = (last == width) & (start_t[:, None] + width < length) & (size <= shared)
    return before | after
