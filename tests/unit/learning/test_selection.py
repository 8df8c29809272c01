"""Which detections become pseudo labels: thresholds by hand, what ICD makes of them (APL Eq. 6, 3.2; spec A1)."""

from __future__ import annotations

import dataclasses
from typing import Any

import fixtures  # noqa: F401  # registers the plug-in's rule
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.declarations import SettingsError, override
from apl_jax.learning.icd import IcdSettings, refine
from apl_jax.learning.selection import (
    CandidateSettings,
    DynamicSettings,
    FixedSettings,
    Known,
    Link,
    chain,
    observe_nothing,
    unselected,
    with_reason,
)
from apl_jax.registry import SELECTION
from apl_jax.runs.settings import Settings
from apl_jax.structs import DataFacts, Detections, PseudoLabels, Reason

SETTINGS = DynamicSettings()
FACTS = DataFacts(feature_width=6, num_classes=3)
GOLDEN = [0.9, 0.62, 0.5, 0.41, 0.33, 0.2, 0.16, 0.14, 0.05]
# Every registered link that looks at the confidences alone, and the scopes of the one that has some.
RULES = [("dynamic", {"scope": scope}) for scope in ("pooled", "class", "video")]
RULES += [
    (name, {})
    for name in SELECTION
    if name != "dynamic"
    and hasattr(settings := SELECTION[name].settings(), "tau_neg")
    and SELECTION[name].build(settings, FACTS).observe is observe_nothing
]


def detections(confidence: list[list[float]], labels: list[list[int]] | None = None) -> Detections:
    """Rows of confidences; a negative one is padding of that confidence."""
    values = np.array(confidence, np.float32)
    zeros = jnp.zeros(values.shape)
    return Detections(
        jnp.zeros((*values.shape, 2)), jnp.asarray(labels if labels is not None else np.zeros(values.shape, np.int32)),
        jnp.asarray(np.abs(values)), zeros, zeros, zeros, jnp.asarray(values > 0),
    )  # fmt: skip


def select(settings: Any, found: Detections) -> PseudoLabels:
    """The first decision of the link that these settings are of."""
    (name,) = (name for name in SELECTION if SELECTION[name].settings is type(settings))
    link = SELECTION[name].build(settings, FACTS)
    state, labels = jax.device_get(jax.jit(lambda d: link.select(link.init(), unselected(d), ()))(found))
    assert jax.tree.structure(state) == jax.tree.structure(link.init())
    assert labels.reason.dtype == np.int32 and labels.weight.dtype == np.float32
    assert (labels.weight == np.isin(labels.reason, [Reason.KEPT, Reason.PROMOTED])).all()
    assert labels.threshold.shape == labels.reason.shape == found.mask.shape
    return labels


def positive(labels: PseudoLabels) -> np.ndarray:
    return np.asarray(labels.reason) == Reason.KEPT


def candidate(labels: PseudoLabels) -> np.ndarray:
    return np.asarray(labels.reason) == Reason.CANDIDATE


def test_golden_threshold() -> None:
    """Mean .445714 and population deviation .237959 of the scores above .15, over both videos."""
    found = select(SETTINGS, detections([GOLDEN[:5] + [-0.99], GOLDEN[5:] + [-0.98, -0.97]]))
    np.testing.assert_allclose(found.threshold, 0.683673, atol=1e-6)
    assert positive(found).sum() == 1 and positive(found)[0, 0]
    assert candidate(found).tolist() == [[False, True, True, True, True, False], [True, True] + [False] * 4]
    half = select(dataclasses.replace(SETTINGS, deviations=0.0), detections([GOLDEN]))
    np.testing.assert_allclose(half.threshold, 0.445714, atol=1e-6)


