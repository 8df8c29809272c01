"""What may be named in a configuration: detectors, methods, and links of the selection chain.

An entry is a settings class and a builder. Whoever registers one, this package, a plug-in file, a notebook or another
package, makes the same call; settings, fingerprints, the command line and the tests then know the entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from apl_jax.declarations import Checked, SettingsError, unknown_name


class Entry(NamedTuple):
    """One name of a registry."""

    name: str
    settings: type  # a frozen dataclass that inherits from declarations.Checked; all its fields have defaults
    build: Callable[..., Any]  # from an instance of ``settings`` and what the package of the registry describes
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
        if name in _RESERVED or (taken is not None and not _same(taken.build, build)):
            found = "a word that configurations need" if name in _RESERVED else f"a {self.kind} of this name already"
            raise SettingsError(f"`{name}`: found {found}, expected another name")
        frozen = dataclasses.is_dataclass(settings) and settings.__dataclass_params__.frozen  # pyright: ignore
        names = {f.name for f in dataclasses.fields(settings)} if frozen else set()
        if not frozen or not issubclass(settings, Checked) or names & _RESERVED or not _has_defaults(settings):
            expected = "a frozen dataclass on Checked with a default for every field, none of them called name or chain"
            raise SettingsError(f"`{name}`: found {settings!r} as settings of a {self.kind}, expected {expected}")
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


_RESERVED = frozenset(("name", "chain"))


def _same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two builders are one: a module that is loaded twice registers the same thing again."""
    origin = lambda build: (getattr(build, "__module__", ""), getattr(build, "__qualname__", "<lambda>"))
    return one is other or (origin(one) == origin(other) and "<lambda>" not in origin(one)[1])


def _has_defaults(settings: type) -> bool:
    return all(
        f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        for f in dataclasses.fields(settings)
    )


DETECTORS = Registry("detector")
METHODS = Registry("method")
SELECTION = Registry("selection rule")
