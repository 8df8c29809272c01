"""How settings are declared, checked, read, written, changed and hashed. What they are stands with whatever reads them.

A settings class is a frozen dataclass that inherits from :class:`Checked`. Its fields are numbers, words, tuples, other
settings classes, and two kinds of choice: a :class:`Choice` is one entry of a registry together with that entry's own
settings, a :class:`Chain` is several of them in an order.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apl_jax.text import Refusal, numbers_of, shown

if TYPE_CHECKING:
    from apl_jax.registry import Registry


class SettingsError(Refusal, ValueError):
    """A setting that is unknown or has an impossible value; the message names its path in backticks."""


def one_of(default: str, *others: str) -> Any:
    """A field that takes one of a few words."""
    return field(default=default, metadata={"choices": (default, *others)})


def number(
    default: float, *, at_least: float = -math.inf, at_most: float = math.inf, above: float = -math.inf,
    below: float = math.inf,
) -> Any:  # fmt: skip
    """A numeric field with its bounds: ``at_least <= value <= at_most`` and ``above < value < below``.

    Give one on each side: NaN and infinity are refused in any case, but a width of 1e300 only where a bound says so.
    """
    return field(default=default, metadata={"bounds": (at_least, at_most, above, below)})


def numbers(default: tuple, **bounds: float) -> Any:
    """A field that holds a tuple of numbers, or of tuples of them, each within the bounds of :func:`number`."""
    return field(default=default, metadata=number(0, **bounds).metadata)


def choice(registry: Registry, name: str) -> Any:
    """A field that holds a :class:`Choice` from ``registry``, by default ``name`` with that entry's own defaults."""
    default = lambda: Choice(name, registry[name].settings())
    return field(default_factory=default, metadata={"registry": registry})


def chain(registry: Registry, *names: str) -> Any:
    """A field that holds a :class:`Chain` from ``registry``, by default ``names`` with their own defaults."""
    default = lambda: Chain(tuple(Choice(name, registry[name].settings()) for name in names))
    return field(default_factory=default, metadata={"registry": registry})


class Checked:
    """Base of settings classes: refuses words and numbers outside what their fields declare."""

    def __post_init__(self) -> None:
        """Raises :class:`SettingsError` for the first field with an impossible value."""
        for f in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]  # every subclass is a dataclass
            found = getattr(self, f.name)
            choices, bounds = f.metadata.get("choices"), f.metadata.get("bounds")
            if choices and found not in choices:
                raise SettingsError(f"`{f.name}`: found {shown(found)}, expected one of {', '.join(choices)}")
            for value in _leaves(found) if bounds else ():
                if bounds and not within_bounds(value, bounds):
                    raise SettingsError(f"`{f.name}`: found {shown(found)}, expected {bounds_in_words(bounds)}")


def _leaves(value: Any) -> list[Any]:
    """The numbers of a nested tuple."""
    return [leaf for entry in value for leaf in _leaves(entry)] if isinstance(value, tuple) else [value]


def within_bounds(value: float, bounds: tuple[float, float, float, float]) -> bool:
    """Whether a number is within the bounds that :func:`number` keeps; NaN and infinity never are."""
    at_least, at_most, above, below = bounds
    return at_least <= value <= at_most and above < value < below and abs(value) < math.inf


def bounds_in_words(bounds: tuple[float, float, float, float]) -> str:
    """The bounds of a number as a person would say them."""
    at_least, at_most, above, below = bounds
    words = {"at least": at_least, "more than": above, "at most": at_most, "less than": below}
    return " and ".join(f"{word} {b:.10g}" for word, b in words.items() if math.isfinite(b)) or "a number"


@dataclass(frozen=True)
class Choice:
    """One entry of a registry, with the settings that this entry brings."""

    name: str
    settings: Any


