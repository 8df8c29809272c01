"""Several networks as one: what is averaged, what each learns, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_batch, random_weights, tiny_choice
from proposal_detector import NamingSettings, build_naming

from apl_jax.declarations import Choice, SettingsError
from apl_jax.detectors import build_detector, decoding_of, without_decoding
from apl_jax.detectors.ensemble import EnsembleSettings, mean_outputs
from apl_jax.detectors.quality import QualitySettings
from apl_jax.registry import DETECTORS
from apl_jax.runs.settings import plain_detector
from apl_jax.structs import DataFacts

FACTS = DataFacts(FEATURE_WIDTH, CLASSES)
NETWORKS, STEPS = 3, 16
BATCH = random_batch((STEPS, 9), STEPS, seed=3)


def ensemble(of: str, networks: int = NETWORKS) -> Choice:
    return Choice("ensemble", EnsembleSettings(tiny_choice(of), networks))


def weights_of(choice: Choice, seed: int = 0) -> tuple[Any, Any]:
    """Parameters that differ between networks, and the state of the losses."""
    params, state = jax.eval_shape(build_detector(choice, FACTS).init, jax.random.key(0))
    return random_weights(params, seed), jax.tree.map(lambda x: jnp.full(x.shape, 7, x.dtype), state)


@pytest.mark.parametrize("of", ["conv", "spot"])
def test_dense_outputs_are_averaged_before_decoding(of: str) -> None:
    member, together = build_detector(tiny_choice(of), FACTS), build_detector(ensemble(of), FACTS)
    params, _ = weights_of(ensemble(of))
    apply = jax.jit(lambda own: member.apply(own, BATCH, None))
    each = [jax.device_get(apply(jax.tree.map(lambda x, k=k: x[k], params))) for k in range(NETWORKS)]

    def mean(*leaves: np.ndarray) -> np.ndarray:
        return np.mean(leaves, 0) if leaves[0].dtype == np.float32 else leaves[0]

    expected = jax.device_get(jax.jit(member.decode)(jax.tree.map(mean, *each)))
    found = jax.device_get(jax.jit(lambda own: together.decode(together.apply(own, BATCH, None)))(params))
    np.testing.assert_array_equal(found.labels[found.mask], expected.labels[expected.mask])
    for name in ("segments_t", "confidence"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5, err_msg=name)
    alone = jax.device_get(jax.jit(member.decode)(each[0]))
    assert np.abs(alone.confidence - found.confidence).max() > 1e-3  # the networks do differ


def test_many_times_one_network_is_that_network() -> None:
    member, together = build_detector(tiny_choice("conv"), FACTS), build_detector(ensemble("conv"), FACTS)
    params = random_weights(jax.eval_shape(member.init, jax.random.key(0))[0])
    repeated = jax.tree.map(lambda x: jnp.stack([x] * NETWORKS), params)
    alone, outputs = member.apply(params, BATCH, None), together.apply(repeated, BATCH, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, mean_outputs(outputs.each))
    rows = jnp.asarray([[0, 3], [5, 8]])
    features = alone.represent(rows)
    np.testing.assert_allclose(
        outputs.represent(rows), jnp.concatenate([features] * NETWORKS, -1), atol=1e-5
    )  # fmt: skip
    for one, other in zip(alone.distribution(), outputs.distribution(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_probabilities_of_an_actionformer_are_averaged() -> None:
    """And a network that sees nothing at a point has no say in where an action there begins."""
    choice = ensemble("actionformer")
    member, together = build_detector(tiny_choice("actionformer"), FACTS), build_detector(choice, FACTS)
    outputs = jax.jit(lambda own: together.apply(own, BATCH, None))(weights_of(choice)[0])
    found, each = mean_outputs(outputs.each), jax.device_get(outputs.each)
    score = 1 / (1 + np.exp(-each.class_logits))
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(found.class_logits))), score.mean(1), atol=1e-5)
    sure = score.max(-1)[..., None, None] + 1e-4
    np.testing.assert_allclose(found.offsets, (each.offsets * sure).sum(1) / sure.sum(1), rtol=1e-4)
    np.testing.assert_allclose(found.quality_logits, each.quality_logits.mean(1), atol=1e-5)
    np.testing.assert_array_equal(found.point_mask, each.point_mask[:, 0])
    shapes = lambda outputs: jax.tree.map(np.shape, outputs)
    assert shapes(found) == shapes(
        jax.eval_shape(lambda k: member.apply(member.init(k)[0], BATCH, None), jax.random.key(0))
    )


def test_the_distribution_is_the_mean_of_probabilities() -> None:
    together = build_detector(ensemble("conv"), FACTS)
    outputs = together.apply(weights_of(ensemble("conv"))[0], BATCH, None)
    each = [jax.tree.map(lambda x, k=k: x[:, k], outputs.each).distribution() for k in range(NETWORKS)]
    found = outputs.distribution()
    np.testing.assert_allclose(found.probability, np.mean([one.probability for one in each], 0), atol=1e-6)
    np.testing.assert_allclose(np.exp(found.log_in), np.mean([np.exp(one.log_in) for one in each], 0), atol=1e-6)
    np.testing.assert_allclose(np.exp(found.log_out), np.mean([np.exp(one.log_out) for one in each], 0), atol=1e-6)


def test_networks_begin_differently_and_learn_by_their_own_losses() -> None:
    choice = ensemble("conv")
    member, together = build_detector(tiny_choice("conv"), FACTS), build_detector(choice, FACTS)
    fresh = together.init(jax.random.key(1))[0]
    kernels = [leaf for leaf in jax.tree.leaves(fresh) if leaf.ndim > 2]
    assert all(np.abs(leaf[0] - leaf[1]).max() > 1e-3 for leaf in kernels)
    params, state = weights_of(choice)

    def loss_of(detector: Any, params: Any, state: Any) -> Any:
        found = detector.loss(detector.apply(params, BATCH, None), BATCH.targets, state, None)
        return found.total, found

    gradient = lambda detector: jax.jit(jax.value_and_grad(lambda p, s: loss_of(detector, p, s), has_aux=True))
    (total, found), grads = gradient(together)(params, state)
    each = [
        gradient(member)(*jax.tree.map(lambda x, k=k: x[k], (params, state))) for k in range(NETWORKS)
    ]  # ((total, loss), grads)
    np.testing.assert_allclose(total, np.mean([value for (value, _), _ in each]), rtol=1e-5)
    for k, ((_, own), own_grads) in enumerate(each):
        np.testing.assert_allclose(found.state[k], own.state, rtol=1e-6)
        jax.tree.map(
            lambda a, b, k=k: np.testing.assert_allclose(NETWORKS * a[k], b, atol=1e-5, rtol=1e-4), grads, own_grads
        )
        jax.tree.map(np.testing.assert_array_equal, found.points, own.points)


def test_decoding_is_that_of_the_detector_within() -> None:
    choice, inner = ensemble("actionformer"), tiny_choice("actionformer")
    decoding = dataclasses.replace(inner.settings.decoding, sigma=0.9)
    changed = dataclasses.replace(inner, settings=dataclasses.replace(inner.settings, decoding=decoding))
    other = Choice("ensemble", EnsembleSettings(changed, NETWORKS))
    assert without_decoding(other) == without_decoding(choice) != choice
    assert decoding_of(other) == decoding and decoding_of(inner) == inner.settings.decoding


def test_the_baseline_is_as_many_published_detectors() -> None:
    plain = plain_detector(ensemble("actionformer")).settings
    assert plain.networks == NETWORKS and plain.of.settings.quality == QualitySettings(branches="none")


def test_a_detector_that_wants_proposals_is_refused() -> None:
    DETECTORS.register("naming", NamingSettings, build_naming)
    try:
        with pytest.raises(SettingsError, match=r"`detector\.of`: found 'naming', which wants proposals"):
            build_detector(Choice("ensemble", EnsembleSettings(Choice("naming", NamingSettings()))), FACTS)
    finally:
        DETECTORS.forget("naming")
