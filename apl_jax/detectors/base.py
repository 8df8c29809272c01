"""What a detector is: four pure functions in a record, as optax holds its transformations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from apl_jax.structs import Array, Batch, Detections, PyTree


class ClassDistribution(NamedTuple):
    """What a detector believes of each of S snippets (points, for a pyramid); the last class is background.

    All that learning from non-target classes knows of a detector (systems 7.B).
    """

    probability: Array  # [B, S, C + 1], sums to 1: for dividing the classes
    log_in: Array  # [B, S, C + 1] log-likelihood that the snippet is of the class; differentiable
    log_out: Array  # [B, S, C + 1] log-likelihood that it is not
    time_t: Array  # [B, S] grid step that the snippet stands for
    mask: Array  # [B, S]


class Outputs(Protocol):
    """What every detector's ``apply`` returns at least; the rest is its own."""

    def represent(self, rows: Array) -> Array:
        """Features ``[B, N, R]`` of grid steps ``rows [B, N]``, which contrastive learning may shape (systems B5)."""
        ...

    def distribution(self) -> ClassDistribution:
        """The class distribution of every snippet."""
        ...


class Roles(NamedTuple):
    """What the targets made of each of the S snippets of :class:`ClassDistribution`."""

    classes: Array  # [B, S, C + 1] 1 at each class that the targets give the snippet; background last
    foreground_mask: Array  # [B, S] assigned to an instance
    silent_mask: Array  # [B, S] under an ignored instance: no loss looked at it


class Losses(NamedTuple):
    """A detector's supervised objective on one batch."""

    total: Array  # scalar, to be minimised
    class_loss: Array  # the part of it that one-hot class labels make
    localisation_loss: Array  # the part of it that needs no class: what a pretext task of spans can train
    terms: dict[str, Array]  # named scalars that make it up, before weighting, for the log
    state: PyTree  # running normalisers after this batch
    roles: Roles


class Detector(NamedTuple):
    """A temporal action localiser.

    ``init(key) -> (params, state)``: parameters, and the state that its losses carry from step to step.
    ``apply(params, batch, key) -> outputs``: ``key`` None means evaluation, otherwise it seeds dropout.
    ``loss(outputs, targets, state) -> Losses``: ``targets`` are :class:`~apl_jax.structs.Targets`, or what ``annotate``
    returns; labelled and pseudo-labelled batches keep separate states.
    ``decode(outputs) -> Detections``: decoding and NMS, on the device.
    ``annotate(outputs) -> targets``: what the detector itself believes, without gradient, in a form that ``loss`` takes
    in place of :class:`Targets`: pseudo labels made on line (systems C8).
    ``background``: whether background is a class of the head, so that every snippet has a class, or whether only
    foreground snippets have one.
    """

    init: Callable[[Array], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, Batch, Array | None], Any]
    loss: Callable[[Any, Any, PyTree], Losses]
    decode: Callable[[Any], Detections]
    annotate: Callable[[Any], Any]
    background: bool
