"""Law 10: changing a setting changes the fingerprint of the stages that read it, with all that come after them, and of
no others.

Which stages read a setting is written down here, by path, apart from how ``runs/plans.py`` hands settings out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import proposal_detector
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, build_method, tiny_choice

from apl_jax.declarations import (
    Chain,
    Checked,
    Choice,
    SettingsError,
    flat,
    number,
    override,
    to_dict,
    within_bounds,
)
from apl_jax.detectors import build_detector, register_detector
from apl_jax.learning.method import PSEUDO_LABELLED, register_method
from apl_jax.learning.selection import register_selection
from apl_jax.registry import DETECTORS, METHODS, SELECTION, Registry
from apl_jax.runs import stages as stages_module
from apl_jax.runs.context import READABLE
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.settings import Settings
from apl_jax.runs.stages import stage_fingerprint
from apl_jax.settings import NmsSettings, PerturbSettings
from apl_jax.structs import DataFacts

FACTS = DataFacts(FEATURE_WIDTH, CLASSES, 64)
BASELINES = ("supervised", "supervised_evaluation", "supervised_matched", "supervised_matched_evaluation")

# ---- The specification: which stages read a setting. The first pattern that a path matches counts. ----

ALL = ("*",)
TRAININGS = ("generator", "supervised", "supervised_matched", "pretrain", "teacher", "self_train_?")
GENERATED = ("proposals", "evaluation_proposals")
SEMI_SUPERVISED = ("pretrain", "teacher*", "pseudo_label_?", "self_train_*")
READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("seed", TRAININGS),
    ("variants", ()),  # which stages there are, not what they do
    ("detector.decoding.*", ("pseudo_label_?", "*_evaluation")),
    ("detector.generator.decoding.*", GENERATED),
    ("detector.generator.*", ALL),
    ("detector.quality.*", SEMI_SUPERVISED),  # the baselines are the detector as published, without ALQA
    ("detector.name", ALL),  # another detector that wants proposals comes with a generator of its own
    ("detector.*", (*BASELINES, *SEMI_SUPERVISED)),
    ("data.max_length_t", TRAININGS),
    ("data.stream_window", TRAININGS),
    ("data.*", ()),  # through the digests of what is read
    ("learning.rounds", ()),  # which stages there are
    ("learning.pretext.*", ("pretrain",)),
    ("learning.teacher.*", ("teacher",)),
    ("learning.method.*", ("self_train_?",)),
    ("learning.pretrain.steps", ("pretrain", "supervised_matched")),
    ("learning.pretrain.*", ("pretrain",)),
    ("learning.supervised.*", ("generator", "supervised", "supervised_matched", "teacher")),
    ("learning.self_train.steps", ("self_train_?", "supervised_matched")),
    ("learning.self_train.*", ("self_train_?",)),
    ("learning.selection.*", ("pseudo_label_?",)),
    ("learning.candidates", ("pseudo_label_?",)),
    ("learning.labels", ("pseudo_label_1",)),
    ("learning.proposals", GENERATED),
    ("learning.max_proposals", ()),  # of a file; see tests/unit/runs/test_given_proposals.py
    ("evaluation.label_space.*", ("*_label_space",)),
    ("evaluation.external_scores", ()),  # where the file is; what it holds has a digest
    ("evaluation.*", ("*_evaluation",)),
    ("runtime.steps_per_dispatch", TRAININGS),  # the programs that are run, hence rounding
    ("runtime.*", ()),
)
# Which stages read what is in the data, by the kind of it.
DATA_READERS: dict[str, tuple[str, ...]] = {
    "training": (*TRAININGS, "proposals", "pseudo_label_?", "*_quality", "*_label_space"),
    "labelled": (*TRAININGS, "pseudo_label_?"),
    "evaluation": ("evaluation_proposals", "*_evaluation"),
    "unlabelled_truth": ("*_quality", "*_label_space"),  # for measuring only
    "evaluation_truth": ("*_evaluation",),
}
# Settings that decide which stages there are, some of them only at some values.
DECIDE_STAGES = (
    "variants", "detector.name", "learning.rounds", "learning.method.name", "learning.method.pseudo_labels",
    "learning.pretrain.steps", "learning.proposals", "evaluation.label_space.enabled",
)  # fmt: skip


def readers_of(path: str, stages: Sequence[str]) -> set[str]:
    """The stages that read a setting. Fails on a setting that the specification does not speak of."""
    for pattern, names in READERS:
        if fnmatchcase(path, pattern):
            return matching(stages, names)
    raise AssertionError(f"{path}: which stages read this setting? Add it to READERS in {__file__}")


def expected_changes(path: str, before: Sequence[str], after: Sequence[str]) -> set[str]:
    """Which stages of both runs differ, when a setting has turned the one into the other."""
    changed = with_later(before, readers_of(path, before)) | with_later(after, readers_of(path, after))
    if path != "variants" and trained(before) != trained(after):  # it trains for as many steps as these together
        changed |= {"supervised_matched", "supervised_matched_evaluation"}
    return changed & set(before) & set(after)


def trained(stages: Sequence[str]) -> set[str]:
    """The training stages of the semi-supervised variant."""
    return matching(stages, ("pretrain", "teacher", "self_train_?"))


def matching(stages: Sequence[str], names: Sequence[str]) -> set[str]:
    return {stage for stage in stages if any(fnmatchcase(stage, name) for name in names)}


def with_later(stages: Sequence[str], changed: set[str]) -> set[str]:
    """These stages and all that come after them: pre-training, teacher, labels and students are one line, each stage
    after all before it; what is measured of a network, or of labels, comes after these. Where there are proposals, all
    comes after those of its videos, and these after the training of their generator."""
    scores = matching(stages, ("*_evaluation",))
    measured = scores | matching(stages, ("*_label_space", "*_quality"))
    if "generator" in changed:
        return set(stages)
    if "proposals" in changed:
        return set(stages) - {"generator", *({"evaluation_proposals"} - changed)}
    if "evaluation_proposals" in changed:
        changed = changed | scores
    line = [stage for stage in stages if stage not in (*BASELINES, "generator", *GENERATED, *measured)]
    first = min((i for i, stage in enumerate(line) if stage in changed), default=len(line))
    changed = changed | set(line[first:])
    suffixes = ("_evaluation", "_label_space", "_quality")
    return changed | {f"{stage}{suffix}" for stage in changed for suffix in suffixes} & measured


# ---- Runs that between them have every kind of stage. ----


class Case(NamedTuple):
    settings: Settings
    stages: tuple[str, ...]


def case(detector: str, changes: dict[str, Any], *stages: str) -> Case:
    settings = dataclasses.replace(Settings(), detector=tiny_choice(detector))
    return Case(override(settings, changes), (*BASELINES, *stages))


CASES = {
    "defaults": case(
        "actionformer", {},
        "pretrain", "teacher", "teacher_evaluation",
        "pseudo_label_1", "pseudo_label_1_quality", "self_train_1", "self_train_1_evaluation",
    ),
    "spot_nontarget": case(
        "spot",
        {
            "learning.pretext.name": "foreground", "learning.method.name": "nontarget",
            "evaluation.label_space.enabled": True,
        },
        "pretrain", "teacher", "teacher_evaluation", "teacher_label_space",
        "self_train_1", "self_train_1_evaluation", "self_train_1_label_space",
    ),
    "both_papers": case(
        "conv",
        {
            "learning.pretrain.steps": 0, "learning.method.name": "apl_nontarget",
            "learning.selection.chain": ("fixed", "icd"), "evaluation.label_space.enabled": True,
        },
        "teacher", "teacher_evaluation", "teacher_label_space",
        "pseudo_label_1", "pseudo_label_1_quality",
        "self_train_1", "self_train_1_evaluation", "self_train_1_label_space",
    ),
    "stranger": case(
        "conv",
        {"learning.method.name": "steady", "learning.selection.chain": ("surest_share",), "learning.rounds": 2},
        "pretrain", "teacher", "teacher_evaluation",
        "pseudo_label_1", "pseudo_label_1_quality", "self_train_1", "self_train_1_evaluation",
        "pseudo_label_2", "pseudo_label_2_quality", "self_train_2", "self_train_2_evaluation",
    ),
}  # fmt: skip


@dataclass
class FakeContext:
    """Stands for a run's data: a digest for each kind of them, and nothing else."""

    changed: str = ""

    def digest(self, read: str) -> str:
        assert read in READABLE
        return f"{read}, changed" if read == self.changed else read


