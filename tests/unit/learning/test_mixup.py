"""MixUp of labelled recordings, beside a twin in numpy (spec 4.4)."""

from __future__ import annotations

import jax
import numpy as np
from fixtures import random_batch

from apl_jax.learning.mixup import MixupSettings, mix

SETTINGS = MixupSettings(concentration=1.0)
LENGTHS = (16, 9, 12)


def test_features_and_instances_of_both() -> None:
    batch = jax.device_get(random_batch(LENGTHS, 16))
    mixed = jax.device_get(jax.jit(lambda key: mix(key, batch, SETTINGS))(jax.random.key(1)))
    count = batch.targets.mask.shape[1]
    for v, other in ((0, 1), (1, 2), (2, 0)):
        length = min(LENGTHS[v], LENGTHS[other])
        assert mixed.mask[v].sum() == length and not mixed.features[v, length:].any()
        own = mixed.targets.weight[v, :count] / batch.targets.weight[v]
        share = own[0]
        np.testing.assert_allclose(own, share, rtol=1e-5)
        np.testing.assert_allclose(
            mixed.targets.weight[v, count:], (1 - share) * batch.targets.weight[other], rtol=1e-4
        )
        expected = share * batch.features[v, :length] + (1 - share) * batch.features[other, :length]
        np.testing.assert_allclose(mixed.features[v, :length], expected, rtol=1e-4, atol=1e-5)
        assert (mixed.targets.labels[v] == np.concatenate([batch.targets.labels[v], batch.targets.labels[other]])).all()
        both = np.concatenate([batch.targets.segments_t[v], batch.targets.segments_t[other]])
        exists = np.concatenate([batch.targets.mask[v], batch.targets.mask[other]])
        clipped = both.clip(0, length)
        kept = exists & (clipped[:, 1] - clipped[:, 0] >= 0.5 * (both[:, 1] - both[:, 0]))
        assert (mixed.targets.mask[v] == kept).all() and kept.any()
        np.testing.assert_allclose(mixed.targets.segments_t[v], clipped, atol=1e-5)
        proposals = np.concatenate([batch.proposals.segments_t[v], batch.proposals.segments_t[other]])
        np.testing.assert_allclose(mixed.proposals.segments_t[v], proposals.clip(0, length), atol=1e-5)


def test_one_recording_is_left_as_it_is() -> None:
    batch = random_batch((9,), 16)
    assert mix(jax.random.key(0), batch, SETTINGS) is batch
