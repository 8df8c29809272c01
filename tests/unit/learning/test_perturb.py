"""Random views: truncation keeps its promises for any draw (spec 1.2), noise touches what it should."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import random_batch

from apl_jax.learning.perturb import add_noise, clip_segments, perturb, random_truncation
from apl_jax.settings import PerturbSettings
from apl_jax.structs import Batch, Detections, Targets

LENGTHS, STEPS = (32, 24, 10, 1), 32
SETTINGS = PerturbSettings(crop_ratio=0.6, keep_ratio=0.5)
KEYS = jax.random.split(jax.random.key(0), 200)


def numbered(lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """Videos whose every row says which video and step it is."""
    batch = random_batch(lengths, STEPS, seed=4)
    video, step = np.mgrid[: len(lengths), :STEPS]
    features = np.stack([video, step], -1) * np.asarray(batch.mask)[..., None]
    return dataclasses.replace(batch, features=jnp.asarray(features, jnp.float32))


def views(batch: Batch, settings: PerturbSettings, steps: int) -> Batch:
    """One view per key: fields ``[200, B, ...]``."""
    return jax.device_get(jax.jit(jax.vmap(lambda key: random_truncation(key, batch, settings, steps)))(KEYS))


@pytest.fixture(scope="module", params=[STEPS, 16])
def case(request: pytest.FixtureRequest) -> tuple[int, Batch, Batch]:
    """Grid steps of a crop, the batch, its views; with 16 steps the first two videos are too long and are cut."""
    batch = numbered()
    return request.param, batch, views(batch, SETTINGS, request.param)


def test_a_view_is_a_piece_of_its_video(case: tuple[int, Batch, Batch]) -> None:
    steps, _, found = case
    assert found.features.shape == (200, len(LENGTHS), steps, 2)
    counts = found.mask.sum(-1)
    assert (found.mask == (np.arange(steps) < counts[..., None])).all()
    assert (found.features[~found.mask] == 0).all()
    for video, length in enumerate(LENGTHS):
        first = found.features[:, video, 0, 1]
        expected = first[:, None] + np.arange(steps)
        seen = found.mask[:, video]
        assert (found.features[:, video, :, 1] == np.where(seen, expected, 0)).all()
        assert (found.features[:, video, :, 0] == np.where(seen, video, 0)).all()
        assert (first + counts[:, video] <= length).all()
        # A video that fits keeps a share of itself, one that does not is cut to the crop.
        allowed = set(range(max(round(0.6 * length), 1), length + 1)) if length <= steps else {steps}
        assert set(counts[:, video]) == allowed


def test_instances_are_clipped_and_survive_by_half(case: tuple[int, Batch, Batch]) -> None:
    _, batch, found = case
    whole = jax.device_get(batch.targets)
    for view in range(0, 200, 5):
        for video in range(len(LENGTHS)):
            start, length = found.features[view, video, 0, 1], found.mask[view, video].sum()
            clipped = np.clip(whole.segments_t[video], start, start + length)
            inside = (clipped[:, 1] - clipped[:, 0]) / (whole.segments_t[video, :, 1] - whole.segments_t[video, :, 0])
            kept = whole.mask[video] & (inside >= 0.5)
            assert (found.targets.mask[view, video] == kept).all()
            segments_t = found.targets.segments_t[view, video]
            np.testing.assert_allclose(segments_t[kept], (clipped - start)[kept], atol=1e-5)
            for name in ("labels", "weight", "ignore_mask"):
                assert (getattr(found.targets, name)[view, video] == getattr(whole, name)[video]).all()
    assert (found.video == batch.video).all()


def one_instance(start: float, end: float, count: int = 1) -> Batch:
    """A video of 32 steps with one instance, or none."""
    batch = numbered((32,))
    targets = Targets(
        jnp.array([[[start, end]]]), jnp.zeros((1, 1), jnp.int32), jnp.array([[count == 1]]),
        jnp.ones((1, 1)), jnp.zeros((1, 1), bool),
    )  # fmt: skip
    return dataclasses.replace(batch, targets=targets)


def test_a_crop_looks_for_an_instance() -> None:
    """A quarter of the video is seen and its only instance lies at the end: blind crops would miss it 3 times in 4."""
    found = views(one_instance(28.0, 31.0), PerturbSettings(crop_attempts=32), 8)
    assert found.targets.mask.mean() > 0.9
    blind = views(one_instance(28.0, 31.0), PerturbSettings(crop_attempts=1), 8)
    assert blind.targets.mask.mean() < 0.4


def test_a_video_without_instances_is_cropped_too() -> None:
    """Unlabelled videos (spec A15): every start is equally likely."""
    found = views(one_instance(0.0, 1.0, count=0), SETTINGS, 8)
    starts = np.bincount(found.features[:, 0, 0, 1].astype(int), minlength=25)
    assert len(starts) == 25 and (starts > 0).all() and starts.max() < 25
    assert not found.targets.mask.any() and (found.mask.sum(-1) == 8).all()


def test_clip_segments_by_hand() -> None:
    targets = Targets(
        jnp.array([[2.0, 6.0], [4.0, 12.0], [4.0, 12.1], [9.0, 20.0], [5.0, 7.0]]), jnp.arange(5),
        jnp.array([True, True, True, True, False]), jnp.ones(5), jnp.zeros(5, bool),
    )  # fmt: skip
    found = clip_segments(targets, jnp.array(4), jnp.array(4), 0.5)
    assert found.mask.tolist() == [True, True, False, False, False]
    assert found.segments_t[:2].tolist() == [[0, 2], [0, 4]]
    # Windows that reach one step further see one step more of the second and third, 6 of 8 and of 8.1.
    wider = clip_segments(targets, jnp.array(4), jnp.array(4), 0.5, 1.0)
    assert wider.mask.tolist() == [True, True, True, False, False]
    assert wider.segments_t[:3].tolist() == [[-1, 2], [0, 5], [0, 5]]


def test_proposals_are_cut_as_their_videos_are() -> None:
    """A proposal at every instance: in every view it is where the instance is, and survives where that does."""
    batch = numbered()
    targets = batch.targets
    zero = jnp.zeros(targets.mask.shape)
    proposals = Detections(targets.segments_t, targets.labels, zero, zero, zero, zero, targets.mask)
    found = views(dataclasses.replace(batch, proposals=proposals), SETTINGS, 16)
    assert found.proposals is not None
    assert (found.proposals.mask == found.targets.mask).all() and found.proposals.mask.any()
    np.testing.assert_array_equal(found.proposals.segments_t, found.targets.segments_t)
    assert views(dataclasses.replace(batch, proposals=None), SETTINGS, 16).proposals is None


def test_no_crop_is_asked_for() -> None:
    batch = numbered()
    assert random_truncation(jax.random.key(0), batch, PerturbSettings(crop_ratio=1.0), STEPS) is batch


def test_the_key_alone_decides() -> None:
    batch, settings = numbered(), PerturbSettings(crop_ratio=0.5, noise=0.1, channel_drop=0.3, scale=0.2)
    run = jax.jit(lambda key: perturb(key, batch, settings, STEPS))
    first, again, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))
    assert (first.features != other.features).any()


def test_noise() -> None:
    batch = random_batch(LENGTHS, STEPS)
    key, valid = jax.random.key(0), np.asarray(batch.mask)
    noisy = lambda **changes: np.asarray(add_noise(key, batch, PerturbSettings(**changes)).features)
    clean = np.asarray(batch.features)
    assert (noisy() == clean).all()
    difference = noisy(noise=0.5) - clean
    assert (difference[~valid] == 0).all() and 0.4 < difference[valid].std() < 0.6
    gain = noisy(scale=0.3)[valid] / clean[valid]
    per_video = [np.unique(np.round(rows, 3)) for rows in np.split(gain, np.cumsum(LENGTHS)[:-1])]
    assert all(len(values) == 1 and values[0] > 0 for values in per_video) and len(set(np.concatenate(per_video))) == 4
    dropped = noisy(channel_drop=0.5)
    whole = (dropped[0] == 0).all(0)
    # A channel is absent from the whole video, or made up for.
    assert 0 < whole.sum() < 6
    np.testing.assert_allclose(dropped[0][:, ~whole], 2 * clean[0][:, ~whole], rtol=1e-6)
