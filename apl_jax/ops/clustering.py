"""Masked k-means on the device, in the space of inner products."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Clusters(NamedTuple):
    """Result of k-means."""

    labels: Int[Array, " n"]  # in [0, k); rows outside the mask carry the label of their nearest centre too
    inertia: Float[Array, ""]  # sum over masked rows of the squared distance to their centre


# Problems whose products XLA's CPU backend is given one by one; more would only lengthen compilation.
_UNROLLED = 32


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


@jax.custom_batching.custom_vmap
def gram_matrix(points: jax.Array) -> jax.Array:
    """Inner products ``[n, n]`` of rows ``[n, d]``.

    Under ``vmap`` a CPU gets the products of each problem by themselves: it computes those side by side, but a batched
    product one after the other. Of the symmetric result it computes three quarters, if n is even.
    """
    return _product(points, points)


@gram_matrix.def_vmap
def _gram_matrices(size: int, batched: list[bool], points: jax.Array) -> tuple[jax.Array, bool]:
    del batched  # the only argument
    together = jax.vmap(lambda x: _product(x, x))
    if size > _UNROLLED or points.ndim > 3:
        return together(points), True
    return jax.lax.platform_dependent(points, cpu=_one_by_one, default=together), True


def _one_by_one(points: jax.Array) -> jax.Array:
    problems, n, width = points.shape
    if n % 2:
        return jnp.stack([_product(rows, rows) for rows in points])
    halves = list(points.reshape(2 * problems, n // 2, width))
    return jnp.stack([_symmetric_product(*halves[2 * i : 2 * i + 2]) for i in range(problems)])


def _symmetric_product(upper: jax.Array, lower: jax.Array) -> jax.Array:
    across = _product(upper, lower)
    return jnp.block([[_product(upper, upper), across], [across.T, _product(lower, lower)]])


def kmeans(
    key: PRNGKeyArray, points: Float[Array, "n d"], mask: Bool[Array, " n"], *, clusters: int, iterations: int
) -> Clusters:
    """Lloyd's algorithm from a k-means++ start, unbatched (APL 3.3; spec B3).

    A centre is a convex combination of the points, ``weights @ points``, so every distance follows from the Gram matrix
    ``G = points @ points.T``: ``|x_i - c|^2 = G_ii - 2 (w G)_i + w G w``. Frames are far fewer than feature dimensions
    here, so an iteration costs ``n^2 k`` instead of ``n d k`` and touches the features once.

    A cluster that loses all its points keeps its centre. With fewer valid points than clusters, centres coincide.

    Args:
        key: seeds the k-means++ start.
        points: n rows; the caller normalises them if it wants cosine geometry.
        mask: rows that count.
    """
    counts = mask.astype(points.dtype)
    gram = gram_matrix(points)
    norms = jnp.diagonal(gram)

    def distances(weights: jax.Array) -> jax.Array:  # [k, n] -> [n, k]
        cross = weights @ gram
        return norms[:, None] - 2 * cross.T + (cross * weights).sum(-1)

    def seed(j: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        weights, nearest = state
        # Sampling in proportion to the squared distance is an argmax of Gumbel-perturbed logarithms.
        logits = jnp.where(mask, jnp.log(jnp.maximum(nearest, 1e-30)), -jnp.inf)
        chosen = jax.random.categorical(jax.random.fold_in(key, j), logits)
        weights = weights.at[j].set(jax.nn.one_hot(chosen, points.shape[0], dtype=points.dtype))
        distance = norms - 2 * gram[chosen] + norms[chosen]
        return weights, jnp.minimum(nearest, jnp.maximum(distance, 0))

    def lloyd(_: jax.Array, weights: jax.Array) -> jax.Array:
        members = jax.nn.one_hot(jnp.argmin(distances(weights), -1), clusters, dtype=points.dtype) * counts[:, None]
        sizes = members.sum(0)
        return jnp.where((sizes > 0)[:, None], members.T / jnp.maximum(sizes, 1)[:, None], weights)

    start = jnp.zeros((clusters, points.shape[0]), points.dtype), jnp.ones_like(norms)
    weights = jax.lax.fori_loop(0, clusters, seed, start)[0]
    weights = jax.lax.fori_loop(0, iterations, lloyd, weights)
    final = distances(weights)
    return Clusters(jnp.argmin(final, -1), (jnp.maximum(final.min(-1), 0) * counts).sum())
