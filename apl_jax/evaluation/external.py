"""The external protocol: segments of the detector, classes of a video-level classifier (spec 1.9 and 2.8).

Many published numbers on ActivityNet and THUMOS14 came about this way, with the scores of CUHK and of UntrimmedNet.
Those classifiers were trained with the class labels of all videos: a detector taught with a tenth of the labels is then
scored with the help of the other nine tenths. Hence ``strict``, the model's own classes, is the default, every
result file names its protocol, and no table holds both.

A file of class scores holds a probability for every evaluated video and every class of the data set; further videos and
classes are left out, so that UntrimmedNet's 101 classes of UCF101 serve THUMOS14's 20. Either of:

JSON
    ``{"class": [names], "results": {video: [one score per name]}}``, CUHK's layout; ``classes`` is read as ``class``.
CSV
    the header ``video,<name of a class>,...``, then one row per video.

Classes are matched by name, never by place. Case, spaces and underscores are forgiven where only one class can be
meant; videos go by their id with or without ActivityNet's ``v_``.

The segments should be those of class-agnostic NMS (``detector.decoding.class_wise=False``), as in ActionFormer's
fusion. Class-wise NMS leaves copies of an action under different classes: exact ones become one segment here, near ones
stay, and all but one of them are false detections.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.data.files import expanded, file_digest, load_csv, load_json, refusal
from apl_jax.data.names import clean_name, cleaned_keys, find_recording, hint, loose, read_name
from apl_jax.data.values import number_or_text
from apl_jax.evaluation.average_precision import Instances
from apl_jax.settings import EvaluationSettings

_SHOWN = 5  # names that a message lists
_ROUNDING = 1e-6  # by which the softmax of a float32 may exceed 1


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of videos in the order of a data set's classes; ``notes`` says in words what was forgiven or left out."""

    scores: np.ndarray  # [V, C] float64 in [0, 1]
    notes: tuple[str, ...]


def check_protocol(evaluation: EvaluationSettings) -> None:
    """Refuses a protocol without its file, and a file without its protocol."""
    if (evaluation.protocol == "external") != bool(evaluation.external_scores):
        found = f"{evaluation.external_scores!r} with protocol {evaluation.protocol}"
        expected = "a file of class scores with protocol external, and none with strict"
        raise refusal("`evaluation.external_scores`", found, expected, "`evaluation.protocol=external`")


def protocol_words(evaluation: EvaluationSettings, class_agnostic: bool = False) -> str:
    """The protocol as result files name it: "strict", or "external (top 2, sqrt, <file name>)".

    What is scored under ``strict`` when classes are not told apart is another thing, and is called so.
    """
    if evaluation.protocol == "strict":
        return "strict, class-agnostic" if class_agnostic else "strict"
    name = Path(evaluation.external_scores).name
    return f"external (top {evaluation.external_top_k}, {evaluation.external_combination}, {name})"


def external_digest(evaluation: EvaluationSettings) -> str:
    """A hash of all bytes of the file of class scores; "" under the strict protocol."""
    if evaluation.protocol == "strict":
        return ""
    path = expanded(evaluation.external_scores)
    return file_digest(path, "a file of class scores (`evaluation.external_scores`)")[:16]


def check_unchanged(evaluation: EvaluationSettings, digest: str) -> None:
    """Refuses a file of class scores that is not what ``digest`` was taken of: a run's variants must share one."""
    if external_digest(evaluation) != digest:
        expected = "the content that it had when the run began"
        remedy = "run the same command again: it evaluates all variants with the new file, and trains none again"
        raise refusal(evaluation.external_scores, "another content", expected, remedy)


def with_external_classes(
    instances: Instances, videos: Sequence[str], classes: Sequence[str], evaluation: EvaluationSettings
) -> tuple[Instances, tuple[str, ...]]:
    """Predictions under the external protocol, and notes on the file. Raises as :func:`read_class_scores`."""
    found = read_class_scores(evaluation.external_scores, videos, classes)
    top_k, combination = evaluation.external_top_k, evaluation.external_combination
    return fuse(instances, found.scores, top_k, combination, evaluation.external_segments), found.notes


