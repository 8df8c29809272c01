"""What a GPU or a TPU makes of this package, in one command of at most eight minutes: a table in Markdown.

    python benchmarks/accelerator.py [--out=accelerator.md] [--minutes=8] [--only=REGEX] [--compilers=N] [--small]

Measured are products of matrices, k-means and non-maximum suppression, the pass that labels 200 recordings, and
training steps in bfloat16 and float32: the dispatch that training itself runs, with the gathering of its batches. A
step's share is its arithmetic, as the compiler counts it for the program before optimisation, over the matmul rate that
was measured in the same process and the same type. Programs are compiled first, some at a time, since compiling for a
GPU measures kernels on it; what is not ready when ``--minutes`` are over is named and left out. ``--small`` runs
everything in small sizes, on any machine: its numbers say nothing. ``--only`` takes what it finds in a name, such as
"tridet.*bfloat16".
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from apl_jax.compilation.estimates import counted_cost
from apl_jax.declarations import override
from apl_jax.detectors import build_detector
from apl_jax.devices import build_mesh, enable_compile_cache, place, replicated
from apl_jax.feeds.passes import BatchPlan, map_resident
from apl_jax.feeds.resident import device_feed
from apl_jax.learning.icd import build_bank, class_members, pool_instances
from apl_jax.learning.method import LABELLED, build_objective
from apl_jax.learning.selection import Known
from apl_jax.ops import kmeans
from apl_jax.ops.suppression import suppress
from apl_jax.runs.labelling_stage import build_selection, predict_and_observe
from apl_jax.runs.settings import Settings, plain_method, read_config
from apl_jax.runs.training_stage import abstract_state, beginning, build_method
from apl_jax.stored_videos import StoredVideos
from apl_jax.structs import DataFacts, PyTree, Targets
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.state import initial_state
from apl_jax.training.step import build_dispatch, build_step

DETECTORS = ("actionformer", "tridet", "spot", "bmn")  # those that find segments by themselves
DTYPES = ("bfloat16", "float32")
ROUNDS, PRODUCTS = 5, 20
MEASURING = 0.3  # of the time, after which nothing is compiled any more: so much is left to measure
_GIB = 2**30


class Size(NamedTuple):
    """How large everything is: the papers' sizes, or small ones."""

    side: int  # of the matrices whose product is the yardstick
    width: int  # of feature rows
    steps: dict[str, int]  # rows of a crop, by benchmark
    batch: dict[str, int]
    narrow: dict[str, Any]  # changes of a detector's settings, as far as it has them
    per_dispatch: int
    labelled: tuple[int, int]  # recordings of the labelling pass, rows of the longest


WHOLE = Size(
    8192, 2048, {"thumos14": 2304, "activitynet": 192}, {"thumos14": 16, "activitynet": 64}, {}, 10, (200, 8832)
)
NARROW = {"width": 16, "head_width": 16, "steps": 32, "matching_width": 8, "levels": 3}
SMALL = Size(256, 32, {"thumos14": 128, "activitynet": 64}, {"thumos14": 2, "activitynet": 4}, NARROW, 2, (8, 256))
CLASSES = {"thumos14": 20, "activitynet": 200}


class Row(NamedTuple):
    """One line of the table."""

    what: str
    dtype: str
    seconds: float
    note: str = ""  # what was done in that time
    share: str = ""  # of the matmul rate
    memory: str = ""
    compiling: str = ""


