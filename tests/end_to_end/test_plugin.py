"""The example of a plug-in: whoever loads it, a command, a notebook or a script, gets the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import apl_jax as apl

REPOSITORY = Path(__file__).parents[2]
PLUGIN, CONFIG = (REPOSITORY / "examples" / name for name in ("plugin.py", "plugin_config.py"))
FEW: dict[str, Any] = {
    "variants": ("semi_supervised",), "runtime.progress": False, "runtime.steps_per_dispatch": 4,
    "learning.pretrain.unlabelled_batch": 2,
    **{f"learning.{stage}.steps": 8 for stage in ("pretrain", "supervised", "self_train")},
}  # fmt: skip
# What differs between two runs of the same.
OWN = {"command", "seconds"}


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "apl_jax.cli", *arguments], cwd=folder, capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip


def numbers(value: Any) -> Any:
    """JSON without times and command lines."""
    if isinstance(value, dict):
        return {name: numbers(entry) for name, entry in value.items() if name not in OWN}
    return value


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by command, away from the repository."""
    folder = tmp_path_factory.mktemp("plugin")
    overrides = [f"--config.{path}={value}" for path, value in FEW.items()]
    result = command("run", f"--plugin={PLUGIN}", f"--config={CONFIG}", "--workdir=run", *overrides, folder=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "detector  conv, method steady, selection surest_share" in result.stderr
    return folder / "run"


def test_a_plugin_fits_on_three_pages() -> None:
    assert len(PLUGIN.read_text("utf-8").splitlines()) <= 150


@pytest.mark.exhaustive  # trains once more what the command has trained
def test_command_and_python_give_the_same_numbers(commanded: Path, tmp_path: Path) -> None:
    apl.load_plugin(str(PLUGIN))
    run = apl.train(str(CONFIG), workdir=tmp_path / "run", overrides=FEW)
    results = json.loads((commanded / "results.json").read_text("utf-8"))
    assert numbers(run.results) == numbers(results)
    assert list(run.results["pseudo_labels"]) == ["pseudo_label_1", "pseudo_label_2"]
    assert list(run.results["variants"]) == ["teacher", "self_train_1", "self_train_2"]
    for stage in ("pretrain", "teacher", "self_train_2"):
        models = [folder / "stages" / stage / "model" / "params.safetensors" for folder in (run.workdir, commanded)]
        assert models[0].read_bytes() == models[1].read_bytes(), stage
    labels = [folder / "stages" / "pseudo_label_2" / "pseudo_labels.json" for folder in (run.workdir, commanded)]
    assert labels[0].read_bytes() == labels[1].read_bytes()


def test_the_second_round_goes_on_from_the_state_of_the_first(commanded: Path) -> None:
    """The rule of the plug-in mixes its threshold with that of the round before, in equal parts."""
    first, second = (commanded / "stages" / f"pseudo_label_{number}" for number in (1, 2))
    tau = [float(*load_file(folder / "selection_state.safetensors").values()) for folder in (first, second)]
    database = json.loads((second / "pseudo_labels.json").read_text("utf-8"))["database"]
    considered = [
        row["confidence"] for v in database.values() for kind in ("annotations", "ignored") for row in v[kind]
    ]
    fresh = np.quantile(considered, 1 - 0.2)
    assert abs(tau[1] - (tau[0] + fresh) / 2) < 1e-3 < abs(fresh - tau[0]) / 2


def test_everything_works_on_its_run(commanded: Path, tmp_path: Path) -> None:
    """Prediction, export and a page, each in a process that must be told of the plug-in, or need not be."""
    walk, folder = np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32), tmp_path
    np.save(folder / "walk.npy", walk)
    predict = (
        "predict",
        f"--workdir={commanded}",
        "--features=walk.npy",
        "--fps=100",
        "--min_score=0",
        "--out=found.json",
    )
    told = command(*predict, f"--plugin={PLUGIN}", folder=folder)
    assert told.returncode == 0, told.stderr
    rows = json.loads((folder / "found.json").read_text("utf-8"))["results"]["walk"]
    apl.load_plugin(str(PLUGIN))
    found = apl.load_model(commanded).predict(walk, fps=100)
    assert [(row["label"], *row["segment"], row["score"]) for row in rows] == [tuple(d) for d in found] != []

    untold = command(*predict, folder=folder)
    assert untold.returncode == 1 and "Traceback" not in untold.stderr
    assert "'conv', no such detector" in untold.stderr and "plug-in" in untold.stderr

    exported = command("export", f"--workdir={commanded}", f"--plugin={PLUGIN}", "--out=export", folder=folder)
    assert exported.returncode == 0, exported.stderr
    page = command("report", f"--workdir={commanded}", folder=folder)
    assert page.returncode == 0, page.stderr


@pytest.mark.parametrize(
    ("plugin", "content", "words"),
    [
        ("nowhere.py", None, ["--plugin", "found no file 'nowhere.py'"]),
        ("no_such_module", None, ["--plugin", "could not import 'no_such_module'"]),
        ("broken.py", "import (", ["--plugin", "could not import", "broken.py", "line 1"]),
        (
            "taken.py", "import apl_jax as apl\nsettings = apl.detectors.actionformer.ActionFormerSettings\n"
            "apl.register_detector('actionformer', settings, lambda s, f: None)\n",
            ["actionformer", "of this name already"],
        ),
        (
            "settings.py", "import apl_jax as apl\napl.register_method('mine', dict, lambda s, c: None)\n",
            ["mine", "frozen dataclass"],
        ),
    ],
    ids=["no file", "no module", "no Python", "name taken", "no settings"],
)  # fmt: skip
def test_plugins_that_cannot_be_loaded(plugin: str, content: str | None, words: list[str], tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / plugin).write_text(content)
    result = command("run", f"--plugin={plugin}", "--config=spsw:smoke", "--workdir=run", folder=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
    assert not (tmp_path / "run").exists()
