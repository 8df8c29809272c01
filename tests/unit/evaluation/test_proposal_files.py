"""Proposals from a file: which recordings it must have, and what of its segments comes on their grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apl_jax.data.files import DataError
from apl_jax.evaluation.proposal_files import proposals_digest, read_given_proposals
from apl_jax.structs import TimeGrid

IDS = ("a", "v_b", "c")
GRID = TimeGrid(fps=10.0, stride=5.0, window=10.0, length=19)  # ten seconds, two rows each, the first at .5 s


def segment(start: float, end: float, score: float, **more: Any) -> dict[str, Any]:
    return {"segment": [start, end], "score": score, **more}


def write(path: Path, results: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"version": "1", "results": results}))
    return path


def test_the_surest_of_each_recording_on_its_grid(tmp_path: Path) -> None:
    rows = {
        "a": [
            segment(1, 3, 0.2),
            segment(2, 4, 0.9, label="run"),
            segment(2, 4, 0.8, label="walk"),
            segment(5, 6, 0.1),
        ],
        "b": [segment(-1, 30, 0.5), segment(11, 12, 0.4), segment(7, 7, 0.3)],
        "c": [],
        "another": [segment(0, 1, 0.5)],
    }
    given = read_given_proposals(write(tmp_path / "given.json", rows), IDS, 2)
    assert given.most == 2, "a segment under two classes is one, and the third of a recording is left out"
    found = given.on_grids([1, 0, 2], [GRID] * 3, [10.0] * 3)
    assert found.mask.tolist() == [[True, False], [True, True], [False, False]]
    np.testing.assert_allclose(GRID.to_s(found.segments_t[found.mask]), [[0, 10], [2, 4], [1, 3]], atol=1e-6)
    np.testing.assert_allclose(found.confidence[found.mask], [0.5, 0.9, 0.2])
    shapes = {name: getattr(found, name).shape for name in ("labels", "score", "tiou", "tnd")}
    assert set(shapes.values()) == {(3, 2)} and not found.labels.any()
    assert found.segments_t.dtype == np.float32 and found.labels.dtype == np.int32
    (note,) = given.notes
    assert "1 recording with an empty list of proposals" in note and "'c'" in note


def test_a_table_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "given.csv"
    path.write_text("video,start_s,end_s,score\na,1,2,0.5\nb,1,3,0.25\nc,0,1,1\n")
    given = read_given_proposals(path, IDS, 800)
    assert given.most == 1 and given.notes == () and given.instances.video.tolist() == [0, 1, 2]
    assert len(proposals_digest(path)) == 16


def test_recordings_without_an_entry_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "given.json", {"a": [segment(0, 1, 0.5)]})
    with pytest.raises(
        DataError, match=r"given.json.*no entry for 2 of 3 recordings: 'v_b', 'c'.*an empty list"
    ) as caught:
        read_given_proposals(path, IDS, 800)
    assert "results" in str(caught.value)


@pytest.mark.parametrize(
    "results, said",
    [
        ({"a": [segment(0, 1, 7.5)], "b": [], "c": []}, r"a score of 7.5 \(1 such scores\).*sigmoid"),
        ({"a": [segment(0, 1, -0.5)], "b": [], "c": []}, "a score of -0.5"),
        ({"a": [segment(2, 1, 0.5)], "b": [], "c": []}, "no end before its start"),
        ({"a": [{"segment": [0, 1]}], "b": [], "c": []}, "score"),
        ({"a": {}, "b": [], "c": []}, "an object that maps each video to a list"),
        ({"another": [segment(0, 1, 0.5)]}, "'another', none of them known"),
    ],
)
def test_what_cannot_be_is_refused(results: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_given_proposals(write(tmp_path / "given.json", results), IDS, 800)


def test_frames_in_place_of_seconds_are_refused(tmp_path: Path) -> None:
    frames = {"a": [segment(100, 250, 0.5), segment(0, 30, 0.4), segment(300, 500, 0.2)], "b": [], "c": []}
    given = read_given_proposals(write(tmp_path / "given.json", frames), IDS, 800)
    with pytest.raises(DataError, match=r"2 of 3 proposals outside of their recording.*segments in seconds"):
        given.on_grids([0, 1, 2], [GRID] * 3, [10.0] * 3)


def test_no_proposal_at_all(tmp_path: Path) -> None:
    given = read_given_proposals(write(tmp_path / "given.json", {"a": [], "b": [], "c": []}), IDS, 800)
    found = given.on_grids([0, 1, 2], [GRID] * 3, [10.0] * 3)
    assert found.mask.shape == (3, 1) and not found.mask.any()
