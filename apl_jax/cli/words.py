"""Messages in the words of the command line.

The packages below are also used without a command line. Their messages name settings and arguments in backticks, with
or without a value, such as "data.label_ratio=0.1" and "min_score". Here these become the flags that the command has.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Collection

SETTINGS = ("seed", "variants", "detector", "data", "learning", "evaluation", "runtime")  # the fields of Settings
_UNITS = ("_s", "_t")  # that arguments carry in Python, and flags do not
_NAMED = re.compile(r"`([A-Za-z_][\w.\[\] ]*)(?:=([^`\n]+))?`")
_MAY_WRITE = "check who may write there, or choose another folder"
_ROOM = "free some space, or choose another folder"
_IN_THE_WAY = "move what is there out of the way, or choose another folder"
_ADVICE = {
    errno.EACCES: _MAY_WRITE, errno.EPERM: _MAY_WRITE, errno.EROFS: _MAY_WRITE, errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM, errno.EEXIST: _IN_THE_WAY, errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY, errno.ENAMETOOLONG: "a shorter path", errno.ENOENT: "check the path",
}  # fmt: skip
_SPECIAL = re.compile(r"[^\w@%+=:,./-]")  # what a shell might not take as it stands
_EXPANDED = re.compile(r"[\"$\\!]")  # what it changes within double quotes


def in_flags(message: str, flags: Collection[str]) -> str:
    """A message whose names in backticks are flags, as far as the command has them: ``flags``, without their dashes.

    Settings become ``--config.<path>`` where the command takes ``--config``, else its own flag of their last name;
    arguments become ``--<name>`` where it has a flag of this name; of all other names only the backticks go.
    """
    return _NAMED.sub(lambda match: _in_flags(match[1], match[2], flags), message)


def in_words(error: Exception) -> str:
    """What went wrong; of what the operating system refuses: where, what, and what to try."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    words = error.strerror or type(error).__name__
    advice = "" if "Try: " in words else f". Try: {_ADVICE.get(error.errno or 0, 'check the path and the disk')}"
    return f"{os.fsdecode(error.filename)}: {words[0].lower()}{words[1:]}{advice}."


def _in_flags(name: str, value: str | None, flags: Collection[str]) -> str:
    """One name, and the value that it is given, if any."""
    flag = _flag_of(name, flags)
    if value is None:
        return flag or name
    return f"{flag}={_for_shells(value)}" if flag else f"{name}={value}"


def _flag_of(name: str, flags: Collection[str]) -> str | None:
    """The flag that a name means, None where the command has none."""
    if re.split(r"[.\[]", name, maxsplit=1)[0] in SETTINGS:
        last = name.rpartition(".")[2]
        return f"--config.{name}" if "config" in flags else f"--{last}" if last in flags else None
    known = (name, *(name.removesuffix(unit) for unit in _UNITS))
    return next((f"--{candidate}" for candidate in known if candidate in flags), None)


def _for_shells(value: str) -> str:
    """A value as it may be typed; what stands for one, ``<rate>``, and what is quoted already stay as they are."""
    if re.fullmatch(r'<.*>|".*"', value) or not _SPECIAL.search(value):
        return value
    return shlex.quote(value) if _EXPANDED.search(value) else f'"{value}"'
