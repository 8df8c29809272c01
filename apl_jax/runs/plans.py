"""Which stages a run has, and in which order. Here, and only here, the tree of settings is divided among stages.

A *variant* is a row of the final table: ``supervised`` (annotated videos only, the plain detector),
``supervised_matched`` (the same for as many steps as the semi-supervised variant takes altogether),
``semi_supervised`` (the method itself).
"""

from __future__ import annotations

import dataclasses

from apl_jax.data.splits import Split
from apl_jax.declarations import Choice, SettingsError, Unhashed
from apl_jax.detectors import build_detector, without_decoding
from apl_jax.evaluation.external import external_digest
from apl_jax.evaluation.proposal_files import proposals_digest
from apl_jax.inference.model import GENERATOR
from apl_jax.learning.method import PSEUDO_LABELLED, Method, owners_of
from apl_jax.runs import context as reads
from apl_jax.runs.given_labels import GivenLabelsPart, labels_digest, take_labels
from apl_jax.runs.given_proposals import GivenProposalsPart, take_proposals
from apl_jax.runs.labelling_stage import LabellingPart, build_selection, label
from apl_jax.runs.proposal_stage import ProposalPart, propose
from apl_jax.runs.scoring_stages import (
    EvaluationPart,
    LabelQualityPart,
    LabelSpacePart,
    evaluate,
    measure_label_quality,
    measure_label_space,
)
from apl_jax.runs.settings import Settings, matched_steps, plain_detector, plain_method
from apl_jax.runs.stages import Stage
from apl_jax.runs.training_stage import TrainingPart, build_method, train
from apl_jax.settings import LabelSpaceSettings, StageSettings
from apl_jax.structs import DataFacts

PROPOSALS, EVALUATION_PROPOSALS = "proposals", "evaluation_proposals"


def plan_stages(settings: Settings, facts: DataFacts) -> list[Stage]:
    """All stages of a run in order: each variant's training, its pseudo labels, its evaluation.

    Raises :class:`~apl_jax.declarations.SettingsError` for choices that do not go together.
    """
    stages: list[Stage] = []
    baseline = plain_detector(settings.detector)
    if "supervised" in settings.variants:
        stages += _baseline(settings, baseline, "supervised", settings.learning.supervised)
    if "supervised_matched" in settings.variants:
        steps = total_steps(settings, facts)
        longer = dataclasses.replace(settings.learning.supervised, steps=steps)
        stages += _baseline(settings, baseline, "supervised_matched", longer)
    if "semi_supervised" in settings.variants:
        stages += _semi_supervised(settings, facts)
    elif settings.learning.labels:
        found = f"`learning.labels`: found {settings.learning.labels!r}"
        raise SettingsError(f"{found}, expected none, for `variants` has no 'semi_supervised', which learns from them")
    first = _given_proposals(settings, facts) if settings.learning.proposals else _proposals(settings, facts)
    return first + _beside_proposals(stages, first[0].name) if first else stages


def total_steps(settings: Settings, facts: DataFacts) -> int:
    """Optimiser steps that the semi-supervised variant takes altogether."""
    learning, method = settings.learning, chosen_method(settings, facts)
    labels = PSEUDO_LABELLED in method.videos
    rounds = learning.rounds if labels else 1
    return matched_steps(dataclasses.replace(learning, rounds=rounds), method.teacher or labels)


def chosen_method(settings: Settings, facts: DataFacts) -> Method:
    """The method of the self-training stage."""
    learning = settings.learning
    return build_method(learning.method, without_decoding(settings.detector), learning.self_train, facts)[0]


def check_split(settings: Settings, split: Split) -> None:
    """Refuses a semi-supervised variant without unlabelled videos."""
    if not split.unlabelled and "semi_supervised" in settings.variants:
        raise SettingsError(
            f"`data.label_ratio`: found {settings.data.label_ratio:g}, which leaves no video unlabelled; expected less "
            "than 1 for the variant 'semi_supervised'. Try: `variants=('supervised',)`."
        )


def generator_of(settings: Settings, facts: DataFacts) -> Choice | None:
    """The detector that makes proposals for one that wants them, as its setting ``generator`` says; None where there is
    none, for proposals are not wanted, or come from a file.

    Raises :class:`~apl_jax.declarations.SettingsError` where that one wants proposals itself.
    """
    if not _wants_proposals(settings, facts) or settings.learning.proposals:
        return None
    generator = plain_detector(settings.detector.settings.generator)
    if build_detector(generator, facts).facts.wants_proposals:
        found = f"`detector.generator`: found {generator.name!r}, which wants proposals itself"
        raise SettingsError(f"{found}, expected a detector that finds segments by itself")
    return generator


