"""Point 18 of issue 11: two processes, of which one is asked to stop or killed. The other one says so and ends soon,
and the same command, started again, ends in the same bytes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import assert_same_files

REPOSITORY = Path(__file__).parents[2]
COMMAND = [
    sys.executable, "-m", "apl_jax.cli", "run", "--config=spsw:smoke", "--config.runtime.distributed=auto",
    "--config.evaluation.label_space.enabled=False", "--config.learning.pretrain.steps=0",
    "--config.learning.teacher.contrast.weight=0.0", "--config.learning.method.contrast.weight=0.0",
]  # fmt: skip
SUPERVISED = "--config.variants=('supervised',)"
SEMI_SUPERVISED = "--config.variants=('semi_supervised',)"


def start(workdir: Path, *flags: str) -> list[subprocess.Popen]:
    """Two processes of one device each, as Open MPI starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {
        "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_CPU_DEVICES": "1", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [*COMMAND, *flags, f"--workdir={workdir}"], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=os.environ | shared | {"OMPI_COMM_WORLD_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip


def finish(workdir: Path, *flags: str) -> None:
    processes = start(workdir, *flags)
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


def signal_one(workdir: Path, flags: str, rank: int, number: int, when: Callable[[], bool]) -> tuple[list, list, float]:
    """Both processes once the one has been signalled: their codes, what they said, and how long the last one took."""
    processes = start(workdir, flags)
    while not when():
        assert all(process.poll() is None for process in processes), [process.communicate()[0] for process in processes]
        time.sleep(0.01)
    processes[rank].send_signal(number)
    began = time.monotonic()
    said = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], said, time.monotonic() - began


def check_survivor(rank: int, codes: list[int], said: list[str], took_s: float) -> None:
    """Of two processes, ``rank`` was killed."""
    other = 1 - rank
    assert codes[rank] == -signal.SIGKILL and codes[other] == 75, said[other]
    assert took_s < 30
    last = f"process {rank} (of 2, counted from 0) was lost: start all processes again, and the same command goes on"
    assert said[other].splitlines()[-1].startswith(f"apl-jax: {last}"), said[other]
    assert "Traceback" not in said[other] and "stack trace" not in said[other], said[other]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of two processes that nobody interrupted, by its variants."""
    base = tmp_path_factory.mktemp("whole")

    def run(flags: str) -> Path:
        workdir = base / ("semi" if "semi" in flags else "supervised")
        if not (workdir / "results.json").exists():
            finish(workdir, flags)
        return workdir

    return run


def begun(workdir: Path, stage: str, lines: int) -> Callable[[], bool]:
    """Whether a stage has begun, and has written so many lines of its curve."""
    folder = workdir / "stages" / stage
    curve = folder / "metrics.jsonl"
    written = lambda: len(curve.read_text().splitlines()) if curve.exists() else 0
    return lambda: (folder / "started.json").exists() and written() >= lines


def test_point_18_the_survivor_names_the_lost_process_and_ends(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    check_survivor(1, *signal_one(workdir, SUPERVISED, 1, signal.SIGKILL, begun(workdir, "supervised", 0)))


@pytest.mark.exhaustive
def test_one_is_asked_to_stop_and_then_the_first_is_killed(whole: Callable[[str], Path], tmp_path: Path) -> None:
    """Both save the same step and end with 0; after that process 0, with jax's coordination service, is killed."""
    workdir = tmp_path / "run"
    codes, said, took_s = signal_one(workdir, SUPERVISED, 1, signal.SIGINT, begun(workdir, "supervised", 1))
    assert codes == [0, 0] and took_s < 30, said
    steps = [re.findall(r"supervised: stopped at step (\d+) of 40, state saved: the same", words) for words in said]
    assert steps[0] == steps[1] and len(steps[0]) == 1, said
    assert (workdir / "stages" / "supervised" / "checkpoints" / steps[0][0]).is_dir()
    lines = int(steps[0][0]) // 10 + 1
    check_survivor(0, *signal_one(workdir, SUPERVISED, 0, signal.SIGKILL, begun(workdir, "supervised", lines)))
    finish(workdir, SUPERVISED)
    assert_same_files(whole(SUPERVISED), workdir)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("rank", "stage", "lines"), [(1, "teacher", 1), (0, "pseudo_label_1", 0), (1, "pseudo_label_1", 0)]
)
def test_one_is_killed(rank: int, stage: str, lines: int, whole: Callable[[str], Path], tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    killed = signal_one(workdir, SEMI_SUPERVISED, rank, signal.SIGKILL, begun(workdir, stage, lines))
    assert not (workdir / "stages" / stage / "done.json").exists(), f"{stage} was over before the signal was there"
    check_survivor(rank, *killed)
    finish(workdir, SEMI_SUPERVISED)
    assert_same_files(whole(SEMI_SUPERVISED), workdir)


@pytest.mark.exhaustive
def test_asked_to_stop_while_labelling(whole: Callable[[str], Path], tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    codes, said, took_s = signal_one(workdir, SEMI_SUPERVISED, 0, signal.SIGTERM, begun(workdir, "pseudo_label_1", 0))
    assert codes == [0, 0] and took_s < 30, said
    assert all("the same command goes on" in words.splitlines()[-1] for words in said), said
    finish(workdir, SEMI_SUPERVISED)
    assert_same_files(whole(SEMI_SUPERVISED), workdir)


@pytest.mark.exhaustive
def test_both_leave_a_damaged_checkpoint_and_take_the_one_before(tmp_path: Path) -> None:
    """Point 14, with two processes: they take the same decision, and end in the same bytes."""
    workdir, flags = tmp_path / "run", [SUPERVISED, "--config.runtime.checkpoint_every=10"]
    finish(workdir, *flags)
    undamaged = Path(shutil.copytree(workdir, tmp_path / "undamaged"))
    stage = workdir / "stages" / "supervised"
    for name in ("done.json", "model/params.safetensors", "model/model.json"):  # as if killed at the last step
        (stage / name).unlink()
    before, newest = sorted((stage / "checkpoints").iterdir(), key=lambda path: int(path.name))
    arrays = [path for path in (newest / "state").rglob("d/*") if path.is_file()]
    damaged = max(arrays, key=lambda path: path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    processes = start(workdir, *flags)
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    assert f"going on from the checkpoint of step {before.name} instead" in said[0], said[0]
    assert (stage / "damaged_checkpoints" / f"{newest.name}-0").is_dir()
    assert_same_files(undamaged, workdir)
