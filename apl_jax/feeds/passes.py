"""Passes over all videos of a table, some at a time: on the devices when the table is there, else streamed to them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from apl_jax.data.batching import VideoTable, aligned_zeros, bucket_length, build_targets
from apl_jax.devices import batch_sharding, first_rows, place, shard_batch, to_host
from apl_jax.interruption import stop_if_requested
from apl_jax.stored_videos import StoredVideos, constrained
from apl_jax.structs import Array, Batch, PyTree, Targets

BatchFn = Callable[[PyTree, Batch], PyTree]  # (params, videos [B]) -> results [B, ...]; traceable
_MOST_PADDED = 2.0  # rows that a pass computes, at most so many times those that are there


class BatchPlan(NamedTuple):
    """How many videos of how many steps go through a network together."""

    batch: int  # videos, at most
    longest_t: int  # steps; of longer videos fewer go together, so that a batch never holds more rows
    multiple: int  # of which lengths are powers of two
    threads: int  # that read batches ahead


def map_resident(
    function: BatchFn, params: PyTree, table: StoredVideos, lengths: np.ndarray, shape: BatchPlan, mesh: Mesh
) -> PyTree:
    """``function`` of all V videos of a table on the devices, as numpy ``[V, ...]``; ``lengths [V]`` in steps.

    As :func:`map_streamed`, but that the devices gather the batches.
    """
    plan = plan_chunks(lengths, shape, mesh.size)
    program = stored_program(function, mesh)
    filled_up = (np.pad(c.rows, (0, c.fill), constant_values=-1).astype(np.int32) for c in plan)
    batches = (place(rows, batch_sharding(mesh, len(rows))) for rows in filled_up)
    results = (program(params, table, rows, c.length_t) for c, rows in zip(plan, batches, strict=True))
    return _collect(results, plan)


@functools.lru_cache(maxsize=4)
def stored_program(function: BatchFn, mesh: Mesh) -> Any:
    """What :func:`map_resident` runs, compiled once for a function that is mapped several times: ``program(params,
    table, videos [B], T)``."""

    def program(params: PyTree, table: StoredVideos, videos: Array, length_t: int) -> PyTree:
        return function(params, constrained(table.draw(videos, length_t), batch_sharding(mesh, len(videos))).whole())

    return jax.jit(program, static_argnums=3)


def map_streamed(function: BatchFn, params: PyTree, table: VideoTable, shape: BatchPlan, mesh: Mesh) -> PyTree:
    """``function`` of all videos of a table, as numpy ``[V, ...]``; Grain's threads read ahead.

    Videos of about the same length go together where that saves much (:func:`common_lengths`), so that few programs
    serve all. Where results depend on the length (one per step, say), the shorter ones are filled with zeros.
    """
    source = _Batches(table, build_targets(table.records, table.grids), plan_chunks(table.lengths, shape, mesh.size))
    ahead = grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(shape.threads, shape.threads))
    program = jax.jit(function)
    return _collect((program(params, shard_batch(videos, mesh)) for videos in ahead), source.plan)


def _collect(results: Iterable[PyTree], plan: Sequence[Chunk]) -> PyTree:
    """The results of all chunks in the table's order, on the host."""
    found: list[PyTree] = []
    running: list[PyTree] = []  # one batch is computed while the next is brought, and no more wait on the devices
    coming, videos = iter(results), sum(len(chunk.rows) for chunk in plan)
    for _ in plan:
        stop_if_requested(f"a pass over {videos} videos")
        running.append(next(coming))
        if len(running) > 1:
            found.append(to_host(running.pop(0)))
    found += [to_host(result) for result in running]
    return jax.tree.map(lambda *leaves: _in_order(leaves, [chunk.rows for chunk in plan]), *found)


def common_lengths(lengths: np.ndarray, multiple: int) -> np.ndarray:
    """What each of ``lengths [V]`` is padded to: the longest, and as few powers of two times ``multiple`` below it as
    keep the padding at no more than the rows. Every further length is another program to compile."""
    wanted = np.array([bucket_length(length, multiple, max(lengths)) for length in lengths.tolist()])
    chosen, others = [wanted.max()], set(wanted.tolist()) - {wanted.max()}
    padded = lambda some: np.sort(some)[np.searchsorted(np.sort(some), wanted)]
    while others and padded(chosen).sum() > _MOST_PADDED * lengths.sum():
        best = min(others, key=lambda length: padded([*chosen, length]).sum())
        chosen.append(best)
        others.discard(best)
    return padded(chosen)


class Chunk(NamedTuple):
    """Videos of about one length that go together."""

    rows: np.ndarray  # of the table
    fill: int  # rows of zeros behind them
    length_t: int


def plan_chunks(lengths: np.ndarray, shape: BatchPlan, devices: int) -> list[Chunk]:
    """Which videos of these ``lengths [V]`` go together."""
    padded = common_lengths(lengths, shape.multiple)
    plan = []
    for length_t in np.unique(padded):
        rows = np.flatnonzero(padded == length_t)
        most = max(min(shape.batch, shape.batch * shape.longest_t // length_t), 1)
        most = -(-min(most, 1 << (len(rows) - 1).bit_length()) // devices) * devices
        for first in range(0, len(rows), most):
            some = rows[first : first + most]
            plan.append(Chunk(some, most - len(some), int(length_t)))
    return plan


@dataclass(frozen=True, eq=False)
class _Batches:
    """The batches of a plan, as numpy, made when they are asked for."""

    table: VideoTable
    targets: Targets  # [V, N, ...]
    plan: Sequence[Chunk]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        rows, fill, length_t = self.plan[int(index)]
        features = aligned_zeros((len(rows) + fill, length_t, self.table.width))
        mask = np.zeros(features.shape[:2], bool)
        for i, v in enumerate(rows):
            values = self.table.read(v)
            features[i, : len(values)], mask[i, : len(values)] = values, True
        pad = lambda x: np.pad(x[rows], [(0, fill)] + [(0, 0)] * (x.ndim - 1))
        numbers = pad(np.arange(len(self.table.ids), dtype=np.int32))
        proposals = jax.tree.map(pad, self.table.proposals)
        return Batch(features, mask, jax.tree.map(pad, self.targets), numbers, proposals)  # pyright: ignore[reportArgumentType]  # numpy leaves


def _in_order(parts: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> np.ndarray:
    """Results of the chunks in the table's order, filled with zeros to the longest."""
    rest = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
    whole = np.zeros((sum(map(len, rows)), *rest), parts[0].dtype)
    for part, some in zip(parts, rows, strict=True):
        inside = tuple(slice(0, size) for size in part.shape[1:])
        whole[(some, *inside)] = first_rows(part, len(some))
    return whole
