"""Sequence operations against slow, obvious twins: values, gradients, odd lengths, strides, masks, dtypes, sharding."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import rarely
from jax import lax

from apl_jax.ops import sequence

LENGTHS = [1, 2, 13]


def draw(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def assert_same_function(found: Callable, expected: Callable, args: list[jax.Array], tolerance: float = 2e-5) -> None:
    """Equal values, and equal gradients of one random weighting of them with respect to every argument."""
    y, pull = jax.vjp(jax.jit(found), *args)
    y_expected, pull_expected = jax.vjp(jax.jit(expected), *args)
    assert y.shape == y_expected.shape
    np.testing.assert_allclose(y, y_expected, atol=tolerance, rtol=tolerance)
    (dy,) = draw(99, y.shape)
    for i, (grad, grad_expected) in enumerate(zip(pull(dy), pull_expected(dy), strict=True)):
        scale = 1 + float(jnp.abs(grad_expected).max())
        np.testing.assert_allclose(grad / scale, grad_expected / scale, atol=tolerance, err_msg=f"gradient {i}")


def lax_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """``kernel`` [K, I, O], or [K, C] for one filter per channel."""
    half, depthwise = kernel.shape[0] // 2, kernel.ndim == 2
    return lax.conv_general_dilated(
        x,
        kernel[:, None] if depthwise else kernel,
        (stride,),
        [(half, half)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
        precision="highest",
    )


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 7, 5), (2, 3, 7, 5)])
@pytest.mark.parametrize("outputs", [3, 8])
def test_linear(shape: tuple[int, ...], outputs: int) -> None:
    assert_same_function(sequence.linear, lambda x, w: x @ w, draw(0, shape, (shape[-1], outputs)))


@pytest.mark.parametrize("length", rarely(LENGTHS, LENGTHS[-2:].__contains__))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("width", "inputs", "outputs"), [(3, 4, 6), (3, 6, 2), (1, 4, 4), (5, 3, 3)])
def test_conv1d(length: int, stride: int, width: int, inputs: int, outputs: int) -> None:
    assert_same_function(
        lambda x, w: sequence.conv1d(x, w, stride),
        lambda x, w: lax_convolution(x, w, stride),
        draw(1, (2, length, inputs), (width, inputs, outputs)),
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("stride", "width"), [(1, 3), (2, 3), (3, 5)])
def test_depthwise_conv1d(length: int, stride: int, width: int) -> None:
    assert_same_function(
        lambda x, w: sequence.depthwise_conv1d(x, w, stride),
        lambda x, w: lax_convolution(x, w, stride),
        draw(2, (2, length, 6), (width, 6)),
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool1d(length: int, stride: int) -> None:
    window, strides, padding = (1, 3, 1), (1, stride, 1), [(0, 0), (1, 1), (0, 0)]
    assert_same_function(
        lambda x: sequence.max_pool1d(x, stride),
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding),
        draw(3, (2, length, 4)),
    )


def test_max_pool1d_teaches_the_first_of_equals_and_keeps_infinities_and_nan() -> None:
    x = jnp.asarray([1.0, 5.0, 5.0, 5.0, 0.0, 0.0])[None, :, None]
    grad = jax.grad(lambda x: sequence.max_pool1d(x).sum())(x)[0, :, 0]
    np.testing.assert_array_equal(grad, [0, 2, 0, 1, 0, 0])  # windows [1 5], [5 5 5], [5 0 0]
    x = jnp.asarray([-jnp.inf, -jnp.inf, -jnp.inf, jnp.nan])[None, :, None]
    np.testing.assert_array_equal(sequence.max_pool1d(x)[0, :, 0], [-jnp.inf, jnp.nan])
    x = jnp.full((1, 4, 1), -jnp.inf)
    assert np.isfinite(jax.grad(lambda x: jnp.where(sequence.max_pool1d(x) > 0, 1.0, 0.0).sum())(x)).all()


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_layer_norm(offset: float) -> None:
    def twin(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    x, scale, bias = draw(4, (2, 9, 16), (16,), (16,))
    tolerance = 2e-5 if offset == 0 else 2e-4
    args = [x + offset, scale, bias]
    assert_same_function(lambda x, s, b: sequence.layer_norm(x, s, b, 1e-5), twin, args, tolerance)


def test_layer_norm_of_equal_channels_is_its_bias_with_finite_gradients() -> None:
    (scale, bias), x = draw(5, (8,), (8,)), jnp.zeros((1, 3, 8))
    y, pull = jax.vjp(jax.jit(lambda x, s, b: sequence.layer_norm(x, s, b, 1e-5)), x, scale, bias)
    np.testing.assert_array_equal(y, jnp.broadcast_to(bias, y.shape))
    assert all(np.isfinite(grad).all() for grad in pull(jnp.ones_like(y)))


def test_gelu() -> None:
    x = np.concatenate([np.linspace(-12, 12, 241), [-1e4, 1e4]])
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(sequence.gelu(jnp.float32(x)), x * cdf, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(sequence.gelu)))(jnp.float32(x)), cdf + x * density, atol=1e-6)


def dense_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, window: int) -> jax.Array:
    """The dense formulation of spec 1.3, word for word; window 0 is global attention."""
    logits = jnp.einsum("bqhe,bkhe->bhqk", q, k, precision="highest")
    if window == 0:
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, -jnp.inf), axis=-1)
        return jnp.einsum("bhqk,bkhe->bqhe", weights, v * mask[..., None, None], precision="highest")
    time = np.arange(q.shape[1])
    band = np.abs(time[:, None] - time) <= window // 2
    logits = jnp.where(band, logits + jnp.where(mask, 0.0, -1e4)[:, None, None], -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1) * mask[:, None, :, None]
    return jnp.einsum("bhqk,bkhe->bqhe", weights, v, precision="highest")


def draw_attention(length: int, valid: list[int]) -> tuple[list[jax.Array], jax.Array]:
    shape = (len(valid), length, 2, 4)
    return draw(6, shape, shape, shape), jnp.arange(length) < jnp.asarray(valid)[:, None]


@pytest.mark.parametrize(("window", "length"), [(3, 1), (3, 45), (9, 64), (19, 7), (19, 32), (19, 101), (51, 45)])
def test_local_attention(window: int, length: int) -> None:
    args, mask = draw_attention(length, [length, -(-length // 2), 1])
    assert_same_function(
        lambda q, k, v: sequence.local_attention(q, k, v, mask, window),
        lambda q, k, v: dense_attention(q, k, v, mask, window),
        args,
        2e-6,
    )


def test_local_attention_with_holes_in_the_mask_and_large_logits() -> None:
    (q, k, v), _ = draw_attention(70, [70, 70])
    mask = jnp.asarray(np.random.default_rng(7).random((2, 70)) < 0.5)
    found = jax.jit(sequence.local_attention, static_argnums=4)(30 * q, k, v, mask, 9)
    expected = jax.jit(dense_attention, static_argnums=4)(30 * q, k, v, mask, 9)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not found[~mask].any()


@pytest.mark.parametrize("length", [1, 33])
def test_global_attention(length: int) -> None:
    args, mask = draw_attention(length, [length, -(-length // 2)])
    assert_same_function(
        lambda q, k, v: sequence.global_attention(q, k, v, mask),
        lambda q, k, v: dense_attention(q, k, v, mask, 0),
        args,
        2e-6,
    )


@pytest.mark.parametrize("window", [0, 19])
def test_attention_without_valid_steps_is_zero_with_finite_gradients(window: int) -> None:
    args, mask = draw_attention(45, [0, 45])

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if window == 0:
            return sequence.global_attention(q, k, v, mask)
        return sequence.local_attention(q, k, v, mask, window)

    y, pull = jax.vjp(jax.jit(attend), *args)
    assert not y[0].any() and y[1].all()
    for grad in pull(jnp.ones_like(y)):
        assert np.isfinite(grad).all() and not grad[0].any()


def test_local_attention_reads_only_its_window() -> None:
    (q, k, v), mask = draw_attention(60, [60])
    reach = jax.jit(jax.grad(lambda v: sequence.local_attention(q, k, v, mask, 9)[0, 33].sum()))(v)[0, :, 0, 0]
    np.testing.assert_array_equal(np.flatnonzero(reach), np.arange(29, 38))


@pytest.mark.parametrize("window", [0, 1, 4])
def test_local_attention_refuses_windows_without_a_centre(window: int) -> None:
    args, mask = draw_attention(8, [8])
    with pytest.raises(ValueError, match=f"window {window}, expected an odd number > 1"):
        sequence.local_attention(*args, mask, window)


HALF_PRECISION: dict[str, tuple[Callable, list[tuple[int, ...]]]] = {
    "linear": (sequence.linear, [(2, 9, 8), (8, 4)]),
    "conv1d": (sequence.conv1d, [(2, 9, 8), (3, 8, 8)]),
    "conv1d, stride 2": (lambda x, w: sequence.conv1d(x, w, 2), [(2, 9, 8), (3, 8, 4)]),
    "depthwise_conv1d": (sequence.depthwise_conv1d, [(2, 9, 8), (3, 8)]),
    "max_pool1d": (sequence.max_pool1d, [(2, 9, 8)]),
    "layer_norm": (lambda x, s, b: sequence.layer_norm(x, s, b, 1e-5), [(2, 9, 8), (8,), (8,)]),
    "gelu": (sequence.gelu, [(2, 9, 8)]),
    "global_attention": (
        lambda q, k, v: sequence.global_attention(q, k, v, jnp.ones(q.shape[:2], bool)),
        [(2, 9, 2, 4)] * 3,
    ),
    "local_attention": (
        lambda q, k, v: sequence.local_attention(q, k, v, jnp.ones(q.shape[:2], bool), 3),
        [(2, 9, 2, 4)] * 3,
    ),
}


@pytest.mark.parametrize("name", HALF_PRECISION)
def test_bfloat16_activations_with_float32_parameters(name: str) -> None:
    """The result has the activations' dtype, every gradient its argument's, and both are the float32 ones, rounded."""
    function, shapes = HALF_PRECISION[name]
    exact = draw(8, *shapes)
    activations = 3 if "attention" in name else 1
    args: list[Any] = [a.astype(jnp.bfloat16) if i < activations else a for i, a in enumerate(exact)]
    y, pull = jax.vjp(jax.jit(function), *args)
    assert y.dtype == jnp.bfloat16
    expected, pull_expected = jax.vjp(jax.jit(function), *[a.astype(jnp.float32) for a in args])
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.05, rtol=0.03)
    grads, expected_grads = pull(jnp.ones_like(y)), pull_expected(jnp.ones_like(expected))
    for grad, grad_expected, arg in zip(grads, expected_grads, args, strict=True):
        assert grad.dtype == arg.dtype
        scale = 1 + float(jnp.abs(grad_expected).max())
        np.testing.assert_allclose(grad.astype(jnp.float32) / scale, grad_expected / scale, atol=0.03)


def test_bfloat16_products_accumulate_in_float32() -> None:
    ones = jnp.ones((1, 1024, 1024), jnp.bfloat16)  # sums of ones in bfloat16 stop growing at 256
    for function, kernel, taps in (
        (sequence.linear, jnp.ones((1024, 2)), 1),
        (sequence.conv1d, jnp.ones((3, 1024, 2)), 3),
    ):
        y, pull = jax.vjp(jax.jit(function), ones, kernel)
        assert float(y[0, 5, 0]) == taps * 1024
        assert float(pull(jnp.ones_like(y))[1].max()) == 1024


SHARDED = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from apl_jax.ops import sequence

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    rng = np.random.default_rng(0)
    weights = {"conv": rng.normal(size=(3, 8, 8)), "down": rng.normal(size=(3, 8)), "in": rng.normal(size=(8, 16)),
               "out": rng.normal(size=(16, 8)), "norm": rng.normal(size=(8,))}
    weights = {name: jnp.float32(value) for name, value in weights.items()}

    def loss(w, x, mask):
        y = sequence.layer_norm(sequence.conv1d(x, w["conv"]), w["norm"], w["norm"], 1e-5)
        half, y = mask[:, ::2], sequence.depthwise_conv1d(y, w["down"], 2) + sequence.max_pool1d(y)
        heads = y.reshape(*y.shape[:2], 2, 4)
        y = y + sequence.local_attention(heads, heads, heads, half, 9).reshape(y.shape)
        y = y + sequence.global_attention(heads, heads, heads, half).reshape(y.shape)
        return (sequence.linear(sequence.gelu(sequence.linear(y, w["in"])), w["out"]) ** 2).sum()

    x, mask = jnp.float32(rng.normal(size=(8, 50, 8))), jnp.arange(50) < jnp.arange(43, 51)[:, None]
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    expected = step(weights, x, mask)
    args = jax.tree.map(place, weights), place(x, "data"), place(mask, "data")
    text = step.lower(*args).compile().as_text()
    moved = [name for name in ("all-gather", "all-to-all", "collective-permute") if name in text]
    assert not moved, f"data moved between devices: {moved}"
    assert "all-reduce" in text
    found = step(*args)
    assert found[1][1].sharding.spec == PartitionSpec("data"), found[1][1].sharding
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        scale = 1 + np.abs(b).max()
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=1e-5)
"""


def test_sharding_over_videos_moves_nothing_but_kernel_gradients() -> None:
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
    command = [sys.executable, "-c", textwrap.dedent(SHARDED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
