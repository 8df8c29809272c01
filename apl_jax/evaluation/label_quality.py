"""What pseudo labels are worth against the held-back truth of the unlabelled videos (APL, Figure 3(c)).

The paper names three quantities and leaves their edges open. Here, for a set of M pseudo labels:

* *class accuracy*: of the labels that overlap any instance of their video, the fraction whose class is that of the
  instance they overlap most. Labels that overlap nothing have no true class; they are counted apart, as
  ``on_background``, so that they cannot hide. Where instances of two classes tie (THUMOS14 annotates every CliffDiving
  as Diving too), either class is right.
* *mean tIoU*: mean over all labels of the largest tIoU with an instance of any class, 0 where there is none. Taken
  regardless of class, it measures localisation alone, as class accuracy measures classification alone.
* *positive accuracy*: fraction of all labels that have an instance of their own class at tIoU >= .5. Two labels on one
  instance are both right.
* labels on truth that is to be ignored (tIoU >= .5, same class, and no other instance) are not judged.
* *precision*, *recall*: of the set as detections at tIoU .5, matched one to one as in mAP, best score first, so that a
  second label on an instance is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.data.files import load_json
from apl_jax.evaluation.average_precision import Instances, divide_truth, find_overlaps, match, on_ignored, ranking
from apl_jax.learning.selection import UNKNOWN_SIMILARITY
from apl_jax.structs import Reason

POSITIVE_TIOU = 0.5  # APL 4.2: a positive prediction has the true class and this tIoU; reached counts, as in mAP

# What the training set would have been without and with each half of ICD (Table 4), and what ICD moved.
SETS: dict[str, tuple[Reason, ...]] = {
    "before_icd": (Reason.KEPT, Reason.DROPPED),
    "after_eap": (Reason.KEPT,),
    "after_mpp": (Reason.KEPT, Reason.DROPPED, Reason.PROMOTED),
    "final": (Reason.KEPT, Reason.PROMOTED),
    "dropped": (Reason.DROPPED,),
    "promoted": (Reason.PROMOTED,),
}

# The lists of a recording in pseudo_labels.json: what training learns from, what it leaves aside, what it takes for
# background.
SELECTED, LEFT_ASIDE, BACKGROUND = WRITTEN = ("annotations", "ignored", "unselected")
# What a label made by hand lacks.
CERTAIN = {"confidence": 1.0, "score": 1.0, "tiou": 1.0, "tnd": 0.0, "similarity": UNKNOWN_SIMILARITY}


@dataclass(frozen=True)
class PseudoLabelTable:
    """Everything that a labelling stage considered, M rows; the video row is the place in the unlabelled list."""

    instances: Instances  # score = confidence
    reason: np.ndarray  # [M] values of Reason, never BELOW_THRESHOLD
    score: np.ndarray  # [M] class probability
    tiou: np.ndarray  # [M]
    tnd: np.ndarray  # [M]
    similarity: np.ndarray  # [M]


def read_pseudo_labels(path: Path, videos: Sequence[str], classes: Sequence[str]) -> PseudoLabelTable:
    """What a labelling stage wrote about ``videos``; values that a hand-made label lacks are those of certainty."""
    database = load_json(path)["database"]
    rows = [
        (v, row) for v, video in enumerate(videos) for name in WRITTEN for row in database.get(video, {}).get(name, [])
    ]

    def column(name: str) -> np.ndarray:
        return np.array([row.get(name, CERTAIN[name]) for _, row in rows], np.float64)

    instances = Instances(
        np.array([v for v, _ in rows], np.int64),
        np.array([classes.index(row["label"]) for _, row in rows], np.int64),
        np.array([row["segment"] for _, row in rows], np.float64).reshape(-1, 2),
        column("confidence"),
    )
    reason = np.array([Reason[row.get("reason", "kept").upper()] for _, row in rows], np.int64)
    others = (column(name) for name in ("score", "tiou", "tnd", "similarity"))
    return PseudoLabelTable(instances, reason, *others)


def label_quality(pseudo_labels: Instances, reason: np.ndarray, truth: Instances) -> dict[str, Any]:
    """Quality of the sets that EAP and MPP make, as JSON types: ``{"truth": count, set name: set_quality(...)}``.

    ``reason`` ``[M]`` holds values of :class:`Reason`; rows that are BELOW or CANDIDATE belong to no set. Both tables
    hold the unlabelled videos only. Raises ``ValueError`` when ``reason`` and ``pseudo_labels`` differ in length.
    """
    reason = np.asarray(reason)
    if reason.shape != (len(pseudo_labels),):
        raise ValueError(f"label quality: found {reason.shape} reasons for {len(pseudo_labels)} pseudo labels")
    sets = {
        name: set_quality(pseudo_labels.select(np.isin(reason, [int(r) for r in reasons])), truth)
        for name, reasons in SETS.items()
    }
    return {"truth": len(divide_truth(truth)[0]), **sets}


def quality_per_class(
    pseudo_labels: Instances, reason: np.ndarray, truth: Instances, classes: Sequence[str], name: str
) -> dict[str, dict[str, Any]]:
    """:func:`set_quality` of the set ``name`` of :data:`SETS`, for the labels of each class on their own.

    The most overlapped instance is still sought among all classes; recall counts instances of the class alone.
    """
    rows = np.isin(np.asarray(reason), [int(r) for r in SETS[name]])
    return {
        name_of_class: set_quality(pseudo_labels.select(rows & (pseudo_labels.label == c)), truth, only_class=c)
        for c, name_of_class in enumerate(classes)
    }


def set_quality(labels: Instances, truth: Instances, only_class: int | None = None) -> dict[str, Any]:
    """Figure 3(c) of one set of labels; the module docstring defines the entries, a mean over nothing is None.

    Entries: count, on_background, class_accuracy, mean_tiou, positive_accuracy, precision, recall, all but the counts
    in [0, 1]. ``only_class`` restricts the instances that recall is a fraction of.
    """
    truth, ignored = divide_truth(truth)
    labels = labels.select(ranking(labels))
    spared = on_ignored(ignored, labels, np.array([POSITIVE_TIOU]))[0]
    labels = labels.select(~spared | (_best_tiou(labels, truth, same_class=True) >= POSITIVE_TIOU))
    best = _best_tiou(labels, truth, same_class=False)
    best_of_class = _best_tiou(labels, truth, same_class=True)
    overlaps = find_overlaps(truth, labels, floor=POSITIVE_TIOU)
    found = match(overlaps, np.array([POSITIVE_TIOU]))[0]
    expected = len(truth) if only_class is None else int((truth.label == only_class).sum())
    touching = best > 0
    return {
        "count": len(labels),
        "on_background": int((~touching).sum()),
        "class_accuracy": _mean((best_of_class == best)[touching]),
        "mean_tiou": _mean(best),
        "positive_accuracy": _mean(best_of_class >= POSITIVE_TIOU),
        "precision": _mean(found),
        "recall": float(found.sum() / expected) if expected else None,
    }


def _best_tiou(labels: Instances, truth: Instances, same_class: bool) -> np.ndarray:
    """Largest tIoU ``[M]`` with an instance of the video (and class), 0 without one."""
    best = np.zeros(len(labels))
    overlaps = find_overlaps(truth, labels, floor=0.0, same_class=same_class)
    np.maximum.at(best, overlaps.prediction, overlaps.tiou)
    return best


def _mean(values: np.ndarray) -> float | None:
    """Mean as a float, None of nothing (JSON has no nan)."""
    return float(values.mean()) if len(values) else None
