"""Law 7: killed at any moment, the same command ends in the same final state, bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures import rarely
from run_folders import assert_same_state

COMMAND = [sys.executable, "-m", "apl_jax.cli", "run", "--config=spsw:smoke"]
REPOSITORY = Path(__file__).parents[2]


def start(workdir: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}", *flags],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(workdir: Path, *flags: str) -> str:
    process = start(workdir, *flags)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


# Moments in the life of a run: this many lines of this stage's curve (0: its folder has just been made).
MOMENTS = [("pretrain", 3), ("pseudo_label_1", 0), ("self_train_1", 2)]


@pytest.mark.parametrize("moments", rarely([MOMENTS[2:], MOMENTS], [MOMENTS[2:]].__contains__), ids=len)
def test_killed_and_still_the_same(moments: list[tuple[str, int]], small_run: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    only = "--config.variants=('semi_supervised',)", "--config.evaluation.label_space.enabled=False"
    for stage, lines in moments:
        process = start(workdir, *only)
        curve = workdir / "stages" / stage / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            written = len(curve.read_text().splitlines()) if curve.exists() else 0
            if curve.parent.exists() and written >= lines:
                break
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (workdir / "stages" / stage / "done.json").exists(), f"{stage} was over before it was killed"
    finish(workdir, *only)
    for stage in ("pretrain", "teacher", "self_train_1"):
        assert_same_state(small_run, workdir, stage)
        curves = [(folder / "stages" / stage / "metrics.jsonl").read_text() for folder in (small_run, workdir)]
        assert curves[0] == curves[1]
    results = [json.loads((folder / "results.json").read_text()) for folder in (small_run, workdir)]
    for name in ("teacher", "self_train_1"):
        assert results[0]["variants"][name]["map"] == results[1]["variants"][name]["map"]


@pytest.mark.parametrize("number", rarely([signal.SIGTERM, signal.SIGINT], (signal.SIGTERM,).__contains__))
def test_asked_to_stop_it_saves_and_goes_on(number: signal.Signals, small_run: Path, tmp_path: Path) -> None:
    """Point 17 of issue 11: training stops at the end of a portion, with everything saved."""
    only = "--config.variants=('supervised',)", "--config.runtime.progress=False"
    for attempt in range(5):  # on a busy machine the stage may be over before the signal is there
        workdir = tmp_path / f"run_{attempt}"
        process = start(workdir, *only)
        curve = workdir / "stages" / "supervised" / "metrics.jsonl"
        while not (curve.exists() and curve.read_text()):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        process.send_signal(number)
        began = time.monotonic()
        said = process.communicate(timeout=60)[0]
        if not (workdir / "stages" / "supervised" / "done.json").exists():
            break
    assert process.returncode == 0 and time.monotonic() - began < 30, said
    found = re.search(
        r"^apl-jax: supervised: stopped at step (\d+) of \d+, state saved: the same command goes on$", said, re.M
    )
    assert found and said.endswith(found[0] + "\n")
    assert (workdir / "stages" / "supervised" / "checkpoints" / found[1]).is_dir()
    finish(workdir, *only)
    assert_same_state(small_run, workdir, "supervised")


def test_interrupted_while_it_is_imported(tmp_path: Path) -> None:
    """One line, and no traceback of an exception in the middle of an import."""
    slow = tmp_path / "absl.py"  # dispatch imports it before the run begins
    slow.write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    for number, code, words in ((signal.SIGINT, 130, "apl-jax: interrupted.\n"), (signal.SIGTERM, -15, "")):
        process = subprocess.Popen(
            [*COMMAND, f"--workdir={tmp_path / 'run'}"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        assert process.stdout and process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", words)
        assert process.returncode == code


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    first = start(workdir, "--config.variants=('supervised',)")
    while not (workdir / "settings.json").exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    second = start(workdir, "--config.variants=('supervised',)")
    output = second.communicate(timeout=120)[0]
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert "another run is at work" in output and "Traceback" not in output


@pytest.mark.exhaustive
def test_full_disk_is_one_message_and_nothing_is_lost(small_run: Path, tmp_path: Path) -> None:
    """Files are limited to 40 KB, less than a checkpoint; without the limit the same command then finishes."""
    workdir = tmp_path / "run"
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "limited", *COMMAND]
    broken = subprocess.run(
        [*limited, f"--workdir={workdir}", "--config.variants=('supervised',)"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
    )  # fmt: skip
    assert broken.returncode == 1, broken.stderr
    assert "could not write" in broken.stderr or "could not save" in broken.stderr
    assert "Traceback" not in broken.stderr
    finish(workdir, "--config.variants=('supervised',)")
    assert_same_state(small_run, workdir, "supervised")


def test_checkpoint_of_another_shape_is_refused_by_name(small_run: Path, tmp_path: Path) -> None:
    """Weights put where a model of another width expects its own."""
    from fixtures import smoke_settings

    from apl_jax.detectors import without_decoding
    from apl_jax.learning.method import build_objective
    from apl_jax.runs.run import open_run
    from apl_jax.runs.settings import plain_method
    from apl_jax.runs.training_stage import abstract_state, beginning, build_method
    from apl_jax.training.checkpoint import CheckpointError, Checkpoints
    from apl_jax.training.optimizer import build_optimizer

    shutil.copytree(small_run / "stages" / "supervised" / "checkpoints", tmp_path / "checkpoints")
    settings = smoke_settings(**{"detector.width": 8})
    context, stage = open_run(settings, tmp_path), settings.learning.supervised
    method = build_method(plain_method(), without_decoding(settings.detector), stage, context.facts)
    objective = build_objective(*method)
    optimizer = build_optimizer(stage.optimizer, objective.groups, stage.steps)
    like = abstract_state(beginning(objective, optimizer, 0), context.mesh)
    store = Checkpoints(tmp_path / "checkpoints", 1)
    with pytest.raises(
        CheckpointError, match=r"params/detector/backbone/branch_0/attention/key/bias: found \(16,\), expected \(8,\)"
    ):
        store.restore(like)
    store.close()
