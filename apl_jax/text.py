"""Text that people are shown. Names and values come from files, and may hold anything: each sink has one function here.

A message quotes what it found with :func:`shown`; whoever writes messages to a terminal or a log passes them through
:func:`for_terminal`; tables go through :func:`for_csv`, names of files through :func:`for_file_name`. Pages are HTML
templates, which escape by themselves.
"""

from __future__ import annotations

import math
import re
from typing import Any

SHOWN = 80  # characters that a message quotes of one value
_MOST_IN_RANGE = 10_000  # numbers that a range stands for
_FORMULA = "=+-@"  # what a spreadsheet takes for the beginning of a formula
_UNSAFE = re.compile(r"[^\w.@+=-]+")  # what names of files should not hold


def shown(value: Any, most: int = SHOWN) -> str:
    """A value as messages quote it: on one line, at most ``most`` characters, without control characters."""
    if isinstance(value, str):  # no need to quote all of a text of a hundred megabytes
        value = value[: most + 1]
    text = for_terminal(repr(value)).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[: most - 3]}..."


def for_terminal(text: str) -> str:
    """Text without what a terminal would obey: all that cannot be printed, but for line breaks, as its escape
    sequence in Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def for_csv(text: str) -> str:
    """Text as a cell of a table: on one line, and no formula where a spreadsheet opens the table; an apostrophe is put
    before what would be one. :func:`from_csv` takes it away."""
    text = for_terminal(text).replace("\n", "\\n")
    return f"'{text}" if text[:1] in _FORMULA or text[:2] in [f"'{c}" for c in _FORMULA] else text


def from_csv(cell: str) -> str:
    """The text of which :func:`for_csv` made a cell, as far as it could be printed."""
    return cell[1:] if cell[:1] == "'" and (cell[1:2] in _FORMULA or cell[1:3] in [f"'{c}" for c in _FORMULA]) else cell


def for_file_name(text: str, most: int = 100) -> str:
    """Text as the name of a file: letters, digits and ``. _ - @ + =``, all else as ``_``; never empty, never hidden."""
    return _UNSAFE.sub("_", text).lstrip(".-")[:most] or "_"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


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
