"""Annotations that are published as CSV tables: EPIC-KITCHENS-100.

In the folder: ``EPIC_100_train.csv`` and ``EPIC_100_validation.csv``, one row per narrated action (narration_id,
participant_id, video_id, start_timestamp and stop_timestamp as HH:MM:SS.ff, verb_class, noun_class; more columns do no
harm); ``EPIC_100_video_info.csv`` (video_id, duration in seconds, fps); and, for the names of the classes,
``EPIC_100_verb_classes.csv`` and ``EPIC_100_noun_classes.csv`` (id, key).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apl_jax.data.annotations import Annotations, Reading, Row, VideoRecord, read_segment, with_rows
from apl_jax.data.files import load_csv, refusal
from apl_jax.data.names import clean_name
from apl_jax.data.values import LONGEST_S, is_rate
from apl_jax.text import shown

_SUBSETS = {"training": "EPIC_100_train.csv", "validation": "EPIC_100_validation.csv"}
_CLASSES = {"verb": 97, "noun": 300}
_TIME = re.compile(r"([0-9]{1,3}):([0-5][0-9]):([0-5][0-9](?:\.[0-9]{1,9})?)")
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,18})?")
_REPAIR = "correct the row, or copy the published file again"


@dataclass(frozen=True)
class _Narration:
    """One row of a table of actions."""

    where: str
    video: str
    subject: int | None
    segment_s: tuple[float, float]
    classes: tuple[int, ...]  # verb, noun, or both, as the task asks


def holds_epic(root: Path) -> bool:
    """Whether a folder holds a table of EPIC-KITCHENS-100's actions."""
    return any((root / name).is_file() for name in _SUBSETS.values())


def read_epic(root: Path, task: str, *, strict: bool = True) -> Annotations:
    """The published tables of EPIC-KITCHENS-100 as records of the subsets "training" and "validation".

    ``task`` says what a class is: "verb" (97), "noun" (300), or "action": each pair of both that occurs in training,
    named "verb noun", in the order of their numbers. Detections of actions come from a run of their own with task
    "action"; scores of a verb run and a noun run are not combined. Validation actions whose pair does not occur in
    training cannot be predicted and are left out, with a note. ``strict`` as in
    :func:`~apl_jax.data.annotations.read_annotations`. Times are those of the timestamps; the fps of a record is its
    video's own, not that of extracted frames. ``variant`` is the task.

    Raises :class:`~apl_jax.data.files.DataError`, which names file, line, video and column.
    """
    kinds = ("verb", "noun") if task == "action" else (task,)
    names = [_class_names(root, kind) for kind in kinds]
    clocks = _video_clocks(root)
    tables = {subset: _read_table(root / file, kinds, names) for subset, file in _SUBSETS.items()}
    _check_apart(root, tables)
    if task == "action":
        keys = sorted({row.classes for row in tables["training"]})
    else:
        keys = [(c,) for c in range(len(names[0]))]
    classes = [" ".join(name[c] for name, c in zip(names, key, strict=True)) for key in keys]
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise refusal(
            f"{root}: classes", f"{twice!r} for two of them", "one name each", "correct the tables of classes"
        )
    named, notes, videos, first = dict(zip(keys, classes, strict=True)), [], {}, {}
    index = {name: i for i, name in enumerate(classes)}
    for subset, rows in tables.items():
        known = [row for row in rows if row.classes in named]
        if len(known) < len(rows):
            count = len({row.classes for row in rows} - set(named))
            notes.append(
                f"{root / _SUBSETS[subset]}: {len(rows) - len(known)} of {len(rows)} actions left out, of {count} "
                f"pairs of verb and noun that training does not show"
            )
        reading = Reading(root / _SUBSETS[subset], strict)
        records, labels = _records(reading, subset, rows, named, clocks)
        videos |= {record.id: with_rows(record, rows, index) for record, rows in records}
        first |= {video: index[name] for video, name in labels.items()}
        notes.extend(reading.notes())
    return Annotations("", tuple(classes), videos, tuple(notes), first, variant=task)


def _records(
    reading: Reading,
    subset: str,
    narrations: list[_Narration],
    named: dict[tuple[int, ...], str],
    clocks: dict[str, tuple[float, float]],
) -> tuple[list[tuple[VideoRecord, list[Row]]], dict[str, str]]:
    """The videos of one table with their instances, and the class of each video's first; unnamed classes are left out.

    A video all of whose actions are left out stays, without annotations.
    """
    blank = np.zeros((0, 2)), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool)
    records: dict[str, tuple[VideoRecord, list[Row]]] = {}
    first: dict[str, str] = {}
    for row in narrations:
        if row.video not in clocks:
            found = "a video without duration and rate"
            expected = "a row of EPIC_100_video_info.csv for it"
            raise refusal(row.where, found, expected, "copy the published EPIC_100_video_info.csv beside the table")
        duration_s, fps = clocks[row.video]
        if row.video not in records:
            records[row.video] = VideoRecord(row.video, subset, duration_s, fps, row.subject, *blank), []
        if row.classes not in named:
            continue
        label = named[row.classes]
        first.setdefault(row.video, label)
        segment_s = read_segment(reading, row.video, row.where, duration_s, list(row.segment_s))
        if segment_s is not None:
            records[row.video][1].append(Row(segment_s, label, weight=1.0, ignore=False))
    return list(records.values()), first


