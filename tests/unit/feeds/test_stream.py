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

from apl_jax.data.batching import whole_table
from apl_jax.devices import build_mesh, shard_batch
from apl_jax.feeds.passes import BatchPlan, map_resident, map_streamed
from apl_jax.feeds.resident import device_feed, draw_all_rows, draw_rows
from apl_jax.feeds.streamed import window_start
from apl_jax.interruption import Preempted, stoppable
from apl_jax.structs import Batch


@pytest.mark.parametrize(("rows", "batch"), [(12, 4), (13, 4), (3, 8)])
def test_all_rows_at_once_are_those_of_each_step(rows: int, batch: int) -> None:
    step_by_step = [draw_rows(jax.random.key(1), jnp.int32(step), rows, batch) for step in range(11)]
    np.testing.assert_array_equal(draw_all_rows(jax.random.key(1), 11, rows, batch), step_by_step)


@pytest.mark.parametrize("portion_mib", [1e-6, 2e-3, 1.0])
def test_stream_and_device_feed_bring_the_same(portion_mib: float) -> None:
    streamed = stream(TABLES, portion_mib=portion_mib)
    assert streamed.most_steps == {1e-6: 1, 2e-3: 1, 1.0: 4}[portion_mib]
    placed = {name: shard_batch(whole_table(videos), build_mesh()) for name, videos in TABLES.items()}
    resident = device_feed(
        placed, {name: len(videos.ids) for name, videos in TABLES.items()}, SIZES, {"instances": random_bank()}
    )
    for one, other in zip(batches_of(streamed), batches_of(resident), strict=True):
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
    resident = map_resident(function, jnp.float32(2), shard_batch(whole_table(videos), mesh), 3, mesh)
    for one, other in zip(streamed, resident, strict=True):
        other = np.asarray(other)[: len(lengths)]
        if one.ndim == 2:  # a value per step: padded to the longest only
            np.testing.assert_array_equal(other[:, one.shape[1] :], 0)
            other = other[:, : one.shape[1]]
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_pass_that_is_asked_to_stop_ends_before_its_next_batch() -> None:
    videos, calls = table([16] * 5, 64, seed=3), []

    def function(_: jax.Array, batch: Batch) -> jax.Array:
        if not calls:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(batch.features.shape)
        return batch.features.sum(-1)

    shape = BatchPlan(batch=1, longest_t=16, multiple=4, threads=2)
    with stoppable(grace_s=60), pytest.raises(Preempted, match="a pass over 5 videos: stopped"):
        map_streamed(function, jnp.float32(2), videos, shape, build_mesh())
    assert len(calls) == 1