def test_scope_of_the_threshold() -> None:
    values, labels = [[0.8, 0.4, 0.3], [0.6, 0.2, -0.9]], [[0, 1, 0], [1, 1, 0]]
    by_video = select(dataclasses.replace(SETTINGS, scope="video"), detections(values, labels)).threshold
    np.testing.assert_allclose(by_video[0], np.mean(values[0]) + np.std(values[0]), rtol=1e-5)
    np.testing.assert_allclose(by_video[1], 0.4 + 0.2, rtol=1e-5)
    by_class = select(dataclasses.replace(SETTINGS, scope="class"), detections(values, labels)).threshold
    zero, one = np.array([0.8, 0.3]), np.array([0.4, 0.6, 0.2])
    expected = {0: zero.mean() + zero.std(), 1: one.mean() + one.std()}
    for v, k in np.ndindex(2, 3):
        np.testing.assert_allclose(by_class[v, k], expected[labels[v][k]], rtol=1e-5)
    pooled = select(SETTINGS, detections(values, labels)).threshold
    everything = np.array([0.8, 0.4, 0.3, 0.6, 0.2])
    np.testing.assert_allclose(pooled, everything.mean() + everything.std(), rtol=1e-5)


def test_threshold_is_clipped() -> None:
    assert (select(SETTINGS, detections([[0.16, 0.16]])).threshold == np.float32(0.2)).all()
    high = select(SETTINGS, detections([[0.99, 0.99, 0.99, 0.5]]))
    assert (high.threshold == np.float32(0.9)).all() and positive(high).sum() == 3
    # Nothing above tau_neg: nothing is selected.
    assert not select(SETTINGS, detections([[0.1, 0.15, -0.9]])).weight.any()


def test_fixed_threshold() -> None:
    found = select(FixedSettings(), detections([[0.9, 0.3, 0.29, 0.151, 0.15, -0.8]]))
    assert positive(found).tolist() == [[True, True, False, False, False, False]]
    assert candidate(found).tolist() == [[False, False, True, True, False, False]]


def test_candidates_below_what_a_threshold_considers() -> None:
    """They are ignored in training rather than background; what was decided before stands."""
    found = detections([[0.9, 0.3, 0.15, 0.06, 0.05, -0.14]])
    alone = select(CandidateSettings(above=0.05), found)
    assert candidate(alone).tolist() == [[True, True, True, True, False, False]] and not alone.weight.any()
    both = chain(
        SELECTION["fixed"].build(FixedSettings(), FACTS), SELECTION["candidates"].build(CandidateSettings(), FACTS)
    )
    _, labels = both.select(both.init(), unselected(found), both.observe(None, None, found))  # pyright: ignore
    assert positive(labels).tolist() == [[True, True, False, False, False, False]]
    assert candidate(labels).tolist() == [[False, False, True, True, False, False]]


@pytest.mark.parametrize(("rule", "changes"), RULES)
def test_what_every_rule_obeys(rule: str, changes: dict[str, Any]) -> None:
    """Positives and candidates are valid, above tau_neg, apart, and divided by the threshold; order does not matter."""
    draws = np.random.default_rng(0)
    values = np.where(draws.random((5, 12)) < 0.2, -1, 1) * draws.uniform(0.01, 1, (5, 12))
    labels = draws.integers(0, 3, (5, 12))
    settings = dataclasses.replace(SELECTION[rule].settings(), **changes)
    found = select(settings, detections(values.tolist(), labels.tolist()))
    considered = values > settings.tau_neg
    assert ((positive(found) | candidate(found)) == considered).all()
    assert not (positive(found) & candidate(found)).any()
    assert (positive(found) == (considered & (np.float32(values) >= found.threshold))).all()
    assert positive(found).any() and candidate(found).any()
    order = draws.permutation(5)
    moved = select(settings, detections(values[order].tolist(), labels[order].tolist()))
    assert (positive(moved) == positive(found)[order]).all()
    padded = np.concatenate([values, -np.ones((5, 3))], -1).tolist()
    wider = select(settings, detections(padded, np.pad(labels, ((0, 0), (0, 3))).tolist()))
    assert (positive(wider)[:, :12] == positive(found)).all() and not positive(wider)[:, 12:].any()


def test_unknown_rule() -> None:
    with pytest.raises(
        SettingsError, match=r"`learning\.selection\.chain`: found 'dynmic', no such selection rule; .* mean 'dynamic'"
    ):
        override(Settings(), {"learning.selection.chain": ("dynmic",)})


def test_before_the_first_link_nothing_is_considered() -> None:
    labels = jax.device_get(unselected(detections([GOLDEN])))
    assert (labels.reason == Reason.BELOW_THRESHOLD).all() and not labels.weight.any()
    assert (labels.similarity == 0.5).all() and (labels.threshold == 1).all()


