"""What held-out detections tell, against plain loops and sums by hand."""

from __future__ import annotations

import numpy as np
import pytest

from apl_jax.evaluation.average_precision import Instances, average_precision
from apl_jax.evaluation.held_out import (
    BINS,
    Judged,
    best_operating_point,
    calibrate,
    calibration_error,
    contest,
    discrimination,
    fit_temperature,
    found_instances,
    judge,
    pooled_average_precision,
    reliability,
    surest_on,
)

TIOU = (0.3, 0.5)


def random_instances(generator: np.random.Generator, count: int, classes: int = 3, videos: int = 4) -> Instances:
    start = generator.uniform(0, 20, count)
    segments = np.stack([start, start + generator.uniform(0.5, 4, count)], -1)
    video, label = generator.integers(0, videos, count), generator.integers(0, classes, count)
    return Instances(video, label, segments, generator.uniform(size=count))


def test_a_detection_is_right_once_for_each_instance() -> None:
    truth = Instances(np.array([0, 0]), np.array([1, 2]), np.array([[0, 10], [20, 30.0]]), np.zeros(2))
    segments = np.array([[0, 9], [0, 10], [20, 30], [20, 30.0]])
    found = Instances(np.zeros(4), np.array([1, 1, 1, 2]), segments, np.array([0.5, 0.9, 0.8, 0.3]))
    judged = judge(truth, found, np.array([0.1, 0.2, 0.3, 0.4]))
    assert judged.confidence.tolist() == [0.9, 0.8, 0.5, 0.3]  # surest first, over classes
    assert judged.right.tolist() == [True, False, False, True]
    assert judged.similarity.tolist() == [0.2, 0.3, 0.1, 0.4]
    assert judged.truth.tolist() == [1, 2]


def test_pooled_precision_is_that_of_one_ranking_in_which_classes_must_agree() -> None:
    generator = np.random.default_rng(0)
    truth, found = random_instances(generator, 20), random_instances(generator, 60)
    apart = lambda t: Instances(t.video * 3 + t.label, np.zeros(len(t), int), t.segments_s, t.score)
    expected = average_precision(apart(truth), apart(found), TIOU, 1).average
    assert pooled_average_precision(truth, found, TIOU, 3) == expected
    wrong = Instances(found.video, (found.label + 1) % 3, found.segments_s, found.score)
    assert pooled_average_precision(truth, truth, TIOU, 3) == pytest.approx(1)
    assert pooled_average_precision(found, wrong, TIOU, 3) < 0.5


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_operating_point_has_the_best_f_score_of_all_thresholds(beta: float) -> None:
    generator = np.random.default_rng(1)
    confidence = np.sort(generator.choice(np.linspace(0.05, 0.95, 19), 40))[::-1]  # with ties
    right = generator.uniform(size=40) < confidence
    judged = Judged(confidence, right, np.zeros(40), np.zeros(30))
    point = best_operating_point(judged, beta)
    assert point is not None
    scores = {}
    for threshold in np.unique(confidence):
        chosen = confidence >= threshold
        precision, recall = right[chosen].mean(), right[chosen].sum() / 30
        scores[threshold] = (1 + beta**2) * precision * recall / max(beta**2 * precision + recall, 1e-12)
    assert scores[point.threshold] == pytest.approx(max(scores.values()))
    assert point.precision == right[confidence >= point.threshold].mean()
    assert point.count == (confidence >= point.threshold).sum()
    nothing = Judged(confidence, right & False, judged.similarity, judged.truth)
    assert best_operating_point(nothing, beta) is None


def test_calibration_mends_confidences_that_are_too_high() -> None:
    generator = np.random.default_rng(2)
    confidence = generator.uniform(size=4000)
    right = generator.uniform(size=4000) < confidence**2
    before = calibration_error(confidence, right)
    assert before == pytest.approx(1 / 6, abs=0.03)  # the mean of x - x^2
    corrected = calibrate(confidence[::2], right[::2]).predict(confidence[1::2])
    assert calibration_error(corrected, right[1::2]) < 0.04
    rows = reliability(confidence, right)
    assert len(rows) == BINS and sum(count for *_, count in rows) == 4000
    assert [mean for mean, *_ in rows] == sorted(mean for mean, *_ in rows)


