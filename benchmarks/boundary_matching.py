"""BMN's training step with its map computed as ops/boundary_matching.py does, and as the publication does.

    python benchmarks/boundary_matching.py [--rounds N] [--videos B] [--steps T] [--features D]

Publication: all cells of the map are sampled with one dense matrix of T x N T^2 weights, then projected, and all
convolutions go over the whole map. Here: projected first, then sampled, where there are segments. Both give the same
gradient, which is checked. A step is the network, its losses and its gradient, without an optimiser, in one process;
the two take turns, and medians of the rounds count. Memory is what the compiled program asks for beside its arguments,
and the process's largest resident size after each first run, the smaller one first.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from apl_jax.detectors import bmn
from apl_jax.detectors.bmn_settings import BmnSettings
from apl_jax.nn.blocks import Linear, MaskedConv, uniform_fan_in
from apl_jax.nn.boundary_maps import MapHead
from apl_jax.ops.boundary_matching import Sampling, sampling_taps
from apl_jax.structs import Array, Batch, DataFacts, Targets


def dense_mask(sampling: Sampling) -> np.ndarray:
    """The weights ``[T, T, N, T]`` of layout J's map of starts x ends."""
    steps = sampling.steps
    start, end = np.triu_indices(steps)
    step, weight = sampling_taps(sampling, end - start, start)
    mask = np.zeros((steps, steps, sampling.samples, steps), np.float32)
    bins = np.arange(sampling.samples)[:, None]
    np.add.at(mask, (start[:, None, None], end[:, None, None], bins, step), weight)
    return mask


class SampledFirst(MapHead):
    """The same head and the same parameters, as published."""

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        sampling = self.sampling
        hidden = nn.relu(MaskedConv(self.matching_width, bias_init=0.0, name="reduce")(x, mask))
        kernel = self.param("kernel", uniform_fan_in, (sampling.samples, hidden.shape[-1], self.sample_width))
        bias = self.param("bias", nn.initializers.zeros, (self.sample_width,))
        sampled = jnp.einsum("btc,ijnt->bijnc", hidden, jnp.asarray(dense_mask(sampling)))
        cells = nn.relu(jnp.einsum("bijnc,nco->bijo", sampled, kernel) + bias)
        cells = nn.relu(Linear(self.width, name="contract")(cells))
        for i in range(2):
            kernel = self.param(f"conv_{i}_kernel", uniform_fan_in, (9, self.width, self.width))
            bias = self.param(f"conv_{i}_bias", nn.initializers.zeros, (self.width,))
            kernel = kernel.reshape(3, 3, self.width, self.width)
            cells = lax.conv_general_dilated(cells, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            cells = nn.relu(cells + bias)
        kernel = self.param("predictor_kernel", uniform_fan_in, (self.width, len(self.biases)))
        bias = self.param("predictor_bias", nn.initializers.zeros, (len(self.biases),))
        start = jnp.arange(sampling.steps)
        end = jnp.minimum(start + jnp.arange(sampling.durations)[:, None], sampling.steps - 1)
        return (cells @ kernel + bias)[:, start, end]


def batch_of(videos: int, steps: int, features: int) -> Batch:
    """Random features, four instances each."""
    draws = np.random.default_rng(0)
    start = draws.uniform(0, 0.6, (videos, 4))
    ends = start + draws.uniform(0.05, 0.4, (videos, 4))
    some = jnp.ones((videos, 4), bool)
    targets = Targets(
        jnp.asarray(np.stack([start, ends], -1) * steps, jnp.float32), jnp.zeros((videos, 4), jnp.int32), some,
        jnp.ones((videos, 4)), ~some,
    )  # fmt: skip
    rows = jnp.asarray(draws.standard_normal((videos, steps, features)), jnp.float32)
    return Batch(rows, jnp.ones((videos, steps), bool), targets, jnp.arange(videos))


def compiled_step(head: type[MapHead], settings: BmnSettings, batch: Batch) -> tuple[Any, Any, Callable[..., Any]]:
    """Parameters, the compiled step, and what runs it."""
    with mock.patch.object(bmn, "MapHead", head):
        detector = bmn.build_bmn(settings, DataFacts(batch.features.shape[-1], 1))
        params, state = jax.jit(detector.init)(jax.random.key(0))

        def loss(params: Any, batch: Batch) -> Array:
            return detector.loss(detector.apply(params, batch, jax.random.key(1)), batch.targets, state, None).total

        program = jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile()
    return params, program, lambda params: jax.block_until_ready(program(params, batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 3), ("videos", 2), ("steps", 100), ("features", 400)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    settings = dataclasses.replace(BmnSettings(), steps=flags.steps, classes="none")
    batch = batch_of(flags.videos, flags.steps, flags.features)
    heads = {"projected first": MapHead, "sampled first": SampledFirst}
    runs, values, seconds = {}, {}, {name: [] for name in heads}
    params: Any = None
    for name, head in heads.items():
        initial, program, runs[name] = compiled_step(head, settings, batch)
        params = initial if params is None else params
        values[name] = runs[name](params)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        asked = program.memory_analysis()
        asked = "unknown" if asked is None else f"{asked.temp_size_in_bytes / 2**30:.2f} GiB"
        print(f"{name}: the program asks for {asked}; largest resident size so far {resident:.2f} GiB", flush=True)
    ours, theirs = (jax.tree.leaves(value) for value in values.values())
    apart = max(
        float(jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), 1e-9)) for a, b in zip(ours, theirs, strict=True)
    )
    print(f"largest difference of a gradient, of its largest entry: {apart:.1e}")
    for _ in range(flags.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run(params)
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    for name, value in median.items():
        print(f"{name}: {value:.3f} s a step (B = {flags.videos}, T = {flags.steps}, D = {flags.features})")
    print(f"ratio: {median['sampled first'] / median['projected first']:.1f}")


if __name__ == "__main__":
    main()
