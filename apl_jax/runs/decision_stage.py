"""What ``method=auto`` decides by cross-fitted evidence: which network labels, what becomes a label, which one stays.

Two stages, each a pure function of what cross-fitting left and of the labelled annotations. Their results stand in
``results.json`` under ``decisions``, in words under ``because``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.evaluation.average_precision import Instances, instances_from_annotations
from apl_jax.evaluation.held_out import (
    Judged,
    best_operating_point,
    better_share,
    calibrate,
    calibration_error,
    discrimination,
    judge,
    pooled_average_precision,
    reliability,
)
from apl_jax.evaluation.scoring import score
from apl_jax.learning.methods import AutoSettings
from apl_jax.runs.context import StageInputs
from apl_jax.runs.cross_fit_stage import read_held_out

HANDFUL = 10  # right detections; a threshold chosen from fewer is named in a warning


@dataclass(frozen=True)
class Arm:
    """One way of training that was tried on held-out recordings."""

    name: str
    steps: int
    place: str  # cross-fitting stage, and the milestone: stage/steps


@dataclass(frozen=True)
class TeacherDecisionPart:
    """What the stage is handed that chooses the network that labels, and what becomes a label."""

    auto: AutoSettings
    teachers: tuple[Arm, ...]
    plain: tuple[Arm, ...]  # the plain detector's, to choose its number of steps; none where it is not wanted
    tau_neg: float
    tiou: tuple[float, ...]


@dataclass(frozen=True)
class ModelDecisionPart:
    """What the stage is handed that chooses the model that stays."""

    arms: tuple[Arm, ...]  # plain, teacher, student
    tiou: tuple[float, ...]


def decide_teacher(part: TeacherDecisionPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Pretext, number of steps, threshold of labels, and whether ICD is asked."""
    del folder
    tried = _scores(part.teachers, inputs, part.tiou)
    teacher = max(part.teachers, key=lambda arm: tried[arm.place]["pooled"])
    plain_tried = _scores(part.plain, inputs, part.tiou)
    plain = max(part.plain, key=lambda arm: plain_tried[arm.place]["pooled"], default=None)
    found, similarity = read_held_out(inputs.folder(teacher.place))
    truth = _truth(inputs)
    judged = judge(truth, found, similarity)
    point = best_operating_point(judged, part.auto.recall_weight, 0.0)
    auc = discrimination(judged, part.tau_neg)
    icd = _icd(part.auto, judged, part.tau_neg, auc)
    other = max(
        (arm for arm in part.teachers if arm.name != teacher.name),
        key=lambda arm: tried[arm.place]["pooled"], default=None,
    )  # fmt: skip
    words = [_teacher_words(teacher, other, tried, inputs, truth, part.tiou)]
    words.append(
        f"label threshold {point.threshold:.2f}: {point.precision:.0%} of {point.count} held-out detections that reach "
        f"it are right, {point.recall:.0%} of the instances found"
        if point else "label threshold as configured: no held-out detection is right"
    )  # fmt: skip
    words.append(_icd_words(icd, auc, part.auto))
    return {
        "teacher": dataclasses.asdict(teacher),
        "plain": dataclasses.asdict(plain) if plain else None,
        "tried": tried | plain_tried,
        "operating_point": dataclasses.asdict(point) if point else None,
        "icd": icd,
        "icd_auc": auc,
        "calibration": _calibration(judged),
        "because": words,
        "warnings": _warnings(inputs, judged, point.count if point else 0),
    }


