"""What each training objective adds up to, read off the terms that it logs (APL Eq. 12; systems A6, A12)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from fixtures import TINY_LEARNING, build_kind, random_bank, random_batch, random_weights, tiny_settings

from apl_jax.learning.methods import blank_outside_spans
from apl_jax.settings import NonTargetSettings, PerturbSettings

STEPS = 16
TINY = tiny_settings("actionformer")
SETTINGS = dataclasses.replace(TINY, actionformer=dataclasses.replace(TINY.actionformer, drop_path=0.0))
PERTURB = PerturbSettings(crop_ratio=1.0)


@functools.cache
def evaluated(kind: str, swapped: bool = False, **changes: Any) -> tuple[float, dict, dict[str, float], dict]:
    """The objective's value, the state before and after, its terms; ``swapped`` exchanges the roles of the videos."""
    learning = dataclasses.replace(TINY_LEARNING, **changes)
    method = build_kind(kind, SETTINGS, STEPS, PERTURB, learning)
    params, _ = random_weights(jax.eval_shape(method.init, jax.random.key(0)))
    before = {"labelled": np.float32(50), "unlabelled": np.float32(70)}
    batches = {
        "labelled": random_batch([16, 11], STEPS, seed=1),
        "unlabelled": random_batch([9, 16, 16], STEPS, seed=2, instances=4),
        "bank": random_bank(),
    }
    if swapped:
        before["labelled"], before["unlabelled"] = before["unlabelled"], before["labelled"]
        batches["labelled"], batches["unlabelled"] = batches["unlabelled"], batches["labelled"]
    total, (after, metrics) = jax.device_get(jax.jit(method.loss)(params, params, before, batches, jax.random.key(0)))
    return float(total), before, {name: float(value) for name, value in metrics.items()}, after


def self_training(later: str, enabled: bool = True) -> tuple[float, dict, dict[str, float], dict]:
    """The method with a case of Table S4, with or without ICD."""
    contrastive = dataclasses.replace(TINY_LEARNING.contrastive, later=later, weight=0.3)
    icd = dataclasses.replace(TINY_LEARNING.selection.discriminator, enabled=enabled)
    selection = dataclasses.replace(TINY_LEARNING.selection, discriminator=icd)
    return evaluated("apl", contrastive=contrastive, selection=selection, unlabelled_weight=1.7)


def taught(terms: dict[str, float], role: str, contrast: float = TINY_LEARNING.contrastive.weight) -> float:
    """One role's part of Eq. 12."""
    s = SETTINGS.actionformer
    detection = (
        terms[f"{role}/class"] + s.regression_weight * terms[f"{role}/regression"] + 0.1 * terms[f"{role}/quality"]
    )
    if not contrast:
        assert f"{role}/contrast_coarse" not in terms
        return detection
    return detection + contrast * (terms[f"{role}/contrast_coarse"] + terms[f"{role}/contrast_fine"])


def test_pretraining_is_contrast_alone() -> None:
    total, before, terms, after = evaluated("contrast")
    assert set(terms) == {"contrast_coarse", "contrast_fine"} and min(terms.values()) > 0.01
    np.testing.assert_allclose(total, sum(terms.values()), rtol=1e-5)
    assert after == before


def test_supervised() -> None:
    total, before, terms, after = evaluated("supervised", False)
    np.testing.assert_allclose(total, taught(terms, "labelled") + terms["icd/loss"], rtol=1e-5)
    assert min(terms.values()) > 0
    np.testing.assert_allclose(
        after["labelled"], 0.9 * before["labelled"] + 0.1 * terms["labelled/positives"], rtol=1e-5
    )
    assert after["unlabelled"] == before["unlabelled"]


@pytest.mark.parametrize(
    ("later", "roles"), [("labelled_unlabelled", ("labelled", "unlabelled")), ("labelled", ("labelled",)), ("none", ())]
)
def test_self_training(later: str, roles: tuple[str, ...]) -> None:
    """L_s + beta L_u + L_icd, each role with a running normaliser of its own; Table S4's three cases of contrast."""
    total, before, terms, after = self_training(later, enabled=later != "none")
    weight = {role: 0.3 if role in roles else 0.0 for role in ("labelled", "unlabelled")}
    expected = taught(terms, "labelled", weight["labelled"]) + 1.7 * taught(terms, "unlabelled", weight["unlabelled"])
    assert ("icd/loss" in terms) == (later != "none")
    np.testing.assert_allclose(total, expected + terms.get("icd/loss", 0.0), rtol=1e-5)
    for role, count in before.items():
        np.testing.assert_allclose(after[role], 0.9 * count + 0.1 * terms[f"{role}/positives"], rtol=1e-5)


def test_the_losses_are_those_of_the_batch_alone() -> None:
    """Labelled and pseudo-labelled videos pass the network together and yet do not meet: both objectives agree."""
    _, _, together, _ = self_training("labelled_unlabelled")
    for role, swapped in (("labelled", False), ("unlabelled", True)):
        _, _, alone, _ = evaluated("supervised", swapped)
        for name in ("class", "regression", "quality", "positives"):
            np.testing.assert_allclose(alone[f"labelled/{name}"], together[f"{role}/{name}"], rtol=1e-4)


