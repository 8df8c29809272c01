"""Prediction files: ActivityNet's submission JSON, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.data.files import load_json, refusal, write_json
from apl_jax.evaluation.average_precision import Instances


@dataclass(frozen=True)
class Submission:
    """A prediction file, and what of it lies outside the truth: rows of unknown videos or classes are left out."""

    instances: Instances
    unknown_videos: tuple[str, ...]
    unknown_labels: tuple[str, ...]


def read_submission(path: str | Path, videos: Sequence[str], classes: Sequence[str] | None) -> Submission:
    """Reads ActivityNet's submission JSON, ``{"results": {video: [{"label", "score", "segment": [s, e]}]}}``.

    Video rows are positions in ``videos``, labels are positions in ``classes``; with None for these they do not matter
    and all become 0. Raises :class:`DataError` (a
    ``ValueError``) with file, video and field when the file is not such a JSON, or when nothing in it is known.
    """
    path = Path(path).expanduser()
    return parse_submission(load_json(path), path, videos, classes)


def parse_submission(
    document: dict[str, Any], path: Path, videos: Sequence[str], classes: Sequence[str] | None
) -> Submission:
    """A submission document that is in memory already; ``path`` names it in messages. All else as
    :func:`read_submission`."""
    results = document.get("results")
    if not isinstance(results, dict) or not all(isinstance(entries, list) for entries in results.values()):
        expected = 'an object that maps each video to a list of {"label", "score", "segment"}'
        raise refusal(f"{path}: results", str(results)[:80], expected, "check that this is the prediction file")
    entries = [(v, *_entry(e, f"{path}: video {v!r}, results[{i}]")) for v in results for i, e in enumerate(results[v])]
    if classes is None:
        classes, entries = ("",), [(video, "", segment, score) for video, _, segment, score in entries]
    row_of, class_of = {name: i for i, name in enumerate(videos)}, {name: i for i, name in enumerate(classes)}
    known = [e for e in entries if e[0] in row_of and e[1] in class_of]
    unknown_labels = sorted({label for _, label, _, _ in entries} - set(class_of))
    if entries and not known:
        found = f"videos such as {entries[0][0]!r} and classes such as {entries[0][1]!r}, none of them annotated"
        expected = f"videos such as {next(iter(videos), None)!r} and classes such as {next(iter(classes), None)!r}"
        raise refusal(f"{path}: results", found, expected, "check the subset and the spelling of the names")
    instances = Instances(
        video=np.array([row_of[video] for video, *_ in known], np.int64),
        label=np.array([class_of[label] for _, label, _, _ in known], np.int64),
        segments_s=np.array([segment for _, _, segment, _ in known], np.float64).reshape(-1, 2),
        score=np.array([score for *_, score in known], np.float64),
    )
    return Submission(instances, tuple(video for video in results if video not in row_of), tuple(unknown_labels))


def _entry(entry: Any, where: str) -> tuple[str, tuple[float, float], float]:
    """Label, segment and score of one prediction; ``where`` opens the message when one is wrong."""
    try:
        label, (start, end) = entry["label"], entry["segment"]
        numbers = float(start), float(end), float(entry["score"])
        if not isinstance(label, str) or not np.isfinite(numbers).all():
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        expected = '{"label": name of a class, "score": finite number, "segment": [start, end] in seconds}'
        raise refusal(where, str(entry)[:120], expected, "correct the entry") from None
    return label, numbers[:2], numbers[2]


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
