"""Messages in the words of the command line.

The packages below are also used without a command line. Their messages name settings and arguments in backticks, with
or without a value, such as "data.label_ratio=0.1" and "min_score". Here these become the flags that the command has.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection

SETTINGS = ("seed", "variants", "detector", "data", "learning", "evaluation", "runtime")  # the fields of Settings
_UNITS = ("_s", "_t")  # that arguments carry in Python, and flags do not
_NAMED = re.compile(r"`([A-Za-z_][\w.\[\] ]*)(?:=([^`\n]+))?`")
_SPECIAL = re.compile(r"[^\w@%+=:,./-]")  # what a shell might not take as it stands
_EXPANDED = re.compile(r"[\"$\\!]")  # what it changes within double quotes


def in_flags(message: str, flags: Collection[str]) -> str:
    """A message whose names in backticks are flags, as far as the command has them: ``flags``, without their dashes.

    Settings become ``--config.<path>`` where the command takes ``--config``, arguments ``--<name>`` where it has a flag
    of this name; of all other names only the backticks go.
    """
    return _NAMED.sub(lambda match: _in_flags(match[1], match[2], flags), message)


def _in_flags(name: str, value: str | None, flags: Collection[str]) -> str:
    """One name, and the value that it is given, if any."""
    flag = _flag_of(name, flags)
    if value is None:
        return flag or name
    return f"{flag}={_for_shells(value)}" if flag else f"{name}={value}"


def _flag_of(name: str, flags: Collection[str]) -> str | None:
    """The flag that a name means, None where the command has none."""
    if re.split(r"[.\[]", name, maxsplit=1)[0] in SETTINGS:
        return f"--config.{name}" if "config" in flags else None
    known = (name, *(name.removesuffix(unit) for unit in _UNITS))
    return next((f"--{candidate}" for candidate in known if candidate in flags), None)


def _for_shells(value: str) -> str:
    """A value as it may be typed; what stands for one, ``<rate>``, and what is quoted already stay as they are."""
    if re.fullmatch(r'<.*>|".*"', value) or not _SPECIAL.search(value):
        return value
    return shlex.quote(value) if _EXPANDED.search(value) else f'"{value}"'
