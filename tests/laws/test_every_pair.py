"""Law 11: whatever is registered runs, every detector with every method and with every selection chain."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import (
    CLASSES,
    FEATURE_WIDTH,
    KINDS,
    build_kind,
    build_method,
    random_bank,
    random_batch,
    random_weights,
    tiny_choice,
)
from law_batches import batches_of

from apl_jax.declarations import Chain, Choice, override
from apl_jax.detectors import build_detector
from apl_jax.evaluation.detections import predict_batch
from apl_jax.learning.icd import class_members
from apl_jax.learning.selection import Known, unselected
from apl_jax.registry import DETECTORS, SELECTION
from apl_jax.runs.labelling_stage import build_selection, read_selection_state, write_selection_state
from apl_jax.settings import OptimizerSettings, PerturbSettings
from apl_jax.structs import Batch, DataFacts, PseudoLabels, PyTree, Reason, leaves_by_name
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.state import initial_state
from apl_jax.training.step import build_step

STEPS = 16
# The learning rate is not 0 at the first step, as it is in a warm-up.
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, warmup_fraction=0.0)
PERTURB = PerturbSettings(crop_ratio=0.7, noise=0.1)
LABELLED, UNLABELLED = (16, 7), (12, 16)


PAIRS = [(detector, kind) for detector in DETECTORS for kind in KINDS]


@pytest.mark.parametrize(("detector_name", "kind"), PAIRS)
def test_a_step_of_training(detector_name: str, kind: str) -> None:
    """From fresh parameters, as a stage takes it: all is finite, every owner learns, and another step can follow."""
    detector = tiny_choice(detector_name)
    method, objective = (build(kind, detector, STEPS, PERTURB) for build in (build_method, build_kind))
    optimizer = build_optimizer(OPTIMIZER, objective.groups, 2)
    step = build_step(objective, optimizer, OPTIMIZER)
    batches = batches_of(
        method, random_batch(LABELLED, STEPS, seed=1), random_batch(UNLABELLED, STEPS, seed=2, instances=3)
    )

    @jax.jit
    def first_step(key: jax.Array, batches: dict) -> tuple:
        before = initial_state(key, objective, optimizer)
        return before, *step(before, key, batches)

    before, after, metrics = jax.device_get(first_step(jax.random.key(4), batches))
    assert jax.tree.map(np.shape, before) == jax.tree.map(np.shape, after)
    assert jax.tree.map(lambda x: x.dtype, before) == jax.tree.map(lambda x: x.dtype, after)
    for path, leaf in jax.tree_util.tree_leaves_with_path((after, metrics)):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert after.step == 1 and metrics["gradient_norm"] > 0 and np.shape(metrics["loss"]) == ()
    assert before.params.keys() == after.params.keys() == objective.groups.keys()
    for owner, params in before.params.items():
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, after.params[owner])
        assert max(jax.tree.leaves(moved)) > 1e-6, owner


# ---- Selection ----

FACTS = DataFacts(FEATURE_WIDTH, CLASSES)


def link_choice(name: str) -> Choice:
    """A link, by default, that considers detections of untrained networks."""
    settings = SELECTION[name].settings()
    return Choice(name, override(settings, {"tau_neg": 0.02}) if hasattr(settings, "tau_neg") else settings)


CHAINS = [(name,) for name in SELECTION]
CHAINS += list(itertools.permutations(SELECTION, 2))
CHAINS += [tuple(SELECTION)]
LINKS = {"+".join(names): build_selection(Chain(tuple(map(link_choice, names))), FACTS) for names in CHAINS}


def owned_params(owners: set[str], detector: Choice) -> dict[str, Any]:
    """Parameters that links ask for, of whatever method trains them."""
    found: dict[str, Any] = {}
    for kind in KINDS if owners else ():
        shapes, _ = jax.eval_shape(build_kind(kind, detector, STEPS, PERTURB).init, jax.random.key(0))
        found |= {owner: shapes[owner] for owner in owners & shapes.keys() - found.keys()}
    assert found.keys() == owners, f"no registered method trains {owners - found.keys()}"
    return random_weights(found)


@pytest.mark.parametrize("detector_name", list(DETECTORS))
def test_detections_go_through_every_chain(detector_name: str, tmp_path: Path) -> None:
    """Two rounds, the second with what the first remembers, as read from its file; and a round without detections."""
    choice = tiny_choice(detector_name)
    detector = build_detector(choice, FACTS)
    params = random_weights(jax.eval_shape(detector.init, jax.random.key(0))[0])
    own = owned_params({owner for link in LINKS.values() for owner in link.owners}, choice)
    bank = random_bank()
    known = Known({"detector": params, **own}, bank, class_members(bank, CLASSES))

    @jax.jit
    def predict(known: Known, videos: Batch) -> tuple:
        detections = predict_batch(detector, known.params["detector"], videos)
        return detections, {name: link.observe(known, videos, detections) for name, link in LINKS.items()}

    @jax.jit
    def select(states: dict[str, PyTree], labels: PseudoLabels, observed: dict[str, PyTree]) -> dict:
        return {name: link.select(states[name], labels, observed[name]) for name, link in LINKS.items()}

    detections, observed = predict(known, random_batch((16, 9, 3, 1), STEPS))
    assert detections.mask.sum() > 10
    states = {name: jax.tree.map(jnp.asarray, link.init()) for name, link in LINKS.items()}
    fresh = unselected(detections)
    first = select(states, fresh, observed)
    for name, link in LINKS.items():
        folder = tmp_path / name
        folder.mkdir()
        state, labels = jax.device_get(first[name])
        assert_decided(labels, fresh)
        write_selection_state(state, folder, True)
        states[name] = read_selection_state(link, folder)
        assert jax.tree.structure(states[name]) == jax.tree.structure(link.init()) == jax.tree.structure(state)
        for (path, kept), saved in zip(leaves_by_name(states[name]).items(), jax.tree.leaves(state), strict=True):
            assert kept.dtype == saved.dtype and (kept == saved).all(), path
    for _, labels in jax.device_get(select(states, fresh, observed)).values():
        assert_decided(labels, fresh)
    assert any((labels.weight > 0).any() for _, labels in first.values())

    nothing = unselected(jax.tree.map(jnp.zeros_like, detections))
    for _, labels in jax.device_get(select(states, nothing, observed)).values():
        assert_decided(labels, nothing)
        assert not labels.weight.any()


def assert_decided(labels: PseudoLabels, before: PseudoLabels) -> None:
    """A decision on every detection, and none on what is no detection."""
    assert jax.tree.map(np.shape, labels) == jax.tree.map(np.shape, before)
    for path, leaf in jax.tree_util.tree_leaves_with_path(labels):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert np.isin(labels.reason, [int(reason) for reason in Reason]).all()
    chosen = (labels.reason == Reason.KEPT) | (labels.reason == Reason.PROMOTED)
    assert ((labels.weight > 0) == chosen).all() and (labels.weight <= 1).all()
    assert (labels.reason[~labels.detections.mask] == Reason.BELOW_THRESHOLD).all()
    for part in (labels.similarity, labels.threshold):
        assert (part >= 0).all() and (part <= 1).all()
