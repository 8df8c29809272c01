"""Law 6: gradients are finite, in float32 and bfloat16, on the batches that most easily break them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import (
    CLASSES,
    KINDS,
    build_kind,
    build_method,
    in_bfloat16,
    random_bank,
    random_batch,
    random_proposals,
    rarely,
    tiny_choice,
    variants,
)
from law_batches import batches_of, weights_of

from apl_jax.detectors.pyramid_outputs import PyramidOutputs, detection_losses
from apl_jax.detectors.quality import QualitySettings
from apl_jax.learning.method import Method
from apl_jax.nn.quality import QUALITY_BRANCHES
from apl_jax.ops.pyramid import assign, pyramid_points
from apl_jax.registry import DETECTORS
from apl_jax.settings import PerturbSettings
from apl_jax.structs import Batch, PyTree, Targets

STEPS, VIDEOS = 16, 2
# Centre and half length of instances of which every point of the tiny pyramid has one around it and in its range.
EVERYWHERE = [(t, 1.4) for t in range(STEPS)] + [(t, 5.0) for t in range(0, STEPS, 2)]
COUNT = len(EVERYWHERE)


def batch_of(mask: np.ndarray, segments_t: np.ndarray, exists: np.ndarray, ignored: bool = False) -> Batch:
    """Two equal videos; ``mask [T]``, ``segments_t [N, 2]``, ``exists [N]``."""
    twice = lambda x: jnp.stack([jnp.asarray(x)] * VIDEOS)
    targets = Targets(
        twice(segments_t.astype(np.float32)), twice(np.arange(COUNT, dtype=np.int32) % CLASSES), twice(exists),
        jnp.ones((VIDEOS, COUNT)), jnp.full((VIDEOS, COUNT), ignored),
    )  # fmt: skip
    features = random_batch([STEPS] * VIDEOS, STEPS).features * mask[:, None]
    return Batch(
        features,
        twice(mask),
        targets,
        jnp.arange(VIDEOS),
        random_proposals(np.stack([segments_t] * VIDEOS), [STEPS] * VIDEOS),
    )


def hard_batches() -> dict[str, Batch]:
    """By what is hard about them."""
    whole, none, every = np.ones(STEPS, bool), np.zeros(COUNT, bool), np.ones(COUNT, bool)
    center, half = np.array(EVERYWHERE).T
    everywhere = np.stack([center - half, center + half], -1)
    one = np.arange(COUNT) < 1
    point = np.zeros((COUNT, 2)) + [3.0, 3.0]
    constant = batch_of(whole, everywhere, one)
    return {
        "no_instances": batch_of(whole, everywhere, none),
        "one_valid_step": batch_of(np.arange(STEPS) < 1, everywhere, one),
        "no_valid_step": batch_of(~whole, everywhere, one),
        "every_point_positive": batch_of(whole, everywhere, every),
        "all_ignored": batch_of(whole, everywhere, every, ignored=True),
        "empty_segments": batch_of(whole, point, every),
        "constant_features": dataclasses.replace(constant, features=jnp.ones_like(constant.features)),
        "zero_features": dataclasses.replace(constant, features=jnp.zeros_like(constant.features)),
    }


HARD = hard_batches()
PERTURB = PerturbSettings(crop_ratio=1.0)


class Program(NamedTuple):
    """One compiled program for all hard batches, with weights to give it."""

    run: Callable[[PyTree, PyTree, dict], tuple]
    params: PyTree
    state: PyTree
    method: Method


# Heads that say where an action is, of the detectors of this package.
LOCALISING = ("regression_head", "trident_head", "mask_head", "map_head")

# Every kind in float32. In bfloat16 the networks differ, not the objectives: two kinds that use all of a network.
CASES = [("float32", kind, detector) for kind in KINDS for detector in DETECTORS]
CASES += [
    ("bfloat16", kind, detector)
    for kind in ("contrast", "nontarget")
    for detector in DETECTORS
    if in_bfloat16(tiny_choice(detector)) != tiny_choice(detector)
]


# Between them, these go through every term, every detector and both types.
OFTEN = [("float32", "apl_nontarget", "actionformer"), ("float32", "contrast", "actionformer"),
         ("float32", "foreground", "actionformer"), ("float32", "nontarget", "spot"),
         ("bfloat16", "nontarget", "actionformer"), ("float32", "steady", "conv")]  # fmt: skip


@pytest.fixture(scope="module", params=rarely(CASES, OFTEN.__contains__), ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param


@pytest.fixture(scope="module")
def program(case: tuple[str, str, str]) -> Program:
    dtype, kind, name = case
    detector = in_bfloat16(tiny_choice(name)) if dtype == "bfloat16" else tiny_choice(name)
    objective = build_kind(kind, detector, STEPS, PERTURB)
    params, state = weights_of(objective)
    run = jax.jit(lambda p, s, b: jax.value_and_grad(objective.loss, has_aux=True)(p, p, s, b, jax.random.key(1)))
    return Program(run, params, state, build_method(kind, detector, STEPS, PERTURB))


@pytest.mark.parametrize("name", HARD)
def test_training_objective(program: Program, case: tuple[str, str, str], name: str) -> None:
    _, kind, _ = case
    bank = random_bank()
    if name == "no_instances":
        bank = dataclasses.replace(bank, mask=jnp.zeros_like(bank.mask))
    batches = batches_of(program.method, HARD[name], HARD[name], bank)
    (loss, (state, metrics)), gradients = program.run(program.params, program.state, batches)
    for path, leaf in jax.tree_util.tree_leaves_with_path((loss, state, metrics, gradients)):
        assert jnp.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))
    sizes = {
        part: max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree))
        for part, tree in gradients["detector"].items()
    }
    if name == "every_point_positive":
        assert sizes.get("backbone", max(sizes.values())) > 1e-4
        if "backbone" in sizes:  # the parts of a stranger's detector may have any names
            # Without labels the heads have nothing to learn from contrast (spec B9), the class head not from spans.
            assert (sizes["class_head"] > 0) == (kind not in ("contrast", "foreground"))
            localising = {part: size > 0 for part, size in sizes.items() if part in LOCALISING}
            assert len(localising) == 1 and all(localising.values()) == (kind != "contrast")


def test_every_point_is_positive() -> None:
    """What the batch of that name promises."""
    points = jnp.asarray(pyramid_points(STEPS, tiny_choice("actionformer").settings.regression_ranges))
    targets = jax.tree.map(lambda x: x[0], HARD["every_point_positive"].targets)
    assert assign(points, targets, num_classes=CLASSES, center_radius=1.5).positive.all()


EXTREMES = {
    "saturated": (60.0, 1e4), "negative": (-60.0, 0.0), "far": (-1e4, 1e4), "neutral": (0.0, 0.0),
}  # fmt: skip


def test_every_form_of_the_detection_losses() -> None:
    """All quality branches and loss forms at extreme predictions, zero offsets included."""
    tiny = variants("actionformer")["identity"].settings
    forms = list(itertools.product(QUALITY_BRANCHES, ("bce", "kl"), ("qfl", "af")))
    points = len(pyramid_points(STEPS, tiny.regression_ranges))

    @jax.jit
    def gradients(targets: Targets, logit: jax.Array, offset: jax.Array) -> dict:
        found = {}
        for branches, loss, focal in forms:
            quality = QualitySettings(branches=branches, loss=loss, soft_focal=focal)
            s = dataclasses.replace(tiny, quality=quality)

            def objective(predicted: tuple, s=s) -> jax.Array:
                logits, offsets, quality_logits = predicted
                outputs = PyramidOutputs(
                    logits, offsets[:, :, None], quality_logits, jnp.ones((VIDEOS, points), bool), ()
                )
                return detection_losses(outputs, targets, jnp.float32(10), s).total

            shapes = (CLASSES, 2, len(QUALITY_BRANCHES[branches]))
            values = (logit, offset, logit)
            predicted = tuple(jnp.full((VIDEOS, points, n), v) for n, v in zip(shapes, values, strict=True))
            found["/".join((branches, loss, focal))] = jax.grad(objective)(predicted)
        return found

    for batch, (logit, offset) in itertools.product(HARD.values(), EXTREMES.values()):
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(batch.targets, logit, offset)):
            assert jnp.isfinite(leaf).all(), (jax.tree_util.keystr(path), logit, offset)