def marks(settings: Settings, context: FakeContext | None = None) -> dict[str, str]:
    """The fingerprint of every stage of a run."""
    found: dict[str, str] = {}
    for stage in plan_stages(settings, FACTS):
        found[stage.name] = stage_fingerprint(stage, context or FakeContext(), found)  # pyright: ignore
    return found


def differing(a: Mapping[str, str], b: Mapping[str, str]) -> set[str]:
    """Stages of both runs whose fingerprints differ."""
    return {name for name in a.keys() & b.keys() if a[name] != b[name]}


class Featureless:
    """Outputs of no network: of one feature, for terms that ask how many there are."""

    def represent(self, rows: jax.Array) -> jax.Array:
        return jnp.zeros((*rows.shape, 1))


@pytest.fixture(autouse=True)
def no_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan asks which parameters terms bring, never for those of a network, which take long to describe; only the
    width of its frame features, where terms stand on these."""
    for name in DETECTORS:
        entry = DETECTORS[name]
        build = lambda settings, facts, entry=entry: entry.build(settings, facts)._replace(
            init=lambda key: ({}, ()), apply=lambda params, batch, key: Featureless()
        )
        monkeypatch.setitem(DETECTORS._entries, name, entry._replace(build=build))


# ---- Every setting, and another legal value of it. ----


def walk(settings: Any, path: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Path, value and declaration of every setting, choices and chains included."""
    for f in dataclasses.fields(settings):
        name, value = f"{path}{f.name}", getattr(settings, f.name)
        if isinstance(value, Choice):
            yield f"{name}.name", value.name, {"choices": tuple(f.metadata["registry"])}
            yield from walk(value.settings, f"{name}.")
        elif isinstance(value, Chain):
            yield f"{name}.chain", value.names, {"links": tuple(f.metadata["registry"])}
            for link in value.links:
                yield from walk(link.settings, f"{name}.{link.name}.")
        elif dataclasses.is_dataclass(value):
            yield from walk(value, f"{name}.")
        else:
            yield name, value, f.metadata


