"""The Python API without any training: data sets, scores of whatever is in memory or in files, and the public names."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import make_run as fake_run
from small_models import FPS, make_run, small_card

import apl_jax as apl
from apl_jax.data.annotations import parse_annotations
from apl_jax.inference.arrays import Detection
from apl_jax.settings import DataSettings

TRUTH = {"walk": [("walking", 1.0, 4.0), ("walking", 6.0, 9.0)], "rest": [("sitting", 2.0, 3.0)]}
FOUND = {"walk": [("walking", 1.0, 4.1, 0.9), ("sitting", 6.0, 9.0, 0.8)], "rest": [("sitting", 2.0, 3.0, 0.4)]}


# Names


def test_every_public_name_can_be_imported() -> None:
    assert len(set(apl.__all__)) == len(apl.__all__) and list(apl.__all__) == sorted(apl.__all__)
    for name in apl.__all__:
        assert getattr(apl, name) is not None
    assert dir(apl) == sorted(apl.__all__)
    space: dict[str, Any] = {}
    exec("from apl_jax import *", space)
    assert set(apl.__all__) <= space.keys()
    with pytest.raises(AttributeError, match="module 'apl_jax' has no attribute 'load_modle'"):
        _ = apl.load_modle  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError):
        exec("from apl_jax import load_modle")


def test_every_public_name_is_that_of_its_room() -> None:
    """Lazily, but the very same object."""
    for name, module in apl._MODULE_OF.items():
        assert getattr(apl, name) is getattr(importlib.import_module(f"apl_jax.{module}"), name)
        assert getattr(apl, name).__doc__ or name.startswith("__")
    assert apl.ops is importlib.import_module("apl_jax.ops")
    assert apl.detectors is importlib.import_module("apl_jax.detectors")


# Data sets


def test_a_data_set_by_name() -> None:
    data = apl.load_dataset("spsw", label_ratio=0.2, split_seed=3)
    assert isinstance(data, apl.Data)
    assert data.settings.label_ratio == 0.2 and data.settings.split_seed == 3 and data.settings.root == ""
    assert data.classes == ("standing_up", "walking", "turning", "sitting_down")
    assert len(data.split.labelled) == round(0.2 * 153) and data.split.seed == 3
    assert set(data.annotations.videos) == {*data.split.labelled, *data.split.unlabelled, *data.split.evaluation}
    opened = data.open()
    assert opened.split == data.split and opened.labelled.ids == data.split.labelled
    assert opened.labelled.shape[2] == 120


def test_a_configuration_brings_its_data_settings() -> None:
    with pytest.raises(apl.DataError, match=r"annotations\.json|no such"):  # whose files are not here
        apl.load_dataset("hapt", root="/nowhere/at/all")
    assert apl.load_dataset("spsw_nontarget").settings == apl.read_config("spsw_nontarget").data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder of one's own."""
    root = tmp_path / "my data"
    (root / "features").mkdir(parents=True)
    database = {}
    for i in range(4):
        np.save(root / "features" / f"v{i}.npy", np.random.default_rng(i).normal(size=(20 + i, 3)))
        rows = [{"segment": [0.5, 1.5], "label": "walk"}]
        subset, seconds = "test" if i == 3 else "training", ((19 + i) * 4 + 16) / 25
        database[f"v{i}"] = {"subset": subset, "duration": seconds, "fps": 25.0, "annotations": rows}
    (root / "annotations.json").write_text(json.dumps({"database": database}))
    return root


@pytest.mark.parametrize("as_text", [True, False])
def test_a_data_set_by_folder(folder: Path, as_text: bool) -> None:
    data = apl.load_dataset(str(folder) if as_text else folder, window=16, stride=4, label_ratio=0.4)
    assert data.settings == DataSettings(name="my data", root=str(folder), window=16, stride=4, label_ratio=0.4)
    assert data.classes == ("walk",) and len(data.split.labelled) == 1 and data.split.evaluation == ("v3",)
    assert data.open().labelled.shape == (1, 32, 3)


def test_a_folder_comes_before_a_configuration_of_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("spsw"))
    monkeypatch.chdir(folder.parent)
    data = apl.load_dataset("spsw", window=16, stride=4)
    assert data.settings.root == str(folder.with_name("spsw").resolve()) and data.settings.name == "spsw"


def test_data_sets_that_cannot_be(folder: Path) -> None:
    with pytest.raises(apl.DataError, match=r"`name`: found 'spsv'; expected a folder, or one of .*spsw"):
        apl.load_dataset("spsv")
    with pytest.raises(apl.SettingsError, match=r"`windw`: no such setting; .* Did you mean 'window'\?"):
        apl.load_dataset(folder, windw=16)
    with pytest.raises(apl.SettingsError, match="`label_ratio`: found 0"):
        apl.load_dataset(folder, label_ratio=0)
    with pytest.raises(apl.SettingsError, match="`streams`: found 'rgb', expected a list"):
        apl.load_dataset(folder, streams="rgb")
    with pytest.raises(apl.DataError, match=r"`data\.test_subset`"):
        apl.load_dataset(folder, test_subset="validation")
    (folder / "annotations.json").unlink()
    with pytest.raises(apl.DataError, match=r"annotations\.json"):
        apl.load_dataset(folder)


