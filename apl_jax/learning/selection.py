"""Which detections on unlabelled videos become pseudo labels: a chain of links, as optax chains transformations.

A link is a record of pure functions. Everything here is a masked computation on padded arrays ``[V, K]`` and runs
inside ``jax.jit``: first every link *observes* each batch of videos while the network has seen it, then the whole set
is *selected* from at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from apl_jax.declarations import Checked, SettingsError, number, one_of
from apl_jax.registry import SELECTION
from apl_jax.structs import Array, Batch, DataFacts, Detections, PseudoLabels, PyTree, Reason

UNKNOWN_SIMILARITY = 0.5  # of a detection that no link has compared with anything (A19)


class Known(NamedTuple):
    """What a link may observe videos with."""

    params: Mapping[str, PyTree]  # of the teacher, averaged, by owner
    instances: Any  # learning.icd.InstanceBank: all labelled instances
    members: Any  # learning.icd.ClassMembers: the rows of the bank by class


class Link(NamedTuple):
    """One link of the selection chain.

    ``init() -> state``: what it remembers from round to round; ``()`` for one that looks at one round only.
    ``observe(known, videos, detections) -> observed [B, ...]``: what it needs of the features of a batch of videos.
    ``select(state, labels, observed) -> (state, labels)``: its decision on the whole set, given that of the links
    before it. Before the first link every detection is below the threshold.
    ``owners``: owners of parameters that the teacher must have trained.
    """

    init: Callable[[], PyTree]
    observe: Callable[[Known, Batch, Detections], PyTree]
    select: Callable[[PyTree, PseudoLabels, PyTree], tuple[PyTree, PseudoLabels]]
    owners: tuple[str, ...] = ()


def register_selection(name: str, settings: type, build: Callable[[Any, DataFacts], Link]) -> None:
    """Makes a link known by name, for ``learning.selection.chain``.

    Args:
        name: what the chain in a configuration may say.
        settings: a frozen dataclass on :class:`~apl_jax.declarations.Checked` with a default for every field.
        build: ``build(settings, facts) -> Link``.
    """
    SELECTION.register(name, settings, build)


def observe_nothing(known: Known, videos: Batch, detections: Detections) -> PyTree:
    """``Link.observe`` of a link that decides by the detections alone."""
    del known, videos, detections
    return ()


def chain(*links: Link) -> Link:
    """Several links as one: each decides on what those before it have left."""

    def observe(known: Known, videos: Batch, detections: Detections) -> PyTree:
        return tuple(link.observe(known, videos, detections) for link in links)

    def select(state: PyTree, labels: PseudoLabels, observed: PyTree) -> tuple[PyTree, PseudoLabels]:
        after = []
        for link, own, seen in zip(links, state, observed, strict=True):
            own, labels = link.select(own, labels, seen)
            after.append(own)
        return tuple(after), labels

    owners = tuple(dict.fromkeys(owner for link in links for owner in link.owners))
    return Link(lambda: tuple(link.init() for link in links), observe, select, owners)


def unselected(detections: Detections) -> PseudoLabels:
    """All detections ``[V, K]``, none of them considered yet."""
    zero = jnp.zeros_like(detections.confidence)
    below = jnp.full(zero.shape, Reason.BELOW_THRESHOLD, jnp.int32)
    return PseudoLabels(detections, zero + UNKNOWN_SIMILARITY, zero + 1.0, below, zero)


def with_reason(labels: PseudoLabels, reason: Array, **changes: Array) -> PseudoLabels:
    """The labels with another ``reason [V, K]``, and the weight that follows from it: 1 where kept or promoted."""
    weight = ((reason == Reason.KEPT) | (reason == Reason.PROMOTED)).astype(jnp.float32)
    return dataclasses.replace(labels, reason=reason.astype(jnp.int32), weight=weight, **changes)


@dataclass(frozen=True)
class FixedSettings(Checked):
    """A threshold from outside (the baseline of APL Table 2)."""

    threshold: float = number(0.3, at_least=0, at_most=1)
    tau_neg: float = number(0.15, at_least=0, at_most=1)  # at most this: not considered at all


@dataclass(frozen=True)
class DynamicSettings(Checked):
    """A threshold from the confidences themselves (APL Eq. 6)."""

    tau_neg: float = number(0.15, at_least=0, at_most=1)  # at most this: not considered at all
    scope: str = one_of("pooled", "class", "video")  # over the whole set | per predicted class | per video (A1)
    deviations: float = number(1.0, at_least=-1e3, at_most=1e3)  # tau_pos = mean + deviations * std; 0 = mean only
    tau_min: float = number(0.2, at_least=0, at_most=1)
    tau_max: float = number(0.9, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_min > self.tau_max:
            raise SettingsError(f"`tau_min`: found {self.tau_min:g}, expected at most `tau_max`, {self.tau_max:g}")


def divide(labels: PseudoLabels, tau_pos: Array, tau_neg: float) -> PseudoLabels:
    """Detections above ``tau_neg`` as candidates, those that reach ``tau_pos`` (broadcast to ``[V, K]``) as kept."""
    detections = labels.detections
    considered = detections.mask & (detections.confidence > tau_neg)
    tau_pos = jnp.broadcast_to(tau_pos, detections.confidence.shape)
    above = detections.confidence >= tau_pos
    reason = jnp.where(considered, jnp.where(above, Reason.KEPT, Reason.CANDIDATE), labels.reason)
    return with_reason(labels, reason, threshold=tau_pos)


def build_fixed(settings: FixedSettings, facts: DataFacts) -> Link:
    """tau_pos = ``threshold``."""
    del facts

    def select(state: PyTree, labels: PseudoLabels, _: PyTree) -> tuple[PyTree, PseudoLabels]:
        return state, divide(labels, jnp.float32(settings.threshold), settings.tau_neg)

    return Link(tuple, observe_nothing, select)


def build_dynamic(settings: DynamicSettings, facts: DataFacts) -> Link:
    """tau_pos = mean + deviations x population std of the confidences above tau_neg, clipped (APL 3.1; spec A1)."""
    s = settings

    def select(state: PyTree, labels: PseudoLabels, _: PyTree) -> tuple[PyTree, PseudoLabels]:
        detections = labels.detections
        confidence = detections.confidence
        considered = detections.mask & (confidence > s.tau_neg)
        if s.scope == "class":
            member = considered[..., None] & (detections.labels[..., None] == jnp.arange(facts.num_classes))
            mean, deviation = _mean_and_deviation(confidence[..., None], member, (0, 1))
            tau = (mean + s.deviations * deviation)[0, 0][detections.labels]
        else:
            mean, deviation = _mean_and_deviation(confidence, considered, (0, 1) if s.scope == "pooled" else 1)
            tau = mean + s.deviations * deviation
        return state, divide(labels, jnp.clip(tau, s.tau_min, s.tau_max), s.tau_neg)

    return Link(tuple, observe_nothing, select)


@dataclass(frozen=True)
class CandidateSettings(Checked):
    """What is too likely an action to be taught as background."""

    above: float = number(0.05, at_least=0, at_most=1)  # this confidence


def build_candidates(settings: CandidateSettings, facts: DataFacts) -> Link:
    """Detections that no link before has considered become candidates above a lower confidence: ignored in training,
    rather than background. Not in the paper."""
    del facts

    def select(state: PyTree, labels: PseudoLabels, _: PyTree) -> tuple[PyTree, PseudoLabels]:
        detections = labels.detections
        likely = detections.mask & (detections.confidence > settings.above)
        found = likely & (labels.reason == Reason.BELOW_THRESHOLD)
        return state, with_reason(labels, jnp.where(found, Reason.CANDIDATE, labels.reason))

    return Link(tuple, observe_nothing, select)


def _mean_and_deviation(values: Array, mask: Array, axis: int | tuple[int, ...]) -> tuple[Array, Array]:
    count = jnp.maximum(mask.sum(axis, keepdims=True), 1)
    mean = jnp.where(mask, values, 0).sum(axis, keepdims=True) / count
    variance = jnp.where(mask, (values - mean) ** 2, 0).sum(axis, keepdims=True) / count
    return mean, jnp.sqrt(variance)


register_selection("candidates", CandidateSettings, build_candidates)
register_selection("dynamic", DynamicSettings, build_dynamic)
register_selection("fixed", FixedSettings, build_fixed)
