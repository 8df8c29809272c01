"""Text that people are shown. Names and values come from files, and may hold anything: each sink has one function here.

A message quotes what it found with :func:`shown`; the terminal is written to with :func:`say`, and logs pass through
:func:`for_terminal`; tables go through :func:`for_csv`, names of files through :func:`for_file_name`. Pages are HTML
templates, which escape by themselves.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 80  # characters that a message quotes of one value
LONGEST_LINE = 2000  # characters of a line of a message
LONGEST_FILE_NAME = 200  # bytes; file systems take 255, with a suffix and what a temporary file has before it
_MOST_IN_RANGE = 10_000  # numbers that a range stands for
_FORMULA = re.compile(r"'*[=+\-@]")  # what a spreadsheet takes for a formula, with apostrophes before it or not
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_UNSAFE = re.compile(r"[^\w.@+=-]+")  # what names of files should not hold


class Refusal(Exception):
    """What a person, and not the program, has to change; the message says what. Any other exception that leaves the
    package is a fault of the program."""

    exit_code = 1  # of a command that ends with it


def shown(value: Any, most: int = SHOWN) -> str:
    """A value as messages quote it: on one line, at most ``most`` characters, without control characters."""
    # There is no need to quote all of a text of a hundred megabytes.
    text = one_line(repr(value[: most + 1]) if isinstance(value, str) else _quoted(value, most))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _quoted(value: Any, most: int) -> str:
    """``repr`` of a value, of large ones in part: a document may be as deep and as wide as memory allows."""
    if isinstance(value, int) and value.bit_length() > 4 * most:  # Python refuses to write the longest of them
        return f"a whole number of {value.bit_length():,} bits"
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 2 * most
    short.maxlist = short.maxtuple = short.maxdict = most
    try:
        return short.repr(value)
    except ValueError:  # a number that is too long to write, inside of it
        return f"a {type(value).__name__}"


def counted(count: int, noun: str) -> str:
    """A number and what it counts: ``1 video``, ``1,234 videos``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def some(names: Sequence[str], most: int = 5) -> str:
    """Names as a list for a sentence; of more than ``most`` the first ones."""
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def for_terminal(text: str) -> str:
    """Text without what a terminal would obey: all that cannot be printed, but for line breaks, as its escape
    sequence in Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def one_line(text: str) -> str:
    """Text as :func:`for_terminal` makes it, line breaks too as their escape sequence."""
    return for_terminal(text).replace("\n", "\\n")


def for_message(text: str) -> str:
    """A message as :func:`for_terminal` makes it, its lines cut to :data:`LONGEST_LINE` characters."""
    cut = lambda line: line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 3]}..."
    return "\n".join(cut(for_terminal(line)) for line in text.split("\n"))


def say(text: str = "", *, end: str = "\n", error: bool = False) -> None:
    """Prints to the standard output, or to the standard error, as :func:`for_terminal` makes it; characters that the
    terminal's encoding lacks become escape sequences too."""
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(for_terminal(text).encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream)


def for_csv(text: str) -> str:
    """Text as a cell of a table: on one line, and no formula where a spreadsheet opens the table; an apostrophe is put
    before what would be one. :func:`from_csv` takes it away."""
    text = one_line(text)
    return f"'{text}" if _FORMULA.match(text) else text


def from_csv(cell: str) -> str:
    """The text of which :func:`for_csv` made a cell, as far as it could be printed."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def for_file_name(text: str, most: int = LONGEST_FILE_NAME) -> str:
    """Text as the name of a file: letters, digits and ``. _ - @ + =``, all else as ``_``; never empty, never hidden, at
    most ``most`` bytes."""
    name = _UNSAFE.sub("_", text).lstrip(".-")
    return name.encode()[:most].decode(errors="ignore") or "_"


def file_names(texts: Iterable[str]) -> list[str]:
    """Each text as the name of a file, as :func:`for_file_name`; those that would be one name, also where a file system
    does not tell cases apart, get a number."""
    taken: set[str] = set()
    names = []
    for text in texts:
        name = plain = for_file_name(text)
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def address_scheme(text: str) -> str:
    """The scheme of an address such as ``gs://bucket/run``, "" of what is a path; paths lose the second slash."""
    found = _ADDRESS.match(text)
    return found[1] if found else ""


def numbers_of(text: str) -> tuple[float, ...]:
    """Numbers with commas between them; ``0.5:0.05:0.95`` stands for those from 0.5 to 0.95, both included, in steps of
    0.05. Raises ``ValueError`` for anything else."""
    return tuple(number for part in text.strip("()[] ").split(",") if part.strip() for number in _range_of(part))


def _range_of(part: str) -> list[float]:
    first, *rest = (float(number) for number in part.split(":"))
    if not rest:
        return [first]
    step, last = rest  # ValueError where there are not three
    count = (last - first) / step + 1 if step > 0 and math.isfinite(first + last) else 0
    if not 1 <= count < _MOST_IN_RANGE:
        raise ValueError(f"no numbers from {first:g} to {last:g} in steps of {step:g}")
    return [round(first + i * step, 10) for i in range(int(count + 1e-6))]
