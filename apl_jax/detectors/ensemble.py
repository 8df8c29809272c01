"""Several networks of one detector that predict as one.

What networks of few annotations disagree about is mostly chance, and an average is free of most of it (Lakshminarayanan
et al., NeurIPS 2017). Here the dense outputs are averaged, before decoding: all networks have the same points, so that
nothing has to be matched. A detector may say how by ``averaged`` of its outputs; otherwise every number is averaged.

Training stages train the networks side by side, each as if it were alone (training/side_by_side.py): from its own
beginning, with its own views of the batches, optimiser and clipping. The record below is what predicts. Its ``loss``
serves whoever trains it as one network; there the networks share the clipping of gradients and every contrast.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from apl_jax.declarations import Checked, Choice, SettingsError, choice, number
from apl_jax.detectors.base import ClassDistribution, DetectionLoss, Detector, register_detector
from apl_jax.registry import DETECTORS
from apl_jax.structs import Array, Batch, DataFacts, Detections, PyTree, pytree


@dataclass(frozen=True)
class EnsembleSettings(Checked):
    """Which networks, and how many."""

    of: Choice = choice(DETECTORS, "actionformer")
    networks: int = number(4, at_least=1, at_most=100)


@pytree
class EnsembleOutputs:
    """What K networks predict."""

    each: Any  # the outputs of the detector, all arrays [B, K, ...]

    def represent(self, rows: Array) -> Array:
        """The features of all networks side by side ``[B, N, K * R]``: the similarity of two frames is a mean."""
        features = over_networks(lambda outputs: outputs.represent(rows), self.each)  # [B, K, N, R]
        return jnp.moveaxis(features, 1, 2).reshape(*rows.shape, -1)

    def distribution(self) -> ClassDistribution:
        """The mean of the networks' distributions."""
        each: ClassDistribution = over_networks(lambda outputs: outputs.distribution(), self.each)
        count = each.probability.shape[1]
        log_mean = lambda x: jax.nn.logsumexp(x, axis=1) - jnp.log(count)
        return ClassDistribution(
            each.probability.mean(1), log_mean(each.log_in), log_mean(each.log_out), each.time_t[:, 0], each.mask[:, 0]
        )


def over_networks(function: Any, each: PyTree) -> PyTree:
    """``function`` of the outputs of every network: arrays ``[B, K, ...]``."""
    return jax.vmap(function, in_axes=1, out_axes=1)(each)


def mean_outputs(each: PyTree) -> PyTree:
    """The outputs ``[B, ...]`` of one network that says what ``each [B, K, ...]`` says on average: its ``averaged()``
    where it has one. Masks and counts are those of the batch, and the same for all."""
    if hasattr(each, "averaged"):
        return each.averaged()
    return jax.tree.map(lambda x: x.mean(1) if jnp.issubdtype(x.dtype, jnp.floating) else x[:, 0], each)


def members_of(detector: Choice) -> tuple[Choice, int]:
    """The detector of an ensemble's networks, and how many they are; any other detector itself, and 0."""
    settings = detector.settings
    return (settings.of, settings.networks) if isinstance(settings, EnsembleSettings) else (detector, 0)


def build_ensemble(settings: EnsembleSettings, facts: DataFacts) -> Detector:
    """The detector record.

    Raises :class:`~apl_jax.declarations.SettingsError` for a detector that wants proposals: those come from a generator
    that is trained alone.
    """
    member: Detector = DETECTORS.get(settings.of.name, "detector.of.name").build(settings.of.settings, facts)
    if member.facts.wants_proposals:
        raise SettingsError(
            f"`detector.of`: found {settings.of.name!r}, which wants proposals; expected a detector that finds "
            "segments by itself"
        )
    count = settings.networks

    def init(key: Array) -> tuple[PyTree, PyTree]:
        return jax.vmap(member.init)(jax.random.split(key, count))

    def apply(params: PyTree, batch: Batch, key: Array | None) -> EnsembleOutputs:
        if key is None:
            outputs = jax.lax.map(lambda own: member.apply(own, batch, None), params)
        else:
            one = lambda own: member.apply(own[0], batch, own[1])
            outputs = jax.lax.map(one, (params, jax.random.split(key, count)))
        return EnsembleOutputs(jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs))

    def loss(outputs: EnsembleOutputs, targets: Any, state: PyTree, key: Array | None) -> DetectionLoss:
        """The mean over networks; the annotations teach the same points of each."""
        keys = None if key is None else jax.random.split(key, count)
        one = lambda own, state, key: member.loss(own, targets, state, key)
        axes = (1, 0, None if key is None else 0)
        each: DetectionLoss = jax.vmap(one, in_axes=axes)(outputs.each, state, keys)
        first = jax.tree.map(lambda x: x[0], each.points)
        means = jax.tree.map(lambda x: x.mean(0), each._replace(points=(), state=()))
        return means._replace(points=first, state=each.state)

    def decode(outputs: EnsembleOutputs) -> Detections:
        return member.decode(mean_outputs(outputs.each))

    def annotate(outputs: EnsembleOutputs) -> Any:
        return member.annotate(mean_outputs(outputs.each))

    def compare(student: EnsembleOutputs, teacher: EnsembleOutputs, mask: Array) -> dict[str, Array]:
        one = lambda student, teacher: member.compare(student, teacher, mask)
        each = jax.vmap(one, in_axes=1)(student.each, teacher.each)
        return {name: values.mean(0) for name, values in each.items()}

    def flip(outputs: EnsembleOutputs) -> EnsembleOutputs:
        return EnsembleOutputs(over_networks(member.flip, outputs.each))

    def sharpen(outputs: EnsembleOutputs) -> tuple[EnsembleOutputs, Array]:
        """A video counts where it does for each network."""
        each, masks = jax.vmap(member.sharpen, in_axes=1, out_axes=1)(outputs.each)
        return EnsembleOutputs(each), masks.all(1)

    return Detector(init, apply, loss, decode, annotate, compare, flip, member.facts, sharpen)


def plain_ensemble(settings: EnsembleSettings) -> EnsembleSettings:
    """As many networks of the published detector: what a semi-supervised ensemble is to be compared with."""
    plain = DETECTORS[settings.of.name].plain(settings.of.settings)
    return dataclasses.replace(settings, of=Choice(settings.of.name, plain))


register_detector("ensemble", EnsembleSettings, build_ensemble, plain=plain_ensemble)