def fuse(instances: Instances, scores: np.ndarray, top_k: int, combination: str, segments_per_video: int) -> Instances:
    """The surest segments of each video under its ``top_k`` surest classes; ``scores [V, C]`` by row of the video.

    Labels of ``instances`` are not looked at: a segment predicted for several classes counts once, with its best score.
    Each of the ``segments_per_video`` best is repeated for every class, with the score class x segment ("product": BMN,
    OpenTAD) or its square root ("sqrt": ActionFormer). :class:`~apl_jax.data.files.DataError` for negative scores.
    """
    if (instances.score < 0).any():
        found = f"a segment with the score {instances.score.min():g}"
        raise refusal("external protocol", found, "scores of at least 0", "apply a sigmoid to the scores of segments")
    best = surest_segments(instances, segments_per_video)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]  # [V, k]
    product = np.take_along_axis(scores, top, axis=1)[best.video] * best.score[:, None]  # [M, k]
    score = np.sqrt(product) if combination == "sqrt" else product
    count = top.shape[1]
    segments_s = np.repeat(best.segments_s, count, axis=0)
    return Instances(np.repeat(best.video, count), top[best.video].ravel(), segments_s, score.ravel())


def surest_segments(instances: Instances, count: int) -> Instances:
    """At most ``count`` distinct segments per video, by video and falling score."""
    start_s, end_s = instances.segments_s.T
    order = np.lexsort((-instances.score, end_s, start_s, instances.video))
    places = np.column_stack([instances.video, start_s, end_s])[order]
    first = np.ones(len(order), bool)
    first[1:] = (places[1:] != places[:-1]).any(axis=-1)
    distinct = instances.select(order[first])
    distinct = distinct.select(np.lexsort((-distinct.score, distinct.video)))
    rank = np.arange(len(distinct)) - np.searchsorted(distinct.video, distinct.video)
    return distinct.select(rank < count)


# The file


def read_class_scores(path: str | Path, videos: Sequence[str], classes: Sequence[str]) -> ClassScores:
    """Reads a file of class scores for these videos and classes, in their order.

    Raises :class:`~apl_jax.data.files.DataError` for a file that is neither layout, for classes or videos that it lacks
    (with the nearest names), and for a score that is no number in [0, 1].
    """
    path = expanded(path)
    names, vectors = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    columns, notes = _match_classes(path, names, classes)
    stored = _match_videos(path, vectors, videos)
    rows = [_checked(path, video, vectors[video], names) for video in stored]
    scores = np.array(rows, np.float64).reshape(len(videos), len(names))[:, columns]
    return ClassScores(scores.clip(max=1.0), notes)


def _read_json(path: Path) -> tuple[list[str], Mapping[str, list[Any]]]:
    """Names of the classes, and the scores of each video as they stand."""
    document = load_json(path)
    keys = [key for key in ("class", "classes") if key in document]
    if len(keys) != 1:
        found = " and ".join(map(repr, keys)) or f"only the keys {', '.join(map(repr, list(document)[:_SHOWN]))}"
        remedy = "add the classifier's class names in the order of its scores: scores are never matched by place"
        raise refusal(f"{path}: class", found, '{"class": [names], "results": {video: [scores]}}', remedy)
    names, results = document[keys[0]], document.get("results")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise refusal(f"{path}: {keys[0]}", str(names)[:80], "a list of class names", "list them in the scores' order")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise refusal(f"{path}: {keys[0]}", f"{twice!r} twice", "each class once", "remove or rename one")
    if not isinstance(results, dict) or not all(isinstance(vector, list) for vector in results.values()):
        expected = "an object that maps each video to a list with one score per class"
        raise refusal(f"{path}: results", str(results)[:80], expected, "check that this is the file of class scores")
    names = list(cleaned_keys(dict.fromkeys(names), f"{path}: {keys[0]}", "the name of a class"))
    return names, cleaned_keys(results, f"{path}: results", "the id of a video")


