"""A whole run on the embedded data: what it leaves behind, and that doing it again does nothing again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures import smoke_settings

from apl_jax.api import load_run
from apl_jax.data.annotations import read_annotations
from apl_jax.data.dataset import open_truth
from apl_jax.data.features.sources import embedded_root
from apl_jax.data.files import DataError
from apl_jax.report import write_report
from apl_jax.report.compare import comparison
from apl_jax.runs.run import run
from apl_jax.structs import Reason

VARIANTS = {"supervised", "supervised_matched", "teacher", "self_train_1"}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_results_name_every_variant_and_where_the_numbers_come_from(small_run: Path) -> None:
    results = read(small_run / "results.json")
    assert set(results["variants"]) == VARIANTS and results["final_variant"] == "self_train_1"
    for variant in results["variants"].values():
        assert 0 <= variant["average_map"] <= 1
        assert variant["average_map"] == pytest.approx(np.mean(list(variant["map"].values())))
    assert results["average_map"] == results["variants"]["self_train_1"]["average_map"]
    assert results["protocol"] == "strict"
    assert results["data"]["labelled"] == 15 and results["data"]["unlabelled"] == 138
    assert results["data"]["split_digest"] and results["version"]


def test_matched_variant_takes_as_many_steps_as_the_whole_method(small_run: Path) -> None:
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
    classes = read(small_run / "results.json")["data"]["classes"]
    truth = open_truth(smoke_settings().data).videos
    taught = {classes[label] for video in split["labelled"] for label in truth[video].labels}
    lost = [name for name in classes if name in taught - {row["label"] for row in rows}]
    expected = [f"{len(lost)} of {len(classes)} classes have no pseudo label: {', '.join(lost)}"] if lost else []
    assert read(path.parent / "done.json")["result"]["warnings"] == expected
    # The reader of human annotations reads them, too.
    records = read_annotations(path, tuple(read(small_run / "results.json")["data"]["classes"])).videos
    assert sum(len(r.labels) for r in records.values()) == len(rows) + len(left_out)
    assert sum(int(r.ignore.sum()) for r in records.values()) == len(left_out)


def test_every_stage_leaves_a_model_of_two_files(small_run: Path) -> None:
    """As does the run: that of its final variant."""
    trained = VARIANTS | {"pretrain"}
    for stage in trained:
        files = {path.name for path in (small_run / "stages" / stage / "model").iterdir()}
        assert files == {"params.safetensors"} | ({"model.json"} if stage != "pretrain" else set())
    for name in ("model.json", "params.safetensors"):
        own = small_run / "stages" / "self_train_1" / "model" / name
        assert (small_run / "model" / name).read_bytes() == own.read_bytes()
    assert read(small_run / "model" / "model.json")["stage"] == "self_train_1"


# What is done again, and what is not


@pytest.fixture
def copy(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to go on in."""
    shutil.copytree(small_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The embedded data set as a folder of one's own."""
    shutil.copytree(embedded_root(), tmp_path / "data")
    return tmp_path / "data"


def stages_done_again(folder: Path, **changes: object) -> set[str]:
    """The stages that a run with other settings, or other data, does again in the folder of a finished one."""
    before = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("stages/*/done.json")}
    run(smoke_settings(**changes), folder)
    after = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("stages/*/done.json")}
    assert after.keys() == before.keys()
    again = {name for name in after if after[name] != before[name]}
    # What was there before is not lost.
    superseded = {path.name for path in folder.glob("superseded/*")}
    assert superseded == {f"{name}-0" for name in again}
    return again


EVALUATIONS = {f"{variant}_evaluation" for variant in VARIANTS}


def test_running_again_repeats_no_stage(small_run: Path, copy: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("done.json")}
    results = run(smoke_settings(), copy)
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("done.json")} == before
    assert results == read(small_run / "results.json")


def test_other_thresholds_of_the_score_repeat_only_the_scoring(copy: Path) -> None:
    assert stages_done_again(copy, **{"evaluation.tiou": (0.5,)}) == EVALUATIONS


