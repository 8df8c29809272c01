"""Where training batches come from: a pure function of (seed, step), so that resuming needs no iterator state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.structs import Array, Batch, PyTree


class Feed(NamedTuple):
    """A source of batches for one stage.

    ``batches(arrays, key, step) -> {role: Batch}`` is traced into the training step; ``batch_sizes`` says which roles
    are batches of how many videos (anything else is passed on whole). ``arrays`` live on the devices from beginning to
    end, or, where there is a ``bring``, what it brings for the steps [first, first + count) takes their place.
    """

    arrays: PyTree
    batches: Callable[[PyTree, Array, Array], dict]
    batch_sizes: Mapping[str, int]
    bring: Callable[[int, int], PyTree] | None = None
    most_steps: int | None = None  # that ``bring`` may be asked for at once; None = any number

    def inputs(self, first: int, count: int) -> PyTree:
        """The arrays for some steps, on the devices."""
        return self.arrays if self.bring is None else self.bring(first, count)


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
    tables: Mapping[str, Batch], videos: Mapping[str, int], batch_sizes: Mapping[str, int],
    constants: Mapping[str, PyTree],
) -> Feed:  # fmt: skip
    """Keeps whole tables on the devices and gathers every batch inside the training step.

    The key of ``batches`` seeds the order of the videos; each role has an order of its own.

    Args:
        tables: per role a :class:`Batch` of all its videos, already on the devices, split over them or not.
        videos: how many of a table's rows, counted from the first, are videos.
        batch_sizes: videos per step and role.
        constants: further arrays that every step sees whole.
    """
    roles = sorted(tables)

    def batches(arrays: PyTree, key: Array, step: Array) -> dict:
        drawn = {}
        for i, role in enumerate(roles):
            table = arrays["tables"][role]
            rows = draw_rows(role_key(key, i), step, videos[role], batch_sizes[role])
            drawn[role] = jax.tree.map(lambda x, rows=rows: x[rows], table)
        return drawn | arrays["constants"]

    return Feed({"tables": dict(tables), "constants": dict(constants)}, batches, dict(batch_sizes))
