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

from apl_jax.data.folds import one_subject
from apl_jax.evaluation.average_precision import Instances, instances_from_annotations
from apl_jax.evaluation.held_out import (
    Judged,
    Operating,
    Temperature,
    best_operating_point,
    calibrate,
    calibration_error,
    contest,
    discrimination,
    fit_temperature,
    found_instances,
    judge,
    pooled_average_precision,
    reliability,
    surest_on,
)
from apl_jax.evaluation.scoring import score
from apl_jax.learning.methods import AutoSettings
from apl_jax.runs.context import StageInputs
from apl_jax.runs.cross_fit_stage import read_distributions, read_held_out, why_no_evidence
from apl_jax.text import some

_SHOWN_CONFIDENCE = 0.01  # detections of less are left out of the reliability diagram
_PARTS = 5  # of the detections: each is calibrated by the others
_PLAIN_WAY = "no pre-training, all steps, label threshold by the configured rule, ICD off"
NONE, PRETRAINED, PLAIN = "none", "pretrained", "plain"  # ways of training that are tried


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
    teachers: tuple[Arm, ...]  # the first is taken unless another is better beyond doubt
    # the plain detector's, which may be better than these, and whose number of steps is chosen; none where not wanted
    plain: tuple[Arm, ...]
    tau_neg: float
    tiou: tuple[float, ...]
    temperature: bool = False  # whether the student divides class distributions, whose temperature is fitted


@dataclass(frozen=True)
class ModelDecisionPart:
    """What the stage is handed that chooses the model that stays."""

    arms: tuple[Arm, ...]  # student, teacher, plain
    doubt: float
    tiou: tuple[float, ...]