@pytest.mark.exhaustive
def test_another_nms_repeats_labelling_scoring_and_what_follows(small_run: Path, copy: Path) -> None:
    """Training does not read it: only the network that is taught by other pseudo labels is trained again."""
    follows = {"pseudo_label_1", "pseudo_label_1_quality", "self_train_1", "self_train_1_label_space"}
    assert stages_done_again(copy, **{"detector.decoding.sigma": 0.1}) == EVALUATIONS | follows
    for stage in VARIANTS:
        card = copy / "stages" / stage / "model" / "model.json"
        assert read(card)["detector"]["decoding"]["sigma"] == 0.1, "what predicts later decodes as what was scored"
        one, other = (read(folder / "results.json")["variants"][stage] for folder in (copy, small_run))
        assert one["map"] != other["map"]
    parameters = "stages/supervised/model/params.safetensors"
    assert (copy / parameters).read_bytes() == (small_run / parameters).read_bytes()


def test_data_that_moved_repeat_no_stage(copy: Path, data: Path) -> None:
    assert stages_done_again(copy, **{"data.root": str(data)}) == set()


@pytest.mark.parametrize(
    "role, again",
    [
        ("evaluation", EVALUATIONS),
        ("unlabelled", {"pseudo_label_1_quality", "teacher_label_space", "self_train_1_label_space"}),
    ],
)
def test_point_2_a_corrected_annotation_repeats_only_what_measures_by_it(
    small_run: Path, copy: Path, data: Path, role: str, again: set[str]
) -> None:
    document = read(data / "annotations.json")
    video = read(small_run / "split.json")[role][0]
    start, end = document["database"][video]["annotations"][0]["segment"]
    document["database"][video]["annotations"][0]["segment"] = [start, (start + end) / 2]
    (data / "annotations.json").write_text(json.dumps(document))
    assert stages_done_again(copy, **{"data.root": str(data)}) == again


def test_point_2_a_removed_test_video_repeats_no_training(small_run: Path, copy: Path, data: Path) -> None:
    document = read(data / "annotations.json")
    del document["database"][read(small_run / "split.json")["evaluation"][0]]
    (data / "annotations.json").write_text(json.dumps(document))
    assert stages_done_again(copy, **{"data.root": str(data)}) == EVALUATIONS
    results = read(copy / "results.json")
    assert results["data"]["evaluated"] == read(small_run / "results.json")["data"]["evaluated"] - 1


def test_labels_corrected_on_purpose_come_in_by_a_setting(small_run: Path, copy: Path, tmp_path: Path) -> None:
    document = read(small_run / "stages" / "pseudo_label_1" / "pseudo_labels.json")
    video = next(v for v, entry in document["database"].items() if entry["annotations"])
    document["database"] = {video: {"annotations": document["database"][video]["annotations"][:1]}}
    (tmp_path / "mine.json").write_text(json.dumps(document))
    again = stages_done_again(copy, **{"learning.labels": str(tmp_path / "mine.json")})
    assert again == {
        "pseudo_label_1", "pseudo_label_1_quality", "self_train_1", "self_train_1_evaluation",
        "self_train_1_label_space",
    }  # fmt: skip
    labels = read(copy / "results.json")["pseudo_labels"]["pseudo_label_1"]
    assert labels["tau_pos"] is None and labels["source"]["recordings"] == 1
    assert labels["counts"]["kept"] + labels["counts"]["promoted"] == labels["quality"]["final"]["count"] == 1
    assert f"labels from {tmp_path / 'mine.json'}" in write_report(copy).read_text()
    loaded = load_run(copy)
    assert sum(len(rows) for rows in loaded.pseudo_labels().values()) == 1 and "labels from" in loaded.table()


def test_numbers_of_other_annotations_are_not_shown(copy: Path, data: Path) -> None:
    run(smoke_settings(**{"data.root": str(data)}), copy)
    assert write_report(copy).is_file() and "average" in comparison([copy])
    document = read(data / "annotations.json")
    entry = document["database"][read(copy / "split.json")["evaluation"][0]]
    entry["annotations"] = entry["annotations"][1:]
    (data / "annotations.json").write_text(json.dumps(document))
    for show in (write_report, lambda folder: comparison([folder])):
        with pytest.raises(DataError, match=r"results.json: found numbers of other annotations.*run again"):
            show(copy)
    run(smoke_settings(**{"data.root": str(data)}), copy)
    assert write_report(copy).is_file() and "average" in comparison([copy])


def test_labels_edited_after_the_end_are_in_no_report(copy: Path) -> None:
    path = copy / "stages" / "pseudo_label_1" / "pseudo_labels.json"
    path.write_text(path.read_text().replace('"kept"', '"promoted"', 1))
    for show in (write_report, lambda folder: load_run(folder).pseudo_labels()):
        with pytest.raises(DataError, match=r"pseudo_labels\.json: found another content"):
            show(copy)