def _read_csv(path: Path) -> tuple[list[str], Mapping[str, list[Any]]]:
    """As :func:`_read_json`; a cell that is no number stays text."""
    vectors: dict[str, list[Any]] = {}
    names: list[str] = []
    for line, row in load_csv(path, ("video",)):
        video = read_name(row.pop("video"), f"{path}: line {line}", "the id of a video")
        if video in vectors:
            raise refusal(f"{path}: line {line}", f"video {video!r} again", "each video once", "remove one of the rows")
        scores = cleaned_keys(row, f"{path}: header", "the name of a class")
        names, vectors[video] = list(scores), [number_or_text(cell) for cell in scores.values()]
    return names, vectors


def _match_classes(path: Path, names: Sequence[str], classes: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """The column of each class, and notes on names that were forgiven or left out."""
    classes = [clean_name(name) for name in classes]
    column, wanted = {name: i for i, name in enumerate(names)}, set(classes)
    spare: dict[str, list[str]] = {}  # names of the file that are no class's own, by their loose spelling
    for name in names:
        if name not in wanted:
            spare.setdefault(loose(name), []).append(name)
    claims = Counter(loose(name) for name in classes if name not in column)
    matched: dict[str, str] = {}
    missing: list[str] = []
    for name in classes:
        alike = spare.get(loose(name), [])
        if name in column:
            matched[name] = name
        elif len(alike) == 1 and claims[loose(name)] == 1:
            matched[name] = alike[0]
        else:
            near = alike or difflib.get_close_matches(name, names, 2)
            missing.append(repr(name) + (f" (nearest: {', '.join(map(repr, near))})" if near else ""))
    if missing:
        found = f"{len(names)} classes without {len(missing)} of the data set's: {_some(missing)}"
        expected = f"all {len(classes)} classes of the data set, by name"
        raise refusal(f"{path}: class", found, expected, "rename them in the file; further classes may stay")
    other = [f"{name!r} for {stored!r}" for stored, name in matched.items() if name != stored]
    extra = [repr(name) for name in names if name not in set(matched.values())]
    notes = [f"{path}: {len(other)} classes in another spelling: {_some(other)}"] if other else []
    notes += [f"{path}: {len(extra)} classes that the data set lacks left out: {_some(extra)}"] if extra else []
    return [column[matched[name]] for name in classes], tuple(notes)


def _match_videos(path: Path, known: Mapping[str, Any], videos: Sequence[str]) -> list[str]:
    """The name under which the file holds each video."""
    stored = [find_recording(video, known) for video in videos]
    missing = [repr(video) for video, name in zip(videos, stored, strict=True) if name is None]
    if missing:
        absent = next(video for video, name in zip(videos, stored, strict=True) if name is None)
        example = f" (it has {next(iter(known))!r}, for instance{hint(absent, known)})" if known else ""
        found = f"no scores of {len(missing)} of {len(videos)} evaluated videos: {_some(missing)}{example}"
        raise refusal(f"{path}: results", found, "scores of every evaluated video", "add them, or check the subset")
    return [name for name in stored if name is not None]


def _checked(path: Path, video: str, vector: list[Any], names: Sequence[str]) -> list[float]:
    """One video's scores, which must be as many as there are names, and in [0, 1]."""
    if len(vector) != len(names):
        found, expected = f"{len(vector)} scores", f"{len(names)}, one for each class that the file names"
        raise refusal(f"{path}: video {video!r}", found, expected, "write the file again")
    for name, value in zip(names, vector, strict=True):
        if type(value) not in (int, float) or not 0 <= value <= 1 + _ROUNDING:
            where = f"{path}: video {video!r}, class {name!r}"
            remedy = "write probabilities: apply the classifier's softmax or sigmoid to its outputs"
            raise refusal(where, repr(value)[:40], "a number in [0, 1]", remedy)
    return vector


def _some(words: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    rest = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
