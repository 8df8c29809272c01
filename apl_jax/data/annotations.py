"""Annotation files: the ActivityNet JSON layout in, checked records out.

Layout: ``database[id] = {subset, duration, fps, subject, annotations: [{segment: [start, end], label, label_id}]}``,
times in seconds. ``fps``, ``subject``, ``label_id`` may be absent. Without ``annotations`` (or with null) nobody has
annotated the recording; with an empty list somebody has, and found nothing in it. Pseudo labels are read by this same
reader: each annotation may also carry ``weight`` (in [0, 1]) and ``ignore`` (bool); any other key is tolerated. BMN's
ActivityNet layout (no ``database``, ``duration_second``, subsets in ``*_video_info.csv`` beside the file) is read too;
CSV tables are the business of ``annotation_tables.py``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.data.files import expanded, load_csv, load_json, refusal
from apl_jax.data.keys import misspelt_keys
from apl_jax.data.names import clean_name, cleaned_keys, lookalike_notes, read_name, refuse_twins
from apl_jax.data.values import LONGEST_S, in_seconds, is_number, is_rate
from apl_jax.text import shown

_TOLERANCE_S = 0.5  # players and annotators disagree this much about where a recording ends ...
_TOLERANCE_SHARE = 0.01  # ... or by 1 % of it (ActivityNet v_m--b-Ltjm_Y: 0.85 s of 143 s)
_VIDEO_KEYS = ("subset", "duration", "fps", "subject", "annotations", "ignored")
_ROW_KEYS = ("segment", "label", "label_id", "weight", "ignore")
AGNOSTIC = "action"  # the one class where none are told apart
_LENIENT = "correct the file, or read it as published with `data.strict_annotations=False`"


@dataclass(frozen=True, eq=False)
class VideoRecord:
    """One recording and its N annotated instances."""

    id: str
    subset: str  # lower case, "" when the file states none
    duration_s: float
    fps: float  # samples or frames per second; 0 when the file states none
    subject: int | None
    segments_s: np.ndarray  # [N, 2] float64, start < end
    labels: np.ndarray  # [N] int32, index into Annotations.classes
    weight: np.ndarray  # [N] float32 in [0, 1]; 1 for annotations made by people
    ignore: np.ndarray  # [N] bool, the instance teaches nothing and silences the background loss under it
    annotated: bool = True  # whether anybody looked: N = 0 means "nothing happens in it" only then

    def without_annotations(self) -> VideoRecord:
        """The same recording as one that nobody annotated."""
        return dataclasses.replace(
            self,
            segments_s=np.zeros((0, 2)),
            labels=np.zeros(0, np.int32),
            weight=np.zeros(0, np.float32),
            ignore=np.zeros(0, bool),
            annotated=False,
        )

    @property
    def present_classes(self) -> set[int]:
        """The classes of the instances that count: those that are to be ignored show no class."""
        return set(self.labels[~self.ignore].tolist())


def unannotated(video: str, duration_s: float, fps: float, subset: str = "") -> VideoRecord:
    """A recording of which nothing is known but its clock; a duration of nan is not known either."""
    blank = np.zeros((0, 2)), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool)
    return VideoRecord(video, subset, duration_s, fps, None, *blank, annotated=False)


@dataclass(frozen=True, eq=False)
class Annotations:
    """An annotation file as records; ``notes`` says in words what a lenient or tolerant reading changed."""

    version: str
    classes: tuple[str, ...]  # by label_id where every class has one, else by name
    videos: dict[str, VideoRecord]
    notes: tuple[str, ...] = ()
    # Class of each video's first annotation, also of one that reading dropped: published splits go by it (spec 3.8).
    first_classes: dict[str, int] = field(default_factory=dict)
    variant: str = ""  # which of several published versions of the data set this is (data/published.py)
    excluded: tuple[str, ...] = ()  # ids that `data.exclude` has left out, sorted

    def agnostic(self) -> Annotations:
        """The same instances, all of one class; those that differed in nothing but their class are one."""
        videos = {}
        for video, record in self.videos.items():
            _, first = np.unique(record.segments_s, axis=0, return_index=True)
            kept = np.sort(first)
            videos[video] = dataclasses.replace(
                record, segments_s=record.segments_s[kept], labels=np.zeros(len(kept), np.int32),
                weight=record.weight[kept], ignore=record.ignore[kept],
            )  # fmt: skip
        first_classes = dict.fromkeys(self.first_classes, 0)
        return dataclasses.replace(self, classes=(AGNOSTIC,), videos=videos, first_classes=first_classes)


@dataclass
class Reading:
    """What one pass over a file collects; ``strict`` as in :func:`read_annotations`."""

    path: Path
    strict: bool
    clocks: bool = True  # whether every video must have a duration
    label_ids: dict[str, int | None] = field(default_factory=dict)
    clipped: list[str] = field(default_factory=list)  # videos, one entry per segment
    outside: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    odd_keys: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # unknown and known -> videos

    def notes(self) -> tuple[str, ...]:
        """One sentence per kind of deviation met."""
        kinds = (
            (self.clipped, "cut to the end of their video"),
            (self.outside, "kept although they leave their video"),
            (self.empty, "left out because they have no length"),
        )
        return tuple(
            f"{self.path}: {len(hits)} segments {what}, in {len(set(hits))} videos such as {hits[0]}"
            for hits, what in kinds
            if hits
        ) + tuple(
            f"{self.path}: the unknown key {shown(key)} resembles {near!r} and is not read, in {len(set(hits))} videos "
            f"such as {hits[0]}"
            for (key, near), hits in self.odd_keys.items()
        )


@dataclass(frozen=True)
class Row:
    """One instance, its class still a name."""

    segment_s: tuple[float, float]
    label: str
    weight: float
    ignore: bool


def read_annotations(
    path: str | Path, classes: tuple[str, ...] | None = None, *, strict: bool = True, clocks: bool = True
) -> Annotations:
    """Reads an annotation file.

    ``classes`` fixes the label order; a label that is not among them is then an error. ``strict`` refuses segments
    without length and those that leave their video by more than 0.5 s or 1 % of its duration (smaller overshoots are
    cut). ``strict=False`` keeps segments as they stand and drops those without length: THUMOS14 as published has 30
    instances outside their video and scores them, ActivityNet 1.3 has 12 empty ones (spec 1.2 and 8, row 18). Without
    ``clocks`` a video may lack its duration, which is then nan: scoring needs none. Times are numbers of seconds, or
    text that can only mean seconds ("62.5", "01:02.5", "0:01:02.5").

    Raises :class:`DataError`, which names file, video and key.
    """
    path = expanded(path)
    return parse_annotations(load_json(path), path, classes, strict=strict, clocks=clocks)


def parse_annotations(
    document: dict[str, Any], path: Path, classes: tuple[str, ...] | None = None, *, strict: bool = True,
    clocks: bool = True,
) -> Annotations:  # fmt: skip
    """An annotation document that is in memory already; ``path`` names it in messages. All else as
    :func:`read_annotations`."""
    database = _database(path, document)
    reading = Reading(path, strict, clocks)
    drafts = {video: _read_video(reading, video, entry) for video, entry in database.items()}
    names = tuple(classes) if classes is not None else _vocabulary(reading)
    index = {clean_name(name): i for i, name in enumerate(names)}
    for name in reading.label_ids:
        if name not in index:
            video = next((v for v, (_, rows, _) in drafts.items() if any(r.label == name for r in rows)), None)
            raise refusal(
                f"{path}: video {video!r}, label" if video else f"{path}: label",
                f"unknown class {name!r}",
                f"one of {', '.join(names)}",
                "correct the label, or use a file of the same data set",
            )
    videos = {video: with_rows(record, rows, index) for video, (record, rows, _) in drafts.items()}
    first = {video: index[label] for video, (_, _, label) in drafts.items() if label is not None}
    refuse_twins(videos, f"{path}: database")
    notes = reading.notes() + lookalike_notes(str(path), reading.label_ids, videos)
    return Annotations(str(document.get("version", "")), names, videos, notes, first)


def _database(path: Path, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The videos of either layout, in the ActivityNet layout's keys."""
    database = document.get("database")
    if database is None:
        if not any(isinstance(v, dict) and "duration_second" in v for v in document.values()):
            raise refusal(
                str(path),
                f"no key 'database' (keys: {', '.join(list(document)[:8]) or 'none'})",
                "the ActivityNet layout, database[video] = {subset, duration, annotations}",
                "check that this is the annotation file",
            )
        database = _from_bmn(path, document)
    if not isinstance(database, dict) or not database:
        found = "no videos" if not database else f"a {type(database).__name__}"
        raise refusal(f"{path}: database", found, "an object with at least one video", "check the annotation file")
    return cleaned_keys(database, f"{path}: database", "the name of a video")


