"""Prediction files: ActivityNet's submission JSON, read and written, and the tables that ``predict`` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.data.files import DataError, expanded, load_csv, load_json, refusal, write_json
from apl_jax.data.names import clean_name, cleaned_keys, find_recording, nearest, read_name
from apl_jax.data.values import LONGEST_S, is_number, number_or_text
from apl_jax.evaluation.average_precision import Instances
from apl_jax.text import from_csv, shown

_COLUMNS = ("video", "start_s", "end_s", "score")  # of the tables that predict writes, beside the label
_QUOTED = 120  # characters of an entry that a message shows


@dataclass(frozen=True)
class Submission:
    """A prediction file, and what of it lies outside the truth: rows of unknown videos or classes are left out."""

    instances: Instances
    unknown_videos: tuple[str, ...]
    unknown_labels: tuple[str, ...]
    empty: frozenset[str] = frozenset()  # videos with an empty list


def read_submission(path: str | Path, videos: Sequence[str], classes: Sequence[str] | None) -> Submission:
    """Reads ActivityNet's submission JSON, ``{"results": {video: [{"label", "score", "segment": [s, e]}]}}``, or a
    table (.csv) with the columns video, label, start_s, end_s, score.

    Video rows are positions in ``videos``, labels are positions in ``classes``; with None for these they do not matter,
    may be missing, and all become 0. Raises :class:`DataError` (a
    ``ValueError``) with file, video and field when the file is not such a JSON, or when nothing in it is known.
    """
    path = expanded(path)
    return parse_submission(read_document(path), path, videos, classes)


def read_document(path: Path) -> dict[str, Any]:
    """A prediction file as a submission document, not yet checked; tables by their suffix, .csv."""
    return _from_table(path) if path.suffix.lower() == ".csv" else load_json(path)


def _from_table(path: Path) -> dict[str, Any]:
    """A table of predictions as a submission document; a cell that is no number stays text, which is refused later."""
    results: dict[str, list[dict[str, Any]]] = {}
    for _, row in load_csv(path, _COLUMNS):
        start_s, end_s, score = (number_or_text(row[name]) for name in ("start_s", "end_s", "score"))
        label = {"label": from_csv(row["label"])} if "label" in row else {}
        found = {"segment": [start_s, end_s], "score": score, **label}
        results.setdefault(from_csv(row["video"]), []).append(found)
    return {"results": results}


def parse_submission(
    document: dict[str, Any], path: Path, videos: Sequence[str], classes: Sequence[str] | None
) -> Submission:
    """A submission document that is in memory already; ``path`` names it in messages. All else as
    :func:`read_submission`."""
    results = document.get("results")
    if not isinstance(results, dict) or not all(isinstance(entries, list) for entries in results.values()):
        expected = 'an object that maps each video to a list of {"label", "score", "segment"}'
        raise refusal(f"{path}: results", shown(results), expected, "check that this is the prediction file")
    row_of = {clean_name(name): i for i, name in enumerate(videos)}
    stored = _stored_names(path, results, row_of)
    named = classes is not None
    entries = [
        (v, *_entry(e, f"{path}: video {shown(given)}, results[{i}]", named))
        for v, given in stored.items()
        for i, e in enumerate(results[given])
    ]
    classes = ("",) if classes is None else classes
    class_of = {clean_name(name): i for i, name in enumerate(classes)}
    known = [e for e in entries if e[0] in row_of and e[1] in class_of]
    unknown_labels = sorted({label for _, label, _, _ in entries} - set(class_of))
    if entries and not known:
        raise _all_unknown(path, entries, row_of, class_of)
    instances = Instances(
        video=np.array([row_of[video] for video, *_ in known], np.int64),
        label=np.array([class_of[label] for _, label, _, _ in known], np.int64),
        segments_s=np.array([segment for _, _, segment, _ in known], np.float64).reshape(-1, 2),
        score=np.array([score for *_, score in known], np.float64),
    )
    strangers = tuple(video for video in stored if video not in row_of)
    empty = frozenset(video for video, given in stored.items() if not results[given])
    return Submission(instances, strangers, tuple(unknown_labels), empty)


def _all_unknown(
    path: Path, entries: Sequence[tuple], row_of: Mapping[str, int], class_of: Mapping[str, int]
) -> DataError:
    """The refusal of predictions of which none is of a known video and a known class: which of both is unknown, and
    what may have been meant."""
    videos, labels = ({entry[i] for entry in entries} for i in (0, 1))
    kinds = (("videos", videos, row_of), ("classes", labels, class_of))
    unknown = [(what, min(names), known) for what, names, known in kinds if not names & set(known)]
    unknown = unknown or [("classes of annotated videos", min(labels), class_of)]
    found = " and ".join(f"{what} such as {shown(name)}" for what, name, _ in unknown)
    near = [nearest(name, known) or next(iter(known), None) for _, name, known in unknown]
    expected = " and ".join(f"{what} such as {shown(n)}" for (what, _, _), n in zip(unknown, near, strict=True))
    return refusal(
        f"{path}: results",
        f"{found}, none of them known",
        expected,
        "check the subset and the spelling of the names",
    )


def _entry(entry: Any, where: str, named: bool) -> tuple[str, tuple[float, float], float]:
    """Label, segment and score of one prediction; ``where`` opens the message when one is wrong. Unless ``named``, the
    label does not matter and becomes ""."""
    expected = '{"label": name of a class, "score": finite number, "segment": [start, end] in seconds}'
    if not isinstance(entry, dict):
        raise refusal(where, shown(entry, _QUOTED), expected, "correct the entry")
    label, score, segment = (entry.get(name) for name in ("label", "score", "segment"))
    label = label if named else ""
    times_s = [t for t in segment if is_number(t)] if isinstance(segment, (list, tuple)) and len(segment) == 2 else []
    if not isinstance(label, str) or not is_number(score) or len(times_s) < 2:
        raise refusal(where, shown(entry, _QUOTED), expected, "correct the entry")
    start_s, end_s = map(float, times_s)
    if not -LONGEST_S <= start_s <= end_s <= LONGEST_S:
        found = f"[{start_s:g}, {end_s:g}]"
        raise refusal(f"{where}.segment", found, "seconds, and no end before its start", "correct the entry")
    return read_name(label, f"{where}.label") if named else "", (start_s, end_s), float(score)


def _stored_names(path: Path, results: Mapping[str, Any], row_of: Mapping[str, int]) -> dict[str, str]:
    """The names of the file by the names under which the truth knows them; of unknown ones, their clean names."""
    clean = cleaned_keys(dict(zip(results, results, strict=True)), f"{path}: results", "the name of a video")
    stored: dict[str, str] = {}
    for name, given in clean.items():
        own = find_recording(name, row_of) or name
        if own in stored:
            found = f"{shown(stored[own])} and {shown(given)}, which are one video"
            raise refusal(f"{path}: results", found, "each video once", "remove or rename one")
        stored[own] = given
    return stored


def write_submission(path: str | Path, predictions: Instances, videos: Sequence[str], classes: Sequence[str]) -> None:
    """Writes ActivityNet's submission JSON: every video listed, numbers unrounded, the file replaced whole.

    Raises ``OSError`` when the disk refuses; a file that was there before then stays as it was.
    """
    results: dict[str, list[dict[str, Any]]] = {video: [] for video in videos}
    names = "video", "label", "score", "segments_s"
    columns: list[list[Any]] = [getattr(predictions, name).tolist() for name in names]
    for video, label, score, segment in zip(*columns, strict=True):
        results[videos[int(video)]].append({"label": classes[label], "score": score, "segment": segment})
    write_json(path, {"version": "VERSION 1.3", "results": results, "external_data": {}})
