"""Average precision and Recall@kx against a plain Python twin, and the files that carry predictions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from apl_jax.data.annotations import read_annotations
from apl_jax.evaluation import average_precision as module
from apl_jax.evaluation.average_precision import (
    Instances,
    average_precision,
    find_overlaps,
    instances_from_annotations,
    instances_from_videos,
    match,
    recall_at,
    without_duplicates,
)
from apl_jax.evaluation.submission import read_submission, write_submission

TIOU = (0.1, 0.3, 0.5, 0.75, 1.0)


def random_instances(rng: np.random.Generator, count: int, videos: int, classes: int, grid: int | None) -> Instances:
    """Segments in [0, 20] s; on a ``grid`` (steps per second) overlaps and scores tie and truth repeats itself."""
    start = rng.uniform(0, 16, count)
    segments = np.stack([start, start + rng.uniform(0.5, 8, count)], axis=-1)
    score = rng.uniform(0, 1, count)
    if grid is not None:
        segments = np.round(segments * grid) / grid
        segments[:, 1] = np.maximum(segments[:, 1], segments[:, 0] + 1 / grid)
        score = np.round(score * 5) / 5
    return Instances(rng.integers(videos, size=count), rng.integers(classes, size=count), segments, score)


def twin_tiou(a: np.ndarray, b: np.ndarray) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return float(shared / ((b[1] - b[0]) + (a[1] - a[0]) - shared))


def twin_truth(truth: Instances) -> list[tuple[int, int, np.ndarray]]:
    """(video, class, segment) without repeated annotations, in the given order."""
    kept: list[tuple[int, int, np.ndarray]] = []
    counted = truth.select(~truth.ignore)
    for video, label, segment in zip(counted.video, counted.label, counted.segments_s, strict=True):
        if not any(v == video and c == label and np.abs(s - segment).max() <= 1e-3 for v, c, s in kept):
            kept.append((int(video), int(label), segment))
    return kept


def twin_ranking(predictions: Instances, rows: list[int]) -> list[int]:
    """Best score first, of equal scores the last given first."""
    return sorted(rows, key=lambda i: (-predictions.score[i], -i))


def twin_spared(truth: Instances, predictions: Instances, i: int, threshold: float) -> bool:
    """Whether a prediction overlaps truth of its class that is to be ignored."""
    return any(
        ignore and (video, label) == (predictions.video[i], predictions.label[i])
        and twin_tiou(predictions.segments_s[i], segment) >= threshold
        for video, label, segment, ignore in zip(
            truth.video, truth.label, truth.segments_s, truth.ignore, strict=True
        )
    )  # fmt: skip


def twin_places(truth: Instances, predictions: Instances, threshold: float, label: int) -> list[tuple[int, bool]]:
    """The predictions of a class in their order, and whether each is right; what is spared has no place."""
    wanted = [(video, segment) for video, c, segment in twin_truth(truth) if c == label]
    taken: set[int] = set()
    found = []
    for i in twin_ranking(predictions, [i for i in range(len(predictions)) if predictions.label[i] == label]):
        tiou = lambda g, i=i: twin_tiou(predictions.segments_s[i], wanted[g][1])
        here = [g for g, (video, _) in enumerate(wanted) if video == predictions.video[i] and g not in taken]
        near = [g for g in sorted(here, key=lambda g: (-tiou(g), -g)) if tiou(g) >= threshold]
        taken |= set(near[:1])
        if near or not twin_spared(truth, predictions, i, threshold):
            found.append((i, bool(near)))
    return found


def twin_ap(truth: Instances, predictions: Instances, threshold: float, label: int) -> float:
    """AP of one class by the rules of spec 1.10, one prediction at a time."""
    count = sum(c == label for _, c, _ in twin_truth(truth))
    if not count:
        return float("nan")
    right = [hit for _, hit in twin_places(truth, predictions, threshold, label)]
    recalls = [sum(right[: k + 1]) / count for k in range(len(right))]
    precisions = [sum(right[: k + 1]) / (k + 1) for k in range(len(right))]
    area = previous = 0.0
    for k, recall in enumerate(recalls):
        area += (recall - previous) * max(precisions[k:])
        previous = recall
    return area


def twin_recall(truth: Instances, predictions: Instances, k: int, threshold: float) -> float:
    """Recall@kx by its definition, mean over the classes with truth."""
    kept = twin_truth(truth)
    per_class = []
    for label in sorted({c for _, c, _ in kept}):
        covered = 0
        placed = [i for i, _ in twin_places(truth, predictions, threshold, label)]
        for video in {v for v, c, _ in kept if c == label}:
            wanted = [s for v, c, s in kept if v == video and c == label]
            top = [i for i in placed if predictions.video[i] == video][: k * len(wanted)]
            covered += sum(any(twin_tiou(predictions.segments_s[i], s) >= threshold for i in top) for s in wanted)
        per_class.append(covered / sum(c == label for _, c, _ in kept))
    return float(np.mean(per_class))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("grid", [None, 1])
@pytest.mark.parametrize("ignored", [0, 0.4])  # share of the truth
def test_equals_the_plain_python_twin(seed: int, grid: int | None, ignored: float) -> None:
    rng = np.random.default_rng(seed)
    truth = random_instances(rng, int(rng.integers(1, 60)), videos=5, classes=3, grid=grid)
    ignore = rng.random(len(truth)) < ignored
    ignore[0] = False
    truth = dataclasses.replace(truth, ignore=ignore)
    predictions = random_instances(rng, int(rng.integers(0, 150)), videos=6, classes=4, grid=grid)
    result = average_precision(truth, predictions, TIOU, num_classes=5, recall_ks=(1, 5))
    expected = [[twin_ap(truth, predictions, threshold, c) for c in range(5)] for threshold in TIOU]
    np.testing.assert_allclose(result.ap, expected, atol=1e-12, rtol=0)
    np.testing.assert_allclose(result.mean_ap, np.nanmean(expected, axis=1), atol=1e-12, rtol=0)
    assert result.average == pytest.approx(np.nanmean(expected, axis=1).mean(), abs=1e-12)
    for k in (1, 5):
        np.testing.assert_allclose(result.recall[k], [twin_recall(truth, predictions, k, t) for t in TIOU], atol=1e-12)
    assert recall_at(truth, predictions, (5,), TIOU)[5].tolist() == result.recall[5].tolist()


def test_point_3_truth_to_be_ignored_is_no_miss_and_no_mistake() -> None:
    """Two instances found exactly, two to be ignored: one predicted, one not. All is right."""
    segments = [(0, 10), (20, 30), (40, 50), (60, 70)]
    truth = instances_from_videos([segments], [[0, 0, 0, 0]])
    truth = dataclasses.replace(truth, ignore=np.array([False, False, True, True]))
    predictions = instances_from_videos([segments[:3]], [[0, 0, 0]], [[0.5, 0.6, 0.9]])
    result = average_precision(truth, predictions, TIOU, 2, (1,))
    assert result.average == 1.0 and result.recall[1].tolist() == [1.0] * len(TIOU)
    # A class of which all truth is to be ignored has none.
    other = dataclasses.replace(truth, label=np.array([0, 0, 1, 1]))
    assert np.isnan(average_precision(other, predictions, TIOU, 2).ap[:, 1]).all()


def test_ties_decide_and_the_last_given_wins() -> None:
    """Two predictions of one score: the false one comes first in the ranking only if it was given last."""
    truth = instances_from_videos([[(0, 10)]], [[0]])
    right, wrong = (0, 10), (50, 60)
    for segments, expected in (([right, wrong], 0.5), ([wrong, right], 1.0)):
        predictions = instances_from_videos([segments], [[0, 0]], [[0.7, 0.7]])
        assert average_precision(truth, predictions, (0.5,), 1).average == expected


def test_a_chain_of_second_choices() -> None:
    """Prediction k prefers the instance that k - 1 took: each must fall back on the next, however long the chain."""
    count = 60
    start = np.arange(count) * 10.0
    truth = instances_from_videos([np.stack([start, start + 12], axis=-1)], [np.zeros(count, int)])
    segments = np.stack([start[:-1] + 4.9, start[:-1] + 16.9], axis=-1)  # between two instances, nearer to the first
    first_choice = np.concatenate([truth.segments_s[:1], segments])
    predictions = instances_from_videos([first_choice], [np.zeros(count, int)], [np.linspace(1, 0.1, count)])
    assert twin_tiou(segments[0], truth.segments_s[0]) > twin_tiou(segments[0], truth.segments_s[1]) > 0.1
    assert match(find_overlaps(truth, predictions, 0.1), np.array([0.1])).all()
    assert average_precision(truth, predictions, (0.1,), 1).average == twin_ap(truth, predictions, 0.1, 0) == 1.0


def test_pairs_in_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    truth, predictions = (random_instances(rng, n, videos=4, classes=2, grid=1) for n in (80, 300))
    whole = find_overlaps(truth, predictions, 0.1)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 7)
    parts = find_overlaps(truth, predictions, 0.1)
    assert len(whole.tiou) > 500
    for name in ("prediction", "truth", "tiou"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


@pytest.mark.parametrize("seed", range(5))
def test_perfect_predictions_score_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_instances(rng, 80, videos=6, classes=4, grid=1 if seed % 2 else None)
    kept = without_duplicates(truth)
    predictions = kept.select(rng.permutation(len(kept)))
    result = average_precision(truth, predictions, (0.3, 0.5, 0.95, 1.0), num_classes=4, recall_ks=(1,))
    np.testing.assert_array_equal(result.mean_ap, 1.0)
    np.testing.assert_array_equal(result.recall[1], 1.0)
    shifted = Instances(predictions.video + 6, predictions.label, predictions.segments_s, predictions.score)
    assert average_precision(truth, shifted, (0.3,), num_classes=4).average == 0.0


def test_duplicates_are_twins_of_one_video_class_and_place() -> None:
    truth = Instances(
        video=np.array([0, 0, 0, 0, 1, 0, 0, 1]),
        label=np.array([2, 2, 1, 2, 2, 2, 1, 2]),
        segments_s=np.array(
            [(1, 2), (1.0009, 1.9991), (1, 2), (1, 2.0011), (1, 2), (1.0018, 2), (1.0001, 2), (1, 2.0001)]
        ),
        score=np.zeros(8),
    )
    kept = without_duplicates(truth)
    # Row 5 is near row 1 only, which is itself removed: it stays.
    np.testing.assert_array_equal(kept.segments_s, truth.segments_s[[0, 2, 3, 4, 5]])
    assert (kept.video.tolist(), kept.label.tolist()) == ([0, 0, 0, 1, 0], [2, 1, 2, 2, 2])


def test_classes_without_truth_or_predictions() -> None:
    truth = instances_from_videos([[(0, 1)], [(2, 3)]], [[0], [2]])
    predictions = instances_from_videos([[(0, 1), (0, 1)], []], [[0, 1], []], [[0.5, 0.9], []])
    result = average_precision(truth, predictions, (0.5,), num_classes=4)
    np.testing.assert_array_equal(result.ap, [[1.0, np.nan, 0.0, np.nan]])
    assert result.average == 0.5
    content = result.as_dict(["a", "b", "c", "d"])
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["ap"] == {"a": {"0.5": 1.0}, "b": {"0.5": None}, "c": {"0.5": 0.0}, "d": {"0.5": None}}


def test_no_predictions_at_all() -> None:
    truth = instances_from_videos([[(0, 1)]], [[0]])
    nothing = instances_from_videos([np.zeros((0, 2))], [[]], [[]])
    result = average_precision(truth, nothing, TIOU, num_classes=1, recall_ks=(1,))
    assert result.average == 0.0
    assert result.recall[1].tolist() == [0.0] * len(TIOU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.array([3])}, "labels 3 to 3, expected 0 to 2"),
        ({"label": np.array([-1])}, "labels -1 to -1"),
        ({"score": np.array([np.nan])}, "expected finite"),
        ({"segments_s": np.array([[0.0, np.inf]])}, "row 0, video 0: segment"),
        ({"label": np.zeros(2)}, "expected one length"),
    ],
)
def test_wrong_predictions_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    truth = instances_from_videos([[(0, 1)]], [[0]])
    fields = {"video": np.zeros(1), "label": np.zeros(1), "segments_s": np.array([[0.0, 1.0]]), "score": np.ones(1)}
    with pytest.raises(ValueError, match=message):
        average_precision(truth, Instances(**{**fields, **change}), (0.5,), num_classes=3)


def test_wrong_questions_are_refused() -> None:
    truth = instances_from_videos([[(0, 1)]], [[0]])
    nothing = instances_from_videos([], [])
    with pytest.raises(ValueError, match="nothing to score against"):
        average_precision(nothing, truth, (0.5,), num_classes=1)
    for thresholds in ((), (0.0, 0.5), (50,)):
        with pytest.raises(ValueError, match=r"thresholds in \(0, 1\]"):
            average_precision(truth, truth, thresholds, num_classes=1)


def test_a_submission_survives_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    videos, classes = [f"video {i}" for i in range(7)], ["walk", "run", "jump"]
    truth = random_instances(rng, 40, videos=5, classes=3, grid=1)
    drawn = random_instances(rng, 90, videos=5, classes=3, grid=None)
    predictions = drawn.select(np.argsort(drawn.video, kind="stable"))
    path = tmp_path / "predictions.json"
    path.write_text("an older file")
    write_submission(path, predictions, videos, classes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["predictions.json"]
    assert list(json.loads(path.read_text())["results"]) == videos
    read = read_submission(path, videos, classes)
    assert (read.unknown_videos, read.unknown_labels) == ((), ())
    for name in ("video", "label", "segments_s", "score"):
        np.testing.assert_array_equal(getattr(read.instances, name), getattr(predictions, name))
    scores = [average_precision(truth, p, TIOU, num_classes=3).average for p in (predictions, read.instances)]
    assert scores[0] == scores[1] > 0


def test_what_is_not_annotated_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    entry = {"label": "run", "score": 0.5, "segment": [0, 1]}
    path.write_text(json.dumps({"results": {"a": [entry, {**entry, "label": "fly"}], "z": [entry], "b": []}}))
    read = read_submission(path, ["b", "a"], ["walk", "run"])
    assert (read.unknown_videos, read.unknown_labels) == (("z",), ("fly",))
    assert (read.instances.video.tolist(), read.instances.label.tolist()) == ([1], [1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["line 1"]),
        ("[]", ["JSON object"]),
        ('{"database": {}}', ["results"]),
        ('{"results": {"a": {}}}', ["results"]),
        ('{"results": {"a": [{"label": "run", "score": 1}]}}', ["'a'", "[0]", "segment"]),
        ('{"results": {"a": [{"label": "run", "score": NaN, "segment": [0, 1]}]}}', ["'a'", "finite"]),
        ('{"results": {"a": [{"label": "run", "score": 1, "segment": [0, 1, 2]}]}}', ["'a'", "[start, end]"]),
        ('{"results": {"a": [{"label": 1, "score": 1, "segment": [0, 1]}]}}', ["'a'", "name of a class"]),
        ('{"results": {"other": [{"label": "run", "score": 1, "segment": [0, 1]}]}}', ["'other'", "'a'", "spelling"]),
        ('{"results": {"a": [{"label": "Run", "score": 1, "segment": [0, 1]}]}}', ["'Run'", "'run'", "spelling"]),
    ],
)
def test_a_broken_submission_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_submission(path, ["a"], ["run"])
    for word in ["predictions.json", *words]:
        assert word in str(caught.value)


def test_annotated_records_become_truth(tmp_path: Path) -> None:
    entry = {"segment": [1.0, 2.5], "label": "run"}
    database = {
        "a": {"subset": "test", "duration": 9.0, "annotations": [entry, {**entry, "label": "walk"}]},
        "b": {"subset": "test", "duration": 9.0, "annotations": []},
        "c": {"subset": "test", "duration": 9.0, "annotations": [{**entry, "segment": [3.0, 4.0]}]},
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"version": "1", "database": database}))
    annotations = read_annotations(path)
    truth = instances_from_annotations(annotations.videos.values())
    assert truth.video.tolist() == [0, 0, 2]
    assert [annotations.classes[c] for c in truth.label] == ["run", "walk", "run"]
    assert truth.segments_s.tolist() == [[1.0, 2.5], [1.0, 2.5], [3.0, 4.0]]
