"""Overlap, centre distance, max-pooling and frame classes of segments, beside twins in plain loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.ops.segments import (
    covered_rows,
    frame_labels,
    offset_quality,
    place_segment,
    pool_max,
    relative_segment,
    tiou,
    tnd,
)


def test_tiou_of_all_pairs() -> None:
    draws = np.random.default_rng(0)
    a, b = (np.sort(draws.uniform(-5, 20, (n, 2)), -1).astype(np.float32) for n in (30, 20))
    a[0], b[0], b[1] = b[2], (3.0, 3.0), (50.0, 60.0)
    found = jax.jit(lambda a, b: tiou(a[:, None], b[None]))(a, b)
    for i, (start, end) in enumerate(a):
        for j, (other_start, other_end) in enumerate(b):
            inner = max(min(end, other_end) - max(start, other_start), 0)
            union = (end - start) + (other_end - other_start) - inner
            np.testing.assert_allclose(found[i, j], inner / union, atol=1e-5)
    assert found[0, 2] == 1 and not found[:, 1].any()
    assert tiou(jnp.array([3.0, 3.0]), jnp.array([3.0, 3.0])) == 0


# Predicted offsets; target offsets; DIoU loss (spec 1.7).
DIOU = [
    ((2, 3), (2.5, 2), 0.291322), ((1, 1), (1, 1), 0.0), ((0, 0), (1, 2), 1.027778), ((4, 0.5), (1, 3), 0.940051),
]  # fmt: skip


@pytest.mark.parametrize(("predicted", "target", "loss"), DIOU)
def test_regression_loss_of_the_reference(predicted: tuple, target: tuple, loss: float) -> None:
    overlap, distance = offset_quality(jnp.array(predicted, jnp.float32), jnp.array(target, jnp.float32))
    np.testing.assert_allclose(1 - overlap + distance, loss, atol=1e-6)


def test_a_segment_as_seen_from_another() -> None:
    base, segment = jnp.array([[10.0, 20.0], [3.0, 3.0]]), jnp.array([[14.0, 34.0], [2.0, 4.0]])
    np.testing.assert_allclose(relative_segment(base, segment)[0], [0.9, np.log(2)], rtol=1e-6)
    assert jnp.isfinite(relative_segment(base, segment)).all() and jnp.isfinite(relative_segment(segment, base)).all()
    np.testing.assert_allclose(place_segment(base, relative_segment(base, segment))[0], segment[0], rtol=1e-6)
    far = place_segment(base, jnp.array([[0.0, 1e9], [0.0, -1e9]]))
    np.testing.assert_allclose(far[0], [15 - 5 * np.exp(4), 15 + 5 * np.exp(4)], rtol=1e-6)
    np.testing.assert_allclose(tnd(base, segment), [(9 / 24) ** 2, 0], atol=1e-7)


def test_offset_quality_is_the_geometry_of_the_segments() -> None:
    """tIoU of the two segments around their common point, and the squared normalised distance of their centres."""
    predicted, target = np.random.default_rng(0).uniform(0, 5, (2, 200, 2)).astype(np.float32)
    overlap, distance = offset_quality(predicted, target)
    first, second = (np.stack([-x[:, 0], x[:, 1]], -1) for x in (predicted, target))
    np.testing.assert_allclose(overlap, tiou(first, second), atol=1e-6)
    cover = np.maximum(first[:, 1], second[:, 1]) - np.minimum(first[:, 0], second[:, 0])
    np.testing.assert_allclose(distance, ((first.mean(-1) - second.mean(-1)) / cover) ** 2, atol=1e-6)
    # In this geometry tND never exceeds a quarter, and a sixteenth only where tIoU <= .5 (spec 1.7).
    assert distance.max() <= 0.25 and distance[overlap > 0.5].max() <= 0.0625


def test_offset_quality_of_nothing() -> None:
    zero = jnp.zeros(2)
    assert offset_quality(zero, zero) == (0, 0)
    gradients = jax.grad(lambda p: sum(offset_quality(p, zero)))(zero)
    assert jnp.isfinite(gradients).all()


def test_covered_rows() -> None:
    segments = jnp.array([[0.0, 3.0], [1.2, 3.1], [2.0, 2.0], [2.4, 2.6], [-4.0, -1.0], [8.0, 20.0], [4.5, 99.0]])
    first, last = covered_rows(segments, 7)
    assert first.tolist() == [0, 1, 2, 2, 0, 6, 4]
    assert last.tolist() == [3, 4, 2, 3, 0, 6, 6]


@pytest.mark.parametrize("steps", [1, 2, 37, 64])
def test_pool_max_twin(steps: int) -> None:
    draws = np.random.default_rng(steps)
    features = draws.normal(size=(steps, 4)).astype(np.float32)
    segments = np.sort(draws.uniform(-3, steps + 3, (60, 2)), -1).astype(np.float32)
    segments[:3] = (0, steps - 1), (-10, steps + 10), (steps / 2, steps / 2)
    length = max(steps - 4, 1)
    features[length:] = 1e9  # what lies beyond the video must not be seen
    pooled = jax.jit(pool_max)(features, segments, length)
    for found, (start, end) in zip(pooled, segments, strict=True):
        first = int(np.clip(np.floor(start), 0, length - 1))
        last = int(np.clip(np.ceil(end), first, length - 1))
        np.testing.assert_array_equal(found, features[first : last + 1].max(0))


def test_frame_labels_twin() -> None:
    draws = np.random.default_rng(0)
    steps, background = 40, 9
    segments = np.sort(draws.integers(-4, 44, (7, 2)) / 1.0, -1).astype(np.float32)
    labels, mask = draws.integers(0, 5, 7).astype(np.int32), np.array([True] * 5 + [False] * 2)
    segments[5:] = (0, 39)
    found = jax.jit(frame_labels, static_argnums=(3, 4))(segments, labels, mask, steps, background)
    expected = np.full(steps, background)
    for t in range(steps):
        over = [n for n in range(7) if mask[n] and segments[n, 0] <= t <= segments[n, 1]]
        if over:
            expected[t] = labels[min(over, key=lambda n: segments[n, 1] - segments[n, 0])]
    assert found.tolist() == expected.tolist()
    assert background in expected and len(set(expected)) > 3
