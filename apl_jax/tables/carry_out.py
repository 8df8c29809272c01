"""Carrying out the runs of tables, one after another or in several processes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from apl_jax.declarations import to_dict
from apl_jax.interruption import stop_if_requested
from apl_jax.runs.forecast import in_words
from apl_jax.runs.plans import generator_of, training_stage
from apl_jax.runs.run import carry_out as carry_out_stage
from apl_jax.runs.run import open_run
from apl_jax.runs.settings import Settings, plain_detector, plain_method, to_settings
from apl_jax.runs.stages import stage_fingerprint
from apl_jax.tables.measures import MEASURES
from apl_jax.tables.plan import Cost, PlannedRun

SHARED = "stages"  # folder of stages that runs have in common, below that of the tables
_TRIAL = "trial"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long training takes here, measured on the detector of one configuration."""

    begin: float  # seconds from the beginning of a stage to its first steps, its program being compiled
    each: float  # seconds for each recording, or crop, that a network sees

    def seconds(self, cost: Cost, jobs: int) -> float:
        """Of all training, in so many processes, which are taken to be as fast side by side as alone."""
        return (cost.stages * self.begin + cost.work * self.each) / jobs

    def words(self, cost: Cost, jobs: int) -> str:
        """What training costs, in a sentence."""
        measured = f"{1000 * self.each:.0f} ms a recording and {self.begin:.0f} s to begin a stage, measured now"
        more = f", if {jobs} runs side by side are as fast as one alone" if jobs > 1 else ""
        return f"training: {in_words(self.seconds(cost, jobs)).removesuffix(' left')} ({measured}){more}"


def measure_speed(settings: Settings) -> Speed:
    """Trains the plain detector for some steps, in a folder that is removed: without, then with, a compiled program,
    then for three times as many steps."""
    with tempfile.TemporaryDirectory(prefix="apl_jax_trial_") as folder:
        context = open_run(settings, Path(folder))
        detector = generator_of(settings, context.facts) or plain_detector(settings.detector)
        few = settings.runtime.steps_per_dispatch
        seconds = []
        for place, steps in enumerate((few, few, 3 * few)):
            part = dataclasses.replace(settings.learning.supervised, steps=steps)
            stage = training_stage(settings, f"{_TRIAL}_{place}", plain_method(), part, detector=detector)
            mark = stage_fingerprint(stage, context.digest, {})
            seconds.append(carry_out_stage(stage, mark, context, _TRIAL)["seconds"])
    seen = 2 * few * settings.learning.supervised.labelled_batch
    return Speed(seconds[1], max(seconds[2] - seconds[1], 0.0) / seen)


def carry_out(runs: Sequence[tuple[PlannedRun, str]], workdir: Path, jobs: int = 1) -> None:
    """All runs that are not done. With several ``jobs``, each is a process of its own; they end with this one.

    Stages with the same fingerprint are done once. After any interruption, the same call goes on.
    """
    waiting = [(run, measure) for run, measure in runs if not (run.folder / MEASURES[measure].done).exists()]
    if jobs == 1:
        for place, (run, measure) in enumerate(waiting):
            stop_if_requested(f"before run {place + 1} of {len(waiting)}")
            log.info("\n== run %d of %d: %s", place + 1, len(waiting), run.command)
            MEASURES[measure].carry_out(run.settings, run.folder, workdir / SHARED)
        return
    with concurrent.futures.ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        asked = {
            pool.submit(_in_process, to_dict(run.settings), measure, str(run.folder), str(workdir / SHARED)): run
            for run, measure in waiting
        }
        try:
            for place, done in enumerate(concurrent.futures.as_completed(asked)):
                done.result()
                log.info("== run %d of %d done: %s", place + 1, len(asked), asked[done].command)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_process(settings: dict, measure: str, folder: str, shared: str) -> None:
    MEASURES[measure].carry_out(to_settings(settings), Path(folder), Path(shared))


def _end_with_parent() -> None:
    """A worker ends when its parent does, however that one ends: it would train on for nobody, and keep folders
    locked."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
