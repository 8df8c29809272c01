"""What a data folder holds and what is wrong with it, all at once.

A run stops at the first thing that it cannot use. Here every video is read, every refusal is kept, and what is legal
but seldom meant (instances that teach nothing, classes without labels, files that belong to no video) is noted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.dataset import open_truth
from apl_jax.data.features.folder import open_features
from apl_jax.data.features.outliers import OUTLIERS
from apl_jax.data.features.sources import SYNTHETIC_NOTE, FeatureSource, data_root, transposed_note
from apl_jax.data.files import DataError, refusal
from apl_jax.data.names import find_recording
from apl_jax.data.rates import systematic_ratio
from apl_jax.data.splits import Split, annotation_notes, build_split
from apl_jax.declarations import Choice, SettingsError
from apl_jax.detectors import build_detector
from apl_jax.devices import host_bytes
from apl_jax.inspection.survey import SHOWN, Finding, Follow, Reading, Survey, read_all, survey
from apl_jax.settings import DataSettings
from apl_jax.structs import DataFacts, TimeGrid

ROUND_TRIP_S = 1e-6  # seconds -> grid -> seconds is the identity to this
_Coverage = Callable[[np.ndarray, int], list[str | None]]  # DetectorFacts.uncovered


@dataclass(frozen=True)
class Uncovered:
    """An instance that no grid point is taught."""

    video: str
    role: str  # labelled | unlabelled | evaluation | used
    label: int
    start_s: float
    end_s: float
    cause: str  # in words that follow "instances that no grid point covers:"


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything that ``inspect`` tells. ``errors`` stop a run, ``notes`` do not."""

    name: str
    root: Path
    variant: str
    classes: tuple[str, ...]
    subsets: Mapping[str, tuple[int, int, float]]  # videos, instances, total duration in s
    class_counts: Mapping[str, np.ndarray]  # subset -> [C] instances
    labelled_counts: np.ndarray  # [C] instances that training may see, all 0 without a split
    split: Split | None  # None when the videos cannot be divided
    durations_s: np.ndarray  # [V]
    lengths_s: np.ndarray  # [N]
    rates: Mapping[float, int]  # fps -> videos, the most frequent first
    window: int
    stride: int
    grid: str  # rows | resize | pool
    survey: Survey | None  # None when there are no features at all
    uncovered: tuple[Uncovered, ...]
    overlapping: int  # instances that share time with another of their video
    errors: tuple[Finding, ...]
    notes: tuple[Finding, ...]


def inspect_dataset(
    data: DataSettings, detector: Choice, semi_supervised: bool, follow: Follow = lambda records: records
) -> Inspection:
    """Reads all annotations and the features of every video that a run would use, and keeps every complaint.

    ``detector`` says which instances its points are taught; ``semi_supervised`` whether a run needs unlabelled videos;
    ``follow`` as in :func:`~apl_jax.inspection.survey.read_all`. Raises :class:`~apl_jax.data.files.DataError` only
    when the annotations as a whole cannot be read.
    """
    errors: list[Finding] = []
    annotations = open_truth(data, named=True)
    split = _divide(annotations, data, semi_supervised, errors)
    roles = _roles(annotations, split, data)
    records = [annotations.videos[video] for video in roles]
    source, reading, surveyed = _open(data, errors), Reading(), None
    if source is not None:
        reading = read_all(records, source, data, follow)
        evaluated = frozenset(video for video, role in roles.items() if role == "evaluation")
        surveyed = survey(reading, records, evaluated, source, data)
        errors += [*reading.findings(), *_clock_errors(surveyed)]
    classes = 1 if data.class_agnostic else max(len(annotations.classes), 1)
    coverage = _coverage(detector, DataFacts(reading.width or 1, classes, data.max_length_t), errors)
    uncovered = [u for r in records for u in _uncovered(r, reading.grids.get(r.id), roles[r.id], coverage)]
    found = _summarise(annotations, data, split, surveyed, uncovered, errors)
    return dataclasses.replace(found, notes=tuple(_notes(found, annotations, roles, source, data, reading.grids)))


