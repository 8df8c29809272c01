"""What a detector is: four pure functions in a record, as optax holds its transformations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from apl_jax.structs import Array, Batch, Detections, PyTree, Targets


class Outputs(Protocol):
    """What every detector's ``apply`` returns at least; the rest is its own."""

    def represent(self, rows: Array) -> Array:
        """Features ``[B, N, R]`` of grid steps ``rows [B, N]``, which contrastive learning may shape (systems B5)."""
        ...


class Losses(NamedTuple):
    """A detector's supervised objective on one batch."""

    total: Array  # scalar, to be minimised
    terms: dict[str, Array]  # named scalars that make it up, before weighting, for the log
    state: PyTree  # running normalisers after this batch


class Detector(NamedTuple):
    """A temporal action localiser.

    ``init(key) -> (params, state)``: parameters, and the state that its losses carry from step to step.
    ``apply(params, batch, key) -> outputs``: ``key`` None means evaluation, otherwise it seeds dropout.
    ``loss(outputs, targets, state) -> Losses``: labelled and pseudo-labelled batches keep separate states.
    ``decode(outputs) -> Detections``: decoding and NMS, on the device.
    """

    init: Callable[[Array], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, Batch, Array | None], Any]
    loss: Callable[[Any, Targets, PyTree], Losses]
    decode: Callable[[Any], Detections]
