"""SPOT's pretext task: find the random span of a video whose surroundings were blanked (spec 3.1, 3.5)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from apl_jax.declarations import Checked, number
from apl_jax.learning.detection import localisation
from apl_jax.learning.method import TRAINING, Method, MethodContext, Pass, register_method
from apl_jax.structs import Array, Batch, Targets


@dataclass(frozen=True)
class ForegroundSettings(Checked):
    """Random foreground spans."""

    share: float = number(0.1, above=0, at_most=1)  # shortest span, as a fraction of the video


def build_foreground(settings: ForegroundSettings, context: MethodContext) -> Method:
    """One or two spans per video; the features outside are zero, and the localisation loss asks for the spans.

    It asks on the blanked view: the public code asks on the whole one, from which nobody could tell (spec 3.6, row 9).
    Labelled and unlabelled videos take part alike.
    """

    def view(key: Array, batch: Batch) -> Batch:
        view_key, span_key = jax.random.split(key)
        return blank_outside_spans(span_key, context.view(view_key, batch), settings.share)

    passes = {"foreground": Pass(TRAINING, view)}
    return Method(passes, {"foreground": localisation(context, "foreground")}, teacher=False)


def blank_outside_spans(key: Array, batch: Batch, shortest: float) -> Batch:
    """``batch`` with features only inside one or two random spans per video, which become its targets (class 0).

    ``shortest``: fraction of the video below which no span falls.
    """
    videos, steps = batch.mask.shape
    length = batch.mask.sum(-1)[:, None]
    start_key, extent_key, second_key = jax.random.split(key, 3)
    extent = jnp.maximum(shortest + (1 - shortest) * jax.random.uniform(extent_key, (videos, 2)), 1e-3) * length
    extent = jnp.minimum(jnp.maximum(extent, 1.0), length)
    start = jax.random.uniform(start_key, (videos, 2)) * (length - extent)
    exists = jnp.stack([length[:, 0] > 0, (length[:, 0] > 0) & jax.random.bernoulli(second_key, 0.5, (videos,))], -1)
    time = jnp.arange(steps)[None, :, None]
    inside = ((time >= start[:, None]) & (time <= (start + extent)[:, None]) & exists[:, None]).any(-1)
    blank = jnp.zeros((videos, 2), bool)
    targets = Targets(
        jnp.stack([start, start + extent], -1), jnp.zeros((videos, 2), jnp.int32), exists, jnp.ones((videos, 2)), blank
    )
    features = jnp.where((inside & batch.mask)[..., None], batch.features, 0)
    return dataclasses.replace(batch, features=features, targets=targets)


register_method("foreground", ForegroundSettings, build_foreground)
