"""Which stages `method=auto` has, and the settings that follow from its decisions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fixtures import smoke_settings

from apl_jax.declarations import SettingsError
from apl_jax.detectors import without_decoding
from apl_jax.learning.methods import AutoSettings
from apl_jax.runs.context import EVALUATION, EVALUATION_TRUTH, UNLABELLED_TRUTH
from apl_jax.runs.decision_stage import TeacherDecisionPart, _candidate_words, _candidates_above
from apl_jax.runs.evidence import MODEL, TEACHER, decided, final_stage, known_stages
from apl_jax.runs.settings import plain_method
from apl_jax.structs import DataFacts

FACTS = DataFacts(feature_width=8, num_classes=4)
AUTO = {
    "learning.method.name": "auto",
    "learning.supervised.steps": 10,
    "learning.self_train.steps": 20,
    "learning.method.lengths": (1.0, 2.0),
}


def decision(teacher: str, steps: int, icd: bool, threshold: float = 0.4) -> dict[str, Any]:
    place = f"cross_fit_{teacher}/{steps}"
    similarity = {"enabled": True, "eliminate_below": 0.2, "promote_above": 0.8} if icd else {"enabled": False}
    return {
        "teacher": {"name": teacher, "steps": steps, "place": place},
        "plain": {"name": "plain", "steps": 20, "place": "cross_fit_plain/20"},
        "operating_point": {"threshold": threshold, "precision": 0.9, "recall": 0.5, "count": 12},
        "icd": similarity,
        "temperature": None, "candidates_above": 0.15,
    }  # fmt: skip


class OneLabelled:
    """A run's context in which nothing can be held out, and nothing else may be asked for."""

    classes, streamed = ("walk", "run"), False

    def table(self, name: str) -> Any:
        assert name == "labelled"
        return SimpleNamespace(records=("the only one",))


def test_with_one_labelled_recording_no_deciding_stage_works_or_asks(tmp_path: Path) -> None:
    """A whole run of this kind: test_auto.py, in `make exhaustive`."""
    settings, results = smoke_settings(AUTO), {TEACHER: decision("none", 20, icd=False)}
    alone: Any = OneLabelled()
    stages = {
        stage.name: stage for stage in known_stages(settings, FACTS, results) if stage.name != "cross_fit_pretrain"
    }
    found = {name: stage.work(stage.handed, alone, tmp_path) for name, stage in stages.items()}
    assert found["cross_fit_none"] == found["cross_fit_student"] == {"folds": 0, "held_out_map": {}}
    assert found["cross_fit_labels"] == {"labels": []}
    assert found[TEACHER]["teacher"]["name"] == "none" and found[TEACHER]["operating_point"] is None
    assert found[MODEL]["model"] == "student"
    for name in (TEACHER, MODEL):
        assert "one labelled recording, and none that could be held out" in found[name]["because"][0]
    assert not list(tmp_path.iterdir())


def test_stages_become_known_as_decisions_are_made() -> None:
    settings, results = smoke_settings(AUTO), {}
    first = [stage.name for stage in known_stages(settings, FACTS, results)]
    assert first == ["cross_fit_pretrain", "cross_fit_none", "cross_fit_pretrained", "cross_fit_plain", TEACHER]
    results |= {name: {} for name in first} | {TEACHER: decision("none", 20, icd=False)}
    second = [stage.name for stage in known_stages(settings, FACTS, results)]
    assert second == [*first, "cross_fit_labels", "cross_fit_student", MODEL]
    results |= {name: {} for name in second[len(first) :]} | {MODEL: {"model": "student"}}
    last = {stage.name: stage for stage in known_stages(settings, FACTS, results)}
    assert list(last)[: len(second)] == second and len(last) == len(set(last))
    assert last["supervised"].handed.stage.steps == 20  # as chosen for the plain detector
    assert last["teacher"].handed.stage.steps == 20 and last["teacher"].handed.start == ""
    assert last["self_train_1"].handed.stage.steps == 40  # twice as many, as the teacher got
    assert last["self_train_1"].handed.method.name == "apl"
    assert last["supervised_matched"].handed.stage.steps == 60
    trained = ("supervised", "supervised_matched", "teacher", "self_train_1")
    networks = {name: getattr(last[name].handed.detector.settings, "networks", 1) for name in trained}
    assert networks == {"supervised": 1, "supervised_matched": 1, "teacher": 4, "self_train_1": 4}
    assert last["pseudo_label_1"].handed.selection.names == ("fixed",)
    assert last["pseudo_label_1"].handed.selection.settings_of("fixed").threshold == 0.4


