"""What honest detections tell: those of networks on labelled recordings that they have not been trained on.

How well confidence predicts precision, at which confidence a detection is worth a label, and whether the similarity
that ICD measures tells right detections from wrong ones. Everything is host code on a few thousand rows at most.

A detection is *right* as pseudo labels are (:mod:`apl_jax.evaluation.label_quality`): of the class of an instance, at
tIoU .5, and the surest on that instance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from apl_jax.evaluation.average_precision import (
    Instances,
    average_precision,
    divide_truth,
    find_overlaps,
    match,
    on_ignored,
    ranking,
)
from apl_jax.evaluation.label_quality import POSITIVE_TIOU

if TYPE_CHECKING:
    from sklearn.isotonic import IsotonicRegression  # scikit-learn takes a second to import: only where it is used

BINS = 10  # of equal count, of a reliability diagram


@dataclass(frozen=True)
class Judged:
    """M detections on held-out recordings, surest first; those on truth that is to be ignored are left out."""

    confidence: np.ndarray  # [M]
    right: np.ndarray  # [M] bool
    similarity: np.ndarray  # [M], ICD's; .5 where nothing was compared
    truth: np.ndarray  # [N] class of each instance that can be found


def judge(truth: Instances, found: Instances, similarity: np.ndarray) -> Judged:
    """Which detections are right."""
    (truth, ignored), levels = divide_truth(truth), np.array([POSITIVE_TIOU])
    order = ranking(found)
    ranked, similarity = found.select(order), np.asarray(similarity)[order]
    right = match(find_overlaps(truth, ranked, floor=POSITIVE_TIOU), levels)[0]
    judged = right | ~on_ignored(ignored, ranked, levels)[0]
    rows = np.flatnonzero(judged)
    rows = rows[np.argsort(-ranked.score[rows], kind="stable")]
    return Judged(ranked.score[rows], right[rows], similarity[rows], truth.label)


def pooled_average_precision(truth: Instances, found: Instances, tiou: Sequence[float], classes: int) -> float:
    """AP of all classes in one ranking, averaged over thresholds; a detection must still have its instance's class.

    The mean over classes gives a class with one labelled instance, which no network that saw it can be asked about, as
    much weight as one with twenty. One ranking counts instances, and so varies less where recordings are few.
    """
    apart = lambda table: replace(table, video=table.video * classes + table.label, label=table.label * 0)
    return average_precision(apart(truth), apart(found), tiou, 1).average


@dataclass(frozen=True)
class Operating:
    """A threshold of confidence, and what reaching it meant on held-out recordings."""

    threshold: float
    precision: float
    recall: float
    count: int  # detections that reach it


def best_operating_point(judged: Judged, beta: float) -> Operating | None:
    """The threshold with the best F-score, (1 + beta^2) P R / (beta^2 P + R).

    ``beta`` below 1 weighs precision more. None where no detection is right.
    """
    confidence, right = judged.confidence, judged.right
    if not right.any():
        return None
    last = np.append(np.flatnonzero(np.diff(confidence)), len(confidence) - 1)  # equal scores stand or fall together
    hits, count = np.cumsum(right)[last], last + 1
    score = (1 + beta**2) * hits / (count + beta**2 * len(judged.truth))
    best = int(np.argmax(score))
    precision, recall = hits[best] / count[best], hits[best] / len(judged.truth)
    return Operating(float(confidence[last[best]]), float(precision), float(recall), int(count[best]))


def surest_on(truth: Instances, found: Instances) -> np.ndarray:
    """The confidence ``[N]`` of the surest detection, of any class, on each instance at tIoU .5; 0 where there is none.

    Truth that is to be ignored is left out.
    """
    truth, _ = divide_truth(truth)
    overlaps = find_overlaps(truth, found, floor=POSITIVE_TIOU, same_class=False)
    surest = np.zeros(len(truth))
    np.maximum.at(surest, overlaps.truth, found.score[overlaps.prediction])
    return surest


def calibrate(confidence: np.ndarray, right: np.ndarray) -> IsotonicRegression:
    """Precision as a rising function of confidence, by isotonic regression; outside the range its end values."""
    from sklearn.isotonic import IsotonicRegression

    return IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(confidence, right)


def reliability(predicted: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """A reliability diagram: mean prediction, share of right ones and count of bins of about equal count."""
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return [(float(predicted[p].mean()), float(right[p].mean()), len(p)) for p in parts]


def calibration_error(predicted: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: the mean distance of :func:`reliability`, weighed by count."""
    rows = np.array(reliability(predicted, right)).reshape(-1, 3)
    return float((np.abs(rows[:, 0] - rows[:, 1]) * rows[:, 2]).sum() / max(rows[:, 2].sum(), 1))


@dataclass(frozen=True)
class Temperature:
    """What flattens class distributions until they are as sure as they are right."""

    value: float  # p^(1/value), normalised
    log_loss: float  # mean of the held-out snippets with it
    log_loss_before: float  # and without
    snippets: int


COLDEST, HOTTEST = 0.2, 20.0


def fit_temperature(probability: np.ndarray, truth: np.ndarray) -> Temperature | None:
    """The temperature with the least log loss of held-out snippets ``[M, C + 1]`` whose class is known ``[M]`` (Guo et
    al., ICML 2017); None without snippets."""
    if not len(truth):
        return None
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    with np.errstate(divide="ignore"):  # background that given_action leaves out
        log_p = np.log(np.where(probability > 0, np.maximum(probability, 1e-12), 0))
    rows = np.arange(len(truth))
    loss = lambda log_value: float(-log_softmax(log_p / np.exp(log_value), -1)[rows, truth].mean())
    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return Temperature(float(np.exp(found.x)), float(found.fun), loss(0.0), len(truth))


def discrimination(judged: Judged, least: float) -> float | None:
    """AUC of ICD's similarity for right against wrong detections above ``least``; None where one kind is missing."""
    from sklearn.metrics import roc_auc_score

    rows = judged.confidence > least
    right = judged.right[rows]
    return float(roc_auc_score(right, judged.similarity[rows])) if 0 < right.sum() < len(right) else None


def found_instances(truth: Instances, found: Instances) -> np.ndarray:
    """Which instances ``[N]`` are found: by one of the 2 N surest detections of all recordings together, of their class
    and at tIoU .5.

    The rank has to be limited, for with enough detections everything is found. Truth that is to be ignored is left out.
    """
    truth, _ = divide_truth(truth)
    surest = found.select(np.argsort(-found.score, kind="stable")[: 2 * len(truth)])
    overlaps = find_overlaps(truth, surest, floor=POSITIVE_TIOU)
    hit = np.zeros(len(truth), bool)
    hit[overlaps.truth] = True
    return hit


@dataclass(frozen=True)
class Contest:
    """How many held-out instances only one of two networks finds, and how surprising that is."""

    gained: int  # only the challenger
    lost: int  # only the incumbent
    p_value: float  # sign test, one-sided: of as many gains or more if neither were better


def contest(challenger: np.ndarray, incumbent: np.ndarray) -> Contest:
    """Compares two answers of :func:`found_instances`.

    Average precision of few instances hangs on the order of a handful of detections: where two ways of training found
    all but one of the same instances, it differed by .07, in 92 % of bootstrap redraws (docs/results.md). Instances
    gained and lost say plainly how little that is.
    """
    from scipy.stats import binomtest

    gained, lost = int((challenger & ~incumbent).sum()), int((incumbent & ~challenger).sum())
    test = binomtest(gained, gained + lost, 0.5, alternative="greater") if gained + lost else None
    return Contest(gained, lost, float(test.pvalue) if test else 1.0)
