"""Three steps for recordings of one's own: configure, run, predict; rows that are finer than the actions on the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from unit.configuration.test_facts import write_folder

import apl_jax as apl
from apl_jax.cli.dispatch import main

FEW = (
    "--config.variants=('supervised',)", "--config.learning.supervised.steps=2", "--config.detector.width=8",
    "--config.runtime.steps_per_dispatch=2", "--config.runtime.progress=False", "--config.detector.heads=2",
    "--config.detector.decoding.min_score=0.0",
)  # fmt: skip


def test_configure_run_predict(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "walks", rows=300, fps=60.0)
    monkeypatch.chdir(tmp_path)
    assert main(["configure", f"--root={root}", "--out=mine.py", "--config.data.label_ratio=0.2"]) == 0
    said = capsys.readouterr().out
    assert "data.features = 'signal'" in said and "neighbours correlate " in said
    assert said.splitlines()[-1] == "next      apl-jax run --config=mine.py --workdir=runs/walks"

    assert main(["run", "--config=mine.py", "--workdir=runs/walks", *FEW]) == 0
    model = apl.load_model("runs/walks")
    stride, window = model.card.grid.stride, model.card.grid.window
    assert stride == 4 and window == 8 and model.card.feature_width == 8 * 3 and not model.windowed
    # A file alone, the same in a folder, and the array itself: all are windowed as in training.
    capsys.readouterr()
    assert (
        main(
            ["predict", "--workdir=runs/walks", f"--features={root}/features/r0.npy", "--min_score=0", "--out=one.json"]
        )
        == 0
    )
    assert main(["predict", "--workdir=runs/walks", f"--features={root}", "--min_score=0", "--out=all.json"]) == 0
    one, every = (json.loads(Path(name).read_text())["results"] for name in ("one.json", "all.json"))
    starts = lambda rows: [row["segment"][0] for row in rows]
    assert starts(one["r0"]) == pytest.approx(starts(every["r0"])) and len(every) == 12
    found = model.predict(np.load(root / "features" / "r0.npy"))
    assert [d.start_s for d in found] == pytest.approx(starts(one["r0"]))
    assert max(d.end_s for d in found) <= 5.0


def test_rows_that_see_more_than_a_stride_are_no_samples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_folder(tmp_path / "walks", stride=4)
    (root / "features.json").write_text(json.dumps({"stride": 4, "window": 16, "width": 3, "fps": 20.0}))
    assert main(["inspect", f"--config.data.root={root}", "--config.data.features=signal",
                 f"--workdir={tmp_path / 'page'}"]) == 1  # fmt: skip
    assert "rows of 16 frames, 4 frames apart" in " ".join(capsys.readouterr().out.split())
