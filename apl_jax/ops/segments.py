"""Geometry of temporal segments: overlap, normalised centre distance, and pooling of features under them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def tiou(a: Float[Array, "*N 2"], b: Float[Array, "*M 2"]) -> Float[Array, "*K"]:
    """Temporal intersection over union of segments ``[..., 2]``, broadcast; 0 where the union is empty."""
    intersection = jnp.maximum(jnp.minimum(a[..., 1], b[..., 1]) - jnp.maximum(a[..., 0], b[..., 0]), 0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - intersection
    return jnp.where(union > 0, intersection / jnp.maximum(union, 1e-12), 0.0)


def offset_quality(
    predicted: Float[Array, "*N 2"], target: Float[Array, "*N 2"], epsilon: float = 1e-8
) -> tuple[Float[Array, "*N"], Float[Array, "*N"]]:
    """tIoU and tND of two segments given as (left, right) offsets from a common point.

    tND is the squared distance of the centres over the squared length of the smallest segment that covers both, the
    term that DIoU subtracts (APL Eq. 1). Offsets are non-negative, in any unit; results lie in [0, 1].
    """
    inner = jnp.minimum(predicted, target).sum(-1)
    union = predicted.sum(-1) + target.sum(-1) - inner
    cover = jnp.maximum(predicted, target).sum(-1)
    shift = 0.5 * ((predicted[..., 1] - predicted[..., 0]) - (target[..., 1] - target[..., 0]))
    return inner / jnp.maximum(union, epsilon), (shift / jnp.maximum(cover, epsilon)) ** 2


def cover_t(a: Float[Array, "*N 2"], b: Float[Array, "*M 2"]) -> Float[Array, "*K"]:
    """Length of the smallest segment that covers both, broadcast."""
    return jnp.maximum(a[..., 1], b[..., 1]) - jnp.minimum(a[..., 0], b[..., 0])


def tnd(a: Float[Array, "*N 2"], b: Float[Array, "*M 2"]) -> Float[Array, "*K"]:
    """Squared distance of the centres over the squared length that covers both (APL Eq. 1), in [0, 1); broadcast."""
    return (0.5 * (a.sum(-1) - b.sum(-1)) / jnp.maximum(cover_t(a, b), 1e-8)) ** 2


def relative_segment(base: Float[Array, "*N 2"], segment: Float[Array, "*N 2"]) -> Float[Array, "*N 2"]:
    """Where ``segment`` lies as seen from ``base``: shift of the centre over the length of ``base``, logarithm of the
    ratio of the lengths (spec 5.1). Empty segments count as very short ones."""
    least = 1e-6
    length, other = (jnp.maximum(x[..., 1] - x[..., 0], least) for x in (base, segment))
    shift = 0.5 * (segment.sum(-1) - base.sum(-1)) / length
    return jnp.stack([shift, jnp.log(other) - jnp.log(length)], -1)


def place_segment(base: Float[Array, "*N 2"], relative: Float[Array, "*N 2"]) -> Float[Array, "*N 2"]:
    """The segment that :func:`relative_segment` describes; at most e^4 times as long as ``base``, or as short."""
    length = base[..., 1] - base[..., 0]
    center = 0.5 * base.sum(-1) + relative[..., 0] * length
    half = 0.5 * length * jnp.exp(jnp.clip(relative[..., 1], -4, 4))
    return jnp.stack([center - half, center + half], -1)


def covered_rows(
    segments_t: Float[Array, "*N 2"], length: Int[Array, "*#N"] | int
) -> tuple[Int[Array, "*N"], Int[Array, "*N"]]:
    """First and last grid row under each segment: floor(start) .. ceil(end), clipped to the video, at least one row."""
    last_row = jnp.maximum(length - 1, 0)
    first = jnp.clip(jnp.floor(segments_t[..., 0]).astype(jnp.int32), 0, last_row)
    last = jnp.clip(jnp.ceil(segments_t[..., 1]).astype(jnp.int32), first, last_row)
    return first, last


def pool_max(
    features: Float[Array, "T D"], segments_t: Float[Array, "N 2"], length: Int[Array, ""] | int
) -> Float[Array, "N D"]:
    """Maximum over time of the features under each segment: the MAP(.) of APL Eq. 8 (spec A21).

    A range maximum by doubling: after j rounds row t holds the maximum of rows [t, t + 2^j), and two such windows cover
    any range of 2^j to 2^(j+1) rows. Work is O((T + N) D log T), memory O((T + N) D).
    """
    steps = features.shape[0]
    first, last = covered_rows(segments_t, length)
    level = jnp.floor(jnp.log2((last - first + 1).astype(jnp.float32) + 0.5)).astype(jnp.int32)

    def grow(j: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        window_max, pooled = state
        tail = jnp.maximum(last - (1 << j) + 1, 0)
        here = jnp.maximum(window_max[first], window_max[tail])
        pooled = jnp.where((level == j)[:, None], here, pooled)
        rows = jnp.minimum(jnp.arange(steps) + (1 << j), steps - 1)
        return jnp.maximum(window_max, window_max[rows]), pooled

    rounds = max(steps.bit_length(), 1)
    pooled = jnp.zeros((segments_t.shape[0], features.shape[1]), features.dtype)
    return jax.lax.fori_loop(0, rounds, grow, (features, pooled))[1]


def frame_labels(
    segments_t: Float[Array, "N 2"], labels: Int[Array, " N"], mask: Bool[Array, " N"], steps: int, background: int
) -> Int[Array, " T"]:
    """Class of every grid step; the shortest instance wins where several overlap, ``background`` where none is."""
    time = jnp.arange(steps)[:, None]
    inside = (time >= segments_t[:, 0]) & (time <= segments_t[:, 1]) & mask
    duration = jnp.where(inside, segments_t[:, 1] - segments_t[:, 0], jnp.inf)
    return jnp.where(inside.any(-1), labels[jnp.argmin(duration, axis=-1)], background)
