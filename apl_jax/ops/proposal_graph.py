"""The graph of P-GCN: which proposals of a recording are neighbours, and how alike they are (spec 5.1, 5.3).

Two kinds of proposals are worth looking at beside one: *contextual* ones, which overlap it strongly, and *surrounding*
ones, which lie apart but near. Functions of segments are unbatched; ``vmap`` them over videos. Ends are exclusive: a
convention that counts the last frame into a segment is met by adding 1 to every end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from apl_jax.ops.segments import cover_t, tiou

_LEAST_NORM = 1e-12  # squared; the cosine of a feature that is zero is 0


def contextual_candidates(
    segments_t: Float[Array, "K 2"], mask: Bool[Array, " K"], *, count: int, least_tiou: float
) -> Int[Array, "K count"]:
    """Per proposal the ``count`` others of largest tIoU, by falling tIoU, among those above ``least_tiou``.

    A short list is repeated from its beginning; where it is empty, the proposal itself stands in its place.
    """
    overlap = tiou(segments_t[:, None], segments_t[None])
    return _best(jnp.where((overlap > least_tiou) & _pairs(mask), overlap, -jnp.inf), count)


def surrounding_candidates(
    segments_t: Float[Array, "K 2"], mask: Bool[Array, " K"], *, count: int
) -> Int[Array, "K count"]:
    """Per proposal the ``count`` nearest among those that do not overlap it, by rising distance of the centres over
    the length that covers both; short lists as in :func:`contextual_candidates`."""
    one, other = segments_t[:, None], segments_t[None]
    distance = jnp.abs(one.sum(-1) - other.sum(-1)) / 2 / jnp.maximum(cover_t(one, other), 1e-12)
    apart = (tiou(one, other) <= 0) & (distance > 0) & _pairs(mask)
    return _best(jnp.where(apart, -distance, -jnp.inf), count)


def nearest_neighbours(
    segments_t: Float[Array, "K 2"], mask: Bool[Array, " K"], *, contextual: int, surrounding: int, least_tiou: float
) -> Int[Array, "K n"]:
    """The n = ``contextual`` + ``surrounding`` neighbours of each proposal, without a draw (spec 5.3, 2)."""
    near = contextual_candidates(segments_t, mask, count=contextual, least_tiou=least_tiou)
    return jnp.concatenate([near, surrounding_candidates(segments_t, mask, count=surrounding)], axis=-1)


def pooled_neighbours(
    segments_t: Float[Array, "K 2"],
    mask: Bool[Array, " K"],
    key: PRNGKeyArray | None,
    *,
    neighbours: int,
    contextual: int,
    surrounding: int,
    least_tiou: float,
) -> Int[Array, "K n"]:
    """The n = ``neighbours`` that ``key`` draws for each proposal from one pool of ``contextual`` and ``surrounding``
    candidates, as the public code does (spec 5.3, 2); without a key the first n, which hold no surrounding one (9)."""
    pool = nearest_neighbours(
        segments_t, mask, contextual=contextual, surrounding=surrounding, least_tiou=least_tiou
    )  # fmt: skip
    if key is not None:
        order = jnp.argsort(jax.random.uniform(key, pool.shape), axis=-1)
        pool = jnp.take_along_axis(pool, order, axis=-1)
    return pool[:, :neighbours]


def graph_nodes(neighbours: Int[Array, "K n"]) -> Int[Array, "K nodes"]:
    """The 1 + n + n² nodes of the graph around each proposal: itself, its n neighbours, n neighbours of each.

    The network does not need the list: a node that is not the centre counts with its own neighbours alone, which are
    the same in every graph, so two convolutions over all K proposals are those of all K graphs (pgcn.py).
    """
    further = neighbours[neighbours].reshape(len(neighbours), -1)
    return jnp.concatenate([jnp.arange(len(neighbours))[:, None], neighbours, further], axis=-1)


def neighbour_weights(
    features: Float[Array, "B K D"], neighbours: Int[Array, "B K n"]
) -> tuple[Float[Array, "B K"], Float[Array, "B K n"]]:
    """What the adjacency gives a proposal itself, and each of its neighbours (spec 5.1).

    ReLU of the cosine of the features, times 1 for itself and 1 / n for a neighbour; rows do not sum to 1.
    """
    norm = jnp.sqrt(jnp.maximum(jnp.square(features).sum(-1, keepdims=True), _LEAST_NORM))
    unit = features / norm
    # One neighbour at a time, so that no array of K x n x D numbers comes to be.
    cosine = [(unit * take_rows(unit, neighbours[..., i])).sum(-1) for i in range(neighbours.shape[-1])]
    alike = jnp.maximum(jnp.stack(cosine, -1), 0)
    return jnp.square(unit).sum(-1), alike / neighbours.shape[-1]


def gather_neighbours(
    hidden: Float[Array, "B K H"],
    neighbours: Int[Array, "B K n"],
    own: Float[Array, "B K"],
    link: Float[Array, "B K n"],
) -> Float[Array, "B K H"]:
    """Each row of the adjacency (:func:`neighbour_weights`) times ``hidden``: one batched contraction."""
    batch, count, n = neighbours.shape
    around = take_rows(hidden, neighbours.reshape(batch, count * n)).reshape(batch, count, n, -1)
    return own[..., None] * hidden + jnp.einsum("bkn,bknh->bkh", link, around)


def take_rows(x: Array, rows: Int[Array, "B N"]) -> Array:
    """Rows ``[B, N]`` of ``x [B, K, D]``: ``[B, N, D]``."""
    return jnp.take_along_axis(x, rows[..., None], axis=1)


def _pairs(mask: Array) -> Array:
    """Which pairs are of two different proposals that exist."""
    return mask[:, None] & mask[None] & ~jnp.eye(len(mask), dtype=bool)


def _best(worth: Array, count: int) -> Array:
    """Per row the columns of the ``count`` largest entries above -inf, repeated, or the row's own number."""
    rows = len(worth)
    value, column = jax.lax.top_k(worth, min(count, rows))
    found = (value > -jnp.inf).sum(-1, keepdims=True)
    repeated = jnp.take_along_axis(column, jnp.arange(count) % jnp.maximum(found, 1), axis=-1)
    return jnp.where(found > 0, repeated, jnp.arange(rows)[:, None])
