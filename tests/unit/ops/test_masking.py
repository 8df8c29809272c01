"""Silencing, and resampling that looks at valid steps only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.ops.masking import apply_mask, map_rows, masked_mean, reverse_time, reversed_rows, upsample_linear


def test_silence_stops_nan_and_its_gradient() -> None:
    x = jnp.array([[[1.0, 2.0], [jnp.nan, jnp.inf]]])
    mask = jnp.array([[True, False]])
    assert apply_mask(x, mask).tolist() == [[[1, 2], [0, 0]]]
    gradient = jax.grad(lambda x: (apply_mask(x, mask) ** 2).sum())(x)
    assert gradient.tolist() == [[[2, 4], [0, 0]]]
    assert apply_mask(x.astype(jnp.bfloat16), mask).dtype == jnp.bfloat16


def test_reversal_leaves_padding_where_it_is() -> None:
    mask = jnp.arange(4) < jnp.array([4, 3, 0])[:, None]
    assert reversed_rows(mask).tolist() == [[3, 2, 1, 0], [2, 1, 0, 3], [0, 1, 2, 3]]
    x = jnp.arange(24.0).reshape(3, 4, 2)
    assert reverse_time(x, mask)[1, :, 0].tolist() == [12, 10, 8, 14]
    assert (reverse_time(reverse_time(x, mask), mask) == x).all()
    assert (reverse_time(x[..., 0], mask) == reverse_time(x, mask)[..., 0]).all()


def test_mean_of_nothing_is_zero() -> None:
    value = jnp.array([1.0, 3.0, jnp.nan])
    assert masked_mean(value, jnp.array([True, True, False])) == 2
    assert masked_mean(value, jnp.zeros(3, bool)) == 0


# Ramp 0 .. n - 1 resized (spec 1.2).
GOLDEN = [
    (5, [0, 0.4375, 1.0625, 1.6875, 2.3125, 2.9375, 3.5625, 4]),
    (8, [0.3, 1.9, 3.5, 5.1, 6.7]),
]


@pytest.mark.parametrize(("steps", "expected"), GOLDEN)
def test_half_pixel_centres(steps: int, expected: list[float]) -> None:
    ramp = jnp.arange(steps, dtype=jnp.float32)[None, :, None]
    rows = jnp.arange(len(expected))[None]
    found = upsample_linear(ramp, jnp.ones((1, steps), bool), rows, len(expected))
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_twin_and_padding(factor: int) -> None:
    """Any rows of a video as if it ended where its mask ends; what lies behind may be anything."""
    draws = np.random.default_rng(0)
    x, lengths = draws.normal(size=(3, 8, 2)).astype(np.float32), [8, 5, 1]
    mask = np.arange(8) < np.array(lengths)[:, None]
    rows = np.stack([np.sort(draws.integers(0, length * factor, 12)) for length in lengths])
    resample = jax.jit(upsample_linear, static_argnums=3)
    found = np.asarray(resample(np.where(mask[..., None], x, np.nan), mask, rows, 8 * factor))
    for b, length in enumerate(lengths):
        for n, row in enumerate(rows[b]):
            position = max((row + 0.5) / factor - 0.5, 0)
            left = int(position)
            a, c = x[b, min(left, length - 1)], x[b, min(left + 1, length - 1)]
            np.testing.assert_allclose(found[b, n], a + (position - left) * (c - a), atol=1e-6)


def test_an_empty_video() -> None:
    found = upsample_linear(jnp.zeros((1, 4, 2)), jnp.zeros((1, 4), bool), jnp.zeros((1, 8), jnp.int32), 8)
    assert found.shape == (1, 8, 2) and not found.any()


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 50])
def test_map_rows_is_the_function_of_every_row(batch: int) -> None:
    tree = {"x": jnp.arange(21.0).reshape(7, 3), "n": jnp.arange(7)}
    shapes = []

    def function(chunk: dict) -> dict:
        shapes.append(chunk["x"].shape)
        return {"sum": chunk["x"].sum(-1), "twice": 2 * chunk["n"]}

    found = map_rows(function, tree, batch)
    assert set(shapes) == {(min(batch, 7), 3)}
    np.testing.assert_array_equal(found["sum"], np.arange(21.0).reshape(7, 3).sum(-1))
    np.testing.assert_array_equal(found["twice"], 2 * np.arange(7))
