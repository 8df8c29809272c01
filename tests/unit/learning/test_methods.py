"""What each training objective adds up to, read off the terms that it logs (APL Eq. 12; spec A6, A12)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import (
    build_kind,
    build_method,
    method_context,
    random_bank,
    random_batch,
    random_weights,
    rarely,
    tiny_choice,
)

from apl_jax.declarations import Choice, SettingsError
from apl_jax.learning.foreground import blank_outside_spans
from apl_jax.learning.method import (
    DETECTOR,
    INSTANCES,
    LABELLED,
    PSEUDO_LABELLED,
    TRAINING,
    UNLABELLED,
    GroupSettings,
    Method,
    Pass,
    Term,
    TermInputs,
    TermValue,
    build_objective,
    join_batches,
    split_batch,
)
from apl_jax.settings import PerturbSettings

STEPS = 16
TINY = tiny_choice("actionformer")
DETECTOR_CHOICE = Choice(TINY.name, dataclasses.replace(TINY.settings, drop_path=0.0))
PERTURB = PerturbSettings(crop_ratio=1.0)
COUNTS = {"labelled": 50.0, "unlabelled": 70.0, "foreground": 70.0}  # running normalisers of the detection loss


class Found(NamedTuple):
    """One evaluation of an objective."""

    total: float
    terms: dict[str, float]  # as logged
    counts: dict[str, float]  # running normalisers afterwards, by pass


def batches(swapped: bool = False) -> dict[str, Any]:
    """Everything that a method may ask for; ``swapped`` exchanges labelled and unlabelled videos."""
    one, other = random_batch([16, 11], STEPS, seed=1), random_batch([9, 16, 16], STEPS, seed=2, instances=4)
    labelled, unlabelled = (other, one) if swapped else (one, other)
    by_name = {LABELLED: labelled, PSEUDO_LABELLED: unlabelled, UNLABELLED: unlabelled, TRAINING: unlabelled}
    return by_name | {INSTANCES: random_bank()}


def prepared(kind: str, detector: Choice = DETECTOR_CHOICE, **changes: Any):
    """The objective, weights and a state in which every pass has a normaliser of its own."""
    objective = build_kind(kind, detector, STEPS, PERTURB, **changes)
    shapes, state_shapes = jax.eval_shape(objective.init, jax.random.key(0))
    state = {
        name: jnp.float32(COUNTS[name.removeprefix("detection_")]) if jax.tree.leaves(shape) else ()
        for name, shape in state_shapes.items()
    }
    return objective, random_weights(shapes), state


@functools.cache
def evaluated(kind: str, swapped: bool = False, **changes: Any) -> Found:
    """The objective's value, its terms, and the state after it."""
    objective, params, state = prepared(kind, **changes)
    if swapped:
        state = {name: jnp.float32(70) if jax.tree.leaves(value) else value for name, value in state.items()}
    run = jax.jit(objective.loss)
    total, (after, metrics) = jax.device_get(run(params, params, state, batches(swapped), jax.random.key(0)))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    counts = {name.removeprefix("detection_"): float(v) for name, v in after.items() if jax.tree.leaves(v)}
    return Found(float(total), {name: float(value) for name, value in metrics.items()}, counts)


def self_training(contrasted: tuple[str, ...], enabled: bool = True) -> Found:
    """The method with a case of Table S4, with or without ICD."""
    contrast = {"contrast__weight": 0.3 if contrasted else 0.0, "contrast__unlabelled": "unlabelled" in contrasted}
    return evaluated("apl", unlabelled_weight=1.7, icd__enabled=enabled, **contrast)


def taught(terms: dict[str, float], role: str, contrast: float) -> float:
    """One role's part of Eq. 12."""
    s = DETECTOR_CHOICE.settings
    detection = (
        terms[f"{role}/class"] + s.regression_weight * terms[f"{role}/regression"] + 0.1 * terms[f"{role}/quality"]
    )
    if not contrast:
        assert f"{role}/contrast_coarse" not in terms
        return detection
    return detection + contrast * (terms[f"{role}/contrast_coarse"] + terms[f"{role}/contrast_fine"])


def test_pretraining_is_contrast_alone() -> None:
    found = evaluated("contrast")
    assert set(found.terms) == {"contrast_coarse", "contrast_fine"} and min(found.terms.values()) > 0.01
    np.testing.assert_allclose(found.total, sum(found.terms.values()), rtol=1e-5)
    assert found.counts == {}


