"""The whole state of training as one pytree, handed in and handed back."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview

from apl_jax.learning.method import Objective
from apl_jax.structs import Array, PyTree, leaves_by_name, nested, pytree


@pytree
class TrainState:
    """Everything that a step reads and writes; with the seed and the data it determines the rest of training."""

    step: Array  # int32, steps done
    params: PyTree  # by owner
    ema_params: PyTree  # their exponential average: what labels, and what is evaluated
    optimizer: PyTree
    terms: PyTree  # running state of the terms, by name


def initial_state(
    key: Array,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    inherited: Mapping[str, Array] | None = None,
) -> TrainState:
    """A fresh state; parameters that ``inherited`` has by name and shape are an earlier stage's averaged ones."""
    params, terms = objective.init(key)
    fresh, old = leaves_by_name(params), inherited or {}
    chosen = {name: old[name] if inherits(leaf, old.get(name)) else leaf for name, leaf in fresh.items()}
    params = nested(chosen)
    # The average starts as a copy: donated buffers must not be shared.
    return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params), terms)


def inherits(fresh: Array, old: Array | None) -> bool:
    """Whether an earlier stage's parameter can take the place of a fresh one."""
    return old is not None and old.shape == fresh.shape and old.dtype == fresh.dtype


def describe_parameters(params: PyTree) -> str:
    """Number of parameters of each part of each owner and altogether, from arrays or from their shapes."""
    parts = {f"{owner}/{part}": tree for owner, parts in params.items() for part, tree in parts.items()}
    count = lambda tree: int(parameter_overview.count_parameters({"": tree}))  # a part may be a single array
    rows = [f"    {name:<28}{count(part):>12,}" for name, part in sorted(parts.items())]
    return "  parameters\n" + "\n".join([*rows, f"    {'all':<28}{count(params):>12,}"])
