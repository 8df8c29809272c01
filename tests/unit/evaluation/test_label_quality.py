"""Quality of pseudo labels against truth, on a case small enough to work out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apl_jax.evaluation.average_precision import Instances, instances_from_videos
from apl_jax.evaluation.label_quality import SETS, label_quality, quality_per_class, set_quality
from apl_jax.structs import Reason

WALK, RUN = 0, 1
TRUTH = instances_from_videos([[(0, 10), (20, 30)], [(0, 4)]], [[WALK, RUN], [WALK]])

# (video, class, segment, score, reason, largest tIoU with any instance, largest tIoU with one of its class)
ROWS = (
    (0, WALK, (0, 10), 0.9, Reason.KEPT, 1.0, 1.0),
    (0, WALK, (0, 8), 0.8, Reason.KEPT, 0.8, 0.8),  # right, but a second label on the same instance
    (0, WALK, (20, 30), 0.7, Reason.DROPPED, 1.0, 0.0),  # wrong class: rightly dropped
    (0, RUN, (18, 26), 0.6, Reason.DROPPED, 0.5, 0.5),  # positive at exactly .5: wrongly dropped
    (1, WALK, (2, 8), 0.4, Reason.PROMOTED, 0.25, 0.25),  # right class, badly placed
    (1, RUN, (50, 60), 0.3, Reason.PROMOTED, 0.0, 0.0),  # background
    (1, WALK, (0, 4), 0.2, Reason.CANDIDATE, 1.0, 1.0),  # neither of these is a pseudo label
    (1, WALK, (0, 4), 0.1, Reason.BELOW_THRESHOLD, 1.0, 1.0),
)
LABELS = Instances(*(np.array([row[i] for row in ROWS]) for i in range(4)))
REASON = np.array([int(row[4]) for row in ROWS])


def test_every_set_by_hand() -> None:
    quality = label_quality(LABELS, REASON, TRUTH)
    assert json.loads(json.dumps(quality, allow_nan=False)) == quality
    assert quality["truth"] == 3
    assert set(quality) == {"truth", *SETS}
    assert {name: quality[name]["count"] for name in SETS} == {
        "before_icd": 4,
        "after_eap": 2,
        "after_mpp": 6,
        "final": 4,
        "dropped": 2,
        "promoted": 2,
    }
    assert quality["before_icd"] == {
        "count": 4,
        "on_background": 0,
        "class_accuracy": 3 / 4,
        "mean_tiou": pytest.approx((1 + 0.8 + 1 + 0.5) / 4),
        "positive_accuracy": 3 / 4,
        "precision": 2 / 4,  # the second label on one instance is false here
        "recall": pytest.approx(2 / 3),
    }
    assert quality["after_mpp"]["class_accuracy"] == 4 / 5  # of the five that touch an instance
    assert quality["after_mpp"]["mean_tiou"] == pytest.approx((1 + 0.8 + 1 + 0.5 + 0.25 + 0) / 6)
    assert quality["final"] == {
        "count": 4,
        "on_background": 1,
        "class_accuracy": 1.0,
        "mean_tiou": pytest.approx((1 + 0.8 + 0.25) / 4),
        "positive_accuracy": 2 / 4,
        "precision": 1 / 4,
        "recall": pytest.approx(1 / 3),
    }
    assert (quality["dropped"]["class_accuracy"], quality["dropped"]["positive_accuracy"]) == (0.5, 0.5)
    assert (quality["promoted"]["class_accuracy"], quality["promoted"]["positive_accuracy"]) == (1.0, 0.0)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_overlap_of_one_label(row: int) -> None:
    best, best_of_class = ROWS[row][5:]
    quality = set_quality(LABELS.select(np.array([row])), TRUTH)
    assert quality["mean_tiou"] == pytest.approx(best)
    assert quality["positive_accuracy"] == float(best_of_class >= 0.5)
    assert quality["class_accuracy"] == (None if best == 0 else float(best == best_of_class))


def test_either_of_two_classes_on_one_place_is_right() -> None:
    truth = instances_from_videos([[(0, 10), (0, 10)]], [[WALK, RUN]])
    labels = instances_from_videos([[(1, 9), (1, 9)]], [[WALK, RUN]], [[0.5, 0.6]])
    quality = set_quality(labels, truth)
    assert (quality["class_accuracy"], quality["precision"], quality["recall"]) == (1.0, 1.0, 1.0)


def test_order_of_the_labels_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(LABELS))
    assert label_quality(LABELS.select(order), REASON[order], TRUTH) == label_quality(LABELS, REASON, TRUTH)


def test_the_best_score_chooses_first() -> None:
    """The better label takes the instance that both want, although the weaker one could use no other."""
    truth = instances_from_videos([[(0, 10), (2, 12)]], [[WALK, WALK]])
    weak_first = instances_from_videos([[(0, 5.5), (0.5, 10.5)]], [[WALK, WALK]], [[0.1, 0.9]])
    quality = set_quality(weak_first, truth)
    assert (quality["positive_accuracy"], quality["precision"], quality["recall"]) == (1.0, 0.5, 0.5)


def test_duplicate_truth_counts_once() -> None:
    twice = TRUTH.select(np.array([0, 0, 1, 2, 2]))
    assert label_quality(LABELS, REASON, twice) == label_quality(LABELS, REASON, TRUTH)


def test_no_labels_and_no_truth() -> None:
    nothing = instances_from_videos([], [])
    empty = {"count": 0, "on_background": 0, "class_accuracy": None, "mean_tiou": None, "positive_accuracy": None}
    assert set_quality(nothing, TRUTH) == {**empty, "precision": None, "recall": 0.0}
    assert set_quality(nothing, nothing) == {**empty, "precision": None, "recall": None}
    alone = set_quality(LABELS, nothing)
    assert (alone["on_background"], alone["class_accuracy"], alone["precision"]) == (len(LABELS), None, 0.0)


def test_per_class_parts_make_the_whole() -> None:
    parts = quality_per_class(LABELS, REASON, TRUTH, ["walk", "run"], "before_icd")
    assert list(parts) == ["walk", "run"]
    assert [part["count"] for part in parts.values()] == [3, 1]
    assert [part["class_accuracy"] for part in parts.values()] == [pytest.approx(2 / 3), 1.0]
    assert [part["recall"] for part in parts.values()] == [1 / 2, 1.0]


def test_reasons_must_match_labels() -> None:
    with pytest.raises(ValueError, match="reasons for 8 pseudo labels"):
        label_quality(LABELS, REASON[:-1], TRUTH)
