"""The division of the classes and its losses: the golden table of spec 7.B, a twin in loops, and the edges."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.learning.class_division import (
    ClassRelation,
    DivisionSettings,
    complementary_loss,
    divide_classes,
    given_action,
    labelled_negative_loss,
    non_target_losses,
    rankable_probs,
    sharpened,
    soft_label_loss,
)

SETTINGS = DivisionSettings()
T, P, N, A = ClassRelation.TARGET, ClassRelation.POSITIVE, ClassRelation.NEGATIVE, ClassRelation.AMBIGUOUS

# Probabilities, parts, and the target, negative and positive losses (spec 7.B).
GOLDEN = [
    ([0.05, 0.10, 0.40, 0.36, 0.09], [N, N, T, P, N], 0.916291, 0.250964, 1.021651),
    ([0.2] * 5, [T, P, P, P, P], 1.609438, 0.0, 6.437752),
    ([0.9, 0.04, 0.03, 0.02, 0.01], [T, N, N, N, N], 0.105361, 0.101534, 0.0),
    ([0.30, 0.28, 0.22, 0.12, 0.08], [T, P, A, N, N], 1.203973, 0.211215, 1.272966),
    ([0.52, 0.46, 0.02, 0.0, 0.0], [T, P, N, N, N], 0.653926, 0.020205, 0.776529),
    ([1.0, 0.0, 0.0, 0.0, 0.0], [T, N, N, N, N], 0.0, 0.0, 0.0),
]


def logs(p: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Logarithms of p and of 1 - p with p in [1e-6, 1 - 1e-6] (C4)."""
    p = jnp.clip(p, 1e-6, 1 - 1e-6)
    return jnp.log(p), jnp.log1p(-p)


@pytest.mark.parametrize(("p", "parts", "target", "negative", "positive"), GOLDEN)
def test_golden(p: list[float], parts: list[ClassRelation], target: float, negative: float, positive: float) -> None:
    row = np.float32(p)
    found = divide_classes(jnp.asarray(row), SETTINGS)
    assert found.tolist() == parts
    losses = non_target_losses(found, *logs(row))
    # The table's last row is rounded: four classes clamped at 1e-6 lose 4e-6, as the two of the row before lose 2e-6.
    slack = 5e-6 if max(p) == 1 else 1e-6
    np.testing.assert_allclose(losses.target, target, atol=slack)
    np.testing.assert_allclose(losses.negative, negative, atol=slack)
    np.testing.assert_allclose(losses.positive, positive, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("p", "parts", "target", "negative", "positive"), GOLDEN)
def test_what_a_pseudo_label_names_is_a_target_too(
    p: list[float], parts: list[ClassRelation], target: float, negative: float, positive: float
) -> None:
    for named in range(len(p)):
        found = divide_classes(jnp.asarray(np.float32(p)), SETTINGS, jax.nn.one_hot(named, len(p)))
        assert found.tolist() == [T if c == named else part for c, part in enumerate(parts)]


def test_sigmoids_are_divided_as_if_an_action_were_there() -> None:
    score = jnp.array([0.28, 0.27, 0.1, 0.03])  # none above one half: background, 1 - 0.28, would be the target
    p = jnp.append(score, 1 - score.max())
    p = p / p.sum()
    literal = dataclasses.replace(SETTINGS, given_action=False)
    assert divide_classes(rankable_probs(p, False, literal), SETTINGS).tolist() == [N, N, N, N, T]
    assert divide_classes(rankable_probs(p, False, SETTINGS), SETTINGS).tolist() == [T, P, N, N, N]
    assert (rankable_probs(p, True, SETTINGS) == p).all()
    np.testing.assert_allclose(given_action(p), jnp.append(score, 0) / score.sum(), rtol=1e-6)
    assert given_action(jnp.array([0.0, 0.0, 1.0])).tolist() == [0, 0, 0]  # no belief in any action, and no NaN


def test_a_temperature_flattens_what_is_divided() -> None:
    p, heat = np.array([0.7, 0.2, 0.08, 0.02]), 3.0
    flat = p ** (1 / heat) / (p ** (1 / heat)).sum()
    hot = dataclasses.replace(SETTINGS, temperature=heat)
    np.testing.assert_allclose(rankable_probs(jnp.asarray(p), True, hot), flat, rtol=1e-5)
    # The second class is no longer excluded once the first is no longer nearly sure.
    assert divide_classes(rankable_probs(jnp.asarray(p), True, SETTINGS), SETTINGS).tolist() == [T, N, N, N]
    assert divide_classes(rankable_probs(jnp.asarray(p), True, hot), hot).tolist() == [T, A, N, N]
    sigmoids = rankable_probs(jnp.asarray([0.6, 0.3, 0.0, 0.4]), False, hot)
    assert sigmoids[-1] == 0 and sigmoids[2] == 0 and jnp.isclose(sigmoids.sum(), 1)
    assert rankable_probs(jnp.asarray([0.0, 0.0, 1.0]), False, hot).tolist() == [0, 0, 0]


def twin(p: np.ndarray, s: DivisionSettings) -> list[int]:
    """Eq. 8 and 10 with C1, C2 as sentences."""
    target = int(np.argmax(p))
    parts = [int(A)] * len(p)
    total, negatives = 0.0, []
    for c in np.argsort(p, kind="stable"):
        total += float(p[c])
        if total > p[target] + 1e-6:
            break
        negatives.append(int(c))
    falling = [int(c) for c in np.argsort(-p, kind="stable") if c != target]
    for c in negatives:
        if c not in falling[: s.protected_runners_up]:
            parts[c] = int(N)
    for place, c in enumerate(falling):
        if p[c] >= np.float32(s.closeness) * p[target]:
            parts[c] = int(P) if place < s.max_positives else int(A)
    parts[target] = int(T)
    return parts