def test_no_deciding_stage_reads_what_training_must_not_see() -> None:
    results: dict[str, Any] = {TEACHER: decision("pretrained", 10, icd=True)}
    stages = known_stages(smoke_settings(AUTO), FACTS, results)
    assert stages[-1].name == MODEL
    for stage in stages:
        assert not {EVALUATION, EVALUATION_TRUTH, UNLABELLED_TRUTH} & set(stage.reads), stage.name


def test_pre_training_and_icd_stay_where_they_help() -> None:
    settings = smoke_settings(AUTO)
    found = decided(settings, FACTS, {TEACHER: decision("pretrained", 10, icd=True, threshold=0.01)}).learning
    assert found.pretrain == settings.learning.pretrain
    assert found.selection.names == ("fixed", "icd")
    assert found.selection.settings_of("fixed").tau_neg == 0.01  # never above the threshold
    icd = found.selection.settings_of("icd")
    assert (icd.eliminate_below, icd.promote_above, icd.promote_overlap, icd.least_instances) == (0.2, 0.8, 0.1, 2)
    without = decided(settings, FACTS, {TEACHER: decision("none", 20, icd=False) | {"operating_point": None}}).learning
    assert without.pretrain.steps == 0
    assert without.selection.settings_of("dynamic").deviations == 1.0  # as published
    assert without.selection.names == ("dynamic",)  # no threshold was found: the configured rule


@pytest.mark.parametrize(
    ("model", "stage"), [("plain", "supervised"), ("teacher", "teacher"), ("student", "self_train_2")]
)
def test_the_model_that_stays_is_that_of_the_decision(model: str, stage: str) -> None:
    trained = {name: {"steps": 20} for name in ("supervised", "teacher", "self_train_1", "self_train_2")}
    results = trained | {f"{name}_evaluation": {} for name in trained}
    assert final_stage(results | {MODEL: {"model": model}}) == stage
    assert final_stage(results) is None


def test_without_the_supervised_variant_the_plain_detector_is_not_tried() -> None:
    settings = smoke_settings({**AUTO, "variants": ("semi_supervised",)})
    assert "cross_fit_plain" not in [stage.name for stage in known_stages(settings, FACTS, {})]


@pytest.mark.parametrize("networks", [1, 3])
def test_pre_training_that_is_kept_is_that_of_all_networks(networks: int) -> None:
    results: dict[str, Any] = {TEACHER: decision("pretrained", 20, icd=False), MODEL: {"model": "student"}}
    settings = smoke_settings({**AUTO, "learning.method.networks": networks})
    stages = {stage.name: stage for stage in known_stages(settings, FACTS, results)}
    assert stages["cross_fit_pretrain"].handed.detector == without_decoding(settings.detector)
    assert stages["pretrain"].handed.detector == stages["teacher"].handed.detector
    assert stages["teacher"].handed.start == "pretrain"
    assert (stages["teacher"].handed.detector.name == "ensemble") == (networks > 1)


