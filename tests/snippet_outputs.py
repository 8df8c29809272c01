"""Videos, predictions and annotations for tests of SPOT."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from fixtures import CLASSES

from apl_jax.detectors.spot import SpotOutputs
from apl_jax.detectors.spot_settings import SpotDecoding, SpotSettings
from apl_jax.nn.snippets import Snippets, to_snippets
from apl_jax.structs import Targets

TINY = SpotSettings(
    steps=16, heads=2, mask_hidden=6, easy_snippets=3, hard_snippets=4, band_inner=2, band_outer=4,
    decoding=SpotDecoding(top_snippets=6, sigma=0.5, top_k_per_level=64, max_detections=24),
)  # fmt: skip
WINDOWS = dataclasses.replace(
    TINY, steps=8, window_mode="windows", width=8, head_width=3, mask_head="bilinear", target_edges="nearest",
    class_loss="reference", embedding_convs=2,
)  # fmt: skip


def ramp(lengths: tuple[int, ...], steps: int) -> tuple[jax.Array, jax.Array]:
    """Videos whose row g holds the number g, and NaN where they are padded; their mask."""
    time = np.arange(steps, dtype=np.float32)
    mask = time < np.asarray(lengths)[:, None]
    return jnp.asarray(np.where(mask, time, np.nan))[..., None], jnp.asarray(mask)


def cut(features: jax.Array, mask: jax.Array, settings: SpotSettings) -> Snippets:
    """The snippets of videos under these settings."""
    s = settings
    return to_snippets(features, mask, width=s.steps, window_mode=s.window_mode, overlap=s.overlap)


def outputs_of(
    settings: SpotSettings, lengths: tuple[int, ...], steps: int, *, seed: int = 0, size: float = 2.0
) -> SpotOutputs:
    """Arbitrary predictions on the snippets of videos of these lengths."""
    draws = np.random.default_rng(seed)
    snippets = cut(*ramp(lengths, steps), settings)
    number = lambda width: jnp.asarray(size * draws.normal(size=(*snippets.mask.shape, width)), jnp.float32)
    geometry = snippets.mask, snippets.start_t, snippets.scale_t, snippets.lengths
    return SpotOutputs(number(CLASSES + 1), number(settings.steps), number(5), number(5), *geometry)


def targets_of(*rows: tuple[float, float, int], weight: tuple[float, ...] = (), ignored: tuple[int, ...] = ()):
    """One video's instances (start, end, class), and an empty row after them."""
    count = len(rows) + 1
    segments = np.zeros((1, count, 2), np.float32)
    labels = np.zeros((1, count), np.int32)
    for n, (start, end, label) in enumerate(rows):
        segments[0, n], labels[0, n] = (start, end), label
    weights = np.ones((1, count), np.float32)
    weights[0, : len(weight)] = weight
    number = np.arange(count)
    return Targets(
        jnp.asarray(segments), jnp.asarray(labels), jnp.asarray(number < len(rows))[None], jnp.asarray(weights),
        jnp.asarray(np.isin(number, ignored))[None],
    )  # fmt: skip
