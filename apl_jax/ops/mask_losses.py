"""Losses on snippet x snippet foreground maps, and the contrast of snippets at their boundaries (spec 3.4, 3.7)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from apl_jax.ops import intervals

LOG_SLACK = 1e-6  # added to a probability before its logarithm (spec 3.4)


def weighted_cross_entropy(
    p: Float[Array, "N W W"], target: Bool[Array, "N W W"], weight: Float[Array, "N W W"], smoothing: float
) -> Float[Array, ""]:
    """Binary cross-entropy in which positive and negative cells of the batch have the same say (spec 3.4).

    Half of -log p summed over positives / (smoothing + their number), plus the same for negatives: the published
    c1 / n and c0 / n, written without their quotient of counts, which an all-positive map makes infinite.
    """
    likelihood = jnp.log(jnp.where(target, p, 1 - p) + LOG_SLACK)
    positive = jnp.where(target, weight, 0)
    negative = weight - positive
    share = lambda part: -(part * likelihood).sum() / jnp.maximum(smoothing + part.sum(), LOG_SLACK)
    return 0.5 * (share(positive) + share(negative))


def dice(
    p: Float[Array, "N W W"], target: Bool[Array, "N W W"], weight: Float[Array, "N W W"], factor: float
) -> Float[Array, ""]:
    """1 - (factor * sum p t + 1) / (sum p^2 + sum t^2 + 1), averaged over the maps that have a cell of some weight."""
    over_map = lambda x: (x * weight).sum((1, 2))
    area = over_map(jnp.where(target, 1.0, 0.0))
    loss = 1 - (factor * over_map(jnp.where(target, p, 0)) + 1) / (over_map(p * p) + area + 1)
    exists = (weight > 0).any((1, 2))
    return jnp.where(exists, loss, 0).sum() / jnp.maximum(exists.sum(), 1)


def lower_median(values: Float[Array, "N M"], valid: Bool[Array, "N M"]) -> Float[Array, " N"]:
    """The lower median of the valid float32 numbers of each row; NaN where none is valid.

    A float's bits, those of negative ones but the sign turned over, order like an integer, whose bits are found one by
    one by counting: 32 passes over the data, on CPUs a fifteenth of the time of sorting it.
    """
    turn = lambda bits: jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order = turn(jax.lax.bitcast_convert_type(values, jnp.int32))
    rank = jnp.maximum(valid.sum(-1) - 1, 0) // 2
    reached = lambda bound: ((order < bound[:, None]) & valid).sum(-1) <= rank  # the median is not below the bound
    lowest = jnp.full(len(values), jnp.iinfo(jnp.int32).min, jnp.int32)
    found = jnp.where(reached(jnp.zeros_like(lowest)), 0, lowest)

    def refine(step: jax.Array, found: jax.Array) -> jax.Array:
        bound = found + (jnp.int32(1) << (30 - step))
        return jnp.where(reached(bound), bound, found)

    return jax.lax.bitcast_convert_type(turn(jax.lax.fori_loop(0, 31, refine, found)), jnp.float32)


def boundary_bands(
    score: Float[Array, "N W W"], valid: Bool[Array, "N W W"], inner: int, outer: int
) -> tuple[Bool[Array, "N W W"], Bool[Array, "N W W"]]:
    """Bands inside and outside the boundary of each map binarised at its median over valid cells.

    Inside: erosion(inner) - erosion(outer); outside: dilation(outer) - dilation(inner); by squares of ones. Invalid
    cells and what lies beyond the map neither erode nor grow, so padding has no part in it. A flat map has no bands.
    """
    score = jax.lax.stop_gradient(score).astype(jnp.float32)
    median = lower_median(score.reshape(len(score), -1), valid.reshape(len(score), -1))[:, None, None]
    active, idle = valid & (score > median), valid & (score <= median)
    inside = intervals.dilate(idle, outer) & ~intervals.dilate(idle, inner)
    outside = intervals.dilate(active, outer) & ~intervals.dilate(active, inner)
    return active & inside, valid & outside


def contrast(
    features: Float[Array, "N W E"],
    query: Bool[Array, "N W"],
    positive: Bool[Array, "N W"],
    negative: Bool[Array, "N W"],
    temperature: float,
) -> tuple[Float[Array, " N"], Bool[Array, " N"]]:
    """InfoNCE of mean unit vectors: the mean of ``query`` is to be like that of ``positive``, unlike each ``negative``.

    Returns the loss of each video, and whether all three of its sets have members; 0 where they have not. Sets of
    snippets enter as weights of products, so nothing is gathered, and no gradient is scattered.
    """
    inverse = jax.lax.rsqrt(jnp.maximum(jnp.square(features).sum(-1), 1e-12))

    def center(members: jax.Array) -> jax.Array:
        weights = jnp.where(members, inverse, 0) / jnp.maximum(members.sum(-1, keepdims=True), 1)
        mean = jnp.einsum("nw,nwe->ne", weights, features)
        return mean * jax.lax.rsqrt(jnp.maximum(jnp.square(mean).sum(-1, keepdims=True), 1e-12))

    anchor = center(query)
    like = (anchor * center(positive)).sum(-1) / temperature
    unlike = jnp.einsum("ne,nwe->nw", anchor, features) * inverse / temperature
    # A finite stand-in for -inf, so that a video without negatives has a finite gradient too.
    rivals = jax.nn.logsumexp(jnp.where(negative, unlike, -1e9), axis=-1)
    exists = query.any(-1) & positive.any(-1) & negative.any(-1)
    return jnp.where(exists, jax.nn.softplus(rivals - like), 0), exists