def others(value: Any, declared: Mapping[str, Any]) -> Iterator[Any]:
    """Other values that a setting's declaration allows."""
    if "choices" in declared:
        yield from (choice for choice in declared["choices"] if choice != value)
    elif "links" in declared:
        yield from ([value[:-1]] if len(value) > 1 else [])
        yield from ((*value, link) for link in declared["links"] if link not in value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, str):
        yield f"{value}x"
    elif isinstance(value, tuple):
        for i, entry in enumerate(value):
            yield from ((*value[:i], other, *value[i + 1 :]) for other in others(entry, declared))
        yield (*value, declared["entries"]("1")) if "entries" in declared else (value[:-1] if value else (1,))
    else:
        numbers = [value + 1, value * 2, value / 2, value + 0.01, value - 0.01, value - 1, value + 2]
        numbers = [int(n) for n in numbers if n == int(n)] if isinstance(value, int) else numbers
        bounds = declared.get("bounds")
        yield from (n for n in numbers if n != value and (bounds is None or within_bounds(n, bounds)))


def together(path: str, value: Any, settings: Settings, file: Path) -> list[dict[str, Any]]:
    """Changes of settings that cannot be changed alone: they have to agree with others, which the same stages read."""
    if path == "detector.branch_blocks" and settings.detector.name == "actionformer":
        s = settings.detector.settings
        more = {"windows": (*s.windows, 0), "regression_ranges": (*s.regression_ranges, s.regression_ranges[-1])}
        return [{path: s.branch_blocks + 1, **{f"detector.{name}": value for name, value in more.items()}}]
    if path == "evaluation.protocol":
        return [{path: "external", "evaluation.external_scores": str(file)}]
    if path in ("learning.labels", "learning.proposals"):
        return [{path: str(file)}]
    if path in ("learning.teacher.icd.enabled", "learning.teacher.name"):
        # Selection asks for what the teacher trains. It comes after the teacher.
        values = [False] if path.endswith("enabled") else METHODS
        return [{path: other, "learning.selection.chain": ("dynamic",)} for other in values if other != value]
    return []


def changed_runs(
    path: str, value: Any, declared: Mapping[str, Any], settings: Settings, file: Path
) -> Iterator[dict[str, str]]:
    """Fingerprints of runs with another value of one setting, without those that a plan refuses; of one of a few names
    with every other one."""
    few = "choices" in declared or "links" in declared
    for change in together(path, value, settings, file) or ({path: other} for other in others(value, declared)):
        try:
            yield marks(override(settings, change))
        except SettingsError:
            continue
        if not few:
            return


