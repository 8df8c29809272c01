"""The truth that predictions are judged by, from what a person has: an annotation file, or the folder of a data set."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from apl_jax.data.annotation_tables import read_epic
from apl_jax.data.annotations import Annotations, read_annotations
from apl_jax.data.files import expanded, refusal
from apl_jax.data.names import clean_name
from apl_jax.data.published import OWN_FILES, annotation_file, clean_activitynet, without_ambiguous
from apl_jax.text import shown

_THUMOS14 = re.compile(r"video_(test|validation)_[0-9]{7}")
_TASKS = ("verb", "noun", "action")


def read_truth(path: str | Path, classes: tuple[str, ...] | None = None, task: str = "") -> Annotations:
    """The annotations of a file, or of a data folder, as a run reads them: for scoring, and for clocks.

    Reading is lenient (``strict=False`` of :func:`~apl_jax.data.annotations.read_annotations`), and videos may lack
    their durations. What is published as THUMOS14 or ActivityNet, by the name of the file or of the videos, is cleaned
    as for a run, all its videos kept. ``classes`` fixes the order of labels; a class that is not among them is then an
    error. ``task`` as ``data.task``; "" is the one that ``classes`` are of, or else "verb".

    Raises :class:`~apl_jax.data.files.DataError`.
    """
    path = expanded(path)
    file = _file_in(path) if path.is_dir() else path
    if file is None:
        annotations = read_epic(path, task or _task_of(path, classes), strict=False)
    else:
        annotations = _cleaned(read_annotations(file, strict=False, clocks=False), file)
    return annotations if classes is None else _in_order(annotations, file or path, classes)


def _file_in(folder: Path) -> Path | None:
    """The annotation file of a data folder; None for one with the tables of EPIC-KITCHENS-100."""
    names = [name for name, files in OWN_FILES.items() if any((folder / file).is_file() for file in files)]
    return annotation_file(folder, names[0] if len(names) == 1 else folder.name)


def _task_of(folder: Path, classes: tuple[str, ...] | None) -> str:
    """The task whose classes a model has: labels of another one would be other actions under the same numbers."""
    wanted = {clean_name(name) for name in classes or ()}
    fits = (task for task in _TASKS if wanted and wanted == set(read_epic(folder, task, strict=False).classes))
    return next(fits, _TASKS[0])


def _cleaned(annotations: Annotations, file: Path) -> Annotations:
    """Annotations without what their benchmark does not score."""
    if file.name.startswith("thumos14") or any(_THUMOS14.fullmatch(video) for video in annotations.videos):
        found, ambiguous = without_ambiguous(annotations)
        note = f"{file}: {ambiguous} segments of the class 'Ambiguous' left out"
        return dataclasses.replace(found, notes=found.notes + ((note,) if ambiguous else ()))
    return clean_activitynet(annotations, file) if file.name in OWN_FILES["activitynet"] else annotations


def _in_order(annotations: Annotations, where: Path, classes: tuple[str, ...]) -> Annotations:
    """The same annotations, their labels numbered by ``classes``."""
    index = {clean_name(name): i for i, name in enumerate(classes)}
    strangers = [name for name in annotations.classes if name not in index]
    if strangers:
        video = _video_of(annotations, annotations.classes.index(strangers[0]))
        place = f"{where}: video {shown(video)}, label" if video else f"{where}: label"
        remedy = "correct the label, or use a file of the same data set"
        raise refusal(place, f"unknown class {shown(strangers[0])}", f"one of {', '.join(classes)}", remedy)
    number = np.array([index[name] for name in annotations.classes], np.int32)
    videos = {v: dataclasses.replace(r, labels=number[r.labels]) for v, r in annotations.videos.items()}
    first = {video: int(number[c]) for video, c in annotations.first_classes.items()}
    return dataclasses.replace(annotations, classes=tuple(classes), videos=videos, first_classes=first)


def _video_of(annotations: Annotations, label: int) -> str | None:
    return next((video for video, record in annotations.videos.items() if label in record.labels), None)
