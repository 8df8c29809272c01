"""Trident decoding: the specification's worked numbers, and a twin in numpy (spec 1.12)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.ops.trident import trident_offsets


def test_worked_numbers() -> None:
    start, end = (0.5, -1, 2, 0, 1), (0.3, 1, -0.5, 0, 2)
    center = np.zeros((1, 5, 6), np.float32)
    center[0, 2] = (1, 0, 0.5, 0, 0.2, 1.5)
    column = lambda values: jnp.asarray(values, jnp.float32)[None, :, None]
    found = np.asarray(trident_offsets(column(start), column(end), jnp.asarray(center), 0.0))[0, :, 0]
    np.testing.assert_allclose(found[2], [0.5479, 1.9303], atol=5e-5)
    np.testing.assert_allclose(found[0], [0.8222, 0.8410], atol=5e-5)
    # Printed there as four times the rounded distances.
    np.testing.assert_allclose(2 * 4 + found[2] * 4 * [-1, 1], [5.808, 15.721], atol=1e-3)


def twin(start: np.ndarray, end: np.ndarray, center: np.ndarray, outside: float) -> np.ndarray:
    """Point by point, class by class."""
    bins = center.shape[1] // 2 - 1
    offsets = np.zeros((*start.shape, 2))
    at = lambda logits, t, c: logits[t, c] if 0 <= t < len(logits) else outside
    for t, c in np.ndindex(start.shape):
        left = np.exp([at(start, t - bins + j, c) + center[t, j] for j in range(bins + 1)])
        right = np.exp([at(end, t + j, c) + center[t, bins + 1 + j] for j in range(bins + 1)])
        offsets[t, c, 0] = (left / left.sum()) @ np.arange(bins, -1, -1)
        offsets[t, c, 1] = (right / right.sum()) @ np.arange(bins + 1)
    return offsets


def test_twin() -> None:
    """Sequences shorter than the reach, and of one step, too."""
    draws = np.random.default_rng(0)
    for steps, bins, outside in ((9, 3, 0.0), (9, 3, -4.6), (2, 5, -1.0), (1, 1, 0.0), (4, 1, 0.0)):
        start, end = draws.normal(size=(2, 2, steps, 3)).astype(np.float32)
        center = draws.normal(size=(2, steps, 2 * bins + 2)).astype(np.float32)
        found = np.asarray(jax.jit(trident_offsets, static_argnums=3)(start, end, center, outside))
        for b in range(2):
            np.testing.assert_allclose(found[b], twin(start[b], end[b], center[b], outside), atol=1e-5)
        assert found.min() >= 0 and found.max() <= bins
