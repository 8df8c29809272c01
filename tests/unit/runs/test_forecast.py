"""How much is left of a run."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures import smoke_settings

from apl_jax.runs.evidence import MODEL, TEACHER, foreseen_stages, known_stages
from apl_jax.runs.forecast import in_words, seconds_left, steps_of, work_of
from apl_jax.runs.stages import Stage
from apl_jax.structs import DataFacts

FACTS = DataFacts(feature_width=8, num_classes=4)
LABELLED = 3
CHANGES = {
    "learning.pretrain.steps": 7, "learning.supervised.steps": 10, "learning.self_train.steps": 20,
    "learning.supervised.labelled_batch": 2, "learning.self_train.labelled_batch": 3,
    "learning.self_train.unlabelled_batch": 5, "variants": ("semi_supervised",),
}  # fmt: skip


def by_name(stages: list[Stage]) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages}


def test_work_is_steps_times_recordings_times_networks() -> None:
    stages = by_name(foreseen_stages(smoke_settings(CHANGES), FACTS, {}))
    found = {
        name: (steps_of(s, LABELLED), work_of(s, FACTS, LABELLED))
        for name, s in stages.items()
        if steps_of(s, LABELLED)
    }
    batch = stages["pretrain"].handed.stage.unlabelled_batch
    assert found == {"pretrain": (7, 7 * batch), "teacher": (10, 20), "self_train_1": (20, 160)}
    auto = {**CHANGES, "learning.method.name": "auto", "learning.method.networks": 6}
    stages = by_name(foreseen_stages(smoke_settings(auto), FACTS, {}))
    # Three labelled recordings make three folds, though four are asked for.
    assert steps_of(stages["cross_fit_none"], LABELLED) == 3 * 10 and steps_of(stages["teacher"], LABELLED) == 6 * 10
    assert work_of(stages["self_train_1"], FACTS, LABELLED) == 6 * 160


def test_what_is_left_is_told_at_the_speed_of_what_is_done() -> None:
    stages = foreseen_stages(smoke_settings(CHANGES), FACTS, {})
    assert seconds_left(stages, {}, FACTS, LABELLED) is None
    done: dict[str, Any] = {
        "pretrain": {"seconds": 1.0},
        "teacher": {"seconds": 10.0},
        "teacher_evaluation": {"seconds": 9.0},
    }
    work = {stage.name: work_of(stage, FACTS, LABELLED) for stage in stages}
    expected = work["self_train_1"] * 11.0 / (work["pretrain"] + work["teacher"])
    assert seconds_left(stages, done, FACTS, LABELLED) == pytest.approx(expected)
    assert seconds_left(stages, {stage.name: {"seconds": 1.0} for stage in stages}, FACTS, LABELLED) == 0


def test_a_run_that_decides_is_foreseen_as_the_plain_way() -> None:
    settings, results = smoke_settings({**CHANGES, "learning.method.name": "auto"}), {}
    foreseen = [stage.name for stage in foreseen_stages(settings, FACTS, results)]
    decision = {
        "teacher": {"name": "none", "steps": 10, "place": "cross_fit_none/10"}, "plain": None,
        "operating_point": None, "icd": {"enabled": False}, "temperature": None, "candidates_above": 0.15,
    }  # fmt: skip
    known = known_stages(settings, FACTS, {TEACHER: decision, MODEL: {"model": "student"}})
    assert foreseen == [stage.name for stage in known]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (9, "less than a minute"),
        (70, "about a minute"),
        (91, "about 2 min"),
        (3600, "about 60 min"),
        (9000, "about 2 h"),
    ],
)
def test_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == f"{words} left"
