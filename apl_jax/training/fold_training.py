"""One network for each fold, trained side by side in one program.

Everything that belongs to a network has a leading axis of K folds; the number of steps done is one for all. So a
:class:`~apl_jax.training.state.TrainState` of folds is saved, restored and trained as any other. On accelerators all
networks take a step at once (``vmap``); on a CPU one after the other within the same program, which compiles like that
of a single network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from apl_jax.feeds.resident import Feed, draw_rows, role_key
from apl_jax.learning.method import Objective
from apl_jax.settings import OptimizerSettings
from apl_jax.structs import Array, Batch, PyTree, Targets, leaves_by_name
from apl_jax.training.state import TrainState, initial_state
from apl_jax.training.step import build_step


class FoldTable(NamedTuple):
    """Recordings of one role as K networks see them."""

    videos: Batch  # [V, ...], on the devices
    seen: np.ndarray  # [K, V] bool, which of them each network draws from
    batch: int  # of recordings that each network draws in a step
    targets: Targets | None = None  # [K, V, N, ...]: each network's own annotations, in place of those of ``videos``


def fold_states(
    key: Array, folds: int, objective: Objective, optimizer: optax.GradientTransformation, inherited: PyTree = None,
) -> TrainState:  # fmt: skip
    """Fresh states of K networks, which begin alike: what tells them apart is what they see.

    ``inherited``: parameters by owner that they begin with, all of them with a leading K; None: fresh ones.
    """
    if inherited is None:
        state = initial_state(key, objective, optimizer)
        repeat = lambda x: jnp.broadcast_to(x, (folds, *x.shape)).copy()
        return dataclasses.replace(jax.tree.map(repeat, state), step=state.step)
    one = lambda old: initial_state(key, objective, optimizer, leaves_by_name(old))
    state = jax.vmap(one)(inherited)
    return dataclasses.replace(state, step=jnp.int32(0))


def build_fold_step(
    objective: Objective, optimizer: optax.GradientTransformation, settings: OptimizerSettings, at_once: bool = True
) -> Callable:
    """``step(state, key, batches) -> (state, metrics)`` of K networks; batches have a leading K, metrics are means over
    folds. ``at_once``: under one ``vmap``, else one network after the other."""
    step = build_step(objective, optimizer, settings)

    def mean_step(state: TrainState, key: Array, batches: dict) -> tuple[TrainState, dict[str, Array]]:
        def one(own: tuple[PyTree, dict]) -> tuple[PyTree, dict[str, Array]]:
            after, metrics = step(TrainState(state.step, *own[0]), key, own[1])
            return _own(after), metrics

        own, metrics = (jax.vmap(one) if at_once else lambda x: jax.lax.map(one, x))((_own(state), batches))
        return TrainState(state.step + 1, *own), jax.tree.map(lambda x: x.mean(0), metrics)

    return mean_step


def _own(state: TrainState) -> tuple[Any, ...]:
    """What each network has for itself."""
    return state.params, state.ema_params, state.optimizer, state.terms


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
                found[role] = jax.tree.map(lambda x, rows=drawn: x[rows], videos)
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
