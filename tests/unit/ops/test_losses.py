"""Losses: golden values of the specification (spec 1.7, 7.A) and properties that tell the forms apart."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.ops.losses import (
    binary_cross_entropy,
    info_nce,
    pointwise_kl,
    quality_focal,
    sigmoid_focal,
    soft_focal,
)

AF = {"alpha": 0.25, "gamma": 2.0}
JOINT = jnp.array([0.01, 0.3, 0.56, 0.8, 0.05])
SOFT_LABEL = jnp.array([0.0, 0.56, 0.56, 0.56, 0.9])


def test_sigmoid_focal_golden() -> None:
    found = sigmoid_focal(jnp.array([-4.6, 0, 2, -1, 3]), jnp.array([0, 1, 1, 0.05, 0.9]), **AF)
    np.testing.assert_allclose(found, [1e-6, 0.043322, 0.000451, 0.022463, 0.00199], atol=6e-7)


def test_soft_focal_golden() -> None:
    found = soft_focal(JOINT, SOFT_LABEL, **AF)
    np.testing.assert_allclose(found, [0.000001, 0.107262, 0.078292, 0.084302, 0.599362], atol=6e-7)


def test_quality_focal_golden() -> None:
    found = quality_focal(JOINT, SOFT_LABEL)
    np.testing.assert_allclose(found, [0.000001, 0.056187, 0, 0.047987, 1.951681], atol=6e-7)


def test_binary_cross_entropy_golden() -> None:
    found = binary_cross_entropy(jnp.array([0.6, 0.05]), jnp.array([0.8, 0.01]))
    np.testing.assert_allclose(found, [0.591919, 0.080738], atol=6e-7)


@pytest.mark.parametrize(
    ("y", "minimiser"), [(0.1, 0.0138), (0.4, 0.276), (0.5, 0.5), (0.56, 0.640), (0.7, 0.878), (0.8, 0.953)]
)
def test_minimiser_of_the_soft_focal_loss_is_not_its_label(y: float, minimiser: float) -> None:
    """The literal form is biased, quality focal is not (spec A4)."""
    p = jnp.linspace(0.0005, 0.9995, 20001)
    np.testing.assert_allclose(p[jnp.argmin(soft_focal(p, jnp.full_like(p, y), **AF))], minimiser, atol=1e-3)
    np.testing.assert_allclose(p[jnp.argmin(quality_focal(p, jnp.full_like(p, y)))], y, atol=1e-3)


def test_pointwise_kl_punishes_underestimation_only() -> None:
    """y (log y - log p): zero at p = y, less than zero above it (spec, Table S1)."""
    y = jnp.array([0.3, 0.3, 0.3, 0.0])
    found = pointwise_kl(jnp.array([0.1, 0.3, 0.9, 0.5]), y)
    np.testing.assert_allclose(found, [0.3 * math.log(3), 0, 0.3 * math.log(1 / 3), 0], atol=1e-6)


def test_focal_forms_agree_on_hard_labels() -> None:
    logits, targets = jnp.array([-3.0, -0.5, 0.2, 4.0]), jnp.array([0.0, 1.0, 0.0, 1.0])
    found = soft_focal(jax.nn.sigmoid(logits), targets, **AF)
    np.testing.assert_allclose(found, sigmoid_focal(logits, targets, **AF), rtol=1e-4)


@pytest.mark.parametrize("y", [0.0, 0.4, 1.0])
def test_gradients_at_the_ends_are_finite(y: float) -> None:
    p, logits = jnp.array([0.0, 1e-9, 1.0]), jnp.array([-100.0, 0.0, 100.0])
    label = jnp.full(3, y)
    for loss in (binary_cross_entropy, pointwise_kl, quality_focal, lambda p, y: soft_focal(p, y, **AF)):
        assert jnp.isfinite(jax.grad(lambda p, loss=loss: loss(p, label).sum())(p)).all()
    assert jnp.isfinite(jax.grad(lambda x: sigmoid_focal(x, label, **AF).sum())(logits)).all()


DIRECTIONS = np.deg2rad([0, 20, 90, 120])
VECTORS = jnp.asarray(np.stack([np.cos(DIRECTIONS), np.sin(DIRECTIONS)], -1), jnp.float32)


@pytest.mark.parametrize(("exclude_self", "expected"), [(True, 0.00203053), (False, 0.00137547)])
def test_info_nce_golden(exclude_self: bool, expected: float) -> None:
    labels = jnp.array([0, 0, 1, 1])
    for length in (1.0, 7.0):  # normalised inside
        found = info_nce(length * VECTORS, labels, jnp.ones(4, bool), temperature=0.1, exclude_self=exclude_self)
        np.testing.assert_allclose(found, expected, rtol=2e-4)


def info_nce_twin(
    vectors: np.ndarray, labels: np.ndarray, mask: np.ndarray, temperature: float, exclude: bool
) -> float:
    """Eq. 11, pair by pair, in float64."""
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    similarity = np.exp(unit @ unit.T / temperature)
    rows = np.flatnonzero(mask)
    losses = []
    for i in rows:
        negatives = [similarity[i, j] for j in rows if labels[j] != labels[i]]
        for j in rows:
            if labels[j] == labels[i] and not (exclude and i == j) and negatives:
                losses.append(-np.log(similarity[i, j] / (similarity[i, j] + sum(negatives))))
    return float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize("exclude", [True, False])
def test_info_nce_twin(exclude: bool) -> None:
    draws = np.random.default_rng(0)
    run = jax.jit(lambda v, y, m: info_nce(v, y, m, temperature=0.2, exclude_self=exclude))
    for classes in (1, 2, 5, 12):
        vectors, labels = draws.normal(size=(20, 6)), draws.integers(0, classes, 20)
        mask = draws.random(20) < 0.7
        expected = info_nce_twin(vectors, labels, mask, 0.2, exclude)
        found = run(jnp.asarray(vectors, jnp.float32), labels, mask)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
        assert (expected == 0) == (classes == 1)
    assert run(jnp.asarray(vectors, jnp.float32), labels, np.zeros(20, bool)) == 0


def test_info_nce_gradient_of_zero_vectors() -> None:
    gradient = jax.grad(
        lambda v: info_nce(v, jnp.array([0, 0, 1]), jnp.ones(3, bool), temperature=0.1, exclude_self=True)
    )(jnp.zeros((3, 4)))
    assert jnp.isfinite(gradient).all()
