"""Bad input is refused: one message that names the place, a non-zero exit code, and no damaged run folder."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzzing import carried_out

from apl_jax.data.features.sources import embedded_root


def command(*arguments: str) -> subprocess.CompletedProcess:
    """A command, in this process: to start another takes longer than to refuse."""
    found = carried_out(list(arguments))
    return subprocess.CompletedProcess(arguments, found.code, found.out, found.err)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small data folder: ten of the embedded recordings."""
    root = tmp_path / "data"
    root.mkdir()
    document = json.loads((embedded_root() / "annotations.json").read_text())
    training = [v for v, e in document["database"].items() if e["subset"] == "training"][:8]
    test = [v for v, e in document["database"].items() if e["subset"] == "test"][:2]
    document["database"] = {v: document["database"][v] for v in training + test}
    (root / "annotations.json").write_text(json.dumps(document))
    with np.load(next(embedded_root().glob("signals_*.npz"))) as signals:
        np.savez(root / "signals_100hz.npz", **{v: signals[v] for v in document["database"]})
    return root


def edit_annotations(root: Path, change: Callable[[dict], None]) -> None:
    document = json.loads((root / "annotations.json").read_text())
    change(document["database"])
    (root / "annotations.json").write_text(json.dumps(document))


def edit_signals(root: Path, change: Callable[[dict], None]) -> None:
    path = root / "signals_100hz.npz"
    with np.load(path) as archive:
        signals = {name: archive[name] for name in archive.files}
    change(signals)
    np.savez(path, **signals)


def first_video(root: Path) -> str:
    return next(iter(json.loads((root / "annotations.json").read_text())["database"]))


def spoil_nan(root: Path) -> list[str]:
    video = first_video(root)
    edit_signals(root, lambda s: s[video].__setitem__((7, 2), np.nan))
    return [video, "row 7", "channel 2", "finite"]


def spoil_missing(root: Path) -> list[str]:
    video = first_video(root)
    edit_signals(root, lambda s: s.pop(video))
    return [video, "no features"]


def spoil_truncated(root: Path) -> list[str]:
    path = root / "signals_100hz.npz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return ["signals_100hz.npz", "unreadable"]


def spoil_member(root: Path) -> list[str]:
    video, path = first_video(root), root / "signals_100hz.npz"
    with np.load(path) as archive:
        signals = {name: archive[name] for name in archive.files}
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in signals.items():
            buffer = io.BytesIO()
            np.save(buffer, values)
            content = buffer.getvalue()
            archive.writestr(f"{name}.npy", content[: len(content) // 2] if name == video else content)
    return [video, "unreadable"]


def spoil_outside(root: Path) -> list[str]:
    video = first_video(root)
    edit_annotations(root, lambda d: d[video]["annotations"][0].__setitem__("segment", [3.0, 900.0]))
    return [video, "annotations[0].segment", "900"]


def spoil_short(root: Path) -> list[str]:
    video = first_video(root)
    edit_signals(root, lambda s: s.__setitem__(video, s[video][:12]))
    return [video, "12"]


def spoil_empty(root: Path) -> list[str]:
    (root / "annotations.json").write_text('{"database": {}}')
    return ["annotations.json", "no video"]


def spoil_uncovered(root: Path) -> list[str]:
    def rare(database: dict) -> None:
        for i, entry in enumerate(database.values()):
            entry["annotations"] = [a for a in entry["annotations"] if a["label_id"] == i % 4]

    edit_annotations(root, rare)
    return ["label_ratio", "uncovered", "sitting_down"]


SPOILED = [
    spoil_nan, spoil_missing, spoil_truncated, spoil_member, spoil_outside, spoil_short, spoil_empty, spoil_uncovered,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda f: f.__name__.removeprefix("spoil_"))
def test_spoiled_data_is_one_clear_message(spoil: Callable[[Path], list[str]], data: Path, tmp_path: Path) -> None:
    expected = spoil(data)
    result = command("run", "--config=spsw:smoke", f"--workdir={tmp_path / 'run'}", f"--config.data.root={data}")
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    for words in expected:
        assert words.lower() in result.stderr.lower(), f"{words!r} not in: {result.stderr}"
    assert len(result.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["run", "--config=spsw:smoke", "--workdir=x", "--config.learning.slection.fixed.threshold=0.5"],
            ["--config.learning.slection", "did you mean 'selection'"],
        ),
        (["run", "--config=spsw:smoke", "--wrkdir=x"], ["wrkdir"]),
        (["run", "--config=spsw:smoke"], ["--workdir"]),
        (["run", "--config=spsw:smok", "--workdir=x"], ["smok"]),
        (["trian"], ["no command", "trian"]),
        (["evaluate", "--annotations=nowhere.json", "--predictions=nowhere.json"], ["nowhere.json"]),
        (["predict", "--workdir=x", "--features=y", "--min_score=1.5"], ["--min_score: found 1.5"]),
        (["predict", "--workdir=nowhere", "--features=y"], ["nowhere", "the folder of a model"]),
    ],
    ids=[
        "mistyped setting", "mistyped flag", "no workdir", "mistyped variant", "mistyped command", "missing file",
        "impossible flag", "missing model",
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(arguments: list[str], words: list[str]) -> None:
    result = command(*arguments)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr and "`" not in result.stderr
    for word in words:
        assert word.lower() in (result.stdout + result.stderr).lower(), result.stderr


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("detector.neck", "fnp", ["--config.detector.neck", "fnp", "identity, fpn"]),
        ("learning.selection.chain", "('dynamics',)", ["--config.learning.selection.chain", "dynamics", "fixed"]),
        ("data.label_ratio", "1.5", ["--config.data.label_ratio", "1.5"]),
        ("data.label_ratio", "1.0", ["--config.data.label_ratio", "semi_supervised"]),
        ("detector.name", "actionfromer", ["--config.detector.name", "actionfromer", "actionformer"]),
    ],
)
def test_impossible_settings(setting: str, value: str, words: list[str], tmp_path: Path) -> None:
    result = command(
        "run",
        "--config=spsw:smoke",
        f"--workdir={tmp_path / 'run'}",
        f"--config.{setting}={value}",
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "run").exists()


def test_evaluate_scores_a_file_without_a_model(small_run: Path) -> None:
    predictions = small_run / "stages" / "self_train_1_evaluation" / "predictions.json"
    result = command(
        "evaluate",
        f"--annotations={embedded_root() / 'annotations.json'}",
        f"--predictions={predictions}",
        "--subset=test",
    )
    assert result.returncode == 0, result.stderr
    average = json.loads((small_run / "results.json").read_text())["variants"]["self_train_1"]["average_map"]
    assert f"{100 * average:.2f}" in result.stdout or f"{100 * average:.1f}" in result.stdout
