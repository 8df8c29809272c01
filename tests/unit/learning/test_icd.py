"""ICD at work: the memory of instances, the pairs it is trained on, and the mean similarity (APL Eq. 7 to 10)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import FEATURE_WIDTH, method_context, random_bank, random_batch, random_weights, tiny_choice

from apl_jax.learning.icd import (
    DISCRIMINATOR,
    PARTS,
    IcdPairSettings,
    IcdSettings,
    InstanceBank,
    build_bank,
    build_icd,
    class_members,
    icd_pairs,
    mean_similarity,
    pair_loss,
    pool_instances,
    random_cuts,
)
from apl_jax.learning.method import TermInputs
from apl_jax.learning.selection import Known
from apl_jax.nn.discriminator import InstanceDiscriminator, build_discriminator
from apl_jax.ops.segments import pool_max
from apl_jax.settings import PerturbSettings
from apl_jax.structs import DataFacts, Detections

SETTINGS = IcdPairSettings(hidden=4, pairs=6)


def test_bank_holds_every_annotated_instance() -> None:
    batch = random_batch([20, 13, 1], 24, seed=2)
    bank = jax.device_get(jax.jit(lambda b: build_bank(pool_instances(b), b.targets))(batch))
    targets, rows = batch.targets, batch.targets.mask.size
    assert bank.features.shape == (rows, 6)
    assert (bank.labels == np.asarray(targets.labels).ravel()).all()
    # Neither empty rows nor ignored instances are among them.
    assert (bank.mask == np.asarray(targets.mask & ~targets.ignore_mask).ravel()).all()
    assert bank.mask.sum() == 3 * 3
    for v in range(3):
        pooled = pool_max(batch.features[v], targets.segments_t[v], int(batch.mask[v].sum()))
        np.testing.assert_array_equal(bank.features.reshape(3, -1, 6)[v], pooled)


def agreement() -> InstanceDiscriminator:
    """A discriminator that knows: instances of one class have equal features, of two classes orthogonal ones."""

    def logits(params: dict, left: jax.Array, right: jax.Array) -> jax.Array:
        return params["sharpness"] * (2 * (left * right).sum(-1) - 1)

    compare = lambda params, left, right: jax.nn.sigmoid(logits(params, left, right))
    project = lambda params, rows: rows
    return InstanceDiscriminator(lambda key, width: {"sharpness": jnp.ones(())}, logits, project, compare)


def classes_bank(labels: list[int], mask: list[bool]) -> InstanceBank:
    """One-hot features by class; absent rows claim class 0 with the features of class 1."""
    features = np.eye(4)[labels]
    features[~np.array(mask)] = np.eye(4)[1]
    labels_array = np.where(mask, labels, 0)
    parts = np.repeat(features[:, None], PARTS, 1)
    return InstanceBank(
        jnp.asarray(features, jnp.float32), jnp.asarray(labels_array, jnp.int32), jnp.asarray(mask),
        jnp.asarray(parts, jnp.float32),
    )  # fmt: skip


known_loss = jax.jit(lambda key, params, bank: pair_loss(key, params, bank, agreement(), SETTINGS))


def loss_of(bank: InstanceBank, sharpness: float, seed: int = 0) -> tuple[float, float]:
    """L_icd and accuracy of the knowing discriminator; with a negative sharpness it says the opposite."""
    loss, accuracy = known_loss(jax.random.key(seed), {"sharpness": jnp.float32(sharpness)}, bank)
    return float(loss), float(accuracy)


def test_positive_pairs_share_a_class_and_negative_ones_do_not() -> None:
    bank = classes_bank([0, 0, 1, 1, 2, 2, 3, 3], [True] * 6 + [False] * 2)
    for seed in range(10):
        loss, accuracy = loss_of(bank, 30.0, seed)
        assert accuracy == 1 and loss < 1e-6
        loss, accuracy = loss_of(bank, -30.0, seed)
        assert accuracy == 0 and loss == pytest.approx(60, rel=1e-3)
    # Undecided: -log 1/2 for a positive pair and for a negative one (Eq. 8).
    assert loss_of(bank, 0.0)[0] == pytest.approx(2 * math.log(2), rel=1e-5)


def test_an_anchor_never_meets_itself() -> None:
    """Alone in their classes, instances have no positive partner: what remains are negative pairs, all recognised."""
    bank = classes_bank([0, 1, 2, 3], [True] * 4)
    for seed in range(5):
        loss, accuracy = loss_of(bank, 30.0, seed)
        assert accuracy == 1 and loss < 1e-6
        # Were an anchor its own partner, half the pairs would now be right.
        assert loss_of(bank, -30.0, seed)[1] == 0


def test_parts_are_those_of_the_instance() -> None:
    """The maximum over the parts is that of the whole; each part is what pooling over its eighth gives."""
    batch = random_batch([20, 13, 1], 24, seed=2)
    pooled = np.asarray(jax.jit(pool_instances)(batch))
    for v in range(3):
        for n, (start, end) in enumerate(np.asarray(batch.targets.segments_t[v])):
            edges = np.linspace(start, end, PARTS + 1)
            length = int(batch.mask[v].sum())
            for p in range(PARTS):
                first = int(np.clip(np.floor(edges[p]), 0, length - 1))
                last = int(np.clip(np.ceil(edges[p + 1]), first, length - 1))
                np.testing.assert_array_equal(pooled[v, n, p], batch.features[v, first : last + 1].max(0))


def test_cuts_are_contiguous_and_at_least_a_half() -> None:
    parts = jnp.broadcast_to(jnp.eye(PARTS), (200, PARTS, PARTS))
    cuts = np.asarray(random_cuts(jax.random.key(0), parts))
    sizes, seen = cuts.sum(1), {tuple(np.flatnonzero(row)) for row in cuts}
    assert sizes.min() == PARTS // 2 and sizes.max() == PARTS
    assert all(np.array_equal(places, np.arange(places[0], places[-1] + 1)) for places in seen)
    assert len(seen) == 5 + 4 + 3 + 2 + 1


def test_with_cuts_an_instance_alone_in_its_class_is_in_positive_pairs() -> None:
    """Issue 12, point 3: else the discriminator meets its class in negative pairs only."""
    bank, settings = classes_bank([0, 1, 2, 3], [True] * 4), dataclasses.replace(SETTINGS, positives="cuts")
    for seed in range(5):
        params = {"sharpness": jnp.float32(-30.0)}
        loss, accuracy = pair_loss(jax.random.key(seed), params, bank, agreement(), settings)
        assert accuracy == 0 and loss == pytest.approx(60, rel=1e-3)  # in both kinds of pairs it says the opposite


def test_a_class_with_too_few_instances_is_unknown() -> None:
    batch, labels = random_batch([16], 16), jnp.array([[0, 1]])
    width = batch.features.shape[-1]
    bank = classes_bank([0, 0, 1], [True] * 3)
    bank = dataclasses.replace(bank, features=jnp.ones((3, width)))
    zero = jnp.zeros(labels.shape)
    asked_of = Detections(jnp.array([[[0.0, 4.0], [5.0, 9.0]]]), labels, zero, zero, zero, zero, zero == 0)
    discriminator = build_discriminator(hidden=SETTINGS.hidden, symmetric=True)
    params = random_weights(jax.eval_shape(lambda: discriminator.init(jax.random.key(0), width)))
    known = Known({DISCRIMINATOR: params}, bank, class_members(bank, 2))
    found = build_icd(IcdSettings(least_instances=2), DataFacts(width, 2)).observe(known, batch, asked_of)
    assert found[0, 1] == 0.5 and found[0, 0] != 0.5


@pytest.mark.parametrize(
    ("labels", "mask", "pairs"),
    [
        pytest.param([2, 2, 2, 1], [True, True, True, False], True, id="single_class"),
        pytest.param([2, 1, 1], [True, False, False], False, id="single_instance"),
        pytest.param([0, 1], [False, False], False, id="no_instance"),
    ],
)
def test_sets_without_pairs_of_a_kind(labels: list[int], mask: list[bool], pairs: bool) -> None:
    bank = classes_bank(labels, mask)
    loss, accuracy = loss_of(bank, 1.0)
    assert math.isfinite(loss)
    expected = 2 * math.log(1 + math.exp(-1)) if pairs else 0.0
    assert loss == pytest.approx(expected, rel=1e-5) and accuracy == float(pairs)
    # The trainable one: its gradient is finite, and zero where there is no pair.
    discriminator = build_discriminator(hidden=SETTINGS.hidden, symmetric=True)
    params = random_weights(jax.eval_shape(lambda: discriminator.init(jax.random.key(0), 4)))
    run = lambda p: pair_loss(jax.random.key(0), p, bank, discriminator, SETTINGS)[0]
    gradient = jax.jit(jax.grad(run))(params)
    size = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient))
    assert math.isfinite(size) and (size > 0) == pairs


def test_mean_similarity_by_hand() -> None:
    batch = random_batch([16, 9], 16, seed=5)
    bank = classes_bank([0, 0, 1, 2, 2, 2], [True, True, True, True, True, False])
    width = batch.features.shape[-1]
    draws = np.random.default_rng(0)
    features = jnp.asarray(draws.normal(size=(6, width)), jnp.float32)
    bank = dataclasses.replace(bank, features=features)
    discriminator = build_discriminator(hidden=SETTINGS.hidden, symmetric=True)
    params = random_weights(jax.eval_shape(lambda: discriminator.init(jax.random.key(0), width)))
    segments = jnp.asarray(np.sort(draws.uniform(0, 9, (2, 5, 2)), -1), jnp.float32)
    labels = jnp.array([[0, 1, 2, 3, 0], [2, 2, 3, 1, 0]])
    members = class_members(bank, 4)
    # Two of class 0, one of class 1, two of class 2, whose third row is empty.
    assert members.rows[:3].tolist() == [[0, 1], [2, 0], [3, 4]] and members.mask.sum(-1).tolist() == [2, 1, 2, 0]
    known = Known({DISCRIMINATOR: params}, bank, members)
    zero = jnp.zeros(labels.shape)
    asked_of = Detections(segments, labels, zero, zero, zero, zero, zero == 0)
    found = jax.jit(lambda k, v, d: mean_similarity(k, v, d, discriminator))(known, batch, asked_of)
    for v in range(2):
        pooled = pool_max(batch.features[v], segments[v], int(batch.mask[v].sum()))
        for k in range(5):
            related = [m for m in range(5) if bank.labels[m] == labels[v, k]]
            asked, others = (discriminator.project(params, rows) for rows in (pooled[k], bank.features))
            values = [
                float(discriminator.compare(params, asked, jax.tree.map(lambda x: x[m], others))) for m in related
            ]
            # No instance of class 3 is labelled (spec A19).
            expected = np.mean(values) if values else 0.5
            np.testing.assert_allclose(found[v, k], expected, rtol=1e-5)
    assert (found[labels == 3] == 0.5).all() and len(set(found.ravel().tolist())) > 6
    # The link asks a discriminator of the width that was trained, both ways round or one.
    for symmetric in (True, False):
        link = build_icd(IcdSettings(symmetric=symmetric), DataFacts(width, 4))
        observed = jax.jit(link.observe)(known, batch, asked_of)
        assert bool(jnp.allclose(observed, found, rtol=1e-5)) == symmetric
    assert link.owners == (DISCRIMINATOR,) and link.init() == ()


def test_the_term_owns_the_discriminator_and_its_optimiser() -> None:
    context = method_context(tiny_choice("actionformer"), 16, PerturbSettings())
    term = icd_pairs(context, dataclasses.replace(SETTINGS, learning_rate=3e-4, weight_decay=2e-4))
    params, state = term.init(jax.random.key(0))
    assert set(params) == {DISCRIMINATOR} and state == ()
    assert params[DISCRIMINATOR]["kernel"].shape[1] == SETTINGS.hidden
    assert term.group == (3e-4, 2e-4) and term.weight == 1
    bank, key = random_bank(), jax.random.key(4)
    value = term.loss(TermInputs({}, {}, params, {"instances": bank}, (), key))
    discriminator = build_discriminator(hidden=SETTINGS.hidden, symmetric=True)
    loss, accuracy = pair_loss(key, params[DISCRIMINATOR], bank, discriminator, SETTINGS)
    assert value.loss == loss and value.metrics == {"icd/loss": loss, "icd/accuracy": accuracy}
    assert bank.features.shape[1] == FEATURE_WIDTH
