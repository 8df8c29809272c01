"""Crops of recordings whose rows are stored without padding, against a table padded to the longest: time and memory.

    python benchmarks/stored_videos.py [--recordings=20] [--longest=8832] [--width=2048] [--crop=2304] [--batch=2]

Lengths are those of THUMOS14 in their spread: their mean is about a sixth of the longest. Both ways draw the same crops
of the same recordings, in one process and in turns; the program checks that they are equal to the last bit.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.learning.perturb import random_truncation
from apl_jax.settings import PerturbSettings
from apl_jax.stored_videos import StoredVideos
from apl_jax.structs import Array, Batch, Targets

REPEATS = 15


def lengths_of(recordings: int, longest: int) -> np.ndarray:
    """Steps of some recordings."""
    spread = np.exp(np.linspace(0, -4, recordings))
    return np.maximum(longest * spread, 1).astype(np.int32)


def tables(lengths: np.ndarray, width: int) -> tuple[Batch, StoredVideos]:
    """The same recordings padded, and stored by rows."""
    draws, count, longest = np.random.default_rng(0), len(lengths), int(lengths.max())
    mask = np.arange(longest) < lengths[:, None]
    features = draws.normal(size=(count, longest, width)).astype(np.float32) * mask[..., None]
    start = draws.uniform(0, 0.9, (count, 8)) * lengths[:, None]
    segments_t = jnp.asarray(np.stack([start, start + 20], -1), jnp.float32)
    one = jnp.ones(start.shape)
    targets = Targets(segments_t, jnp.zeros(start.shape, jnp.int32), one > 0, one, one < 0)
    number = jnp.arange(count, dtype=jnp.int32)
    first = jnp.asarray(np.cumsum(lengths) - lengths, jnp.int32)
    stored = StoredVideos(jnp.asarray(features[mask]), first, jnp.asarray(lengths), number, targets, None, longest)
    return Batch(jnp.asarray(features), jnp.asarray(mask), targets, number), stored


def main() -> None:
    """Measures both in turns and prints their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("recordings", 20), ("longest", 8832), ("width", 2048), ("crop", 2304), ("batch", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    padded, stored = tables(lengths_of(options.recordings, options.longest), options.width)

    @jax.jit
    def from_padded(table: Batch, videos: Array, key: Array) -> Batch:
        drawn = jax.tree.map(lambda x: x[videos], table)
        return random_truncation(key, drawn, PerturbSettings(), options.crop)

    @jax.jit
    def from_stored(table: StoredVideos, videos: Array, key: Array) -> Batch:
        return random_truncation(key, table.draw(videos), PerturbSettings(), options.crop)

    ways = {"padded": (from_padded, padded), "stored": (from_stored, stored)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(REPEATS):
        videos = jax.random.permutation(jax.random.key(step), options.recordings)[: options.batch]
        crops = []
        for name, (draw, table) in ways.items():
            started = time.perf_counter()
            crops.append(jax.block_until_ready(draw(table, videos, jax.random.key(step))))
            seconds[name].append(time.perf_counter() - started)
        jax.tree.map(np.testing.assert_array_equal, *crops)
    best = {name: min(times[1:]) for name, times in seconds.items()}
    size = {"padded": padded.features.nbytes, "stored": stored.rows.nbytes}
    for name in ways:
        print(f"{name}: {1e3 * best[name]:.1f} ms a batch, {size[name] / 2**20:,.0f} MiB")
    print(f"stored / padded: time {best['stored'] / best['padded']:.2f}, memory {size['stored'] / size['padded']:.2f}")


if __name__ == "__main__":
    main()
