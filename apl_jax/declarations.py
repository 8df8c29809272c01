"""How settings are declared, checked, read, written and hashed. What they are stands in ``settings.py``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import field
from typing import Any


def one_of(default: str, *others: str) -> Any:
    """A field that takes one of a few words; anything else is refused wherever the settings are made."""
    return field(default=default, metadata={"choices": (default, *others)})


class Checked:
    """Refuses words that a field declared with :func:`one_of` does not know, with ``ValueError``."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]  # every subclass is a dataclass
            choices, found = f.metadata.get("choices"), getattr(self, f.name)
            if choices and found not in choices:
                raise ValueError(f"{f.name}: found {found!r}, expected one of {', '.join(choices)}")


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as nested dicts of JSON types (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def from_dict(cls: type, values: dict[str, Any], where: str = "config") -> Any:
    """Builds settings of class ``cls`` from nested dicts; unknown names and mistyped values are errors.

    Raises ``ValueError`` naming the dotted path, what was found and what was expected.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{where}.{unknown[0]}: no such setting; {where} has {', '.join(fields)}")
    default = cls()
    changes = {
        name: _coerce(getattr(default, name), value, f"{where}.{name}", fields[name].metadata.get("entries", int))
        for name, value in values.items()
    }
    try:
        return dataclasses.replace(default, **changes)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def _coerce(default: Any, value: Any, where: str, entries: type = int) -> Any:
    """``value`` in the type of ``default``: dataclass from dict, tuple from list (of ``entries``), float from int."""
    if dataclasses.is_dataclass(default):
        return from_dict(type(default), dict(value), where)
    if isinstance(default, tuple):
        return _coerce_tuple(default, value, where, entries)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"{where}: found {value!r} ({type(value).__name__}), expected {type(default).__name__}")
    return value


def _coerce_tuple(default: tuple, value: Any, where: str, entries: type) -> tuple:
    """A list as a tuple whose entries have the type of the default's first; those of an empty one are ``entries``."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: found {value!r}, expected a list like {list(default)}")
    kind = default[0] if default else entries()
    return tuple(_coerce(kind, entry, f"{where}[{i}]") for i, entry in enumerate(value))


def fingerprint(*parts: Any) -> str:
    """A 16-digit hash of settings, digests, names: equal exactly when every part is equal."""

    def plain(part: Any) -> Any:
        return to_dict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part

    text = json.dumps([plain(p) for p in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
