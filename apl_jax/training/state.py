"""The whole state of training as one pytree, handed in and handed back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview

from apl_jax.learning.objective import Method
from apl_jax.structs import Array, PyTree, pytree


@pytree
class TrainState:
    """Everything that a step reads and writes; with the seed and the data it determines the rest of training."""

    step: Array  # int32, steps done
    params: PyTree
    averaged: PyTree  # EMA of params: what labels, and what is evaluated
    optimizer: PyTree
    method: PyTree  # running loss normalisers


def initial_state(
    key: Array, method: Method, optimizer: optax.GradientTransformation, start_from: PyTree | None = None
) -> TrainState:
    """A fresh state; ``start_from`` replaces the initial parameters (an earlier stage's averaged ones)."""
    params, method_state = method.init(key)
    params = params if start_from is None else start_from
    # The average starts as a copy: donated buffers must not be shared.
    averaged = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, averaged, optimizer.init(params), method_state)


def describe_parameters(params: PyTree) -> str:
    """Number of parameters of each top-level part and altogether, from arrays or from their shapes."""
    rows = [
        f"    {name:<16}{int(parameter_overview.count_parameters(part)):>12,}" for name, part in sorted(params.items())
    ]
    total = int(parameter_overview.count_parameters(params))
    return "  parameters\n" + "\n".join([*rows, f"    {'all':<16}{total:>12,}"])
