"""One rule for the names of recordings and classes, in every file: annotations, predictions, splits, class scores,
thresholds, features.

A name is read without spaces around it, and composed (Unicode's NFC): files that differ in no more than that mean the
same. Names that then still differ, but look alike (case, spaces, underscores, width of letters, characters that cannot
be seen, letters of two alphabets), stay different names, and are said. A recording may be called ``v_<id>``
(ActivityNet) in one file and ``<id>`` in another.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from apl_jax.data.files import refusal
from apl_jax.text import counted, shown

MOST_CHARACTERS = 500
_PREFIX = "v_"
_EXTENSION = re.compile(r"\.(mp4|avi|mkv|webm|mov|m4v|mpg|mpeg|npy|npz|csv|h5|hdf5)$", re.IGNORECASE)  # of files
_ALPHABETS = {"LATIN", "CYRILLIC", "GREEK"}  # of which letters look alike
_SHOWN = 3  # groups of names that a note lists
T = TypeVar("T")


def clean_name(name: str) -> str:
    """A name as it is compared: without spaces around it, composed."""
    return unicodedata.normalize("NFC", name[: 4 * MOST_CHARACTERS]).strip()


def read_name(value: Any, where: str, what: str = "the name of a class") -> str:
    """A name from a file. Raises :class:`~apl_jax.data.files.DataError` for what is no text, empty or too long."""
    if not isinstance(value, str) or not value.strip():
        raise refusal(where, "no value" if value is None else shown(value), what, "add the name")
    name = clean_name(value)
    if len(name) > MOST_CHARACTERS:
        expected = f"{what}, of at most {MOST_CHARACTERS} characters"
        raise refusal(where, f"{shown(value, 40)}, {len(value):,} characters long", expected, "shorten it")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise refusal(where, f"{shown(value)}, which is no UTF-8", what, "correct the name") from None
    return name


def cleaned_keys(entries: Mapping[str, T], where: str, what: str) -> dict[str, T]:
    """A mapping from names as files spell them, by their clean names. Raises :class:`~apl_jax.data.files.DataError`
    where two of them are one."""
    found: dict[str, T] = {}
    spelt: dict[str, str] = {}
    for name, value in entries.items():
        clean = read_name(name, where, what)
        if clean in found:
            found_words = f"{shown(spelt[clean])} and {shown(name)}, which are one name"
            raise refusal(where, found_words, f"{what}, each once", "remove or rename one")
        found[clean], spelt[clean] = value, name
    return found


def loose(name: str) -> str:
    """What names that look alike have in common: without case, spaces, underscores, hyphens, width of letters and
    characters that cannot be seen."""
    folded = unicodedata.normalize("NFKC", _visible(name)).casefold()
    return "".join(folded.replace("_", " ").replace("-", " ").split())


def loose_recording(name: str) -> str:
    """What names of recordings that look alike have in common: without case, width of letters, ``v_`` before them and
    the extension of a file behind them. Separators stay: ``P1_11`` and ``P11_1`` are two recordings."""
    folded = unicodedata.normalize("NFKC", _EXTENSION.sub("", clean_name(_visible(name)))).casefold()
    return folded.removeprefix(_PREFIX)


def _visible(name: str) -> str:
    """The name without formatting characters, such as spaces of no width."""
    return name if name.isprintable() else "".join(c for c in name if unicodedata.category(c) != "Cf")


def _alphabets(name: str) -> set[str]:
    """Which of the alphabets whose letters look alike a name is written in."""
    first_words = {unicodedata.name(c, "").partition(" ")[0] for c in name if not c.isascii() and c.isalpha()}
    latin = {"LATIN"} if any(c.isascii() and c.isalpha() for c in name) else set()
    return (first_words | latin) & _ALPHABETS


def refuse_twins(names: Iterable[str], where: str) -> None:
    """Refuses two recordings of which one is the other with ``v_`` before it: features and predictions of either would
    be found for both. Raises :class:`~apl_jax.data.files.DataError`."""
    names = set(names)
    twins = sorted(name for name in names if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) in names)
    if twins:
        found = f"{shown(twins[0].removeprefix(_PREFIX))} and {shown(twins[0])}, which are one recording"
        raise refusal(where, found, "each recording once", "remove or rename one")


def lookalikes(names: Iterable[str], alike: Callable[[str], str] = loose) -> list[tuple[str, ...]]:
    """The groups of different names that look alike; ``alike`` is :func:`loose` or :func:`loose_recording`."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(alike(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def lookalike_notes(where: str, classes: Iterable[str], recordings: Iterable[str]) -> tuple[str, ...]:
    """A sentence for the classes of a file that look alike, and one for its recordings; none where there are none."""
    classes = tuple(classes)
    kinds = ("classes", lookalikes(classes)), ("recordings", lookalikes(recordings, loose_recording))
    notes = tuple(
        f"{where}: {counted(len(groups), 'group')} of {what} with names that look alike, but stay different: "
        + "; ".join(" and ".join(map(shown, group)) for group in groups[:_SHOWN])
        for what, groups in kinds
        if groups
    )
    mixed = [name for name in classes if len(_alphabets(name)) > 1]
    if not mixed:
        return notes
    named = ", ".join(f"{shown(name)} ({ascii(name)[1:-1]})" for name in mixed[:_SHOWN])
    return (*notes, f"{where}: classes whose names have letters of two alphabets that look the same: {named}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a person may have meant: one that looks alike, else one that is spelt nearly so."""
    known = list(known)
    for alike in (loose_recording, loose):
        wanted = alike(name)
        found = next((candidate for candidate in known if alike(candidate) == wanted), None)
        if found is not None:
            return found
    return next(iter(difflib.get_close_matches(name, known, 1)), None)


def hint(name: str, known: Iterable[str]) -> str:
    """Words for a message about an unknown name: ", the nearest is 'x'", or nothing."""
    near = nearest(name, known)
    return "" if near is None else f", the nearest is {shown(near)}"


def find_recording(name: str, known: Mapping[str, Any] | frozenset[str] | set[str]) -> str | None:
    """The name under which ``known`` (clean names) holds a recording: its own, else with or without ``v_`` before it;
    None where there is none."""
    clean = clean_name(name)
    bare = clean.removeprefix(_PREFIX)
    return next((candidate for candidate in (clean, f"{_PREFIX}{bare}", bare) if candidate in known), None)
