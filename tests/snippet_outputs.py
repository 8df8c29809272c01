"""Videos, predictions and annotations for tests of SPOT."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from fixtures import CLASSES

from apl_jax.detectors.spot import SpotOutputs
from apl_jax.nn.snippets import to_snippets
from apl_jax.settings import SpotSettings
from apl_jax.structs import Targets


def ramp(lengths: tuple[int, ...], steps: int) -> tuple[jax.Array, jax.Array]:
    """Videos whose row g holds the number g, and NaN where they are padded; their mask."""
    time = np.arange(steps, dtype=np.float32)
    mask = time < np.asarray(lengths)[:, None]
    return jnp.asarray(np.where(mask, time, np.nan))[..., None], jnp.asarray(mask)


def outputs_of(
    settings: SpotSettings, lengths: tuple[int, ...], steps: int, *, seed: int = 0, size: float = 2.0
) -> SpotOutputs:
    """Arbitrary predictions on the snippets of videos of these lengths."""
    draws = np.random.default_rng(seed)
    cut = to_snippets(*ramp(lengths, steps), settings)
    number = lambda width: jnp.asarray(size * draws.normal(size=(*cut.mask.shape, width)), jnp.float32)
    geometry = cut.mask, cut.start_t, cut.scale_t, cut.lengths
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
