"""Settings: to JSON and back, refusals that say where and what, hashes that change exactly when a setting does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from apl_jax.declarations import fingerprint, from_dict, to_dict
from apl_jax.settings import ActionFormerSettings, DataSettings, Settings

CHANGED = dataclasses.replace(
    Settings(),
    seed=7,
    arms=("supervised",),
    data=DataSettings(label_ratio=1.0, validation_subjects=(3, 4)),
    actionformer=ActionFormerSettings(windows=(5, 0), branch_blocks=1, regression_ranges=((0, 4.5), (4, 10000))),
)


@pytest.mark.parametrize("settings", [Settings(), CHANGED], ids=["default", "changed"])
def test_there_and_back(settings: Settings) -> None:
    plain = json.loads(json.dumps(to_dict(settings)))
    assert from_dict(Settings, plain) == settings
    assert hash(from_dict(Settings, plain)) == hash(settings)


def test_what_is_not_said_is_the_default() -> None:
    found = from_dict(Settings, {"learning": {"rounds": 3, "contrastive": {"weight": 1}}})
    assert found.learning.rounds == 3
    assert found.learning.contrastive.weight == 1.0 and isinstance(found.learning.contrastive.weight, float)
    learning = dataclasses.replace(found.learning, rounds=1, contrastive=Settings().learning.contrastive)
    assert dataclasses.replace(found, learning=learning) == Settings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, r"config\.sed: no such setting; config has seed, "),
        ({"learning": {"selection": {"tau": 0.1}}}, r"config\.learning\.selection\.tau: no such setting"),
        ({"seed": "1"}, r"config\.seed: found '1' \(str\), expected int"),
        ({"seed": 1.5}, r"config\.seed: found 1\.5 \(float\), expected int"),
        ({"data": {"label_ratio": "10%"}}, r"config\.data\.label_ratio: found '10%' \(str\), expected float"),
        ({"data": {"label_ratio": True}}, r"config\.data\.label_ratio: found True \(bool\), expected float"),
        ({"actionformer": {"layer_scale": 1}}, r"config\.actionformer\.layer_scale: found 1 \(int\), expected bool"),
        ({"actionformer": {"windows": 19}}, r"config\.actionformer\.windows: found 19, expected a list like"),
        ({"arms": "supervised"}, r"config\.arms: found 'supervised', expected a list like"),
    ],
)
def test_refusals_name_the_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Settings, values)


def leaves(settings: Any, where: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all settings that are not themselves groups."""
    paths = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        nested = dataclasses.is_dataclass(value)
        paths += leaves(value, (*where, field.name)) if nested else [(*where, field.name)]
    return paths


def changed(settings: Any, path: tuple[str, ...]) -> Any:
    """``settings`` with another value at ``path``."""
    name, *rest = path
    value = getattr(settings, name)
    if rest:
        return dataclasses.replace(settings, **{name: changed(value, tuple(rest))})
    (field,) = (f for f in dataclasses.fields(settings) if f.name == name)
    words = field.metadata.get("choices", ("", f"{value}x"))
    entry = "x" if field.metadata.get("entries") is str else 1
    other = {bool: lambda: not value, str: lambda: words[1], tuple: lambda: (*value, *(value[:1] or (entry,)))}
    return dataclasses.replace(settings, **{name: other.get(type(value), lambda: value + 1)()})


def test_every_setting_changes_the_fingerprint() -> None:
    paths = leaves(Settings())
    assert len(paths) > 100
    found = {fingerprint(changed(Settings(), path)) for path in paths}
    assert len(found) == len(paths)
    assert fingerprint(Settings()) not in found
    assert all(from_dict(Settings, to_dict(changed(Settings(), path))) == changed(Settings(), path) for path in paths)


def test_fingerprints_are_stable() -> None:
    """Of the value, not of the object, its type, or the order of a dict."""
    assert fingerprint(Settings(), "a", 1) == fingerprint(Settings(), "a", 1)
    assert fingerprint(Settings()) == fingerprint(to_dict(Settings()))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint("a", "b") != fingerprint("ab") != fingerprint("b", "a")
    # Changing the hash would make every finished stage of every run begin again.
    assert fingerprint("apl", [1, 2.5, None]) == "b069366404fe4bb8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ["supervised", 3]}, r"config\.arms\[1\]: found 3 \(int\), expected str"),
        ({"evaluation": {"tiou": [0.5, "all"]}}, r"config\.evaluation\.tiou\[1\]: found 'all' \(str\), expected float"),
        ({"data": {"streams": ["rgb", 1]}}, r"streams\[1\]: found 1 \(int\), expected str"),
        ({"data": {"validation_subjects": [2.5]}}, r"validation_subjects\[0\]: found 2\.5 \(float\), expected int"),
        ({"actionformer": {"regression_ranges": [[0, 4], 8]}}, r"regression_ranges\[1\]: found 8, expected a list"),
    ],
)
def test_entries_of_lists_have_types_too(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Settings, change)


def test_words_outside_the_choices_are_refused_wherever_they_come_from() -> None:
    with pytest.raises(ValueError, match=r"neck: found 'fnp', expected one of identity, fpn"):
        ActionFormerSettings(neck="fnp")
    with pytest.raises(ValueError, match=r"config\.learning\.contrastive\.later: found 'sometimes'"):
        from_dict(Settings, {"learning": {"contrastive": {"later": "sometimes"}}})
