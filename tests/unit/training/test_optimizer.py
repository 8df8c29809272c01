"""AdamW as in the reference: schedule, clipping, decay by role, one optimiser each, and the average (spec 1.8)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apl_jax.detectors.actionformer import build_actionformer
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.quality import QualitySettings
from apl_jax.learning.method import GroupSettings
from apl_jax.settings import OptimizerSettings
from apl_jax.structs import DataFacts
from apl_jax.training.optimizer import build_optimizer, clip_by_norm, decay_mask, update_ema, warmup_cosine

THUMOS = OptimizerSettings(learning_rate=1e-4, warmup_fraction=500 / 3500)
# 35 epochs of 100 steps, 5 of them warm-up.
RATES = {
    0: 0.0, 1: 2.004e-7, 250: 5.01002e-5, 499: 1e-4, 500: 1e-4, 1000: 9.330194e-5, 2000: 5.0005e-5,
    3000: 6.70806e-6, 3499: 1.00274e-8,
}  # fmt: skip


@pytest.mark.parametrize(("step", "rate"), RATES.items())
def test_schedule_golden(step: int, rate: float) -> None:
    found = warmup_cosine(jnp.int32(step), jnp.int32(3500), THUMOS)
    np.testing.assert_allclose(found, rate, rtol=2e-5, atol=3e-12)


def test_a_stage_too_short_to_warm_up() -> None:
    settings = OptimizerSettings(warmup_fraction=0.1)
    rates = [float(warmup_cosine(jnp.int32(i), jnp.int32(3), settings)) for i in range(3)]
    assert rates[0] == pytest.approx(1e-4) and rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_clipping_divides_by_the_norm_and_a_millionth(scale: float) -> None:
    gradients = {"a": jnp.array([0.6, 0.0]) * scale, "b": jnp.array([[0.8]]) * scale}
    clip = clip_by_norm(1.0)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    factor = min(1.0, 1 / (scale + 1e-6))
    np.testing.assert_allclose(clipped["a"][0], 0.6 * scale * factor, rtol=1e-7)
    np.testing.assert_allclose(clipped["b"][0, 0], 0.8 * scale * factor, rtol=1e-7)


def test_decay_groups_of_the_thumos14_model() -> None:
    """Weights of convolutions and projections decay: 71 tensors; norms, biases and scales do not: 158."""
    settings = ActionFormerSettings(quality=QualitySettings(branches="none"))
    shapes = jax.eval_shape(build_actionformer(settings, DataFacts(2048, 20)).init, jax.random.key(0))[0]
    size = {True: [0, 0], False: [0, 0]}
    for leaf, decays in zip(jax.tree.leaves(shapes), jax.tree.leaves(decay_mask(shapes)), strict=True):
        size[decays][0] += 1
        size[decays][1] += int(np.prod(leaf.shape))
    assert size == {True: [71, 29_164_032], False: [158, 87_580]}


SETTINGS = OptimizerSettings(learning_rate=0.1, weight_decay=0.3, warmup_fraction=0.25)
GROUPS = {"detector": None, "discriminator": GroupSettings(learning_rate=0.02, weight_decay=0.2)}
STEPS = 8


def gradients_of(step: int, size: float = 1.0) -> dict:
    draws = np.random.default_rng(step)
    return {
        "detector": {"kernel": jnp.asarray(draws.normal(size=(2, 3))), "bias": jnp.asarray(draws.normal(size=3))},
        "discriminator": {"out_kernel": jnp.asarray(size * draws.normal(size=4))},
    }


def trained(size: float = 1.0) -> dict:
    """Parameters after five steps from ones."""
    optimizer = build_optimizer(SETTINGS, GROUPS, STEPS)
    params = jax.tree.map(jnp.ones_like, gradients_of(0))
    state = optimizer.init(params)

    @jax.jit
    def update(gradients: dict, state: tuple, params: dict) -> tuple:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(5):
        params, state = update(gradients_of(step, size), state, params)
    return params


def test_adamw_twin() -> None:
    """Five steps in numpy: clip each group by its own norm, moments, decoupled decay of kernels, scheduled rate."""
    params, groups = (
        trained(),
        {"detector": (("kernel", True), ("bias", False)), "discriminator": (("out_kernel", True),)},
    )
    for group, names in groups.items():
        value = {name: np.ones(gradients_of(0)[group][name].shape) for name, _ in names}
        first, second = ({name: np.zeros_like(v) for name, v in value.items()} for _ in range(2))
        for step in range(5):
            gradients = {name: np.asarray(g, np.float64) for name, g in gradients_of(step)[group].items()}
            norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
            rate = float(warmup_cosine(jnp.int32(step), jnp.int32(STEPS), SETTINGS)) if group == "detector" else 0.02
            decay = 0.3 if group == "detector" else 0.2
            for name, decays in names:
                g = gradients[name] * min(1, 1 / (norm + 1e-6))
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                direction = (first[name] / (1 - 0.9 ** (step + 1))) / (
                    np.sqrt(second[name] / (1 - 0.999 ** (step + 1))) + 1e-8
                )
                value[name] = value[name] - rate * (direction + decay * decays * value[name])
        for name, expected in value.items():
            np.testing.assert_allclose(params[group][name], expected, rtol=1e-4)


def test_gradients_of_the_discriminator_do_not_clip_the_detector() -> None:
    quiet, loud = trained(1.0), trained(1e4)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(quiet["detector"][name], loud["detector"][name])


def test_average() -> None:
    """A ramp of min(.999, (1 + i) / (10 + i)), SSTAP's, or the reference's constant."""
    old, new = {"a": jnp.zeros(2)}, {"a": jnp.ones(2)}
    for step, decay in ((0, 0.1), (8, 0.5), (90, 0.91), (10**5, 0.999)):
        found = update_ema(old, new, jnp.int32(step), OptimizerSettings())
        np.testing.assert_allclose(found["a"], 1 - decay, atol=1e-6)
    sstap = dataclasses.replace(OptimizerSettings(), ema_ramp_length=21)
    for done, decay in ((1, 0.0476), (20, 0.5), (100, 0.8333), (1000, 0.9804), (19_980, 0.999)):  # spec 4.1
        found = update_ema(old, new, jnp.int32(done - 1), sstap)
        np.testing.assert_allclose(found["a"], 1 - decay, atol=5e-5)
    constant = dataclasses.replace(OptimizerSettings(), ema_ramp=False)
    np.testing.assert_allclose(update_ema(old, new, jnp.int32(0), constant)["a"], 0.001, atol=1e-6)
