"""Non-target terms: which snippets take part, and whose distribution is divided (paper 002, III-F; spec 7.B, C11)."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.detectors.base import ClassDistribution, DetectionLoss, DetectorFacts, PointTargets
from apl_jax.learning.class_division import (
    DivisionSettings,
    divide_classes,
    labelled_negative_loss,
    non_target_losses,
    rankable_probs,
)
from apl_jax.learning.method import MethodContext, PassResult, Term, TermInputs
from apl_jax.learning.nontarget import (
    NonTargetTermSettings,
    labelled_negatives,
    non_target_classes,
    silenced_negatives,
    trusted_mask,
)
from apl_jax.structs import DataFacts

VIDEOS, SNIPPETS, CLASSES = 2, 12, 4
SETTINGS = NonTargetTermSettings(positive_weight=0.3, negative_weight=0.6, closeness=0.4)


def distribution(seed: int) -> ClassDistribution:
    draws = np.random.default_rng(seed)
    p = jnp.asarray(draws.dirichlet([0.7] * (CLASSES + 1), (VIDEOS, SNIPPETS)), jnp.float32)
    clipped = jnp.clip(p, 1e-6, 1 - 1e-6)
    time = jnp.broadcast_to(jnp.arange(SNIPPETS, dtype=jnp.float32), p.shape[:2])
    mask = jnp.arange(SNIPPETS) < jnp.array([[12], [9]])
    return ClassDistribution(p, jnp.log(clipped), jnp.log1p(-clipped), time, mask)


def points() -> PointTargets:
    """Every third snippet is foreground, the next one is under an ignored instance."""
    place = jnp.broadcast_to(jnp.arange(SNIPPETS), (VIDEOS, SNIPPETS))
    foreground, silent = place % 3 == 0, place % 3 == 1
    classes = jax.nn.one_hot(jnp.where(foreground, place % CLASSES, CLASSES), CLASSES + 1)
    return PointTargets(classes, foreground, silent)


def context(background: bool) -> MethodContext:
    facts = DetectorFacts(background_class=background, uncovered=lambda segments_t, length: [])
    detector: Any = SimpleNamespace(facts=facts)
    return MethodContext(detector, lambda key, batch: batch, DataFacts(6, CLASSES))


def value_of(term: Term, seen: dict[str, ClassDistribution], detection: str) -> tuple[float, dict[str, float]]:
    passes: Any = {
        name: PassResult(None, SimpleNamespace(distribution=lambda found=found: found))  # pyright: ignore
        for name, found in seen.items()
    }
    loss = DetectionLoss(jnp.float32(9), jnp.float32(2), jnp.float32(7), {}, (), points())
    found = term.loss(TermInputs(passes, {detection: loss}, {}, {}, (), jax.random.key(0)))
    assert set(term.needs) == {*seen, detection}
    return float(found.loss), {name: float(value) for name, value in found.metrics.items()}


def mean_over(value: jax.Array, mask: jax.Array) -> float:
    return float(np.asarray(value)[np.asarray(mask)].mean())


def test_which_snippets_have_a_distribution_worth_dividing() -> None:
    """All that no ignored instance hides where background is a class, only foreground where it is not."""
    found, taught = distribution(0), points()
    assert (trusted_mask(context(True), found, taught) == (found.mask & ~taught.silent_mask)).all()
    assert (trusted_mask(context(False), found, taught) == (found.mask & taught.foreground_mask)).all()


@pytest.mark.parametrize("background", [True, False])
def test_labelled_snippets_exclude_every_other_class(background: bool) -> None:
    found, taught = distribution(0), points()
    term = labelled_negatives(context(background), "labelled")
    value, metrics = value_of(term, {"labelled": found}, "detection_labelled")
    each = labelled_negative_loss(taught.classes, found.log_out)
    expected = mean_over(each, trusted_mask(context(background), found, taught))
    assert value == pytest.approx(expected, rel=1e-5) and metrics == {"labelled/negative": value}


@pytest.mark.parametrize(("background", "foreground_only"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("divided_by", ["", "labeller"])
def test_positive_and_negative_classes(background: bool, foreground_only: bool, divided_by: str) -> None:
    """Of the distribution of one pass, learnt by that of another; what the pseudo label names is a target."""
    seen, other, taught = distribution(0), distribution(1), points()
    passes = {"unlabelled": seen} | ({divided_by: other} if divided_by else {})
    term = non_target_classes(
        context(background), SETTINGS, "unlabelled", 1.7, divided_by, foreground_only=foreground_only
    )
    value, metrics = value_of(term, passes, "detection_unlabelled")
    divided = rankable_probs((other if divided_by else seen).probability, background, SETTINGS)
    each = non_target_losses(divide_classes(divided, SETTINGS, taught.classes), seen.log_in, seen.log_out)
    trusted = taught.foreground_mask if foreground_only or not background else ~taught.silent_mask
    mask = seen.mask & trusted
    positive, negative = mean_over(each.positive, mask), mean_over(each.negative, mask)
    assert metrics == {
        "unlabelled/positive": pytest.approx(positive, rel=1e-5),
        "unlabelled/negative": pytest.approx(negative, rel=1e-5),
    }
    assert value == pytest.approx(0.3 * positive + 0.6 * negative, rel=1e-5) and term.weight == 1.7
    assert positive > 0.01 and negative > 0.01


def test_what_selection_left_aside_excludes_only() -> None:
    seen, taught = distribution(0), points()
    term = silenced_negatives(context(False), SETTINGS, "unlabelled", 0.8)
    value, metrics = value_of(term, {"unlabelled": seen}, "detection_unlabelled")
    relation = divide_classes(rankable_probs(seen.probability, False, SETTINGS), SETTINGS)
    each = non_target_losses(relation, seen.log_in, seen.log_out).negative
    assert value == pytest.approx(mean_over(each, seen.mask & taught.silent_mask), rel=1e-5)
    assert metrics == {"unlabelled/silenced_negative": value} and term.weight == 0.8


def test_no_snippet_teaches_nothing() -> None:
    """And is no division by zero."""
    seen = distribution(0)
    seen = seen._replace(mask=jnp.zeros_like(seen.mask))
    for term, name in (
        (labelled_negatives(context(True), "unlabelled"), "detection_unlabelled"),
        (non_target_classes(context(True), SETTINGS, "unlabelled", 1.0), "detection_unlabelled"),
        (silenced_negatives(context(True), SETTINGS, "unlabelled", 1.0), "detection_unlabelled"),
    ):
        assert value_of(term, {"unlabelled": seen}, name)[0] == 0


def test_division_settings_reach_the_division() -> None:
    """Settings of the terms are those of the division, and more."""
    seen = distribution(0)
    values = [
        value_of(
            non_target_classes(context(True), dataclasses.replace(SETTINGS, **change), "unlabelled", 1.0),
            {"unlabelled": seen}, "detection_unlabelled",
        )[0]
        for change in ({}, {"closeness": 0.2}, {"protected_runners_up": 1}, {"max_positives": 0})
    ]  # fmt: skip
    assert len({round(value, 6) for value in values}) == 4
    assert isinstance(SETTINGS, DivisionSettings)