@dataclass(frozen=True)
class Chain:
    """Several entries of a registry, one after the other."""

    links: tuple[Choice, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the links, in order."""
        return tuple(link.name for link in self.links)

    def settings_of(self, name: str) -> Any:
        """The settings of the first link of this name, or None where the chain has none."""
        return next((link.settings for link in self.links if link.name == name), None)


@dataclass(frozen=True)
class Unhashed:
    """Something that no result depends on, such as the place of a file whose digest is hashed beside it."""

    value: Any


_NAME, _CHAIN = "name", "chain"
_RANGE = re.compile(r"\d:")  # first:step:last


def to_dict(settings: Any) -> Any:
    """Settings as nested dicts of JSON types; tuples become lists.

    A :class:`Choice` is ``{"name": ..., **its settings}``, a :class:`Chain` ``{"chain": [names], name: {...}, ...}``.
    """
    if isinstance(settings, Unhashed):
        return None
    if isinstance(settings, Choice):
        return {_NAME: settings.name, **to_dict(settings.settings)}
    if isinstance(settings, Chain):
        return {_CHAIN: list(settings.names)} | {link.name: to_dict(link.settings) for link in settings.links}
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_dict(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {str(name): to_dict(value) for name, value in settings.items()}
    if isinstance(settings, (tuple, list)):
        return [to_dict(value) for value in settings]
    return settings


def from_dict(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """Settings of class ``cls`` from nested dicts, as :func:`to_dict` writes them; what is left out has its default.

    Raises :class:`SettingsError` naming the path, what was found and what was expected.
    """
    return _changed(cls(), values, where)


def override(settings: Any, changes: Mapping[str, Any], text: bool = False) -> Any:
    """Settings with some values changed, by dotted path: ``{"learning.self_train.steps": 300}``.

    A new ``name`` of a :class:`Choice` (or ``chain`` of a :class:`Chain`) comes first, whatever the order: it brings
    its own defaults, which the other changes then meet. With ``text`` values are read from text, as a command line has
    them. Raises :class:`SettingsError`.
    """
    structural = lambda path: path.rpartition(".")[2] not in (_NAME, _CHAIN)
    for path in sorted(changes, key=lambda path: (structural(path), path.count("."))):
        value: Any = changes[path]
        nested: Any = _Text(value) if text and isinstance(value, str) else value
        for name in reversed(path.split(".")):
            nested = {name: nested}
        settings = _changed(settings, nested, "")
    return settings


class _Text(str):
    """A value still to be read from text."""


def _changed(old: Any, new: Any, where: str, metadata: Mapping[str, Any] | None = None) -> Any:
    """``old`` with ``new`` in its place, in the type of ``old``: settings are changed field by field."""
    metadata = metadata or {}
    if isinstance(old, Choice):
        return _changed_choice(old, new, where, metadata["registry"])
    if isinstance(old, Chain):
        return _changed_chain(old, new, where, metadata["registry"])
    if dataclasses.is_dataclass(old):
        return _changed_fields(old, new, where)
    if isinstance(new, _Text):
        new = _read_text(str(new), old)
    if isinstance(old, tuple):
        return _changed_tuple(old, new, where, metadata.get("entries", int))
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        try:
            return float(new)
        except OverflowError:
            raise SettingsError(f"`{where}`: found {shown(new)}, expected a number") from None
    if type(new) is not type(old):
        expected = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}[type(old)]
        raise SettingsError(f"`{where}`: found {shown(new)}, expected {expected}")
    return new


def _changed_fields(old: Any, new: Any, where: str) -> Any:
    if not isinstance(new, Mapping):
        raise SettingsError(f"`{where}`: found {shown(new)}, expected settings by name, such as {_examples(old)}")
    fields = {f.name: f for f in dataclasses.fields(old)}
    changes = {}
    for name, value in new.items():
        path = f"{where}.{name}" if where else name
        if name not in fields:
            raise unknown_name(f"`{path}`", "no such setting", name, list(fields))
        changes[name] = _changed(getattr(old, name), value, path, fields[name].metadata)
    try:
        return dataclasses.replace(old, **changes)
    except SettingsError as error:
        inside = f"`{where}." if where else "`"
        raise SettingsError(str(error).replace("`", inside, 1)) from None


def _changed_choice(old: Choice, new: Any, where: str, registry: Registry) -> Choice:
    if not isinstance(new, Mapping):
        raise SettingsError(
            f"`{where}`: found {shown(new)}, expected `{where}.name` and the settings of that {registry.kind}"
        )
    name = str(new.get(_NAME, old.name))
    settings = old.settings if name == old.name else registry.get(name, f"{where}.{_NAME}").settings()
    return Choice(name, _changed(settings, {k: v for k, v in new.items() if k != _NAME}, where))


def _changed_chain(old: Chain, new: Any, where: str, registry: Registry) -> Chain:
    if not isinstance(new, Mapping):
        raise SettingsError(f"`{where}`: found {shown(new)}, expected `{where}.chain` and the settings of its links")
    names = new.get(_CHAIN, old.names)
    names = _changed_tuple(
        ("",), _read_text(str(names), ()) if isinstance(names, _Text) else names, f"{where}.{_CHAIN}"
    )
    if len(set(names)) < len(names) or not names:
        expected = "each link once" if names else "at least one link"
        raise SettingsError(f"`{where}.{_CHAIN}`: found {shown(names)}, expected {expected}")
    changes = {name: value for name, value in new.items() if name != _CHAIN}
    for name in changes:
        if name not in names:
            raise unknown_name(f"`{where}.{name}`", f"no link of the chain {names!r}", name, list(names))
    links = []
    for name in names:
        entry = registry.get(name, f"{where}.{_CHAIN}")
        settings = old.settings_of(name) or entry.settings()
        links.append(Choice(name, _changed(settings, changes.get(name, {}), f"{where}.{name}")))
    return Chain(tuple(links))


def _changed_tuple(old: tuple, new: Any, where: str, entries: type = int) -> tuple:
    """A list as a tuple whose entries have the type of the old one's first; those of an empty one are ``entries``."""
    if isinstance(new, str) or not isinstance(new, Sequence):
        raise SettingsError(f"`{where}`: found {shown(new)}, expected a list like {list(old)}")
    kind = old[0] if old else entries()
    return tuple(_changed(kind, value, f"{where}[{i}]", {"entries": entries}) for i, value in enumerate(new))


def _read_text(text: str, old: Any) -> Any:
    """A value as a command line states it: text for text, Python's literals for all else."""
    if isinstance(old, str):
        return text
    if isinstance(old, tuple) and _RANGE.search(text):
        with contextlib.suppress(ValueError):  # what is none is refused as text
            return numbers_of(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    if isinstance(old, tuple) and all(isinstance(entry, str) for entry in old):  # words need no quotes
        return tuple(part.strip() for part in text.split(","))
    return {"true": True, "false": False}.get(text.lower(), text)


def _examples(settings: Any) -> str:
    return ", ".join([f.name for f in dataclasses.fields(settings)][:3])


def unknown_name(where: str, what: str, name: str, known: Sequence[str]) -> SettingsError:
    """The refusal of a name, with the nearest that exists."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return SettingsError(f"{where}: {what}; there are {', '.join(known) or 'none'}.{hint}")


def differences(default: Any, settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted paths and values (JSON types) of the settings that differ from another instance of their class."""
    known = flat(to_dict(default), prefix)
    return {
        path: value for path, value in flat(to_dict(settings), prefix).items() if known.get(path, _MISSING) != value
    }


_MISSING = object()


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, by dotted path."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {prefix + name: value}
    return found


def fingerprint(*parts: Any) -> str:
    """A 16-digit hash of settings, digests and names: equal exactly when every part is equal."""
    text = json.dumps([to_dict(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
