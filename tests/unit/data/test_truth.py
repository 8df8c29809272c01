"""The truth that predictions are judged by: one reader, labels in the order of the model's classes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from apl_jax.data.files import DataError
from apl_jax.data.truth import read_truth

EPIC = {
    "EPIC_100_train.csv": ["P01_01,P01_01_0,0:00:01,0:00:02,3,12"],
    "EPIC_100_validation.csv": ["P30_01,P30_01_0,0:00:01,0:00:02,0,299"],
}
HEADER = "video_id,narration_id,start_timestamp,stop_timestamp,verb_class,noun_class"


def write(path: Path, *labels: str, video: str = "v") -> Path:
    """An annotation file without durations: instance i of one video has the i-th label."""
    rows = [{"segment": [i, i + 1], "label": label} for i, label in enumerate(labels)]
    path.write_text(json.dumps({"database": {video: {"annotations": rows}}}))
    return path


@pytest.fixture
def epic(tmp_path: Path) -> Path:
    for name, rows in EPIC.items():
        timed = [row.replace(",0:00", ",00:00") for row in rows]
        (tmp_path / name).write_text("\n".join([HEADER, *timed]) + "\n")
    with (tmp_path / "EPIC_100_video_info.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video_id", "duration", "fps"], ["P01_01", 60, 50], ["P30_01", 60, 50]])
    return tmp_path


@pytest.mark.parametrize("name", ["own.json", "thumos14.json", "annotations.json"])
def test_point_13_labels_are_numbered_by_the_models_classes(tmp_path: Path, name: str) -> None:
    """Whatever the file is called: under its own numbers "run" would be judged as "jump"."""
    found = read_truth(write(tmp_path / name, "run", "walk"), ("jump", "walk", "run"))
    assert found.classes == ("jump", "walk", "run") and found.videos["v"].labels.tolist() == [2, 1]
    with pytest.raises(DataError, match=r"video 'v', label: found unknown class 'run'; expected one of jump, walk"):
        read_truth(tmp_path / name, ("jump", "walk"))


@pytest.mark.parametrize(
    ("name", "video", "left"),
    [("thumos14.json", "v", 1), ("mine.json", "video_test_0000004", 1), ("mine.json", "v", 2)],
)  # fmt: skip
def test_point_13_ambiguous_goes_by_file_and_videos(tmp_path: Path, name: str, video: str, left: int) -> None:
    """A class of one's own may be called so; THUMOS14's is none, also for a model that does not know it."""
    path = write(tmp_path / name, "Ambiguous", "walk", video=video)
    assert len(read_truth(path).videos[video].labels) == left
    if left == 1:
        found = read_truth(path, ("walk",))
        assert found.videos[video].labels.tolist() == [0]
        assert found.notes == (f"{path}: 1 segments of the class 'Ambiguous' left out",)


def test_point_13_tables_are_read_for_the_task_of_the_model(epic: Path) -> None:
    """A model of 300 nouns is not judged by verbs that have the same numbers."""
    nouns = tuple(map(str, range(300)))
    found = read_truth(epic, nouns)
    assert found.classes == nouns and found.videos["P30_01"].labels.tolist() == [299]
    assert read_truth(epic).videos["P30_01"].labels.tolist() == [0]
    assert read_truth(epic, task="noun").videos["P01_01"].labels.tolist() == [12]
    with pytest.raises(DataError, match="unknown class '1'"):
        read_truth(epic, ("0",))