def test_discrimination_is_the_share_of_pairs_in_the_right_order() -> None:
    right = np.array([True, False, True, False, True])
    similarity, confidence = np.array([0.9, 0.2, 0.4, 0.6, 0.1]), np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    judged = Judged(confidence, right, similarity, np.zeros(3))
    assert discrimination(judged, 0.5) == 3 / 4  # of .9 and .4 against .2 and .6
    assert discrimination(judged, 0.85) is None  # nothing wrong among them


def test_instances_are_found_by_the_surest_detections_of_their_class() -> None:
    truth = Instances(np.array([0, 1]), np.array([0, 1]), np.array([[0, 10], [0, 10.0]]), np.zeros(2))
    segments = np.array([[0, 10], [2, 10], [0, 10], [0, 10], [0, 10.0]])
    video, label = np.array([1, 0, 0, 0, 1]), np.array([0, 0, 1, 1, 1])
    found = Instances(video, label, segments, np.array([0.9, 0.8, 0.7, 0.6, 0.5]))
    assert found_instances(truth, found).tolist() == [True, False]  # the second one's is the fifth of four
    surer = Instances(video, label, segments, np.array([0.9, 0.8, 0.1, 0.2, 0.5]))
    assert found_instances(truth, surer).tolist() == [True, True]
    ignored = Instances(truth.video, truth.label, truth.segments_s, truth.score, np.array([False, True]))
    assert found_instances(ignored, surer).tolist() == [True]  # the second is not asked for
    nothing = found.select(np.zeros(5, bool))
    assert found_instances(truth, nothing).tolist() == [False, False]


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"), [(0, 0, 1.0), (1, 1, 0.75), (4, 0, 1 / 16), (3, 1, 5 / 16), (0, 2, 1.0)]
)
def test_a_contest_is_the_sign_test_of_gains_and_losses(gained: int, lost: int, p_value: float) -> None:
    challenger, incumbent = np.ones(12, bool), np.ones(12, bool)
    incumbent[:gained], challenger[gained : gained + lost] = False, False
    result = contest(challenger, incumbent)
    assert (result.gained, result.lost) == (gained, lost)
    assert result.p_value == pytest.approx(p_value)


def test_the_temperature_is_the_one_that_was_lost() -> None:
    """Classes drawn from distributions that a network then states as three times as sure."""
    draws = np.random.default_rng(0)
    logits = draws.normal(size=(4000, 5))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (honest.cumsum(1) < draws.uniform(size=(4000, 1))).sum(1)
    stated = honest**3 / (honest**3).sum(1, keepdims=True)
    found = fit_temperature(stated, truth)
    assert found is not None and abs(found.value - 3) < 0.15 and found.snippets == 4000
    assert found.log_loss < found.log_loss_before
    np.testing.assert_allclose(found.log_loss_before, -np.log(stated[np.arange(4000), truth]).mean(), rtol=1e-6)
    np.testing.assert_allclose(found.log_loss, -np.log(honest[np.arange(4000), truth]).mean(), rtol=5e-3)
    assert fit_temperature(stated[:0], truth[:0]) is None


def test_a_class_that_cannot_be_has_no_part_in_the_temperature() -> None:
    stated, truth = np.array([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]), np.array([0, 1])
    found = fit_temperature(stated, truth)
    assert found is not None and found.value > 10  # half are wrong: the two classes should be even


def test_the_surest_detection_on_each_instance_of_any_class() -> None:
    truth = Instances(
        np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([[0.0, 4.0], [10.0, 14.0], [0.0, 4.0]]), np.zeros(3)
    )
    found = Instances(
        np.array([0, 0, 0, 1]), np.array([1, 0, 1, 0]),
        np.array([[0.0, 4.0], [0.0, 3.9], [12.5, 14.0], [20.0, 24.0]]), np.array([0.7, 0.4, 0.9, 0.8]),
    )  # fmt: skip
    # Another class counts; too small an overlap, and another place, do not.
    np.testing.assert_array_equal(surest_on(truth, found), [0.7, 0.0, 0.0])
    assert surest_on(truth.select(np.array([], int)), found).shape == (0,)
