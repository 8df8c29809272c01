"""Runs of true values, and dilation, beside twins that walk along the array."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.ops import intervals

WIDTH = 9
# All patterns of nine positions.
PATTERNS = np.array(list(itertools.product([False, True], repeat=WIDTH)))


def runs_of(row: np.ndarray) -> list[tuple[int, int]]:
    """(first, last + 1) of every run."""
    found, start = [], None
    for t, value in enumerate([*row, False]):
        if value and start is None:
            start = t
        elif not value and start is not None:
            found.append((start, t))
            start = None
    return found


def test_component() -> None:
    first, last = jax.jit(intervals.component)(jnp.asarray(PATTERNS)[:, None], jnp.arange(WIDTH))
    for n, row in enumerate(PATTERNS):
        for at in range(WIDTH):
            extent = (int(first[n, at]), int(last[n, at]))
            if not row.any():
                assert extent[0] == extent[1]
                continue
            away = lambda run: max(run[0] - at, at - (run[1] - 1), 0)
            nearest = min(runs_of(row), key=away)  # the first of two at the same distance
            assert extent == nearest, (row.astype(int), at)


def test_span() -> None:
    first, last = intervals.span(jnp.asarray(PATTERNS))
    for row, start, stop in zip(PATTERNS, first, last, strict=True):
        ends = runs_of(row)
        assert (start, stop) == ((ends[0][0], ends[-1][1]) if ends else (0, 0))


def test_run_starts_and_maximum() -> None:
    values = np.random.default_rng(0).normal(size=PATTERNS.shape).astype(np.float32)
    first, ends = jax.jit(intervals.run_starts)(jnp.asarray(PATTERNS))
    largest = jax.jit(intervals.running_max)(jnp.asarray(values), first)
    for n, row in enumerate(PATTERNS):
        expected = runs_of(row)
        assert [(int(first[n, t]), int(t) + 1) for t in np.flatnonzero(ends[n])] == expected
        for start, stop in expected:
            assert largest[n, stop - 1] == values[n, start:stop].max()


def test_membership() -> None:
    inside = intervals.within(jnp.array([2, 4, -3]), jnp.array([5, 4, 1]), 6)
    assert inside.astype(int).tolist() == [[0, 0, 1, 1, 1, 0], [0] * 6, [1, 0, 0, 0, 0, 0]]
    assert intervals.top_mask(jnp.array([1.0, 3.0, 3.0, 0.0]), 2).tolist() == [False, True, True, False]
    assert intervals.top_mask(jnp.array([1.0, 1.0, 1.0]), 2).tolist() == [True, True, False]
    assert intervals.top_mask(jnp.array([1.0, 2.0]), 5).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 30])
def test_dilation(size: int) -> None:
    active = np.random.default_rng(size).random((2, 11, 9)) < 0.06
    grown = np.zeros_like(active)
    for n, i, j in np.argwhere(active):
        # Cell i reaches those that see it size // 2 back or (size - 1) // 2 ahead of themselves.
        rows = slice(max(i - (size - 1) // 2, 0), i + size // 2 + 1)
        columns = slice(max(j - (size - 1) // 2, 0), j + size // 2 + 1)
        grown[n, rows, columns] = True
    assert (np.asarray(jax.jit(intervals.dilate, static_argnums=1)(jnp.asarray(active), size)) == grown).all()
