"""A configuration from data: facts, rules, file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apl_jax.configuration.facts import Facts, Follow, read_facts
from apl_jax.configuration.file import Difference, lines_of_a_person, merge, read_file, render
from apl_jax.configuration.rules import Proposal, propose
from apl_jax.data.files import expanded, write_text
from apl_jax.declarations import SettingsError, override
from apl_jax.runs.settings import Settings, read_config
from apl_jax.text import for_file_name

_CHOICES = (".name", ".chain")  # ends of paths that choose an entry of a registry


@dataclass(frozen=True, eq=False)
class Configured:
    """What was written, and from what."""

    path: Path | None  # of the file
    facts: Facts
    proposal: Proposal
    differences: tuple[Difference, ...]  # lines of the file that were edited, and the recommendation
    settings: Settings

    @property
    def folder(self) -> str:
        """A name for the folder of a run."""
        return for_file_name(self.facts.name)

    def words(self) -> str:
        """The whole, in lines for a terminal."""
        lines = [f"{line.path} = {line.value!r}" for line in self.proposal.lines]
        width = max(map(len, lines))
        told = [f"{text:<{width}}  {line.reason}" for text, line in zip(lines, self.proposal.lines, strict=True)]
        told += [f"note: {words}" for words in self.proposal.warnings]
        told += [f"kept yours: {d.path} = {d.found} (recommended: {d.recommended})" for d in self.differences]
        return "\n".join(told)


def configure(
    root: str | Path | None = None, out: str | Path | None = None, name: str | None = None,
    changes: Mapping[str, Any] | None = None, *, text: bool = False, follow: Follow = lambda records: records,
) -> Configured:  # fmt: skip
    """The configuration that follows from a data folder; written to a file, or again into one that is there.

    Args:
        root: data folder; None: that of the file, if it is there, else the embedded data set.
        out: the Python file; of one that is there, lines that a person has edited or added hold, and keep their value.
            None: nothing is written.
        name: of the data set; None: that of the folder.
        changes: settings that are known already, by dotted path; ``text`` as :func:`~apl_jax.declarations.override`.
        follow: as :func:`~apl_jax.configuration.facts.read_facts`.

    Raises :class:`~apl_jax.declarations.SettingsError` for unknown settings, and
    :class:`~apl_jax.data.files.DataError` where the data cannot be used, or ``out`` is a file of another kind.
    """
    out = None if out is None else expanded(out)
    old = read_file(out) if out is not None and out.exists() else None
    asked, changes = _data(root, name), changes or {}
    chosen = [path for path in changes if path.endswith(_CHOICES) and path != "data.name"]
    if chosen:
        found = f"`{chosen[0]}`: found {changes[chosen[0]]!r}, expected no other choice than the defaults'"
        raise SettingsError(f"{found}, for which the rules are. Try: change it in the file that is written.")
    edited = lines_of_a_person(old or "")
    base = override(Settings(), {**edited, **asked})
    base = override(base, changes, text=text)
    given = {path: _value(base, path) for path in (*edited, *changes)}
    known = asked | {path: _value(base, path) for path in changes}
    facts = read_facts(base.data, follow)
    proposal = propose(facts, base.evaluation.tiou, given).without(known)
    if out is None:
        lines = {line.path: line.value for line in proposal.lines}
        return Configured(None, facts, proposal, (), override(base, lines))
    content, differences = render(proposal, facts, known), []
    if old is not None:
        content, differences = merge(old, proposal, facts, known)
    write_text(out, content)
    return Configured(out, facts, proposal, tuple(differences), read_config(str(out)))


def _data(root: str | Path | None, name: str | None) -> dict[str, Any]:
    """The settings that say which data are meant."""
    if root is None:
        return {"data.name": name} if name else {}
    folder = expanded(root).resolve()
    return {"data.name": name or folder.name, "data.root": str(folder)}


def _value(settings: Settings, path: str) -> Any:
    value: Any = settings
    for part in path.split("."):
        value = getattr(value, part, None) if hasattr(value, part) else getattr(value.settings, part)
    return value
