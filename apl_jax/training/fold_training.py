"""One small network for each fold, all trained at once: the training step under one ``vmap``.

Everything that belongs to a network has a leading axis of K folds; the number of steps done is one for all. So a
:class:`~apl_jax.training.state.TrainState` of folds is saved, restored and trained as any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from apl_jax.feeds.resident import Feed, draw_rows, role_key
from apl_jax.learning.method import Objective
from apl_jax.settings import OptimizerSettings
from apl_jax.structs import Array, Batch, PyTree
from apl_jax.training.state import TrainState, initial_state
from apl_jax.training.step import build_step

_AXES: Any = TrainState(step=None, params=0, ema_params=0, optimizer=0, terms=0)  # pyright: ignore[reportArgumentType]


def fold_states(
    key: Array, folds: int, objective: Objective, optimizer: optax.GradientTransformation,
    inherited: dict[str, Array] | None = None,
) -> TrainState:  # fmt: skip
    """Fresh states of K networks, which begin alike: what tells them apart is what they see."""
    state = initial_state(key, objective, optimizer, inherited)
    repeat = lambda x: jnp.broadcast_to(x, (folds, *x.shape)).copy()
    return dataclasses.replace(jax.tree.map(repeat, state), step=state.step)


def build_fold_step(
    objective: Objective, optimizer: optax.GradientTransformation, settings: OptimizerSettings
) -> Callable:
    """``step(state, key, batches) -> (state, metrics)`` of K networks; batches have a leading K, metrics are means over
    folds."""
    step = jax.vmap(build_step(objective, optimizer, settings), in_axes=(_AXES, None, 0), out_axes=(_AXES, 0))

    def mean_step(state: TrainState, key: Array, batches: dict) -> tuple[TrainState, dict[str, Array]]:
        state, metrics = step(state, key, batches)
        return state, jax.tree.map(lambda x: x.mean(0), metrics)

    return mean_step


def fold_feed(
    table: Batch, seen: np.ndarray, batch: int, role: str, constants: Callable[[PyTree, Array], dict[str, PyTree]],
    shared: PyTree,
) -> Feed:  # fmt: skip
    """Batches ``[K, B, ...]`` of the recordings that each fold's network may see.

    Args:
        table: all labelled recordings, on the devices.
        seen: ``[K, V]`` bool, which of them each network trains on.
        batch: B.
        role: which of ``learning.method.VIDEOS`` they are.
        constants: ``constants(shared, seen [V])``, what the terms of one network's objective ask for.
        shared: what ``constants`` is made from.
    """
    most = int(seen.sum(1).max())
    rows = np.stack([np.resize(np.flatnonzero(mask), most) for mask in seen])

    def batches(arrays: PyTree, key: Array, step: Array) -> dict:
        def one(own: Array, mask: Array, fold_key: Array) -> dict:
            drawn = own[draw_rows(role_key(fold_key, 0), step, most, batch)]
            found = {role: jax.tree.map(lambda x: x[drawn], arrays["table"])}
            return found | constants(arrays["shared"], mask)

        keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(len(rows)))
        return jax.vmap(one)(arrays["rows"], arrays["seen"], keys)

    arrays = {"table": table, "rows": jnp.asarray(rows, jnp.int32), "seen": jnp.asarray(seen), "shared": shared}
    return Feed(arrays, batches, {})
