"""A folder made by hand, unlike any data set here, goes through inspect, run, predict and export by commands alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from apl_jax.cli.predict import MIN_SCORE

REPOSITORY = Path(__file__).parents[2]
RATE, WIDTH, CLASS = 12.5, 7, "прыжок вверх"
FLAGS = (
    "--config=spsw:smoke", "--config.data.window=3", "--config.data.stride=2",
    "--config.data.label_ratio=0.3", "--config.data.name=мои прыжки", "--config.variants=('semi_supervised',)",
    "--config.learning.pretrain.steps=0", "--config.learning.teacher.contrast.weight=0",
    "--config.learning.method.contrast.weight=0", "--config.evaluation.label_space.enabled=False",
)  # fmt: skip


def make_folder(root: Path) -> dict[str, dict]:
    """Fourteen recordings of one class, named in three scripts: half of them without any annotation, one that is all
    action, long gaps, feature rows as csv with 7 columns at 12.5 frames per second."""
    draws, database = np.random.default_rng(5), {}
    (root / "features").mkdir(parents=True)
    for v in range(14):
        name = ("день {}", "größe_{}", "录像-{}")[v % 3].format(v)
        rows = int(draws.integers(40, 90))
        values = draws.normal(0, 0.3, (rows, WIDTH))
        segments = []
        for start in draws.choice(np.arange(2, rows - 14, 13), 1 if v % 4 else 2, replace=False):
            length = int(draws.integers(6, 12))
            values[start : start + length, :3] += (1.5, -1.0, 2.0)
            # Row i sees frames [2 i, 2 i + 3) and stands for their centre.
            segments.append([float((2 * start + 1.5) / RATE), float((2 * (start + length) + 1.5) / RATE)])
        entry: dict = {"subset": "test" if v >= 11 else "training", "duration": (2 * rows + 1) / RATE, "fps": RATE}
        if v % 2 == 0 or v >= 11:
            entry["annotations"] = [{"segment": segment, "label": CLASS} for segment in segments]
        database[name] = entry
        np.savetxt(root / "features" / f"{name}.csv", values, "%.5f", ",", header=",".join("abcdefg"), comments="")
    (root / "annotations.json").write_text(json.dumps({"database": database}, ensure_ascii=False), "utf-8")
    return database


def command(*arguments: str, fails: bool = False) -> str:
    process = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, text=True, capture_output=True, timeout=600,
        env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    output = process.stdout + process.stderr
    assert (process.returncode != 0) == fails, output
    assert "Traceback" not in output, output
    return output


def test_five_steps_without_code(tmp_path: Path) -> None:
    database = make_folder(tmp_path / "мои данные")
    root, workdir, out = f"--config.data.root={tmp_path / 'мои данные'}", tmp_path / "run", tmp_path / "export"
    apl = ("-m", "apl_jax.cli")

    told = command(*apl, "inspect", *FLAGS, root, f"--workdir={tmp_path / 'seen'}")
    assert CLASS in told and "14" in told

    command(*apl, "run", *FLAGS, root, f"--workdir={workdir}")
    results = json.loads((workdir / "results.json").read_text("utf-8"))
    assert results["data"]["classes"] == [CLASS] and results["data"]["evaluated"] == 3
    assert 0 <= results["variants"]["self_train_1"]["average_map"] <= 1

    new = tmp_path / "новое"
    new.mkdir()
    video = next(name for name, entry in database.items() if entry["subset"] == "test")
    os.link(tmp_path / "мои данные" / "features" / f"{video}.csv", new / f"{video}.csv")
    found = tmp_path / "found.json"
    command(*apl, "predict", f"--workdir={workdir}", f"--features={new}", f"--out={found}", "--min_score=0")
    predicted = json.loads(found.read_text("utf-8"))["results"][video]
    assert predicted and all(row["label"] == CLASS and 0 <= row["segment"][0] < row["segment"][1] for row in predicted)

    command(*apl, "export", f"--workdir={workdir}", f"--out={out}")
    rows = np.loadtxt(new / f"{video}.csv", delimiter=",", skiprows=1)
    np.save(tmp_path / "rows.npy", rows.astype(np.float32))
    shown = command(str(out / "example.py"), str(tmp_path / "rows.npy"))
    lines = [line.split(",") for line in shown.splitlines() if CLASS in line]
    # It shows what `predict` shows without further words.
    assert len(lines) == sum(row["score"] >= MIN_SCORE for row in predicted)
    predicted = predicted[: len(lines)]
    for (start, end, _, score), row in zip(lines, predicted, strict=True):
        np.testing.assert_allclose([float(start), float(end)], row["segment"], atol=2e-3)
        assert abs(float(score) - row["score"]) < 1e-3


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    make_folder(tmp_path / "data")
    victim = sorted((tmp_path / "data" / "features").glob("*.csv"))[0]
    victim.unlink()
    root = f"--config.data.root={tmp_path / 'data'}"
    told = command("-m", "apl_jax.cli", "run", *FLAGS, root, f"--workdir={tmp_path / 'run'}", fails=True)
    assert victim.stem in told and "Try:" in told
    assert not (tmp_path / "run" / "results.json").exists()
