"""Detectors by name. To add one, write its file and add a line here; the laws in ``tests/laws`` then test it."""

from __future__ import annotations

from collections.abc import Callable

from apl_jax.detectors.actionformer import build_actionformer
from apl_jax.detectors.base import Detector
from apl_jax.detectors.spot import build_spot
from apl_jax.settings import Settings

DETECTORS: dict[str, Callable[[Settings, int, int], Detector]] = {
    "actionformer": lambda settings, width, classes: build_actionformer(settings.actionformer, width, classes),
    "spot": lambda settings, width, classes: build_spot(settings.spot, width, classes),
}


def build_detector(settings: Settings, feature_width: int, num_classes: int) -> Detector:
    """The detector that ``settings.detector`` names, for features ``[B, T, feature_width]``."""
    if settings.detector not in DETECTORS:
        raise ValueError(f"config.detector: found {settings.detector!r}, expected one of {', '.join(DETECTORS)}")
    return DETECTORS[settings.detector](settings, feature_width, num_classes)
