"""What may be named in a configuration: detectors, methods, and links of the selection chain.

An entry is a settings class and a builder. Whoever registers one, this package, a plug-in file, a notebook or another
package, makes the same call; settings, fingerprints, the command line and the tests then know the entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from apl_jax.declarations import SettingsError, unknown_name


class Entry(NamedTuple):
    """One name of a registry."""

    name: str
    settings: type  # a frozen dataclass that inherits from declarations.Checked; all its fields have defaults
    build: Callable[..., Any]  # from an instance of ``settings`` and what the registry's room describes
    plain: Callable[[Any], Any]  # of detectors: the settings of its baseline, from those of the semi-supervised method


class Registry:
    """Entries by name, of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(
        self,
        name: str,
        settings: type,
        build: Callable[..., Any],
        plain: Callable[[Any], Any] = lambda settings: settings,
    ) -> None:
        """Adds an entry. The same name with another builder is an error, the same call a second time is none.

        Raises :class:`~apl_jax.declarations.SettingsError` for a name that is taken and for a settings class that is no
        frozen dataclass, has a field without a default, or one called ``name``.
        """
        taken = self._entries.get(name)
        if taken is not None and _origin(taken.build) != _origin(build):
            raise SettingsError(f"`{name}`: found a {self.kind} of this name already, expected another name")
        frozen = dataclasses.is_dataclass(settings) and settings.__dataclass_params__.frozen  # pyright: ignore
        if not frozen or any(f.name in ("name", "chain") for f in dataclasses.fields(settings)):
            expected = "a frozen dataclass with a default for every field and no field called name or chain"
            raise SettingsError(f"`{name}`: found {settings!r} as settings of a {self.kind}, expected {expected}")
        settings()  # every field has a default
        self._entries[name] = Entry(name, settings, build, plain)

    def forget(self, name: str) -> None:
        """Takes an entry out again, for tests and notebooks that define one anew."""
        self._entries.pop(name, None)

    def get(self, name: str, where: str = "") -> Entry:
        """The entry of a name; ``where`` is the settings path that named it. Raises
        :class:`~apl_jax.declarations.SettingsError` with the nearest names."""
        if name not in self._entries:
            raise unknown_name(f"`{where or self.kind}`", f"found {name!r}, no such {self.kind}", name, list(self))
        return self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        return self.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)


def _origin(build: Callable[..., Any]) -> tuple[str, str]:
    """Where a builder is defined: a module that is loaded twice registers the same thing again."""
    return getattr(build, "__module__", ""), getattr(build, "__qualname__", repr(build))


DETECTORS = Registry("detector")
METHODS = Registry("method")
SELECTION = Registry("selection rule")
