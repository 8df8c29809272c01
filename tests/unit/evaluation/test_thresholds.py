"""Thresholds per class against a plain Python twin, the sieve that applies them, and the file that carries them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from apl_jax.data.files import DataError
from apl_jax.evaluation.average_precision import Instances, instances_from_videos
from apl_jax.evaluation.thresholds import best_thresholds, read_thresholds, select_confident, write_thresholds

CLASSES = ("run", "jump", "größe")


def random_instances(rng: np.random.Generator, count: int, grid: int | None) -> Instances:
    """Segments in [0, 20] s of 4 videos and 3 classes; on a ``grid`` overlaps and scores tie and truth repeats."""
    start = rng.uniform(0, 16, count)
    segments, score = np.stack([start, start + rng.uniform(0.5, 8, count)], -1), rng.uniform(0, 1, count)
    if grid is not None:
        segments, score = np.round(segments * grid) / grid, np.round(score * 5) / 5
        segments[:, 1] = np.maximum(segments[:, 1], segments[:, 0] + 1 / grid)
    return Instances(rng.integers(4, size=count), rng.integers(3, size=count), segments, score)


def twin_overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return float(shared / ((b[1] - b[0]) + (a[1] - a[0]) - shared))


def twin_truth(truth: Instances, label: int) -> list[tuple[int, np.ndarray]]:
    kept: list[tuple[int, np.ndarray]] = []
    for video, segment in zip(truth.video[truth.label == label], truth.segments_s[truth.label == label], strict=True):
        if not any(v == video and np.abs(s - segment).max() <= 1e-3 for v, s in kept):
            kept.append((int(video), segment))
    return kept


def twin_right(annotated: list[tuple[int, np.ndarray]], predictions: Instances, rows: list[int], tiou: float) -> int:
    """How many of the predictions take an instance, one at a time, the best score first (the last given of equals)."""
    free = list(range(len(annotated)))
    for i in sorted(rows, key=lambda i: (-predictions.score[i], -i)):
        overlap = lambda j, i=i: twin_overlap(predictions.segments_s[i], annotated[j][1])
        fits = [j for j in free if annotated[j][0] == predictions.video[i] and overlap(j) >= tiou]
        if fits:
            free.remove(max(fits, key=lambda j: (overlap(j), j)))
    return len(annotated) - len(free)


def twin_best(truth: Instances, predictions: Instances, label: int, tiou: float) -> tuple[float, float]:
    """Threshold and F1 of a class by trying every score from the highest on; what is below is not even matched."""
    annotated = twin_truth(truth, label)
    best = (np.nan, 0.0)
    for threshold in sorted(set(predictions.score[predictions.label == label]), reverse=True):
        rows = [i for i in range(len(predictions)) if predictions.label[i] == label]
        rows = [i for i in rows if predictions.score[i] >= threshold]
        right = twin_right(annotated, predictions, rows, tiou)
        f1 = 2 * right / (len(rows) + len(annotated))
        if annotated and f1 > best[1]:
            best = (float(threshold), f1)
    return best


@pytest.mark.parametrize("tiou", (0.1, 0.5, 0.9))
@pytest.mark.parametrize("grid", (None, 1))
@pytest.mark.parametrize("seed", range(6))
def test_thresholds_are_those_of_the_twin(seed: int, grid: int | None, tiou: float) -> None:
    rng = np.random.default_rng(seed)
    truth, predictions = random_instances(rng, 30, grid), random_instances(rng, 60, grid)
    found = best_thresholds(truth, predictions, tiou, 3)
    for label in range(3):
        threshold, f1 = twin_best(truth, predictions, label, tiou)
        np.testing.assert_equal(found.score[label], threshold)
        if f1:
            assert found.f1[label] == pytest.approx(f1)
            p, r = found.precision[label], found.recall[label]
            assert 2 * p * r / (p + r) == pytest.approx(f1)


def test_of_equally_good_thresholds_the_highest_is_taken() -> None:
    truth = instances_from_videos([[[0, 1], [2, 3]]], [[0, 0]])
    # F1 is 2/3 with the first alone and again, after two mistakes, with all four: 4 / 6.
    segments = [[0, 1], [5, 6], [7, 8], [2, 3]]
    predictions = instances_from_videos([segments], [[0, 0, 0, 0]], [[0.9, 0.8, 0.7, 0.6]])
    found = best_thresholds(truth, predictions, 0.5, 1)
    assert found.score.tolist() == [0.9] and found.f1[0] == pytest.approx(2 / 3)


def test_class_without_truth_or_without_a_right_prediction_has_no_threshold() -> None:
    truth = instances_from_videos([[[0, 1], [2, 3]]], [[0, 1]])
    predictions = instances_from_videos([[[0, 1], [8, 9], [2, 3]]], [[0, 1, 2]], [[0.5, 0.9, 0.9]])
    found = best_thresholds(truth, predictions, 0.5, 3)
    np.testing.assert_equal(found.score, [0.5, np.nan, np.nan])
    np.testing.assert_equal(found.truth, [1, 1, 0])
    nothing = best_thresholds(truth, predictions.select(np.zeros(3, bool)), 0.5, 3)
    assert np.isnan(nothing.score).all()


@pytest.mark.parametrize("tiou", (0.0, -1.0, 1.5, float("nan")))
def test_impossible_overlap_is_refused(tiou: float) -> None:
    truth = instances_from_videos([[[0, 1]]], [[0]])
    with pytest.raises(ValueError, match=r"`tiou`: found .*, expected a threshold in \(0, 1\]"):
        best_thresholds(truth, truth, tiou, 1)
    with pytest.raises(ValueError, match="truth: found labels 0 to 0, expected 0 to -1"):
        best_thresholds(truth, truth, 0.5, 0)


def test_sieve_keeps_what_reaches_the_threshold_of_its_class() -> None:
    labels, scores = [[0, 1, 2, 0], [2, 2]], [[0.2, 0.5, 0.3, 0.4], [0.1, 0.9]]
    predictions = instances_from_videos([[[0, 1]] * 4, [[0, 1]] * 2], labels, scores)
    everything = select_confident(predictions, 0.0)
    assert everything.video.tolist() == [0] * 4 + [1] * 2
    assert everything.score.tolist() == [0.5, 0.4, 0.3, 0.2, 0.9, 0.1]
    assert select_confident(predictions, 0.3).score.tolist() == [0.5, 0.4, 0.3, 0.9]
    own = np.array([0.4, 0.6, np.nan])
    assert select_confident(predictions, 0.2, own).score.tolist() == [0.4, 0.3, 0.9]
    assert select_confident(predictions, 0.2, own, 1).score.tolist() == [0.4, 0.9]


def test_chosen_thresholds_leave_exactly_what_they_promise() -> None:
    rng = np.random.default_rng(7)
    truth, predictions = random_instances(rng, 30, None), random_instances(rng, 60, None)
    chosen = best_thresholds(truth, predictions, 0.3, 3)
    kept = select_confident(predictions, 2.0, chosen.score)
    for label in range(3):
        rows = np.flatnonzero(kept.label == label).tolist()
        right = twin_right(twin_truth(truth, label), kept, rows, 0.3)
        assert right / len(rows) == pytest.approx(chosen.precision[label])


def test_file_carries_thresholds_exactly(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    write_thresholds(path, np.array([1 / 3, np.nan, 0.5]), CLASSES)
    assert json.loads(path.read_text("utf-8")) == {"run": 1 / 3, "jump": None, "größe": 0.5}
    np.testing.assert_equal(read_thresholds(path, CLASSES), [1 / 3, np.nan, 0.5])
    path.write_text('{"jump": 1}')
    np.testing.assert_equal(read_thresholds(path, CLASSES), [np.nan, 1.0, np.nan])


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"swim": 0.5}', "'swim'.*unknown class.*run, jump"), ('{"run": "x"}', "'run': found 'x'"),
     ('{"run": true}', "'run': found True"), ('{"run": NaN}', "'run': found nan"), ("[]", "a JSON list")],
)  # fmt: skip
def test_file_that_does_not_fit_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "thresholds.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_thresholds(tmp_path / "thresholds.json", CLASSES)
