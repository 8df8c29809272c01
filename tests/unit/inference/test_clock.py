"""Prediction says whose clock it takes, refuses annotations of other recordings, and notes what is improbable."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from fixtures import FEATURE_WIDTH
from small_models import make_run, small_card

from apl_jax.data.files import DataError
from apl_jax.inference.prediction import Request, choose_thresholds, predict


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("model"), small_card(fps=30.0))


@pytest.fixture
def features(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    for i in range(4):
        np.save(folder / f"walk_{i}.npy", np.random.default_rng(i).normal(size=(100, FEATURE_WIDTH)).astype(np.float32))
    return folder


def annotations(path: Path, names: list[str], fps: float | None = 12.5, duration_s: float = 24.1) -> Path:
    entry = {"duration": duration_s, "annotations": []} | ({} if fps is None else {"fps": fps})
    path.write_text(json.dumps({"database": {name: entry for name in names}}))
    return path


NAMES = [f"walk_{i}" for i in range(4)]


def said(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [message for message in caplog.messages if message.startswith(word)]


def test_point_4_the_clock_and_its_source_are_said(model, features, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for request, expected in [
        (Request(features), "clock: 30 per second (training)"),
        (Request(features, fps=25.0), "clock: 25 per second (`fps`)"),
        (
            Request(features, annotations=annotations(tmp_path / "a.json", ["v_walk_1 ", "walk_2", "else"])),
            "clock: 30 per second (training) for 2, 12.5 per second (annotations) for 2",
        ),
    ]:
        caplog.clear()
        predict(model, request)
        assert said(caplog, "clock") == [expected]
    (note,) = said(caplog, "note: ")
    assert "has no entry for 2 of 4 recordings, such as 'walk_0', 'walk_3'; the nearest entry to the first is" in note
    (features / "features.json").write_text(json.dumps({"stride": 3, "window": 4, "width": FEATURE_WIDTH, "fps": 20}))
    caplog.clear()
    predict(model, Request(features))
    assert said(caplog, "clock") == ["clock: 20 per second (features.json)"]


@pytest.mark.parametrize("name", ["Walk_0", "walk_0.mp4"])
def test_point_4_annotations_of_other_recordings_are_refused(model, features, tmp_path, name):
    path = annotations(tmp_path / "a.json", [name])
    with pytest.raises(DataError, match=f"none of 4 recordings: they have names such as 'walk_0', not '{name}'"):
        predict(model, Request(features, annotations=path))


def test_point_4_a_systematic_ratio_is_noted(model, features, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for i, name in enumerate(NAMES):
        np.save(features / f"{name}.npy", np.ones((2000 + i, FEATURE_WIDTH), np.float32))  # 480 s
    predict(model, Request(features, annotations=annotations(tmp_path / "a.json", NAMES, 12.5, 480.0)))
    assert not said(caplog, "note: the features")
    predict(model, Request(features, annotations=annotations(tmp_path / "b.json", NAMES, 12.0, 480.0)))
    (note,) = said(caplog, "note: the features")
    assert "1.04 times as long" in note and "about 12.5 frames per second instead of 12 " in note


def test_point_7_improbable_values_are_noted_by_training_statistics(model, features, caplog):
    caplog.set_level(logging.INFO)
    rows = np.load(features / "walk_2.npy")
    rows[17, 3] = 5000.0
    np.save(features / "walk_2.npy", rows)
    predict(model, Request(features))
    (note,) = said(caplog, "note: 1 recordings with values")
    assert "recording 'walk_2', row 17, channel 3: 5000 (usual: " in note


@pytest.mark.parametrize("fps", [1e-300, 1e-4, 1e7, float("nan")])
def test_point_7_impossible_rates(features, fps):
    with pytest.raises(DataError, match=r"`fps`: found .* from 0.001 to 1e6"):
        Request(features, fps=fps)


@pytest.mark.parametrize("score", [-0.1, 3.0])
def test_point_7_thresholds_need_scores_in_0_to_1(model, tmp_path, score):
    row = {"label": "größe 1", "segment": [1, 2]}
    truth = {"a": {"duration": 5, "annotations": [row]}}
    (tmp_path / "a.json").write_text(json.dumps({"database": truth}))
    (tmp_path / "p.json").write_text(json.dumps({"results": {"v_a": [row | {"score": score}]}}))
    with pytest.raises(DataError, match=r"found a score of .* expected scores in \[0, 1\]"):
        choose_thresholds(model, tmp_path / "a.json", tmp_path / "p.json", "", 0.5)