def decide_model(part: ModelDecisionPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Which of plain detector, teacher and student stays: the best on held-out recordings."""
    del folder
    tried, truth = _scores(part.arms, inputs, part.tiou), _truth(inputs)
    ranked = sorted(part.arms, key=lambda arm: -tried[arm.place]["pooled"])
    best, words = ranked[0], []
    for other in ranked[1:]:
        share = _share(best, other, inputs, truth, part.tiou)
        words.append(
            f"{best.name} and not {other.name}: held-out {_percent(tried[best.place])} against "
            f"{_percent(tried[other.place])}, ahead in {share:.0%} of redraws of the recordings"
        )
    return {"model": best.name, "tried": tried, "because": words}


def _truth(inputs: StageInputs) -> Instances:
    return instances_from_annotations(inputs.table("labelled").records)


def _scores(arms: tuple[Arm, ...], inputs: StageInputs, tiou: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """By place: name, steps, pooled AP and mAP of each arm."""
    truth, records, scores = _truth(inputs), inputs.table("labelled").records, {}
    for arm in arms:
        found, _ = read_held_out(inputs.folder(arm.place))
        mean_ap = score(records, found, inputs.classes, tiou, ())["average_map"]
        pooled = pooled_average_precision(truth, found, tiou, len(inputs.classes))
        scores[arm.place] = {"name": arm.name, "steps": arm.steps, "pooled": pooled, "average_map": mean_ap}
    return scores


def _share(one: Arm, other: Arm, inputs: StageInputs, truth: Instances, tiou: tuple[float, ...]) -> float:
    first, second = (read_held_out(inputs.folder(arm.place))[0] for arm in (one, other))
    return better_share(truth, first, second, tiou, len(inputs.classes))


def _percent(scores: dict[str, Any]) -> str:
    return f"{100 * scores['pooled']:.1f}"


def _teacher_words(
    teacher: Arm, other: Arm | None, tried: dict, inputs: StageInputs, truth: Instances, tiou: tuple[float, ...]
) -> str:
    text = f"pre-training: {teacher.name}, {teacher.steps} steps: held-out AP {_percent(tried[teacher.place])}"
    if other is None:
        return text
    share = _share(teacher, other, inputs, truth, tiou)
    against = f"{_percent(tried[other.place])} ({other.name}, {other.steps} steps)"
    return f"{text} against {against}, ahead in {share:.0%} of redraws of the recordings"


def _icd(auto: AutoSettings, judged: Judged, tau_neg: float, auc: float | None) -> dict[str, Any]:
    """Whether ICD is asked, and its thresholds: quantiles of the similarity of right and of wrong detections."""
    if auc is None or auc < auto.least_auc:
        return {"enabled": False}
    rows = judged.confidence > tau_neg
    right, wrong = judged.similarity[rows & judged.right], judged.similarity[rows & ~judged.right]
    below = float(np.quantile(right, auto.lost_share))
    return {"enabled": True, "eliminate_below": below, "promote_above": max(float(np.quantile(wrong, 0.9)), below)}


def _icd_words(icd: dict[str, Any], auc: float | None, auto: AutoSettings) -> str:
    known = "not known, too few detections" if auc is None else f"{auc:.2f}"
    if not icd["enabled"]:
        return f"ICD off: AUC of right against wrong held-out detections {known}, less than {auto.least_auc:g}"
    return f"ICD on: AUC {known}; drops below {icd['eliminate_below']:.2f}, promotes above {icd['promote_above']:.2f}"


def _calibration(judged: Judged) -> dict[str, Any]:
    """Expected calibration error of confidence as it is, and as isotonic regression on four fifths of the detections
    corrects it on the last."""
    rows = judged.confidence > 0.01
    confidence, right = judged.confidence[rows], judged.right[rows]
    if len(right) < 2 * HANDFUL or not 0 < right.sum() < len(right):
        return {}
    parts = np.arange(len(right)) % 5  # sorted by confidence: each part has all confidences
    corrected = np.zeros(len(right))
    for p in range(5):
        corrected[parts == p] = calibrate(confidence[parts != p], right[parts != p]).predict(confidence[parts == p])
    return {
        "error": calibration_error(confidence, right), "corrected_error": calibration_error(corrected, right),
        "diagram": [list(row) for row in reliability(confidence, right)],
        "corrected_diagram": [list(row) for row in reliability(corrected, right)],
    }  # fmt: skip


def _warnings(inputs: StageInputs, judged: Judged, count: int) -> list[str]:
    counts = np.bincount(judged.truth, minlength=len(inputs.classes))
    alone = [name for name, n in zip(inputs.classes, counts, strict=True) if n == 1]
    found = []
    if alone:
        found.append(
            f"{len(alone)} of {len(counts)} classes have one labelled instance, which cannot be both learnt and held "
            f"out: {', '.join(alone[:5])}{', ...' if len(alone) > 5 else ''}"
        )
    if count < HANDFUL:
        found.append(f"the label threshold was chosen from {count} held-out detections: it may be far off")
    return found
