"""Labels from a file: whose they may be, and what the stages that follow find."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apl_jax.data.annotations import read_annotations, unannotated
from apl_jax.data.files import DataError, write_json
from apl_jax.declarations import SettingsError, Unhashed, override
from apl_jax.evaluation.label_quality import read_pseudo_labels
from apl_jax.runs.given_labels import GivenLabelsPart, labels_digest, take_labels
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.settings import Settings
from apl_jax.structs import DataFacts, Reason

CLASSES = "run", "walk"
IDS = {"unlabelled": ("a", "v_b", "c"), "labelled": ("taught",)}


def take(tmp_path: Path, database: Any) -> dict[str, Any]:
    """What the stage returns, for recordings of ten seconds; its file is in ``tmp_path``."""
    write_json(tmp_path / "given.json", {"database": database} if database is not None else {"version": "1"})
    records = {name: tuple(unannotated(video, 10.0, 25.0) for video in ids) for name, ids in IDS.items()}
    table = lambda name: SimpleNamespace(ids=IDS[name], records=records[name])
    inputs: Any = SimpleNamespace(table=table, classes=CLASSES, write=write_json)
    file = str(tmp_path / "given.json")
    return take_labels(GivenLabelsPart(labels_digest(file), Unhashed(file)), inputs, tmp_path)


def test_labels_by_hand_and_from_a_stage_become_pseudo_labels(tmp_path: Path) -> None:
    by_hand = {"segment": [1, 2.5], "label": " walk", "label_id": 77}
    from_stage = {
        "segment": [3, 4], "label": "run", "reason": "promoted", "weight": 0.5, "confidence": 0.25, "score": 0.5,
        "tiou": 0.5, "tnd": 0.1, "similarity": 0.75,
    }  # fmt: skip
    candidate = from_stage | {"reason": "candidate"}
    database = {"a": {"annotations": [by_hand]}, "b": {"annotations": [from_stage], "ignored": [candidate]}}
    result = take(tmp_path, database)
    assert result["tau_pos"] is None
    assert result["counts"] == {"kept": 1, "promoted": 1, "dropped": 0, "candidate": 1}
    source = result["source"]
    assert source["recordings"] == 2 and source["of"] == 3 and source["file"] == str(tmp_path / "given.json")
    read = read_annotations(tmp_path / "pseudo_labels.json", CLASSES).videos
    assert {video: len(record.labels) for video, record in read.items()} == {"a": 1, "v_b": 2, "c": 0}
    assert read["a"].labels.tolist() == [1] and read["a"].segments_s.tolist() == [[1, 2.5]]
    assert read["v_b"].weight.tolist() == [0.5, 0.5] and read["v_b"].ignore.tolist() == [False, True]
    table = read_pseudo_labels(tmp_path / "pseudo_labels.json", IDS["unlabelled"], CLASSES)
    assert table.reason.tolist() == [Reason.KEPT, Reason.PROMOTED, Reason.CANDIDATE]
    assert table.instances.score.tolist() == [1, 0.25, 0.25] and table.similarity.tolist() == [0.5, 0.75, 0.75]


ROW = {"segment": [1, 2], "label": "run"}


@pytest.mark.parametrize(
    "database, said",
    [
        ({"taught": {"annotations": [ROW]}}, "taught.*a labelled recording.*split.json lists as unlabelled"),
        ({"of the test set": {"annotations": []}}, "not one of them"),
        ({"a": {"annotations": [ROW | {"label": "swim"}]}}, r"unknown class 'swim'"),
        ({"a": {"annotations": [ROW | {"segment": [8, 12]}]}}, r"outside its video.*Try: correct the entry\.$"),
        ({"a": {"annotations": [ROW | {"segment": [2, 1]}]}}, "an end after the start"),
        ({"a": {"annotations": [ROW | {"score": "0.5"}]}}, "score: found"),
        ({"a": {"annotations": [ROW | {"reason": "guess"}]}}, "reason: found"),
        ({"a": {"annotations": "all"}}, "a list"),
        ({"b": {}, "v_b": {}}, "a second entry"),
        ({"a": [ROW]}, "an object"),
        (None, "database: found none"),
    ],
)
def test_what_cannot_be_is_refused(database: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said) as caught:
        take(tmp_path, database)
    assert "given.json" in str(caught.value) and not (tmp_path / "pseudo_labels.json").exists()


def test_a_plan_takes_them_in_the_first_round_only(tmp_path: Path) -> None:
    file = tmp_path / "given.json"
    file.write_text("{}")
    settings = override(Settings(), {"learning.labels": str(file), "learning.rounds": 2})
    stages = {stage.name: stage for stage in plan_stages(settings, DataFacts(4, 2, 64))}
    assert stages["pseudo_label_1"].work is take_labels and stages["pseudo_label_2"].work is not take_labels
    assert stages["pseudo_label_2"].handed.before == ""
    assert "pseudo_label_1" in stages["self_train_1"].needs and "pseudo_label_1_quality" in stages


@pytest.mark.parametrize("change", [{"learning.method.name": "nontarget"}, {"variants": ("supervised",)}])
def test_labels_that_nothing_would_learn_from_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    settings = override(Settings(), {"learning.labels": str(tmp_path / "given.json"), **change})
    with pytest.raises(SettingsError, match=r"`learning\.labels`"):
        plan_stages(settings, DataFacts(4, 2, 64))
