"""What the true class is to a snippet, counted by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apl_jax.data.annotations import VideoRecord
from apl_jax.evaluation.label_space import examples, frame_truth, label_space, planar_embedding
from apl_jax.learning.class_division import ClassRelation

T, P, N, A = (
    int(x) for x in (ClassRelation.TARGET, ClassRelation.POSITIVE, ClassRelation.NEGATIVE, ClassRelation.AMBIGUOUS)
)
# Two videos of four snippets over two actions and background; the last snippet of the second is padding.
PART = np.array(
    [
        [[T, P, N], [P, T, N], [N, A, T], [T, N, N]],
        [[T, N, N], [A, T, N], [N, P, T], [T, P, P]],
    ]
)
TRUTH = np.array([[0, 0, 2, 1], [0, 0, 1, 1]])
MASK = np.array([[True] * 4, [True] * 3 + [False]])


def test_shares_by_hand() -> None:
    found = label_space(PART, MASK, TRUTH)
    # True classes are, in order: target, positive, target, negative; target, ambiguous, positive.
    assert found["all"]["snippets"] == 7
    assert found["all"]["target"] == pytest.approx(3 / 7) and found["all"]["positive"] == pytest.approx(2 / 7)
    assert found["all"]["when_wrong"] == pytest.approx(
        {"snippets": 4, "positive": 0.5, "negative": 0.25, "ambiguous": 0.25}
    )
    assert found["foreground"]["snippets"] == 6 and found["foreground"]["target"] == pytest.approx(2 / 6)


def test_shares_of_nothing() -> None:
    found = label_space(PART, np.zeros_like(MASK), TRUTH)["all"]
    assert found["snippets"] == 0 and found["target"] is None and found["when_wrong"]["positive"] is None


def test_the_shortest_instance_names_a_snippet() -> None:
    segments = np.array([[1.0, 9.0], [3.0, 5.0]])
    record = VideoRecord("v", "training", 10.0, 30.0, None, segments, np.array([0, 1]), np.ones(2), np.zeros(2, bool))
    times = np.array([0.5, 1.0, 2.9, 3.0, 5.0, 5.1, 9.1])
    assert frame_truth(times, record, 2).tolist() == [2, 0, 0, 1, 1, 0, 2]
    nothing = dataclasses.replace(record, segments_s=segments[:0], labels=record.labels[:0], ignore=record.ignore[:0])
    assert frame_truth(times, nothing, 2).tolist() == [2] * 7
    # What nobody annotated, and what is to be ignored, has no true class.
    assert frame_truth(times, record.without_annotations(), 2).tolist() == [-1] * 7
    ignored = dataclasses.replace(record, ignore=np.array([False, True]))
    assert frame_truth(times, ignored, 2).tolist() == [2, 0, 0, -1, -1, 0, 2]


def test_examples_are_divided_foreground_of_both_kinds() -> None:
    draws = np.random.default_rng(0)
    probability = draws.dirichlet([1, 1, 1], (2, 4))
    time_t = np.tile(np.arange(4.0), (2, 1))
    shown = examples(probability, PART, time_t, MASK, TRUTH, 4)
    assert len(shown) == 4
    for row, kind in zip(shown, ("wrong", "wrong", "right", "right"), strict=True):
        v, s = row["video"], int(row["time_t"])
        assert MASK[v, s] and TRUTH[v, s] != 2 and row["truth"] == TRUTH[v, s] and row["part"] == PART[v, s].tolist()
        assert (row["part"][row["truth"]] == T) == (kind == "right")
    assert examples(probability, PART, time_t, np.zeros_like(MASK), TRUTH, 4) == []


def test_plane_keeps_neighbours_together_and_is_the_same_twice() -> None:
    draws = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 20)
    features = 20 * np.repeat(np.eye(3), 5, axis=1)[group] + draws.normal(size=(60, 15))
    points = planar_embedding(features)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(60)
    assert (group[distance.argmin(1)] == group).all()
    np.testing.assert_array_equal(points, planar_embedding(features))
    assert planar_embedding(features[:3]).tolist() == [[0, 0]] * 3
