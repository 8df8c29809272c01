"""Sixty signals at random moments, from the first import to the report: the run goes on, and ends in the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from run_folders import assert_same_files

REPOSITORY = Path(__file__).parents[2]
COMMAND = [
    sys.executable, "-m", "apl_jax.cli", "run", "--config=spsw:smoke", "--config.variants=('semi_supervised',)",
    *(f"--config.learning.{stage}.steps=20" for stage in ("pretrain", "self_train", "supervised")),
    "--config.runtime.steps_per_dispatch=5", "--config.runtime.log_every=5", "--config.runtime.checkpoint_every=10",
]  # fmt: skip
SIGNALS, SEED = 60, 17
KINDS = (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGKILL)
# Exit codes; negative: ended by the signal itself, for Python takes its handlers away when all else is done.
ENDS = {0, 130, 143, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL}


def start(workdir: Path, log: Path) -> subprocess.Popen:
    """The run in a process; its programs are compiled once for all of them."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with log.open("w") as file:
        return subprocess.Popen(
            [*COMMAND, f"--workdir={workdir}"], cwd=REPOSITORY, env=os.environ | cache, stdout=file, stderr=file
        )


def stages_done(workdir: Path) -> int:
    return len(list(workdir.glob("stages/*/done.json")))


def interrupt(process: subprocess.Popen, workdir: Path, draws: random.Random) -> int:
    """Signals a process at random moments of a stage until it ends; returns the number of signals."""
    goal = stages_done(workdir) + draws.choice((0, 0, 1))
    while stages_done(workdir) < goal and process.poll() is None:
        time.sleep(0.02)
    time.sleep(draws.uniform(0.5, 3.5))  # Python itself starts in less than half a second
    sent = 0
    while process.poll() is None:
        process.send_signal(draws.choice(KINDS))
        sent += 1
        try:
            process.wait(draws.uniform(0.0, 1.0))
        except subprocess.TimeoutExpired:
            continue
    return sent


def test_sixty_signals_and_the_same_bytes(tmp_path: Path) -> None:
    draws, log = random.Random(SEED), tmp_path / "log"
    assert start(tmp_path / "whole", log).wait(timeout=300) == 0, log.read_text()
    sent = number = 0
    while sent < SIGNALS:
        number += 1
        workdir = tmp_path / f"broken_{number}"
        while sent < SIGNALS and not (workdir / "report.html").exists():
            process = start(workdir, log)
            sent += interrupt(process, workdir, draws)
            said = log.read_text()
            assert process.returncode in ENDS, said
            assert "Traceback" not in said and "stack trace" not in said, said
        assert start(workdir, log).wait(timeout=300) == 0, log.read_text()
        assert_same_files(tmp_path / "whole", workdir)
