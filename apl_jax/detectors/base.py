"""What a detector is: pure functions and a few facts in a record, as optax holds its transformations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.registry import DETECTORS
from apl_jax.structs import Array, Batch, DataFacts, Detections, PyTree


class ClassDistribution(NamedTuple):
    """The class probabilities of each of S snippets (points, for a pyramid); the last class is background.

    All that learning from non-target classes knows of a detector (spec 7.B).
    """

    probability: Array  # [B, S, C + 1], sums to 1: for dividing the classes
    log_in: Array  # [B, S, C + 1] log-likelihood that the snippet is of the class; differentiable
    log_out: Array  # [B, S, C + 1] log-likelihood that it is not
    time_t: Array  # [B, S] grid step that the snippet stands for
    mask: Array  # [B, S]


class Outputs(Protocol):
    """What every detector's ``apply`` returns at least; the rest is its own. All its arrays begin with ``B``.

    It may also have ``averaged()``: of outputs ``[B, K, ...]`` of K networks those of one, for
    :mod:`~apl_jax.detectors.ensemble`, where a mean of every number is not what is wanted.
    """

    def represent(self, rows: Array) -> Array:
        """Features ``[B, N, R]`` of grid steps ``rows [B, N]``, which contrastive learning may shape (spec B5)."""
        ...

    def distribution(self) -> ClassDistribution:
        """The class distribution of every snippet."""
        ...


class PointTargets(NamedTuple):
    """What the targets made of each of the S snippets of :class:`ClassDistribution`."""

    classes: Array  # [B, S, C + 1] 1 at each class that the targets give the snippet; background last
    foreground_mask: Array  # [B, S] assigned to an instance
    silent_mask: Array  # [B, S] under an ignored instance: no loss looked at it


class DetectionLoss(NamedTuple):
    """A detector's supervised objective on one batch."""

    total: Array  # scalar, to be minimised
    class_loss: Array  # the part of it that one-hot class labels make
    localisation_loss: Array  # the part of it that needs no class: what a pretext task of spans can train
    parts: dict[str, Array]  # named scalars that make it up, before weighting, for the log
    state: PyTree  # running normalisers after this batch
    points: PointTargets


class DetectorFacts(NamedTuple):
    """What others may ask of a detector instead of asking which one it is.

    ``uncovered(segments_t, length)`` says why each of the instances ``[N, 2]`` (grid steps) of a video of ``length``
    rows teaches no point of this detector, in words that follow "instances that no grid point covers:"; None: it
    teaches one.
    """

    background_class: bool  # every snippet has a class; False: only foreground points have one
    uncovered: Callable[[np.ndarray, int], list[str | None]]
    wants_proposals: bool = False  # Batch.proposals must be there
    class_agnostic: bool = False  # it finds segments of one class, "action"


def as_they_are(outputs: Any) -> tuple[Any, Array]:
    """``Detector.sharpen`` of a detector all of whose outputs are targets of consistency."""
    return outputs, jnp.ones(jax.tree.leaves(outputs)[0].shape[0], bool)


class Detector(NamedTuple):
    """A temporal action localiser.

    ``init(key) -> (params, state)``: parameters, and the state that its losses carry from step to step.
    ``apply(params, batch, key) -> outputs``: ``key`` None means evaluation, otherwise it seeds dropout.
    ``loss(outputs, targets, state, key) -> DetectionLoss``: ``targets`` are :class:`~apl_jax.structs.Targets`, or what
    ``annotate`` returns; ``key`` seeds what a loss draws at random. Labelled and pseudo-labelled batches keep separate
    states.
    ``decode(outputs) -> Detections``: decoding and NMS, on the device.
    ``annotate(outputs) -> targets``: the detector's own predictions, without gradient, in a form that ``loss`` takes
    in place of :class:`~apl_jax.structs.Targets`: on-line pseudo labels (spec C8).
    ``compare(student, teacher, mask) -> dict of scalars``: how far two outputs on one view are apart, densely: the
    consistency that a mean teacher trains (spec 4.4). No gradient reaches ``teacher``; ``mask [B]`` says which videos
    count.
    ``flip(outputs) -> outputs``: outputs on the time-reversed view as outputs on the view itself: sequences reversed,
    starts and ends exchanged.
    ``sharpen(outputs) -> (outputs, mask)``: a teacher's outputs on videos without annotations as what ``compare`` is
    given for them, and which of the videos ``[B]`` count; by default as they are, and all.
    """

    init: Callable[[Array], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, Batch, Array | None], Any]
    loss: Callable[[Any, Any, PyTree, Array | None], DetectionLoss]
    decode: Callable[[Any], Detections]
    annotate: Callable[[Any], Any]
    compare: Callable[[Any, Any, Array], dict[str, Array]]
    flip: Callable[[Any], Any]
    facts: DetectorFacts
    sharpen: Callable[[Any], tuple[Any, Array]] = as_they_are


def register_detector(
    name: str,
    settings: type,
    build: Callable[[Any, DataFacts], Detector],
    plain: Callable[[Any], Any] = lambda settings: settings,
) -> None:
    """Makes a detector known by name.

    Args:
        name: what ``detector.name`` in a configuration may say.
        settings: a frozen dataclass on :class:`~apl_jax.declarations.Checked` with a default for every field. A field
            ``decoding`` (a settings class too) holds all that only ``decode`` reads: training is not handed it, so that
            changing it trains nothing again. A field ``of``, a choice of another detector, says that this one decodes
            as that one does.
        build: ``build(settings, facts) -> Detector``, with :class:`~apl_jax.structs.DataFacts`. Raises
            :class:`~apl_jax.declarations.SettingsError` for settings that contradict one another.
        plain: settings of the published baseline from those of a semi-supervised method, where these differ.
    """
    DETECTORS.register(name, settings, build, plain)
