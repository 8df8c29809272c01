"""Where training batches come from: a pure function of (seed, step), so that resuming needs no iterator state.

Tables stay on the devices as :class:`~apl_jax.stored_videos.StoredVideos`. Where every device can hold all rows it
does, and steps send no rows; otherwise each holds a part, and a step sums its batch from all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apl_jax.data.batching import VideoTable, aligned_zeros, build_targets
from apl_jax.devices import DATA_AXIS, filled, place, replicated
from apl_jax.stored_videos import StoredVideos
from apl_jax.structs import Array, PyTree


class Feed(NamedTuple):
    """A source of batches for one stage.

    ``batches(arrays, key, step) -> {role: Batch or StoredVideos}`` is traced into the training step; ``batch_sizes``
    says which roles are batches of how many videos (anything else is passed on whole). ``arrays`` live on the devices
    from beginning to end, or, where there is a ``bring``, what it brings for the steps [first, first + count) takes
    their place.
    """

    arrays: PyTree
    batches: Callable[[PyTree, Array, Array], dict]
    batch_sizes: Mapping[str, int]
    bring: Callable[[int, int], PyTree] | None = None
    most_steps: int | None = None  # that ``bring`` may be asked for at once; None = any number

    def inputs(self, first: int, count: int) -> PyTree:
        """The arrays for some steps, on the devices."""
        return self.arrays if self.bring is None else self.bring(first, count)


def rows_between(table: VideoTable, low: int, high: int) -> np.ndarray:
    """Rows [low, high) of all videos of a table in its order, ``[high - low, D]``; zeros beyond the last one.

    Only videos that have some of them are read.
    """
    ends = np.cumsum(table.lengths)
    rows = aligned_zeros((high - low, table.width))
    for v in range(int(np.searchsorted(ends, low, side="right")), len(ends)):
        first, last = int(ends[v] - table.lengths[v]), int(ends[v])
        if first >= high:
            break
        begin, end = max(first, low), min(last, high)
        rows[begin - low : end - low] = table.read(v)[begin - first : end - first]
    return rows


def rows_layout(count: int, width: int, mesh: Mesh, copies: bool) -> tuple[tuple[int, int], NamedSharding]:
    """Shape and placement of so many rows: whole on every device, or a part on each. Rows of zeros follow where the
    devices do not divide their number, and where there are none."""
    count = max(count, 1)
    spec = PartitionSpec() if copies else PartitionSpec(DATA_AXIS)
    return (count if copies else filled(count, mesh), width), NamedSharding(mesh, spec)


def place_rows(table: VideoTable, mesh: Mesh, copies: bool) -> Array:
    """The rows of all videos of a table, in its order, ``[R, D]``, laid out as :func:`rows_layout` says."""
    shape, sharding = rows_layout(int(table.lengths.sum()), table.width, mesh, copies)
    part = lambda index: rows_between(table, *index[0].indices(shape[0])[:2])
    return jax.make_array_from_callback(shape, sharding, part)


def stored_videos(table: VideoTable, rows: Array, first: int, mesh: Mesh) -> StoredVideos:
    """The videos of a table whose rows begin at row ``first`` of ``rows``, on the devices."""
    lengths, number = table.lengths, np.arange(len(table.ids), dtype=np.int32)
    starts = (first + np.cumsum(lengths) - lengths).astype(np.int32)
    host = starts, lengths, number, build_targets(table.records, table.grids), table.proposals
    starts, lengths, number, targets, proposals = place(host, replicated(mesh))
    return StoredVideos(rows, starts, lengths, number, targets, proposals, table.length_t)


def draw_rows(key: Array, step: Array, rows: int, batch: int) -> Array:
    """Rows of the step's batch: each epoch a fresh permutation of all rows, its remainder dropped.

    A table smaller than the batch repeats its rows.
    """
    per_epoch = max(rows // batch, 1)
    order = jax.random.permutation(jax.random.fold_in(key, step // per_epoch), rows)
    return order[((step % per_epoch) * batch + jnp.arange(batch)) % rows]


def draw_all_rows(key: Array, steps: int, rows: int, batch: int) -> Array:
    """Rows of the batches of the first ``steps`` steps: ``[steps, batch]``, those of :func:`draw_rows`."""
    per_epoch = max(rows // batch, 1)
    within = (jnp.arange(per_epoch)[:, None] * batch + jnp.arange(batch)) % rows
    one_epoch = lambda e: jax.random.permutation(jax.random.fold_in(key, e), rows)[within]
    epochs = jax.lax.map(one_epoch, jnp.arange(-(-steps // per_epoch)))
    return epochs.reshape(-1, batch)[:steps]


def role_key(key: Array, role: int) -> Array:
    """The key of a role's order; roles are numbered by their names' order."""
    return jax.random.fold_in(key, role)


def device_feed(
    tables: Mapping[str, StoredVideos], batch_sizes: Mapping[str, int], constants: Mapping[str, PyTree]
) -> Feed:
    """Draws every batch inside the training step from whole tables on the devices.

    The key of ``batches`` seeds the order of the videos; each role has an order of its own.

    Args:
        tables: per role all its videos, already on the devices.
        batch_sizes: videos per step and role.
        constants: further arrays that every step sees whole.
    """
    roles = sorted(tables)
    # Tables may share their rows; a program is given each array once.
    distinct = {id(table.rows): table.rows for table in tables.values()}
    rows_of = {role: list(distinct).index(id(table.rows)) for role, table in tables.items()}

    def batches(arrays: PyTree, key: Array, step: Array) -> dict:
        drawn = {}
        for i, role in enumerate(roles):
            table = dataclasses.replace(arrays["tables"][role], rows=arrays["rows"][rows_of[role]])
            drawn[role] = table.draw(draw_rows(role_key(key, i), step, len(table.first), batch_sizes[role]))
        return drawn | arrays["constants"]

    arrays = {
        "rows": list(distinct.values()),
        "tables": {role: table.without_rows() for role, table in tables.items()},
        "constants": dict(constants),
    }
    return Feed(arrays, batches, dict(batch_sizes))
