"""Mean average precision of detected instances, ActivityNet style, and Recall@kx, in vectorised numpy.

Truth and predictions share one flat table, :class:`Instances`. Truth that is to be ignored is no miss, and a prediction
that has no other truth but overlaps it is neither right nor wrong, as in COCO. The semantics are those of spec 1.10. A
prediction takes the free instance that it overlaps most, best score first; this serial assignment is the one stable
matching of predictions (which prefer overlap) with instances (which all prefer score), so that deferred acceptance
finds it in a few vectorised rounds over all videos, classes and thresholds at once, instead of prediction by
prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.files import DataError

DUPLICATE_TOLERANCE_S = 1e-3  # both ends of two annotations of one class within this: one instance (spec 1.10)
_PAIRS_AT_ONCE = 4_000_000  # prediction-truth pairs held in memory together


@dataclass(frozen=True)
class Instances:
    """M action instances of a set of videos, annotated or predicted; arrays are cast and checked when it is made.

    Raises ``DataError`` when lengths differ or a time or score is not finite.
    """

    video: np.ndarray  # [M] int64, row of the video in a table that truth and predictions share
    label: np.ndarray  # [M] int64 in [0, C)
    segments_s: np.ndarray  # [M, 2] float64, start and end, seconds
    score: np.ndarray  # [M] float64, ranks predictions; 0 and unused in truth
    ignore: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [M] bool, of truth; left out: none

    def __post_init__(self) -> None:
        ignore = np.asarray(self.ignore, bool) if len(self.ignore) else np.zeros(len(self.video), bool)
        object.__setattr__(self, "ignore", ignore)
        for name in ("video", "label", "segments_s", "score"):
            dtype = np.int64 if name in ("video", "label") else np.float64
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        count = len(self.video)
        if not (self.label.shape == self.score.shape == (count,) and self.segments_s.shape == (count, 2)):
            found = [self.video.shape, self.label.shape, self.segments_s.shape, self.score.shape]
            raise DataError(f"instances: found video, label, segments_s, score of shapes {found}; expected one length")
        bad = ~(np.isfinite(self.score) & np.isfinite(self.segments_s).all(-1))
        if bad.any():
            row = int(np.argmax(bad))
            found = f"segment {self.segments_s[row].tolist()}, score {self.score[row]}"
            raise DataError(f"instances: row {row}, video {self.video[row]}: {found}; expected finite numbers")

    def __len__(self) -> int:
        return len(self.video)

    def select(self, rows: np.ndarray | slice) -> Instances:
        """The rows named by a bool mask ``[M]``, by indices, in that order, or by a slice."""
        return Instances(self.video[rows], self.label[rows], self.segments_s[rows], self.score[rows], self.ignore[rows])


def instances_from_videos(
    segments_s: Sequence[Any], labels: Sequence[Any], scores: Sequence[Any] | None = None
) -> Instances:
    """One table from one ``[N_i, 2]`` seconds, ``[N_i]`` labels and ``[N_i]`` scores per video; row = position."""
    sizes = [len(rows) for rows in labels]
    return Instances(
        video=np.repeat(np.arange(len(sizes)), sizes),
        label=_joined(labels, np.int64),
        segments_s=_joined([np.reshape(rows, (-1, 2)) for rows in segments_s], np.float64).reshape(-1, 2),
        score=np.zeros(sum(sizes)) if scores is None else _joined(scores, np.float64),
    )


def instances_from_annotations(records: Iterable[VideoRecord]) -> Instances:
    """The annotated instances of ``records`` as truth; the video row is the position in ``records``."""
    records = list(records)
    found = instances_from_videos([r.segments_s for r in records], [r.labels for r in records])
    return replace(found, ignore=_joined([r.ignore for r in records], bool))


def _joined(parts: Sequence[Any], dtype: type) -> np.ndarray:
    """Concatenation that accepts an empty list."""
    return np.concatenate([np.asarray(part, dtype) for part in parts]) if len(parts) else np.zeros(0, dtype)


@dataclass(frozen=True)
class AveragePrecision:
    """AP per threshold and class, its means, and Recall@kx; all are fractions of 1."""

    tiou: tuple[float, ...]  # J thresholds
    ap: np.ndarray  # [J, C], nan for classes without truth
    mean_ap: np.ndarray  # [J], over the classes with truth
    average: float  # mean of mean_ap
    recall: dict[int, np.ndarray]  # k -> [J], mean over the classes with truth

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """JSON types; thresholds are keys such as "0.5", a class without truth is null."""
        names = [f"{threshold:g}" for threshold in self.tiou]
        per_class = {
            name: {n: None if np.isnan(v) else float(v) for n, v in zip(names, column, strict=True)}
            for name, column in zip(classes, self.ap.T, strict=True)
        }
        return {
            "average_map": self.average,
            "map": dict(zip(names, self.mean_ap.tolist(), strict=True)),
            "ap": per_class,
            "recall": {f"{k}x": dict(zip(names, values.tolist(), strict=True)) for k, values in self.recall.items()},
        }


def average_precision(
    truth: Instances,
    predictions: Instances,
    tiou: Sequence[float],
    num_classes: int,
    recall_ks: Sequence[int] = (),
) -> AveragePrecision:
    """mAP of ``predictions`` at the thresholds ``tiou``, each in (0, 1] (spec 1.10).

    Duplicate truth is removed. Predictions of equal score are taken last first. Predictions of a class without truth
    do not count; those in a video without truth of their class are false. Truth marked ``ignore`` is no truth; a
    prediction that wins no instance and overlaps ignored truth of its class by the threshold is left out of the
    ranking. Raises ``DataError`` without any truth, or for labels outside ``[0, num_classes)``.
    """
    for table, name in ((truth, "truth"), (predictions, "predictions")):
        if len(table) and not (table.label.min() >= 0 and table.label.max() < num_classes):
            found = f"{table.label.min()} to {table.label.max()}"
            raise DataError(f"{name}: found labels {found}, expected 0 to {num_classes - 1}")
    truth, ignored, ranked, thresholds = _prepared(truth, predictions, tiou)
    overlaps = find_overlaps(truth, ranked, floor=thresholds.min())
    hits = match(overlaps, thresholds)
    neutral = on_ignored(ignored, ranked, thresholds) & ~hits
    counts = np.bincount(truth.label, minlength=num_classes)
    bounds = np.searchsorted(ranked.label, np.arange(num_classes + 1))
    ap = np.full((len(thresholds), num_classes), np.nan)
    for c in np.flatnonzero(counts):
        rows = slice(bounds[c], bounds[c + 1])
        ap[:, c] = _interpolated(hits[:, rows], neutral[:, rows]) / counts[c]
    mean_ap = np.nanmean(ap, axis=1)
    recall = _recall(truth, ranked, overlaps, neutral, thresholds, recall_ks)
    return AveragePrecision(tuple(thresholds.tolist()), ap, mean_ap, float(mean_ap.mean()), recall)


def recall_at(
    truth: Instances, predictions: Instances, ks: Sequence[int], tiou: Sequence[float]
) -> dict[int, np.ndarray]:
    """Recall@kx: k -> ``[len(tiou)]``, mean over the classes with truth (spec 1.10).

    Of a video's and class's best ``k * |truth|`` predictions: the fraction of its instances that one of them covers.
    """
    truth, ignored, ranked, thresholds = _prepared(truth, predictions, tiou)
    overlaps = find_overlaps(truth, ranked, floor=thresholds.min())
    neutral = on_ignored(ignored, ranked, thresholds) & ~match(overlaps, thresholds)
    return _recall(truth, ranked, overlaps, neutral, thresholds, ks)


def _prepared(
    truth: Instances, predictions: Instances, tiou: Sequence[float]
) -> tuple[Instances, Instances, Instances, np.ndarray]:
    """Truth without duplicates, ignored truth, predictions in their ranking, thresholds ``[J]``; all checked."""
    thresholds = np.asarray(tiou, np.float64)
    if thresholds.ndim != 1 or not thresholds.size or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise DataError(f"`tiou`: found {tiou!r}, expected one or more thresholds in (0, 1]")
    counted, ignored = divide_truth(truth)
    if not len(counted):
        raise DataError("truth: no annotated instance in these videos; there is nothing to score against")
    return counted, ignored, predictions.select(ranking(predictions)), thresholds


def divide_truth(truth: Instances) -> tuple[Instances, Instances]:
    """The instances that count, without duplicates, and those that are to be ignored."""
    return without_duplicates(truth.select(~truth.ignore)), truth.select(truth.ignore)


def on_ignored(ignored: Instances, predictions: Instances, thresholds: np.ndarray) -> np.ndarray:
    """Which predictions overlap ignored truth of their class by each threshold, ``[J, M]``."""
    found = np.zeros((len(thresholds), len(predictions)), bool)
    if len(ignored):
        overlaps = find_overlaps(ignored, predictions, floor=thresholds.min())
        for level, threshold in enumerate(thresholds):
            found[level, overlaps.prediction[overlaps.tiou >= threshold]] = True
    return found


def without_duplicates(truth: Instances) -> Instances:
    """Truth without the annotations that repeat an earlier one: same video and class, both ends within 1e-3 s."""
    start_s = truth.segments_s[:, 0]
    order = np.lexsort((start_s, truth.label, truth.video))
    same = (np.diff(truth.video[order]) == 0) & (np.diff(truth.label[order]) == 0)
    close = same & (np.diff(start_s[order]) <= DUPLICATE_TOLERANCE_S)
    # Whoever has a twin has a neighbour in this order that starts as early; these few are compared one by one.
    suspects = np.unique(np.concatenate([order[:-1][close], order[1:][close]]))
    keep = np.ones(len(truth), bool)
    for i in suspects:
        earlier = suspects[(suspects < i) & keep[suspects]]
        twin = (truth.video[earlier] == truth.video[i]) & (truth.label[earlier] == truth.label[i])
        twin &= (np.abs(truth.segments_s[earlier] - truth.segments_s[i]) <= DUPLICATE_TOLERANCE_S).all(-1)
        keep[i] = not twin.any()
    return truth.select(keep)


def ranking(predictions: Instances) -> np.ndarray:
    """Order ``[M]`` that sorts by class, then falling score; of equal scores the last given comes first."""
    return np.lexsort((-np.arange(len(predictions)), -predictions.score, predictions.label))


@dataclass(frozen=True)
class Overlaps:
    """E pairs of a prediction and a true instance of its video, sorted by prediction, then falling overlap.

    Of equal overlaps the later instance comes first, as in the reference.
    """

    prediction: np.ndarray  # [E] row of the prediction
    truth: np.ndarray  # [E] row of the instance
    tiou: np.ndarray  # [E] float64
    num_predictions: int
    num_truth: int


def find_overlaps(truth: Instances, predictions: Instances, floor: float, same_class: bool = True) -> Overlaps:
    """All pairs of one video (and one class, unless ``same_class`` is False) that overlap by ``floor`` or more."""
    truth_key, key = _keys(truth, predictions, same_class)
    order = np.argsort(truth_key, kind="stable")
    first = np.searchsorted(truth_key[order], key, side="left")
    count = np.searchsorted(truth_key[order], key, side="right") - first
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(_PAIRS_AT_ONCE, total[-1] if len(total) else 0, _PAIRS_AT_ONCE))
    parts = []
    for low, high in itertools.pairwise(np.unique([0, *cuts, len(key)])):
        size = count[low:high]
        prediction = np.repeat(np.arange(low, high), size)
        within = np.arange(len(prediction)) - np.repeat(np.cumsum(size) - size, size)
        instance = order[first[prediction] + within]
        tiou = _tiou(predictions.segments_s[prediction], truth.segments_s[instance])
        keep = tiou >= floor
        parts.append((prediction[keep], instance[keep], tiou[keep]))
    prediction, instance = (_joined([part[i] for part in parts], np.int64) for i in (0, 1))
    tiou = _joined([part[2] for part in parts], np.float64)
    falling = np.lexsort((-instance, -tiou, prediction))
    return Overlaps(prediction[falling], instance[falling], tiou[falling], len(predictions), len(truth))


def _keys(truth: Instances, predictions: Instances, same_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """One integer per row, equal where two rows share video (and class)."""
    if not same_class:
        return truth.video, predictions.video
    width = 1 + max(int(table.label.max(initial=0)) for table in (truth, predictions))
    return truth.video * width + truth.label, predictions.video * width + predictions.label


def _tiou(a_s: np.ndarray, b_s: np.ndarray) -> np.ndarray:
    """Row by row intersection over union of ``[E, 2]`` segments, float64; 0 where the union is empty."""
    shared = np.maximum(np.minimum(a_s[:, 1], b_s[:, 1]) - np.maximum(a_s[:, 0], b_s[:, 0]), 0)
    union = (b_s[:, 1] - b_s[:, 0]) + (a_s[:, 1] - a_s[:, 0]) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(overlaps: Overlaps, thresholds: np.ndarray) -> np.ndarray:
    """True positives ``[J, M]``: which predictions win an instance; a lower row of ``predictions`` chooses first.

    Deferred acceptance: every free prediction proposes to the next instance on its list, an instance keeps the
    foremost, and whoever is refused or ousted moves on. Lists are prefixes of ``overlaps``, one per threshold.
    """
    num, num_truth = overlaps.num_predictions, overlaps.num_truth
    length = np.stack([np.bincount(overlaps.prediction[overlaps.tiou >= t], minlength=num) for t in thresholds])
    first = np.searchsorted(overlaps.prediction, np.arange(num))
    holder = np.full(len(thresholds) * num_truth, num)  # foremost prediction so far; num = nobody
    asked = np.zeros(length.shape, np.int64)  # how many instances of its list a prediction has asked
    level, free = np.nonzero(length)
    while len(free):
        wish = level * num_truth + overlaps.truth[first[free] + asked[level, free]]
        before = holder[wish]
        np.minimum.at(holder, wish, free)
        won = holder[wish] == free
        ousted = won & (before < num)
        level, free = np.append(level[~won], level[ousted]), np.append(free[~won], before[ousted])
        asked[level, free] += 1
        hopeful = asked[level, free] < length[level, free]
        level, free = level[hopeful], free[hopeful]
    hits = np.zeros((len(thresholds), num + 1), bool)
    np.put_along_axis(hits, holder.reshape(len(thresholds), num_truth), True, axis=1)
    return hits[:, :num]


def _interpolated(hits: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    """Sum over true positives of the best precision from there on, ``[J, M] -> [J]``; divided by |truth| it is AP.

    Neutral predictions have no place: where they stand, precision is that of the one before.
    """
    precision = np.cumsum(hits, axis=1) / np.maximum(np.cumsum(~neutral, axis=1), 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (envelope * hits).sum(axis=1)


def _recall(
    truth: Instances, ranked: Instances, overlaps: Overlaps, neutral: np.ndarray, thresholds: np.ndarray,
    ks: Sequence[int],
) -> dict[int, np.ndarray]:  # fmt: skip
    """:func:`recall_at` on ranked predictions whose overlaps are known; neutral ones ``[J, M]`` have no place."""
    truth_key, key = _keys(truth, ranked, same_class=True)
    order, sorted_truth = np.argsort(key, kind="stable"), np.sort(truth_key)
    first = np.searchsorted(key[order], key[order])
    before = np.pad(np.cumsum(~neutral[:, order], axis=1), [(0, 0), (1, 0)])  # [J, M + 1] that have a place
    place = np.empty(neutral.shape, np.int64)  # [J, M] rank of a prediction within its video and class
    place[:, order] = before[:, :-1] - before[:, first]
    size = np.searchsorted(sorted_truth, key, side="right") - np.searchsorted(sorted_truth, key, side="left")
    present, label = np.unique(truth.label, return_inverse=True)
    recall: dict[int, np.ndarray] = {}
    for k in ks:
        near = (place < k * size)[:, overlaps.prediction]
        covered = np.zeros((len(thresholds), len(truth)), bool)
        for level, threshold in enumerate(thresholds):
            covered[level, overlaps.truth[near[level] & (overlaps.tiou >= threshold)]] = True
        per_class = np.stack([covered[:, label == c].mean(axis=1) for c in range(len(present))])
        recall[int(k)] = per_class.mean(axis=0)
    return recall
