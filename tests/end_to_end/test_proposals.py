"""A detector that wants proposals goes through a whole run: its generator first, on labelled videos only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import proposal_detector
import pytest
from fixtures import rarely, smoke_settings

import apl_jax as apl
from apl_jax.cli import main
from apl_jax.data.features.sources import embedded_root
from apl_jax.declarations import Choice, SettingsError
from apl_jax.detectors.pgcn_settings import PgcnSettings
from apl_jax.registry import DETECTORS
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.run import run
from apl_jax.runs.settings import Settings
from apl_jax.structs import DataFacts


@pytest.fixture(scope="module")
def settings() -> Settings:
    proposal_detector.register()
    naming = proposal_detector.NamingSettings(generator=Choice("actionformer", proposal_detector.SMALL))
    few = {f"learning.{stage}.steps": 20 for stage in ("pretrain", "supervised", "self_train")}
    base = smoke_settings({**few, "learning.pretrain.steps": 0, "evaluation.label_space.enabled": False})
    base = dataclasses.replace(base, variants=("semi_supervised",))
    yield dataclasses.replace(base, detector=Choice("naming", naming))
    DETECTORS.forget("naming")


def test_plan_puts_the_generator_first(settings: Settings) -> None:
    stages = plan_stages(settings, DataFacts(6, 4, 100))
    names = [stage.name for stage in stages]
    assert names[:3] == ["generator", "proposals", "evaluation_proposals"]
    needs = {stage.name: stage.needs for stage in stages}
    assert needs["teacher"] == ("proposals", "generator") and "evaluation_proposals" in needs["teacher_evaluation"]
    reads = {stage.name: stage.reads for stage in stages}
    assert "evaluation" not in reads["proposals"] and "labelled" not in reads["proposals"]
    other = dataclasses.replace(settings.detector.settings, generator=settings.detector)
    with pytest.raises(SettingsError, match="wants proposals itself"):
        plan_stages(dataclasses.replace(settings, detector=Choice("naming", other)), DataFacts(6, 4, 100))


@pytest.mark.parametrize("feed", rarely(("device", "stream"), ("device",).__contains__))
def test_whole_run_and_its_model(settings: Settings, feed: str, tmp_path: Path) -> None:
    runtime = dataclasses.replace(settings.runtime, feed=feed, portion_mib=1.0)
    results = run(dataclasses.replace(settings, runtime=runtime), tmp_path)
    counts = {name: done["result"]["proposals"] for name, done in done_files(tmp_path).items() if "proposals" in name}
    assert set(counts) == {"proposals", "evaluation_proposals"} and min(counts.values()) > 100
    assert results["variants"]["self_train_1"]["average_map"] > 0
    # The model carries its generator, and finds on whole recordings what the run found.
    model = apl.load_model(tmp_path)
    video, written = next(iter(predictions(tmp_path).items()))
    rate = json.loads((embedded_root() / "annotations.json").read_text())["database"][video]["fps"]
    with np.load(next(embedded_root().glob("signals_*.npz"))) as signals:
        found = model.predict(signals[video], fps=rate)
    np.testing.assert_allclose([d.score for d in found], sorted((r["score"] for r in written), reverse=True), atol=1e-4)


@pytest.mark.exhaustive
def test_pgcn_and_its_model(settings: Settings, tmp_path: Path) -> None:
    """The detector that ships, of which the generator's segments are decoded once more after the model is opened."""
    chosen = PgcnSettings(Choice("actionformer", proposal_detector.SMALL), width=16, projection_width=8)
    run(dataclasses.replace(settings, detector=Choice("pgcn", chosen)), tmp_path)
    video, written = next(iter(predictions(tmp_path).items()))
    rate = json.loads((embedded_root() / "annotations.json").read_text())["database"][video]["fps"]
    with np.load(next(embedded_root().glob("signals_*.npz"))) as signals:
        found = apl.load_model(tmp_path).predict(signals[video], fps=rate)
    np.testing.assert_allclose([d.score for d in found], sorted((r["score"] for r in written), reverse=True), atol=1e-4)


def test_proposals_from_a_file(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No generator is trained; the model says so, and predicts recordings of which it is given proposals."""
    annotations, file = embedded_root() / "annotations.json", tmp_path / "given.json"
    file.write_text(json.dumps({"results": around_the_truth(annotations)}))
    learning = dataclasses.replace(settings.learning, proposals=str(file), max_proposals=12)
    trained = apl.train(dataclasses.replace(settings, learning=learning), workdir=tmp_path / "run")
    done = done_files(tmp_path / "run")
    assert "generator" not in done and done["proposals"]["result"]["proposals"] == 153 * 12
    assert trained.results["average_map"] > 0 and f"Proposals: from {file}" in trained.table()
    assert "Proposals: from" in trained.report().read_text("utf-8")
    card = trained.model.card
    assert card.generator is None and card.max_proposals == 12 and trained.model.wants_proposals

    video, written = next(iter(predictions(tmp_path / "run").items()))
    recordings = tmp_path / "new"
    recordings.mkdir()
    with np.load(next(embedded_root().glob("signals_*.npz"))) as signals:
        np.save(recordings / f"{video}.npy", signals[video])
    with pytest.raises(apl.DataError, match="no generator: its run took proposals from a file"):
        trained.model.predict(np.load(recordings / f"{video}.npy"), fps=100)
    ask = ["predict", f"--workdir={tmp_path}/run", f"--features={recordings}", f"--annotations={annotations}"]
    assert main([*ask, f"--proposals={file}", "--min_score=0", f"--out={tmp_path}/found.json"]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["results"][video]
    np.testing.assert_allclose([r["score"] for r in rows], [r["score"] for r in written], atol=1e-5)
    np.testing.assert_allclose([r["segment"] for r in rows], [r["segment"] for r in written], atol=1e-3)
    capsys.readouterr()
    assert main(ask) == 1 and "Try: apl-jax predict with --proposals=<json or csv>" in capsys.readouterr().err
    assert main(["export", f"--workdir={tmp_path}/run", f"--out={tmp_path}/out"]) == 1
    assert "without a generator" in capsys.readouterr().err


def around_the_truth(annotations: Path) -> dict[str, list[dict]]:
    """Thirteen segments without labels of every recording: near its instances, and anywhere."""
    draws = np.random.default_rng(0)
    results = {}
    for video, entry in json.loads(annotations.read_text())["database"].items():
        segments = np.array([row["segment"] for row in entry["annotations"]])
        segments = segments[draws.integers(len(segments), size=13)] + draws.normal(scale=0.2, size=(13, 2))
        segments = np.clip(np.sort(segments), 0, entry["duration"]) + [0, 0.01]
        results[video] = [{"segment": list(s), "score": float(c)} for s, c in zip(segments, draws.random(13))]
    return results


def done_files(workdir: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in workdir.glob("stages/*/done.json")}


def predictions(workdir: Path) -> dict[str, list[dict]]:
    path = workdir / "stages" / "self_train_1_evaluation" / "predictions.json"
    return {video: rows for video, rows in json.loads(path.read_text())["results"].items() if rows}
