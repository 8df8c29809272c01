"""Settings: to JSON and back, refusals that say where and what, hashes that change exactly when a setting does."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fixtures  # noqa: F401  # registers the plug-in's entries
import pytest

from apl_jax.declarations import (
    Chain,
    Checked,
    Choice,
    SettingsError,
    Unhashed,
    bounds_in_words,
    differences,
    fingerprint,
    flat,
    from_dict,
    number,
    numbers,
    one_of,
    override,
    to_dict,
)
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.spot_settings import SpotSettings
from apl_jax.learning.icd import IcdSettings
from apl_jax.learning.methods import AplSettings, NonTargetSettings, SupervisedSettings
from apl_jax.learning.selection import DynamicSettings, FixedSettings
from apl_jax.registry import DETECTORS, METHODS, SELECTION
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.settings import (
    LearningSettings,
    Settings,
    choose,
    choose_selection,
    configurations,
    default_config,
    default_settings,
    plain_detector,
    read_config,
    to_config,
    to_settings,
)
from apl_jax.settings import DataSettings, RuntimeSettings
from apl_jax.structs import DataFacts

CHANGED = dataclasses.replace(
    Settings(),
    seed=7,
    variants=("supervised",),
    data=DataSettings(label_ratio=1.0, validation_subjects=(3, 4), streams=("rgb", "flow")),
    detector=Choice(
        "actionformer",
        ActionFormerSettings(windows=(5, 0), branch_blocks=1, regression_ranges=((0.0, 4.5), (4.0, 10000.0))),
    ),
)
OTHERS = dataclasses.replace(
    Settings(),
    detector=Choice("spot", SpotSettings(steps=64)),
    learning=LearningSettings(
        method=Choice("nontarget", NonTargetSettings(closeness=0.5)),
        selection=Chain((Choice("fixed", FixedSettings(threshold=0.4)), Choice("icd", IcdSettings(promote=False)))),
    ),
)


def every_entry() -> list[Settings]:
    """The defaults, with each detector, method and selection rule that is registered."""
    found = [override(Settings(), {"detector.name": name}) for name in DETECTORS]
    found += [override(Settings(), {"learning.method.name": name}) for name in METHODS]
    return found + [override(Settings(), {"learning.selection.chain": (name,)}) for name in SELECTION]


@pytest.mark.parametrize("settings", [Settings(), CHANGED, OTHERS, *every_entry()])
def test_there_and_back(settings: Settings) -> None:
    plain = json.loads(json.dumps(to_dict(settings)))
    assert from_dict(Settings, plain) == settings
    assert hash(from_dict(Settings, plain)) == hash(settings)
    assert to_settings(to_config(settings)) == settings
    assert override(Settings(), flat(plain)) == settings


def test_what_choices_and_chains_are_written_as() -> None:
    plain = to_dict(OTHERS)
    assert plain["detector"]["name"] == "spot" and plain["detector"]["steps"] == 64
    selection = plain["learning"]["selection"]
    assert selection["chain"] == ["fixed", "icd"] and set(selection) == {"chain", "fixed", "icd"}
    assert selection["fixed"]["threshold"] == 0.4 and selection["icd"]["promote"] is False
    assert to_dict({1: (1, 2), "path": Unhashed("a")}) == {"1": [1, 2], "path": None}


def test_what_is_not_said_is_the_default() -> None:
    found = from_dict(Settings, {"learning": {"rounds": 3, "method": {"contrast": {"weight": 1}}}})
    assert found.learning.rounds == 3
    weight = found.learning.method.settings.contrast.weight
    assert weight == 1.0 and isinstance(weight, float)
    assert dataclasses.replace(found, learning=Settings().learning) == Settings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, r"`sed`: no such setting; there are seed, variants, .* Did you mean 'seed'\?"),
        ({"seed": "1"}, r"`seed`: found '1', expected a whole number"),
        ({"seed": 1.5}, r"`seed`: found 1\.5, expected a whole number"),
        ({"seed": True}, r"`seed`: found True, expected a whole number"),
        ({"seed": None}, r"`seed`: found None, expected a whole number"),
        ({"data": {"name": 3}}, r"`data\.name`: found 3, expected text"),
        ({"data": {"label_ratio": "10%"}}, r"`data\.label_ratio`: found '10%', expected a number"),
        ({"data": {"label_ratio": True}}, r"`data\.label_ratio`: found True, expected a number"),
        ({"data": {"label_ratios": 1}}, r"`data\.label_ratios`: no such setting; .* Did you mean 'label_ratio'\?"),
        ({"data": 3}, r"`data`: found 3, expected settings by name, such as \w+, \w+, \w+"),
        ({"detector": {"layer_scale": 1}}, r"`detector\.layer_scale`: found 1, expected True or False"),
        ({"detector": {"windows": 19}}, r"`detector\.windows`: found 19, expected a list like \[19, 19"),
        (
            {"detector": "spot"},
            r"`detector`: found 'spot', expected `detector\.name` and the settings of that detector",
        ),
        ({"detector": {"name": "spott"}}, r"`detector\.name`: found 'spott', no such detector; .* mean 'spot'\?"),
        (
            {"detector": {"name": "spot", "stem_blocks": 1}},
            r"`detector\.stem_blocks`: no such setting; there are steps",
        ),
        (
            {"detector": {"quality": {"branches": "x"}}},
            r"`detector\.quality\.branches`: found 'x', expected one of tiou",
        ),
        ({"variants": "supervised"}, r"`variants`: found 'supervised', expected a list like"),
        ({"variants": ["supervized"]}, r"`variants`: found \('supervized',\), expected some of supervised, "),
        ({"variants": []}, r"`variants`: found \(\), expected some of supervised, "),
        (
            {"learning": {"method": {"name": "alp"}}},
            r"`learning\.method\.name`: found 'alp', no such method; .*'apl'\?",
        ),
        ({"learning": {"selection": {"dynamic": {"tau": 1}}}}, r"`learning\.selection\.dynamic\.tau`: no such setting"),
        (
            {"learning": {"selection": ["icd"]}},
            r"`learning\.selection`: found \['icd'\], expected `learning\.selection\.",
        ),
        (
            {"learning": {"selection": {"fixed": {}}}},
            r"`learning\.selection\.fixed`: no link of the chain \('dynamic', ",
        ),
        (
            {"learning": {"selection": {"chain": ["icd", "icd"]}}},
            r"selection\.chain`: found .*, expected each link once",
        ),
        ({"learning": {"selection": {"chain": ["dynmic"]}}}, r"selection\.chain`: found 'dynmic', .* mean 'dynamic'\?"),
        ({"learning": {"selection": {"chain": [3]}}}, r"selection\.chain\[0\]`: found 3, expected text"),
    ],
)
def test_refusals_name_the_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        from_dict(Settings, values)
    with pytest.raises(SettingsError, match=message):
        override(Settings(), values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": ["supervised", 3]}, r"`variants\[1\]`: found 3, expected text"),
        ({"evaluation": {"tiou": [0.5, "all"]}}, r"`evaluation\.tiou\[1\]`: found 'all', expected a number"),
        ({"data": {"streams": ["rgb", 1]}}, r"`data\.streams\[1\]`: found 1, expected text"),
        ({"data": {"validation_subjects": [2.5]}}, r"`data\.validation_subjects\[0\]`: found 2\.5, expected a whole"),
        (
            {"detector": {"regression_ranges": [[0, 4], 8]}},
            r"`detector\.regression_ranges\[1\]`: found 8, expected a list",
        ),
    ],
)
def test_entries_of_lists_have_types_too(change: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        from_dict(Settings, change)


# Bounds and words


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"label_ratio": 0.0}}, "`data.label_ratio`: found 0.0, expected more than 0 and at most 1"),
        ({"data": {"label_ratio": float("nan")}}, "`data.label_ratio`: found nan, expected more than 0 and at most 1"),
        ({"data": {"std_floor": float("nan")}}, "`data.std_floor`: found nan, expected at least 0"),
        ({"seed": -1}, "`seed`: found -1, expected at least 0 and at most 2"),
        ({"detector": {"dropout": 1.0}}, "`detector.dropout`: found 1.0, expected at least 0 and less than 1"),
        ({"detector": {"windows": [3, -1]}}, r"`detector.windows`: found \(3, -1\), expected at least 0"),
        ({"detector": {"regression_ranges": [[0, 4], [-4, 8]]}}, "`detector.regression_ranges`: found .*at least 0"),
        ({"detector": {"decoding": {"sigma": 0}}}, "`detector.decoding.sigma`: found 0.0, expected more than 0"),
        ({"learning": {"rounds": 0}}, "`learning.rounds`: found 0, expected at least 1"),
        ({"learning": {"self_train": {"perturb": {"noise": -1}}}}, "`learning.self_train.perturb.noise`: found -1.0"),
        ({"learning": {"method": {"icd": {"pairs": 0}}}}, "`learning.method.icd.pairs`: found 0, expected at least 1"),
        (
            {"learning": {"selection": {"icd": {"promote_above": 2}}}},
            "`learning.selection.icd.promote_above`: found 2.0",
        ),
        (
            {"learning": {"candidates": "drop"}},
            "`learning.candidates`: found 'drop', expected one of ignore, background",
        ),
        (
            {"evaluation": {"tiou": [0.5, 0.0]}},
            r"`evaluation.tiou`: found \(0.5, 0.0\), expected more than 0 and at most 1",
        ),
        ({"runtime": {"feed": "devices"}}, "`runtime.feed`: found 'devices', expected one of auto, device, stream"),
    ],
)
def test_bounds_and_words_are_refused_with_what_is_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        from_dict(Settings, values)


def test_values_outside_are_refused_wherever_they_come_from() -> None:
    with pytest.raises(SettingsError, match=r"`neck`: found 'fnp', expected one of identity, fpn"):
        ActionFormerSettings(neck="fnp")
    with pytest.raises(SettingsError, match="`label_ratio`: found 2"):
        dataclasses.replace(DataSettings(), label_ratio=2.0)


def test_bounds_in_words() -> None:
    @dataclass(frozen=True)
    class Mine(Checked):
        free: float = number(1.0)
        between: float = number(1.0, above=0, below=2)
        several: tuple[float, ...] = numbers((1.0, 2.0), at_least=1, at_most=2)
        word: str = one_of("a", "b")

    assert Mine(free=-1e9, between=1.9, several=((1.0,), ((2.0,),)), word="b")  # pyright: ignore
    for change, words in (
        ({"free": float("nan")}, "`free`: found nan, expected a number"),
        ({"between": 0}, "`between`: found 0, expected more than 0 and less than 2"),
        ({"between": 2}, "less than 2"),
        ({"several": ((1.0,), ((2.5,),))}, "`several`: .* expected at least 1 and at most 2"),
        ({"word": ""}, "`word`: found '', expected one of a, b"),
    ):
        with pytest.raises(SettingsError, match=words):
            Mine(**change)
    assert bounds_in_words((0.25, float("inf"), float("-inf"), 3)) == "at least 0.25 and less than 3"


def every_default(settings: Any) -> list[Any]:
    """All settings objects within settings."""
    if isinstance(settings, Chain):
        return [inner for link in settings.links for inner in every_default(link)]
    if isinstance(settings, Choice):
        return every_default(settings.settings)
    if not dataclasses.is_dataclass(settings):
        return []
    return [settings] + [
        inner for f in dataclasses.fields(settings) for inner in every_default(getattr(settings, f.name))
    ]


def test_every_number_has_bounds_and_every_settings_class_is_checked() -> None:
    """A setting without bounds would take any nonsense; a class that is not checked would keep none."""
    found = {type(part) for settings in every_entry() for part in every_default(settings)}
    assert len(found) > 25
    for kind in found:
        assert issubclass(kind, Checked), kind
        for f in dataclasses.fields(kind):
            value = getattr(kind(), f.name)
            if type(value) in (int, float):
                assert "bounds" in f.metadata, f"{kind.__name__}.{f.name}"


# Overriding


def test_a_path_changes_one_setting() -> None:
    found = override(
        Settings(), {"learning.self_train.optimizer.learning_rate": 1, "detector.windows": [3, 5], "seed": 4}
    )
    assert found.learning.self_train.optimizer.learning_rate == 1.0
    assert found.detector.settings.windows == (3, 5) and found.seed == 4
    assert differences(Settings(), found) == {
        "learning.self_train.optimizer.learning_rate": 1.0, "detector.windows": [3, 5], "seed": 4,
    }  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
def test_a_new_choice_comes_before_its_settings_whatever_the_order(reverse: bool) -> None:
    changes = {
        "detector.steps": 32, "learning.selection.fixed.threshold": 0.4, "learning.method.positive_weight": 0.5,
        "detector.name": "spot", "learning.selection.chain": ["fixed"], "learning.method.name": "nontarget",
    }  # fmt: skip
    found = override(Settings(), dict(sorted(changes.items(), reverse=reverse)))
    assert found.detector == Choice("spot", SpotSettings(steps=32))
    assert found.learning.selection == Chain((Choice("fixed", FixedSettings(threshold=0.4)),))
    assert found.learning.method.settings.positive_weight == 0.5


def test_a_new_choice_brings_its_defaults_and_the_same_one_keeps_its_settings() -> None:
    changed = override(Settings(), {"detector.width": 64})
    assert override(changed, {"detector.name": "actionformer"}) == changed
    there_and_back = override(override(changed, {"detector.name": "spot"}), {"detector.name": "actionformer"})
    assert there_and_back == Settings()


def test_links_that_stay_in_a_chain_keep_their_settings() -> None:
    changed = override(Settings(), {"learning.selection.dynamic.tau_min": 0.1})
    found = override(changed, {"learning.selection.chain": ("fixed", "dynamic")}).learning.selection
    assert found.names == ("fixed", "dynamic")
    assert found.settings_of("dynamic").tau_min == 0.1 and found.settings_of("fixed") == FixedSettings()
    assert found.settings_of("icd") is None


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("seed", "7", 7),
        ("data.label_ratio", "0.25", 0.25),
        ("data.label_ratio", "1", 1.0),
        ("data.label_ratio", "5e-1", 0.5),
        ("data.name", "7", "7"),  # text stays text
        ("data.root", "", ""),
        ("data.root", "None", "None"),
        ("data.strict_annotations", "False", False),
        ("data.strict_annotations", "false", False),
        ("data.allow_uncovered", "true", True),
        ("data.validation_subjects", "(3, 4)", (3, 4)),
        ("data.validation_subjects", "[3]", (3,)),
        ("data.validation_subjects", "3,", (3,)),
        ("data.streams", "('rgb', 'flow')", ("rgb", "flow")),
        ("data.streams", "'rgb','flow'", ("rgb", "flow")),
        ("variants", "['supervised']", ("supervised",)),
        ("detector.regression_ranges", "((0, 4), (4, 8))", ((0.0, 4.0), (4.0, 8.0))),
        ("detector.name", "spot", "spot"),
        ("learning.selection.chain", "('fixed',)", ("fixed",)),
        ("evaluation.tiou", "0.5, 0.75", (0.5, 0.75)),
    ],
)
def test_text_is_read_as_the_setting_is(path: str, text: str, expected: Any) -> None:
    found = to_dict(override(Settings(), {path: text}, text=True))
    assert flat(found)[path] == to_dict(expected)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("seed", "seven", "`seed`: found 'seven', expected a whole number"),
        ("seed", "7.0", "`seed`: found 7.0, expected a whole number"),
        ("data.label_ratio", "10%", "`data.label_ratio`: found '10%', expected a number"),
        ("data.label_ratio", "nan", "`data.label_ratio`: found 'nan', expected a number"),
        ("data.strict_annotations", "no", "`data.strict_annotations`: found 'no', expected True or False"),
        ("data.strict_annotations", "0", "`data.strict_annotations`: found 0, expected True or False"),
        ("detector.windows", "9", r"`detector.windows`: found 9, expected a list like \[19"),
        ("detector.windows", "[" * 400, "`detector.windows`: found"),
        ("detector", "spot", "`detector`: found 'spot', expected `detector.name` and"),
        ("data", "x", "`data`: found 'x', expected settings by name"),
        ("data.label_ratio.x", "1", "`data.label_ratio`: found {'x': '1'}, expected a number"),
        ("seed", "__import__('os')", "`seed`: found .*, expected a whole number"),
        ("", "1", "``: no such setting"),
        ("detector.", "1", "`detector.`: no such setting"),
    ],
)
def test_text_that_is_no_value(path: str, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        override(Settings(), {path: text}, text=True)


# Hashes


def leaves(settings: Any) -> list[str]:
    """Paths of all settings that are not themselves groups."""
    return list(flat(to_dict(settings)))


def changed(settings: Settings, path: str) -> Settings:
    """``settings`` with another value at ``path``."""
    holder: Any = settings
    *parents, name = path.split(".")
    for parent in parents:
        if isinstance(holder, Chain):
            holder = holder.settings_of(parent)
        else:
            holder = getattr(holder.settings if isinstance(holder, Choice) else holder, parent)
    if isinstance(holder, Choice) and name == "name":
        registry = DETECTORS if holder.name in DETECTORS else METHODS
        return override(settings, {path: next(other for other in registry if other != holder.name)})
    if isinstance(holder, Chain) and name == "chain":
        return override(settings, {path: holder.names[::-1]})
    if path == "variants":
        return override(settings, {path: ("supervised",)})
    holder = holder.settings if isinstance(holder, Choice) else holder
    value = getattr(holder, name)
    (declared,) = (f for f in dataclasses.fields(holder) if f.name == name)
    words = declared.metadata.get("choices", ("", f"{value}x"))
    candidates: list[Any] = {
        bool: lambda: [not value],
        str: lambda: [w for w in words if w != value],
        tuple: lambda: [(*value, value[-1]) if value else ("x" if declared.metadata.get("entries") is str else 1,)],
    }.get(type(value), lambda: [value + 1, value - 1, value + 0.01, value / 2])()
    for candidate in candidates:
        try:
            return override(settings, {path: candidate})
        except SettingsError:
            continue
    raise AssertionError(f"{path}: no other value than {value!r} was taken")


@pytest.mark.parametrize("settings", [Settings(), OTHERS], ids=["default", "others"])
def test_every_setting_changes_the_fingerprint(settings: Settings) -> None:
    paths = leaves(settings)
    assert len(paths) > 150
    others = {path: changed(settings, path) for path in paths}
    assert len({fingerprint(settings), *map(fingerprint, others.values())}) == len(paths) + 1
    before = flat(to_dict(settings))
    for path, other in others.items():
        assert from_dict(Settings, to_dict(other)) == other
        assert flat(to_dict(other))[path] != before[path]
    for path in paths[::40]:
        assert path in differences(settings, others[path])


def test_fingerprints_are_stable() -> None:
    """Of the value, not of the object, its type, or the order of a dict."""
    assert fingerprint(Settings(), "a", 1) == fingerprint(Settings(), "a", 1)
    assert fingerprint(Settings()) == fingerprint(to_dict(Settings()))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint("a", "b") != fingerprint("ab") != fingerprint("b", "a")
    assert fingerprint(Unhashed("here")) == fingerprint(Unhashed("there"))
    # Changing the hash would make every finished stage of every run begin again.
    assert fingerprint("apl", [1, 2.5, None]) == "b069366404fe4bb8"


# The tree of a run


def test_differences_from_the_defaults_of_what_was_chosen() -> None:
    """Those of another detector, method or chain are not listed setting by setting."""
    found = differences(default_settings(OTHERS), OTHERS)
    assert found == {
        "detector.steps": 64, "learning.method.closeness": 0.5, "learning.selection.fixed.threshold": 0.4,
        "learning.selection.icd.promote": False,
    }  # fmt: skip


def test_the_baseline_is_the_published_detector() -> None:
    plain = plain_detector(Settings().detector)
    assert plain.settings.quality.branches == "none"
    assert differences(Settings().detector, plain) == {"quality.branches": "none"}
    spot = Choice("spot", SpotSettings())
    assert plain_detector(spot).name == "spot"


def test_default_config_has_what_it_is_asked_for() -> None:
    config = default_config(detector="spot", method="nontarget", pretext="foreground", selection=("fixed",))
    settings = to_settings(config)
    assert settings.detector == Choice("spot", SpotSettings())
    assert settings.learning.method == Choice("nontarget", NonTargetSettings())
    assert settings.learning.pretext.name == "foreground" and settings.learning.selection.names == ("fixed",)
    assert settings.learning.teacher == Choice("supervised", SupervisedSettings())
    assert to_settings(default_config()) == Settings()
    assert isinstance(Settings().learning.method.settings, AplSettings)
    for wrong in ({"detector": "x"}, {"method": "x"}, {"selection": ("x",)}):
        with pytest.raises(SettingsError, match="no such"):
            default_config(**wrong)


def test_a_config_is_changed_by_attributes_which_keep_their_types() -> None:
    config = default_config()
    config.learning.self_train.steps = 3
    config.detector.windows = (3, 5)
    assert to_settings(config).learning.self_train.steps == 3 and to_settings(config).detector.settings.windows == (
        3,
        5,
    )
    with pytest.raises(TypeError):
        config.learning.self_train.steps = "many"
    config.learning.self_train.stepps = 3
    with pytest.raises(SettingsError, match=r"`learning\.self_train\.stepps`: no such setting; .* mean 'steps'"):
        to_settings(config)


def test_choosing_in_a_config() -> None:
    config = default_config()
    choose(config, "learning.method", "nontarget").positive_weight = 0.5
    choose(config, "detector", "spot").steps = 32
    config.learning.selection.dynamic.tau_min = 0.1
    choose_selection(config, "dynamic", "fixed").fixed.threshold = 0.4
    settings = to_settings(config)
    assert settings.learning.method.settings.positive_weight == 0.5 and settings.detector.settings.steps == 32
    assert settings.learning.selection == Chain(
        (Choice("dynamic", DynamicSettings(tau_min=0.1)), Choice("fixed", FixedSettings(threshold=0.4)))
    )
    with pytest.raises(SettingsError, match=r"`learning\.method\.name`: found 'x', no such method"):
        choose(config, "learning.method", "x")
    with pytest.raises(SettingsError, match="found 'x', no such selection rule"):
        choose_selection(config, "x")


def test_configurations_by_name_and_by_file(tmp_path: Path) -> None:
    assert {"spsw", "hapt", "thumos14"} <= set(configurations())
    assert read_config("spsw:smoke").learning.pretrain.steps == 40
    assert read_config("spsw") == read_config("spsw:apl")
    path = tmp_path / "my config.py"
    path.write_text(
        "from apl_jax import default_config\n"
        "def get_config(variant='a'):\n"
        "    config = default_config()\n"
        "    config.seed = {'a': 1, 'b': 2}[variant]\n"
        "    return config\n"
    )
    assert read_config(str(path)).seed == 1 and read_config(f"{path}:b").seed == 2
    assert to_settings(to_dict(read_config(str(path)))).seed == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "nothing",
            None,
            r"`config`: found no file 'nothing', expected a path, or one of activitynet, .*with :variant",
        ),
        ("x.py", "", r"`config`: found '.*x\.py' without a function get_config"),
        ("x.py:b", "def get_config(v):\n    return {'a': 1}[v]", r"`config`: '.*x\.py' failed with KeyError: 'b'"),
        ("x.py:b", "def get_config():\n    pass", r"`config`: '.*x\.py' failed with TypeError"),
        ("x.py", "def get_config(:", r"`config(uration)?`: could not (read|import) '.*x\.py' \("),
    ],
)
def test_configurations_that_cannot_be_read(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "x.py").write_text(text)
        name = str(tmp_path / name)
    with pytest.raises(SettingsError, match=message):
        read_config(name)


def test_a_choice_may_hold_any_frozen_settings() -> None:
    @dataclass(frozen=True)
    class Inner(Checked):
        size: int = number(3, at_least=1)

    @dataclass(frozen=True)
    class Outer(Checked):
        inner: Inner = field(default_factory=Inner)

    found = override(Outer(), {"inner.size": "5"}, text=True)
    assert found == Outer(Inner(5)) and to_dict(found) == {"inner": {"size": 5}}
    with pytest.raises(SettingsError, match=r"`inner.size`: found 0, expected at least 1"):
        from_dict(Outer, {"inner": {"size": 0}})
    with pytest.raises(SettingsError, match=r"`mine.inner.size`: found 0, expected at least 1"):
        from_dict(Outer, {"inner": {"size": 0}}, "mine")


def test_machine_settings_are_no_results() -> None:
    """No stage is handed them but the steps of a dispatch, which are part of a training stage's program."""
    calm = override(
        Settings(),
        {"runtime.progress": False, "runtime.feed": "stream", "runtime.log_every": 7, "runtime.read_threads": 9},
    )
    assert calm.runtime == RuntimeSettings(progress=False, feed="stream", log_every=7, read_threads=9)
    facts = DataFacts(8, 3, 64)
    handed = [[fingerprint(stage.handed) for stage in plan_stages(s, facts)] for s in (Settings(), calm)]
    assert handed[0] == handed[1]
