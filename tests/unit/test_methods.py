"""What each training objective adds up to, read off the terms that it logs (APL Eq. 12; systems A6, A12)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from specimens import TINY_LEARNING, build_kind, random_bank, random_batch, random_weights, tiny_settings

from apl_jax.settings import PerturbSettings

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
        "unlabelled": random_batch([9, 16, 16], STEPS, seed=2, instances=3),
        "bank": random_bank(),
    }
    if swapped:
        before["labelled"], before["unlabelled"] = before["unlabelled"], before["labelled"]
        batches["labelled"], batches["unlabelled"] = batches["unlabelled"], batches["labelled"]
    total, (after, metrics) = jax.device_get(jax.jit(method.loss)(params, before, batches, jax.random.key(0)))
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
    total, before, terms, after = evaluated("pretrain")
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
