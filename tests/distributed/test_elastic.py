"""A run begun on four devices goes on with two, then on one, then streamed: the state is whole on every device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from run_folders import final_state

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.exhaustive  # five processes that compile
STEPS, PORTION = 200, 5
COMMAND = [
    sys.executable, "-m", "apl_jax.cli", "run", "--config=spsw:smoke", "--config.variants=('supervised',)",
    f"--config.learning.supervised.steps={STEPS}", "--config.learning.supervised.labelled_batch=4",
    f"--config.runtime.steps_per_dispatch={PORTION}", f"--config.runtime.log_every={PORTION}",
    "--config.runtime.checkpoint_every=1000", "--config.evaluation.label_space.enabled=False",
    # With Adam's usual epsilon, gradients that are zero but for rounding become steps that rounding decides; and the
    # numbers of a long training at a high rate differ by more than rounding, however it is divided.
    "--config.learning.supervised.optimizer.epsilon=1e-4", "--config.learning.supervised.optimizer.learning_rate=1e-5",
]  # fmt: skip


def start(workdir: Path, devices: int, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}", *flags], cwd=REPOSITORY, text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def steps_done(workdir: Path) -> int:
    curve = workdir / "stages" / "supervised" / "metrics.jsonl"
    lines = curve.read_text().splitlines() if curve.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def stop_within(workdir: Path, devices: int, *flags: str) -> int:
    """Asks the run to stop once it has made some steps; the number of the step whose state it saved."""
    before = steps_done(workdir)
    process, deadline = start(workdir, devices, *flags), time.monotonic() + 300
    while steps_done(workdir) < before + 2 * PORTION:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "state saved" in output, output
    return steps_done(workdir)


def test_fewer_devices_and_another_feed_go_on_with_the_same_numbers(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", 1)
    moved, flags = tmp_path / "moved", ("--config.runtime.feed=stream",)
    stops = [stop_within(moved, 4), stop_within(moved, 2), stop_within(moved, 1, *flags)]
    assert sorted(set(stops)) == stops and stops[-1] < STEPS  # each went on from where the one before had stopped
    last = start(moved, 1)
    for process in (last, whole):
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    one, other = final_state(tmp_path / "whole", "supervised"), final_state(moved, "supervised")
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_allclose(other[name], leaf, atol=1e-5, rtol=1e-5, err_msg=name)
