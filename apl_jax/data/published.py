"""Benchmarks as they are published: which file holds the annotations, which test set is meant, what is cleaned.

THUMOS14's test set goes by four sizes (spec 1.2, 1.11 and 8, row 18), named here by the number of their videos:

===== ========= =========================================================================================
name  instances left out of the 213 test videos
===== ========= =========================================================================================
213   3358      none
212   3358      1292, which shows only "Ambiguous" segments
211   3329      1292 and 270, whose frame rate and hence annotations are wrong (22 lie behind its end)
210   3311      1292, 270 and 1496, the second whose annotations are held to be wrong
===== ========= =========================================================================================

212 is the default: it is the annotation file of ActionFormer as it stands, and hence the test set behind the numbers of
ActionFormer and of APL on it, the ones this package is compared with. (OpenTAD counts 3,325 instances in its own file
of 211.) "Ambiguous" is no class in any of them. CliffDiving segments are annotated as Diving too; both stay, because
the evaluator scores both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apl_jax.data.annotation_tables import holds_epic, read_epic
from apl_jax.data.annotations import Annotations, VideoRecord, read_annotations
from apl_jax.data.exclude import without_excluded
from apl_jax.data.features.manifest import read_manifest
from apl_jax.data.files import refusal
from apl_jax.settings import DataSettings

OWN_FILES = {"thumos14": ("thumos14.json",), "activitynet": ("activitynet13_anno.json", "activity_net.v1-3.min.json")}
_NAMES = ("annotations.json", *(name for names in OWN_FILES.values() for name in names))
_SHORTEST_S = 1e-3  # of ActivityNet's instances, and how near the ends of duplicates are (spec 1.2)


@dataclass(frozen=True)
class Variant:
    """One published size of THUMOS14's test set."""

    videos: int
    instances: int  # in ActionFormer's annotation file
    left_out: tuple[str, ...]


THUMOS14_VARIANTS = {
    "213": Variant(213, 3358, ()),
    "212": Variant(212, 3358, ("video_test_0001292",)),
    "211": Variant(211, 3329, ("video_test_0000270", "video_test_0001292")),
    "210": Variant(210, 3311, ("video_test_0000270", "video_test_0001292", "video_test_0001496")),
}
THUMOS14_DEFAULT = "212"


def read_published(root: Path, settings: DataSettings) -> Annotations:
    """The annotations in a data folder, as the benchmark called ``settings.name`` is published.

    A folder holds one of ``annotations.json``, ``thumos14.json``, ``activitynet13_anno.json``,
    ``activity_net.v1-3.min.json``, or the tables of EPIC-KITCHENS-100. Names that begin with "thumos14" mean THUMOS14
    (see :func:`choose_variant`), with "activitynet" ActivityNet (see :func:`clean_activitynet`); others are read as
    they stand. Records have the frame rate ``settings.fps`` where that is set.

    Raises :class:`~apl_jax.data.files.DataError`, also for a ``variant`` of a data set that has none.
    """
    name = settings.name.lower()
    if settings.variant and not name.startswith("thumos14"):
        found = f"{settings.variant!r} for the data set {settings.name!r}"
        remedy = "leave it empty, or `data.name=thumos14`"
        raise refusal("`data.variant`", found, "a variant of THUMOS14's test set, its only use", remedy)
    path = annotation_file(root, name)
    if path is None:
        annotations = read_epic(root, settings.task, strict=settings.strict_annotations)
    else:
        annotations = read_annotations(path, strict=settings.strict_annotations)
        if name.startswith("thumos14"):
            annotations = choose_variant(annotations, path, settings.variant or THUMOS14_DEFAULT)
        elif name.startswith("activitynet"):
            annotations = clean_activitynet(annotations, path)
    return without_excluded(_with_rates(annotations, root, settings), settings.exclude)