def test_an_ensemble_that_was_configured_stays_and_is_tried_as_one_network() -> None:
    settings = smoke_settings({**AUTO, "detector.name": "ensemble", "detector.networks": 2})
    results: dict[str, Any] = {TEACHER: decision("none", 20, icd=False), MODEL: {"model": "student"}}
    stages = {stage.name: stage for stage in known_stages(settings, FACTS, results)}
    for name in ("cross_fit_pretrain", "cross_fit_none", "cross_fit_plain", "cross_fit_student"):
        assert stages[name].handed.detector.name == "actionformer", name
    for name in ("supervised", "teacher", "self_train_1"):
        assert stages[name].handed.detector.settings.networks == 2, name


def test_what_may_be_an_action_is_not_taught_as_background() -> None:
    settings = smoke_settings({**AUTO, "learning.selection.dynamic.tau_neg": 0.15})
    low = decision("none", 20, icd=True) | {"candidates_above": 0.03}
    selection = decided(settings, FACTS, {TEACHER: low}).learning.selection
    assert selection.names == ("fixed", "icd", "candidates")  # last: nothing is promoted from so far below
    assert selection.settings_of("candidates").above == 0.03


def test_a_student_that_divides_classes_does_so_at_the_fitted_temperature() -> None:
    settings = smoke_settings({**AUTO, "learning.method.student.name": "apl_nontarget"})
    results: dict[str, Any] = {TEACHER: decision("none", 20, icd=False) | {"temperature": {"value": 2.5}}}
    stages = {stage.name: stage for stage in known_stages(settings, FACTS, results)}
    assert stages["cross_fit_none"].handed.distributions and stages[TEACHER].handed.temperature
    assert stages["cross_fit_plain"].handed.distributions  # which may be the one that labels
    students = stages["cross_fit_student"].handed.method, decided(settings, FACTS, results).learning.method
    assert [(one.name, one.settings.temperature) for one in students] == [("apl_nontarget", 2.5)] * 2
    other = {stage.name: stage for stage in known_stages(smoke_settings(AUTO), FACTS, {})}
    assert not other["cross_fit_none"].handed.distributions and not other[TEACHER].handed.temperature


def test_another_method_is_planned_as_ever() -> None:
    settings = smoke_settings()
    assert known_stages(settings, FACTS, {})[0].name == "supervised"
    assert decided(settings, FACTS, {}) == settings


def test_a_student_without_pseudo_labels_is_refused() -> None:
    with pytest.raises(SettingsError, match="`student`: found 'nontarget', which learns from no pseudo labels"):
        known_stages(smoke_settings({**AUTO, "learning.method.student.name": "nontarget"}), FACTS, {})


@pytest.mark.parametrize("lengths", [(), (2.0, 1.0), (1.0, 1.0)])
def test_lengths_rise(lengths: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError, match=r"`learning\.method\.lengths`: found"):
        smoke_settings({**AUTO, "learning.method.lengths": lengths})


def test_the_plain_way_comes_first_and_so_is_the_one_that_must_be_beaten() -> None:
    results: dict[str, Any] = {TEACHER: decision("pretrained", 10, icd=True)}
    stages = {stage.name: stage for stage in known_stages(smoke_settings(AUTO), FACTS, results)}
    teachers, plain = stages[TEACHER].handed.teachers, stages[TEACHER].handed.plain
    assert [(arm.name, arm.steps) for arm in teachers] == [
        ("none", 20),
        ("none", 10),
        ("pretrained", 20),
        ("pretrained", 10),
    ]
    assert [arm.steps for arm in plain] == [20, 10]
    assert [arm.name for arm in stages[MODEL].handed.arms] == ["student", "teacher", "plain"]


@pytest.mark.parametrize(
    ("surest", "above"), [([], 0.15), ([0.0] * 5, 0.05), ([0.08] * 20, 0.08), ([0.0] + [0.9] * 19, 0.15)]
)  # fmt: skip
def test_where_candidates_begin(surest: list[float], above: float) -> None:
    """Nine tenths of the held-out instances have one, within bounds; without any instance it is tau_neg."""
    part = TeacherDecisionPart(AutoSettings(), (), (), 0.15, (0.5,))
    assert _candidates_above(part, np.array(surest)) == pytest.approx(above)
    assert f"above {above:.2f}" in _candidate_words(above, np.array(surest), 0.15)


