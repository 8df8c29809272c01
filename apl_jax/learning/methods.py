"""What each kind of training stage minimises. To add a method, write its builder and a line in METHODS.

A method is pure: parameters and state go in and come back. Its parameters are a dict of trees, ``detector`` and
possibly ``discriminator``, so that each can have its own optimiser. ``batches`` holds what the stage's feed offers:
``labelled`` and ``unlabelled`` (a :class:`Batch` each; the targets of ``unlabelled`` are pseudo labels or nothing) and
``bank`` (the memory of labelled instances).
"""

from __future__ import annotations

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
    view = perturb(view_key, batch, parts.stage.perturb, parts.max_steps)
    return view, parts.detector.apply(params["detector"], view, dropout_key)


def _average(parts: Ingredients) -> Callable[[PyTree, PyTree, Array], PyTree]:
    return lambda averaged, params, step: exponential_average(averaged, params, step, parts.stage.optimizer)


def _taught(parts: Ingredients, params: PyTree, state: PyTree, batch: Batch, role: str, key: Array):
    """Detection loss and class-guided contrast on one role's batch, with that role's running normaliser."""
    detect_key, contrast_key = jax.random.split(key)
    view, outputs = _detect(parts, params, batch, detect_key)
    result = parts.detector.loss(outputs, view.targets, state[role])
    total = result.total
    metrics = {f"{role}/{name}": value for name, value in result.terms.items()}
    acp = parts.settings.contrastive
    roles = {"none": (), "labelled": ("labelled",), "labelled_unlabelled": ("labelled", "unlabelled")}[acp.later]
    if role in roles and acp.weight > 0:
        contrast, terms = contrastive_loss(contrast_key, outputs.representation, view, acp, parts.num_classes)
        total = total + acp.weight * contrast
        metrics |= {f"{role}/{name}": value for name, value in terms.items()}
    return total, {**state, role: result.state}, metrics


def build_contrastive(parts: Ingredients) -> Method:
    """ACP without labels: clusters of input frames guide the contrast (APL 3.3). The heads get no gradient (B9)."""

    def loss(params: PyTree, state: PyTree, batches: dict, key: Array):
        detect_key, contrast_key = jax.random.split(key)
        view, outputs = _detect(parts, params, batches["unlabelled"], detect_key)
        total, metrics = contrastive_loss(contrast_key, outputs.representation, view, parts.settings.contrastive)
        return total, (state, metrics)

    return Method(_initialise(parts), loss, _average(parts))


def build_supervised(parts: Ingredients) -> Method:
    """The detector on labelled videos, and ICD on their instances beside it (APL supplement A)."""

    def loss(params: PyTree, state: PyTree, batches: dict, key: Array):
        detect_key, pair_key = jax.random.split(key)
        total, state, metrics = _taught(parts, params, state, batches["labelled"], "labelled", detect_key)
        icd = parts.settings.selection.discriminator
        if icd.enabled:
            pair_loss, accuracy = discriminator_loss(
                pair_key, params["discriminator"], batches["bank"], parts.discriminator, icd
            )
            total = total + pair_loss
            metrics |= {"icd/loss": pair_loss, "icd/accuracy": accuracy}
        return total, (state, metrics)

    return Method(_initialise(parts), loss, _average(parts))


def build_apl(parts: Ingredients) -> Method:
    """Self-training: L = L_s + beta L_u on labelled and pseudo-labelled videos together (APL Eq. 12)."""
    supervised = build_supervised(parts)

    def loss(params: PyTree, state: PyTree, batches: dict, key: Array):
        labelled_key, unlabelled_key = jax.random.split(key)
        total, (state, metrics) = supervised.loss(params, state, batches, labelled_key)
        extra, state, more = _taught(parts, params, state, batches["unlabelled"], "unlabelled", unlabelled_key)
        return total + parts.settings.unlabelled_weight * extra, (state, metrics | more)

    return Method(_initialise(parts), loss, _average(parts))


# Stage kinds every run knows, and the semi-supervised methods that settings.learning.method may name.
STAGE_METHODS: dict[str, Callable[[Ingredients], Method]] = {
    "pretrain": build_contrastive,
    "supervised": build_supervised,
}
METHODS: dict[str, Callable[[Ingredients], Method]] = {"apl": build_apl}
