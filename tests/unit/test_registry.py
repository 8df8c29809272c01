"""Registries: what may be registered, twice or not, and names that there are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures import REPOSITORY

import apl_jax as apl
from apl_jax.declarations import Checked, Choice, SettingsError, choice, from_dict, number, to_dict
from apl_jax.registry import DETECTORS, METHODS, SELECTION, Registry
from apl_jax.runs.plugins import load_plugin


@dataclass(frozen=True)
class Mine(Checked):
    size: int = number(3, at_least=1)


def build(settings: Any, facts: Any) -> tuple:
    return settings, facts


def build_other(settings: Any, facts: Any) -> tuple:
    return facts, settings


@pytest.fixture
def registry() -> Registry:
    registry = Registry("gadget")
    registry.register("mine", Mine, build)
    return registry


def test_an_entry_is_known_by_its_name(registry: Registry) -> None:
    assert "mine" in registry and "yours" not in registry and list(registry) == ["mine"]
    entry = registry["mine"]
    assert entry == registry.get("mine") and (entry.name, entry.settings) == ("mine", Mine)
    assert entry.build(Mine(), 4) == (Mine(), 4) and entry.plain(Mine(5)) == Mine(5)


@pytest.fixture
def untouched() -> Iterator[None]:
    """Afterwards all is registered as before: others hold settings of the classes that stand there."""
    before = [dict(registry._entries) for registry in (DETECTORS, METHODS, SELECTION)]
    yield
    for registry, entries in zip((DETECTORS, METHODS, SELECTION), before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


def test_the_same_call_a_second_time_is_no_error(registry: Registry) -> None:
    registry.register("mine", Mine, build)
    assert list(registry) == ["mine"]
    with pytest.raises(SettingsError, match="`mine`: found a gadget of this name already, expected another name"):
        registry.register("mine", Mine, build_other)
    assert registry["mine"].build is build


@pytest.mark.usefixtures("untouched")
def test_a_plug_in_that_is_loaded_twice_registers_once(tmp_path: Path) -> None:
    """By whatever path, and after a change of its file, as in a notebook."""
    before = [list(registry) for registry in (DETECTORS, METHODS, SELECTION)]
    load_plugin(str(REPOSITORY / "examples" / "plugin.py"))
    copy = tmp_path / "plugin.py"
    copy.write_text((REPOSITORY / "examples" / "plugin.py").read_text())
    load_plugin(str(copy))
    assert [list(registry) for registry in (DETECTORS, METHODS, SELECTION)] == before
    assert {"conv"} <= set(DETECTORS) and {"steady"} <= set(METHODS) and {"surest_share"} <= set(SELECTION)


@pytest.mark.usefixtures("untouched")
def test_a_plug_in_may_not_take_a_name_of_this_package(tmp_path: Path) -> None:
    path = tmp_path / "greedy.py"
    path.write_text(
        "import apl_jax as apl\nfrom dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass S(apl.Checked):\n    size: int = apl.number(1)\n"
        "apl.register_method('apl', S, lambda settings, context: None)\n"
    )
    with pytest.raises(SettingsError, match="`apl`: found a method of this name already"):
        load_plugin(str(path))
    assert METHODS["apl"].settings is not None and METHODS["apl"].build.__module__ == "apl_jax.learning.methods"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/plugin.py", r"`plugin`: found no file 'no/such/plugin.py'"),
        ("no_such_module", r"`plugin`: could not import 'no_such_module' \(ModuleNotFoundError: No module named"),
    ],
)
def test_plug_ins_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_plugin(name)


def test_a_plug_in_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def f(:\n")
    with pytest.raises(SettingsError, match=r"`plugin`: could not (read|import) '.*broken\.py' \("):
        load_plugin(str(path))


@dataclass
class NotFrozen(Checked):
    size: int = 3


@dataclass(frozen=True)
class WithoutDefault(Checked):
    size: int


@dataclass(frozen=True)
class Named(Checked):
    name: str = "x"


@dataclass(frozen=True)
class Chained(Checked):
    chain: str = "x"


class NoDataclass:
    size = 3


@pytest.mark.parametrize("wrong", [NotFrozen, WithoutDefault, Named, Chained, NoDataclass, dict])
def test_settings_classes_that_cannot_be(registry: Registry, wrong: type) -> None:
    """They are refused when they are registered, not when somebody first names them."""
    with pytest.raises(SettingsError, match=r"`yours`: found .* as settings of a gadget, expected a frozen dataclass"):
        registry.register("yours", wrong, build_other)
    assert list(registry) == ["mine"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mime", r"`detector.name`: found 'mime', no such gadget; there are mine\. Did you mean 'mine'\?"),
        ("zzz", r"`detector.name`: found 'zzz', no such gadget; there are mine\.$"),
        ("", r"`detector.name`: found '', no such gadget; there are mine\.$"),
    ],
)
def test_a_name_that_there_is_not(registry: Registry, name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        registry.get(name, "detector.name")
    with pytest.raises(SettingsError, match="`gadget`: found"):
        registry[name]
    with pytest.raises(SettingsError, match="there are none"):
        Registry("widget").get(name)


def test_a_registered_entry_can_be_chosen(registry: Registry) -> None:
    @dataclass(frozen=True)
    class Whole(Checked):
        gadget: Choice = choice(registry, "mine")

    assert to_dict(Whole()) == {"gadget": {"name": "mine", "size": 3}}
    found = from_dict(Whole, {"gadget": {"size": 4}})
    assert found.gadget == Choice("mine", Mine(4)) and hash(found) == hash(dataclasses.replace(found))
    with pytest.raises(SettingsError, match=r"`gadget.size`: found 0, expected at least 1"):
        from_dict(Whole, {"gadget": {"size": 0}})


@pytest.mark.usefixtures("untouched")
def test_strangers_register_as_the_package_does() -> None:
    """All three registries have a public call."""
    calls = (apl.register_detector, DETECTORS), (apl.register_method, METHODS), (apl.register_selection, SELECTION)
    for register, registry in calls:
        register("a stranger's", Mine, build)  # pyright: ignore[reportArgumentType]  # what it builds is not looked at
        assert registry["a stranger's"] == ("a stranger's", Mine, build, registry["a stranger's"].plain)
    apl.register_detector("with a baseline", Mine, build, plain=lambda settings: Mine(1))  # pyright: ignore
    assert DETECTORS["with a baseline"].plain(Mine(7)) == Mine(1)