def _from_bmn(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """BMN's ActivityNet entries under ActivityNet's keys; subsets come from the table of videos beside the file."""
    table = path.with_name(path.stem.removesuffix("_anno") + "_video_info.csv")
    if not table.is_file():
        raise refusal(f"{path}", "BMN's layout without its table of videos", f"{table}", "put the csv beside the json")
    subsets = {clean_name(row["video"]): row["subset"] for _, row in load_csv(table, ("video", "subset"))}
    result: dict[str, Any] = {}
    for video, entry in document.items():
        if not isinstance(entry, dict):
            raise refusal(f"{path}: video {video!r}", repr(entry)[:80], "an object", "correct the entry")
        seconds, frames = entry.get("duration_second"), entry.get("duration_frame")
        rate: dict[str, Any] = {}
        if is_number(seconds) and is_number(frames) and seconds > 0 and frames > 0:
            rate = {"fps": frames / seconds}
        clock = {} if seconds is None else {"duration": seconds}
        rest = {k: v for k, v in entry.items() if k not in ("duration_second", "duration_frame", "duration")}
        result[video] = {**rest, **rate, **clock, "subset": subsets.get(clean_name(video), "")}
    return result


def _read_video(reading: Reading, video: str, entry: Any) -> tuple[VideoRecord, list[Row], str | None]:
    """One entry of ``database``, checked, and the class of its first annotation; labels are still names."""
    where = f"{reading.path}: video {video!r}"
    if not isinstance(entry, dict):
        raise refusal(where, repr(entry), "an object {subset, duration, annotations}", "correct the entry")
    for odd in misspelt_keys(entry, _VIDEO_KEYS, where):
        reading.odd_keys.setdefault(odd, []).append(video)
    duration, fps, subject = in_seconds(entry.get("duration")), entry.get("fps", 0), entry.get("subject")
    if duration is None and not reading.clocks:
        duration = math.nan
    elif not is_number(duration) or not 0 < duration <= LONGEST_S:
        found = "no value" if "duration" not in entry else shown(entry["duration"])
        raise refusal(f"{where}, duration", found, "a positive number of seconds", "add the length of the recording")
    if "fps" in entry and not is_rate(fps):
        expected = "a positive number of samples per second (0.001 to 1e6)"
        raise refusal(f"{where}, fps", shown(fps), expected, "correct the entry")
    if subject is not None and (isinstance(subject, bool) or not isinstance(subject, int)):
        raise refusal(f"{where}, subject", repr(subject), "a whole number", "number the subjects, or leave it out")
    subset, listed = entry.get("subset", ""), entry.get("annotations")
    annotated = listed is not None
    listed = listed if annotated else []
    if not isinstance(subset, str):
        raise refusal(f"{where}, subset", repr(subset), 'a word such as "training"', "correct the entry")
    if not isinstance(listed, list):
        raise refusal(f"{where}, annotations", repr(listed), "a list", "correct the entry")
    ignored = entry.get("ignored", [])
    if not isinstance(ignored, list):
        raise refusal(f"{where}, ignored", repr(ignored), "a list", "correct the entry")
    rows = [_read_row(reading, video, f"{where}, annotations[{i}]", float(duration), a) for i, a in enumerate(listed)]
    for i, a in enumerate(ignored):  # what pseudo-labelling considered and did not select
        row = _read_row(reading, video, f"{where}, ignored[{i}]", float(duration), a)
        rows.append(row and dataclasses.replace(row, ignore=True))
    blank = np.zeros((0, 2)), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool)
    record = VideoRecord(video, subset.lower(), float(duration), float(fps), subject, *blank, annotated)
    return record, [row for row in rows if row is not None], clean_name(listed[0]["label"]) if listed else None


