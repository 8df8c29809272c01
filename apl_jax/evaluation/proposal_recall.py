"""Average recall of proposals over their average number, and the area under this curve, ActivityNet's way.

A proposal is a segment that is ranked by a score; its class, and that of the truth, do not matter. At an *average
number* AN of proposals per video, every video is given the same share of its own proposals, the best ones, so that
there are AN of them per video on average: a video with many proposals keeps many. The *average recall* AR@AN is the
share of instances that one of these covers, averaged over tIoU thresholds; AUC is the area under AR from AN 1 to 100,
over 100, so that 99 % is all that can be reached. Both as the evaluation of ActivityNet's proposal task computes them,
which papers on proposals report (spec 2.7, 2.10): the share is applied to each video in two steps, both rounded down,
first to 100 proposals per video, then to AN.

* Videos without an instance that counts are left out, and their proposals with them.
* Several proposals may cover an instance, and one proposal several instances; an instance that is annotated twice, or
  with two classes, counts twice.
* Of proposals of equal score the last given comes first, as everywhere in this package.
* Truth that is to be ignored is no miss. At a threshold where a proposal covers no instance that counts, but ignored
  truth, it has no place in the ranking of its video: the next one moves up.
* Fewer proposals than AN: all are looked at, and recall stays what it is from there on. Without any it is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apl_jax.data.files import DataError
from apl_jax.evaluation.average_precision import Instances, find_overlaps, on_ignored

TIOU = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))  # of ActivityNet's proposal task
MOST = 100  # the largest average number of proposals, and how many points the curve has
SHOWN = (1, 5, 10, 100)  # average numbers that papers report


@dataclass(frozen=True)
class ProposalRecall:
    """Recall per threshold and average number of proposals; all are fractions of 1."""

    tiou: tuple[float, ...]  # J thresholds
    recall: np.ndarray  # [J, MOST] at 1 to MOST proposals per video on average
    videos: int  # that have an instance which counts
    instances: int
    proposals: int  # of these videos

    @property
    def average_recall(self) -> np.ndarray:
        """AR ``[MOST]``: the mean over the thresholds."""
        return self.recall.mean(axis=0)

    @property
    def areas(self) -> np.ndarray:
        """The area under the curve of each threshold, ``[J]``, by the trapezoidal rule from 1 to MOST, over MOST."""
        return (self.recall[:, 1:] + self.recall[:, :-1]).sum(axis=1) / 2 / MOST

    @property
    def auc(self) -> float:
        """The area under AR, at most 1 - 1 / MOST."""
        return float(self.areas.mean())

    def as_dict(self) -> dict[str, Any]:
        """JSON types; thresholds are keys such as "0.5", average numbers of proposals such as "10"."""
        names = [f"{threshold:g}" for threshold in self.tiou]
        at = {str(n): self.recall[:, n - 1].tolist() for n in SHOWN}
        return {
            "auc": self.auc,
            "average_recall": {n: float(np.mean(values)) for n, values in at.items()},
            "recall": {n: dict(zip(names, values, strict=True)) for n, values in at.items()},
            "area": dict(zip(names, self.areas.tolist(), strict=True)),
            "videos": self.videos,
            "instances": self.instances,
            "proposals": self.proposals,
        }


def proposal_recall(truth: Instances, proposals: Instances, tiou: Sequence[float] = TIOU) -> ProposalRecall:
    """Recall of ``proposals`` at the thresholds ``tiou``, each in (0, 1], for every average number of them.

    Labels are not looked at. The semantics are those of this module. Raises ``DataError`` without any truth that
    counts, and for impossible thresholds.
    """
    thresholds = np.asarray(tiou, np.float64)
    if thresholds.ndim != 1 or not thresholds.size or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise DataError(f"`tiou`: found {tiou!r}, expected one or more thresholds in (0, 1]")
    truth, proposals = _without_labels(truth), _without_labels(proposals)
    counted, ignored = truth.select(~truth.ignore), truth.select(truth.ignore)
    if not len(counted):
        raise DataError("truth: no annotated instance in these videos; there is nothing to score against")
    videos, row = np.unique(counted.video, return_inverse=True)
    ranked = _ranked(proposals.select(np.isin(proposals.video, videos)))
    counts = np.searchsorted(ranked.video, videos, side="right") - np.searchsorted(ranked.video, videos)
    foremost = _foremost(counted, ignored, ranked, thresholds)  # [J, G]
    given = proposals_given(counts)[row]  # [G, MOST]
    recall = np.stack([(places[:, None] < given).mean(axis=0) for places in foremost])
    return ProposalRecall(tuple(thresholds.tolist()), recall, len(videos), len(counted), len(ranked))


def proposals_given(counts: np.ndarray) -> np.ndarray:
    """How many of its ``counts [V]`` proposals each video is given at 1 to MOST per video on average: ``[V, MOST]``.

    The order of the operations is ActivityNet's, so that what float64 rounds down is the same.
    """
    videos, total = len(counts), int(counts.sum())
    if not total:
        return np.zeros((videos, MOST), np.int64)
    most = np.minimum((counts * (MOST * float(videos) / total)).astype(np.int64), counts)
    shares = np.arange(1, MOST + 1) / MOST * (MOST * float(videos) / max(int(most.sum()), 1))
    return np.minimum((most[:, None] * shares).astype(np.int64), most[:, None])


def _without_labels(instances: Instances) -> Instances:
    return dataclasses.replace(instances, label=np.zeros(len(instances), np.int64))


def _ranked(proposals: Instances) -> Instances:
    """By video, then by falling score; of equal scores the last given comes first."""
    return proposals.select(np.lexsort((-np.arange(len(proposals)), -proposals.score, proposals.video)))


def _foremost(counted: Instances, ignored: Instances, ranked: Instances, thresholds: np.ndarray) -> np.ndarray:
    """The place in its video's ranking, from 0, of the best proposal that covers each instance by each threshold:
    ``[J, G]`` int64; where there is none, more than any place."""
    overlaps = find_overlaps(counted, ranked, floor=thresholds.min())
    spared = on_ignored(ignored, ranked, thresholds)
    first = np.searchsorted(ranked.video, ranked.video)
    foremost = np.full((len(thresholds), len(counted)), len(ranked))
    for level, threshold in enumerate(thresholds):
        near = overlaps.tiou >= threshold
        covering, covered = overlaps.prediction[near], overlaps.truth[near]
        neutral = spared[level]
        neutral[covering] = False
        before = np.concatenate([[0], np.cumsum(~neutral)])  # proposals that have a place
        place = before[:-1] - before[first]
        np.minimum.at(foremost[level], covered, place[covering])
    return foremost
