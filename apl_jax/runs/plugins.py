"""Plug-ins: code outside this package that registers detectors, methods and selection rules when it is imported."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
from pathlib import Path

from apl_jax.data.files import expanded
from apl_jax.declarations import SettingsError
from apl_jax.runs.settings import load_file
from apl_jax.text import Refusal

ENTRY_POINTS = "apl_jax.plugins"
log = logging.getLogger(__name__)


def load_plugin(name: str) -> None:
    """Imports a plug-in: the path of a Python file, or the name of a module.

    Raises :class:`~apl_jax.declarations.SettingsError` when there is no such file or module.
    """
    path = expanded(name)
    if path.suffix == ".py" or path.is_file():
        if not path.is_file():
            raise SettingsError(f"`plugin`: found no file {name!r}, expected a Python file that registers something")
        _load_once(path.resolve())
        return
    try:
        importlib.import_module(name)
    except Refusal:
        raise
    except Exception as error:  # whatever the module's own code raises
        found = f"{type(error).__name__}: {error}"
        raise SettingsError(f"`plugin`: could not import {name!r} ({found}), expected a file or a module") from error


@functools.cache
def _load_once(path: Path) -> None:
    load_file(path, "plugin")


@functools.cache
def load_entry_points() -> None:
    """Imports the plug-ins of installed packages, those of the entry-point group ``apl_jax.plugins``.

    One that cannot be imported is named in the log and left out: it may be of no interest to this run.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # whatever another package's import raises
            log.warning("plug-in %s of %s cannot be loaded: %s", point.name, point.value, error)
