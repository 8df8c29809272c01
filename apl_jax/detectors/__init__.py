"""Detectors by name, each in a file of its own that ends with its registration.

A detector is a record of pure functions (base.py). Those of this package are known as soon as it is imported; one from
elsewhere is made known by the same call, :func:`register_detector`, and ``tests/laws`` then tests it too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from apl_jax.declarations import Choice, from_dict, to_dict
from apl_jax.detectors import actionformer, bmn, ensemble, pgcn, spot, tridet  # noqa: F401  # they register
from apl_jax.detectors.base import Detector, register_detector
from apl_jax.registry import DETECTORS
from apl_jax.structs import DataFacts

__all__ = ["Detector", "build", "build_detector", "decoding_of", "register_detector", "without_decoding"]


def build(name: str, *, feature_width: int, num_classes: int, **settings: Any) -> Detector:
    """The detector of a registered name, for features ``[B, T, feature_width]`` and C = ``num_classes`` classes.

    ``settings`` are those that differ from the detector's defaults, nested ones as dicts or as what they are:
    ``build("actionformer", feature_width=2048, num_classes=20, width=256, quality={"branches": "none"})``. Raises
    :class:`~apl_jax.declarations.SettingsError` for a name or a setting that there is not, and for impossible values.
    """
    chosen = from_dict(DETECTORS.get(name, "name").settings, to_dict(settings))
    return build_detector(Choice(name, chosen), DataFacts(feature_width, num_classes))


def build_detector(choice: Choice, facts: DataFacts) -> Detector:
    """The detector that ``choice``, as of ``config.detector``, names and sets, for such data.

    Asked for the same again, it is the same record: many parts of a run build it, and its initialisation, which takes
    longest to trace, is then traced once.
    """
    return _built(DETECTORS.get(choice.name, "detector.name").build, choice.settings, facts)


@functools.lru_cache(maxsize=64)
def _built(build: Callable[[Any, DataFacts], Detector], settings: Any, facts: DataFacts) -> Detector:
    detector = build(settings, facts)
    return detector._replace(init=jax.jit(detector.init))


def without_decoding(choice: Choice) -> Choice:
    """``choice`` with its ``decoding`` reset to its defaults: what training is handed; the same where it has none."""
    settings = choice.settings
    if isinstance(getattr(settings, "of", None), Choice):  # it decodes as the detector that it is made of does
        return Choice(choice.name, dataclasses.replace(settings, of=without_decoding(settings.of)))
    if not hasattr(settings, "decoding"):
        return choice
    return Choice(choice.name, dataclasses.replace(settings, decoding=type(settings)().decoding))


def decoding_of(choice: Choice) -> Any:
    """The settings that only ``decode`` reads; None where a detector has none."""
    settings = choice.settings
    within = getattr(settings, "of", None)
    return decoding_of(within) if isinstance(within, Choice) else getattr(settings, "decoding", None)