def test_supervised() -> None:
    found = evaluated("supervised")
    expected = taught(found.terms, "labelled", 0.1) + found.terms["icd/loss"]
    np.testing.assert_allclose(found.total, expected, rtol=1e-5)
    assert min(found.terms.values()) > 0 and set(found.counts) == {"labelled"}
    np.testing.assert_allclose(found.counts["labelled"], 0.9 * 50 + 0.1 * found.terms["labelled/positives"], rtol=1e-5)


@pytest.mark.parametrize("roles", rarely([("labelled", "unlabelled"), ("labelled",), ()], len), ids="-".join)
def test_self_training(roles: tuple[str, ...]) -> None:
    """L_s + beta L_u + L_icd, each role with a running normaliser of its own; Table S4's three cases of contrast."""
    found = self_training(roles, enabled=bool(roles))
    terms, weight = found.terms, {role: 0.3 if role in roles else 0.0 for role in ("labelled", "unlabelled")}
    expected = taught(terms, "labelled", weight["labelled"]) + 1.7 * taught(terms, "unlabelled", weight["unlabelled"])
    assert ("icd/loss" in terms) == bool(roles)
    np.testing.assert_allclose(found.total, expected + terms.get("icd/loss", 0.0), rtol=1e-5)
    assert set(found.counts) == {"labelled", "unlabelled"}
    for role, count in found.counts.items():
        np.testing.assert_allclose(count, 0.9 * COUNTS[role] + 0.1 * terms[f"{role}/positives"], rtol=1e-5)


def test_the_losses_are_those_of_the_batch_alone() -> None:
    """Labelled and pseudo-labelled videos pass the network together and yet do not meet: both objectives agree."""
    together = self_training(("labelled", "unlabelled")).terms
    for role, swapped in (("labelled", False), ("unlabelled", True)):
        alone = evaluated("supervised", swapped).terms
        for name in ("class", "regression", "quality", "positives"):
            np.testing.assert_allclose(alone[f"labelled/{name}"], together[f"{role}/{name}"], rtol=1e-4)


def test_foreground_is_localisation_alone() -> None:
    found, s = evaluated("foreground"), DETECTOR_CHOICE.settings
    expected = s.regression_weight * found.terms["foreground/regression"] + 0.1 * found.terms["foreground/quality"]
    np.testing.assert_allclose(found.total, expected, rtol=1e-5)
    assert found.total > 0 and set(found.counts) == {"foreground"} and found.counts["foreground"] != 70


def test_spans_are_seen_and_nothing_else() -> None:
    batch = random_batch([16, 9, 1, 16], STEPS)
    for seed in range(20):
        found = jax.device_get(blank_outside_spans(jax.random.key(seed), batch, 0.25))
        seen = (found.features != 0).any(-1)
        for video, length in enumerate((16, 9, 1, 16)):
            targets = found.targets.segments_t[video][found.targets.mask[video]]
            assert 1 <= len(targets) <= 2 and (targets[:, 1] - targets[:, 0] >= 0.249 * length).all()
            time = np.arange(STEPS)[:, None]
            inside = ((time >= targets[:, 0]) & (time <= targets[:, 1])).any(-1)
            assert (seen[video] == (inside & (time[:, 0] < length))).all()
            kept = np.asarray(batch.features)[video][seen[video]]
            assert (found.features[video][seen[video]] == kept).all()


# Non-target classes

OFF = {"positive_weight": 0.0, "negative_weight": 0.0, "labelled_negative": False}
PLAIN = {"contrast__weight": 0.0, "icd__enabled": False}  # of APL: its detection losses alone


def hybrid(**changes: Any) -> Found:
    """Learning from non-target classes on the teacher's pseudo labels."""
    return evaluated("nontarget", **({"pseudo_labels": "teacher", "unlabelled_weight": 1.7} | changes))


def test_target_only_is_self_training() -> None:
    """Both weights zero: Eq. 1, and on the same pseudo labels what APL's detection minimises with beta = alpha."""
    apl = evaluated("apl", unlabelled_weight=1.7, **PLAIN)
    np.testing.assert_allclose(hybrid(**OFF).total, apl.total, rtol=2e-5)


def test_hybrid_adds_its_terms() -> None:
    found = hybrid(positive_weight=0.3, negative_weight=0.6)
    terms = found.terms
    extra = 1.7 * (0.3 * terms["unlabelled/positive"] + 0.6 * terms["unlabelled/negative"])
    assert terms["unlabelled/negative"] > 0.01 and terms["labelled/negative"] > 0.01
    np.testing.assert_allclose(found.total, hybrid(**OFF).total + terms["labelled/negative"] + extra, rtol=2e-5)


def test_soft_labels_replace_the_class_loss() -> None:
    baseline, found = hybrid(**OFF), hybrid(**OFF, rival="soft_label")
    expected = baseline.total + 1.7 * (found.terms["unlabelled/soft_label"] - baseline.terms["unlabelled/class"])
    np.testing.assert_allclose(found.total, expected, rtol=2e-5)