def _with_rates(annotations: Annotations, root: Path, settings: DataSettings) -> Annotations:
    """The records at the rate of the settings; without one, at that of ``features.json`` where they have none."""
    rate = settings.fps
    if not rate and any(not record.fps for record in annotations.videos.values()):
        manifest = read_manifest(root)
        rate = (manifest.fps or 0.0) if manifest else 0.0
    if not rate:
        return annotations
    videos = {
        video: record if record.fps and not settings.fps else dataclasses.replace(record, fps=rate)
        for video, record in annotations.videos.items()
    }
    return dataclasses.replace(annotations, videos=videos)


def choose_variant(annotations: Annotations, path: Path, variant: str) -> Annotations:
    """THUMOS14 with the test videos of a named variant and without the class "Ambiguous"; counts in the notes.

    The result's ``variant`` is the name; where the file annotates those videos with another number of instances than
    ActionFormer's, the number is added to it, so that no table shows both as one.

    Raises :class:`~apl_jax.data.files.DataError` for an unknown name and for a file without the videos it stands for.
    """
    if variant not in THUMOS14_VARIANTS:
        names = ", ".join(THUMOS14_VARIANTS)
        raise refusal("`data.variant`", repr(variant), f"one of {names}", f"{THUMOS14_DEFAULT}, ActionFormer's")
    chosen = THUMOS14_VARIANTS[variant]
    videos = {video: record for video, record in annotations.videos.items() if video not in chosen.left_out}
    removed = sorted(set(annotations.videos) - set(videos))
    result, ambiguous = without_ambiguous(dataclasses.replace(annotations, videos=videos))
    test = [record for record in result.videos.values() if record.subset == "test"]
    _check_count(path, variant, test, len(removed))
    instances = sum(len(record.labels) for record in test)
    others = [record for record in result.videos.values() if record.subset == "validation"]
    paired = sum(_paired(record, result.classes) for record in result.videos.values())
    absent = ", ".join(chosen.left_out) or "no video"
    notes = [
        f"{path}: THUMOS14's test set {variant!r}: {len(test)} videos, {instances} instances ({absent} left out); "
        f"{len(others)} validation videos, {sum(len(record.labels) for record in others)} instances",
        f"{path}: {paired} CliffDiving segments are annotated as Diving too; both stay and are scored",
    ]
    if ambiguous:
        notes.append(f"{path}: {ambiguous} segments of the class 'Ambiguous' left out")
    if instances != chosen.instances:
        notes.append(f"{path}: ActionFormer's file has {chosen.instances} instances there: compare numbers with care")
    label = variant if instances == chosen.instances else f"{variant}, {instances} instances"
    return dataclasses.replace(result, notes=annotations.notes + tuple(notes), variant=label)


def clean_activitynet(annotations: Annotations, path: Path) -> Annotations:
    """ActivityNet without instances shorter than 1 ms and without duplicates, as ActionFormer reads it.

    A duplicate has the class of an earlier instance of its video and both ends within 1 ms of it. Instances without
    length are gone already where the file was read leniently. Counts are in the notes.
    """
    short: list[str] = []  # videos, one entry per instance
    duplicates: list[str] = []
    videos = {video: _cleaned(record, short, duplicates) for video, record in annotations.videos.items()}
    notes = tuple(
        f"{path}: {len(hits)} segments left out that {what}, in {len(set(hits))} videos such as {hits[0]}"
        for hits, what in ((short, "are shorter than 0.001 s"), (duplicates, "repeat another of their class"))
        if hits
    )
    return dataclasses.replace(annotations, videos=videos, notes=annotations.notes + notes)


def annotation_file(root: Path, name: str) -> Path | None:
    """The JSON file of a folder, or None for one with the tables of EPIC-KITCHENS-100.

    Beside the file of the benchmark that ``name`` means, those of other benchmarks are no matter.
    Raises :class:`~apl_jax.data.files.DataError` where that leaves several.
    """
    found = [file for file in _NAMES if (root / file).is_file()]
    tables = holds_epic(root)
    own = {file for start, files in OWN_FILES.items() if name.lower().startswith(start) for file in files}
    if own & set(found):
        found, tables = [file for file in found if file in own or file == _NAMES[0]], False
    if len(found) + tables > 1:
        what = " and ".join(found + ["tables of EPIC-KITCHENS-100"] * tables)
        raise refusal(str(root), what, "the annotations of one data set", "move the others away")
    if tables:
        return None
    return root / (found or _NAMES)[0]  # reading it says that it is missing, and where it was sought


