"""Videos stored by rows are the padded ones, whichever of them are drawn and whichever of their steps are read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import random_batch, stored

from apl_jax.learning.perturb import perturb
from apl_jax.settings import PerturbSettings
from apl_jax.structs import Batch

LENGTHS, STEPS = (9, 16, 1, 12), 16


@pytest.fixture(scope="module")
def padded() -> Batch:
    return random_batch(LENGTHS, STEPS, seed=3)


def test_whole_videos(padded: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, stored(padded).whole(), padded)
    jax.tree.map(np.testing.assert_array_equal, stored(padded, copies=False).whole(), padded)


def test_drawn_videos(padded: Batch) -> None:
    order = jnp.array([3, 0, 0])
    expected = jax.tree.map(lambda x: x[order], padded)
    jax.tree.map(np.testing.assert_array_equal, stored(padded).draw(order).whole(), expected)


def test_a_video_that_fills_the_batch_is_empty(padded: Batch) -> None:
    found = stored(padded).draw(jnp.array([1, -1]), steps=20).whole()
    assert found.features.shape[:2] == (2, 20) and found.video.tolist() == [1, -1]
    assert found.mask.sum(-1).tolist() == [16, 0] and (found.features[1] == 0).all()
    assert found.targets.mask[0].any() and not found.targets.mask[1].any()


def test_steps_beyond_a_video_are_zero_even_where_another_begins(padded: Batch) -> None:
    steps = jnp.broadcast_to(jnp.array([0, 8, 9, 400]), (4, 4))
    found = np.asarray(stored(padded).read(steps))
    for v, length in enumerate(LENGTHS):
        for i, step in enumerate((0, 8, 9, 400)):
            expected = np.asarray(padded.features)[v, step] if step < length else np.zeros(found.shape[-1])
            np.testing.assert_array_equal(found[v, i], expected)


@pytest.mark.parametrize(
    "settings", [PerturbSettings(crop_ratio=0.5, noise=0.1, scale=0.1), PerturbSettings(crop_ratio=1)]
)
@pytest.mark.parametrize("crop", [7, 16])
def test_random_views_are_the_same_to_the_bit(settings: PerturbSettings, crop: int, padded: Batch) -> None:
    view = jax.jit(lambda videos, key: perturb(key, videos, settings, crop, 0.5))
    for seed in range(5):
        one, other = (view(videos, jax.random.key(seed)) for videos in (padded, stored(padded)))
        jax.tree.map(np.testing.assert_array_equal, one, other)
    without = dataclasses.replace(padded, proposals=None)
    assert view(stored(without), jax.random.key(0)).proposals is None