def test_a_complementary_label_is_one_more_term() -> None:
    baseline, found = hybrid(**OFF), hybrid(**OFF, rival="complementary")
    np.testing.assert_allclose(found.total, baseline.total + 1.7 * found.terms["unlabelled/complementary"], rtol=2e-5)


def test_both_papers_at_once() -> None:
    """APL's objective, the two parts on selected points, and exclusion under what selection left aside."""
    shared = {"unlabelled_weight": 1.7, "contrast__weight": 0.3}
    apl = evaluated("apl", **shared)
    found = evaluated("apl_nontarget", silenced_weight=0.4, labelled_negative=False, **shared)
    terms = found.terms
    assert apl.terms.keys() == terms.keys() - {f"unlabelled/{n}" for n in ("positive", "negative", "silenced_negative")}
    extra = terms["unlabelled/positive"] + terms["unlabelled/negative"] + 0.4 * terms["unlabelled/silenced_negative"]
    assert terms["unlabelled/silenced_negative"] > 0.01
    # Both draw pairs and frames by the place of their terms, which is the same.
    np.testing.assert_allclose(found.total, apl.total + 1.7 * extra, rtol=2e-5)


def test_online_labels_are_the_step_s_own() -> None:
    """There are no pseudo labels to read, and the annotations of the batch may be anything."""
    objective, params, state = prepared("nontarget", pseudo_labels="online")
    first = batches()
    del first[PSEUDO_LABELLED], first[TRAINING]
    unlabelled = first[UNLABELLED]
    shifted = dataclasses.replace(unlabelled.targets, segments_t=unlabelled.targets.segments_t + 3)
    second = first | {UNLABELLED: dataclasses.replace(unlabelled, targets=shifted)}
    run = jax.jit(objective.loss)
    values = [run(params, params, state, given, jax.random.key(0))[0] for given in (first, second)]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)


@pytest.mark.parametrize("labels", ("online", "averaged", "teacher"))
def test_averaged_weights_label_where_they_are_asked_to(labels: str) -> None:
    """They teach without being taught: the loss depends on them, and its gradient does not reach them."""
    objective, params, _ = prepared("nontarget", tiny_choice("spot"), pseudo_labels=labels)
    _, state = jax.jit(objective.init)(jax.random.key(0))
    other = jax.tree.map(lambda x: -x, params)
    value_of = lambda p, a: objective.loss(p, a, state, batches(), jax.random.key(0))[0]
    run = jax.jit(jax.value_and_grad(value_of, (0, 1)))
    (same, _), (value, (gradient, reached)) = run(params, params), run(params, other)
    assert (abs(value - same) > 1e-3) == (labels == "averaged")
    assert not any(x.any() for x in jax.tree.leaves(reached))
    assert any(x.any() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("kind", "changes", "videos"),
    [
        ("supervised", {}, {LABELLED}),
        ("contrast", {}, {TRAINING}),
        ("foreground", {}, {TRAINING}),
        ("apl", {}, {LABELLED, PSEUDO_LABELLED}),
        ("apl_nontarget", {}, {LABELLED, PSEUDO_LABELLED}),
        ("nontarget", {"pseudo_labels": "online"}, {LABELLED, UNLABELLED}),
        ("nontarget", {"pseudo_labels": "averaged"}, {LABELLED, UNLABELLED}),
        ("nontarget", {"pseudo_labels": "teacher"}, {LABELLED, PSEUDO_LABELLED}),
        ("steady", {}, {LABELLED, PSEUDO_LABELLED}),
    ],
)
def test_what_a_method_asks_for(kind: str, changes: dict[str, Any], videos: set[str]) -> None:
    method = build_method(kind, DETECTOR_CHOICE, STEPS, PERTURB, **changes)
    assert method.videos == videos
    assert method.constants == ({INSTANCES} if kind in ("supervised", "apl", "apl_nontarget") else set())
    assert method.teacher == (kind not in ("supervised", "contrast", "foreground"))


# Passes and terms of one's own


def term(needs: tuple[str, ...], **changes: Any) -> Term:
    return Term(lambda inputs: TermValue(jnp.zeros(()), {}), needs, **changes)


def owning(*owners: str) -> Any:
    return lambda key: ({owner: {"scale": jnp.ones(())} for owner in owners}, ())