# Scores


def document(truth: dict[str, list[tuple[str, float, float]]], **subsets: str) -> dict[str, Any]:
    database = {
        video: {
            "subset": subsets.get(video, ""), "duration": 10.0,
            "annotations": [{"label": label, "segment": [start, end]} for label, start, end in rows],
        }
        for video, rows in truth.items()
    }  # fmt: skip
    return {"version": "x", "database": database}


def submission(found: dict[str, list[tuple[str, float, float, float]]]) -> dict[str, Any]:
    results = {
        video: [{"label": label, "segment": [start, end], "score": score} for label, start, end, score in rows]
        for video, rows in found.items()
    }
    return {"version": "x", "results": results, "external_data": {}}


def test_every_form_gives_the_same_score(tmp_path: Path) -> None:
    """Tuples, lists, detections, arrays of text and numbers, documents and their files."""
    expected = apl.evaluate(FOUND, TRUTH)
    # Walking: one of two found, first; sitting: found, but a surer one in another recording is wrong.
    assert expected.scores.ap[:, expected.classes.index("walking")].tolist() == [0.5] * 5
    assert expected.scores.ap[:, expected.classes.index("sitting")].tolist() == [0.5] * 5
    assert expected.average_map == 0.5 and expected.classes == ("sitting", "walking") and expected.notes == ()
    found_path, truth_path = tmp_path / "found.json", tmp_path / "truth.json"
    found_path.write_text(json.dumps(submission(FOUND)))
    truth_path.write_text(json.dumps(document(TRUTH)))
    predictions = [
        FOUND,
        {video: [Detection(*row) for row in rows] for video, rows in FOUND.items()},
        {video: [list(row) for row in rows] for video, rows in FOUND.items()},
        {video: np.array(rows) for video, rows in FOUND.items()},
        submission(FOUND),
        found_path,
        str(found_path),
    ]
    annotations = [
        TRUTH,
        {
            video: [[np.str_(label), np.float64(start), int(end)] for label, start, end in rows]
            for video, rows in TRUTH.items()
        },
        document(TRUTH),
        truth_path,
        str(truth_path),
        parse_annotations(document(TRUTH), Path("x")),
    ]
    for given in predictions:
        assert apl.evaluate(given, TRUTH).as_dict() == expected.as_dict()
    for known in annotations:
        assert apl.evaluate(FOUND, known).as_dict() == expected.as_dict()


def test_recordings_may_have_any_names() -> None:
    by_number = apl.evaluate({7: FOUND["walk"]}, {7: TRUTH["walk"]})
    assert by_number.average_map == apl.evaluate({"a": FOUND["walk"]}, {"a": TRUTH["walk"]}).average_map


def test_a_data_set_is_truth() -> None:
    """With a subset; a model of it predicts what it knows."""
    data = apl.load_dataset("spsw")
    perfect = {
        video: [(data.classes[c], *segment, 1.0) for c, segment in zip(r.labels, r.segments_s, strict=True)]
        for video, r in data.annotations.videos.items()
        if r.subset == "test"
    }
    assert apl.evaluate(perfect, data, subset="test").average_map == 1.0
    assert apl.evaluate(perfect, data, subset="TEST").average_map == 1.0
    assert apl.evaluate(perfect, data).average_map < 0.6  # most recordings are not among them


def test_what_a_model_predicts_can_be_scored(tmp_path: Path) -> None:
    model = apl.load_model(make_run(tmp_path, small_card()))
    recordings = {name: np.random.default_rng(i).normal(size=(30, 6)) for i, name in enumerate(("a", "b"))}
    truth = {name: [("größe 0", 1.0, 2.0), ("größe 1", 2.0, 3.0)] for name in recordings}
    found = model.predict(recordings, fps=FPS)
    assert 0 <= apl.evaluate(found, truth).average_map <= 1
    assert apl.evaluate({name: [] for name in truth}, truth).average_map == 0


def test_subsets_thresholds_and_ranks() -> None:
    known = document(TRUTH, walk="Training", rest="test")
    alone = apl.evaluate(FOUND, known, subset="test", tiou=[0.5, 0.75], recall_at=[1])
    assert alone.average_map == 1.0 and alone.notes == (
        "1 videos of the predictions are not among those of the truth: left out ('walk')",
    )
    assert list(alone.as_dict()["map"]) == ["0.5", "0.75"] and list(alone.as_dict()["recall"]) == ["1x"]
    assert alone.as_dict()["ap"]["walking"] == {"0.5": None, "0.75": None}
    assert apl.evaluate(FOUND, known, tiou=(0.5,)).scores.tiou == (0.5,)


