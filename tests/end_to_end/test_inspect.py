"""``apl-jax inspect`` as a process: the embedded data set, and a folder in which several things are wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from apl_jax.data.features.sources import embedded_root


def inspect(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "apl_jax.cli", "inspect", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_embedded_data_set(tmp_path: Path) -> None:
    result = inspect("--config=spsw:smoke", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "223 videos, 1,362 instances, 4 classes" in result.stdout and "errors\n" not in result.stdout
    assert "No errors. Next: a run with these settings" in result.stdout
    assert "--workdir, such as runs/spsw" in result.stdout and "`" not in result.stdout
    assert "walking" in (tmp_path / "inspect_spsw" / "inspect.html").read_text()
    assert not result.stderr.strip()  # the smoke variant shows no progress


def test_a_broken_folder(tmp_path: Path) -> None:
    document = json.loads((embedded_root() / "annotations.json").read_text())
    database = document["database"]
    chosen = [v for s in ("training", "test") for v in [v for v, e in database.items() if e["subset"] == s][:8]]
    document["database"] = {video: database[video] for video in chosen}
    root = tmp_path / "data"
    root.mkdir()
    (root / "annotations.json").write_text(json.dumps(document))
    with np.load(next(embedded_root().glob("signals_*.npz"))) as archive:
        signals = {video: archive[video] for video in chosen}
    del signals[chosen[0]]
    signals[chosen[1]][3, 1] = np.nan
    signals[chosen[2]] = signals[chosen[2]][:700]
    np.savez(root / "signals_100hz.npz", allow_pickle=False, **signals)
    changes = f"--config.data.root={root}", "--config.data.label_ratio=0.5"
    arguments = "--config=spsw", *changes, f"--workdir={tmp_path / 'page'}"
    result = inspect(*arguments, folder=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr and "reading features" in result.stderr
    unwrapped = " ".join(result.stdout.split())
    for words in (
        "1 annotated videos without features", repr(chosen[0]), "not finite", "row 3, channel 1", repr(chosen[1]),
        "disagree with their duration", "700 samples", repr(chosen[2]), "3 errors: a run would stop there",
    ):  # fmt: skip
        assert words in unwrapped, words
    assert "Errors" in (tmp_path / "page" / "inspect.html").read_text()

    (root / "annotations.json").write_text("[]")
    result = inspect(*arguments, folder=tmp_path)
    assert result.returncode == 1 and "annotations.json: found a JSON list" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not result.stdout


def test_settings_are_called_by_their_flags(tmp_path: Path) -> None:
    """On the terminal and on the page; without a configuration the defaults are inspected."""
    result = inspect("--config.data.label_ratio=1.0", "--config.detector.name=spot", folder=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "--config.data.label_ratio=0.1, or --config.variants=\"('supervised',)\"" in " ".join(result.stdout.split())
    page = (tmp_path / "inspect_spsw" / "inspect.html").read_text()
    assert "--config.data.label_ratio=0.1" in page and "--config.detector.name=spot" in page
