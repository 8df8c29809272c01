"""Which detections become pseudo labels: thresholds by hand, what ICD makes of them (APL Eq. 6, 3.2; systems A1)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.learning.selection import SELECTORS, Selection, build_selector, refine
from apl_jax.settings import DiscriminatorSettings, SelectionSettings
from apl_jax.structs import Detections, PseudoLabels, Reason

SETTINGS = SelectionSettings()
GOLDEN = [0.9, 0.62, 0.5, 0.41, 0.33, 0.2, 0.16, 0.14, 0.05]


def detections(confidence: list[list[float]], labels: list[list[int]] | None = None) -> Detections:
    """Rows of confidences; a negative one is padding of that confidence."""
    values = np.array(confidence, np.float32)
    zeros = jnp.zeros(values.shape)
    return Detections(
        jnp.zeros((*values.shape, 2)), jnp.asarray(labels if labels is not None else np.zeros(values.shape, np.int32)),
        jnp.asarray(np.abs(values)), zeros, zeros, zeros, jnp.asarray(values > 0),
    )  # fmt: skip


def select(settings: SelectionSettings, found: Detections, classes: int = 3) -> Selection:
    selector = build_selector(settings)
    return jax.device_get(jax.jit(lambda d: selector.select(selector.init(), d, classes)[1])(found))


def test_golden_threshold() -> None:
    """Mean .445714 and population deviation .237959 of the scores above .15, over both videos."""
    found = select(SETTINGS, detections([GOLDEN[:5] + [-0.99], GOLDEN[5:] + [-0.98, -0.97]]))
    np.testing.assert_allclose(found.tau_pos, 0.683673, atol=1e-6)
    assert found.positive_mask.sum() == 1 and found.positive_mask[0, 0]
    assert found.candidate_mask.tolist() == [[False, True, True, True, True, False], [True, True] + [False] * 4]
    half = select(dataclasses.replace(SETTINGS, deviations=0.0), detections([GOLDEN]))
    np.testing.assert_allclose(half.tau_pos, 0.445714, atol=1e-6)


def test_scope_of_the_threshold() -> None:
    values, labels = [[0.8, 0.4, 0.3], [0.6, 0.2, -0.9]], [[0, 1, 0], [1, 1, 0]]
    by_video = select(dataclasses.replace(SETTINGS, scope="video"), detections(values, labels)).tau_pos
    np.testing.assert_allclose(by_video[0], np.mean(values[0]) + np.std(values[0]), rtol=1e-5)
    np.testing.assert_allclose(by_video[1], 0.4 + 0.2, rtol=1e-5)
    by_class = select(dataclasses.replace(SETTINGS, scope="class"), detections(values, labels)).tau_pos
    zero, one = np.array([0.8, 0.3]), np.array([0.4, 0.6, 0.2])
    expected = {0: zero.mean() + zero.std(), 1: one.mean() + one.std()}
    for v, k in np.ndindex(2, 3):
        np.testing.assert_allclose(by_class[v, k], expected[labels[v][k]], rtol=1e-5)
    pooled = select(SETTINGS, detections(values, labels)).tau_pos
    everything = np.array([0.8, 0.4, 0.3, 0.6, 0.2])
    np.testing.assert_allclose(pooled, everything.mean() + everything.std(), rtol=1e-5)


def test_threshold_is_clipped() -> None:
    assert (select(SETTINGS, detections([[0.16, 0.16]])).tau_pos == np.float32(0.2)).all()
    high = select(SETTINGS, detections([[0.99, 0.99, 0.99, 0.5]]))
    assert (high.tau_pos == np.float32(0.9)).all() and high.positive_mask.sum() == 3
    # Nothing above tau_neg: nothing is selected.
    assert not select(SETTINGS, detections([[0.1, 0.15, -0.9]])).positive_mask.any()


def test_fixed_threshold() -> None:
    found = select(dataclasses.replace(SETTINGS, rule="fixed"), detections([[0.9, 0.3, 0.29, 0.151, 0.15, -0.8]]))
    assert found.positive_mask.tolist() == [[True, True, False, False, False, False]]
    assert found.candidate_mask.tolist() == [[False, False, True, True, False, False]]


@pytest.mark.parametrize("rule", SELECTORS)
@pytest.mark.parametrize("scope", ["pooled", "class", "video"])
def test_what_every_rule_obeys(rule: str, scope: str) -> None:
    """Positives and candidates are valid, above tau_neg, apart, and divided by the threshold; order does not matter."""
    draws = np.random.default_rng(0)
    values = np.where(draws.random((5, 12)) < 0.2, -1, 1) * draws.uniform(0.01, 1, (5, 12))
    labels = draws.integers(0, 3, (5, 12))
    settings = dataclasses.replace(SETTINGS, rule=rule, scope=scope)
    found = select(settings, detections(values.tolist(), labels.tolist()))
    considered = values > 0.15
    assert ((found.positive_mask | found.candidate_mask) == considered).all()
    assert not (found.positive_mask & found.candidate_mask).any()
    assert (found.positive_mask == (considered & (np.float32(values) >= found.tau_pos))).all()
    assert found.positive_mask.any() and found.candidate_mask.any()
    order = draws.permutation(5)
    moved = select(settings, detections(values[order].tolist(), labels[order].tolist()))
    assert (moved.positive_mask == found.positive_mask[order]).all()
    padded = np.concatenate([values, -np.ones((5, 3))], -1).tolist()
    wider = select(settings, detections(padded, np.pad(labels, ((0, 0), (0, 3))).tolist()))
    assert (wider.positive_mask[:, :12] == found.positive_mask).all()


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match=r"config\.learning\.selection\.rule: found 'dynmic', expected one of"):
        build_selector(dataclasses.replace(SETTINGS, rule="dynmic"))


# Below, positive, candidate; similarity low, at the limits, high.
STATES = ["below", "positive", "candidate"]
SIMILARITY = [0.1, 0.3, 0.5, 0.7, 0.9]


def verdict(settings: SelectionSettings) -> PseudoLabels:
    """Every state with every similarity: ``[3, 5]``."""
    state = np.repeat(np.arange(3)[:, None], 5, axis=1)
    selection = Selection(jnp.asarray(state == 1), jnp.asarray(state == 2), jnp.zeros((3, 5)))
    similarity = jnp.asarray(np.tile(np.float32(SIMILARITY), (3, 1)))
    return jax.device_get(refine(detections([[0.5] * 5] * 3), selection, similarity, settings))


OFF = DiscriminatorSettings(enabled=False)
B, K, P, D, C = Reason.BELOW_THRESHOLD, Reason.KEPT, Reason.PROMOTED, Reason.DROPPED, Reason.CANDIDATE


@pytest.mark.parametrize(
    ("changes", "positives", "candidates"),
    [
        pytest.param({}, [D, K, K, K, K], [C, C, C, C, P], id="both"),
        pytest.param({"eliminate": False}, [K, K, K, K, K], [C, C, C, C, P], id="promotion_only"),
        pytest.param({"promote": False}, [D, K, K, K, K], [C, C, C, C, C], id="elimination_only"),
        pytest.param({"discriminator": OFF}, [K, K, K, K, K], [C, C, C, C, C], id="off"),
        pytest.param({"eliminate_below": 0.6, "promote_above": 0.4}, [D, D, D, K, K], [C, C, P, P, P], id="thresholds"),
    ],
)
def test_reasons(changes: dict, positives: list[Reason], candidates: list[Reason]) -> None:
    """Strictly below one threshold is eliminated, strictly above the other promoted; what is below stays so."""
    found = verdict(dataclasses.replace(SETTINGS, **changes))
    assert found.reason.tolist() == [[B] * 5, positives, candidates]
    assert found.reason.dtype == np.int32
    expected = np.isin(found.reason, [Reason.KEPT, Reason.PROMOTED])
    assert (found.weight == expected).all() and found.weight.dtype == np.float32


def test_duplicates_of_surer_labels_are_not_promoted() -> None:
    """One video: a positive, its duplicate, the same of another class, a new candidate, and a duplicate of that."""
    segments = [[10, 20], [11, 21], [10, 20], [40, 50], [40, 49]]
    found = dataclasses.replace(
        detections([[0.9, 0.4, 0.3, 0.3, 0.2]], [[0, 0, 1, 0, 0]]), segments_t=jnp.asarray([segments], jnp.float32)
    )
    selection = Selection(jnp.asarray([[True] + [False] * 4]), jnp.asarray([[False] + [True] * 4]), jnp.zeros((1, 5)))
    reasons = {
        limit: refine(
            found, selection, jnp.full((1, 5), 0.9), dataclasses.replace(SETTINGS, promote_overlap=limit)
        ).reason.tolist()[0]
        for limit in (0.5, 0.85, 1.0)
    }
    assert reasons == {0.5: [K, C, P, P, C], 0.85: [K, P, P, P, C], 1.0: [K, P, P, P, P]}
