"""Law 5: at most one trace per bucket of lengths, in prediction and labelling (training: ``test_devices.py``)."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_batch, random_weights, tiny_settings

from apl_jax.data.batching import padded_length
from apl_jax.detectors import DETECTORS, build_detector
from apl_jax.evaluation.detections import predict_batch
from apl_jax.learning.selection import SELECTORS, refine
from apl_jax.ops.masking import map_rows
from apl_jax.settings import SelectionSettings
from apl_jax.structs import Array, Batch, PseudoLabels, PyTree


@pytest.mark.parametrize("detector_name", DETECTORS)
def test_prediction_and_selection(detector_name: str) -> None:
    """Five data sets of different lengths, counts of instances aside, fall into two buckets."""
    detector = build_detector(tiny_settings(detector_name), FEATURE_WIDTH, CLASSES)
    params, _ = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))
    selection = SelectionSettings()
    traced = []

    @jax.jit
    def label(params: PyTree, table: Batch, similarity: Array) -> dict[str, PseudoLabels]:
        traced.append(table.features.shape[1])
        detections = map_rows(lambda chunk: predict_batch(detector, params, chunk), table, 2)
        chosen = {}
        for rule, build in SELECTORS.items():
            selector = build(selection)
            _, selected = selector.select(selector.init(), detections, CLASSES)
            chosen[rule] = refine(detections, selected, similarity, selection)
        return chosen

    most = getattr(tiny_settings(detector_name), detector_name).nms.max_detections
    counts = []
    for seed, lengths in enumerate([(16, 9, 3), (12, 12, 12), (30, 4, 17), (16, 1, 5), (25, 32, 2)]):
        table = random_batch(lengths, padded_length(lengths, 16), seed=seed)
        labels = label(params, table, np.full((3, most), 0.5, np.float32))
        counts.append(int(labels["fixed"].detections.mask.sum()))
    assert sorted(traced) == [16, 32]
    assert min(counts) > 0
