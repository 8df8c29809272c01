"""The configuration file that ``apl-jax configure`` writes, and writes again without losing what a person changed.

Every line that a rule has made ends with the value that it recommends, a colon and the fact it follows from:

    config.data.stride = 4  # 4: 0.2 s per row: ...

So an edited line is one whose value is no longer the recommended one. Written again, edited lines keep their value and
get the new recommendation; lines that a person added stay as they are.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from apl_jax.configuration.facts import Facts
from apl_jax.configuration.rules import Proposal
from apl_jax.data.files import DataError, read_bytes, refusal
from apl_jax.text import one_line

_LINE = re.compile(r"^(    )config\.([\w.]+) = (.*?)(?:  # (.*?): .*)?$")
_END = "    return config"
_NOTE = "    # note: "
_LARGEST = 1 << 20  # bytes of a file that may be written again


class Difference(NamedTuple):
    """A setting that the file has otherwise than the rules recommend, or had before."""

    path: str
    found: str  # in the file, as Python
    recommended: str


def notes_of(proposal: Proposal, facts: Facts) -> list[str]:
    """The lines of notes: which data the values follow from, and what is to be known about them."""
    shown = f"{facts.labelled} of {facts.training} training recordings show their labels"
    held = f"{facts.instances} instances of {facts.classes} classes"
    words = (f"from {facts.root}, digest {facts.digest}: {shown}, {held}", *proposal.warnings)
    return [f"{_NOTE}{one_line(text)}" for text in words]


def render(proposal: Proposal, facts: Facts, asked: Mapping[str, Any]) -> str:
    """A configuration file; ``asked`` are settings that a person gave."""
    lines = [
        '"""Written by apl-jax configure.',
        "",
        "Behind each value stands the recommended one and what it follows from. Change any value: when the file is",
        "written again, it keeps yours, and the difference is printed. Steps and pretext are first values, which auto",
        "tries against others.",
        '"""',
        "",
        "from ml_collections import ConfigDict",
        "",
        "from apl_jax.runs.settings import default_config",
        "",
        "",
        "def get_config() -> ConfigDict:",
        "    # auto tries steps, pretext and thresholds on held-out labelled recordings; apl takes the values below.",
        "    config = default_config(method='auto')",
        *(f"    config.{path} = {value!r}" for path, value in asked.items()),
        *(_line(line.path, line.value, line.reason) for line in proposal.lines),
        *notes_of(proposal, facts),
        _END,
        "",
    ]
    return "\n".join(lines)


def _line(path: str, value: Any, reason: str, kept: str | None = None) -> str:
    return f"    config.{path} = {kept or repr(value)}  # {value!r}: {one_line(reason)}"


def read_file(path: Path) -> str:
    """The text of a configuration file. Raises :class:`~apl_jax.data.files.DataError` for one that is no Python, or
    that ``configure`` has not written."""
    try:
        text = read_bytes(path, "a configuration file", _LARGEST).decode()
        ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise refusal(str(path), f"no Python ({error})", "a configuration file", "another --out") from None
    if _END not in text.splitlines():
        remedy = "another --out, or move it away"
        raise refusal(str(path), "a file that apl-jax configure has not written", f"one that ends in {_END!r}", remedy)
    return text


def lines_of_a_person(text: str) -> dict[str, Any]:
    """The settings of a file that no rule has made, or that were edited since; those that are plain values."""
    found = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None and (match[4] is None or not _equal(match[3], match[4])):
            with contextlib.suppress(ValueError, SyntaxError):
                found[match[2]] = ast.literal_eval(match[3].partition("  #")[0])
    return found


def merge(
    old: str, proposal: Proposal, facts: Facts, asked: Mapping[str, Any]
) -> tuple[str, list[Difference]]:  # fmt: skip
    """The text of a file with the lines that a rule made written again, and where it now differs from the rules.

    Lines that were edited keep their value, but for settings that are ``asked`` for now; settings that are new come
    last.
    """
    wanted = {line.path: line for line in proposal.lines}
    notes = notes_of(proposal, facts)
    result: list[str] = []
    differences: list[Difference] = []
    seen: set[str] = set()
    for text in old.splitlines():
        if text.startswith(_NOTE) or text == _END:  # notes stay where they were, or come last
            result += notes
            notes = []
        match = _LINE.match(text)
        if match is not None and match[2] in asked:
            result.append(f"    config.{match[2]} = {asked[match[2]]!r}")
            seen.add(match[2])
            continue
        if match is None or match[2] not in wanted:
            if not text.startswith(_NOTE):
                result.append(text)
            continue
        line, found, before = wanted[match[2]], match[3], match[4]
        seen.add(line.path)
        edited = before is None or not _equal(found, before)
        if edited and not _equal(found, repr(line.value)):
            differences.append(Difference(line.path, found, repr(line.value)))
        result.append(_line(line.path, line.value, line.reason, found if edited else None))
    fresh = [f"    config.{path} = {value!r}" for path, value in asked.items() if path not in seen]
    fresh += [_line(line.path, line.value, line.reason) for line in proposal.lines if line.path not in seen]
    end = len(result) - 1 - result[::-1].index(_END)
    return "\n".join([*result[:end], *fresh, *result[end:], ""]), differences


def _equal(one: str, other: str) -> bool:
    """Whether two pieces of Python are one value."""
    try:
        return ast.literal_eval(one) == ast.literal_eval(other)
    except (ValueError, SyntaxError):
        return one.strip() == other.strip()
