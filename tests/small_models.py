"""Models of small networks with random weights, written as a run or an import writes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from fixtures import CLASSES, FEATURE_WIDTH, random_weights, tiny_choice

from apl_jax.data.batching import Standardizer
from apl_jax.declarations import Choice
from apl_jax.detectors import build_detector
from apl_jax.inference.model import FOLDER, ModelCard, write_model
from apl_jax.settings import GridSettings
from apl_jax.structs import DataFacts, PyTree

FPS, WINDOW, STRIDE = 12.5, 4, 3


def small_card(detector: Choice | None = None, windowed: bool = True, **changes: Any) -> ModelCard:
    """A card with a standardisation that matters."""
    draws = np.random.default_rng(1)
    mean, std = draws.normal(size=FEATURE_WIDTH), draws.uniform(0.5, 2, FEATURE_WIDTH)
    card = ModelCard(
        stage="supervised_x",
        detector=detector or tiny_choice("actionformer"),
        classes=tuple(f"größe {c}" for c in range(CLASSES)),
        feature_width=FEATURE_WIDTH,
        features="rows" if windowed else "signal",
        grid=GridSettings(window=WINDOW if windowed else 2, stride=STRIDE, length_multiple=8),
        longest_t=40,
        fps=None,
        standardizer=Standardizer(mean.astype(np.float32), std.astype(np.float32)),
        data="small",
        licence="none",
    )
    return dataclasses.replace(card, **changes)


def small_params(card: ModelCard) -> PyTree:
    """Random weights of the detector."""
    built = build_detector(card.detector, DataFacts(card.feature_width, len(card.classes)))
    return random_weights(jax.eval_shape(built.init, jax.random.key(0))[0])


def make_run(folder: Path, card: ModelCard) -> Path:
    """A folder whose ``model/`` is this model."""
    write_model(folder / FOLDER, card, {"detector": small_params(card)})
    return folder
