"""The calendar: which stages a run has, and in which order.

An *arm* is a row of the final table: ``supervised`` (annotated videos only, the plain detector), ``supervised_matched``
(the same for as many steps as the semi-supervised arm takes altogether), ``semi_supervised`` (the method itself).
"""

from __future__ import annotations

import dataclasses

from apl_jax.runs.labelling_stage import labelling_stage
from apl_jax.runs.ledger import Stage
from apl_jax.runs.scoring_stages import evaluation_stage, label_space_stage
from apl_jax.runs.training_stage import training_stage
from apl_jax.settings import Settings, StageSettings


def plan_stages(settings: Settings) -> list[Stage]:
    """All stages of a run in order: each arm's training, its pseudo labels, its evaluation."""
    plain = plain_settings(settings)
    learning = settings.learning
    stages: list[Stage] = []
    if "supervised" in settings.arms:
        stages += _supervised_arm("supervised", plain, learning.supervised)
    if "supervised_matched" in settings.arms:
        longer = dataclasses.replace(learning.supervised, steps=matched_steps(settings))
        stages += _supervised_arm("supervised_matched", plain, longer)
    if "semi_supervised" in settings.arms:
        stages += _semi_supervised_arm(settings)
    return stages


def plain_settings(settings: Settings) -> Settings:
    """The baseline: the detector without quality heads, contrast or discriminator."""
    network = settings.network
    if hasattr(network, "quality"):
        network = dataclasses.replace(network, quality=dataclasses.replace(network.quality, branches="none"))
    selection = settings.learning.selection
    learning = dataclasses.replace(
        settings.learning,
        contrastive=dataclasses.replace(settings.learning.contrastive, later="none"),
        selection=dataclasses.replace(
            selection, discriminator=dataclasses.replace(selection.discriminator, enabled=False)
        ),
    )
    return dataclasses.replace(settings, learning=learning, **{settings.detector: network})


def matched_steps(settings: Settings) -> int:
    """Optimiser steps that the semi-supervised arm takes altogether, pre-training included."""
    learning = settings.learning
    return learning.pretrain.steps + learning.supervised.steps + learning.rounds * learning.self_train.steps


def _supervised_arm(name: str, settings: Settings, stage: StageSettings) -> list[Stage]:
    return [
        training_stage(name, settings, "supervised", stage, None, None),
        evaluation_stage(f"{name}_evaluation", settings, name),
    ]


def _semi_supervised_arm(settings: Settings) -> list[Stage]:
    learning = settings.learning
    stages: list[Stage] = []
    start = None
    if learning.pretrain.steps > 0:
        stages.append(training_stage("pretrain", settings, learning.pretext, learning.pretrain, None, None))
        start = "pretrain"
    stages.append(training_stage("teacher", settings, "supervised", learning.supervised, start, None))
    stages += _scores(settings, "teacher")
    teacher = "teacher"
    for r in range(1, learning.rounds + 1):
        labels, student = f"pseudo_label_{r}", f"self_train_{r}"
        stages.append(labelling_stage(labels, settings, teacher))
        stages.append(training_stage(student, settings, learning.method, learning.self_train, teacher, labels))
        stages += _scores(settings, student)
        teacher = student
    return stages


def _scores(settings: Settings, trained: str) -> list[Stage]:
    stages = [evaluation_stage(f"{trained}_evaluation", settings, trained)]
    if settings.evaluation.label_space:
        stages.append(label_space_stage(f"{trained}_label_space", settings, trained))
    return stages