def wrong_changes(settings: Settings, below: str, file: Path) -> list[str]:
    """Settings at or below a path that do not reach exactly the stages that the specification says."""
    before, wrong = marks(settings), []
    for path, value, declared in walk(settings):
        needed = {"learning.labels": "pseudo_label_1", "learning.proposals": "proposals"}.get(path)
        if not path.startswith(below) or (needed and needed not in before):
            continue  # labels for a method that learns from none, and proposals that are not wanted, are refused
        runs = list(changed_runs(path, value, declared, settings, file))
        assert runs, f"{path}: found no other legal value than {value!r}"
        for after in runs:
            assert path in DECIDE_STAGES or tuple(after) == tuple(before), path
            found, expected = differing(before, after), expected_changes(path, tuple(before), tuple(after))
            if found != expected:
                wrong.append(f"{path}: changed {sorted(found - expected)} besides, left {sorted(expected - found)}")
    return wrong


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """A file of class scores; only its bytes are looked at."""
    file = tmp_path / "scores.json"
    file.write_text("{}")
    return file


def assert_law_of_settings(settings: Settings, stages: tuple[str, ...], scores: Path) -> None:
    before = marks(settings)
    assert tuple(before) == stages and before == marks(settings)
    assert len(set(before.values())) == len(before)
    paths = [path for path, _, _ in walk(settings)]
    assert len(paths) == len(set(paths)) > 150 and set(paths) == set(flat(to_dict(settings)))
    assert not (wrong := wrong_changes(settings, "", scores)), "\n".join(wrong)


def assert_law_of_data(settings: Settings, stages: tuple[str, ...]) -> None:
    for read in READABLE:
        expected = with_later(stages, matching(stages, DATA_READERS[read]))
        assert differing(marks(settings), marks(settings, FakeContext(read))) == expected, read
        if read in ("evaluation", "evaluation_truth", "unlabelled_truth"):  # a correction of what no network is taught
            assert not matching(tuple(expected), (*TRAININGS, "pseudo_label_?"))


@pytest.mark.parametrize("name", CASES)
def test_every_setting(name: str, scores: Path) -> None:
    """Each is changed alone, and reaches exactly the stages that the specification says."""
    assert_law_of_settings(*CASES[name], scores)


@pytest.mark.parametrize("name", CASES)
def test_other_data(name: str) -> None:
    """A correction in the data does again what reads it, and what comes after that."""
    assert_law_of_data(*CASES[name])


def learns_from_labels_of_a_teacher(kind: str) -> bool:
    return PSEUDO_LABELLED in build_method(kind, tiny_choice("conv"), 64, PerturbSettings()).videos


PLACES = [("learning.method", entry) for entry in METHODS]
PLACES += [
    (path, entry)
    for path in ("learning.pretext", "learning.teacher")
    for entry in METHODS
    if not learns_from_labels_of_a_teacher(entry)
]
PLACES += [("learning.selection", entry) for entry in SELECTION]


@pytest.mark.parametrize(("path", "entry"), PLACES)
def test_every_entry_of_the_registries(path: str, entry: str, scores: Path) -> None:
    """In each of its places in a run: its own settings reach the stages of that place, whatever they are called."""
    change = {f"{path}.chain": (entry,)} if path == "learning.selection" else {f"{path}.name": entry}
    settings = override(CASES["stranger"].settings, {"learning.rounds": 1, **change})
    assert not (wrong := wrong_changes(settings, f"{path}.", scores)), "\n".join(wrong)


# ---- What is registered from outside: no list to extend. ----


@dataclass(frozen=True)
class Inner(Checked):
    depth: int = number(1, at_least=0)


@dataclass(frozen=True)
class FreshSettings(Checked):
    strength: float = number(1.0, at_least=0)
    inner: Inner = field(default_factory=Inner)
    decoding: NmsSettings = field(default_factory=NmsSettings)


@contextmanager
def registered(registry: Registry, name: str) -> Iterator[str]:
    """Takes the entry ``name`` out of the registry at the end."""
    try:
        yield name
    finally:
        registry.forget(name)


def reached(settings: Settings, path: str, value: Any) -> set[str]:
    return differing(marks(settings), marks(override(settings, {path: value})))


def test_a_fresh_method() -> None:
    with registered(METHODS, "fresh_method") as name:
        build = lambda settings, context: METHODS["apl"].build(METHODS["apl"].settings(), context)
        register_method(name, FreshSettings, build)
        settings, stages = CASES["defaults"].settings, CASES["defaults"].stages
        own = override(settings, {"learning.method.name": name})
        for setting, value in (("strength", 2.0), ("inner.depth", 3), ("decoding.sigma", 0.7)):
            found = reached(own, f"learning.method.{setting}", value)
            assert found == with_later(stages, {"self_train_1"}), setting


