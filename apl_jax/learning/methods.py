"""What each kind of training stage minimises. To add a method, write its builder and a line in METHODS.

A method is pure: parameters and state go in and come back. Its parameters are a dict of trees, ``detector`` and
possibly ``discriminator``, so that each can have its own optimiser. ``batches`` holds what the stage's feed offers:
``labelled`` and ``unlabelled`` (a :class:`Batch` each; the targets of ``unlabelled`` are pseudo labels or nothing) and
``bank`` (the memory of labelled instances).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import Detector
from apl_jax.learning.contrastive import contrastive_loss
from apl_jax.learning.instances import discriminator_loss
from apl_jax.learning.perturb import perturb
from apl_jax.nn.discriminator import InstanceDiscriminator
from apl_jax.settings import LearningSettings, OptimizerSettings, StageSettings
from apl_jax.structs import Array, Batch, PyTree

Metrics = dict[str, Array]


class Method(NamedTuple):
    """A training objective.

    ``init(key) -> (params, state)`` · ``loss(params, state, batches, key) -> (scalar, (state, metrics))`` ·
    ``after_step(averaged, params, step) -> averaged``: what becomes of the averaged parameters (the teacher), which
    label and are evaluated.
    """

    init: Callable[[Array], tuple[PyTree, PyTree]]
    loss: Callable[[PyTree, PyTree, dict, Array], tuple[Array, tuple[PyTree, Metrics]]]
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


def _initialise(parts: Ingredients) -> Callable[[Array], tuple[PyTree, PyTree]]:
    def init(key: Array) -> tuple[PyTree, PyTree]:
        detector_key, discriminator_key = jax.random.split(key)
        params, normalizer = parts.detector.init(detector_key)
        discriminator = parts.discriminator.init(discriminator_key, parts.feature_width)
        return {"detector": params, "discriminator": discriminator}, {
            "labelled": normalizer,
            "unlabelled": normalizer,
        }

    return init


def _detect(parts: Ingredients, params: PyTree, batch: Batch, key: Array) -> tuple[Batch, PyTree]:
    view_key, dropout_key = jax.random.split(key)
    view = perturb(view_key, batch, parts.stage.perturb, parts.max_steps, parts.edge_t)
    return view, parts.detector.apply(params["detector"], view, dropout_key)


def join_batches(first: Batch, second: Batch) -> Batch:
    """Two batches of equal T as one; instances are padded to the larger N."""
    most = max(first.targets.mask.shape[1], second.targets.mask.shape[1])
    pad = lambda x: jnp.pad(x, [(0, 0), (0, most - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    batches = [dataclasses.replace(b, targets=jax.tree.map(pad, b.targets)) for b in (first, second)]
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *batches)


def _average(parts: Ingredients) -> Callable[[PyTree, PyTree, Array], PyTree]:
    return lambda averaged, params, step: exponential_average(averaged, params, step, parts.stage.optimizer)


def _taught(parts: Ingredients, view: Batch, outputs: PyTree, state: PyTree, role: str, key: Array):
    """Detection loss and class-guided contrast on one role's view, with that role's running normaliser."""
    result = parts.detector.loss(outputs, view.targets, state[role])
    total = result.total
    metrics = {f"{role}/{name}": value for name, value in result.terms.items()}
    acp = parts.settings.contrastive
    roles = {"none": (), "labelled": ("labelled",), "labelled_unlabelled": ("labelled", "unlabelled")}[acp.later]
    if role in roles and acp.weight > 0:
        contrast, terms = contrastive_loss(key, outputs.represent, view, acp, parts.num_classes)
        total = total + acp.weight * contrast
        metrics |= {f"{role}/{name}": value for name, value in terms.items()}
    return total, {**state, role: result.state}, metrics


def build_contrastive(parts: Ingredients) -> Method:
    """ACP without labels: clusters of input frames guide the contrast (APL 3.3). The heads get no gradient (B9)."""

    def loss(params: PyTree, state: PyTree, batches: dict, key: Array):
        detect_key, contrast_key = jax.random.split(key)
        view, outputs = _detect(parts, params, batches["unlabelled"], detect_key)
        total, metrics = contrastive_loss(contrast_key, outputs.represent, view, parts.settings.contrastive)
        return total, (state, metrics)

    return Method(_initialise(parts), loss, _average(parts))


def _consistency(parts: Ingredients, params: PyTree, batches: dict, key: Array) -> tuple[Array, Metrics]:
    """L_icd, or 0 where ICD is off."""
    icd = parts.settings.selection.discriminator
    if not icd.enabled:
        return jnp.zeros(()), {}
    loss, accuracy = discriminator_loss(key, params["discriminator"], batches["bank"], parts.discriminator, icd)
    return loss, {"icd/loss": loss, "icd/accuracy": accuracy}


def build_supervised(parts: Ingredients) -> Method:
    """The detector on labelled videos, and ICD on their instances beside it (APL supplement A)."""

    def loss(params: PyTree, state: PyTree, batches: dict, key: Array):
        detect_key, contrast_key, pair_key = jax.random.split(key, 3)
        view, outputs = _detect(parts, params, batches["labelled"], detect_key)
        total, state, metrics = _taught(parts, view, outputs, state, "labelled", contrast_key)
        pair_loss, more = _consistency(parts, params, batches, pair_key)
        return total + pair_loss, (state, metrics | more)

    return Method(_initialise(parts), loss, _average(parts))


def build_apl(parts: Ingredients) -> Method:
    """Self-training: L = L_s + beta L_u on labelled and pseudo-labelled videos together (APL Eq. 12).

    Both batches pass the network as one, each then meets its own loss.
    """

    def loss(params: PyTree, state: PyTree, batches: dict, key: Array):
        detect_key, labelled_key, unlabelled_key, pair_key = jax.random.split(key, 4)
        count = batches["labelled"].video.shape[0]
        view, outputs = _detect(parts, params, join_batches(batches["labelled"], batches["unlabelled"]), detect_key)
        first = lambda tree: jax.tree.map(lambda x: x[:count], tree)
        rest = lambda tree: jax.tree.map(lambda x: x[count:], tree)
        total, state, metrics = _taught(parts, first(view), first(outputs), state, "labelled", labelled_key)
        extra, state, more = _taught(parts, rest(view), rest(outputs), state, "unlabelled", unlabelled_key)
        pair_loss, pair_metrics = _consistency(parts, params, batches, pair_key)
        total = total + parts.settings.unlabelled_weight * extra + pair_loss
        return total, (state, metrics | more | pair_metrics)

    return Method(_initialise(parts), loss, _average(parts))


# Stage kinds every run knows, and the semi-supervised methods that settings.learning.method may name.
STAGE_METHODS: dict[str, Callable[[Ingredients], Method]] = {
    "pretrain": build_contrastive,
    "supervised": build_supervised,
}
METHODS: dict[str, Callable[[Ingredients], Method]] = {"apl": build_apl}