def _read_row(reading: Reading, video: str, where: str, duration_s: float, entry: Any) -> Row | None:
    """One annotation, or None where a lenient reading drops it."""
    if not isinstance(entry, dict):
        raise refusal(where, repr(entry), "an object {segment, label}", "correct the entry")
    for odd in misspelt_keys(entry, _ROW_KEYS, where):
        reading.odd_keys.setdefault(odd, []).append(video)
    label = read_name(entry.get("label"), f"{where}.label")
    weight, ignore = entry.get("weight", 1.0), entry.get("ignore", False)
    if not is_number(weight) or not 0 <= weight <= 1:
        raise refusal(f"{where}.weight", repr(weight), "a number in [0, 1]", "correct it, or leave it out")
    if not isinstance(ignore, bool):
        raise refusal(f"{where}.ignore", repr(ignore), "true or false", "correct it, or leave it out")
    _note_label(reading, where, label, entry.get("label_id"))
    segment_s = read_segment(reading, video, where, duration_s, entry.get("segment"))
    return None if segment_s is None else Row(segment_s, label, float(weight), ignore)


def read_segment(
    reading: Reading, video: str, where: str, duration_s: float, segment: Any
) -> tuple[float, float] | None:
    """Start and end in seconds, cut to the video within the tolerance; None: dropped by a lenient reading.

    ``where`` names the annotation in refusals (:class:`DataError`).
    """
    where = f"{where}.segment"
    times = [in_seconds(time) for time in segment] if isinstance(segment, list) else []
    if len(times) != 2 or not all(map(is_number, times)):
        found = "no value" if segment is None else shown(segment)
        raise refusal(where, found, "two finite numbers, start and end in seconds", "correct the entry")
    start, end = map(float, times)
    if max(abs(start), abs(end)) > LONGEST_S:
        raise refusal(where, f"[{start:g}, {end:g}]", f"times of at most {LONGEST_S:g} seconds", "correct the entry")
    if end <= start:
        if reading.strict or end < start:
            remedy = _LENIENT if end == start else "correct the entry"
            raise refusal(where, f"[{start:g}, {end:g}]", "an end after the start", remedy)
        reading.empty.append(video)
        return None
    if math.isnan(duration_s) or (start >= 0 and end <= duration_s):
        return start, end
    if not reading.strict:
        reading.outside.append(video)
        return start, end
    tolerance = max(_TOLERANCE_S, _TOLERANCE_SHARE * duration_s)
    if start < -tolerance or end > duration_s + tolerance or start >= duration_s or end <= 0:
        found = f"[{start:g}, {end:g}], outside its video"
        raise refusal(where, found, f"times within [0, {duration_s:g}] seconds", _LENIENT)
    reading.clipped.append(video)
    return max(start, 0.0), min(end, duration_s)


