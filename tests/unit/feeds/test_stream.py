"""The stream beside the device feed: the same videos in the same order, from memory or files, portion by portion."""

from __future__ import annotations

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import random_bank
from streams import SIZES, TABLES, WIDTH, batches_of, stream, table

from apl_jax.data.batching import VideoTable
from apl_jax.devices import build_mesh
from apl_jax.feeds.passes import BatchPlan, common_lengths, map_resident, map_streamed
from apl_jax.feeds.resident import device_feed, draw_all_rows, draw_rows, place_rows, stored_videos
from apl_jax.feeds.streamed import window_start
from apl_jax.interruption import Preempted, stoppable
from apl_jax.stored_videos import StoredVideos, whole
from apl_jax.structs import Batch


@pytest.mark.parametrize(("rows", "batch"), [(12, 4), (13, 4), (3, 8)])
def test_all_rows_at_once_are_those_of_each_step(rows: int, batch: int) -> None:
    step_by_step = [draw_rows(jax.random.key(1), jnp.int32(step), rows, batch) for step in range(11)]
    np.testing.assert_array_equal(draw_all_rows(jax.random.key(1), 11, rows, batch), step_by_step)


@pytest.mark.parametrize("portion_mib", [1e-6, 2e-3, 1.0])
def test_stream_and_device_feed_bring_the_same(portion_mib: float) -> None:
    streamed = stream(TABLES, portion_mib=portion_mib)
    assert streamed.most_steps == {1e-6: 1, 2e-3: 1, 1.0: 4}[portion_mib]
    placed = {name: on_devices(videos) for name, videos in TABLES.items()}
    resident = device_feed(placed, SIZES, {"instances": random_bank()})
    for one, other in zip(batches_of(streamed), batches_of(resident), strict=True):
        other = {name: whole(batch) if name in SIZES else batch for name, batch in other.items()}
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_resumed_stream_goes_on_where_it_was() -> None:
    whole, later = stream(TABLES, portion_mib=1.0), stream(TABLES, portion_mib=1.0)
    whole.inputs(0, 4)
    jax.tree.map(np.testing.assert_array_equal, whole.inputs(4, 4), later.inputs(4, 4))
    with pytest.raises(ValueError, match="steps 3 to 7 are no portion"):
        later.inputs(3, 4)


def test_a_window_of_a_long_video_keeps_its_rows_and_instances_together() -> None:
    long = {"labelled": table([60, 90, 16], 96, shift=0.0), "unlabelled": TABLES["unlabelled"]}
    feed = stream(long, window_t=20, portion_mib=1.0)
    windows = set()
    for batches in batches_of(feed):
        batch: Batch = batches["labelled"]
        assert batch.features.shape == (2, 20, WIDTH)
        for b, v in enumerate(np.asarray(batch.video)):
            rows, length = long["labelled"].read(int(v)), int(batch.mask[b].sum())
            assert length == min(len(rows), 20)
            shift = long["labelled"].records[v].segments_s - np.asarray(batch.targets.segments_t[b])
            start = int(np.round(shift.mean()))
            np.testing.assert_allclose(shift, start, atol=1e-4)
            np.testing.assert_array_equal(batch.features[b, :length], rows[start : start + length])
            middle = np.asarray(batch.targets.segments_t[b]).mean(-1)
            assert ((middle > -1) & (middle < length + 1)).any()
            windows.add((int(v), start))
    assert len(windows) > 6  # of a video, not always the same window


def test_windows_of_a_video_without_instances_reach_both_ends() -> None:
    draws, nothing = np.random.default_rng(0), (np.zeros((2, 2)), np.zeros(2, bool))
    starts = {window_start(draws, 12, 9, *nothing) for _ in range(99)}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize("lengths", [[7], [3, 40, 5, 17, 1, 33, 8, 9], [16] * 5])
def test_a_streamed_pass_equals_one_on_the_devices(lengths: list[int]) -> None:
    videos = table(lengths, 64, seed=3)

    def function(scale: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        steps = jnp.where(batch.mask, (batch.features * scale).sum(-1), 0)
        return steps, steps.sum(-1), batch.targets.segments_t

    shape, mesh = BatchPlan(batch=3, longest_t=16, multiple=4, threads=2), build_mesh()
    streamed = map_streamed(function, jnp.float32(2), videos, shape, mesh)
    resident = map_resident(function, jnp.float32(2), on_devices(videos), videos.lengths, shape, mesh)
    at_once = function(jnp.float32(2), on_devices(videos).whole())
    for one, other, expected in zip(streamed, resident, at_once, strict=True):
        if one.ndim == 2:  # a value per step: padded to the longest only
            np.testing.assert_array_equal(expected[:, one.shape[1] :], 0)
            expected = expected[:, : one.shape[1]]
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one, other)


def test_few_lengths_serve_all() -> None:
    """Shorter programs only where padding to the longest takes more than the rows."""
    alike = np.array([100, 90, 128, 60])
    assert common_lengths(alike, 16).tolist() == [128] * 4
    mixed = np.array([1000] + [100] * 9 + [30] * 2)
    assert common_lengths(mixed, 16).tolist() == [1008] + [128] * 11
    assert (common_lengths(np.array([40_000] + [3] * 200), 1)).tolist() == [40_000] + [4] * 200


def on_devices(videos: VideoTable) -> StoredVideos:
    mesh = build_mesh()
    return stored_videos(videos, place_rows(videos, mesh, copies=True), 0, mesh)


def test_a_pass_that_is_asked_to_stop_ends_before_its_next_batch() -> None:
    videos, calls = table([16] * 5, 64, seed=3), []

    def function(_: jax.Array, batch: Batch) -> jax.Array:
        if not calls:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(batch.features.shape)
        return batch.features.sum(-1)

    shape, mesh = BatchPlan(batch=1, longest_t=16, multiple=4, threads=2), build_mesh()
    stored = on_devices(videos)
    for run in (
        lambda: map_streamed(function, jnp.float32(2), videos, shape, mesh),
        lambda: map_resident(function, jnp.float32(2), stored, videos.lengths, shape, mesh),
    ):
        calls.clear()
        with stoppable(grace_s=60), pytest.raises(Preempted, match="a pass over 5 videos: stopped"):
            run()
        assert len(calls) == 1
