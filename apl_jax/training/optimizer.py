"""AdamW as the reference uses it: decay by parameter role, clipped by global norm, warm-up and cosine (systems 1.8)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from apl_jax.settings import DiscriminatorSettings, OptimizerSettings
from apl_jax.structs import Array, PyTree


def warmup_cosine(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Learning rate of step i: base * i / (w - 1) in the warm-up of w steps, so that the first step is exactly 0, then
    half a cosine down to ``final_learning_rate`` over the remaining steps."""
    warmup = round(settings.warmup_fraction * steps)
    base, final = settings.learning_rate, settings.final_learning_rate

    def schedule(step: Array) -> Array:
        rising = base * step / max(warmup - 1, 1)
        phase = jnp.pi * (step - warmup) / max(steps - warmup, 1)
        return jnp.where(step < warmup, rising, final + 0.5 * (base - final) * (1 + jnp.cos(phase)))

    return schedule


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients by min(1, limit / (norm + 1e-6)); optax's own clip has no 1e-6, which parity needs."""

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree | None = None):
        del params
        factor = jnp.minimum(1.0, limit / (optax.global_norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decay_mask(params: PyTree) -> PyTree:
    """True for kernels of convolutions and projections; biases, norms and scales do not decay."""

    def decays(path: tuple, _: Array) -> bool:
        return str(getattr(path[-1], "key", path[-1])).endswith("kernel")

    return jax.tree_util.tree_map_with_path(decays, params)


class AdamwNumbers(NamedTuple):
    """What distinguishes one AdamW from another."""

    schedule: optax.Schedule | float
    weight_decay: float
    settings: OptimizerSettings


def _adamw(numbers: AdamwNumbers) -> optax.GradientTransformation:
    s = numbers.settings
    return optax.chain(
        clip_by_norm(s.clip_norm),
        optax.adamw(
            numbers.schedule, s.beta1, s.beta2, s.epsilon, weight_decay=numbers.weight_decay, mask=decay_mask
        ),
    )


def build_optimizer(
    settings: OptimizerSettings, discriminator: DiscriminatorSettings, steps: int
) -> optax.GradientTransformation:
    """One AdamW for the detector; the discriminator's own, so that neither's gradients clip the other's (A17)."""
    return optax.partition(
        {
            "detector": _adamw(AdamwNumbers(warmup_cosine(settings, steps), settings.weight_decay, settings)),
            "discriminator": _adamw(
                AdamwNumbers(discriminator.learning_rate, discriminator.weight_decay, settings)
            ),
        },
        lambda params: {name: jax.tree.map(lambda _, n=name: n, tree) for name, tree in params.items()},
    )
