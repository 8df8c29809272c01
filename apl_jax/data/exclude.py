"""Recordings that a run leaves out, as ``data.exclude`` names them: because they are missing, or known to be wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from apl_jax.data.annotations import Annotations
from apl_jax.data.files import expanded, read_text, refusal
from apl_jax.data.names import clean_name, find_recording, hint
from apl_jax.text import counted, shown

_SETTING = "`data.exclude`"


def without_excluded(annotations: Annotations, exclude: str) -> Annotations:
    """The annotations without the recordings that ``exclude`` names: ids with commas between them, or a file with them
    (.txt: one in each line, .json: a list). Classes stay, also those that no recording shows any more.

    Raises :class:`~apl_jax.data.files.DataError` for a file that cannot be read, and for ids that are not annotated,
    with the nearest.
    """
    if not exclude.strip():
        return annotations
    path = expanded(exclude)
    is_file = path.suffix.lower() in (".txt", ".json") or path.is_file()
    where = str(path) if is_file else _SETTING
    names = _read(path) if is_file else exclude.split(",")
    gone: set[str] = set()
    for name in filter(None, map(clean_name, names)):
        found = find_recording(name, annotations.videos)
        if found is None:
            words = f"{shown(name)}, which is not annotated{hint(name, annotations.videos)}"
            raise refusal(where, words, "ids of annotated recordings", "correct or remove it")
        gone.add(found)
    if len(gone) == len(annotations.videos):
        raise refusal(where, "all annotated recordings", "some of them", "leave some to train on")
    videos = {video: record for video, record in annotations.videos.items() if video not in gone}
    first = {video: c for video, c in annotations.first_classes.items() if video not in gone}
    excluded = tuple(sorted(gone))
    note = (
        f"{counted(len(gone), 'recording')} left out by {_SETTING}, such as {', '.join(map(shown, excluded[:3]))}"
        if gone
        else ""
    )
    notes = annotations.notes + ((note,) if note else ())
    return dataclasses.replace(annotations, videos=videos, first_classes=first, excluded=excluded, notes=notes)


def _read(path: Path) -> list[str]:
    """The ids of a file."""
    text = read_text(path, "a list of ids of recordings")
    if path.suffix.lower() != ".json":
        return text.splitlines()
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise refusal(str(path), shown(text), 'a JSON list of ids, ["a", "b"]', "correct the file")
    return names