def _wants_proposals(settings: Settings, facts: DataFacts) -> bool:
    return build_detector(settings.detector, facts).facts.wants_proposals


def _given_proposals(settings: Settings, facts: DataFacts) -> list[Stage]:
    """The proposals of a file, for the training videos and for the evaluated ones."""
    learning = settings.learning
    if not _wants_proposals(settings, facts):
        found = f"`learning.proposals`: found {learning.proposals!r}, expected none"
        raise SettingsError(f"{found}, for the detector {settings.detector.name!r} finds segments by itself")
    digest, file = proposals_digest(learning.proposals), Unhashed(learning.proposals)
    stages = []
    for name, read in ((PROPOSALS, reads.TRAINING), (EVALUATION_PROPOSALS, reads.EVALUATION)):
        part = GivenProposalsPart(digest, file, learning.max_proposals, read)
        stages.append(Stage(name, (), (read,), part, take_proposals))
    return stages


def _proposals(settings: Settings, facts: DataFacts) -> list[Stage]:
    """The generator, trained on the labelled videos only, and its proposals for all videos."""
    generator = generator_of(settings, facts)
    if generator is None:
        return []
    part = TrainingPart(
        GENERATOR, settings.seed, without_decoding(generator), plain_method(), settings.learning.supervised,
        settings.data.max_length_t, settings.data.stream_window, settings.runtime.steps_per_dispatch,
    )  # fmt: skip
    stages = [Stage(GENERATOR, (), (reads.TRAINING, reads.LABELLED), part, train)]
    for name, read in ((PROPOSALS, reads.TRAINING), (EVALUATION_PROPOSALS, reads.EVALUATION)):
        stages.append(Stage(name, (GENERATOR,), (read,), ProposalPart(generator, GENERATOR, read), propose))
    return stages


def _beside_proposals(stages: list[Stage], first: str) -> list[Stage]:
    """The stages, each with the proposals that its videos need, and models with their generator, if the run's ``first``
    stage is the training of one."""
    found = []
    for stage in stages:
        if not hasattr(stage.handed, "proposals"):  # it runs no detector
            found.append(stage)
            continue
        name = EVALUATION_PROPOSALS if stage.work is evaluate else PROPOSALS
        handed, needs = dataclasses.replace(stage.handed, proposals=name), (*stage.needs, name)
        if first == GENERATOR and isinstance(handed, TrainingPart):
            handed, needs = dataclasses.replace(handed, proposer=GENERATOR), (*needs, GENERATOR)
        found.append(stage._replace(needs=needs, handed=handed))
    return found


def _baseline(settings: Settings, detector: Choice, name: str, stage: StageSettings) -> list[Stage]:
    trained = training_stage(settings, name, plain_method(), stage, detector=detector)
    return [trained, _evaluation(settings, detector, name)]


def _semi_supervised(settings: Settings, facts: DataFacts) -> list[Stage]:
    learning, method = settings.learning, chosen_method(settings, facts)
    stages: list[Stage] = []
    start = ""
    _check_needs_no_labels(settings, facts)
    if learning.pretrain.steps > 0:
        stages.append(training_stage(settings, "pretrain", learning.pretext, learning.pretrain))
        start = "pretrain"
    labels = PSEUDO_LABELLED in method.videos
    if method.teacher or labels:
        stages.append(training_stage(settings, "teacher", learning.teacher, learning.supervised, start))
        stages += _scores(settings, "teacher")
        start = "teacher"
    if learning.labels and not labels:
        raise SettingsError(
            f"`learning.labels`: found {learning.labels!r}, expected none, for `learning.method` "
            f"({learning.method.name}) learns from no pseudo labels"
        )
    if not labels:
        stages.append(training_stage(settings, "self_train_1", learning.method, learning.self_train, start))
        return stages + _scores(settings, "self_train_1")
    _check_owners(settings, facts)
    for r in range(1, learning.rounds + 1):
        # Labels from a file leave nothing for the selection of the next round to remember.
        before = f"pseudo_label_{r - 1}" if r > (2 if learning.labels else 1) else ""
        student, labelling = f"self_train_{r}", f"pseudo_label_{r}"
        given = learning.labels if r == 1 else ""
        stages += [
            _given_labels(given, labelling) if given else _labelling(settings, labelling, start, before),
            _label_quality(labelling),
        ]
        stages.append(training_stage(settings, student, learning.method, learning.self_train, start, labelling))
        stages += _scores(settings, student)
        start = student
    return stages


