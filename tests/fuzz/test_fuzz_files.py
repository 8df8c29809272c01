"""Damaged and absurd files of every kind, given to every command that reads them: no traceback, no hang."""

from __future__ import annotations

import random
from pathlib import Path

import fake_runs
import pytest
from fuzzing import MOST_MEMORY_MIB, TEXTS, World, carried_out, changed, faults, largest_mib, make_world

from apl_jax.declarations import flat, to_dict
from apl_jax.runs.settings import Settings

pytestmark = pytest.mark.filterwarnings("default")

CASES = {"inspect": 4, "predict": 10}  # of each kind that this command reads, in `make test`; else
OTHERS = 30
MORE = 500

EVALUATE = ("evaluate", "--annotations={annotations}", "--predictions={predictions}")
THRESHOLDS = ("thresholds", "--workdir={model}", "--annotations={annotations}", "--predictions={predictions}")
PREDICT = ("predict", "--workdir={model}", "--fps=30")
IMPORT = ("import-actionformer", "--workdir={out}/new", "--config=thumos14")
INSPECT = ("inspect", "--config.runtime.progress=False", "--config.data.root={root}", "--config.data.stride=3",
           "--config.data.window=4", "--config.data.label_ratio=0.5", "--workdir={out}")  # fmt: skip


# What is changed, and the commands that read it.
KINDS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "annotations": ("annotations.json", (EVALUATE, (*THRESHOLDS, "--out={out}/t.json"))),
    "predictions": ("predictions.json", (EVALUATE, (*THRESHOLDS, "--out={out}/t.json"))),
    "predictions in a table": ("predictions.csv", ((*EVALUATE[:2], "--predictions={table}"),)),
    "class scores": ("scores.json", ((*EVALUATE, "--external_scores={scores}"),)),
    "data folder": ("annotations.json", (INSPECT,)),
    "split": ("split.json", ((*INSPECT, "--config.data.split_file={split}"),)),
    "features of a data folder": ("features/video_1.npy", (INSPECT,)),
    "features.json": ("features.json", (INSPECT,)),
    "features .npy": ("layouts/a.npy", ((*PREDICT, "--features={root}/layouts/a.npy"),)),
    "features .npz": ("layouts/b.npz", ((*PREDICT, "--features={root}/layouts/b.npz"),)),
    "features .csv": ("layouts/c.csv", ((*PREDICT, "--features={root}/layouts/c.csv"),)),
    "features .h5": ("layouts/d.h5", ((*PREDICT, "--features={root}/layouts/d.h5"),)),
    "thresholds": ("thresholds.json", ((*PREDICT, "--features={root}/features", "--thresholds={thresholds}"),)),
    "model.json": ("run/model/model.json", ((*THRESHOLDS, "--out={out}/t.json"),)),
    "parameters": ("run/model/params.safetensors", ((*PREDICT, "--features={root}/features"),)),
    "checkpoint .pth": ("checkpoint.pth", ((*IMPORT, "--checkpoint={root}/checkpoint.pth"),)),
    "checkpoint .safetensors": ("checkpoint.safetensors", ((*IMPORT, "--checkpoint={root}/checkpoint.safetensors"),)),
    "checkpoint .npz": ("checkpoint.npz", ((*IMPORT, "--checkpoint={root}/checkpoint.npz"),)),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where faults of the program are logged."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state" / "apl_jax" / "apl-jax.log"


def fuzz(kind: str, world: World, out: Path, log: Path, cases: range) -> list[str]:
    """What went wrong with changes of a file."""
    name, commands = KINDS[kind]
    found = []
    for seed in cases:
        draws = random.Random(f"{kind} {seed}")
        command = draws.choice(commands)
        arguments = [argument.format(out=out, **world._asdict()) for argument in command]
        if "--workdir=" + str(world.model) in arguments:
            log = world.model / "apl-jax.log"
        with changed(world.root / name, draws):
            found += faults(arguments, log)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_changed_is_valid_before(kind: str, world: World, tmp_path: Path, state: Path) -> None:
    for command in KINDS[kind][1]:
        found = carried_out([argument.format(out=tmp_path, **world._asdict()) for argument in command])
        # The weights are those of no network that could be imported: the file is read, and then refused for that.
        assert found.code == (1 if kind.startswith("checkpoint") else 0), found.err + found.out
        assert "unreadable" not in found.err


@pytest.mark.parametrize("kind", KINDS)
def test_point_21_a_changed_file_is_read_or_refused(kind: str, world: World, tmp_path: Path, state: Path) -> None:
    cases, before = CASES.get(KINDS[kind][1][0][0], OTHERS), largest_mib()
    assert fuzz(kind, world, tmp_path, state, range(cases)) == []
    assert largest_mib() - before < MOST_MEMORY_MIB


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_many_changed_files_are_read_or_refused(kind: str, world: World, tmp_path: Path, state: Path) -> None:
    before = largest_mib()
    assert fuzz(kind, world, tmp_path, state, range(OTHERS, MORE)) == []
    assert largest_mib() - before < MOST_MEMORY_MIB


@pytest.mark.parametrize("texts_each", [1, pytest.param(len(TEXTS), marks=pytest.mark.exhaustive)])
def test_settings_that_are_text(world: World, tmp_path: Path, state: Path, texts_each: int) -> None:
    """Paths and names of subsets with absurd values."""
    draws = random.Random(0)
    texts = [path for path, value in flat(to_dict(Settings())).items() if value == "" or path.endswith("_subset")]
    assert {"data.root", "data.split_file", "data.exclude", "evaluation.external_scores"} <= set(texts)
    base = [argument.format(out=tmp_path, **world._asdict()) for argument in INSPECT]
    values = [(path, text) for path in texts for text in draws.sample(TEXTS, texts_each)]
    assert [words for path, text in values for words in faults([*base, f"--config.{path}={text}"], state)] == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_runs.make_run(tmp_path_factory.mktemp("run"), ["a", "b"], 60.0, 5.0, videos=3)


def fuzz_run(run: Path, arguments: list[str], cases: range) -> list[str]:
    """What went wrong with changes of any file of a run."""
    found = []
    files = sorted(path for path in run.rglob("*") if path.suffix in (".json", ".jsonl"))
    for seed in cases:
        draws = random.Random(seed)
        with changed(draws.choice(files), draws):
            found += faults(arguments, run / "apl-jax.log")
    return found


def test_a_changed_run_is_compared_or_refused(run: Path, state: Path) -> None:
    assert fuzz_run(run, ["compare", str(run)], range(OTHERS)) == []


@pytest.mark.exhaustive
def test_a_changed_run_is_reported_or_refused(run: Path, state: Path) -> None:
    assert fuzz_run(run, ["report", f"--workdir={run}"], range(OTHERS)) == []