def _check_apart(root: Path, tables: dict[str, list[_Narration]]) -> None:
    """Refuses a video in both tables: it would be trained on and evaluated."""
    training = {row.video for row in tables["training"]}
    shared = next((row for row in tables["validation"] if row.video in training), None)
    if shared is not None:
        found = f"a video that {root / _SUBSETS['training']} holds too"
        raise refusal(shared.where, found, "each video in one of the tables", "copy the published tables again")


def _read_table(path: Path, kinds: tuple[str, ...], names: list[tuple[str, ...]]) -> list[_Narration]:
    """The rows of one table of actions, each checked on its own."""
    columns = ["narration_id", "video_id", "start_timestamp", "stop_timestamp", *(f"{kind}_class" for kind in kinds)]
    narrations, seen = [], set()
    for line, row in load_csv(path, columns):
        where = f"{path}: line {line}, video {row['video_id']!r}"
        if not row["video_id"]:
            raise refusal(where, "no name", "a video, such as P01_01", _REPAIR)
        if row["narration_id"] in seen:
            raise refusal(f"{where}, narration_id", f"{row['narration_id']!r} again", "each narration once", _REPAIR)
        seen.add(row["narration_id"])
        person = re.fullmatch(r"P([0-9]{1,4})", row.get("participant_id", ""))
        times = [_seconds(f"{where}, {column}", row[column]) for column in ("start_timestamp", "stop_timestamp")]
        classes = tuple(
            _class_number(f"{where}, {kind}_class", row[f"{kind}_class"], len(known))
            for kind, known in zip(kinds, names, strict=True)
        )
        subject = int(person[1]) if person else None
        narrations.append(_Narration(where, clean_name(row["video_id"]), subject, (times[0], times[1]), classes))
    return narrations


def _video_clocks(root: Path) -> dict[str, tuple[float, float]]:
    """Duration in seconds and frames per second of every video of the table of videos."""
    path = root / "EPIC_100_video_info.csv"
    if not path.is_file():
        remedy = "copy it from EPIC-KITCHENS-100's annotations beside the tables of actions"
        raise refusal(str(path), "no such file", "the table of videos (video_id, duration, fps)", remedy)
    clocks: dict[str, tuple[float, float]] = {}
    for line, row in load_csv(path, ("video_id", "duration", "fps")):
        where = f"{path}: line {line}, video {row['video_id']!r}"
        if clean_name(row["video_id"]) in clocks:
            raise refusal(where, "it a second time", "each video once", "remove one of its rows")
        duration_s, fps = (_positive(f"{where}, {column}", row[column]) for column in ("duration", "fps"))
        if not is_rate(fps):
            raise refusal(f"{where}, fps", shown(row["fps"]), "a rate from 0.001 to 1e6", _REPAIR)
        clocks[clean_name(row["video_id"])] = duration_s, fps
    return clocks


def _class_names(root: Path, kind: str) -> tuple[str, ...]:
    """Names of all classes of a kind, by number; their numbers where the folder has no table of them."""
    paths = [root / f"EPIC_100_{kind}_classes{suffix}.csv" for suffix in ("", "_v2")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return tuple(map(str, range(_CLASSES[kind])))
    names: dict[int, str] = {}
    for line, row in load_csv(path, ("id", "key")):
        where = f"{path}: line {line}"
        number = _class_number(f"{where}, id", row["id"], _CLASSES[kind])
        name = clean_name(row["key"])
        if number in names or not name or name in names.values():
            found = f"class {number}, {row['key']!r}" + (", once more" if row["key"] else "")
            raise refusal(where, found, "each number and each name once", _REPAIR)
        names[number] = name
    if sorted(names) != list(range(len(names))):
        gap = next(i for i in range(len(names)) if i not in names)
        raise refusal(f"{path}: id", f"no class {gap}", f"every number from 0 to {max(names)}", _REPAIR)
    return tuple(names[i] for i in range(len(names)))


def _class_number(where: str, text: str, count: int) -> int:
    """A number in [0, count)."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) >= count:
        raise refusal(where, repr(text)[:80], f"a whole number from 0 to {count - 1}", _REPAIR)
    return int(text)


def _seconds(where: str, text: str) -> float:
    """A timestamp in seconds."""
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise refusal(where, repr(text)[:80], "a time as HH:MM:SS.ff", _REPAIR)
    return 3600.0 * int(parts[1]) + 60.0 * int(parts[2]) + float(parts[3])


def _positive(where: str, text: str) -> float:
    """A positive number."""
    if not _NUMBER.fullmatch(text) or not 0 < float(text) <= LONGEST_S:
        raise refusal(where, repr(text)[:80], "a positive number", _REPAIR)
    return float(text)
