"""What each kind of training stage minimises. To add a method, write its builder and a line in METHODS.

A method is pure: parameters and state go in and come back. Its parameters are a dict of trees, ``detector`` and
possibly ``discriminator``, so that each can have its own optimiser. ``batches`` holds what the stage's feed offers:
``labelled`` and ``unlabelled`` (a :class:`Batch` each; the targets of ``unlabelled`` are pseudo labels or nothing) and
``bank`` (the memory of labelled instances).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from apl_jax.learning.contrastive import contrastive_loss
from apl_jax.learning.hybrid import build_apl_nontarget, build_nontarget
from apl_jax.learning.objective import (
    Ingredients,
    Method,
    average,
    consistency,
    detect,
    detect_both,
    initialise,
    taught,
)
from apl_jax.learning.perturb import perturb
from apl_jax.structs import Array, Batch, PyTree, Targets


def build_contrastive(parts: Ingredients) -> Method:
    """ACP without labels: clusters of input frames guide the contrast (APL 3.3). The heads get no gradient (B9)."""

    def loss(params: PyTree, _: PyTree, state: PyTree, batches: dict, key: Array):
        detect_key, contrast_key = jax.random.split(key)
        view, outputs = detect(parts, params, batches["unlabelled"], detect_key)
        total, metrics = contrastive_loss(contrast_key, outputs.represent, view, parts.settings.contrastive)
        return total, (state, metrics)

    return Method(initialise(parts), loss, average(parts))


def build_foreground(parts: Ingredients) -> Method:
    """SPOT's pretext task: find the random span of a video whose surroundings were blanked (systems 3.1, 3.5).

    One or two spans per video, each of at least ``foreground_share`` of it. The features outside are zero, and the
    detector's localisation loss asks for the spans, on the blanked view: the public code asks on the whole one, from
    which nobody could tell (systems 3.6, row 9). Labelled and unlabelled videos take part alike.
    """

    def loss(params: PyTree, _: PyTree, state: PyTree, batches: dict, key: Array):
        view_key, span_key, dropout_key = jax.random.split(key, 3)
        view = perturb(view_key, batches["unlabelled"], parts.stage.perturb, parts.max_steps, parts.edge_t)
        view = blank_outside_spans(span_key, view, parts.settings.foreground_share)
        outputs = parts.detector.apply(params["detector"], view, dropout_key)
        result = parts.detector.loss(outputs, view.targets, state["unlabelled"])
        metrics = {f"foreground/{name}": value for name, value in result.terms.items()}
        return result.localisation_loss, ({**state, "unlabelled": result.state}, metrics)

    return Method(initialise(parts), loss, average(parts))


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


def build_supervised(parts: Ingredients) -> Method:
    """The detector on labelled videos, and ICD on their instances beside it (APL supplement A)."""

    def loss(params: PyTree, _: PyTree, state: PyTree, batches: dict, key: Array):
        detect_key, contrast_key, pair_key = jax.random.split(key, 3)
        seen = detect(parts, params, batches["labelled"], detect_key)
        known = taught(parts, seen, state, "labelled", contrast_key)
        pair_loss, metrics = consistency(parts, params, batches, pair_key)
        return known.total + pair_loss, (known.state, known.metrics | metrics)

    return Method(initialise(parts), loss, average(parts))


def build_apl(parts: Ingredients) -> Method:
    """Self-training: L = L_s + beta L_u on labelled and pseudo-labelled videos together (APL Eq. 12).

    Both batches pass the network as one, each then meets its own loss.
    """

    def loss(params: PyTree, _: PyTree, state: PyTree, batches: dict, key: Array):
        detect_key, labelled_key, unlabelled_key, pair_key = jax.random.split(key, 4)
        labelled, unlabelled = detect_both(parts, params, batches, detect_key)
        known = taught(parts, labelled, state, "labelled", labelled_key)
        unknown = taught(parts, unlabelled, known.state, "unlabelled", unlabelled_key)
        pair_loss, metrics = consistency(parts, params, batches, pair_key)
        total = known.total + parts.settings.unlabelled_weight * unknown.total + pair_loss
        return total, (unknown.state, known.metrics | unknown.metrics | metrics)

    return Method(initialise(parts), loss, average(parts))


# Stage kinds every run knows, and the semi-supervised methods that settings.learning.method may name.
STAGE_METHODS: dict[str, Callable[[Ingredients], Method]] = {
    "contrast": build_contrastive,
    "foreground": build_foreground,
    "supervised": build_supervised,
}
METHODS: dict[str, Callable[[Ingredients], Method]] = {
    "apl": build_apl,
    "nontarget": build_nontarget,
    "apl_nontarget": build_apl_nontarget,
}
