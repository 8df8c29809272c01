"""Speed as ratios taken in one process (machines are noisy, ratios less so): ``make bench``.

Each line: what was measured, the ratio, and what the project asks of it. Variants that are compared take turns, and the
median of the rounds counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans

from apl_jax.data.annotations import read_annotations
from apl_jax.detectors.actionformer import build_actionformer
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.base import Detector
from apl_jax.detectors.quality import QualitySettings
from apl_jax.detectors.spot import build_spot
from apl_jax.detectors.spot_settings import SpotSettings
from apl_jax.devices import enable_compile_cache
from apl_jax.evaluation.average_precision import Instances, average_precision, instances_from_annotations
from apl_jax.ops import kmeans
from apl_jax.settings import OptimizerSettings
from apl_jax.structs import Batch, DataFacts, PyTree, Targets
from apl_jax.training.optimizer import build_optimizer

FORWARD_MULTIPLY_ADDS = 45.044e9  # per video of 2304 x 2048 steps: APL Table S6, with ALQA's branches
# Per recording of 100 x 400: attention (400 to 3 x 4 x 400, and back), its two products, classifier, mask head.
SPOT_MULTIPLY_ADDS = 100 * (4 * 400 * 1600 + 2 * 4 * 100 * 400 + 400 * 201 + 3 * 400 * 256 + 256 * 100)
STEPS = 5  # per dispatch; training takes 25 (runtime.steps_per_dispatch), and the memory of a dispatch is new to it
PRODUCTS = 10  # per measurement of the matmul rate
REPEATS = 10  # per measurement of what takes milliseconds
CALLS = 100  # of k-means per measurement
THUMOS14 = Path(__file__).parents[2] / "shared" / "data" / "annotations" / "thumos14.json"


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call, results waited for."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def take_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each function over rounds in which they take turns, after one warm-up each."""
    for function in functions.values():
        jax.block_until_ready(function())
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def report(what: str, found: str, asked: str) -> None:
    """One line of the table."""
    print(f"{what:<58}{found:>34}   asked: {asked}", flush=True)


def random_batch(videos: int, steps: int, width: int, instances: int, classes: int) -> Batch:
    """A batch of this size, features at random."""
    draws = np.random.default_rng(0)
    start = draws.uniform(0, 0.7 * steps, (videos, instances))
    segments = np.stack([start, start + draws.uniform(4, min(60, 0.3 * steps), (videos, instances))], -1)
    targets = Targets(
        jnp.float32(segments),
        jnp.int32(draws.integers(0, classes, (videos, instances))),
        jnp.ones((videos, instances), bool),
        jnp.ones((videos, instances)),
        jnp.zeros((videos, instances), bool),
    )
    features = jnp.float32(draws.normal(size=(videos, steps, width)))
    return Batch(features, jnp.ones((videos, steps), bool), targets, jnp.arange(videos))


def measure_detector(rounds: int) -> None:
    """The full training step against the matmul rate, and decoding + NMS against the forward pass."""
    settings = ActionFormerSettings(quality=QualitySettings(branches="tiou_tnd"))
    detector = build_actionformer(settings, DataFacts(2048, 20))
    batch = random_batch(2, 2304, 2048, 20, 20)
    params, normalizer = detector.init(jax.random.key(0))
    forward = jax.jit(lambda p, b: detector.apply(p, b, None))
    decode = jax.jit(lambda p, b: detector.decode(detector.apply(p, b, None)))
    passes = {"forward": lambda: forward(params, batch), "decode": lambda: decode(params, batch)}
    times = take_turns(matmul_turns() | passes, 2 * rounds)
    # By themselves: after a training step's gigabytes, whatever comes next is slow.
    times |= take_turns({"step": training_step(detector, params, normalizer, batch)}, rounds)
    rate = matmul_rate(times)
    work = 2 * 2 * FORWARD_MULTIPLY_ADDS
    times["step"] /= STEPS
    report("float32 matmul rate", f"{rate / 1e9:.1f} GFLOP/s", "-")
    report(
        "forward pass, 2 x 2304 x 2048, width 512",
        f"{times['forward']:.2f} s, {work / times['forward'] / rate:.0%}",
        "-",
    )
    report("training step of the same", f"{times['step']:.2f} s, {3 * work / times['step'] / rate:.0%}", ">= 60 %")
    added = times["decode"] / times["forward"] - 1
    report("decoding + NMS, added to the forward pass", f"{added:.1%}", "<= 15 %")


