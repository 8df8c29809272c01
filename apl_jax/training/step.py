"""The optimiser step: a pure function, scanned several times per dispatch, jitted over the mesh."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax
from clu.metrics import Average
from jax.sharding import Mesh

from apl_jax.devices import batch_sharding, replicated
from apl_jax.feeds.resident import Feed
from apl_jax.learning.method import Objective
from apl_jax.settings import OptimizerSettings
from apl_jax.stored_videos import constrained
from apl_jax.structs import Array, PyTree
from apl_jax.training.optimizer import update_ema
from apl_jax.training.state import TrainState

Averages = dict[str, Average]
Dispatch = Callable[[TrainState, Array, PyTree], tuple[TrainState, Averages]]


def build_step(objective: Objective, optimizer: optax.GradientTransformation, settings: OptimizerSettings) -> Callable:
    """``step(state, key, batches) -> (state, metrics)``; all randomness is a function of key and step number."""

    def step(state: TrainState, key: Array, batches: dict) -> tuple[TrainState, dict[str, Array]]:
        step_key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, (terms, metrics)), grads = gradient(state.params, state.ema_params, state.terms, batches, step_key)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = update_ema(state.ema_params, params, state.step, settings)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads), **metrics}
        return TrainState(state.step + 1, params, ema_params, optimizer_state, terms), metrics

    return step


def build_dispatch(step: Callable, feed: Feed, mesh: Mesh, steps: int) -> Dispatch:
    """``dispatch(state, key, feed.arrays) -> (state, metrics)`` runs ``steps`` steps; metrics are their averages.

    Batches are gathered inside the jitted program, so the host sends nothing per step. The state is donated.
    The key is an argument, not a constant: runs that differ in their seed share one compiled program.
    """

    def dispatch(state: TrainState, key: Array, arrays: PyTree) -> tuple[TrainState, Averages]:
        order_key, step_key = jax.random.split(key)

        def body(state: TrainState, _: None) -> tuple[TrainState, Averages]:
            batches = feed.batches(arrays, order_key, state.step)
            for role, size in feed.batch_sizes.items():
                batches[role] = constrained(batches[role], batch_sharding(mesh, size))
            state, metrics = step(state, step_key, batches)
            return state, {name: Average.from_model_output(value) for name, value in metrics.items()}

        state, averages = jax.lax.scan(body, state, length=steps)
        return state, jax.tree.map(lambda x: x.sum(0), averages)  # totals and counts of all steps

    return jax.jit(dispatch, donate_argnums=0, out_shardings=replicated(mesh))
