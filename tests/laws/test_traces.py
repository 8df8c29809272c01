"""Law 5: at most one trace per bucket of lengths, in prediction and labelling (training: ``test_devices.py``)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_bank, random_batch, random_weights, rarely, tiny_choice

from apl_jax.data.batching import padded_length
from apl_jax.declarations import Chain, Choice
from apl_jax.detectors import build_detector
from apl_jax.evaluation.detections import predict_batch
from apl_jax.learning.icd import DISCRIMINATOR, class_members
from apl_jax.learning.selection import Known, unselected
from apl_jax.nn.discriminator import build_discriminator
from apl_jax.ops.masking import map_rows
from apl_jax.registry import DETECTORS, SELECTION
from apl_jax.runs.labelling_stage import build_selection
from apl_jax.structs import Batch, DataFacts, PseudoLabels, PyTree


@pytest.mark.parametrize("detector_name", rarely(DETECTORS, ("actionformer", "conv").__contains__))
def test_prediction_and_selection(detector_name: str) -> None:
    """Five data sets of different lengths, counts of instances aside, fall into two buckets."""
    facts = DataFacts(FEATURE_WIDTH, CLASSES)
    detector = build_detector(tiny_choice(detector_name), facts)
    params, _ = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))
    discriminator = build_discriminator(hidden=4, symmetric=True).init(jax.random.key(1), FEATURE_WIDTH)
    bank = random_bank()
    known = Known({"detector": params, DISCRIMINATOR: discriminator}, bank, class_members(bank, CLASSES))
    entries = {name: Choice(name, SELECTION[name].settings()) for name in SELECTION}
    links = {name: build_selection(Chain((entries[name],)), facts) for name in SELECTION}
    links["chain"] = build_selection(Chain((entries["dynamic"], entries["icd"])), facts)
    traced = []

    @jax.jit
    def label(known: Known, table: Batch, states: dict[str, PyTree]) -> dict[str, tuple[PyTree, PseudoLabels]]:
        traced.append(table.features.shape[1])

        def observe(videos: Batch) -> tuple:
            detections = predict_batch(detector, known.params["detector"], videos)
            return detections, {name: link.observe(known, videos, detections) for name, link in links.items()}

        detections, observed = map_rows(observe, table, 2)
        fresh = unselected(detections)
        return {name: link.select(states[name], fresh, observed[name]) for name, link in links.items()}

    states = {name: jax.tree.map(jnp.asarray, link.init()) for name, link in links.items()}
    counts = []
    for seed, lengths in enumerate([(16, 9, 3), (12, 12, 12), (30, 4, 17), (16, 1, 5), (25, 32, 2)]):
        table = random_batch(lengths, padded_length(lengths, 16), seed=seed)
        labels = label(known, table, states)
        states = {name: state for name, (state, _) in labels.items()}  # another round is no other program
        counts.append(int(labels["fixed"][1].detections.mask.sum()))
    assert sorted(traced) == [16, 32]
    assert min(counts) > 0
