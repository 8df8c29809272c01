"""The boundary-matching layer and the convolutions over its cells, beside the dense forms (spec 2.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import random_weights
from jax import lax

from apl_jax.nn.boundary_maps import MapHead
from apl_jax.ops.boundary_matching import (
    Sampling,
    map_conv,
    projected_samples,
    sampling_taps,
    squares_of,
    to_map,
    valid_cells,
)

J = Sampling(steps=11, durations=11, samples=4, points=3, extension=0.5, layout="J")
SAMPLINGS = {
    "J": J,
    "J, few durations": J._replace(durations=5),
    "S": J._replace(layout="S"),
    "S, few durations": J._replace(durations=5, layout="S"),
}


def dense_mask(sampling: Sampling) -> np.ndarray:
    """Weights ``[D, T, N, T]`` from the rule, point by point."""
    s = sampling
    mask = np.zeros((s.durations, s.steps, s.samples, s.steps))
    for d in range(s.durations):
        for start in range(s.steps - d):
            last = start + d + (1 if s.layout == "J" else 0)
            length = last - start + 1
            points = np.linspace(start - s.extension * length, last + s.extension * length, s.samples * s.points)
            for number, x in enumerate(points):
                whole = int(x)  # toward zero
                for step, weight in ((whole, 1 - (x - whole)), (int(np.ceil(x)), x - whole)):
                    if 0 <= step < s.steps:
                        mask[d, start, number // s.points, step] += weight / s.points
    return mask


@pytest.mark.parametrize("name", SAMPLINGS)
def test_layer_beside_the_dense_mask(name: str) -> None:
    """Values and gradients; it never is made itself."""
    sampling, draws = SAMPLINGS[name], np.random.default_rng(0)
    mask = dense_mask(sampling)
    x = jnp.asarray(draws.normal(size=(2, sampling.steps, 3)), jnp.float32)
    kernel = jnp.asarray(draws.normal(size=(sampling.samples, 3, 5)), jnp.float32)
    cotangent = jnp.asarray(draws.normal(size=(2, sampling.durations, sampling.steps, 5)), jnp.float32)
    ours = lambda x, kernel: to_map(jnp.swapaxes(projected_samples(x, kernel, sampling), 0, 1), sampling)
    theirs = lambda x, kernel: jnp.einsum("dsnt,btc,nco->bdso", jnp.asarray(mask, jnp.float32), x, kernel)
    results = []
    for form in (ours, theirs):
        value, pull = jax.vjp(form, x, kernel)
        results.append((value, *pull(cotangent)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_taps_of_points_around_the_ends() -> None:
    """Between -1 and 0 the total is 1, at -1 and below, and at T and beyond, 0; between T - 1 and T it is 1 - r."""
    sampling = Sampling(steps=10, durations=10, samples=64, points=1, extension=3.0, layout="S")
    step, weight = sampling_taps(sampling, np.array(3), np.array(3))
    x = np.linspace(3 - 12.0, 6 + 12.0, 64)
    total = weight.sum(-1)
    inside = (x > -1) & (x <= 9)
    np.testing.assert_allclose(total[inside], 1, atol=1e-12)
    assert not total[(x <= -1) | (x >= 10)].any()
    behind = (x > 9) & (x < 10)
    np.testing.assert_allclose(total[behind], 10 - x[behind], atol=1e-12)
    assert behind.any() and ((x > -1) & (x < 0)).any() and step.min() >= 0 and step.max() <= 9


def on_map(values: np.ndarray, sampling: Sampling) -> np.ndarray:
    """``values [B, D, T, I]`` on the map that convolutions see, ``[B, rows, columns, I]``; 0 where no segment is."""
    if sampling.layout == "S":
        return values
    whole = np.zeros((len(values), sampling.steps, sampling.steps, values.shape[-1]), values.dtype)
    for d in range(sampling.durations):
        for start in range(sampling.steps - d):
            whole[:, start, start + d] = values[:, d, start]
    return whole


@pytest.mark.parametrize("name", SAMPLINGS)
def test_convolutions_beside_those_over_the_whole_map(name: str) -> None:
    """Two in a row, with what cells that are no segments say in between: valid cells do not tell the difference."""
    sampling, draws = SAMPLINGS[name]._replace(steps=19), np.random.default_rng(1)
    if sampling.durations > 5:
        sampling = sampling._replace(durations=19)
    squares, count = squares_of(sampling), 3
    valid = np.asarray(valid_cells(sampling.steps, sampling.durations, jnp.array(19)))
    values = np.where(valid[..., None], draws.normal(size=(2, sampling.durations, 19, count)), 0).astype(np.float32)
    cells = np.zeros((2, len(squares.start), count), np.float32)
    cells[:, squares.place[valid]] = values[:, valid]
    kernels = [jnp.asarray(draws.normal(size=(9, count, count)), jnp.float32) for _ in range(2)]
    whole = jnp.asarray(on_map(values, sampling))

    def ours(cells: jax.Array, kernels: list) -> jax.Array:
        for kernel in kernels:
            cells = jax.nn.relu(map_conv(cells, kernel, sampling) + 0.5)
        return to_map(cells, sampling)

    def theirs(whole: jax.Array, kernels: list) -> jax.Array:
        for kernel in kernels:
            shape = (1, 1), "SAME"
            whole = lax.conv_general_dilated(
                whole, kernel.reshape(3, 3, count, count), *shape, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            whole = jax.nn.relu(whole + 0.5)
        if sampling.layout == "S":
            return jnp.where(valid[..., None], whole, 0)
        start = np.arange(19)
        end = np.minimum(start + np.arange(sampling.durations)[:, None], 18)
        return jnp.where(valid[..., None], whole[:, start, end], 0)

    found, pull = jax.vjp(ours, jnp.asarray(cells), kernels)
    expected, pull_whole = jax.vjp(theirs, whole, kernels)
    np.testing.assert_allclose(np.where(valid[..., None], found, 0), expected, atol=1e-3, rtol=1e-5)
    cotangent = jnp.asarray(np.where(valid[..., None], draws.normal(size=expected.shape), 0), jnp.float32)
    (of_cells, of_kernels), (of_whole, of_whole_kernels) = pull(cotangent), pull_whole(cotangent)
    for a, b in zip(of_kernels, of_whole_kernels, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    back = to_map(of_cells, sampling)
    start = np.arange(19)
    end = np.minimum(start + np.arange(sampling.durations)[:, None], 18)
    there = of_whole if sampling.layout == "S" else of_whole[:, start, end]
    np.testing.assert_allclose(back[:, valid], np.asarray(there)[:, valid], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", ["J", "S"])
def test_a_short_sequence_has_the_map_of_a_shorter_window(layout: str) -> None:
    draws, length = np.random.default_rng(2), 7
    x = jnp.asarray(draws.normal(size=(1, 11, 3)), jnp.float32)
    small = J._replace(steps=length, durations=length, layout=layout)
    heads = [MapHead(sampling, 3, 4, 5, (0.0, 0.5)) for sampling in (J._replace(layout=layout), small)]
    mask = jnp.arange(11)[None] < length
    params = random_weights(jax.eval_shape(lambda: heads[0].init(jax.random.key(0), x, mask)))
    apply = lambda head, x, mask: jax.jit(head.apply)(params, x, mask)
    found = apply(heads[0], jnp.where(mask[..., None], x, 0), mask)
    expected = apply(heads[1], x[:, :length], mask[:, :length])
    valid = np.asarray(valid_cells(length, length, jnp.array(length)))
    np.testing.assert_allclose(found[:, :length, :length][:, valid], expected[:, valid], atol=1e-5)


def test_what_is_computed() -> None:
    """At T = 100, the squares of the triangle and of its border; each of them gathers a seventh of the rows."""
    squares = squares_of(Sampling(100, 100, 32, 3, 0.5, "J"))
    assert len(squares.row) <= 13 * 14 // 2 + 12 and squares.row.shape[1] < 3200 / 6