def training_step(detector: Detector, params: PyTree, state: PyTree, batch: Batch) -> Callable[[], object]:
    """:data:`STEPS` optimiser steps in one dispatch, as training runs them: the state is donated."""
    params = {"detector": params}
    optimizer = build_optimizer(OptimizerSettings(), {"detector": None}, 1000)

    def loss(params: PyTree, state: PyTree, batch: Batch, key: jax.Array):
        result = detector.loss(detector.apply(params["detector"], batch, key), batch.targets, state, key)
        return result.total, result.state

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(carry: tuple, batch: Batch, key: jax.Array):
        def step(carry: tuple, key: jax.Array):
            params, moments, state = carry
            (_, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, batch, key)
            updates, moments = optimizer.update(grads, moments, params)
            return (jax.tree.map(lambda p, u: p + u, params, updates), moments, state), None

        return jax.lax.scan(step, carry, jax.random.split(key, STEPS))[0]

    carry = [jax.tree.map(jnp.copy, (params, optimizer.init(params), state))]

    def advance() -> object:
        carry[0] = steps(carry[0], batch, jax.random.key(1))
        return carry[0]

    return advance


def matmul_turns() -> dict[str, Callable[[], object]]:
    """Products of two shapes, chained inside one program so that neither dispatch nor fresh memory slows them."""
    left, right = jnp.ones((4608, 2048)), jnp.full((2048, 2048), 1 / 2048)
    chained = jax.jit(lambda a, b: jax.lax.fori_loop(0, PRODUCTS, lambda _, x: x @ b, a))
    square = jax.jit(lambda a: a @ a)
    return {
        "matmul": lambda: chained(left, right),
        "square": lambda: [square(right) for _ in range(PRODUCTS)],
    }


def matmul_rate(times: dict[str, float]) -> float:
    """Floating-point operations per second; the faster of two shapes is the yardstick."""
    return PRODUCTS * 2 * 2048 * 2048 * max(4608 / times["matmul"], 2048 / times["square"])


def measure_spot(rounds: int) -> None:
    """SPOT at ActivityNet's size: the training step against the matmul rate, inference with all thresholds against the
    forward pass, and the memory of a step with 256 snippets."""
    settings = SpotSettings()
    detector = build_spot(settings, DataFacts(400, 200))
    batch = random_batch(100, 100, 400, 3, 200)
    few = random_batch(16, 100, 400, 3, 200)
    params, state = detector.init(jax.random.key(0))
    heads = lambda outputs: (outputs.class_logits, outputs.mask_logits)
    forward = jax.jit(lambda p, b: heads(detector.apply(p, b, None)))
    decode = jax.jit(lambda p, b: detector.decode(detector.apply(p, b, None)))
    times = take_turns(
        matmul_turns()
        | {
            "step": training_step(detector, params, state, batch),
            # Several calls: what ran before leaves the first one cold.
            "forward": lambda: [forward(params, few) for _ in range(REPEATS)],
            "decode": lambda: [decode(params, few) for _ in range(REPEATS)],
        },
        rounds,
    )
    rate = matmul_rate(times)
    work = 3 * STEPS * 100 * 2 * SPOT_MULTIPLY_ADDS
    report(
        "SPOT training step, 100 x 100 x 400, 201 classes",
        f"{times['step'] / STEPS:.2f} s, {work / times['step'] / rate:.0%}",
        ">= 50 %",
    )
    report("SPOT inference, added to the forward pass", f"{times['decode'] / times['forward'] - 1:.1%}", "<= 30 %")

    long = build_spot(dataclasses.replace(settings, steps=256), DataFacts(2048, 20))
    wide = random_batch(16, 256, 2048, 10, 20)
    params, state = long.init(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda p, b, k: long.loss(long.apply(p, b, k), b.targets, state, k).total))
    memory = gradient.lower(params, wide, jax.random.key(1)).compile().memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    report("SPOT gradient, 16 x 256 x 2048, by the compiler's count", f"{total / 2**30:.1f} GiB", "<= 4 GiB")