def test_a_fresh_link() -> None:
    with registered(SELECTION, "fresh_link") as name:
        build = lambda settings, facts: SELECTION["fixed"].build(SELECTION["fixed"].settings(), facts)
        register_selection(name, FreshSettings, build)
        settings, stages = CASES["defaults"].settings, CASES["defaults"].stages
        own = override(settings, {"learning.selection.chain": (name, "icd")})
        for setting, value in (("strength", 2.0), ("inner.depth", 3), ("decoding.sigma", 0.7)):
            found = reached(own, f"learning.selection.{name}.{setting}", value)
            assert found == with_later(stages, {"pseudo_label_1"}), setting
        # The order of links counts, too.
        turned = override(own, {"learning.selection.chain": ("icd", name)})
        assert differing(marks(own), marks(turned)) == with_later(stages, {"pseudo_label_1"})


def test_a_fresh_detector() -> None:
    with registered(DETECTORS, "fresh_detector") as name:
        build = lambda settings, facts: build_detector(tiny_choice("conv"), facts)
        register_detector(name, FreshSettings, build)
        settings, stages = CASES["defaults"].settings, CASES["defaults"].stages
        own = override(settings, {"detector.name": name})
        for setting, value in (("strength", 2.0), ("inner.depth", 3)):
            assert reached(own, f"detector.{setting}", value) == set(stages), setting
        decodes = with_later(stages, matching(stages, ("pseudo_label_?", "*_evaluation")))
        assert reached(own, "detector.decoding.sigma", 0.7) == decodes


def test_a_detector_that_wants_proposals(scores: Path) -> None:
    """Its generator is a stage of its own, before all others."""
    with registered(DETECTORS, "naming"):
        proposal_detector.register()
        naming = proposal_detector.NamingSettings(generator=tiny_choice("conv"))
        settings = dataclasses.replace(CASES["defaults"].settings, detector=Choice("naming", naming))
        stages = ("generator", *GENERATED, *CASES["defaults"].stages)
        assert_law_of_settings(settings, stages, scores)
        assert_law_of_data(settings, stages)
        assert_handed(settings)


# ---- What is no setting. ----

# Which stages a field of what a stage is handed may name.
HANDED = {
    "start": ("pretrain", "teacher", "self_train_?"),
    "labels": ("pseudo_label_?",),
    "teacher": ("teacher", "self_train_?"),
    "before": ("pseudo_label_?",),
    "trained": TRAININGS,
    "proposals": GENERATED,
    "proposer": ("generator",),
}


def assert_handed(settings: Settings) -> None:
    """Stages are handed the names of the earlier stages that they need, each in its place."""
    done: list[str] = []
    for stage in plan_stages(settings, FACTS):
        assert set(stage.needs) <= set(done) and set(stage.reads) <= set(READABLE), stage.name
        named = {name: getattr(stage.handed, name) for name in HANDED if getattr(stage.handed, name, "")}
        assert sorted(named.values()) == sorted(stage.needs), stage.name
        for name, earlier in named.items():
            assert matching((earlier,), HANDED[name]), f"{stage.name}: {name} is {earlier}"
        done.append(stage.name)


@pytest.mark.parametrize("name", CASES)
def test_stages_are_handed_the_stages_that_they_need(name: str) -> None:
    """A fingerprint holds those of the stages in ``needs``: what a stage may look up is among them."""
    assert_handed(CASES[name].settings)


def test_class_scores_by_content(scores: Path) -> None:
    """A file of class scores that moved is no change, other scores are one, of what is scored."""
    use = lambda file: override(
        CASES["defaults"].settings, {"evaluation.protocol": "external", "evaluation.external_scores": str(file)}
    )
    before = marks(use(scores))
    moved = scores.with_name("moved.json")
    moved.write_bytes(scores.read_bytes())
    assert marks(use(moved)) == before
    moved.write_text('{"class": []}')
    assert differing(marks(use(moved)), before) == matching(tuple(before), ("*_evaluation",))


def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = marks(CASES["stranger"].settings)
    monkeypatch.setattr(stages_module, "__version__", "0.0.0")
    assert differing(before, marks(CASES["stranger"].settings)) == set(before)


def test_a_setting_that_the_specification_forgot() -> None:
    with pytest.raises(AssertionError, match="which stages read this setting"):
        readers_of("learning.unheard_of", BASELINES)