def _check_needs_no_labels(settings: Settings, facts: DataFacts) -> None:
    """Refuses a method that learns from pseudo labels in a stage that runs before there are any."""
    learning, network = settings.learning, without_decoding(settings.detector)
    before = {
        "pretext": (learning.pretext, learning.pretrain, "contrast"),
        "teacher": (learning.teacher, learning.supervised, "supervised"),
    }
    for role, (choice, stage, usual) in before.items():
        if PSEUDO_LABELLED in build_method(choice, network, stage, facts)[0].videos:
            raise SettingsError(
                f"`learning.{role}`: found {choice.name!r}, which learns from pseudo labels; expected a method without "
                f"any, for this stage runs before they are made. Try: {usual!r}, and {choice.name!r} as "
                "`learning.method`."
            )


def _check_owners(settings: Settings, facts: DataFacts) -> None:
    """Refuses a selection chain that asks for parameters which the teacher, or the student of a round, does not
    train."""
    learning, network = settings.learning, without_decoding(settings.detector)
    needed = build_selection(learning.selection, facts).owners
    trainers = {"teacher": (learning.teacher, learning.supervised)}
    trainers |= {"method": (learning.method, learning.self_train)} if learning.rounds > 1 else {}
    for role, (choice, stage) in trainers.items():
        owned = owners_of(build_method(choice, network, stage, facts)[0])
        missing = [owner for owner in needed if owner not in owned]
        if missing:
            raise SettingsError(
                f"`learning.selection.chain`: found {settings.learning.selection.names}, which asks for the parameters "
                f"{', '.join(missing)}; expected `learning.{role}` ({choice.name}) to train them. Try: a chain without "
                f"that link, or `learning.{role}.icd.enabled=True`."
            )


def training_stage(
    settings: Settings, name: str, method: Choice, stage: StageSettings, start: str = "", labels: str = "",
    detector: Choice | None = None,
) -> Stage:  # fmt: skip
    """The training stage ``name`` of a run, by a method, from what the stage ``start`` left."""
    part = TrainingPart(
        name, settings.seed, without_decoding(detector or settings.detector), method, stage,
        settings.data.max_length_t, settings.data.stream_window, settings.runtime.steps_per_dispatch, start, labels,
    )  # fmt: skip
    needs = tuple(stage for stage in (start, labels) if stage)
    return Stage(name, needs, (reads.TRAINING, reads.LABELLED), part, train)


def _labelling(settings: Settings, name: str, teacher: str, before: str) -> Stage:
    learning = settings.learning
    part = LabellingPart(
        name, settings.detector, learning.selection, learning.candidates, teacher=teacher, before=before
    )
    needs = tuple(stage for stage in (teacher, before) if stage)
    return Stage(name, needs, (reads.TRAINING, reads.LABELLED), part, label)


def _given_labels(file: str, name: str) -> Stage:
    part = GivenLabelsPart(labels_digest(file), Unhashed(file))
    return Stage(name, (), (reads.TRAINING, reads.LABELLED), part, take_labels)


def _label_quality(labels: str) -> Stage:
    needed = (reads.TRAINING, reads.UNLABELLED_TRUTH)
    return Stage(f"{labels}_quality", (labels,), needed, LabelQualityPart(labels), measure_label_quality)


def _evaluation(settings: Settings, detector: Choice, trained: str) -> Stage:
    digest, place = external_digest(settings.evaluation), Unhashed(settings.evaluation.external_scores)
    # A file of class scores that only moved is no change, and the label space has stages of its own.
    fresh = LabelSpaceSettings()
    evaluation = dataclasses.replace(settings.evaluation, label_space=fresh, external_scores="")
    part = EvaluationPart(detector, evaluation, digest, place, trained)
    return Stage(f"{trained}_evaluation", (trained,), (reads.EVALUATION, reads.EVALUATION_TRUTH), part, evaluate)


def _scores(settings: Settings, trained: str) -> list[Stage]:
    stages = [_evaluation(settings, settings.detector, trained)]
    if settings.evaluation.label_space.enabled:
        part = LabelSpacePart(without_decoding(settings.detector), settings.evaluation.label_space, trained)
        needed = (reads.TRAINING, reads.UNLABELLED_TRUTH)
        stages.append(Stage(f"{trained}_label_space", (trained,), needed, part, measure_label_space))
    return stages
