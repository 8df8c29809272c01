"""AdamW as the reference uses it: decay by parameter role, clipped by global norm, warm-up and cosine (spec 1.8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from apl_jax.learning.method import GroupSettings
from apl_jax.settings import OptimizerSettings
from apl_jax.structs import Array, PyTree


def warmup_cosine(step: Array, steps: Array, settings: OptimizerSettings) -> Array:
    """Learning rate of step i of ``steps``: base * i / (w - 1) in the warm-up of w steps, so that the first step is
    exactly 0, then half a cosine down to ``final_learning_rate`` over the remaining steps."""
    base, final = settings.learning_rate, settings.final_learning_rate
    warmup = jnp.round(settings.warmup_fraction * steps)
    rising = base * step / jnp.maximum(warmup - 1, 1)
    phase = jnp.pi * (step - warmup) / jnp.maximum(steps - warmup, 1)
    return jnp.where(step < warmup, rising, final + 0.5 * (base - final) * (1 + jnp.cos(phase)))


class ScheduleState(NamedTuple):
    """Steps done, and steps altogether: data rather than a constant, so that stages that differ in their length only
    share one compiled program."""

    done: Array
    steps: Array


def scale_by_warmup_cosine(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """Multiplies updates by minus the learning rate of :func:`warmup_cosine`."""

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None):
        del params
        rate = warmup_cosine(state.done, state.steps, settings)
        return jax.tree.map(lambda u: -rate * u, updates), ScheduleState(state.done + 1, state.steps)

    return optax.GradientTransformation(lambda params: ScheduleState(jnp.int32(0), jnp.int32(steps)), update)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients by min(1, limit / (norm + 1e-6)); optax's own clip has no 1e-6, which parity needs."""

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None):
        del params
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decay_mask(params: PyTree) -> PyTree:
    """True for kernels of convolutions and projections; biases, norms and scales do not decay."""

    def decays(path: tuple, _: Array) -> bool:
        return str(getattr(path[-1], "key", path[-1])).endswith("kernel")

    return jax.tree_util.tree_map_with_path(decays, params)


def adamw(
    settings: OptimizerSettings, weight_decay: float, rate: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Clipped AdamW with decay by role; ``rate`` turns the direction into a step."""
    return optax.chain(
        clip_by_norm(settings.clip_norm),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon),
        optax.add_decayed_weights(weight_decay, decay_mask),
        rate,
    )


def build_optimizer(
    settings: OptimizerSettings, groups: Mapping[str, GroupSettings | None], steps: int
) -> optax.GradientTransformation:
    """One AdamW for each owner of parameters, so that no owner's gradients clip another's (A17).

    ``groups``: by owner, None for those that follow ``settings`` and their schedule; the others have a constant rate.
    """

    def transformation(group: GroupSettings | None) -> optax.GradientTransformation:
        if group is None:
            return adamw(settings, settings.weight_decay, scale_by_warmup_cosine(settings, steps))
        return adamw(settings, group.weight_decay, optax.scale_by_learning_rate(group.learning_rate))

    return optax.partition(
        {owner: transformation(group) for owner, group in groups.items()},
        lambda params: {name: jax.tree.map(lambda _, n=name: n, tree) for name, tree in params.items()},
    )


def update_ema(ema_params: PyTree, params: PyTree, step: Array, settings: OptimizerSettings) -> PyTree:
    """EMA of the parameters after step i; the ramp min(decay, (1 + i) / (N + i)) forgets the initialisation (spec 1.8,
    N = 10; SSTAP's teacher, spec 4.1: 1 - 1 / ((i + 1) / 20 + 1), which is the same with N = 21)."""
    decay = jnp.float32(settings.ema_decay)
    if settings.ema_ramp:
        decay = jnp.minimum(decay, (1.0 + step) / (settings.ema_ramp_length + step))
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema_params, params)
