"""K-means in the space of inner products, beside scikit-learn and beside distances in the space of features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from apl_jax.ops.clustering import Clusters, kmeans


def points(n: int = 64, width: int = 50, seed: int = 0) -> np.ndarray:
    """Three clouds."""
    draws = np.random.default_rng(seed)
    return (draws.normal(size=(n, width)) + 6 * np.eye(3, width)[draws.integers(0, 3, n)]).astype(np.float32)


def run(keys: jax.Array, x: np.ndarray, mask: np.ndarray, clusters: int, iterations: int = 20) -> Clusters:
    """One clustering per key."""
    one = lambda key: kmeans(key, jnp.asarray(x), jnp.asarray(mask), clusters=clusters, iterations=iterations)
    return jax.device_get(jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize("clusters", [2, 3])
def test_inertia_of_the_best_of_eight_starts_is_that_of_scikit_learn(clusters: int) -> None:
    x = points()
    found = run(jax.random.split(jax.random.key(0), 8), x, np.ones(64, bool), clusters)
    expected = KMeans(clusters, n_init=10, random_state=0).fit(x).inertia_
    np.testing.assert_allclose(found.inertia.min(), expected, rtol=1e-5)
    assert found.inertia.max() <= expected * 1.4  # k-means++ never starts badly


def test_labels_and_inertia_are_of_nearest_centres() -> None:
    x, mask = points(), np.arange(64) < 50
    found = run(jax.random.key(1)[None], x, mask, 3)
    labels, inertia = found.labels[0], found.inertia[0]
    centres = np.stack([x[mask & (labels == c)].mean(0) for c in range(3)])
    distance = ((x[:, None] - centres) ** 2).sum(-1)
    assert (labels == distance.argmin(-1)).all()
    np.testing.assert_allclose(inertia, distance.min(-1)[mask].sum(), rtol=1e-4)


def test_masked_rows_have_no_say() -> None:
    x, mask = points(), np.arange(64) < 50
    other = x.copy()
    other[50:] = 1e3
    keys = jax.random.split(jax.random.key(2), 4)
    first, second = run(keys, x, mask, 3), run(keys, other, mask, 3)
    assert (first.labels[:, :50] == second.labels[:, :50]).all()
    np.testing.assert_allclose(first.inertia, second.inertia, rtol=1e-5)


def test_fewer_points_than_clusters_and_none() -> None:
    x = points(8)
    two = run(jax.random.key(3)[None], x, np.arange(8) < 2, 4)
    np.testing.assert_allclose(two.inertia, 0, atol=1e-3)
    assert two.labels[0, 0] != two.labels[0, 1]
    assert run(jax.random.key(3)[None], x, np.zeros(8, bool), 2).inertia == 0


def test_a_cluster_without_points_keeps_its_centre() -> None:
    """Equal points are all of the first cluster. The second stays where it began, in the same place, and gets nothing;
    were it lost, its centre would be the origin, and it would be nearest to the row outside the mask."""
    x = np.float32([[10, 0]] * 4 + [[0, 0]])  # four, so that their mean is exact
    found = run(jax.random.key(4)[None], x, np.arange(5) < 4, 2)
    assert found.inertia == 0 and not found.labels.any()


def test_a_start_never_repeats_a_point() -> None:
    """k-means++ draws in proportion to the distance: two far groups are told apart by every start, before Lloyd."""
    x = np.repeat(np.float32([[0, 0], [100, 0]]), 5, axis=0) + np.float32([[0, 0.01 * i] for i in range(10)])
    found = run(jax.random.split(jax.random.key(5), 32), x, np.ones(10, bool), 2, iterations=0)
    assert ((found.labels[:, :5] == found.labels[:, :1]) & (found.labels[:, 5:] != found.labels[:, :1])).all()
