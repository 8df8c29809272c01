"""A whole run on the embedded data: what it leaves behind, and that doing it again does nothing again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures import smoke_settings

from apl_jax.data.annotations import read_annotations
from apl_jax.runs.run import run
from apl_jax.structs import Reason

ARMS = {"supervised", "supervised_matched", "teacher", "self_train_1"}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_results_name_every_arm_and_where_the_numbers_come_from(small_run: Path) -> None:
    results = read(small_run / "results.json")
    assert set(results["arms"]) == ARMS
    for arm in results["arms"].values():
        assert 0 <= arm["average_map"] <= 1
        assert arm["average_map"] == pytest.approx(np.mean(list(arm["map"].values())))
    assert results["protocol"] == "strict"
    assert results["data"]["labelled"] == 15 and results["data"]["unlabelled"] == 138
    assert results["data"]["split_digest"] and results["version"]


def test_matched_arm_takes_as_many_steps_as_the_whole_method(small_run: Path) -> None:
    steps = read(small_run / "results.json")["steps"]
    assert steps["supervised_matched"] == steps["pretrain"] + steps["teacher"] + steps["self_train_1"]


def test_supervised_training_learns_something_in_forty_steps(small_run: Path) -> None:
    lines = (small_run / "stages" / "supervised" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30, 40]
    assert losses[-1] < losses[0]


def test_pseudo_labels_are_annotations_with_scores_and_reasons(small_run: Path) -> None:
    path = small_run / "stages" / "pseudo_label_1" / "pseudo_labels.json"
    document, split = read(path), read(small_run / "split.json")
    assert set(document["database"]) == set(split["unlabelled"])
    rows = [row for video in document["database"].values() for row in video["annotations"]]
    left_out = [row for video in document["database"].values() for row in video["ignored"]]
    counts = read(path.parent / "done.json")["result"]["counts"]
    kept = {Reason.KEPT.name.lower(), Reason.PROMOTED.name.lower()}
    assert rows and {row["reason"] for row in rows} <= kept
    assert not {row["reason"] for row in left_out} & kept
    assert len(rows) == counts["kept"] + counts["promoted"]
    for row in rows + left_out:
        assert row["confidence"] <= row["score"] * max(row["tiou"] - row["tnd"], 1e-4) + 1e-5
        assert 0 <= row["similarity"] <= 1
    # The front door for human annotations reads them.
    records = read_annotations(path, tuple(read(small_run / "results.json")["data"]["classes"])).videos
    assert sum(len(r.labels) for r in records.values()) == len(rows) + len(left_out)
    assert sum(int(r.ignore.sum()) for r in records.values()) == len(left_out)


def test_running_again_repeats_no_stage(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(small_run, copy)
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("done.json")}
    results = run(smoke_settings(), copy)
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("done.json")} == before
    assert results == read(small_run / "results.json")


def test_a_changed_setting_repeats_only_what_depends_on_it(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(small_run, copy)
    before = {p.parent.name: p.stat().st_mtime_ns for p in copy.glob("stages/*/done.json")}
    run(smoke_settings(**{"evaluation.tiou": (0.5,)}), copy)
    after = {p.parent.name: p.stat().st_mtime_ns for p in copy.glob("stages/*/done.json")}
    again = {name for name in after if after[name] != before[name]}
    assert again == {f"{arm}_evaluation" for arm in ARMS}
    # What was there before is not lost.
    assert {p.name for p in (copy / "superseded").iterdir()} == {f"{name}-0" for name in again}
