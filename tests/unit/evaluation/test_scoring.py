"""Who is scored, on what, and what is said about the rest."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from apl_jax.data.annotations import VideoRecord, unannotated
from apl_jax.evaluation.average_precision import instances_from_videos
from apl_jax.evaluation.scoring import coverage_notes, on_annotated, score, why_not_scored
from apl_jax.evaluation.submission import Submission

CLASSES = ("walk", "run")


def video(name: str, *segments_s: tuple[float, float], duration_s: float = 100.0) -> VideoRecord:
    blank = unannotated(name, duration_s, 10.0)
    count = len(segments_s)
    return dataclasses.replace(
        blank, segments_s=np.array(segments_s).reshape(-1, 2), labels=np.zeros(count, np.int32),
        weight=np.ones(count, np.float32), ignore=np.zeros(count, bool), annotated=True,
    )  # fmt: skip


KNOWN = [video("a", (0, 10)), video("b"), unannotated("c", 100.0, 10.0)]


def test_point_1_only_annotated_videos_are_scored() -> None:
    """What is found in c, which nobody annotated, is no mistake; in b, where nothing happens, it is one."""
    right, guess = [(0, 10)], [(3, 9)]
    found = instances_from_videos([right, [], guess], [[0], [], [0]], [[0.5], [], [0.9]])
    assert score(KNOWN, found, CLASSES, (0.5,), (1,))["average_map"] == 1.0
    assert on_annotated(KNOWN, found).tolist() == [True, False]
    wrong = instances_from_videos([right, guess, []], [[0], [0], []], [[0.5], [0.9], []])
    assert score(KNOWN, wrong, CLASSES, (0.5,), (1,))["average_map"] == 0.5


def test_point_12_a_test_set_without_annotations_is_not_scored() -> None:
    bare = [unannotated(name, 10.0, 10.0) for name in "ab"]
    result = score(bare, instances_from_videos([[], []], [[], []], [[], []]), CLASSES, (0.5,), (1,))
    assert result["average_map"] is None and result["not_scored"] == "none of the 2 evaluated videos is annotated"
    only_ignored = dataclasses.replace(KNOWN[0], ignore=np.array([True]))
    assert why_not_scored([only_ignored, KNOWN[1]]) == "none of the 2 annotated videos has an instance that counts"
    assert why_not_scored(KNOWN) == ""


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ([[], [(1, 2)], []], "1 of 2 annotated videos have no predictions: all their instances are missed ('a')"),
        ([[(0, 10)], [], []], ""),
        ([[(300, 400)], [(250, 300)], [(1, 2)]], "2 of 3 predictions lie outside their video ('a', 'b'); are the"),
        ([[(0, 10), (300, 400)], [], []], "1 of 2 predictions lie outside their video ('a')"),
        ([[(5, 5)], [], []], "1 of 1 predictions have no length"),
    ],
)  # fmt: skip
def test_point_8_what_does_not_meet_is_said_once_for_each_kind(segments: list, said: str) -> None:
    labels, scores = ([[value] * len(rows) for rows in segments] for value in (0, 0.5))
    notes = coverage_notes(KNOWN, Submission(instances_from_videos(segments, labels, scores), (), ()))
    always = "1 of 3 videos are not annotated: not scored ('c')"
    assert always in notes
    others = [note for note in notes if note != always and not note.startswith("1 of 2 annotated")]
    if said.startswith("1 of 2 annotated"):
        assert said in notes and not others
    else:
        assert len(others) == bool(said) and all(note.startswith(said) for note in others)


def test_point_8_four_hundred_strangers_are_one_line() -> None:
    found = instances_from_videos([[(0, 10)], [], []], [[0], [], []], [[0.5], [], []])
    strangers = tuple(f"x{i}" for i in range(400))
    notes = coverage_notes(KNOWN, Submission(found, strangers, ("fly",)))
    assert notes[1:] == (
        "400 videos of the predictions are not among those of the truth: left out ('x0', 'x1', 'x2', ...)",
        "1 classes of the predictions are not among those of the truth: left out ('fly')",
    )


def test_point_8_an_empty_list_is_not_a_missing_one() -> None:
    records = [video("a", (0, 10)), video("b", (0, 10))]
    nothing = instances_from_videos([[], []], [[], []], [[], []])
    assert coverage_notes(records, Submission(nothing, (), (), frozenset({"b"}))) == (
        "1 of 2 annotated videos have no predictions: all their instances are missed ('a')",
        "1 of 2 annotated videos have an empty list of predictions: all their instances are missed ('b')",
    )


def test_point_12_a_score_on_some_videos_says_so() -> None:
    found = instances_from_videos([[(0, 10)], [], []], [[0], [], []], [[0.5], [], []])
    assert score(KNOWN, found, CLASSES, (0.5,), (1,))["unannotated"] == 1
    assert "unannotated" not in score(KNOWN[:2], found, CLASSES, (0.5,), (1,))


def test_an_unknown_duration_is_not_left() -> None:
    known = [video("a", (0, 10), duration_s=math.nan)]
    found = instances_from_videos([[(0, 10), (500, 600)]], [[0, 0]], [[0.5, 0.4]])
    assert not coverage_notes(known, Submission(found, (), ()))


def test_point_8_shares_of_a_video_in_place_of_seconds_are_guessed() -> None:
    found = instances_from_videos(
        [[(0.0, 0.1 + i / 20) for i in range(6)], [], []], [[0] * 6, [], []], [[0.5] * 6, [], []]
    )
    notes = coverage_notes(KNOWN, Submission(found, (), ()))
    assert any(note.startswith("all 6 predictions end within the first second: are these shares") for note in notes)
