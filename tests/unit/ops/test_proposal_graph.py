"""Neighbours of proposals and their graph convolution, beside twins that visit pairs and graphs one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.ops import proposal_graph


def overlap_of(a: np.ndarray, b: np.ndarray) -> float:
    inner = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return inner / ((a[1] - a[0]) + (b[1] - b[0]) - inner)


def twin(segments: np.ndarray, mask: np.ndarray, contextual: int, surrounding: int, least: float) -> np.ndarray:
    """Candidates of each proposal, contextual ones first, repeated where there are few."""
    rows = []
    for i, one in enumerate(segments):
        others = [j for j in range(len(segments)) if j != i and mask[i] and mask[j]]
        near = [j for j in others if overlap_of(one, segments[j]) > least]
        near.sort(key=lambda j: -overlap_of(one, segments[j]))

        def distance(j: int, one: np.ndarray = one) -> float:
            other = segments[j]
            return abs(one.mean() - other.mean()) / (max(one[1], other[1]) - min(one[0], other[0]))

        apart = sorted((j for j in others if overlap_of(one, segments[j]) == 0), key=distance)
        repeat = lambda found, count, i=i: [found[k % len(found)] if found else i for k in range(count)]
        rows.append(repeat(near, contextual) + repeat(apart, surrounding))
    return np.array(rows)


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Groups of proposals that overlap, and some that stand alone."""
    draws = np.random.default_rng(seed)
    start = draws.integers(0, 5, count) * 12.0 + draws.uniform(0, 2, count)
    return np.stack([start, start + draws.uniform(6, 9, count)], -1).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_neighbours_beside_a_twin(count: int) -> None:
    segments, mask = drawn(count), np.arange(count) % 7 != 6
    sizes = {"contextual": 3, "surrounding": 2}
    found = proposal_graph.nearest_neighbours(jnp.asarray(segments), jnp.asarray(mask), least_tiou=0.5, **sizes)
    expected = twin(segments.astype(np.float64), mask, 3, 2, 0.5)
    assert (np.asarray(found) == expected).all()
    assert (np.asarray(found)[~mask] == np.flatnonzero(~mask)[:, None]).all()
    others = np.asarray(found)[mask]
    assert mask[others].all()  # what is not there is nobody's neighbour


def test_a_draw_takes_each_candidate_alike() -> None:
    segments, mask = jnp.asarray(drawn(30)), jnp.ones(30, bool)
    sizes = {"contextual": 8, "surrounding": 2, "least_tiou": 0.5}
    pool = np.asarray(proposal_graph.nearest_neighbours(segments, mask, **sizes))
    draw = lambda key: proposal_graph.pooled_neighbours(segments, mask, key, neighbours=4, **sizes)
    assert (np.asarray(draw(None)) == pool[:, :4]).all()
    many = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 400)))
    for i, row in enumerate(pool):
        assert set(np.unique(many[:, i])) == set(row)
        share = np.isin(many[:, i], row[8:]).mean()
        np.testing.assert_allclose(share, 0.2, atol=0.05)  # 0.8 of the 4 are surrounding ones, on average


def test_two_convolutions_over_proposals_are_those_of_all_graphs() -> None:
    """Against graphs of 21 nodes, each with its adjacency, of which the centre's row is read (spec 5.1)."""
    draws = np.random.default_rng(1)
    segments, count, n = jnp.asarray(drawn(12)), 12, 4
    neighbours = proposal_graph.nearest_neighbours(
        segments, jnp.ones(count, bool), contextual=3, surrounding=1, least_tiou=0.5
    )
    nodes = np.asarray(proposal_graph.graph_nodes(neighbours))
    assert nodes.shape == (count, 1 + n + n * n)
    x, first, second = (draws.normal(size=size) for size in ((count, 6), (6, 5), (5, 6)))
    x[3] = 0  # a cosine without a direction
    bias = draws.normal(size=5)
    expected = np.zeros((count, 6))
    for centre, graph in enumerate(nodes):
        adjacency = np.zeros((len(graph), len(graph)))
        for row in range(n + 1):
            linked = [(row, 1.0)] + [(n * row + 1 + j, 1 / n) for j in range(n)]
            for column, share in linked:
                a, b = x[graph[row]], x[graph[column]]
                size = np.linalg.norm(a) * np.linalg.norm(b)
                adjacency[row, column] = share * max(a @ b / size, 0) if size else 0
        hidden = np.maximum(adjacency @ (x[graph] @ first) + bias, 0)
        expected[centre] = (adjacency @ (hidden @ second))[0]

    features, links = jnp.asarray(x, jnp.float32)[None], neighbours[None]
    own, link = proposal_graph.neighbour_weights(features, links)
    gather = lambda h: proposal_graph.gather_neighbours(h, links, own, link)
    hidden = jax.nn.relu(gather(features @ first) + bias)
    np.testing.assert_allclose(gather(hidden @ second)[0], expected, atol=1e-4)
    gradient = jax.grad(lambda f: jnp.sum(proposal_graph.neighbour_weights(f, links)[1]))(features)
    assert jnp.isfinite(gradient).all()
