"""Absurd command lines: every command, every flag, every setting: no traceback, no hang, nothing accepted
that cannot be."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import fixtures  # noqa: F401  # registers the plug-in's entries
import pytest
from fuzzing import MOST_MEMORY_MIB, TEXTS, faults, largest_mib

from apl_jax.cli.dispatch import COMMANDS
from apl_jax.cli.parser import build_parser
from apl_jax.declarations import flat, to_dict
from apl_jax.registry import DETECTORS, METHODS, SELECTION
from apl_jax.runs.settings import Settings

pytestmark = pytest.mark.filterwarnings("default")

IMPOSSIBLE = ("nan", "inf", "1e400", "1e300", "-1e300", "0x" + "f" * 5000, "x", "None", "[[[]]]", "{'a': 1}", "")
CHOSEN = {
    "detector": [("detector", name) for name in DETECTORS],
    "pretext": [("learning.pretext", name) for name in METHODS],
    "teacher": [("learning.teacher", name) for name in METHODS],
    "method": [("learning.method", name) for name in METHODS],
}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where faults of the program are logged; the working folder is an empty one."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "state" / "apl_jax" / "apl-jax.log"


def settings_paths() -> dict[str, tuple[list[str], Any]]:
    """Every setting of whatever is registered: the flags that bring it, and its default."""
    found = {path: ([], value) for path, value in flat(to_dict(Settings())).items()}
    for entries in CHOSEN.values():
        for path, name in entries:
            registry = DETECTORS if path == "detector" else METHODS
            for field, value in flat(to_dict(registry[name].settings())).items():
                found[f"{path}.{field} ({name})"] = ([f"--config.{path}.name={name}"], value)
    for name in SELECTION:
        for field, value in flat(to_dict(SELECTION[name].settings())).items():
            chain = [f"--config.learning.selection.chain={name}"]
            found[f"learning.selection.{name}.{field} ({name})"] = (chain, value)
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def fuzz_settings(state: Path, texts_each: int) -> list[str]:
    """What went wrong with impossible values of every setting."""
    settings, found = settings_paths(), []
    assert len(settings) > 200
    draws = random.Random(0)
    for path, (flags, value) in settings.items():
        name = path.partition(" ")[0]
        texts = IMPOSSIBLE if is_number(value) else ("x", "None", "{'a': 1}") if isinstance(value, bool) else ()
        for text in draws.sample(texts, min(texts_each, len(texts))):
            arguments = ["inspect", "--workdir=w", *flags, f"--config.{name}={text}"]
            found += faults(arguments, state, codes=(1,), said=f"--config.{name}")
    return found


def fuzz_commands(state: Path, cases: range) -> list[str]:
    """What went wrong with random flags and texts."""
    _, parsers = build_parser(COMMANDS)
    found = []
    for seed in cases:
        draws = random.Random(seed)
        command = draws.choice(sorted(COMMANDS))
        flags = [flag for flag in parsers[command].flags if flag != "workdir"]
        arguments = [command]
        for flag in draws.sample(flags, draws.randint(0, len(flags))):
            text = draws.choice(TEXTS)
            arguments += [f"--{flag}={text}"] if draws.random() < 0.8 else [f"--{flag}", text]
        if draws.random() < 0.3:
            arguments.insert(draws.randint(0, len(arguments)), draws.choice(TEXTS))
        if draws.random() < 0.7 and "workdir" in parsers[command].flags:
            arguments.append("--workdir=missing/folder")
        if command in ("synthesize", "prepare-hapt"):  # what could do something, given nothing but an empty folder
            arguments = [a for a in arguments if not a.startswith("--out")]
        if command in ("run", "inspect", "configure"):  # these must not begin to work
            found += faults([*arguments, "--config.seed=nan"], state, codes=(1, 2))
        else:
            found += faults(arguments, state)
    return found


def test_point_11_no_setting_takes_a_number_that_cannot_be(state: Path) -> None:
    before = largest_mib()
    assert fuzz_settings(state, 1) == []
    assert largest_mib() - before < MOST_MEMORY_MIB and not Path("w").exists()


@pytest.mark.exhaustive
def test_no_setting_takes_any_number_that_cannot_be(state: Path) -> None:
    assert fuzz_settings(state, len(IMPOSSIBLE)) == []


@pytest.mark.parametrize(
    "cases", [range(300), pytest.param(range(300, 5000), marks=pytest.mark.exhaustive)], ids=["some", "many"]
)
def test_absurd_command_lines_are_refused(state: Path, cases: range) -> None:
    before = largest_mib()
    assert fuzz_commands(state, cases) == []
    assert largest_mib() - before < MOST_MEMORY_MIB