def _summarise(
    annotations: Annotations, data: DataSettings, split: Split | None, surveyed: Survey | None,
    uncovered: Sequence[Uncovered], errors: Sequence[Finding],
) -> Inspection:  # fmt: skip
    """What was found, still without notes."""
    videos = annotations.videos.values()
    return Inspection(
        name=data.title,
        root=data_root(data),
        variant=annotations.variant,
        classes=annotations.classes,
        subsets=_subsets(annotations),
        class_counts=_class_counts(annotations),
        labelled_counts=_count(annotations, split.labelled if split else ()),
        split=split,
        durations_s=np.array([record.duration_s for record in videos]),
        lengths_s=np.concatenate([np.diff(record.segments_s)[:, 0] for record in videos]),
        rates=dict(Counter(record.fps for record in videos).most_common()),
        window=data.window,
        stride=data.stride,
        grid=data.grid,
        survey=surveyed,
        uncovered=tuple(uncovered),
        overlapping=sum(int(overlapping_mask(record.segments_s).sum()) for record in videos),
        errors=tuple(errors),
        notes=(),
    )


def _open(data: DataSettings, errors: list[Finding]) -> FeatureSource | None:
    """The features; None when there are none, and why is among the errors."""
    try:
        return open_features(data)
    except DataError as error:
        errors.append(Finding(str(error)))
        return None


def _clock_errors(found: Survey) -> Iterable[Finding]:
    if found.round_trip_s > ROUND_TRIP_S:
        wrong = f"seconds -> grid -> seconds off by {found.round_trip_s:.3g} s"
        yield Finding(str(refusal("grid", wrong, f"at most {ROUND_TRIP_S:g} s", "check durations, fps and stride")))


# The split


def _divide(annotations: Annotations, data: DataSettings, semi_supervised: bool, errors: list[Finding]) -> Split | None:
    """The split of the settings, or the one that leaves classes uncovered; what is wrong with it goes to ``errors``."""
    split = None
    try:
        split = build_split(annotations, data)
    except DataError as error:
        errors.append(Finding(str(error)))
        try:
            split = build_split(annotations, dataclasses.replace(data, allow_uncovered=True))
        except DataError:
            return None
    if not split.unlabelled and semi_supervised:
        found, expected = "no video left unlabelled", "some, for the variant 'semi_supervised'"
        remedy = "`data.label_ratio=0.1`, or `variants=('supervised',)`"
        errors.append(Finding(str(refusal("split", found, expected, remedy))))
    return split


def _roles(annotations: Annotations, split: Split | None, data: DataSettings) -> dict[str, str]:
    """Videos that a run would read, by id -> what for; without a split, those of its two subsets, or else all."""
    if split is not None:
        parts = {"labelled": split.labelled, "unlabelled": split.unlabelled, "evaluation": split.evaluation}
        return {video: role for role, videos in parts.items() for video in videos}
    wanted = data.training_subset.lower(), data.test_subset.lower()
    chosen = [r.id for r in annotations.videos.values() if r.subset in wanted] or list(annotations.videos)
    return dict.fromkeys(chosen, "used")


# Instances


def _coverage(detector: Choice, facts: DataFacts, errors: list[Finding]) -> _Coverage | None:
    """What the detector says of instances; None when it cannot be built, and why is among the errors."""
    try:
        return build_detector(detector, facts).facts.uncovered
    except SettingsError as error:
        errors.append(Finding(str(error)))
        return None


def _uncovered(
    record: VideoRecord, grid: TimeGrid | None, role: str, coverage: _Coverage | None
) -> Iterable[Uncovered]:
    """The instances of a video, ignored ones left out, that teach nothing."""
    if grid is None or coverage is None:
        return
    rows = np.flatnonzero(~record.ignore)
    causes = coverage(grid.to_t(record.segments_s[rows]), grid.length)
    for i, cause in zip(rows, causes, strict=True):
        if cause is not None:
            start_s, end_s = record.segments_s[i].tolist()
            yield Uncovered(record.id, role, int(record.labels[i]), start_s, end_s, cause)


def overlapping_mask(segments_s: np.ndarray) -> np.ndarray:
    """Which instances ``[N, 2]`` of a video share time with another one: ``[N]`` bool."""
    order = np.argsort(segments_s[:, 0], kind="stable")
    start, end = segments_s[order].T
    hit = np.zeros(len(order), bool)
    if len(order) > 1:
        hit[1:] = start[1:] < np.maximum.accumulate(end)[:-1]
        hit[:-1] |= start[1:] < end[:-1]
    result = np.zeros_like(hit)
    result[order] = hit
    return result


def _subsets(annotations: Annotations) -> dict[str, tuple[int, int, float]]:
    groups: dict[str, list[VideoRecord]] = {}
    for record in annotations.videos.values():
        groups.setdefault(record.subset, []).append(record)
    return {
        subset: (len(group), sum(int((~r.ignore).sum()) for r in group), sum(r.duration_s for r in group))
        for subset, group in sorted(groups.items())
    }