def _check_count(path: Path, variant: str, test: list[VideoRecord], removed: int) -> None:
    """Refuses a file that does not hold the test videos of the variant."""
    expected = THUMOS14_VARIANTS[variant].videos
    only = THUMOS14_VARIANTS[THUMOS14_DEFAULT].left_out[0]
    if variant == "213" and only not in {record.id for record in test}:
        remedy = f"`data.variant={THUMOS14_DEFAULT}`, or the original annotations, which hold it"
        raise refusal(f"{path}: video {only!r}", "no entry", "it among the test videos of variant 213", remedy)
    if len(test) != expected:
        found = f"{len(test)} videos of subset 'test' ({removed} left out)"
        remedy = "another `data.variant`, or another `data.name` for a file of your own"
        raise refusal(f"{path}: subset", found, f"the {expected} of THUMOS14's variant {variant!r}", remedy)


def without_ambiguous(annotations: Annotations) -> tuple[Annotations, int]:
    """Annotations without the class "Ambiguous", and how many instances it had."""
    gone = [i for i, name in enumerate(annotations.classes) if name.lower() == "ambiguous"]
    if not gone:
        return annotations, 0
    classes = tuple(name for i, name in enumerate(annotations.classes) if i not in gone)
    number = np.cumsum([i not in gone for i in range(len(annotations.classes))]) - 1  # [old class] new class
    videos = {}
    for video, record in annotations.videos.items():
        kept = _selected(record, lambda i, record=record: record.labels[i] not in gone)
        videos[video] = dataclasses.replace(kept, labels=number[kept.labels].astype(np.int32))
    first = {video: int(number[c]) for video, c in annotations.first_classes.items() if c not in gone}
    before, after = (sum(len(r.labels) for r in group.values()) for group in (annotations.videos, videos))
    return dataclasses.replace(annotations, classes=classes, videos=videos, first_classes=first), before - after


def _paired(record: VideoRecord, classes: tuple[str, ...]) -> int:
    """How many segments of a video are annotated both as CliffDiving and as Diving."""
    segments: dict[str, list[tuple[float, ...]]] = {"CliffDiving": [], "Diving": []}
    for segment_s, label in zip(record.segments_s.tolist(), record.labels, strict=True):
        if classes[label] in segments:
            segments[classes[label]].append(tuple(segment_s))
    return sum(segment_s in segments["Diving"] for segment_s in segments["CliffDiving"])


def _cleaned(record: VideoRecord, short: list[str], duplicates: list[str]) -> VideoRecord:
    """The record without short and repeated instances; its id is added to the lists once for each."""
    kept: list[int] = []

    def keep(i: int) -> bool:
        start_s, end_s = record.segments_s[i]
        if end_s - start_s < _SHORTEST_S:
            short.append(record.id)
            return False
        near = np.abs(record.segments_s[kept] - record.segments_s[i]).max(-1, initial=0.0) < _SHORTEST_S
        if (near & (record.labels[kept] == record.labels[i])).any():
            duplicates.append(record.id)
            return False
        kept.append(i)
        return True

    return _selected(record, keep)


def _selected(record: VideoRecord, keep: Callable[[int], bool]) -> VideoRecord:
    """The record with the instances whose number ``keep`` accepts, asked in order; itself where that is all."""
    rows = [i for i in range(len(record.labels)) if keep(i)]
    if len(rows) == len(record.labels):
        return record
    return dataclasses.replace(
        record,
        segments_s=record.segments_s[rows].reshape(-1, 2),
        labels=record.labels[rows],
        weight=record.weight[rows],
        ignore=record.ignore[rows],
    )
