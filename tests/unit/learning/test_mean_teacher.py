"""Views, weights and terms of mean teachers (spec 4), beside what the specification says of them in numbers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import build_kind, build_method, method_context, random_batch, random_weights, tiny_choice

from apl_jax.learning.mean_teacher import dropout_factor, ramp, shift_channels
from apl_jax.learning.method import LABELLED, UNLABELLED, run_passes
from apl_jax.nn.self_supervision import ClipOrder
from apl_jax.settings import PerturbSettings
from apl_jax.structs import Batch

STEPS = 16
WHOLE = PerturbSettings(crop_ratio=1.0)


def batches() -> dict[str, Batch]:
    """Recordings of unlike length."""
    return {
        LABELLED: random_batch((16, 9), STEPS, seed=1),
        UNLABELLED: random_batch((5, 16, 16), STEPS, seed=2),
    }


def test_the_weight_rises_as_published() -> None:
    """Of epochs 0 to 7, ramp of 5, full weight 6 (spec 4.1)."""
    found = 6 * np.asarray(ramp(jnp.arange(8.0), 5))
    np.testing.assert_allclose(found, [0.0404, 0.2446, 0.9918, 2.696, 4.912, 6, 6, 6], rtol=1e-3)


def test_shift() -> None:
    rows = jnp.arange(24.0).reshape(1, 4, 6) + 1
    found = np.asarray(shift_channels(rows, jnp.array([4, 0, 1, 5]), 2))[0]
    whole = np.asarray(rows)[0]
    for channel in (4, 0):
        assert found[:, channel].tolist() == [*whole[1:, channel].tolist(), 0]
    for channel in (1, 5):
        assert found[:, channel].tolist() == [0, *whole[:-1, channel].tolist()]
    assert (found[:, 2:4] == whole[:, 2:4]).all()


def test_dropout_keeps_the_mean() -> None:
    factor = np.asarray(dropout_factor(jax.random.key(0), 0.2, (200, 100)))
    assert set(np.unique(factor).round(4)) == {0, 1.25} and abs(factor.mean() - 1) < 0.02


@pytest.fixture(scope="module")
def views() -> dict:
    """The views that each pass of one SSTAP step sees."""
    method = build_method("sstap", tiny_choice("conv"), STEPS, WHOLE)
    context = method_context(tiny_choice("conv"), STEPS, WHOLE)
    shapes = jax.eval_shape(context.detector.init, jax.random.key(0))[0]
    params = {"detector": random_weights(shapes)}
    run = jax.jit(lambda key: {name: seen.view for name, seen in
                               run_passes(method, context, params, params, batches(), key).items()})  # fmt: skip
    return jax.device_get(run(jax.random.key(3)))


def test_all_views_are_of_one_crop(views: dict) -> None:
    for part in (LABELLED, UNLABELLED):
        source = views[f"{part}_source"]
        for name in ("teacher", "reversed", "partial", "order"):
            view = views[f"{part}_{name}"]
            assert (view.mask == source.mask).all() and not view.features[~view.mask].any(), name
            assert np.abs(view.features - source.features).max() > 0.1, name
        partial = views[f"{part}_partial"].features
        dropped = ~partial.any(-1) & source.mask
        np.testing.assert_allclose(partial[~dropped], source.features[~dropped] / 0.8, rtol=1e-6)


def test_reversed_views_and_exchanged_halves(views: dict) -> None:
    for part in (LABELLED, UNLABELLED):
        source, turned, order = (views[f"{part}_{name}"] for name in ("source", "reversed", "order"))
        for v, length in enumerate(source.mask.sum(-1)):
            whole = source.features[v, :length]
            channels = turned.features[v, :length].any(0)  # those that were not dropped
            np.testing.assert_allclose(
                turned.features[v, :length][:, channels], whole[::-1][:, channels] / 0.9, rtol=1e-6
            )
            exchanged = order.targets.labels[v, 0] == 0
            expected = np.roll(whole, -(length // 2), axis=0) if exchanged else whole
            np.testing.assert_array_equal(order.features[v, :length], expected)
        assert {0, 1} == set(order.targets.labels[:, 0].tolist())


def test_order_is_told_from_equal_parts_of_any_length() -> None:
    """A recording that is stretched to twice its steps, each shown twice, is told alike, but at its kernel's edges."""
    module, draws = ClipOrder(4), np.random.default_rng(0)
    rows = draws.normal(size=(1, 8, 3)).astype(np.float32)
    mask = np.ones((1, 8), bool)
    params = random_weights(jax.eval_shape(module.init, jax.random.key(0), rows, mask, np.ones((1, 4))))
    params["params"]["summary"]["kernel"] = params["params"]["summary"]["kernel"].at[jnp.array([0, 2])].set(0.0)
    once = module.apply(params, rows, mask, np.ones((1, 4)))
    long = np.pad(rows.repeat(2, axis=1), ((0, 0), (0, 5), (0, 0)), constant_values=9.0)
    twice = module.apply(params, long, np.arange(21)[None] < 16, np.ones((1, 4)))
    np.testing.assert_allclose(once, twice, rtol=1e-5)


def test_a_student_that_is_its_teacher_agrees() -> None:
    """Without shift, dropout and noise student and teacher see the same, so that only flips and tasks are left."""
    changes = {"shift_divisor": 1_000_000, "channel_drop": 0.0, "teacher_drop": 0.0, "masks": 0}
    objective = build_kind("ssp", tiny_choice("conv"), STEPS, WHOLE, **changes)
    shapes, state_shapes = jax.eval_shape(objective.init, jax.random.key(0))
    params = random_weights(shapes)
    state = jax.tree.map(lambda x: jnp.full(x.shape, 1000.0, x.dtype), state_shapes)
    still = {
        name: dataclasses.replace(batch, features=jnp.zeros_like(batch.features)) for name, batch in batches().items()
    }
    loss = jax.jit(objective.loss)
    agreed = loss(params, params, state, still, jax.random.key(0))[1][1]
    assert abs(float(agreed[f"{UNLABELLED}/consistency"])) < 1e-6
    other = jax.tree.map(lambda x: x + 0.3, params)
    apart = loss(params, other, state, still, jax.random.key(0))[1][1]
    assert float(apart[f"{UNLABELLED}/consistency"]) > 1e-3