def main() -> None:
    """Measures until the time is over, and writes what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table there, too")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", default="", help="a regular expression, found in what is to be measured")
    parser.add_argument("--compilers", type=int, default=max((os.cpu_count() or 2) // 2, 1), help="programs at a time")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    enable_compile_cache()
    size, mesh, begin = SMALL if options.small else WHOLE, build_mesh(1), time.monotonic()
    until = begin + 60 * options.minutes
    wanted = lambda name: re.search(options.only, name) is not None
    steps = [step for step in training_steps(size) if wanted(step.name)]
    tables = {data: random_videos(np.full(2 * size.batch[data], size.steps[data]), size.width, CLASSES[data], mesh)
              for data in {step.data for step in steps}}  # fmt: skip
    programs = [Program(step, size, tables[step.data], mesh) for step in steps]
    compiled = compile_all(programs, options.compilers, begin + (1 - MEASURING) * 60 * options.minutes)

    rates = {dtype: matmul_rate(size.side, dtype) for dtype in DTYPES}
    rows = [
        Row(f"product of two matrices of {size.side:,}", dtype, 2 * size.side**3 / rate, f"{rate / 1e12:.2f} TFLOP/s")
        for dtype, rate in rates.items()
    ]
    others: dict[str, Callable[[], Row]] = {"k-means": lambda: kmeans_row(size), "soft-NMS": suppression_row}
    others |= {f"labelling, {dtype}": lambda d=dtype: labelling_row(d, size, mesh) for dtype in DTYPES}
    others = {name: measure for name, measure in others.items() if wanted(name)}
    measures = others | {p.step.name: lambda p=p: p.measure(*compiled[p.step.name], rates) for p in programs}
    left_out = [name for name in measures if name not in others and name not in compiled]
    for name in [name for name in measures if name not in left_out]:
        if time.monotonic() > until:
            left_out.append(name)
            continue
        print(f"measuring {name} ...", flush=True)
        rows.append(measures[name]())
    text = page(rows, left_out, options.small)
    print("\n" + text)
    if options.out:
        options.out.write_text(text + "\n", "utf-8")


def matmul_rate(side: int, dtype: str) -> float:
    """Floating-point operations per second of square products, chained in one program; the best of some rounds."""
    one = jnp.full((side, side), 1 / side, dtype)
    chained = jax.jit(lambda a: jax.lax.fori_loop(0, PRODUCTS, lambda _, x: x @ one, a))
    return PRODUCTS * 2 * side**3 / min(times(lambda: chained(one)))


def times(function: Callable[[], PyTree], rounds: int = ROUNDS) -> list[float]:
    """Seconds of several calls, after one that is not counted; results are waited for."""
    jax.block_until_ready(function())
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - started)
    return found


# Training


class Step(NamedTuple):
    """One training step that is measured."""

    data: str
    detector: str
    dtype: str

    @property
    def name(self) -> str:
        """As ``--only`` looks for it."""
        return f"{self.data}, {self.detector}, training step, {self.dtype}"


def training_steps(size: Size) -> list[Step]:
    """All of them, first what users ask for first."""
    return [Step(data, detector, dtype) for dtype in DTYPES for detector in DETECTORS for data in size.steps]


def narrowed(settings: Settings, detector: str, dtype: str, size: Size) -> Settings:
    """The configuration with another detector, and as narrow as the size says."""
    if settings.detector.name != detector:
        settings = override(settings, {"detector.name": detector})
    known = {field.name for field in dataclasses.fields(settings.detector.settings)}
    changes = {name: value for name, value in size.narrow.items() if name in known}
    return override(settings, {f"detector.{name}": value for name, value in {**changes, "dtype": dtype}.items()})


class Program:
    """The supervised training step of a detector, as a stage compiles it."""

    def __init__(self, step: Step, size: Size, table: StoredVideos, mesh: Mesh) -> None:
        self.step, self._size, self._mesh = step, size, mesh
        settings = narrowed(read_config(f"{step.data}:apl"), step.detector, step.dtype, size)
        facts = DataFacts(size.width, CLASSES[step.data], size.steps[step.data], 0.5)
        stage = settings.learning.supervised
        self._objective = build_objective(*build_method(plain_method(), settings.detector, stage, facts))
        self._optimizer = build_optimizer(stage.optimizer, self._objective.groups, 1000)
        self._feed = device_feed({LABELLED: table}, {LABELLED: size.batch[step.data]}, {})
        one = build_step(self._objective, self._optimizer, stage.optimizer)
        self._dispatch: Any = build_dispatch(one, self._feed, mesh, size.per_dispatch)
        self._key = jax.jit(lambda: jax.random.key(0), out_shardings=replicated(mesh))()

    def lower(self) -> Any:
        """Without computing anything."""
        state = abstract_state(beginning(self._objective, self._optimizer, 0), self._mesh)
        return self._dispatch.lower(state, self._key, self._feed.arrays)

    def measure(self, lowered: Any, compiled: Any, compiling_s: float, rates: dict[str, float]) -> Row:
        """Its time; the state is donated, so that there is one at a time, as in training."""
        begin = lambda key: initial_state(key, self._objective, self._optimizer)
        state = [jax.jit(begin, out_shardings=replicated(self._mesh))(self._key)]

        def advance() -> PyTree:
            state[0], metrics = compiled(state[0], self._key, self._feed.arrays)
            return metrics

        seconds = min(times(advance)) / self._size.per_dispatch
        flops = counted_cost(lowered).get("flops", 0.0)  # of a loop one turn is counted
        memory = compiled.memory_analysis()
        videos, steps = self._size.batch[self.step.data], self._size.steps[self.step.data]
        return Row(
            f"{self.step.data}, {self.step.detector}, training step",
            self.step.dtype,
            seconds,
            f"{videos} x {steps} x {self._size.width}, {videos / seconds:,.1f} recordings/s",
            f"{flops / seconds / rates[self.step.dtype]:.0%}",
            f"{(memory.temp_size_in_bytes + memory.argument_size_in_bytes) / _GIB:.2f} GiB",
            f"{compiling_s:.0f} s",
        )


def compile_all(programs: list[Program], compilers: int, until: float) -> dict[str, tuple[Any, Any, float]]:
    """By name of its step, each program lowered and compiled, and the seconds of compiling; those that are ready."""

    def compile_one(lowered: Any) -> tuple[Any, Any, float]:
        started = time.perf_counter()
        return lowered, lowered.compile(), time.perf_counter() - started

    pool, running = ThreadPoolExecutor(compilers), dict[str, Future]()
    for program in programs:
        if time.monotonic() < until:
            print(f"compiling {program.step.name} ...", flush=True)
            running[program.step.name] = pool.submit(compile_one, program.lower())
    wait(running.values(), max(until - time.monotonic(), 0))
    pool.shutdown(wait=True, cancel_futures=True)  # what is being compiled is finished: it would disturb the rest
    return {name: future.result() for name, future in running.items() if not future.cancelled()}


def random_videos(lengths: np.ndarray, width: int, classes: int, mesh: Mesh) -> StoredVideos:
    """Recordings of so many rows each, at random, with 15 instances each."""
    draws, count = np.random.default_rng(0), len(lengths)
    start = draws.uniform(0, 0.8, (count, 15)) * lengths[:, None]
    segments_t = np.stack([start, start + draws.uniform(4, 0.2 * lengths.min(), start.shape)], -1).astype(np.float32)
    one = np.ones(start.shape, np.float32)
    targets = Targets(segments_t, draws.integers(0, classes, start.shape, np.int32), one > 0, one, one < 0)  # pyright: ignore
    first, number = np.cumsum(lengths) - lengths, np.arange(count)
    rows = draws.normal(size=(int(lengths.sum()), width)).astype(np.float32)
    columns = place((rows, first.astype(np.int32), lengths.astype(np.int32), number.astype(np.int32), targets),
                    replicated(mesh))  # fmt: skip
    return StoredVideos(*columns, None, int(lengths.max()))


# The pass that labels


def labelling_row(dtype: str, size: Size, mesh: Mesh) -> Row:
    """The pass that labels, without its reading and writing: recordings of THUMOS14's size predicted, suppressed, and
    compared with labelled instances by the discriminator."""
    count, longest = size.labelled
    settings = narrowed(read_config("thumos14:apl"), "actionformer", dtype, size)
    facts = DataFacts(size.width, 20, size.steps["thumos14"], 0.5)
    # The spread of THUMOS14's validation recordings: their mean is about a sixth of the longest.
    lengths = np.maximum(longest * np.exp(np.linspace(0, -4, count)), 64).astype(np.int32)
    table = random_videos(lengths, size.width, 20, mesh)
    few = random_videos(lengths[-20:], size.width, 20, mesh).whole()
    bank = jax.jit(lambda v: build_bank(pool_instances(v), v.targets))(few)
    method, context = build_method(settings.learning.method, settings.detector, settings.learning.self_train, facts)
    params = jax.jit(lambda k: build_objective(method, context).init(k)[0])(jax.random.key(0))
    known = place(jax.device_get(Known(params, bank, class_members(jax.device_get(bank), 20))), replicated(mesh))
    look = predict_and_observe(
        build_detector(settings.detector, facts), build_selection(settings.learning.selection, facts)
    )
    plan = BatchPlan(settings.runtime.prediction_batch, size.steps["thumos14"], settings.data.length_multiple, 1)
    started = time.perf_counter()
    run = lambda: map_resident(look, known, table, lengths, plan, mesh)
    run()
    first = time.perf_counter() - started
    seconds = min(times(run, 2))
    note = f"{count} recordings, {lengths.sum():,} rows; weights at random"
    return Row("labelling pass, with NMS and ICD", dtype, seconds, note, compiling=f"{max(first - seconds, 0):.0f} s")


def kmeans_row(size: Size) -> Row:
    """16 recordings, 64 frames of each, 2 clusters, 10 iterations."""
    points = jax.random.normal(jax.random.key(0), (16, 64, size.width))
    keys, mask = jax.random.split(jax.random.key(1), 16), jnp.ones(64, bool)
    cluster = jax.jit(jax.vmap(lambda k, x: kmeans(k, x, mask, clusters=2, iterations=10)))
    return Row("k-means", "float32", min(times(lambda: cluster(keys, points))), f"16 x 64 x {size.width}")


def suppression_row() -> Row:
    """Soft-NMS by class of 2,000 candidates to 200, of 16 recordings together."""
    draws = np.random.default_rng(0)
    start = draws.uniform(0, 1000, (16, 2000)).astype(np.float32)
    segments = jnp.asarray(np.stack([start, start + draws.uniform(1, 60, start.shape).astype(np.float32)], -1))
    scores = jnp.asarray(draws.uniform(0, 1, start.shape), jnp.float32)
    labels = jnp.asarray(draws.integers(0, 20, start.shape), jnp.int32)
    one = lambda x, s, c: suppress(
        x, s, c, s > 0, method="gaussian", sigma=0.5, iou_threshold=0.1, min_score=1e-3, max_detections=200,
        class_wise=True,
    )  # fmt: skip
    run = jax.jit(jax.vmap(one))
    return Row("soft-NMS", "float32", min(times(lambda: run(segments, scores, labels))), "16 x 2,000 candidates to 200")


def page(rows: list[Row], left_out: list[str], small: bool) -> str:
    """The table, and what it was measured on."""
    head = ["what", "type", "time", "of", "of the matmul rate", "memory", "compiling"]
    lines = [[r.what, r.dtype, readable(r.seconds), r.note, r.share, r.memory, r.compiling] for r in rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))
    notes = [f"*{datetime.date.today()}: {machine()}.*"]
    notes += ["*Small sizes: these numbers say nothing about speed.*"] if small else []
    notes += [f"*Not measured, the time was over: {'; '.join(left_out)}.*"] if left_out else []
    return "\n".join([*notes, "", table])


def readable(seconds: float) -> str:
    """A duration in a fitting unit."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def machine() -> str:
    """Device, driver and versions."""
    device = jax.devices()[0]
    parts = [f"{device.device_kind} ({device.platform})"]
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        parts.append(f"driver {found[0]}")
    except (OSError, subprocess.SubprocessError, IndexError):  # no such GPU here
        pass
    for package in ("jax", "jaxlib", "libtpu", "flax"):
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(parts)


if __name__ == "__main__":
    main()
