"""`method=auto`: a whole run that decides by held-out recordings, interrupted and read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import smoke_settings

from apl_jax.data.files import load_json
from apl_jax.report import write_report
from apl_jax.report.finished_run import open_run
from apl_jax.report.tables import results_table
from apl_jax.runs.cross_fit_stage import read_held_out
from apl_jax.runs.evidence import MODEL, TEACHER
from apl_jax.runs.run import run
from apl_jax.runs.settings import Settings

STEPS = 20
DETECTOR = "conv"  # of examples/plugin.py: quickly compiled


def auto_settings(**further: Any) -> Settings:
    changes = {
        "detector.name": DETECTOR, "learning.method.name": "auto", "learning.method.folds": 3,
        "learning.method.networks": 2, "learning.method.student.name": "apl_nontarget",
        "learning.method.lengths": (1.0, 2.0),
        # Nothing is contrasted: it would compile for as long as all the rest.
        "learning.method.student.contrast.weight": 0.0, "learning.teacher.contrast.weight": 0.0,
        "learning.pretrain.steps": 0, "learning.supervised.steps": STEPS, "learning.self_train.steps": STEPS,
        "evaluation.label_space.enabled": False, "variants": ("semi_supervised",),
    }  # fmt: skip
    return smoke_settings(changes | further)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("auto") / "run"
    return workdir, run(auto_settings(), workdir)


def test_every_decision_stands_in_the_results_with_its_evidence(finished: tuple[Path, dict[str, Any]]) -> None:
    workdir, results = finished
    assert load_json(workdir / "results.json") == results
    made = results["decisions"]
    teacher, model = made[TEACHER], made[MODEL]
    assert teacher["teacher"]["name"] == "none" and len(teacher["because"]) >= 3
    tried = teacher["tried"]
    assert {entry["name"] for entry in tried.values()} == {"none"} and teacher["plain"] is None
    assert {entry["steps"] for entry in tried.values()} == {STEPS, 2 * STEPS}
    # The longest training is taken, unless less of it finds more.
    most, chosen = max(entry["found"] for entry in tried.values()), teacher["teacher"]
    assert chosen["steps"] == 2 * STEPS or tried[chosen["place"]]["found"] == most
    assert [entry["name"] for entry in model["tried"].values()] == ["student", "teacher"]
    final = {"teacher": "teacher", "student": "self_train_1"}[model["model"]]
    assert results["final_variant"] == final
    card = load_json(workdir / "model" / "model.json")
    assert card["stage"] == final
    assert card["detector"]["name"] == "ensemble" and card["detector"]["networks"] == 2
    assert card["detector"]["of"]["name"] == DETECTOR
    chosen = open_run(workdir).chosen
    assert chosen.detector.name == "ensemble" and chosen.learning.method.name == "apl_nontarget"
    heat = teacher["temperature"]
    assert chosen.learning.method.settings.temperature == heat["value"] > 0
    assert heat["log_loss"] <= heat["log_loss_before"] and heat["snippets"] > 0
    assert made["learning"]["supervised"]["steps"] == teacher["teacher"]["steps"] == results["steps"]["teacher"]


def test_held_out_detections_are_those_of_networks_that_differ(finished: tuple[Path, dict[str, Any]]) -> None:
    """Each recording is predicted by the network of its fold, which is not the run's own teacher."""
    workdir, results = finished
    place = results["decisions"][TEACHER]["teacher"]["place"]
    found, similarity = read_held_out(workdir / "stages" / place)
    labelled = load_json(workdir / "split.json")["labelled"]
    assert set(found.video.tolist()) <= set(range(len(labelled))) and len(set(found.video.tolist())) > 1
    assert np.isfinite(similarity).all()
    assert ((similarity >= 0) & (similarity <= 1)).all()


def test_page_and_table_say_why(finished: tuple[Path, dict[str, Any]]) -> None:
    workdir, results = finished
    page, table = write_report(workdir).read_text("utf-8"), results_table(results)
    assert "What was decided, and why" in page and "Decided by held-out labelled recordings:" in table
    for sentence in results["decisions"][MODEL]["because"]:
        assert sentence in table and sentence in page


def test_a_stage_that_was_broken_off_ends_as_if_nothing_had_been(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Broken off after its last step, cross-fitting keeps what it found at the earlier milestone."""
    workdir, results = finished
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    stage = again / "stages" / "cross_fit_none"
    before = load_json(stage / "done.json")["result"]["held_out_map"]
    (stage / "done.json").unlink()
    shutil.rmtree(stage / str(2 * STEPS))
    repeated = run(auto_settings(), again)
    assert load_json(stage / "done.json")["result"]["held_out_map"] == before
    assert repeated["decisions"] == results["decisions"] and repeated["variants"] == results["variants"]


@pytest.mark.exhaustive
def test_one_labelled_recording_takes_the_plain_way(tmp_path: Path) -> None:
    """Nothing can be held out: the run says so, and ends as well as any other."""
    few = {"data.label_ratio": 0.007, "learning.supervised.steps": 4, "learning.self_train.steps": 4}
    results = run(auto_settings(**few), tmp_path / "run")
    made = results["decisions"]
    assert results["data"]["labelled"] == 1 and results["final_variant"] == "self_train_1"
    assert made[TEACHER]["teacher"]["name"] == "none" and made[TEACHER]["operating_point"] is None
    for stage in (TEACHER, MODEL):
        assert "one labelled recording, and none that could be held out" in made[stage]["because"][0]
    page = write_report(tmp_path / "run").read_text("utf-8")
    assert "one labelled recording" in page and "one labelled recording" in results_table(results)