def test_printing_shows_the_table_and_what_was_left_out() -> None:
    found = FOUND | {"other": [("flying", 0.0, 1.0, 0.5), ("walking", 0.0, 1.0, 0.5)]}
    scored = apl.evaluate(found, TRUTH)
    assert scored.average_map == 0.5
    lines = str(scored).splitlines()
    assert "average" in lines[0] and any("mAP" in line and "50.0" in line for line in lines)
    assert lines[-2:] == [
        "note: 1 videos of the predictions are not among those of the truth: left out ('other')",
        "note: 1 classes of the predictions are not among those of the truth: left out ('flying')",
    ]
    kept = {"walk": [*TRUTH["walk"], ("walking", 5.0, 5.0)]}
    assert "left out because they have no length" in str(apl.evaluate(FOUND, kept))


@pytest.mark.parametrize(
    ("predictions", "annotations", "options", "words"),
    [
        (
            {"walk": [("walking", 1.0, 2.0)]},
            TRUTH,
            {},
            r"`predictions`: 'walk'.*expected \(label, start_s, end_s, score\)",
        ),
        ({"walk": ["walking"]}, TRUTH, {}, "`predictions`: 'walk'"),
        ({"walk": [("walking", "one", 2.0, 0.5)]}, TRUTH, {}, "`predictions`: 'walk'"),
        ({"walk": [5]}, TRUTH, {}, "`predictions`: 'walk': found 5"),
        ({"walk": [("walking", 1.0, float("nan"), 0.5)]}, TRUTH, {}, "predictions: video 'walk', results"),
        ({"wakl": [("walking", 1.0, 2.0, 0.5)]}, TRUTH, {}, "predictions: results: found videos such as 'wakl'"),
        ({"results": [1]}, TRUTH, {}, "predictions: results: found"),
        ("nowhere.json", TRUTH, {}, "nowhere.json: found no such file"),
        (FOUND, {"walk": [("walking", 1.0)]}, {}, r"`annotations`: 'walk'.*expected \(label, start_s, end_s\)"),
        (FOUND, {"walk": [("walking", 4.0, 1.0)]}, {}, r"annotations: video 'walk', annotations\[0\]\.segment"),
        (FOUND, {"walk": [("", 1.0, 4.0)]}, {}, r"annotations\[0\]\.label"),
        (FOUND, {"walk": [("walking", float("inf"), float("inf"))]}, {}, "annotations: video 'walk'"),
        (FOUND, {}, {}, "annotations: database: found no videos"),
        (FOUND, {"database": {}}, {}, "annotations: database: found no videos"),
        (FOUND, "nowhere.json", {}, "nowhere.json: found no such file"),
        (FOUND, TRUTH, {"subset": "test"}, "`subset`: found 'test'; expected one of ''"),
        (FOUND, TRUTH, {"tiou": ()}, r"`tiou`: found \(\), expected one or more thresholds in \(0, 1\]"),
        (FOUND, TRUTH, {"tiou": (0.0,)}, r"`tiou`: found \(0\.0,\), expected"),
        (FOUND, TRUTH, {"tiou": (50,)}, r"`tiou`: found \(50,\), expected"),
        (FOUND, {"walk": []}, {}, "none of the 1 annotated videos has an instance that counts"),
        (FOUND, {"walk": None}, {}, "none of the 1 evaluated videos is annotated"),
    ],
)
def test_refusals(predictions: Any, annotations: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):  # DataError is one
        apl.evaluate(predictions, annotations, **options)


@pytest.mark.parametrize("wrong", [[FOUND["walk"]], FOUND["walk"], None, 3])
def test_what_is_no_dict_of_recordings_is_refused_by_argument(wrong: Any) -> None:
    """A list of recordings, say, which ``Model.predict`` returns for a list."""
    with pytest.raises((apl.DataError, TypeError), match="predictions"):
        apl.evaluate(wrong, TRUTH)
    with pytest.raises((apl.DataError, TypeError), match="annotations"):
        apl.evaluate(FOUND, wrong)


# Runs


def test_rounds_of_pseudo_labels(tmp_path: Path) -> None:
    run = apl.load_run(fake_run(tmp_path, ["walk", "run"], 40.0, 2.0, rounds=2))
    found = run.pseudo_labels()
    assert found == run.pseudo_labels(2) != run.pseudo_labels(1)
    rows = [row for video in found.values() for row in video]
    assert len(rows) > 10 and all(isinstance(row, apl.PseudoLabel) for row in rows)
    assert {row.reason for row in rows if row.selected} <= {"kept", "promoted"}
    assert {row.reason for row in rows if not row.selected} <= {"dropped", "candidate"}
    assert all(row.start_s < row.end_s and 0 <= row.confidence <= 1 for row in rows)
    for number in (3, -1):
        with pytest.raises(ValueError, match=rf"number: found {number}, expected one of the rounds \[1, 2\]"):
            run.pseudo_labels(number)
    without = apl.load_run(fake_run(tmp_path / "other", ["walk", "run"], 40.0, 2.0, method="nontarget"))
    with pytest.raises(ValueError, match=r"rounds \[\]"):
        without.pseudo_labels()


def test_a_report_of_a_run(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, ["walk", "run"], 40.0, 2.0)
    run = apl.load_run(folder)
    assert run.report() == folder / "report.html" and (folder / "report.html").is_file()
    assert "mAP" in run.table() and run.workdir == folder
    with pytest.raises(apl.DataError):
        apl.load_run(tmp_path / "nowhere")
