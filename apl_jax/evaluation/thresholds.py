"""Which predictions to believe: a least score for each class, chosen by F1, and the sieve that applies it.

Average precision judges a ranking and needs no threshold; whoever uses the predictions needs one, and detectors are
calibrated differently for each class (spec 8, row 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apl_jax.data.files import DataError, expanded, load_json, refusal, write_json
from apl_jax.data.names import clean_name, cleaned_keys, hint
from apl_jax.data.values import is_number
from apl_jax.evaluation.average_precision import Instances, divide_truth, find_overlaps, match, on_ignored, ranking
from apl_jax.text import shown, some


@dataclass(frozen=True, eq=False)
class Thresholds:
    """The least score of each class and what it gives; nan where a class has no threshold (see below)."""

    score: np.ndarray  # [C] float64
    f1: np.ndarray  # [C]
    precision: np.ndarray  # [C]
    recall: np.ndarray  # [C]
    truth: np.ndarray  # [C] int64, annotated instances


def best_thresholds(truth: Instances, predictions: Instances, tiou: float, num_classes: int) -> Thresholds:
    """For each class the threshold with the best F1 at ``tiou``, in (0, 1]; predictions that score it or more count.

    Truth and matching are those of :func:`~apl_jax.evaluation.average_precision.average_precision`: since the best
    score chooses first, what a threshold leaves is matched as if the rest had never been. Only scores of predictions
    are tried; of equally good ones the highest is taken. A class without truth, or of which no prediction is right,
    has no threshold. Raises ``DataError`` for another ``tiou`` and for labels outside ``[0, num_classes)``.
    """
    if not 0 < tiou <= 1:
        raise DataError(f"`tiou`: found {tiou!r}, expected a threshold in (0, 1]")
    for table, name in ((truth, "truth"), (predictions, "predictions")):
        if len(table) and not (table.label.min() >= 0 and table.label.max() < num_classes):
            found = f"{table.label.min()} to {table.label.max()}"
            raise DataError(f"{name}: found labels {found}, expected 0 to {num_classes - 1}")
    (truth, ignored), ranked, levels = divide_truth(truth), predictions.select(ranking(predictions)), np.array([tiou])
    hits = match(find_overlaps(truth, ranked, floor=tiou), levels)[0]
    judged = hits | ~on_ignored(ignored, ranked, levels)[0]
    ranked, hits = ranked.select(judged), hits[judged]
    counts = np.bincount(truth.label, minlength=num_classes)
    bounds = np.searchsorted(ranked.label, np.arange(num_classes + 1))
    found = np.full((4, num_classes), np.nan)
    for c in np.flatnonzero(counts):
        rows = slice(bounds[c], bounds[c + 1])
        if hits[rows].any():
            found[:, c] = _best(ranked.score[rows], hits[rows], int(counts[c]))
    return Thresholds(found[0], found[1], found[2], found[3], counts)


def _best(score: np.ndarray, hits: np.ndarray, truth: int) -> tuple[float, float, float, float]:
    """Threshold, F1, precision and recall of one class; ``score [M]`` falls, ``hits [M]`` are its true positives."""
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # equal scores stand or fall together
    right, count = np.cumsum(hits)[last], last + 1
    best = int(np.argmax(2 * right / (count + truth)))  # the first maximum is the highest score
    precision, recall = right[best] / count[best], right[best] / truth
    return float(score[last[best]]), float(2 * right[best] / (count[best] + truth)), float(precision), float(recall)


def write_thresholds(path: str | Path, thresholds: np.ndarray, classes: Sequence[str]) -> None:
    """Writes ``{class: threshold}``, null for nan, whole or not at all."""
    values = np.asarray(thresholds, np.float64).tolist()
    write_json(path, {name: None if np.isnan(v) else v for name, v in zip(classes, values, strict=True)})


def read_thresholds(path: str | Path, classes: Sequence[str]) -> np.ndarray:
    """The least score of each class ``[C]``, nan where the file has null or leaves a class out.

    Raises :class:`~apl_jax.data.files.DataError` for an unknown class and for a value that is no number in
    [0, 1].
    """
    path, index = expanded(path), {clean_name(name): i for i, name in enumerate(classes)}
    result = np.full(len(classes), np.nan)
    for name, value in cleaned_keys(load_json(path), str(path), "the name of a class").items():
        if name not in index:
            remedy = "the file that apl-jax thresholds wrote for this run"
            found = f"a threshold for an unknown class{hint(name, classes)}"
            raise refusal(f"{path}: {shown(name)}", found, f"classes {some(classes, 10)}", remedy)
        if value is not None and not (is_number(value) and 0 <= value <= 1):
            expected = "a number in [0, 1], or null for `min_score`"
            raise refusal(f"{path}: {shown(name)}", shown(value), expected, "correct it")
        if value is not None:
            result[index[name]] = float(value)
    return result


def select_confident(
    predictions: Instances, min_score: float, thresholds: np.ndarray | None = None, top_k: int | None = None
) -> Instances:
    """Predictions that score ``min_score`` (or the threshold of their class, where ``thresholds [C]`` is not nan) or
    more, the best ``top_k`` of each video, sorted by video, then falling score."""
    least = np.full(len(predictions), min_score)
    if thresholds is not None:
        own = thresholds[predictions.label]
        least = np.where(np.isnan(own), min_score, own)
    kept = predictions.select(predictions.score >= least)
    kept = kept.select(np.lexsort((-kept.score, kept.video)))
    if top_k is None:
        return kept
    place = np.arange(len(kept)) - np.searchsorted(kept.video, kept.video)
    return kept.select(place < top_k)
