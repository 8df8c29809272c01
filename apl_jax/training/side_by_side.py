"""Several networks, trained side by side in one program: those of folds, and those of an ensemble.

Everything that belongs to a network has a leading axis of K networks; the number of steps done is one for all. So a
:class:`~apl_jax.training.state.TrainState` of K networks is saved, restored and trained as any other. Each has its own
parameters, average, optimiser and clipping: nothing tells it that there are others. On accelerators all networks take a
step at once (``vmap``); on a CPU one after the other within the same program, which compiles like that of a single
network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from apl_jax.learning.method import Objective
from apl_jax.settings import OptimizerSettings
from apl_jax.structs import Array, PyTree, leaves_by_name
from apl_jax.training.state import TrainState, inherits, initial_state
from apl_jax.training.step import build_step


def initial_states(
    keys: Array, objective: Objective, optimizer: optax.GradientTransformation, inherited: Mapping[str, Array]
) -> TrainState:
    """Fresh states of K networks, one for each of ``keys [K]``.

    Parameters that ``inherited`` has by name are an earlier stage's averaged ones: those with a leading K each
    network's own, those without it everybody's.
    """
    fresh = leaves_by_name(jax.eval_shape(objective.init, keys[0])[0])
    own = {name: leaf for name, leaf in inherited.items() if name in fresh and leaf.ndim == fresh[name].ndim + 1}
    shared = {name: leaf for name, leaf in inherited.items() if name not in own}
    state = jax.vmap(lambda key, old: initial_state(key, objective, optimizer, shared | old))(keys, own)
    return dataclasses.replace(state, step=jnp.int32(0))


def inherited_by_each(fresh: Any, old: Array | None) -> bool:
    """Whether a parameter of K networks, ``fresh [K, ...]``, can begin as an earlier stage's, with or without the K."""
    one = jax.ShapeDtypeStruct(fresh.shape[1:], fresh.dtype)
    return inherits(fresh, old) or inherits(one, old)  # pyright: ignore[reportArgumentType]


def build_steps(
    objective: Objective, optimizer: optax.GradientTransformation, settings: OptimizerSettings, at_once: bool,
    shared: bool,
) -> Callable:  # fmt: skip
    """``step(state, key, batches) -> (state, metrics)`` of K networks, each with randomness of its own; metrics are
    means over networks.

    Args:
        at_once: under one ``vmap``, else one network after the other.
        shared: all networks see the same batches, of which each draws its own views; else batches have a leading K.
    """
    step = build_step(objective, optimizer, settings)

    def steps(state: TrainState, key: Array, batches: dict) -> tuple[TrainState, dict[str, Array]]:
        count = jax.tree.leaves(state.params)[0].shape[0]
        keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(count))

        def one(network: tuple) -> tuple[PyTree, dict[str, Array]]:
            own, own_key, own_batches = network
            after, metrics = step(TrainState(state.step, *own), own_key, batches if shared else own_batches)
            return _own(after), metrics

        every = jax.vmap(one) if at_once else lambda x: jax.lax.map(one, x)
        own, metrics = every((_own(state), keys, () if shared else batches))
        return TrainState(state.step + 1, *own), jax.tree.map(lambda x: x.mean(0), metrics)

    return steps


def at_once(mesh: Mesh) -> bool:
    """Whether networks take their steps together on these devices."""
    return mesh.devices.flat[0].platform != "cpu"


def _own(state: TrainState) -> tuple[Any, ...]:
    """What each network has for itself."""
    return state.params, state.ema_params, state.optimizer, state.terms
