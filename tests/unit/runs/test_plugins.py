"""Plug-ins: files, modules and the entry points of installed packages register what they bring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apl_jax.declarations import SettingsError
from apl_jax.registry import SELECTION
from apl_jax.runs.plugins import load_plugin

PLUGIN = """
from dataclasses import dataclass
import apl_jax as apl
from apl_jax.learning.selection import Link, observe_nothing

@dataclass(frozen=True)
class Settings(apl.Checked):
    share: float = apl.number(0.5, at_least=0, at_most=1)

def build(settings, facts):
    return Link(tuple, observe_nothing, lambda state, labels, _: (state, labels))

apl.register_selection({name!r}, Settings, build)
"""
ASKED = """
from apl_jax.registry import SELECTION
from apl_jax.runs.plugins import load_entry_points
from apl_jax.runs.settings import Settings
from apl_jax.declarations import override, to_dict
load_entry_points()
found = override(Settings(), {"learning.selection.chain": ("dynamic", "from_a_package")})
print(to_dict(found.learning.selection)["from_a_package"])
"""


def test_file_registers_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="from_a_file"))
    for _ in range(2):
        load_plugin(str(path))
    assert "from_a_file" in SELECTION
    SELECTION.forget("from_a_file")


@pytest.mark.parametrize("content", ["import no_such_module_at_all", "def broken(:"])
def test_files_that_cannot_be_imported_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"`plugin`: could not import .*bad\.py"):
        load_plugin(str(path))


@pytest.mark.parametrize("name", ["nowhere.py", "no_such_module_at_all"])
def test_missing_plugins_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"`plugin`: .*{name}"):
        load_plugin(name)


def test_packages_are_found_by_their_entry_points(tmp_path: Path) -> None:
    """As an installed package leaves it: a module, and its metadata. One that fails is named and left out."""
    (tmp_path / "strangers.py").write_text(PLUGIN.format(name="from_a_package"))
    metadata = tmp_path / "strangers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[apl_jax.plugins]\nours = strangers\nbroken = no_such_module_at_all\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", ASKED]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "{'share': 0.5}"
    assert "plug-in broken of no_such_module_at_all cannot be loaded" in result.stderr