def measure_kmeans(rounds: int) -> None:
    """16 videos x 64 frames x 2048, 2 clusters, 10 iterations, against scikit-learn's loop."""
    draws = np.random.default_rng(0)
    frames = draws.normal(size=(16, 64, 2048)).astype(np.float32) + 0.3 * draws.normal(size=(16, 1, 2048))
    frames[:, ::3] += 0.5 * draws.normal(size=(16, 1, 2048))
    frames = frames.astype(np.float32)
    on_device = jax.jit(
        jax.vmap(lambda k, x: kmeans(k, x, jnp.ones(64, bool), clusters=2, iterations=10), in_axes=(0, 0))
    )
    keys, points = jax.random.split(jax.random.key(0), 16), jnp.asarray(frames)

    def loop() -> list[float]:
        return [KMeans(2, n_init=1, max_iter=10, tol=0, random_state=0).fit(x).inertia_ for x in frames]

    # Many calls each: the BLAS threads of the one keep spinning for some 20 ms, into the other's time.
    repeated = {
        "ours": lambda: [jax.block_until_ready(on_device(keys, points)) for _ in range(CALLS)],
        "sklearn": lambda: [loop() for _ in range(CALLS)],
    }
    times = take_turns(repeated, rounds)
    ours, theirs = float(on_device(keys, points).inertia.sum()), sum(loop())
    report(
        "k-means, 16 x 64 x 2048, against scikit-learn's loop", f"{times['sklearn'] / times['ours']:.1f} x", ">= 10 x"
    )
    milliseconds = {name: f"{1e3 * times[name] / CALLS:.2f} ms" for name in repeated}
    report("    its time; that of scikit-learn", f"{milliseconds['ours']}; {milliseconds['sklearn']}", "-")
    report("    its inertia, relative to scikit-learn's", f"{ours / theirs:.4f}", "1")


def measure_average_precision(rounds: int) -> None:
    """46,000 predictions on THUMOS14's annotations at 5 thresholds; without that file, on annotations of its size."""
    draws = np.random.default_rng(0)
    if THUMOS14.exists():
        annotations = read_annotations(THUMOS14, strict=False)
        records = [r for r in annotations.videos.values() if r.subset == "test"]
        truth = instances_from_annotations(records)
    else:
        starts = draws.uniform(0, 200, 3358)
        truth = Instances(
            draws.integers(0, 212, 3358),
            draws.integers(0, 20, 3358),
            np.stack([starts, starts + 4], -1),
            np.zeros(3358),
        )
    chosen = draws.integers(0, len(truth), 46_000)
    jitter = draws.normal(0, 1.5, (46_000, 2))
    segments = np.sort(truth.segments_s[chosen] + jitter, axis=-1) + [0, 0.1]
    predictions = Instances(truth.video[chosen], truth.label[chosen], segments, draws.uniform(size=46_000))
    times = take_turns({"map": lambda: average_precision(truth, predictions, (0.3, 0.4, 0.5, 0.6, 0.7), 20)}, rounds)
    report("mAP of 46,000 predictions, THUMOS14, 5 tIoU", f"{times['map']:.3f} s", "<= 0.5 s")


def main() -> None:
    """Measures everything, or what is named on the command line."""
    parts = {  # what takes milliseconds before what fills memory
        "kmeans": measure_kmeans,
        "map": measure_average_precision,
        "detector": measure_detector,
        "spot": measure_spot,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="all by default")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    enable_compile_cache()
    print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}", flush=True)
    for name in chosen.parts or parts:
        parts[name](chosen.rounds)


if __name__ == "__main__":
    main()
