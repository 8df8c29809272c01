"""Frames of unlabelled videos that are looked at: only of those that somebody annotated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from apl_jax.data.annotations import VideoRecord, unannotated
from apl_jax.runs.frames import sample_frames
from apl_jax.structs import TimeGrid

GRID = TimeGrid(fps=1.0, stride=1, window=1, length=20)
ANNOTATED = VideoRecord(
    "a", "training", 20.0, 1.0, None, np.array([[2.0, 6.0], [9.0, 12.0]]), np.zeros(2, np.int32),
    np.ones(2, np.float32), np.array([False, True]),
)  # fmt: skip


def inputs(*records: VideoRecord) -> Any:
    table = SimpleNamespace(ids=[r.id for r in records], lengths=[20] * len(records), grids=[GRID] * len(records))
    return SimpleNamespace(table=lambda videos: table, unlabelled_truth=lambda: list(records), classes=("walk",))


def test_point_1_and_3_frames_of_which_the_truth_is_known() -> None:
    """Of video 1 alone; none under the ignored instance, which is neither its class nor background."""
    bare = [unannotated(name, 20.0, 1.0) for name in "bc"]
    found = sample_frames(inputs(bare[0], ANNOTATED, bare[1]), videos=2, frames=1000)
    assert found.videos.tolist() == [1] and set(found.row.tolist()) == {0}
    assert set(found.kind.tolist()) == {0, 1}
    times_s = GRID.to_s(found.step)
    assert ((times_s >= 2) & (times_s <= 6) == (found.kind == 0)).all()
    assert not ((times_s >= 9) & (times_s <= 12)).any()


def test_point_1_no_frames_where_nobody_annotated_anything() -> None:
    found = sample_frames(inputs(unannotated("b", 20.0, 1.0)), videos=2, frames=1000)
    assert len(found.videos) == len(found.row) == len(found.kind) == 0