def test_a_plain_detector_that_finds_more_labels_and_learns_without_what_did_not_help() -> None:
    settings = smoke_settings(AUTO)
    chosen = decision("plain", 20, icd=False)
    found = decided(settings, FACTS, {TEACHER: chosen})
    assert found.detector.name == "ensemble" and found.detector.settings.of.settings.quality.branches == "none"
    assert found.learning.pretrain.steps == 0 and found.learning.teacher == plain_method()
    student = found.learning.method.settings
    assert student.contrast.weight == 0 and not student.icd.enabled
    assert found.learning.selection.names == ("fixed",)

    stages = {stage.name: stage.handed for stage in known_stages(settings, FACTS, {TEACHER: chosen})}
    assert stages["cross_fit_student"].networks == "cross_fit_plain/20"
    assert stages["cross_fit_student"].detector.settings.quality.branches == "none"
    assert stages["cross_fit_labels"].detector.settings.quality.branches == "none"
    # It is the teacher already: nothing is left that it could be compared with as a third.
    assert [arm.name for arm in stages[MODEL].arms] == ["student", "teacher"]
    tried = stages[TEACHER]
    assert [arm.name for arm in tried.plain] == ["plain", "plain"]

    results: dict[str, Any] = {TEACHER: chosen, MODEL: {"model": "teacher"}}
    last = {stage.name: stage.handed for stage in known_stages(settings, FACTS, results)}
    assert last["teacher"].detector.settings.of.settings.quality.branches == "none"
    assert last["self_train_1"].detector == last["teacher"].detector


def test_the_plain_detector_must_be_better_beyond_doubt_to_be_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With evidence of files: of 30 instances the first way finds 15; the plain detector finds them and more."""
    from apl_jax.data.annotations import VideoRecord
    from apl_jax.evaluation.average_precision import Instances
    from apl_jax.runs import decision_stage
    from apl_jax.runs.cross_fit_stage import write_held_out

    count = 30
    labels, segments_s = np.zeros(count, np.int32), np.stack([np.arange(count) * 2.0, np.arange(count) * 2.0 + 1], -1)
    record = VideoRecord("one", "training", 100.0, 10.0, None, segments_s, labels, np.ones(count), labels > 0)
    handed = {s.name: s.handed for s in known_stages(smoke_settings(AUTO), FACTS, {})}[TEACHER]
    inputs: Any = SimpleNamespace(
        classes=("walk", "run", "sit", "stand"), streamed=False, folder=lambda place: tmp_path / place,
        table=lambda name: SimpleNamespace(records=(record, record)),
    )  # fmt: skip
    monkeypatch.setattr(
        decision_stage, "_truth", lambda _: Instances(np.zeros(count), np.zeros(count), segments_s, np.ones(count))
    )
    monkeypatch.setattr(decision_stage, "_warnings", lambda *_: [])

    def decide(found: int) -> dict[str, Any]:
        for arm in (*handed.teachers, *handed.plain):
            some = found if arm.name == "plain" else 15
            numbers = np.arange(some)
            write_held_out(
                tmp_path / arm.place,
                Instances(0 * numbers, 0 * numbers, segments_s[:some], 1 - 0.01 * numbers),
                np.full(some, 0.5),
            )
        return decision_stage.decide_teacher(handed, inputs, tmp_path)

    sure, doubtful = decide(25), decide(16)
    assert sure["teacher"]["name"] == "plain" and sure["icd"] == {"enabled": False}
    assert "the plain detector" in sure["because"][0] and "without it" in " ".join(sure["because"])
    assert doubtful["teacher"]["name"] == "none"