@pytest.mark.parametrize(
    ("passes", "terms", "message"),
    [
        ({"a": Pass("everything")}, {}, "pass 'a': found videos 'everything', expected one of labelled, "),
        ({"a": Pass(LABELLED)}, {"x": term(("b",))}, r"term 'x': found needs \['b'\], expected some of a, instances"),
        ({}, {"x": term(("y",)), "y": term(())}, r"term 'x': found needs \['y'\]"),  # a term that comes later
        ({}, {"x": term((), init=owning("me")), "y": term((), init=owning("me"))}, "term 'y': .* called 'me' a second"),
        ({}, {"x": term((), init=owning(DETECTOR))}, "parameters called 'detector' a second time"),
    ],
)
def test_methods_that_cannot_be_built(passes: dict, terms: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build_objective(Method(passes, terms), method_context(DETECTOR_CHOICE, STEPS, PERTURB))


def test_a_term_reads_what_it_needs_and_keeps_what_is_its_own() -> None:
    """Earlier terms, constants, parameters of others, a running state, an optimiser group, and a weight."""
    seen: dict[str, Any] = {}

    def first(inputs: TermInputs) -> TermValue:
        return TermValue(2.0 * inputs.params["mine"]["scale"], {"first": 2.0}, inputs.state + 1, gives="given")

    def second(inputs: TermInputs) -> TermValue:
        seen.update(earlier=dict(inputs.earlier), constants=set(inputs.constants), passes=set(inputs.passes))
        return TermValue(jnp.float32(5), {"second": inputs.state})

    group = GroupSettings(1e-3, 0.0)
    own = lambda key: ({"mine": {"scale": jnp.float32(3)}}, jnp.int32(7))
    terms = {
        "first": Term(first, (), own, weight=0.5, group=group),
        "second": Term(second, ("first", INSTANCES)),
    }
    method = Method({}, terms)
    objective = build_objective(method, method_context(DETECTOR_CHOICE, STEPS, PERTURB))
    assert objective.groups == {DETECTOR: None, "mine": group} and method.constants == {INSTANCES}
    params, state = jax.jit(objective.init)(jax.random.key(0))
    assert set(params) == {DETECTOR, "mine"} and state == {"first": 7, "second": ()}
    total, (after, metrics) = objective.loss(params, params, state, {INSTANCES: random_bank()}, jax.random.key(0))
    assert total == 0.5 * 2 * 3 + 5 and after == {"first": 8, "second": ()}
    assert metrics == {"first": 2.0, "second": ()}
    assert seen == {"earlier": {"first": "given"}, "constants": {INSTANCES}, "passes": set()}


def test_passes_see_their_own_view_or_another_s() -> None:
    """Random views differ from pass to pass, ``same_view_as`` repeats one; averaged weights give other outputs."""
    passes = {
        "a": Pass(LABELLED), "b": Pass(LABELLED), "c": Pass(LABELLED, same_view_as="a", ema=True, dropout=False),
        "d": Pass(LABELLED, view=lambda key, batch: batch),
    }  # fmt: skip

    def look(inputs: TermInputs) -> TermValue:
        assert list(inputs.passes) == list(passes)
        seen = {name: (found.view.features, found.outputs.class_logits) for name, found in inputs.passes.items()}
        return TermValue(jnp.zeros(()), seen)  # pyright: ignore[reportArgumentType]  # arrays, for once

    method = Method(passes, {"look": Term(look, tuple(passes))})
    context = method_context(DETECTOR_CHOICE, STEPS, PerturbSettings(crop_ratio=0.5, noise=0.1))
    objective = build_objective(method, context)
    params = random_weights(jax.eval_shape(objective.init, jax.random.key(0))[0])
    given = batches()
    other = jax.tree.map(lambda x: -x, params)
    _, (_, seen) = jax.jit(objective.loss)(params, other, {"look": ()}, given, jax.random.key(0))
    views, logits = ({name: np.asarray(found[i]) for name, found in seen.items()} for i in range(2))
    assert (views["a"] == views["c"]).all() and (views["a"] != views["b"]).any()
    assert (views["d"] == given[LABELLED].features).all()
    assert not np.allclose(logits["a"], logits["c"])


def test_batches_that_pass_together_come_apart_again() -> None:
    parts = [random_batch([16, 11], STEPS, seed=1), random_batch([9], STEPS, seed=2, instances=4)]
    joined = join_batches(parts)
    assert joined.mask.shape == (3, STEPS) and joined.targets.mask.shape == (3, 5)
    for part, again in zip(parts, split_batch(joined, [2, 1]), strict=True):
        instances = part.targets.mask.shape[1]
        assert not again.targets.mask[:, instances:].any()
        cut = jax.tree.map(lambda x, n=instances: x[:, :n], again.targets)
        again = dataclasses.replace(again, targets=cut)
        assert all((a == b).all() for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(again), strict=True))
