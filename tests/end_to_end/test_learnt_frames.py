"""Frames of a finished run: what is drawn, what their true class is, and what networks make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fixtures import smoke_settings

from apl_jax.data.files import load_json
from apl_jax.report import finished_run
from apl_jax.runs.context import TRAINING, UNLABELLED_TRUTH, RunContext, StageInputs
from apl_jax.runs.frames import Frames, representations, sample_frames
from apl_jax.runs.run import open_run


@pytest.fixture(scope="module")
def context(small_run: Path) -> RunContext:
    return open_run(finished_run.open_run(small_run).settings, small_run)


@pytest.fixture(scope="module")
def inputs(context: RunContext) -> StageInputs:
    return context.inputs((TRAINING, UNLABELLED_TRUTH))


@pytest.fixture(scope="module")
def frames(inputs: StageInputs) -> Frames:
    return sample_frames(inputs, videos=6, frames=60)


def test_frames_are_shared_among_the_classes(inputs: StageInputs, frames: Frames) -> None:
    counts = np.bincount(frames.kind, minlength=len(inputs.classes) + 1)
    assert counts.max() == 60 // 5 and counts.min() >= 1
    places = set(zip(frames.row.tolist(), frames.step.tolist(), strict=True))
    lengths = inputs.table("unlabelled").lengths[frames.videos[frames.row]]
    assert len(places) == len(frames.kind) and (frames.step < lengths).all()


def test_kinds_are_the_annotated_classes(context: RunContext, frames: Frames) -> None:
    table = context.dataset.unlabelled
    for row, step, kind in zip(frames.row, frames.step, frames.kind, strict=True):
        v = frames.videos[row]
        record, time = context.truth.videos[table.ids[v]], float(table.grids[v].to_s(np.array([step]))[0])
        covering = [c for (a, b), c in zip(record.segments_s, record.labels, strict=True) if a <= time <= b]
        assert kind in (covering or [len(context.dataset.classes)])


def test_only_stages_that_say_so_see_frames_and_their_truth(context: RunContext) -> None:
    for reads in ((TRAINING,), (UNLABELLED_TRUTH,)):
        with pytest.raises(RuntimeError, match="without having said so"):
            sample_frames(context.inputs(reads), videos=6, frames=60)


def test_representations_are_of_the_stages(context: RunContext, inputs: StageInputs, frames: Frames) -> None:
    stages = {"teacher": "teacher", "student": "self_train_1"}
    found = representations(smoke_settings().detector, inputs, stages, frames)
    assert list(found) == ["input features", "as initialised", "teacher", "student"]
    inputs = np.asarray(context.unlabelled.whole().features)[frames.videos[frames.row], frames.step]
    np.testing.assert_array_equal(found["input features"], inputs)
    assert len({x.shape for name, x in found.items() if name != "input features"}) == 1
    assert np.abs(found["teacher"] - found["student"]).max() > 0 and np.isfinite(found["student"]).all()


def test_a_run_keeps_its_plane(small_run: Path) -> None:
    for stage in ("teacher", "self_train_1"):
        document = load_json(small_run / "stages" / f"{stage}_label_space" / "label_space.json")
        points, truth = np.array(document["plane"]["points"]), np.array(document["plane"]["truth"])
        assert points.shape == (len(truth), 2) and np.isfinite(points).all() and np.ptp(points, axis=0).min() > 0
        assert truth.max() < len(document["classes"])
