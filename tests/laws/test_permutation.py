"""Law 2: permuting the videos of a batch permutes the outputs, and what is made of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, is_usual, random_batch, random_weights, rarely, variants

from apl_jax.detectors import build_detector
from apl_jax.registry import DETECTORS
from apl_jax.structs import Batch, DataFacts

LENGTHS = (20, 13, 1)
STEPS = 20
ORDER = jnp.array([2, 0, 1])


CASES = [(detector, variant) for detector in DETECTORS for variant in variants(detector)]


@pytest.mark.parametrize("case", rarely(CASES, is_usual), ids="-".join)
def test_detector(case: tuple[str, str]) -> None:
    """Outputs, detections and targets move with their videos; losses and distances, of the whole batch, stay."""
    detector_name, variant = case
    detector = build_detector(variants(detector_name)[variant], DataFacts(FEATURE_WIDTH, CLASSES))
    params, state = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))

    @jax.jit
    def examine(batch: Batch) -> tuple:
        outputs = detector.apply(params, batch, None)
        represented = outputs.represent(jnp.tile(jnp.arange(STEPS), (len(LENGTHS), 1)))
        losses = detector.loss(outputs, batch.targets, state, None)
        own, flipped = detector.annotate(outputs), detector.flip(outputs)
        online = detector.loss(outputs, own, state, None)
        per_video = (
            outputs, represented, outputs.distribution(), detector.decode(outputs), losses.points, own, online.points,
            flipped,
        )  # fmt: skip
        distance = detector.compare(outputs, flipped, jnp.ones(len(LENGTHS), bool))
        return per_video, (losses._replace(points=None), online._replace(points=None), distance)

    batch = random_batch(LENGTHS, STEPS)
    move = lambda tree: jax.tree.map(lambda x: x[ORDER], tree)
    per_video, of_batch = examine(batch)
    permuted, of_permuted_batch = examine(move(batch))
    for expected, found in ((move(per_video), permuted), (of_batch, of_permuted_batch)):
        rows = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True)
        for (path, ours), theirs in rows:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    videos = jax.tree.leaves(per_video)[0]
    assert jnp.abs(videos[0] - videos[1]).max() > 0.1
