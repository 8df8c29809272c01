"""Average recall over the average number of proposals, against a plain twin and cases that were computed by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apl_jax.data.files import DataError
from apl_jax.evaluation.average_precision import Instances, instances_from_videos
from apl_jax.evaluation.proposal_recall import MOST, TIOU, proposal_recall, proposals_given


def made(rng: np.random.Generator, count: int, videos: int, ties: bool) -> Instances:
    """Segments in [0, 30] s; with ``ties`` on whole seconds and with few different scores."""
    start = rng.uniform(0, 20, count)
    segments = np.stack([start, start + rng.uniform(1, 10, count)], axis=-1)
    score = rng.uniform(0, 1, count)
    if ties:
        segments, score = np.round(segments), np.round(score * 4) / 4
    return Instances(rng.integers(videos, size=count), rng.integers(3, size=count), segments, score)


def twin_tiou(a: np.ndarray, b: np.ndarray) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return float(shared / union) if union > 0 else 0.0


def twin(truth: Instances, proposals: Instances, threshold: float) -> list[float]:
    """Recall at 1 to 100 proposals per video on average, one video, proposal and number at a time."""
    videos = sorted({int(v) for v, ignore in zip(truth.video, truth.ignore, strict=True) if not ignore})
    ranked = {}
    for video in videos:
        rows = [i for i in range(len(proposals)) if proposals.video[i] == video]
        ranked[video] = [proposals.segments_s[i] for i in sorted(rows, key=lambda i: (-proposals.score[i], -i))]
    segments = lambda video, ignore: [
        s for v, s, i in zip(truth.video, truth.segments_s, truth.ignore, strict=True) if v == video and i == ignore
    ]
    total = sum(len(found) for found in ranked.values())
    if not total:
        return [0.0] * 100
    ratio = 100 * float(len(videos)) / total
    kept = {video: min(int(len(found) * ratio), len(found)) for video, found in ranked.items()}
    result = []
    for number in range(1, 101):
        share = number / 100 * (100 * float(len(videos)) / sum(kept.values()))
        covered = count = 0
        for video in videos:
            near = lambda p, s: twin_tiou(p, s) >= threshold
            counted, ignored = segments(video, False), segments(video, True)
            in_place = [
                p for p in ranked[video]
                if any(near(p, s) for s in counted) or not any(near(p, s) for s in ignored)
            ]  # fmt: skip
            given = in_place[: min(int(kept[video] * share), kept[video])]
            covered += sum(any(near(p, s) for p in given) for s in counted)
            count += len(counted)
        result.append(covered / count)
    return result


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ignored", [0, 0.4])  # share of the truth
@pytest.mark.parametrize("count", [15, 300])  # of proposals: fewer, and more, than 100 per video
def test_equals_the_plain_twin(seed: int, ties: bool, ignored: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    truth, proposals = made(rng, 12, 4, ties), made(rng, count, 5, ties)
    truth = dataclasses.replace(truth, ignore=rng.uniform(size=12) < ignored)
    tiou = (0.3, 0.5, 0.75, 1.0)
    found = proposal_recall(truth, proposals, tiou)
    np.testing.assert_allclose(found.recall, [twin(truth, proposals, threshold) for threshold in tiou], atol=1e-12)


def test_by_hand() -> None:
    """Two videos of three instances. The first has its instances at places 2 and 3 of 4 proposals, the second its own
    at place 1 of 2: three per video on average."""
    truth = instances_from_videos([[[0, 10], [20, 30]], [[0, 8]]], [[0, 1], [2]])
    first = [[40, 50], [0, 10], [20, 26], [60, 70]]  # the third covers its instance by .6
    proposals = instances_from_videos([first, [[0, 8], [1, 2]]], [[0] * 4, [0] * 2], [[0.9, 0.8, 0.7, 0.6], [0.5, 0.4]])
    found = proposal_recall(truth, proposals)
    # AN 1 is a third of the proposals: 1 of 4 and 0 of 2; AN 2 two thirds: 2 and 1; AN 3 all.
    np.testing.assert_array_equal(proposals_given(np.array([4, 2]))[:, :4], [[1, 2, 4, 4], [0, 1, 2, 2]])
    np.testing.assert_allclose(found.recall[0, :4], [0, 2 / 3, 1, 1])  # tIoU .5
    np.testing.assert_allclose(found.recall[5, :4], [0, 2 / 3, 2 / 3, 2 / 3])  # tIoU .75
    upper, lower = 3, 7  # thresholds up to .6, and above
    average = (upper * 1 + lower * 2 / 3) / 10
    np.testing.assert_allclose(found.average_recall[[0, 1, 2, 99]], [0, 2 / 3, average, average])
    area = (0 + 2 / 3) / 2 + (2 / 3 + average) / 2 + 97 * average
    assert found.auc == pytest.approx(area / 100)
    words = found.as_dict()
    assert words["average_recall"] == pytest.approx({"1": 0, "5": average, "10": average, "100": average})
    assert (words["videos"], words["instances"], words["proposals"]) == (2, 3, 6)
    assert words["recall"]["5"]["0.6"] == 1 and words["recall"]["5"]["0.65"] == pytest.approx(2 / 3)
    assert np.mean(list(words["area"].values())) == pytest.approx(words["auc"])


def test_the_best_that_can_be_is_99() -> None:
    truth = instances_from_videos([[[0, 1]], [[2, 5]]], [[0], [1]])
    found = proposal_recall(truth, dataclasses.replace(truth, score=np.ones(2)))
    assert found.auc == pytest.approx(0.99) and found.average_recall.min() == 1


def test_more_than_a_hundred_per_video_are_cut_by_the_share_of_each() -> None:
    """150 and 50 proposals: 100 per video on average are all; 300 and 100 are cut to 150 and 50."""
    for counts in ([150, 50], [300, 100]):
        given = proposals_given(np.array(counts))
        assert given.shape == (2, MOST) and given[:, -1].tolist() == [150, 50] and given[:, 1].tolist() == [3, 1]


def test_ties_take_the_last_given_first() -> None:
    truth = instances_from_videos([[[0, 10]]], [[0]])
    right_last = instances_from_videos([[[40, 50], [0, 10]]], [[0, 0]], [[0.5, 0.5]])
    assert proposal_recall(truth, right_last).average_recall[0] == 1
    assert proposal_recall(truth, right_last.select(np.array([1, 0]))).average_recall[0] == 0


def test_ignored_truth_is_no_miss_and_takes_no_place() -> None:
    truth = instances_from_videos([[[0, 10], [20, 30]]], [[0, 0]])
    truth = dataclasses.replace(truth, ignore=np.array([False, True]))
    proposals = instances_from_videos([[[20, 30], [0, 10]]], [[0, 0]], [[0.9, 0.8]])
    assert proposal_recall(truth, proposals).recall[:, 0].tolist() == [1] * len(TIOU)
    counted = dataclasses.replace(truth, ignore=np.zeros(2, bool))
    assert proposal_recall(counted, proposals).recall[:, 0].tolist() == [0.5] * len(TIOU)


def test_labels_do_not_matter_and_twins_count_twice() -> None:
    truth = instances_from_videos([[[0, 10], [0, 10], [20, 30]]], [[0, 1, 0]])
    proposals = instances_from_videos([[[0, 10]]], [[7]], [[0.9]])
    assert proposal_recall(truth, proposals).average_recall[0] == pytest.approx(2 / 3)


def test_without_proposals_or_without_truth() -> None:
    truth = instances_from_videos([[[0, 10]], [[2, 5]], []], [[0], [1], []])
    nothing = instances_from_videos([[], [], []], [[], [], []], [[], [], []])
    found = proposal_recall(truth, nothing)
    assert found.auc == 0 and not found.recall.any() and found.proposals == 0
    elsewhere = instances_from_videos([[], [], [[0, 1]]], [[], [], [0]], [[], [], [1.0]])
    assert proposal_recall(truth, elsewhere).proposals == 0, "of a video that is annotated, but without an instance"
    one = instances_from_videos([[[0, 10]], [], []], [[0], [], []], [[0.5], [], []])
    assert proposal_recall(truth, one).average_recall.tolist() == [0.5] * MOST
    with pytest.raises(DataError, match="nothing to score against"):
        proposal_recall(nothing, truth)
    with pytest.raises(DataError, match="nothing to score against"):
        proposal_recall(dataclasses.replace(truth, ignore=np.ones(2, bool)), truth)


@pytest.mark.parametrize("tiou", [(), (0.0,), (0.5, 1.1)])
def test_impossible_thresholds_are_refused(tiou: tuple[float, ...]) -> None:
    truth = instances_from_videos([[[0, 10]]], [[0]])
    with pytest.raises(DataError, match="`tiou`"):
        proposal_recall(truth, truth, tiou)