def decide_teacher(part: TeacherDecisionPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Pretext, number of steps, threshold of labels, and whether ICD is asked; the plain way where nothing can be held
    out."""
    del folder
    if why := why_no_evidence(inputs):
        return undecided(part) | {"tried": {}, "icd_auc": None, "calibration": {}, "because": [f"{_PLAIN_WAY}: {why}"]}
    teacher, words = _choose(part.teachers, inputs, part.auto.doubt)
    plain, _ = _choose(part.plain, inputs, part.auto.doubt) if part.plain else (None, [])
    if plain:  # each with the number of steps that is right for it
        teacher, more = _choose((teacher, plain), inputs, part.auto.doubt)
        words = [*more, *words] if teacher.name == PLAIN else [*words, *more[1:]]
    truth, (found, similarity) = _truth(inputs), read_held_out(inputs.folder(teacher.place))
    judged = judge(truth, found, similarity)
    surest = surest_on(truth, found)
    above = _candidates_above(part, surest)
    point = best_operating_point(judged, part.auto.recall_weight)
    enough = point is not None and round(point.count * point.precision) >= part.auto.least_detections
    auc = None if teacher.name == PLAIN else discrimination(judged, part.tau_neg)
    icd = _icd(part.auto, judged, part.tau_neg, auc)
    heat = fit_temperature(*read_distributions(inputs.folder(teacher.place))) if part.temperature else None
    return {
        "teacher": dataclasses.asdict(teacher),
        "plain": dataclasses.asdict(plain) if plain else None,
        "tried": _scores((*part.teachers, *part.plain), inputs, part.tiou),
        "operating_point": dataclasses.asdict(point) if point and enough else None,
        "candidates_above": above,
        "icd": icd,
        "icd_auc": auc,
        "temperature": dataclasses.asdict(heat) if heat else None,
        "calibration": _calibration(judged),
        "because": [
            *words,
            _threshold_words(point, enough, part.auto),
            _candidate_words(above, surest, part.tau_neg),
            "ICD off: the plain detector is trained without it"
            if teacher.name == PLAIN
            else _icd_words(icd, auc, part.auto),
            *([_temperature_words(heat)] if heat else []),
        ],
        "warnings": _warnings(inputs, judged),
    }


def undecided(part: TeacherDecisionPart) -> dict[str, Any]:
    """The plain way, by which a run goes where nothing speaks for another one."""
    plain = dataclasses.asdict(part.plain[0]) if part.plain else None
    teacher = {"teacher": dataclasses.asdict(part.teachers[0]), "plain": plain}
    undecided = {"operating_point": None, "candidates_above": part.tau_neg, "icd": {"enabled": False}}
    return teacher | undecided | {"temperature": None, "warnings": []}


def decide_model(part: ModelDecisionPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Which of student, teacher and plain detector stays."""
    del folder
    if why := why_no_evidence(inputs):
        return {"model": part.arms[0].name, "tried": {}, "because": [f"{part.arms[0].name}: taken, for {why}"]}
    best, words = _choose(part.arms, inputs, part.doubt)
    return {"model": best.name, "tried": _scores(part.arms, inputs, part.tiou), "because": words}


def _choose(arms: tuple[Arm, ...], inputs: StageInputs, doubt: float) -> tuple[Arm, list[str]]:
    """The first arm, unless another finds more held-out instances than chance would explain; and why, in words."""
    truth = _truth(inputs)
    hits = [found_instances(truth, read_held_out(inputs.folder(arm.place))[0]) for arm in arms]
    contests = [contest(hit, hits[0]) for hit in hits]
    best = min(range(len(arms)), key=lambda i: (contests[i].p_value if contests[i].p_value <= doubt else 1.0, i))
    words = [
        f"{_described(arms[best], arms)}: taken, {int(hits[best].sum())} of {len(hits[best])} held-out instances found"
    ]
    for i, (arm, hit, result) in enumerate(zip(arms, hits, contests, strict=True)):
        count = f"{_described(arm, arms)}: {int(hit.sum())} found"
        if i == 0 and best > 0:
            words.append(
                f"{count}: {contests[best].lost} more, {contests[best].gained} fewer (p = {contests[best].p_value:.3f})"
            )
        elif i not in (0, best):
            sure = "more than chance" if result.p_value <= doubt else f"no sure gain, p = {result.p_value:.2f}"
            words.append(
                f"{count}: {result.gained} gained, {result.lost} lost against {_described(arms[0], arms)} ({sure})"
            )
    return arms[best], words


def _described(arm: Arm, arms: tuple[Arm, ...]) -> str:
    """An arm in words; how long it is trained where that tells it from others."""
    name = {NONE: "no pre-training", PRETRAINED: "pre-training", PLAIN: "the plain detector"}.get(arm.name, arm.name)
    several = sum(other.name == arm.name for other in arms) > 1
    return f"{name}, {arm.steps} steps" if several else name


def _truth(inputs: StageInputs) -> Instances:
    return instances_from_annotations(inputs.table("labelled").records)


def _scores(arms: tuple[Arm, ...], inputs: StageInputs, tiou: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """By place: name, steps, instances found, AP of one ranking over all classes, and mAP of each arm."""
    truth, records, scores = _truth(inputs), inputs.table("labelled").records, {}
    for arm in arms:
        found, _ = read_held_out(inputs.folder(arm.place))
        scores[arm.place] = {
            "name": arm.name, "steps": arm.steps, "found": int(found_instances(truth, found).sum()),
            "pooled": pooled_average_precision(truth, found, tiou, len(inputs.classes)),
            "average_map": score(records, found, inputs.classes, tiou, ())["average_map"],
        }  # fmt: skip
    return scores


def _threshold_words(point: Operating | None, enough: bool, auto: AutoSettings) -> str:
    if point is None:
        return "label threshold by the configured rule: no held-out detection is right"
    reached = f"{point.precision:.0%} of {point.count} held-out detections that reach {point.threshold:.2f} are right"
    if not enough:
        fewer = f"fewer right ones than the {auto.least_detections} that a choice asks for"
        return f"label threshold by the configured rule: {reached}, {fewer}"
    return f"label threshold {point.threshold:.2f}: {reached}, {point.recall:.0%} of the instances are found"


def _candidates_above(part: TeacherDecisionPart, surest: np.ndarray) -> float:
    """The confidence that all but a share of the held-out instances reach, within bounds; tau_neg without any."""
    if not len(surest):
        return part.tau_neg
    reached = float(np.quantile(surest, part.auto.background_share))
    return min(max(reached, part.auto.least_candidate), part.tau_neg)


def _candidate_words(above: float, surest: np.ndarray, tau_neg: float) -> str:
    if not len(surest):
        return f"candidates, which are ignored in training, above {above:.2f}: nothing is held out"
    below = f"{(surest <= above).mean():.0%} of the held-out instances have no surer detection of any class"
    before = "" if above >= tau_neg else f", above {tau_neg:g} {(surest <= tau_neg).mean():.0%}"
    return f"candidates, which are ignored in training, above {above:.2f}: {below}{before}"


def _icd(auto: AutoSettings, judged: Judged, tau_neg: float, auc: float | None) -> dict[str, Any]:
    """Whether ICD is asked, and its thresholds: quantiles of the similarity of right and of wrong detections."""
    rows = judged.confidence > tau_neg
    few = min(int((rows & judged.right).sum()), int((rows & ~judged.right).sum())) < auto.least_detections
    if few or auc is None or auc < auto.least_auc:
        return {"enabled": False}
    right, wrong = judged.similarity[rows & judged.right], judged.similarity[rows & ~judged.right]
    below = float(np.quantile(right, auto.lost_share))
    return {
        "enabled": True,
        "eliminate_below": below,
        "promote_above": max(float(np.quantile(wrong, 1 - auto.wrong_share)), below),
    }


def _icd_words(icd: dict[str, Any], auc: float | None, auto: AutoSettings) -> str:
    known = "not known" if auc is None else f"{auc:.2f}"
    if not icd["enabled"]:
        wanted = f"{auto.least_auc:g}, of {auto.least_detections} detections of each kind, is asked for"
        return f"ICD off: AUC of right against wrong held-out detections {known}; {wanted}"
    return f"ICD on: AUC {known}; drops below {icd['eliminate_below']:.2f}, promotes above {icd['promote_above']:.2f}"


def _temperature_words(heat: Temperature) -> str:
    losses = f"{heat.log_loss:.2f} against {heat.log_loss_before:.2f} as they are"
    return f"temperature {heat.value:.2f}: log loss of {heat.snippets:,} held-out class distributions {losses}"


def _calibration(judged: Judged) -> dict[str, Any]:
    """Expected calibration error of confidence as it is, and as isotonic regression on four fifths of the detections
    corrects it on the last."""
    rows = judged.confidence > _SHOWN_CONFIDENCE
    confidence, right = judged.confidence[rows], judged.right[rows]
    if len(right) < 2 * _PARTS or not 0 < right.sum() < len(right):
        return {}
    parts = np.arange(len(right)) % _PARTS  # sorted by confidence: each part has all confidences
    corrected = np.zeros(len(right))
    for p in range(_PARTS):
        corrected[parts == p] = calibrate(confidence[parts != p], right[parts != p]).predict(confidence[parts == p])
    return {
        "error": calibration_error(confidence, right), "corrected_error": calibration_error(corrected, right),
        "diagram": [list(row) for row in reliability(confidence, right)],
        "corrected_diagram": [list(row) for row in reliability(corrected, right)],
    }  # fmt: skip


def _warnings(inputs: StageInputs, judged: Judged) -> list[str]:
    warnings = []
    if one_subject(inputs.table("labelled").records):
        warnings.append("all labelled recordings are of one subject: the evidence says nothing about others")
    counts = np.bincount(judged.truth, minlength=len(inputs.classes))
    alone = [name for name, n in zip(inputs.classes, counts, strict=True) if n == 1]
    if not alone:
        return warnings
    share = f"{len(alone)} of {len(counts)} classes have one labelled instance"
    return [*warnings, f"{share}, which cannot be both learnt and held out: {some(alone)}"]
