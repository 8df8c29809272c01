"""How many videos per second a stream brings from files, and how much memory that takes.

    apl-jax synthesize --config=activitynet:synthetic --config.data.root=ANNOTATIONS --out=FOLDER
    python benchmarks/streaming.py FOLDER

Opens the folder as the configuration activitynet:synthetic does, keeps nothing in memory, and draws random batches of
32 videos for as many steps as the training videos last twice; then a pass over the test videos, as evaluation makes it.
The first reading checks every file and leaves them in the system's cache.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import jax
import numpy as np

from apl_jax.data.dataset import open_dataset
from apl_jax.declarations import override
from apl_jax.devices import build_mesh, replicated
from apl_jax.feeds.passes import BatchPlan, map_streamed
from apl_jax.feeds.streamed import stream_feed
from apl_jax.runs.settings import read_config

BATCH = 32
REPORTS = 4


def resident_mib() -> float:
    """Memory of this process's own, MiB: without the files' pages that the system keeps."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def main(folder: Path) -> None:
    changes = {"data.root": str(folder), "data.synthetic.enabled": False}
    settings = override(read_config("activitynet:synthetic"), changes)
    started = time.perf_counter()
    dataset = open_dataset(settings.data, hold_bytes=0)
    videos = len(dataset.all_training.ids) + len(dataset.evaluation.ids)
    print(f"opened (every file read and checked, statistics): {videos} videos, {time.perf_counter() - started:.1f} s")
    mesh, runtime = build_mesh(), dataclasses.replace(settings.runtime, portion_mib=64.0)
    key = jax.jit(lambda: jax.random.key(0), out_shardings=replicated(mesh))()
    table = dataset.all_training
    steps = 2 * len(table.ids) // BATCH // runtime.steps_per_dispatch * runtime.steps_per_dispatch
    longest = settings.data.max_length_t
    feed = stream_feed({"unlabelled": table}, {"unlabelled": BATCH}, {}, key, steps, longest, runtime, mesh, {})
    portion = feed.most_steps or 1
    feed.inputs(0, portion)
    started, first = time.perf_counter(), portion
    for step in range(first, steps, portion):
        jax.block_until_ready(feed.inputs(step, min(portion, steps - step)))
        if (step // portion) % max(steps // portion // REPORTS, 1) == 0:
            rate = (step + portion - first) * BATCH / (time.perf_counter() - started)
            print(f"training, after {step * BATCH} videos: {rate:,.0f} videos/s, {resident_mib():,.0f} MiB")
    shape = BatchPlan(BATCH, longest, settings.data.length_multiple, runtime.read_threads)
    function = lambda _, batch: batch.features.sum((1, 2))
    map_streamed(function, {}, dataset.evaluation.take(range(2 * BATCH)), shape, mesh)  # compiles
    started = time.perf_counter()
    total = map_streamed(function, {}, dataset.evaluation, shape, mesh)
    rate = len(total) / (time.perf_counter() - started)
    print(f"evaluation: {rate:,.0f} videos/s, {resident_mib():,.0f} MiB, checksum {np.sum(total):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
