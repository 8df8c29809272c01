"""What a training objective is, and the pieces that objectives are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import Detector, Losses
from apl_jax.learning.contrastive import contrastive_loss
from apl_jax.learning.instances import discriminator_loss
from apl_jax.learning.perturb import perturb
from apl_jax.nn.discriminator import InstanceDiscriminator
from apl_jax.settings import LearningSettings, OptimizerSettings, StageSettings
from apl_jax.structs import Array, Batch, PyTree

Metrics = dict[str, Array]


class Method(NamedTuple):
    """A training objective.

    ``init(key) -> (params, state)`` · ``loss(params, averaged, state, batches, key) -> (scalar, (state, metrics))``, to
    be differentiated for ``params`` · ``after_step(averaged, params, step) -> averaged``: what becomes of the averaged
    parameters (the teacher), which label and are evaluated.
    """

    init: Callable[[Array], tuple[PyTree, PyTree]]
    loss: Callable[[PyTree, PyTree, PyTree, dict, Array], tuple[Array, tuple[PyTree, Metrics]]]
    after_step: Callable[[PyTree, PyTree, Array], PyTree]


class Ingredients(NamedTuple):
    """What a method is built from."""

    detector: Detector
    discriminator: InstanceDiscriminator
    settings: LearningSettings
    stage: StageSettings
    feature_width: int
    num_classes: int
    max_steps: int  # grid steps of a training crop
    edge_t: float = 0.0  # half a window: how far a crop sees beyond its first and last row


def exponential_average(averaged: PyTree, params: PyTree, step: Array, settings: OptimizerSettings) -> PyTree:
    """EMA of the parameters; the ramp min(decay, (1 + i) / (10 + i)) forgets the initialisation (systems 1.8)."""
    decay = jnp.float32(settings.ema_decay)
    if settings.ema_ramp:
        decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, averaged, params)


def initialise(parts: Ingredients) -> Callable[[Array], tuple[PyTree, PyTree]]:
    """``Method.init`` of every method: detector and discriminator, and the running normalisers of both roles."""

    def init(key: Array) -> tuple[PyTree, PyTree]:
        detector_key, discriminator_key = jax.random.split(key)
        params, normalizer = parts.detector.init(detector_key)
        discriminator = parts.discriminator.init(discriminator_key, parts.feature_width)
        state = {"labelled": normalizer, "unlabelled": normalizer}
        return {"detector": params, "discriminator": discriminator}, state

    return init


def average(parts: Ingredients) -> Callable[[PyTree, PyTree, Array], PyTree]:
    """``Method.after_step`` of every method: the exponential average."""
    return lambda averaged, params, step: exponential_average(averaged, params, step, parts.stage.optimizer)


def detect(parts: Ingredients, params: PyTree, batch: Batch, key: Array) -> tuple[Batch, Any]:
    """A random view of the batch, and the detector's outputs on it."""
    view_key, dropout_key = jax.random.split(key)
    view = perturb(view_key, batch, parts.stage.perturb, parts.max_steps, parts.edge_t)
    return view, parts.detector.apply(params["detector"], view, dropout_key)


def join_batches(first: Batch, second: Batch) -> Batch:
    """Two batches of equal T as one; instances are padded to the larger N."""
    most = max(first.targets.mask.shape[1], second.targets.mask.shape[1])
    pad = lambda x: jnp.pad(x, [(0, 0), (0, most - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    batches = [dataclasses.replace(b, targets=jax.tree.map(pad, b.targets)) for b in (first, second)]
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *batches)


def split_batch(tree: PyTree, count: int) -> tuple[Any, Any]:
    """The first ``count`` videos of a batch, or of outputs, and the others: undoes :func:`join_batches`."""
    return jax.tree.map(lambda x: x[:count], tree), jax.tree.map(lambda x: x[count:], tree)


def detect_both(parts: Ingredients, params: PyTree, batches: dict, key: Array) -> tuple[Any, Any]:
    """:func:`detect` on labelled and unlabelled videos, which pass the network together: (view, outputs) of each."""
    seen = detect(parts, params, join_batches(batches["labelled"], batches["unlabelled"]), key)
    return split_batch(seen, batches["labelled"].video.shape[0])


class Taught(NamedTuple):
    """What one role's batch taught the detector."""

    total: Array
    state: PyTree  # of both roles, this role's brought up to date
    metrics: Metrics
    losses: Losses


def taught(
    parts: Ingredients, seen: tuple[Batch, Any], state: PyTree, role: str, key: Array, own: Any = None
) -> Taught:
    """Detection loss and class-guided contrast on one role's view and outputs, with that role's running normaliser.

    ``own`` are on-line pseudo labels that stand in for the view's targets; there is then no class to guide a contrast.
    """
    view, outputs = seen
    result = parts.detector.loss(outputs, view.targets if own is None else own, state[role])
    total = result.total
    metrics = {f"{role}/{name}": value for name, value in result.terms.items()}
    acp = parts.settings.contrastive
    roles = {"none": (), "labelled": ("labelled",), "labelled_unlabelled": ("labelled", "unlabelled")}[acp.later]
    if role in roles and acp.weight > 0 and own is None:
        contrast, terms = contrastive_loss(key, outputs.represent, view, acp, parts.num_classes)
        total = total + acp.weight * contrast
        metrics |= {f"{role}/{name}": value for name, value in terms.items()}
    return Taught(total, {**state, role: result.state}, metrics, result)


def consistency(parts: Ingredients, params: PyTree, batches: dict, key: Array) -> tuple[Array, Metrics]:
    """L_icd, or 0 where ICD is off."""
    icd = parts.settings.selection.discriminator
    if not icd.enabled:
        return jnp.zeros(()), {}
    loss, accuracy = discriminator_loss(key, params["discriminator"], batches["bank"], parts.discriminator, icd)
    return loss, {"icd/loss": loss, "icd/accuracy": accuracy}
