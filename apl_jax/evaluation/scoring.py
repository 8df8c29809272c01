"""Predictions scored against what people annotated: only recordings that somebody annotated are judged.

A benchmark's test set may have no public annotations. Then there is nothing to score, which is no error: predictions
are made all the same, and the reason stands where the score would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.evaluation.average_precision import Instances, average_precision, instances_from_annotations
from apl_jax.evaluation.submission import Submission
from apl_jax.text import shown

_SHOWN = 3  # names that a note lists
_ENOUGH = 5  # predictions, to guess their clock


def on_annotated(records: Sequence[VideoRecord], instances: Instances) -> np.ndarray:
    """Which instances ``[M]`` lie in annotated recordings; video row = position in ``records``."""
    return np.array([record.annotated for record in records], bool)[instances.video]


def unannotated(records: Sequence[VideoRecord]) -> dict[str, int]:
    """``{"unannotated": count}`` of the recordings that nobody annotated; empty where there are none."""
    count = sum(not record.annotated for record in records)
    return {"unannotated": count} if count else {}


def judged(records: Sequence[VideoRecord], predictions: Instances) -> tuple[Instances, Instances]:
    """The truth of ``records``, and those of the predictions that lie in annotated ones."""
    return instances_from_annotations(records), predictions.select(on_annotated(records, predictions))


def why_not_scored(records: Sequence[VideoRecord]) -> str:
    """Why there is nothing to score in these recordings; "" where there is."""
    annotated = [record for record in records if record.annotated]
    if not annotated:
        return f"none of the {len(records)} evaluated videos is annotated"
    if not any(record.present_classes for record in annotated):
        return f"none of the {len(annotated)} annotated videos has an instance that counts"
    return ""


def coverage_notes(records: Sequence[VideoRecord], submission: Submission) -> tuple[str, ...]:
    """What of the predictions and the truth does not meet: one sentence for each kind that occurs."""
    found = submission.instances
    predicted, inside = set(found.video.tolist()), [record for record in records if record.annotated]
    missed = [r.id for i, r in enumerate(records) if r.annotated and len(r.labels) and i not in predicted]
    empty = [video for video in missed if video in submission.empty]
    missed = [video for video in missed if video not in submission.empty]
    durations_s = np.array([record.duration_s for record in records])
    start_s, end_s = found.segments_s.T if len(found) else np.zeros((2, 0))
    outside = (start_s >= durations_s[found.video]) | (end_s <= 0)  # nan: not known, hence not outside
    kinds = (
        (missed, f"of {len(inside)} annotated videos have no predictions: all their instances are missed"),
        (empty, f"of {len(inside)} annotated videos have an empty list of predictions: all their instances are missed"),
        ([r.id for r in records if not r.annotated], f"of {len(records)} videos are not annotated: not scored"),
        (submission.unknown_videos, "videos of the predictions are not among those of the truth: left out"),
        (submission.unknown_labels, "classes of the predictions are not among those of the truth: left out"),
    )
    notes = [f"{len(names)} {what} ({_some(names)})" for names, what in kinds if names]
    within = len(found) >= _ENOUGH and end_s.max() <= 1
    if within and len(truth_s := np.concatenate([r.segments_s for r in inside])) and np.median(truth_s) > 1:
        notes.append(
            f"all {len(found)} predictions end within the first second: are these shares of a video, and no seconds?"
        )
    if outside.any():
        guess = "; are these frames, and no seconds?" if 2 * outside.sum() > len(found) else ""
        where = _some([records[i].id for i in dict.fromkeys(found.video[outside].tolist())])
        notes.append(f"{int(outside.sum())} of {len(found)} predictions lie outside their video ({where}){guess}")
    if (end_s == start_s).any():
        notes.append(f"{int((end_s == start_s).sum())} of {len(found)} predictions have no length")
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    rest = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(shown(name) for name in names[:_SHOWN]) + rest


def score(
    records: Sequence[VideoRecord], predictions: Instances, classes: Sequence[str], tiou: Sequence[float],
    recall_at: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """mAP and recall as JSON types (:meth:`AveragePrecision.as_dict`); without truth all of them empty, and
    ``not_scored``, the reason in words. Where some of the recordings are not annotated, ``unannotated`` counts them."""
    reason = why_not_scored(records)
    if reason:
        return {"average_map": None, "map": {}, "ap": {}, "recall": {}, "not_scored": reason}
    truth, predictions = judged(records, predictions)
    scores = average_precision(truth, predictions, tiou, len(classes), recall_at).as_dict(classes)
    return scores | unannotated(records)