def test_foreground_is_localisation_alone() -> None:
    total, before, terms, after = evaluated("foreground")
    s = SETTINGS.actionformer
    expected = s.regression_weight * terms["foreground/regression"] + 0.1 * terms["foreground/quality"]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert total > 0 and after["labelled"] == before["labelled"] != after["unlabelled"]


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


OFF = {"positive_weight": 0.0, "negative_weight": 0.0, "labelled_negative": False}


def hybrid(kind: str = "nontarget", **changes: Any) -> tuple[float, dict[str, float]]:
    """Value and terms of a method that learns from non-target classes, on the teacher's pseudo labels."""
    settings = NonTargetSettings(**({"pseudo_labels": "teacher", "unlabelled_weight": 1.7} | changes))
    total, _, terms, _ = evaluated(kind, nontarget=settings, unlabelled_weight=1.7)
    return total, terms


def test_target_only_is_self_training() -> None:
    """Both weights zero: Eq. 1, and on the same pseudo labels what APL minimises with beta = alpha."""
    baseline, _ = hybrid(**OFF)
    apl, _, _, _ = evaluated("apl", unlabelled_weight=1.7)
    np.testing.assert_allclose(baseline, apl, rtol=2e-5)


def test_hybrid_adds_its_terms() -> None:
    baseline, _ = hybrid(**OFF)
    total, terms = hybrid(positive_weight=0.3, negative_weight=0.6)
    extra = 1.7 * (0.3 * terms["unlabelled/positive"] + 0.6 * terms["unlabelled/negative"])
    assert terms["unlabelled/negative"] > 0.01 and terms["labelled/negative"] > 0.01
    np.testing.assert_allclose(total, baseline + terms["labelled/negative"] + extra, rtol=2e-5)


def test_soft_labels_replace_the_class_loss() -> None:
    baseline, before = hybrid(**OFF)
    total, terms = hybrid(**OFF, rival="soft_label")
    expected = baseline + 1.7 * (terms["unlabelled/soft_label"] - before["unlabelled/class"])
    np.testing.assert_allclose(total, expected, rtol=2e-5)


def test_a_complementary_label_is_one_more_term() -> None:
    baseline, _ = hybrid(**OFF)
    total, terms = hybrid(**OFF, rival="complementary")
    np.testing.assert_allclose(total, baseline + 1.7 * terms["unlabelled/complementary"], rtol=2e-5)


def test_both_papers_at_once() -> None:
    """APL's objective, the two parts on selected points, and exclusion under what selection left aside."""
    apl, _, _, _ = evaluated("apl", unlabelled_weight=1.7)
    total, terms = hybrid("apl_nontarget", silenced_weight=0.4, labelled_negative=False)
    extra = terms["unlabelled/positive"] + terms["unlabelled/negative"] + 0.4 * terms["unlabelled/silenced_negative"]
    assert terms["unlabelled/silenced_negative"] > 0.01
    np.testing.assert_allclose(total, apl + 1.7 * extra, rtol=2e-5)


def test_online_labels_are_the_step_s_own() -> None:
    """What the pseudo_label stage found plays no part: the batch's targets may be anything."""
    settings = NonTargetSettings(pseudo_labels="online")
    first = evaluated("nontarget", nontarget=settings)[0]
    method = build_kind("nontarget", SETTINGS, STEPS, PERTURB, dataclasses.replace(TINY_LEARNING, nontarget=settings))
    params, _ = random_weights(jax.eval_shape(method.init, jax.random.key(0)))
    unlabelled = random_batch([9, 16, 16], STEPS, seed=2, instances=4)
    shifted = dataclasses.replace(unlabelled.targets, segments_t=unlabelled.targets.segments_t + 3)
    batches = {
        "labelled": random_batch([16, 11], STEPS, seed=1),
        "unlabelled": dataclasses.replace(unlabelled, targets=shifted),
        "bank": random_bank(),
    }
    before = {"labelled": np.float32(50), "unlabelled": np.float32(70)}
    second, _ = jax.jit(method.loss)(params, params, before, batches, jax.random.key(0))
    np.testing.assert_allclose(second, first, rtol=1e-6)


@pytest.mark.parametrize("labels", ("online", "averaged", "teacher"))
def test_averaged_weights_label_where_they_are_asked_to(labels: str) -> None:
    """They teach without being taught: the loss depends on them, and its gradient does not reach them."""
    nontarget = NonTargetSettings(pseudo_labels=labels)
    learning = dataclasses.replace(TINY_LEARNING, nontarget=nontarget)
    method = build_kind("nontarget", tiny_settings("spot"), STEPS, PERTURB, learning)
    params, _ = random_weights(jax.eval_shape(method.init, jax.random.key(0)))
    other = jax.tree.map(lambda x: -x, params)
    batches = {
        "labelled": random_batch([16, 11], STEPS, seed=1),
        "unlabelled": random_batch([9, 16, 16], STEPS, seed=2, instances=4),
        "bank": random_bank(),
    }
    before = {"labelled": np.float32(50), "unlabelled": np.float32(70)}
    run = jax.jit(jax.value_and_grad(lambda p, a: method.loss(p, a, before, batches, jax.random.key(0))[0], (0, 1)))
    (same, _), (value, (gradient, reached)) = run(params, params), run(params, other)
    assert (abs(value - same) > 1e-3) == (labels == "averaged")
    assert not any(x.any() for x in jax.tree.leaves(reached))
    assert any(x.any() for x in jax.tree.leaves(gradient))
