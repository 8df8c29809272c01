"""Label assignment: the specification's worked example (1.6), and a twin in plain loops on random instances (1.5)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.ops.pyramid import Assignment, assign, pyramid_points
from apl_jax.structs import Targets

THUMOS = ActionFormerSettings()
STEPS, CLASSES = 2304, 20


def targets_of(rows: list[tuple[float, float, int]], padding: int = 3) -> Targets:
    """Instances (start, end, class) of one video, followed by empty rows that would win if they counted."""
    count = len(rows) + padding
    segments_t, labels = np.tile(np.float32([0.0, 4.0]), (count, 1)), np.zeros(count, np.int32)
    for i, (start, end, label) in enumerate(rows):
        segments_t[i], labels[i] = (start, end), label
    exists = np.arange(count) < len(rows)
    return Targets(
        jnp.asarray(segments_t), jnp.asarray(labels), jnp.asarray(exists), jnp.ones(count), jnp.zeros(count, bool)
    )


def assigned(points: np.ndarray, targets: Targets, classes: int) -> Assignment:
    """The assignment as numpy arrays."""
    run = jax.jit(lambda t: assign(jnp.asarray(points), t, num_classes=classes, center_radius=THUMOS.center_radius))
    return jax.device_get(run(targets))


INSTANCES = [
    (45, 101.25, 7), (116.25, 155.25, 7), (294, 322.5, 7), (4.1, 4.3, 1),
    (3.3, 4.7, 2), (10, 14, 3), (10, 14, 4), (-1.5, 2.5, 5),
]  # fmt: skip
# (level, t): classes, (left, right) in strides.
POSITIVES = {
    (0, 0): ({5}, (1.5, 2.5)), (0, 1): ({5}, (2.5, 1.5)), (0, 4): ({2}, (0.7, 0.7)),
    (0, 11): ({3, 4}, (1, 3)), (0, 12): ({3, 4}, (2, 2)), (0, 13): ({3, 4}, (3, 1)),
    (2, 308): ({7}, (3.5, 3.625)),
    (3, 72): ({7}, (3.375, 3.65625)), (3, 128): ({7}, (1.46875, 3.40625)), (3, 136): ({7}, (2.46875, 2.40625)),
    (3, 144): ({7}, (3.46875, 1.40625)), (3, 304): ({7}, (1.25, 2.3125)), (3, 312): ({7}, (2.25, 1.3125)),
    (3, 320): ({7}, (3.25, 0.3125)),
    (4, 64): ({7}, (1.1875, 2.328125)), (4, 80): ({7}, (2.1875, 1.328125)), (4, 96): ({7}, (3.1875, 0.328125)),
}  # fmt: skip


def test_points() -> None:
    points = pyramid_points(STEPS, THUMOS.regression_ranges)
    assert len(points) == 4536
    assert points[STEPS + 3].tolist() == [6, 4, 8, 2]
    assert points[-1].tolist() == [2272, 64, 10000, 32]


def test_worked_example() -> None:
    points = pyramid_points(STEPS, THUMOS.regression_ranges)
    goal = assigned(points, targets_of(INSTANCES), CLASSES)
    found = {
        (int(np.log2(points[p, 3])), int(points[p, 0])): (set(np.flatnonzero(goal.classes[p])), goal.offsets[p])
        for p in np.flatnonzero(goal.positive)
    }
    assert {key: classes for key, (classes, _) in found.items()} == {k: c for k, (c, _) in POSITIVES.items()}
    for key, (_, offsets) in POSITIVES.items():
        np.testing.assert_allclose(found[key][1], offsets, atol=1e-6, err_msg=str(key))
    assert not goal.classes[~goal.positive].any() and (goal.weight == 1).all()


def twin(points: np.ndarray, targets: Targets, classes: int) -> Assignment:
    """Spec 1.5 for one video, point by point and instance by instance, in float32 as the reference computes."""
    segments, labels = np.asarray(targets.segments_t), np.asarray(targets.labels)
    exists, ignored = np.asarray(targets.mask), np.asarray(targets.ignore_mask)
    positive, one_hot = np.zeros(len(points), bool), np.zeros((len(points), classes), np.float32)
    offsets, weight = np.zeros((len(points), 2), np.float32), np.ones(len(points), np.float32)
    silent = np.zeros(len(points), bool)
    for p, (t, low, high, stride) in enumerate(points):
        cost = np.full(len(segments), np.inf, np.float32)
        for n, (a, b) in enumerate(segments):
            if not exists[n]:
                continue
            if ignored[n]:
                silent[p] |= a <= t <= b
                continue
            center, radius = np.float32(0.5) * (a + b), np.float32(THUMOS.center_radius) * stride
            inside = min(t - max(center - radius, a), min(center + radius, b) - t) > 0
            if inside and low <= max(t - a, b - t) <= high:
                cost[n] = b - a
        best = int(np.argmin(cost))
        if np.isfinite(cost[best]):
            positive[p], silent[p], weight[p] = True, False, np.asarray(targets.weight)[best]
            offsets[p] = (t - segments[best, 0]) / stride, (segments[best, 1] - t) / stride
            one_hot[p, labels[cost <= cost[best] + 1e-3]] = 1
    weight[silent] = 0
    return Assignment(positive, one_hot, offsets, weight, silent)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("seed", range(3))
def test_twin_in_loops(seed: int) -> None:
    """Random overlapping instances, among them empty rows, ignored ones, ties, and ones that touch range limits."""
    draws = np.random.default_rng(seed)
    rows, classes, steps = 14, 4, 64
    start = draws.integers(-8, 120, rows) / 2
    segments_t = np.stack([start, start + draws.integers(1, 50, rows) / 2], -1).astype(np.float32)
    segments_t[1] = segments_t[0]
    exists, ignored = draws.random(rows) < 0.8, draws.random(rows) < 0.2
    exists[:3], ignored[:3] = True, (False, False, True)
    targets = Targets(
        jnp.asarray(segments_t), jnp.asarray(draws.integers(0, classes, rows), jnp.int32), jnp.asarray(exists),
        jnp.asarray(draws.random(rows), jnp.float32), jnp.asarray(ignored),
    )  # fmt: skip
    points = pyramid_points(steps, ((0, 4), (4, 8), (8, 16), (16, 10000)))
    goal, expected = assigned(points, targets, classes), twin(points, targets, classes)
    assert expected.positive.sum() > 10 and (expected.weight == 0).any()
    assert (goal.positive == expected.positive).all() and (goal.classes == expected.classes).all()
    positive = expected.positive
    np.testing.assert_allclose(goal.offsets[positive], expected.offsets[positive], rtol=1e-6)
    np.testing.assert_allclose(goal.weight, expected.weight, rtol=1e-6)
    assert (goal.silent == expected.silent).all()


def test_no_instances() -> None:
    goal = assigned(pyramid_points(64, THUMOS.regression_ranges), targets_of([], padding=2), CLASSES)
    assert not goal.positive.any() and not goal.classes.any() and (goal.weight == 1).all()
