"""Law 4, second half: two processes give what one gives. Real processes, joined by jax.distributed over gloo."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures import rarely, smoke_settings
from streams import gathered

from apl_jax.runs.run import run

REPOSITORY = Path(__file__).parents[2]
CHILD = """
import sys
sys.path.insert(0, {tests!r})
import jax
jax.distributed.initialize({address!r}, num_processes=2, process_id={rank})
from pathlib import Path
from fixtures import smoke_settings
from apl_jax.runs.run import run
run(smoke_settings({overrides!r}), Path({workdir!r}))
jax.distributed.shutdown()
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("cases", rarely([("apl",), ("contrast", "nontarget")], [("apl",)].__contains__), ids="-".join)
def test_two_processes_train_what_one_does(cases: tuple[str, ...], tmp_path: Path) -> None:
    """Six steps of self-training, and of pre-training, on two devices of each of two processes end in the parameters of
    one device."""
    program = REPOSITORY / "tests" / "laws" / "test_devices.py"
    address = f"127.0.0.1:{free_port()}"
    path = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    cases = tuple(f"{kind}-actionformer" for kind in cases)
    runs = {"one": (1, []), **{f"rank{r}": (2, [address, "2", str(r)]) for r in range(2)}}
    for name in runs:
        (tmp_path / name).mkdir()
    children = [
        subprocess.Popen(
            [sys.executable, str(program), str(tmp_path / name), ",".join(cases), *extra],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": path},
        )
        for name, (devices, extra) in runs.items()
    ]  # fmt: skip
    outputs = [child.communicate(timeout=600)[0] for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(outputs)
    for case in cases:
        found = {name: np.load(tmp_path / name / f"{case}.npz", allow_pickle=False) for name in runs}
        assert [int(found[name]["devices"]) for name in runs] == [1, 4, 4]
        parameters = [name for name in found["one"].files if "params" in name]
        assert len(parameters) > 20
        for name in parameters:
            for rank in ("rank0", "rank1"):
                np.testing.assert_allclose(found[rank][name], found["one"][name], atol=1e-5, rtol=1e-5, err_msg=name)


def run_in_two_processes(workdir: Path, overrides: dict[str, object]) -> dict:
    """The results of a smoke run that two processes carry out together."""
    address = f"127.0.0.1:{free_port()}"
    script = lambda rank: CHILD.format(
        tests=str(REPOSITORY / "tests"), address=address, rank=rank, workdir=str(workdir), overrides=overrides
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script(rank)], cwd=REPOSITORY, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [child.communicate(timeout=600)[0] for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(outputs)
    results = json.loads((workdir / "results.json").read_text())
    assert results["devices"].startswith("2 x")
    return results


@pytest.mark.exhaustive
def test_two_processes_carry_out_one_run_and_one_process_goes_on_with_it(tmp_path: Path) -> None:
    """Every stage, its labels and its files. That batches and steps are those of one process is shown above and below;
    what takes long to compile and is tested elsewhere is left out here."""
    overrides = {
        "variants": ("semi_supervised",), "evaluation.label_space.enabled": False, "learning.pretrain.steps": 0,
        "learning.teacher.contrast.weight": 0.0, "learning.method.contrast.weight": 0.0,
    }  # fmt: skip
    results = run_in_two_processes(tmp_path, overrides)
    counts = results["pseudo_labels"]["pseudo_label_1"]["counts"]
    assert counts["kept"] > 0
    labels = json.loads((tmp_path / "stages" / "pseudo_label_1" / "pseudo_labels.json").read_text())["database"]
    kept = [row for video in labels.values() for row in video["annotations"] if row["reason"] == "kept"]
    assert len(labels) == 138 and len(kept) == counts["kept"]

    # One process goes on with it: it labels and evaluates again what two had, with the same teacher, and nothing else.
    again = ("pseudo_label_1", "teacher_evaluation")
    for stage in again:
        shutil.rmtree(tmp_path / "stages" / stage)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/done.json")}
    assert len(before) == 4  # teacher, quality of the labels, self_train_1 and its evaluation
    alone = run(smoke_settings(overrides), tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert alone["devices"].startswith("1 x")
    assert alone["variants"]["self_train_1"] == results["variants"]["self_train_1"]
    teachers = [r["variants"]["teacher"]["average_map"] for r in (alone, results)]
    assert teachers[0] == pytest.approx(teachers[1], abs=1e-3)
    relabelled = alone["pseudo_labels"]["pseudo_label_1"]
    assert relabelled["tau_pos"] == pytest.approx(results["pseudo_labels"]["pseudo_label_1"]["tau_pos"], rel=1e-4)
    for reason, count in counts.items():  # a score at a threshold may fall on its other side by rounding
        assert relabelled["counts"][reason] == pytest.approx(count, rel=2e-3, abs=2)


STREAMING = """
import sys
sys.path.insert(0, {tests!r})
import jax
jax.distributed.initialize({address!r}, num_processes=2, process_id={rank})
import numpy as np
from streams import gathered
np.savez({out!r}, **gathered())
jax.distributed.shutdown()
"""


def test_two_processes_stream_what_one_does(tmp_path: Path) -> None:
    """Each process reads the videos of its own devices; together, batches and passes are those of one process."""
    address = f"127.0.0.1:{free_port()}"
    children = []
    for rank in range(2):
        script = STREAMING.format(
            tests=str(REPOSITORY / "tests"), address=address, rank=rank, out=str(tmp_path / f"{rank}.npz")
        )
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", script], cwd=REPOSITORY, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            )
        )  # fmt: skip
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(outputs)
    expected = gathered()
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npz", allow_pickle=False)
        assert set(found.files) == set(expected)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
