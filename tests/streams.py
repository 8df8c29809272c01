"""Small tables to stream, and all that a stream of them brings: for the tests of one process and of two."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from fixtures import random_bank

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.batching import VideoTable
from apl_jax.devices import build_mesh, place, replicated, to_host
from apl_jax.feeds.passes import BatchPlan, map_streamed
from apl_jax.feeds.resident import Feed
from apl_jax.feeds.streamed import stream_feed
from apl_jax.learning.method import INSTANCES
from apl_jax.settings import RuntimeSettings
from apl_jax.structs import PyTree, TimeGrid

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


def stream(tables: dict[str, VideoTable], window_t: int = 20, **changes: float) -> Feed:
    runtime = dataclasses.replace(RUNTIME, **changes)
    constants = place({INSTANCES: random_bank()}, replicated(build_mesh()))
    return stream_feed(tables, SIZES, constants, key(), STEPS, window_t, runtime, build_mesh(), {})


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
    shape, mesh = BatchPlan(batch=3, longest_t=16, multiple=4, threads=2), build_mesh()
    function = lambda _, batch: (batch.features.sum(-1), batch.video)
    sums, rows = map_streamed(function, {}, TABLES["unlabelled"], shape, mesh)
    return found | {"pass": sums, "rows": rows}
