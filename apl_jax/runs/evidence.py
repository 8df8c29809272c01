"""The stages of a run whose choices are made by evidence (``learning.method.name=auto``), as far as they are known.

First come cross-fitting and the two decisions (runs/cross_fit_stage.py, runs/decision_stage.py); what they decide is an
ordinary tree of settings, from which the rest follows as for any other method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from apl_jax.declarations import Chain, Choice
from apl_jax.detectors.ensemble import EnsembleSettings, members_of
from apl_jax.learning.class_division import DivisionSettings
from apl_jax.learning.icd import IcdSettings
from apl_jax.learning.methods import AutoSettings
from apl_jax.learning.selection import CandidateSettings, DynamicSettings, FixedSettings
from apl_jax.runs import context as reads
from apl_jax.runs.cross_fit_stage import (
    CrossFitLabelPart,
    CrossFitPart,
    cross_fit,
    label_for_folds,
    refuse_proposals,
)
from apl_jax.runs.decision_stage import (
    NONE,
    PLAIN,
    PRETRAINED,
    Arm,
    ModelDecisionPart,
    TeacherDecisionPart,
    decide_model,
    decide_teacher,
    undecided,
)
from apl_jax.runs.plans import chosen_method, plan_stages, training_stage
from apl_jax.runs.settings import Settings, plain_detector, plain_method
from apl_jax.runs.stages import Stage
from apl_jax.settings import StageSettings
from apl_jax.structs import DataFacts

TEACHER, MODEL = "decide_teacher", "decide_model"  # the stages that decide
TRIAL_PRETRAIN = "cross_fit_pretrain"  # one network, from which those of all folds begin
_READS = (reads.TRAINING, reads.LABELLED)

Results = Mapping[str, Any]  # of stages that are done, by name


def known_stages(settings: Settings, facts: DataFacts, results: Results) -> list[Stage]:
    """The stages that are known once those in ``results`` are done; the same as ``results`` when nothing is left."""
    auto = evidence_of(settings, facts)
    if auto is None:
        return plan_stages(settings, facts)
    refuse_proposals(facts, settings.detector)
    single = dataclasses.replace(settings, detector=members_of(settings.detector)[0])  # what is tried
    stages = _about_teachers(single, facts, auto)
    if TEACHER in results:
        stages += _about_students(single, auto, results[TEACHER])
    if MODEL not in results:
        return stages
    return stages + _plain(settings, facts, results) + _rest(settings, facts, results)


def foreseen_stages(settings: Settings, facts: DataFacts, results: Results) -> list[Stage]:
    """All stages of a run, as if what is not decided yet were decided for the plain way."""
    assumed = dict(results)
    if evidence_of(settings, facts) is None:
        return plan_stages(settings, facts)
    if TEACHER not in results:
        decide = next(s.handed for s in known_stages(settings, facts, {}) if s.name == TEACHER)
        assumed[TEACHER] = undecided(decide)
    return known_stages(settings, facts, {MODEL: {"model": "student"}} | assumed)


def evidence_of(settings: Settings, facts: DataFacts) -> AutoSettings | None:
    """The settings of cross-fitting, of a method that leaves choices to evidence; else None."""
    return chosen_method(settings, facts).evidence if "semi_supervised" in settings.variants else None


def decided(settings: Settings, facts: DataFacts, results: Results) -> Settings:
    """The settings after the decisions that ``results`` hold, as anybody could have written them by hand; the detector
    is that of teacher and student."""
    auto = evidence_of(settings, facts)
    if auto is None or TEACHER not in results:
        return settings
    decision = results[TEACHER]
    settings = _as_plain(settings) if _labels_plainly(decision) else settings
    learning = settings.learning
    learning = dataclasses.replace(
        learning,
        method=_student(auto, decision),
        pretrain=_longer(
            learning.pretrain, learning.pretrain.steps if decision["teacher"]["name"] == PRETRAINED else 0
        ),
        supervised=_longer(learning.supervised, decision["teacher"]["steps"]),
        self_train=_longer(learning.self_train, _student_steps(settings, decision)),
        selection=_selection(learning.selection, auto, decision),
    )
    return dataclasses.replace(settings, learning=learning, detector=_ensemble(settings.detector, auto.networks))


def _ensemble(detector: Choice, networks: int) -> Choice:
    """So many networks of a detector as one; a single one, and an ensemble that was configured, as it is."""
    if networks == 1 or members_of(detector)[1]:
        return detector
    return Choice("ensemble", EnsembleSettings(detector, networks))


def final_stage(results: Results) -> str | None:
    """The stage whose model stays, as decided; None where nothing was."""
    if MODEL not in results:
        return None
    trained = [name for name, result in results.items() if "steps" in result]  # the last round's student comes last
    return {PLAIN: "supervised", "teacher": "teacher", "student": trained[-1]}[results[MODEL]["model"]]


def _about_teachers(settings: Settings, facts: DataFacts, auto: AutoSettings) -> list[Stage]:
    """Networks of folds, with and without pre-training and of the plain detector, and what follows from them."""
    learning, stages = settings.learning, []
    starts = {NONE: ""}
    if learning.pretrain.steps > 0:
        stages.append(training_stage(settings, TRIAL_PRETRAIN, learning.pretext, learning.pretrain))
        starts[PRETRAINED] = TRIAL_PRETRAIN
    milestones = tuple(dict.fromkeys(max(round(n * learning.supervised.steps), 1) for n in auto.lengths))
    teachers: list[Arm] = []
    for name, start in starts.items():
        part = _cross_fit(settings, auto, f"cross_fit_{name}", learning.supervised, milestones, start=start)
        part = dataclasses.replace(part, distributions=_division(auto))
        stages.append(Stage(part.name, (start,) if start else (), _READS, part, cross_fit))
        teachers += [Arm(name, steps, f"{part.name}/{steps}") for steps in reversed(milestones)]
    plain: list[Arm] = []
    if "supervised" in settings.variants:
        part = _cross_fit(settings, auto, f"cross_fit_{PLAIN}", learning.supervised, milestones)
        part = dataclasses.replace(part, detector=plain_detector(settings.detector), method=plain_method())
        part = dataclasses.replace(part, distributions=_division(auto))
        stages.append(Stage(part.name, (), _READS, part, cross_fit))
        plain = [Arm(PLAIN, steps, f"{part.name}/{steps}") for steps in reversed(milestones)]
    needs = tuple(stage.name for stage in stages if stage.name != TRIAL_PRETRAIN)
    decide = TeacherDecisionPart(
        auto, tuple(teachers), tuple(plain), _tau_neg(learning.selection), settings.evaluation.tiou,
        temperature=_division(auto) is not None,
    )  # fmt: skip
    return [*stages, Stage(TEACHER, needs, _READS, decide, decide_teacher)]


def _about_students(settings: Settings, auto: AutoSettings, decision: dict[str, Any]) -> list[Stage]:
    """Students of the chosen teachers of folds, and which of all stays."""
    settings = _as_plain(settings) if _labels_plainly(decision) else settings
    learning, place = settings.learning, decision["teacher"]["place"]
    teacher, stages = place.partition("/")[0], []
    labels = CrossFitLabelPart(
        "cross_fit_labels", settings.detector, _selection(learning.selection, auto, decision), learning.candidates,
        auto.folds, place,
    )  # fmt: skip
    stages.append(Stage(labels.name, (teacher, TEACHER), _READS, labels, label_for_folds))
    steps = _student_steps(settings, decision)
    part = _cross_fit(settings, auto, "cross_fit_student", learning.self_train, (steps,))
    part = dataclasses.replace(part, method=_student(auto, decision), networks=place, labels=labels.name)
    stages.append(Stage(part.name, (teacher, labels.name), _READS, part, cross_fit))
    arms = [Arm("student", steps, f"{part.name}/{steps}"), Arm("teacher", decision["teacher"]["steps"], place)]
    if decision["plain"] and not _labels_plainly(decision):
        arms.append(Arm(**decision["plain"]))
    needs = tuple(dict.fromkeys(arm.place.partition("/")[0] for arm in arms))
    decide = ModelDecisionPart(tuple(arms), auto.doubt, settings.evaluation.tiou)
    return [*stages, Stage(MODEL, needs, _READS, decide, decide_model)]


def _plain(settings: Settings, facts: DataFacts, results: Results) -> list[Stage]:
    """The plain detector, for the number of steps that cross-fitting chose for it."""
    plain = results[TEACHER]["plain"]
    if not plain:
        return []
    learning = dataclasses.replace(settings.learning, supervised=_longer(settings.learning.supervised, plain["steps"]))
    return plan_stages(dataclasses.replace(settings, variants=("supervised",), learning=learning), facts)


def _rest(settings: Settings, facts: DataFacts, results: Results) -> list[Stage]:
    """The plain detector for as many steps as the whole, which is a single network, and what was decided."""
    chosen, stages = decided(settings, facts, results), []
    for variant, detector in (("supervised_matched", settings.detector), ("semi_supervised", chosen.detector)):
        if variant in settings.variants:
            stages += plan_stages(dataclasses.replace(chosen, variants=(variant,), detector=detector), facts)
    return stages


def _cross_fit(
    settings: Settings, auto: AutoSettings, name: str, stage: StageSettings, milestones: tuple[int, ...],
    start: str = "",
) -> CrossFitPart:  # fmt: skip
    return CrossFitPart(
        name, settings.seed, settings.detector, settings.learning.teacher, _longer(stage, milestones[-1]), milestones,
        auto.folds, settings.evaluation.tiou, settings.runtime.steps_per_dispatch, start,
    )  # fmt: skip


def _division(auto: AutoSettings) -> DivisionSettings | None:
    """Which distributions a student divides that learns from non-target classes, as they are; None for any other."""
    student = auto.student.settings
    return DivisionSettings(given_action=student.given_action) if isinstance(student, DivisionSettings) else None


def _student(auto: AutoSettings, decision: dict[str, Any]) -> Choice:
    """What the student learns by, with the temperature that was fitted; of a plain teacher nothing but the labels."""
    settings: Any = auto.student.settings
    changes: dict[str, Any] = {}
    if decision["temperature"]:
        changes["temperature"] = decision["temperature"]["value"]
    if _labels_plainly(decision) and hasattr(settings, "contrast"):
        changes["contrast"] = dataclasses.replace(settings.contrast, weight=0.0)
    if _labels_plainly(decision) and hasattr(settings, "icd"):
        changes["icd"] = dataclasses.replace(settings.icd, enabled=False)
    return (
        dataclasses.replace(auto.student, settings=dataclasses.replace(settings, **changes))
        if changes
        else auto.student
    )


def _labels_plainly(decision: dict[str, Any]) -> bool:
    """Whether the detector as it was published is the one that labels, and learns from its labels."""
    return decision["teacher"]["name"] == PLAIN


def _as_plain(settings: Settings) -> Settings:
    """The settings with the detector as it was published, and nothing beside it."""
    learning = dataclasses.replace(settings.learning, teacher=plain_method())
    return dataclasses.replace(settings, detector=plain_detector(settings.detector), learning=learning)


def _longer(stage: StageSettings, steps: int) -> StageSettings:
    return dataclasses.replace(stage, steps=steps)


def _student_steps(settings: Settings, decision: dict[str, Any]) -> int:
    """As many more as the teacher got."""
    learning = settings.learning
    share = decision["teacher"]["steps"] / max(learning.supervised.steps, 1)
    return max(round(learning.self_train.steps * share), 1)


def _tau_neg(selection: Chain) -> float:
    """The confidence at most which a detection is not considered, of the configured chain."""
    found = [link.settings.tau_neg for link in selection.links if hasattr(link.settings, "tau_neg")]
    return found[0] if found else DynamicSettings().tau_neg


def _of_mean_and_deviation(link: Choice) -> Choice:
    """The rule of a threshold from the confidences themselves as published: other numbers of deviations are tuned to
    one data set."""
    if not isinstance(link.settings, DynamicSettings):
        return link
    return dataclasses.replace(link, settings=dataclasses.replace(link.settings, deviations=1.0))


def _selection(selection: Chain, auto: AutoSettings, decision: dict[str, Any]) -> Chain:
    """The chain that was decided: a threshold, ICD where it tells right from wrong, and what is not background.

    A class with one labelled instance says nothing about others of its kind, so that ICD asks for two (spec A19).
    """
    point, icd = decision["operating_point"], decision["icd"]
    links = [_of_mean_and_deviation(link) for link in selection.links if link.name != "icd"]
    if point:
        threshold = min(max(point["threshold"], 0.0), 1.0)
        links = [Choice("fixed", FixedSettings(threshold, min(_tau_neg(selection), threshold)))]
    if icd["enabled"]:
        settings = dataclasses.replace(
            selection.settings_of("icd") or IcdSettings(), eliminate_below=icd["eliminate_below"],
            promote_above=icd["promote_above"], promote_overlap=auto.promote_overlap, least_instances=2,
        )  # fmt: skip
        links.append(Choice("icd", settings))
    if decision["candidates_above"] < _tau_neg(selection):
        links.append(Choice("candidates", CandidateSettings(decision["candidates_above"])))
    return Chain(tuple(links))