@pytest.mark.parametrize("concentration", [0.05, 0.5, 5.0, 500.0])
@pytest.mark.parametrize(("closeness", "protected"), [(0.5, 0), (0.85, 0), (0.9, 0), (0.85, 1), (0.5, 3)])
def test_twin(concentration: float, closeness: float, protected: int) -> None:
    settings = dataclasses.replace(SETTINGS, closeness=closeness, protected_runners_up=protected)
    p = np.random.default_rng(0).dirichlet([concentration] * 12, 200).astype(np.float32)
    found = jax.jit(lambda x: divide_classes(x, settings))(p.reshape(10, 20, 12)).reshape(200, 12)
    assert np.asarray(found).tolist() == [twin(row, settings) for row in p]


def test_a_protected_runner_up_is_not_excluded() -> None:
    p = jnp.float32([0.9, 0.04, 0.03, 0.02, 0.01])
    assert divide_classes(p, dataclasses.replace(SETTINGS, protected_runners_up=1)).tolist() == [T, A, N, N, N]
    assert divide_classes(p, dataclasses.replace(SETTINGS, protected_runners_up=9)).tolist() == [T, A, A, A, A]


def test_laws_of_the_division() -> None:
    """One target, few positives, all of them likelier than any negative; order of the classes does not matter."""
    draws = np.random.default_rng(1)
    p = draws.dirichlet([0.7] * 30, 500).astype(np.float32)
    parts = np.asarray(divide_classes(jnp.asarray(p), SETTINGS))
    assert ((parts == T).sum(-1) == 1).all() and ((parts == P).sum(-1) <= SETTINGS.max_positives).all()
    assert {int(x) for x in np.unique(parts)} == {0, 1, 2, 3}
    likeliest_negative = np.where(parts == N, p, 0).max(-1)
    assert (np.where(parts == P, p, 1).min(-1) >= likeliest_negative).all()
    assert (np.where(parts == N, p, 0).sum(-1) <= p.max(-1) + 1e-5).all()
    order = draws.permutation(30)
    assert (np.asarray(divide_classes(jnp.asarray(p[:, order]), SETTINGS)) == parts[:, order]).all()


def test_a_flat_softmax_over_many_classes_does_not_explode() -> None:
    p = jnp.full((201,), 1 / 201)
    losses = non_target_losses(divide_classes(p, SETTINGS), *logs(np.asarray(p)))
    assert float(losses.positive) == pytest.approx(5 * np.log(201), rel=1e-4)


def test_no_gradient_through_the_division() -> None:
    def loss(logits: jax.Array) -> jax.Array:
        return divide_classes(jax.nn.softmax(logits), SETTINGS).astype(jnp.float32).sum()

    assert (jax.grad(loss)(jnp.arange(5.0)) == 0).all()


@pytest.mark.parametrize("logits", [np.zeros(6), np.eye(6)[2] * 200.0])
def test_gradients_are_finite_and_point_the_right_way(logits: np.ndarray) -> None:
    def loss(x: jax.Array) -> jax.Array:
        p = jax.nn.softmax(x)
        return sum(non_target_losses(divide_classes(p, SETTINGS), *logs(p)))

    assert np.isfinite(jax.grad(loss)(jnp.float32(logits))).all()


def test_positive_pulls_and_negative_pushes() -> None:
    logits = jnp.log(jnp.float32([0.30, 0.28, 0.22, 0.12, 0.08]))
    part = divide_classes(jax.nn.softmax(logits), SETTINGS)

    def terms(x: jax.Array):
        return non_target_losses(part, *logs(jax.nn.softmax(x)))

    pull = jax.grad(lambda x: terms(x).positive)(logits)
    push = jax.grad(lambda x: terms(x).negative)(logits)
    assert pull[1] < 0 and push[3] > 0 and push[4] > 0


def test_labelled_negative_loss() -> None:
    p = np.float32([0.5, 0.3, 0.2])
    _, log_out = logs(p)
    found = labelled_negative_loss(jnp.float32([0, 1, 0]), log_out)
    np.testing.assert_allclose(found, -np.log(0.5) - np.log(0.8), rtol=1e-5)


def test_rivals() -> None:
    p = np.float32([0.5, 0.3, 0.2])
    log_in, log_out = logs(p)
    soft = np.square(p) / np.square(p).sum()
    np.testing.assert_allclose(sharpened(jnp.asarray(p), 0.5), soft, rtol=1e-5)
    np.testing.assert_allclose(soft_label_loss(jnp.asarray(p), log_in, 0.5), -(soft * np.log(p)).sum(), rtol=1e-5)
    part = divide_classes(jnp.asarray(p), SETTINGS)
    keys = jax.random.split(jax.random.key(0), 400)
    found = np.asarray(jax.vmap(lambda key: complementary_loss(key, part, log_out))(keys))
    one, two = -np.log(0.7), -np.log(0.8)
    share = np.isclose(found, one, rtol=1e-4).mean()
    assert (np.isclose(found, one, rtol=1e-4) | np.isclose(found, two, rtol=1e-4)).all() and 0.4 < share < 0.6
