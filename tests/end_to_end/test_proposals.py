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
    assert needs["teacher"] == ("proposals",) and "evaluation_proposals" in needs["teacher_evaluation"]
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


def done_files(workdir: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in workdir.glob("stages/*/done.json")}


def predictions(workdir: Path) -> dict[str, list[dict]]:
    path = workdir / "stages" / "self_train_1_evaluation" / "predictions.json"
    return {video: rows for video, rows in json.loads(path.read_text())["results"].items() if rows}
