"""The detector's own loss as a term (APL Eq. 12; spec A6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apl_jax.learning.method import MethodContext, Term, TermInputs, TermValue


def detection(
    context: MethodContext, seen: str, *, weight: float = 1.0,
    targets: Callable[[TermInputs], Any] | None = None, needs: tuple[str, ...] = (),
) -> Term:  # fmt: skip
    """The detection loss on the pass ``seen``, with a running normaliser of its own; gives the
    :class:`~apl_jax.detectors.base.DetectionLoss`.

    ``targets(inputs)`` replaces the annotations of the view, for on-line pseudo labels; ``needs`` are the passes that
    it reads besides ``seen``.
    """

    def loss(inputs: TermInputs) -> TermValue:
        view, outputs = inputs.passes[seen]
        goal = view.targets if targets is None else targets(inputs)
        found = context.detector.loss(outputs, goal, inputs.state, inputs.key)
        metrics = {f"{seen}/{name}": value for name, value in found.parts.items()}
        return TermValue(found.total, metrics, found.state, found)

    return Term(loss, (seen, *needs), lambda key: ({}, context.detector.init(key)[1]), weight)


def localisation(context: MethodContext, seen: str) -> Term:
    """The part of the detection loss that needs no class, on the pass ``seen`` and its view's targets."""
    whole = detection(context, seen)

    def loss(inputs: TermInputs) -> TermValue:
        value = whole.loss(inputs)
        return value._replace(loss=value.gives.localisation_loss)

    return whole._replace(loss=loss)
