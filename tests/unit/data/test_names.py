"""One rule for names in every file, and what is said of names that nearly agree."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from apl_jax.data.annotations import read_annotations
from apl_jax.data.exclude import without_excluded
from apl_jax.data.features.folder import open_folder
from apl_jax.data.files import DataError
from apl_jax.data.names import (
    find_recording,
    lookalike_notes,
    lookalikes,
    loose_recording,
    nearest,
    refuse_twins,
)
from apl_jax.data.splits import build_split
from apl_jax.evaluation.external import read_class_scores
from apl_jax.evaluation.submission import read_submission
from apl_jax.evaluation.thresholds import read_thresholds
from apl_jax.settings import DataSettings, GridSettings

COMPOSED = "café"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def put(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def entry(*labels: str, subset: str = "training") -> dict:
    rows = [{"segment": [i, i + 1], "label": label} for i, label in enumerate(labels)]
    return {"subset": subset, "duration": 50.0, "fps": 10.0, "annotations": rows}


def test_point_6_one_rule_for_classes_and_recordings_in_annotations(tmp_path):
    database = {"a": entry("walk", "walk ", "Walk", COMPOSED, DECOMPOSED), " A.mp4": entry("walk")}
    found = read_annotations(put(tmp_path / "a.json", {"database": database}))
    assert found.classes == ("Walk", COMPOSED, "walk") and list(found.videos) == ["a", "A.mp4"]
    assert found.videos["a"].labels.tolist() == [2, 2, 0, 1, 1]
    assert [note.partition(": ")[2] for note in found.notes] == [
        "1 group of classes with names that look alike, but stay different: 'walk' and 'Walk'",
        "1 group of recordings with names that look alike, but stay different: 'a' and 'A.mp4'",
    ]
    with pytest.raises(DataError, match="found 'a' and 'a ', which are one name"):
        read_annotations(put(tmp_path / "b.json", {"database": {"a": entry(), "a ": entry()}}))


@pytest.mark.parametrize(("stored", "asked"), [("v_x", "x"), ("x", "v_x"), (" x", "x"), (DECOMPOSED, COMPOSED)])
def test_point_6_every_reader_finds_a_recording_by_the_same_rule(tmp_path, stored, asked):
    row = {"label": f"{DECOMPOSED} ", "score": 0.5, "segment": [1, 2]}
    predictions = read_submission(put(tmp_path / "p.json", {"results": {stored: [row]}}), [asked], [COMPOSED])
    assert len(predictions.instances) == 1 and not predictions.unknown_videos and not predictions.unknown_labels
    scores = put(tmp_path / "s.json", {"class": [f" {DECOMPOSED}"], "results": {stored: [0.25]}})
    np.testing.assert_allclose(read_class_scores(scores, [asked], [COMPOSED]).scores, [[0.25]])
    np.testing.assert_allclose(read_thresholds(put(tmp_path / "t.json", {DECOMPOSED: 0.5}), [COMPOSED]), [0.5])
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / f"{stored}.npy", np.ones((5, 2), np.float32))
    assert open_folder(tmp_path, GridSettings()).read(asked).shape == (5, 2)
    database = {asked: entry("walk"), "y": entry("walk"), "z": entry("walk", subset="test")}
    annotations = read_annotations(put(tmp_path / "a.json", {"database": database}))
    split = put(tmp_path / "split.json", {"labelled": [stored]})
    assert build_split(annotations, DataSettings(split_file=str(split))).labelled == (asked,)
    assert without_excluded(annotations, f"{stored}, ").excluded == (asked,)


def test_point_6_two_spellings_in_one_file_are_refused(tmp_path):
    both = {"x": [], "v_x": []}
    with pytest.raises(DataError, match="'x' and 'v_x', which are one video"):
        read_submission(put(tmp_path / "p.json", {"results": both}), ["x"], ["walk"])
    with pytest.raises(DataError, match="'walk' and ' walk', which are one name"):
        read_thresholds(put(tmp_path / "t.json", {"walk": 0.5, " walk": 0.5}), ["walk"])
    with pytest.raises(DataError, match="'walk' and 'walk ', which are one name"):
        read_class_scores(put(tmp_path / "s.json", {"class": ["walk", "walk "], "results": {}}), [], ["walk"])
    (tmp_path / "features").mkdir()
    for name in ("x", "x "):
        np.save(tmp_path / "features" / f"{name}.npy", np.ones((5, 2), np.float32))
    with pytest.raises(DataError, match="'x' and 'x ', which are one name"):
        open_folder(tmp_path, GridSettings())


def test_point_4_nearest_is_said_and_not_guessed():
    assert find_recording("Video_1.mp4", {"video_1"}) is None
    assert nearest("Video_1.mp4", ["other", "v_video_1"]) == "v_video_1"
    assert lookalikes(["P1_11", "P11_1"], loose_recording) == []


def test_point_7_misspelt_keys(tmp_path):
    wrong = {"subset": "training", "duration": 5, "Annotations": []}
    with pytest.raises(DataError, match="found an unknown key 'Annotations'; expected the key 'annotations'"):
        read_annotations(put(tmp_path / "a.json", {"database": {"a": wrong}}))
    row = {"segmnet": [1, 2], "label": "walk"}
    with pytest.raises(DataError, match="found an unknown key 'segmnet'; expected the key 'segment'"):
        read_annotations(put(tmp_path / "b.json", {"database": {"a": wrong | {"annotations": [row]}}}))
    both = {"a": wrong | {"annotations": [row | {"segment": [1, 2]}]}}
    notes = read_annotations(put(tmp_path / "c.json", {"database": both})).notes
    assert [note.split("key ")[1].split(" and")[0] for note in notes] == [
        "'Annotations' resembles 'annotations'", "'segmnet' resembles 'segment'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"score": True}, {"score": "0.5"}, {"score": "1_0"}, {"score": float("nan")}, {"segment": "12"},
        {"segment": {"3": 1, "4": 2}}, {"segment": [True, 2]}, {"segment": [5, 2]}, {"segment": [1, 2, 3]},
        {"segment": ["1", "2"]}, {"label": 3},
    ],
)  # fmt: skip
def test_point_7_impossible_predictions(tmp_path, change):
    row = {"label": "walk", "score": 0.5, "segment": [1, 2]} | change
    with pytest.raises(DataError, match=r"video 'x', results\[0\]"):
        read_submission(put(tmp_path / "p.json", {"results": {"x": [row]}}), ["x"], ["walk"])


@pytest.mark.parametrize("value", [-5, 7, True, "0.5", float("nan")])
def test_point_7_thresholds_are_in_0_to_1(tmp_path, value):
    with pytest.raises(DataError, match=r"'walk': found .*; expected a number in \[0, 1\]"):
        read_thresholds(put(tmp_path / "t.json", {"walk": value}), ["walk"])


def test_point_7_a_misspelt_subset_of_a_split(tmp_path):
    database = {"x": entry("walk"), "y": entry("walk"), "z": entry("walk", subset="test")}
    annotations = read_annotations(put(tmp_path / "a.json", {"database": database}))
    table = tmp_path / "split.csv"
    table.write_text("video,subset\nx,training\ny,trainig\n")
    with pytest.raises(DataError, match=r"line 3, video 'y', subset: found 'trainig' of .* nearest is 'training'"):
        build_split(annotations, DataSettings(split_file=str(table)))


def test_point_15_exclude(tmp_path):
    database = {name: entry("walk") for name in ("abc", "def", "ghi")}
    annotations = read_annotations(put(tmp_path / "a.json", {"database": database}))
    (tmp_path / "gone.txt").write_text("abc\n\nv_def\n")
    for exclude in ("abc,def", str(tmp_path / "gone.txt"), str(put(tmp_path / "gone.json", ["def", "abc"]))):
        found = without_excluded(annotations, exclude)
        assert list(found.videos) == ["ghi"] and found.excluded == ("abc", "def")
    with pytest.raises(DataError, match=r"`data.exclude`: found 'ABC', which is not annotated, the nearest is 'abc'"):
        without_excluded(annotations, "ABC")
    with pytest.raises(DataError, match=r"gone.json: found '3'; expected a JSON list"):
        without_excluded(annotations, str(put(tmp_path / "gone.json", 3)))


def test_point_6_what_cannot_be_seen_is_named() -> None:
    """A space of no width, and a Cyrillic letter among Latin ones."""
    notes = lookalike_notes("a.json", ["turning", "turn\u200bing", "w\u0430lking", "идти", "café"], [])
    assert len(notes) == 2 and "'turning' and 'turn\\u200bing'" in notes[0]
    assert "letters of two alphabets" in notes[1] and "w\\u0430lking" in notes[1] and "идти" not in notes[1]


def test_point_6_a_recording_is_not_there_twice() -> None:
    refuse_twins(["a", "v_b"], "a.json")
    with pytest.raises(DataError, match="'b' and 'v_b', which are one recording"):
        refuse_twins(["a", "b", "v_b"], "a.json")
