"""Batches of networks that may not see the same recordings: those of folds, trained side by side (side_by_side.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.feeds.resident import Feed, draw_rows, role_key
from apl_jax.stored_videos import StoredVideos
from apl_jax.structs import Array, PyTree, Targets


class FoldTable(NamedTuple):
    """Recordings of one role as K networks see them."""

    videos: StoredVideos  # [V, ...], on the devices
    seen: np.ndarray  # [K, V] bool, which of them each network draws from
    batch: int  # of recordings that each network draws in a step
    targets: Targets | None = None  # [K, V, N, ...]: each network's own annotations, in place of those of ``videos``


def fold_feed(
    tables: Mapping[str, FoldTable], constants: Callable[[PyTree, Array], dict[str, PyTree]], shared: PyTree,
    seen: np.ndarray,
) -> Feed:  # fmt: skip
    """Batches ``[K, B, ...]`` of the recordings that each fold's network may see.

    Args:
        tables: by role, one of ``learning.method.VIDEOS``.
        constants: ``constants(shared, seen [V])``, what the terms of one network's objective ask for.
        shared: what ``constants`` is made from.
        seen: ``[K, V]`` bool, which labelled recordings each network may see.
    """
    roles = sorted(tables)
    most = {role: int(table.seen.sum(1).max()) for role, table in tables.items()}
    # A network that sees fewer recordings than another draws some of them more often.
    rows_of = lambda table, count: np.stack([np.resize(np.flatnonzero(mask), count) for mask in table.seen])

    def batches(arrays: PyTree, key: Array, step: Array) -> dict:
        def one(own: PyTree) -> dict:
            found = {}
            for i, role in enumerate(roles):
                videos, size = arrays["videos"][role], tables[role].batch
                order = draw_rows(role_key(own["key"], i), step, most[role], size)
                drawn = own["rows"][role][order]
                found[role] = videos.draw(drawn).whole()
                if role in own["targets"]:
                    targets = jax.tree.map(lambda x, rows=drawn: x[rows], own["targets"][role])
                    found[role] = dataclasses.replace(found[role], targets=targets)
            return found | constants(arrays["shared"], own["seen"])

        keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(len(seen)))
        return jax.vmap(one)({"key": keys, **arrays["own"]})

    own = {
        "rows": {role: jnp.asarray(rows_of(tables[role], most[role]), jnp.int32) for role in roles},
        "targets": {role: table.targets for role, table in tables.items() if table.targets is not None},
        "seen": jnp.asarray(seen),
    }
    videos = {role: table.videos for role, table in tables.items()}
    return Feed({"videos": videos, "own": own, "shared": shared}, batches, {})
