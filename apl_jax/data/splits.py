"""Which training videos may show their labels: a pure function of the annotations, the ratio and the seed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.files import DataError, load_json, refusal, write_json
from apl_jax.declarations import fingerprint
from apl_jax.settings import DataSettings


@dataclass(frozen=True)
class Split:
    """Video ids by what training may know of them; ``labelled`` of a smaller ratio is a prefix of a larger one's."""

    labelled: tuple[str, ...]  # in the seed's order
    unlabelled: tuple[str, ...]  # sorted
    evaluation: tuple[str, ...]  # sorted
    uncovered_classes: tuple[str, ...]  # classes that no labelled video shows
    ratio: float  # as asked for, in (0, 1]
    seed: int

    @property
    def digest(self) -> str:
        """Equal exactly when all fields are."""
        return fingerprint(asdict(self))


def build_split(annotations: Annotations, settings: DataSettings) -> Split:
    """Divides the videos into labelled, unlabelled and evaluation ones.

    Training videos are put in one order per seed, ``max(1, round(ratio * count))`` of them from the front are
    labelled: first a greedy cover of all classes, rarest first, then all others, interleaved so that every prefix
    holds each class in proportion (stratified by a video's rarest class; compare systems.md 3.8). Videos of
    ``validation_subjects`` leave training and are evaluated instead of the test subset.

    Raises :class:`DataError` for a ratio outside (0, 1], no video to train on or to evaluate, an unknown subject, and,
    unless ``allow_uncovered``, for a ratio that leaves a class without any labelled video.
    """
    ratio, seed = settings.label_ratio, settings.split_seed
    if not 0 < ratio <= 1:
        raise refusal("--config.data.label_ratio", f"{ratio:g}", "a number in (0, 1]", "0.1 labels a tenth")
    training, evaluation = _subsets(annotations, settings)
    if settings.split_file:
        labelled = _read_labelled(Path(settings.split_file).expanduser(), training)
        cover = 0
    else:
        order, cover = _order(training, seed)
        labelled = order[: max(1, round(ratio * len(order)))]
    shown = _classes_of([annotations.videos[video] for video in labelled])
    possible = _classes_of(training)
    missing = [c for c in sorted(possible - shown)]
    if missing and not settings.allow_uncovered:
        raise _uncovered([annotations.classes[c] for c in missing], len(labelled), len(training), cover, settings)
    rest = sorted({record.id for record in training} - set(labelled))
    uncovered = tuple(name for c, name in enumerate(annotations.classes) if c not in shown)
    return Split(tuple(labelled), tuple(rest), tuple(sorted(evaluation)), uncovered, ratio, seed)


def write_split(path: str | Path, split: Split) -> None:
    """Writes the ids, ratio, seed and digest of a split as JSON, beside and renamed; raises ``OSError`` if it cannot.

    The file is a valid ``--config.data.split_file``.
    """
    write_json(path, {**asdict(split), "digest": split.digest})


def _subsets(annotations: Annotations, settings: DataSettings) -> tuple[list[VideoRecord], list[str]]:
    """Training records, sorted by id so that the order in the file means nothing, and ids to evaluate."""
    records = sorted(annotations.videos.values(), key=lambda record: record.id)
    found = ", ".join(sorted({repr(record.subset) for record in records}))
    training = [record for record in records if record.subset == settings.training_subset.lower()]
    if not training:
        expected = f"videos of subset {settings.training_subset!r} to train on"
        raise refusal("annotations", f"subsets {found}", expected, "--config.data.training_subset")
    if not settings.validation_subjects:
        evaluation = [record.id for record in records if record.subset == settings.test_subset.lower()]
        if not evaluation:
            expected = f"videos of subset {settings.test_subset!r} to evaluate on"
            raise refusal("annotations", f"subsets {found}", expected, "--config.data.test_subset")
        return training, evaluation
    held = set(settings.validation_subjects)
    known = {record.subject for record in training if record.subject is not None}
    if held - known:
        subjects = ", ".join(map(str, sorted(known))) or "none"
        where = "--config.data.validation_subjects"
        raise refusal(where, f"{sorted(held - known)}", f"training subjects ({subjects})", "take some of these")
    evaluation = [record.id for record in training if record.subject in held]
    training = [record for record in training if record.subject not in held]
    if not training:
        raise refusal("--config.data.validation_subjects", "all training subjects", "some", "leave some to train on")
    return training, evaluation


def _order(training: list[VideoRecord], seed: int) -> tuple[list[str], int]:
    """All training ids in the seed's order, and how many from the front cover every class."""
    classes = {record.id: _classes_of([record]) for record in training}
    frequency: dict[int, int] = {}
    for present in classes.values():
        for c in present:
            frequency[c] = frequency.get(c, 0) + 1
    position = _stratified_positions(classes, frequency, seed)
    front: list[str] = []
    uncovered = set(frequency)
    while uncovered:
        rarest = min(uncovered, key=lambda c: (frequency[c], c))
        holders = [video for video, present in classes.items() if rarest in present]
        best = min(holders, key=lambda video: (-len(classes[video] & uncovered), position[video]))
        front.append(best)
        uncovered -= classes[best]
    rest = sorted(set(classes) - set(front), key=lambda video: position[video])
    return front + rest, len(front)


def _stratified_positions(
    classes: dict[str, frozenset[int]], frequency: dict[int, int], seed: int
) -> dict[str, tuple[float, str]]:
    """A sorting key per video: place k of m in a shuffled stratum becomes about k/m, so strata interleave."""
    strata: dict[int, list[str]] = {}
    for video, present in classes.items():
        stratum = min(present, key=lambda c: (frequency[c], c)) if present else -1
        strata.setdefault(stratum, []).append(video)
    random = np.random.default_rng(seed)
    position: dict[str, tuple[float, str]] = {}
    for _, videos in sorted(strata.items()):
        shuffled = random.permutation(len(videos))
        jitter = random.random(len(videos))
        for k, i in enumerate(shuffled):
            position[videos[i]] = (float((k + jitter[k]) / len(videos)), videos[i])
    return position


def _classes_of(records: list[VideoRecord]) -> frozenset[int]:
    """Every class that some of the records show."""
    return frozenset(int(c) for record in records for c in record.labels)


def _read_labelled(path: Path, training: list[VideoRecord]) -> list[str]:
    """The labelled ids of a split file, which must be training videos."""
    labelled = load_json(path).get("labelled")
    if not isinstance(labelled, list) or not labelled or not all(isinstance(video, str) for video in labelled):
        raise refusal(f"{path}: labelled", f"{labelled!r}"[:80], "a list of video ids", "use a file of write_split")
    strangers = sorted(set(labelled) - {record.id for record in training})
    if strangers:
        found = f"{len(strangers)} ids such as {strangers[0]!r}"
        raise refusal(f"{path}: labelled", found, "ids of training videos", "use a split of this data set")
    return list(dict.fromkeys(labelled))


def _uncovered(names: list[str], count: int, total: int, cover: int, settings: DataSettings) -> DataError:
    """The refusal of a split that leaves classes without a labelled video."""
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    where = settings.split_file or f"--config.data.label_ratio={settings.label_ratio:g}"
    found = f"{count} labelled of {total} training videos, which leave uncovered: {shown}"
    smallest = math.ceil(1000 * cover / total) / 1000
    larger = f"--config.data.label_ratio={smallest:g} (the smallest that covers all), or " if cover else ""
    remedy = f"{larger}--config.data.allow_uncovered=True to go on without these classes"
    return refusal(where, found, "at least one labelled video of every class", remedy)