def test_links_decide_one_after_the_other() -> None:
    """Each sees what those before it have left, what it observed itself, and its own memory."""

    def counting(name: str, below: float) -> Link:
        def select(state: Any, labels: PseudoLabels, observed: Any) -> tuple[Any, PseudoLabels]:
            drop = (labels.reason == Reason.KEPT) & (observed < below)
            reason = jnp.where(drop, Reason.DROPPED, labels.reason)
            return {"kept": state["kept"] + (reason == Reason.KEPT).sum()}, with_reason(labels, reason)

        observe = lambda known, videos, found: known.params[name] * found.confidence
        return Link(lambda: {"kept": jnp.int32(100)}, observe, select, ("teacher's", name))

    first = SELECTION["fixed"].build(FixedSettings(threshold=0.3), FACTS)
    whole = chain(first, counting("a", 0.5), counting("b", 3.0))
    assert whole.owners == ("teacher's", "a", "b")
    assert jax.tree.map(int, whole.init()) == ((), {"kept": 100}, {"kept": 100})
    found = detections([[0.9, 0.6, 0.4, 0.2, -0.9]])
    known = Known({"a": 1.0, "b": 4.0}, None, None)
    observed = whole.observe(known, None, found)  # pyright: ignore[reportArgumentType]  # no link looks at the videos
    state, labels = whole.select(whole.init(), unselected(found), observed)
    assert labels.reason.tolist() == [[K, D, D, C, B]]  # .4 by the first, .6 x 4 by the second
    assert labels.weight.tolist() == [[1, 0, 0, 0, 0]]
    assert jax.tree.map(int, state) == ((), {"kept": 102}, {"kept": 101})


# Below, positive, candidate; similarity low, at the limits, high.
SIMILARITY = [0.1, 0.3, 0.5, 0.7, 0.9]
B, K, P, D, C = Reason.BELOW_THRESHOLD, Reason.KEPT, Reason.PROMOTED, Reason.DROPPED, Reason.CANDIDATE


def verdict(settings: IcdSettings) -> PseudoLabels:
    """Every state with every similarity: ``[3, 5]``."""
    state = jnp.repeat(jnp.array([[B], [K], [C]], jnp.int32), 5, axis=1)
    labels = with_reason(unselected(detections([[0.5] * 5] * 3)), state)
    similarity = jnp.asarray(np.tile(np.float32(SIMILARITY), (3, 1)))
    found = jax.device_get(refine(labels, similarity, settings))
    assert (found.similarity == similarity).all()
    return found


@pytest.mark.parametrize(
    ("changes", "positives", "candidates"),
    [
        pytest.param({}, [D, K, K, K, K], [C, C, C, C, P], id="both"),
        pytest.param({"eliminate": False}, [K, K, K, K, K], [C, C, C, C, P], id="promotion_only"),
        pytest.param({"promote": False}, [D, K, K, K, K], [C, C, C, C, C], id="elimination_only"),
        pytest.param({"eliminate": False, "promote": False}, [K, K, K, K, K], [C, C, C, C, C], id="off"),
        pytest.param({"eliminate_below": 0.6, "promote_above": 0.4}, [D, D, D, K, K], [C, C, P, P, P], id="thresholds"),
    ],
)
def test_reasons(changes: dict, positives: list[Reason], candidates: list[Reason]) -> None:
    """Strictly below one threshold is eliminated, strictly above the other promoted; what is below stays so."""
    found = verdict(dataclasses.replace(IcdSettings(), **changes))
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
    labels = with_reason(unselected(found), jnp.array([[K, C, C, C, C]], jnp.int32))
    reasons = {
        limit: refine(labels, jnp.full((1, 5), 0.9), IcdSettings(promote_overlap=limit)).reason.tolist()[0]
        for limit in (0.5, 0.85, 1.0)
    }
    assert reasons == {0.5: [K, C, P, P, C], 0.85: [K, P, P, P, C], 1.0: [K, P, P, P, P]}


def test_a_range_of_thresholds_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"`tau_min`: found 0\.95, expected at most `tau_max`, 0\.9"):
        DynamicSettings(tau_min=0.95)