def _class_counts(annotations: Annotations) -> dict[str, np.ndarray]:
    members: dict[str, list[str]] = {}
    for record in annotations.videos.values():
        members.setdefault(record.subset, []).append(record.id)
    return {subset: _count(annotations, videos) for subset, videos in sorted(members.items())}


def _count(annotations: Annotations, videos: Sequence[str]) -> np.ndarray:
    """Instances of each class ``[C]`` in some of the videos, without those that are to be ignored."""
    records = [annotations.videos[video] for video in videos]
    labels = [label for record in records for label in record.labels[~record.ignore].tolist()]
    return np.bincount(np.array(labels, np.int64), minlength=len(annotations.classes))


# Notes


def _notes(
    found: Inspection, annotations: Annotations, roles: Mapping[str, str], source: FeatureSource | None,
    data: DataSettings, grids: Mapping[str, TimeGrid],
) -> Iterable[Finding]:  # fmt: skip
    yield from (Finding(note) for note in annotations.notes)
    records = [annotations.videos[video] for video in roles]
    unused = sorted(set(annotations.videos) - set(roles))
    if unused:
        subsets = ", ".join(sorted({repr(annotations.videos[video].subset) for video in unused}))
        yield _listed(f"annotated videos that a run does not use (subset {subsets})", unused)
    yield from _class_notes(found, annotations)
    yield from (Finding(note) for note in (annotation_notes(annotations, found.split) if found.split else ()))
    empty = [record.id for record in records if record.annotated and not len(record.labels)]
    if empty:
        yield _listed("videos without any instance, all of them background", empty)
    if source is not None and source.synthetic:
        yield Finding(SYNTHETIC_NOTE)
    if source is not None:
        strangers = _strangers(source.ids, annotations)
        if strangers:
            yield _listed("features that belong to no annotated video, and are not used", strangers)
        read = [record for record in records if record.id in grids]
        yield from map(Finding, systematic_ratio(read, [grids[record.id] for record in read], data))
        yield from map(Finding, transposed_note(source, data))
        improbable = source.outliers.found() if source.outliers else []
        if improbable:
            yield Finding(OUTLIERS, len(improbable), tuple(improbable[:SHOWN]))
    for cause in dict.fromkeys(u.cause for u in found.uncovered):
        hits = [u for u in found.uncovered if u.cause == cause]
        labelled = sum(u.role == "labelled" for u in hits)
        what = f"instances that no grid point covers: {cause} ({labelled} in the labelled part)"
        yield Finding(what, len(hits), tuple(described(u, found.classes) for u in hits[:SHOWN]))
    if found.overlapping:
        share = found.overlapping / len(found.lengths_s)
        yield Finding(f"instances that overlap others of their video ({share:.1%} of all)", found.overlapping)
    if found.survey is not None:
        yield from _size_notes(found.survey, data)


def described(hit: Uncovered, classes: Sequence[str]) -> str:
    """One uncovered instance in words."""
    return f"video {hit.video!r} ({hit.role}), {hit.start_s:.2f} to {hit.end_s:.2f} s, {classes[hit.label]}"


def _class_notes(found: Inspection, annotations: Annotations) -> Iterable[Finding]:
    """Classes that cannot be learnt, or not be scored."""
    if found.split is None:
        return
    if found.split.uncovered_classes:
        yield _listed("classes that no labelled video shows", found.split.uncovered_classes)
    shown = set().union(*(annotations.videos[video].present_classes for video in found.split.evaluation))
    absent = [name for c, name in enumerate(found.classes) if c not in shown]
    if absent:
        yield _listed("classes that no evaluated video shows: their average precision is not defined", absent)


def _strangers(ids: Sequence[str], annotations: Annotations) -> list[str]:
    """Names of stored features that are no annotated video's, however they are spelt."""
    return [name for name in ids if find_recording(name, annotations.videos) is None]


def _size_notes(found: Survey, data: DataSettings) -> Iterable[Finding]:
    long = int((found.rows > data.max_length_t).sum())
    if long:
        limit = f"`data.max_length_t={data.max_length_t}`"
        yield Finding(f"videos of more rows than {limit}: cropped in training, seen whole in prediction", long)
    needed, there = sum(found.table_bytes.values()), host_bytes()
    if needed > there / 2:
        sizes = f"{needed / 2**30:.1f} GiB, and this machine has {there / 2**30:.1f}"
        yield Finding(f"The feature rows need {sizes}: they would not fit beside a model")


def _listed(what: str, names: Sequence[str]) -> Finding:
    return Finding(what, len(names), tuple(map(repr, names[:SHOWN])))
