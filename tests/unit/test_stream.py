"""The stream beside the device feed: the same videos in the same order, from memory or files, portion by portion."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specimens import random_bank

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.batching import VideoTable
from apl_jax.data.feeds import Feed, device_feed, draw_all_rows, draw_rows, whole_table
from apl_jax.evaluation.passes import Shape, map_resident, map_streamed
from apl_jax.settings import RuntimeSettings
from apl_jax.structs import Batch, PyTree, TimeGrid
from apl_jax.training.mesh import build_mesh, place, replicated, split_rows, to_host
from apl_jax.training.stream import stream_feed, window_start

RUNTIME = RuntimeSettings(steps_per_dispatch=4, portion_mib=1e-2)
STEPS, WIDTH = 10, 5


def table(lengths: list[int], length_t: int, seed: int = 0, shift: float = 0.0) -> VideoTable:
    """Videos of random rows, each with two instances."""
    random = np.random.default_rng(seed)
    rows = [random.normal(size=(length, WIDTH)).astype(np.float32) for length in lengths]
    segments = [np.sort(random.uniform(0, length, (2, 2)), axis=1) + shift for length in lengths]
    records = tuple(
        VideoRecord(f"v{i}", "training", float(length), 1.0, None, s, np.array([0, 1], np.int32),
                    np.ones(2, np.float32), np.zeros(2, bool))
        for i, (length, s) in enumerate(zip(lengths, segments, strict=True))
    )  # fmt: skip
    grids = tuple(TimeGrid(1.0, 1.0, 0.0, length) for length in lengths)
    return VideoTable(records, grids, lambda v: rows[v], WIDTH, length_t)


TABLES = {"labelled": table([9, 16, 3, 12, 16], 16), "unlabelled": table([7, 5, 16, 11, 2, 16, 10], 16, seed=1)}
SIZES = {"labelled": 2, "unlabelled": 4}


def key() -> jax.Array:
    return jax.jit(lambda: jax.random.key(3), out_shardings=replicated(build_mesh()))()


def stream(tables: dict[str, VideoTable], longest_view: int = 16, **changes: float) -> Feed:
    runtime = dataclasses.replace(RUNTIME, **changes)
    constants = place({"bank": random_bank()}, replicated(build_mesh()))
    return stream_feed(tables, SIZES, constants, key(), STEPS, longest_view, runtime, build_mesh(), {})


def batches_of(feed: Feed) -> list[dict[str, PyTree]]:
    """The batches of all steps, as a dispatch draws them."""
    order_key, portion = jax.random.split(key())[0], feed.most_steps or 4
    draw = jax.jit(feed.batches)
    found = []
    for first in range(0, STEPS, portion):
        count = min(portion, STEPS - first)
        arrays = feed.inputs(first, count)
        found += [draw(arrays, order_key, jnp.int32(step)) for step in range(first, first + count)]
    return found


def gathered() -> dict[str, np.ndarray]:
    """All batches of a stream, and a streamed pass, as numpy by name: tests/distributed compares processes by it."""
    found: dict[str, np.ndarray] = {}
    for step, batches in enumerate(batches_of(stream(TABLES, portion_mib=1.0))):
        for path, leaf in jax.tree_util.tree_leaves_with_path(to_host(batches)):
            found[f"{step}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    shape, mesh = Shape(batch=3, longest_t=16, multiple=4, threads=2), build_mesh()
    function = lambda _, batch: (batch.features.sum(-1), batch.video)
    sums, rows = map_streamed(function, {}, TABLES["unlabelled"], shape, mesh)
    return found | {"pass": sums, "rows": rows}


@pytest.mark.parametrize(("rows", "batch"), [(12, 4), (13, 4), (3, 8)])
def test_all_rows_at_once_are_those_of_each_step(rows: int, batch: int) -> None:
    step_by_step = [draw_rows(jax.random.key(1), jnp.int32(step), rows, batch) for step in range(11)]
    np.testing.assert_array_equal(draw_all_rows(jax.random.key(1), 11, rows, batch), step_by_step)


@pytest.mark.parametrize("portion_mib", [1e-6, 2e-3, 1.0])
def test_stream_and_device_feed_bring_the_same(portion_mib: float) -> None:
    streamed = stream(TABLES, portion_mib=portion_mib)
    assert streamed.most_steps == {1e-6: 1, 2e-3: 1, 1.0: 4}[portion_mib]
    placed = {name: split_rows(whole_table(videos), build_mesh()) for name, videos in TABLES.items()}
    resident = device_feed(
        placed, {name: len(videos.ids) for name, videos in TABLES.items()}, SIZES, {"bank": random_bank()}
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
    feed = stream(long, longest_view=16, portion_mib=1.0)
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

    shape, mesh = Shape(batch=3, longest_t=16, multiple=4, threads=2), build_mesh()
    streamed = map_streamed(function, jnp.float32(2), videos, shape, mesh)
    resident = map_resident(function, jnp.float32(2), split_rows(whole_table(videos), mesh), 3, mesh)
    for one, other in zip(streamed, resident, strict=True):
        other = np.asarray(other)[: len(lengths)]
        if one.ndim == 2:  # a value per step: padded to the longest only
            np.testing.assert_array_equal(other[:, one.shape[1] :], 0)
            other = other[:, : one.shape[1]]
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