def _note_label(reading: Reading, where: str, label: str, label_id: Any) -> None:
    """Remembers the number of a class; the same class under two numbers is an error."""
    if label_id is not None and (isinstance(label_id, bool) or not isinstance(label_id, int)):
        raise refusal(f"{where}.label_id", repr(label_id), "a whole number", "correct it, or leave it out")
    known = reading.label_ids.get(label)
    if known is not None and label_id is not None and known != label_id:
        found = f"{label_id} for {label!r}, which was {known} before"
        raise refusal(f"{where}.label_id", found, "one number per class", "correct the label or its number")
    reading.label_ids[label] = known if label_id is None else label_id


def _vocabulary(reading: Reading) -> tuple[str, ...]:
    """Class names, by number where all have one."""
    ids = reading.label_ids
    owner: dict[int, str] = {}
    for name, number in ids.items():
        if number is not None and owner.setdefault(number, name) != name:
            found = f"label_id {number} for both {owner[number]!r} and {name!r}"
            raise refusal(f"{reading.path}: label_id", found, "one class per number", "correct the labels")
    if len(owner) == len(ids):
        return tuple(owner[number] for number in sorted(owner))
    return tuple(sorted(ids))


def with_rows(record: VideoRecord, rows: list[Row], index: dict[str, int]) -> VideoRecord:
    """The record with its instances; ``index`` gives each name its number."""
    return dataclasses.replace(
        record,
        segments_s=np.array([r.segment_s for r in rows], np.float64).reshape(-1, 2),
        labels=np.array([index[r.label] for r in rows], np.int32),
        weight=np.array([r.weight for r in rows], np.float32),
        ignore=np.array([r.ignore for r in rows], bool),
    )
