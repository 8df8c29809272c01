"""How much work is left in a run, and how long it will take at the speed of what is done.

Work is counted in recordings that networks are trained on, step by step. What is not known before it is tried, the
speed of a machine and the time that programs take to compile, is in the seconds of the training stages that are done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from apl_jax.detectors.ensemble import members_of
from apl_jax.runs.cross_fit_stage import CrossFitPart
from apl_jax.runs.stages import Stage
from apl_jax.runs.training_stage import TrainingPart, batch_sizes, build_method
from apl_jax.structs import DataFacts


def steps_of(stage: Stage, labelled: int) -> int:
    """Training steps of all networks of a stage; 0 of a stage that trains none. ``labelled``: how many recordings are,
    of which no more folds can be made."""
    part = stage.handed
    if not isinstance(part, (TrainingPart, CrossFitPart)):
        return 0
    networks = members_of(part.detector)[1] or 1
    if isinstance(part, CrossFitPart):
        networks *= min(part.folds, labelled) if labelled > 1 else 0
    return part.stage.steps * networks


def work_of(stage: Stage, facts: DataFacts, labelled: int) -> int:
    """Recordings, or crops of them, that the networks of a stage see."""
    steps, part = steps_of(stage, labelled), stage.handed
    if not steps:
        return 0
    method, _ = build_method(part.method, part.detector, part.stage, facts)
    return steps * sum(batch_sizes(method, part.stage).values())


def seconds_left(stages: Iterable[Stage], results: Mapping[str, Any], facts: DataFacts, labelled: int) -> float | None:
    """Of all ``stages`` of a run those that have no result yet, at the speed of the others; None while none is done."""
    done, seconds, left = 0, 0.0, 0
    for stage in stages:
        work = work_of(stage, facts, labelled)
        if stage.name in results and work:
            done, seconds = done + work, seconds + results[stage.name]["seconds"]
        elif stage.name not in results:
            left += work
    return left * seconds / done if done and seconds else None


def in_words(seconds: float) -> str:
    """A duration that is not known better than by a tenth."""
    if seconds < 90:
        return "about a minute left" if seconds > 30 else "less than a minute left"
    minutes = math.ceil(seconds / 60)
    return f"about {minutes} min left" if minutes < 120 else f"about {round(minutes / 60)} h left"
