"""The optimiser step: a pure function, scanned several times per dispatch, jitted over the mesh."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from apl_jax.feeds.resident import Feed
from apl_jax.learning.objective import Method
from apl_jax.structs import Array, PyTree
from apl_jax.devices import batch_sharding, replicated
from apl_jax.training.state import TrainState

Dispatch = Callable[[TrainState, Array, PyTree], tuple[TrainState, dict[str, Array]]]


def build_step(method: Method, optimizer: optax.GradientTransformation) -> Callable:
    """``step(state, key, batches) -> (state, metrics)``; all randomness is a function of key and step number."""

    def step(state: TrainState, key: Array, batches: dict) -> tuple[TrainState, dict[str, Array]]:
        step_key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(method.loss, has_aux=True)
        (loss, (method_state, metrics)), grads = gradient(state.params, state.averaged, state.method, batches, step_key)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = method.after_step(state.averaged, params, state.step)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads), **metrics}
        return TrainState(state.step + 1, params, averaged, optimizer_state, method_state), metrics

    return step


def build_dispatch(
    method: Method, optimizer: optax.GradientTransformation, feed: Feed, mesh: Mesh, steps: int
) -> Dispatch:
    """``dispatch(state, key, feed.arrays) -> (state, metrics)`` runs ``steps`` steps and returns their mean metrics.

    Batches are gathered inside the jitted program, so the host sends nothing per step. The state is donated.
    The key is an argument, not a constant: runs that differ in their seed share one compiled program.
    """
    step = build_step(method, optimizer)

    def dispatch(state: TrainState, key: Array, arrays: PyTree) -> tuple[TrainState, dict[str, Array]]:
        order_key, step_key = jax.random.split(key)

        def body(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
            batches = feed.batches(arrays, order_key, state.step)
            for role, size in feed.batch_sizes.items():
                batches[role] = jax.lax.with_sharding_constraint(batches[role], batch_sharding(mesh, size))
            return step(state, step_key, batches)

        state, metrics = jax.lax.scan(body, state, length=steps)
        return state, jax.tree.map(jnp.mean, metrics)

    return jax.jit(dispatch, donate_argnums=0, out_shardings=replicated(mesh))
