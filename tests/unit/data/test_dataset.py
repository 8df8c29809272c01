"""What a run knows of its data: an identity that no split changes, rates of features.json, notes, what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from apl_jax.data.dataset import Dataset, open_dataset, open_truth
from apl_jax.settings import DataSettings

SECONDS = 40


def put(root: Path, fps: float | None = 10.0, spoilt: float = 0.0) -> Path:
    """A data folder with ten recordings of 400 rows."""
    (root / "features").mkdir(parents=True)
    database = {}
    for i in range(10):
        rows = np.random.default_rng(i).normal(size=(SECONDS * 10, 3)).astype(np.float32)
        if i == 4 and spoilt:
            rows[7, 1] = spoilt
        np.save(root / "features" / f"r{i}.npy", rows)
        entry = {"subset": "test" if i > 7 else "training", "duration": SECONDS} | ({"fps": fps} if fps else {})
        database[f"r{i}"] = entry | {"annotations": [{"segment": [5, 9], "label": "walk"}]}
    (root / "annotations.json").write_text(json.dumps({"database": database}))
    return root


def opened(root: Path, **changes) -> Dataset:
    return open_dataset(DataSettings(root=str(root), window=1, stride=1, label_ratio=0.5, **changes))


def test_point_5_the_identity_is_that_of_features_recordings_and_classes(tmp_path):
    one = opened(put(tmp_path / "a"))
    assert one.identity == opened(tmp_path / "a", split_seed=3).identity == opened(put(tmp_path / "b")).identity
    assert one.identity != opened(put(tmp_path / "c", spoilt=0.5)).identity
    assert one.identity != opened(tmp_path / "a", exclude="r1").identity


def test_point_4_a_rate_of_features_json_serves_where_annotations_have_none(tmp_path):
    root = put(tmp_path / "a", fps=None)
    (root / "features.json").write_text(json.dumps({"stride": 1, "window": 1, "width": 3, "fps": 10}))
    dataset = opened(root)
    assert {grid.fps for grid in (*dataset.all_training.grids, *dataset.evaluation.grids)} == {10.0}
    assert {record.fps for record in open_truth(DataSettings(root=str(root))).videos.values()} == {10.0}
    assert dataset.identity == opened(put(tmp_path / "b")).identity


@pytest.mark.parametrize(("fps", "word"), [(10.0, ""), (9.6, "1.04 times as long as annotated in 100% of 10")])
def test_point_4_a_systematic_ratio_is_among_the_notes(tmp_path, fps, word):
    notes = opened(put(tmp_path / "a", fps)).notes
    assert len(notes) == bool(word) and all(word in note and "about 10 frames per second" in note for note in notes)


def test_point_7_an_improbable_row_is_among_the_notes(tmp_path):
    (note,) = opened(put(tmp_path / "a", spoilt=65504.0)).notes
    assert "recording 'r4', row 7, channel 1: 65504" in note


def test_point_15_excluded_recordings_are_gone_and_counted(tmp_path):
    dataset = opened(put(tmp_path / "a"), exclude="v_r1,r9")
    videos = {*dataset.all_training.ids, *dataset.evaluation.ids}
    assert dataset.excluded == ("r1", "r9") and len(videos) == 8 and not videos & {"r1", "r9"}
    assert "2 recordings left out by `data.exclude`" in dataset.notes[0]
