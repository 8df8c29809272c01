"""Which training videos may show their labels: a pure function of the annotations, the ratio and the seed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.files import DataError, expanded, load_csv, load_json, refusal, write_json
from apl_jax.data.names import cleaned_keys, find_recording, hint, read_name
from apl_jax.declarations import fingerprint
from apl_jax.settings import DataSettings
from apl_jax.text import shown

_TABLE_SUBSETS = ("training", "training_unlabel")  # of training videos in SPOT's tables


@dataclass(frozen=True)
class Split:
    """Video ids by what training may know of them.

    Under ``split_rule`` "cover", ``labelled`` of a smaller ratio is a prefix of a larger one's.
    """

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
    holds each class in proportion (stratified by a video's rarest class). With ``split_rule`` "first_class" instead:
    all but ``round((1 - ratio) * n)`` of the n videos of each class are labelled, a video's class being that of its
    first annotation in the file, as SPOT's and SSTAP's published splits count (spec 3.8). ``split_file`` gives
    the labelled ids themselves. Videos of ``validation_subjects`` leave training and are evaluated instead of the test
    subset. Videos that nobody annotated are never labelled and do not count for the ratio.

    Raises :class:`DataError` for no video to train on, to label or to evaluate, an unknown
    subject, a split file of other videos, and, unless ``allow_uncovered``, for a split that leaves a class without any
    labelled video.
    """
    ratio, seed = settings.label_ratio, settings.split_seed
    training, evaluation = _subsets(annotations, settings)
    annotated = [record for record in training if record.annotated]
    if not annotated:
        found, remedy = f"none of {len(training)} annotated", 'annotate some: a list under "annotations", empty or not'
        raise refusal("training videos", found, "at least one that shows its labels", remedy)
    cover = 0
    if settings.split_file:
        labelled = _read_labelled(expanded(settings.split_file), annotations, training, settings)
        _check_annotated(settings.split_file, labelled, annotations)
    elif settings.split_rule == "first_class":
        labelled = _by_first_class(annotations, annotated, ratio, seed)
    else:
        order, cover = _order(annotated, seed)
        labelled = order[: max(1, round(ratio * len(order)))]
    shown = _classes_of([annotations.videos[video] for video in labelled])
    possible = _classes_of(annotated)
    missing = [c for c in sorted(possible - shown)]
    if missing and not settings.allow_uncovered:
        raise _uncovered([annotations.classes[c] for c in missing], len(labelled), len(annotated), cover, settings)
    rest = sorted({record.id for record in training} - set(labelled))
    uncovered = tuple(name for c, name in enumerate(annotations.classes) if c not in shown)
    return Split(tuple(labelled), tuple(rest), tuple(sorted(evaluation)), uncovered, ratio, seed)


def annotation_notes(annotations: Annotations, split: Split) -> tuple[str, ...]:
    """What is to be known about who annotated what: a sentence for each kind that occurs."""
    bare = lambda videos: [video for video in videos if not annotations.videos[video].annotated]
    training, hidden = len(split.labelled) + len(split.unlabelled), bare(split.unlabelled)
    empty = [video for video in split.labelled if not annotations.videos[video].present_classes]
    unknown = bare(split.evaluation)
    kinds = (
        (hidden, f"of {training} training videos are not annotated, so never labelled and never scored"),
        (empty, f"of {len(split.labelled)} labelled videos are annotated as being without an instance"),
        (unknown, f"of {len(split.evaluation)} evaluated videos are not annotated: predicted, but not scored"),
    )
    return tuple(f"{len(videos)} {what}, such as {videos[0]}" for videos, what in kinds if videos)


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
        raise refusal("annotations", f"subsets {found}", expected, "`data.training_subset`")
    if not settings.validation_subjects:
        evaluation = [record.id for record in records if record.subset == settings.test_subset.lower()]
        if not evaluation:
            expected = f"videos of subset {settings.test_subset!r} to evaluate on"
            raise refusal("annotations", f"subsets {found}", expected, "`data.test_subset`")
        return training, evaluation
    held = set(settings.validation_subjects)
    known = {record.subject for record in training if record.subject is not None}
    if held - known:
        subjects = ", ".join(map(str, sorted(known))) or "none"
        where = "`data.validation_subjects`"
        raise refusal(where, f"{sorted(held - known)}", f"training subjects ({subjects})", "take some of these")
    evaluation = [record.id for record in training if record.subject in held]
    training = [record for record in training if record.subject not in held]
    if not training:
        raise refusal("`data.validation_subjects`", "all training subjects", "some", "leave some to train on")
    return training, evaluation


def _order(training: list[VideoRecord], seed: int) -> tuple[list[str], int]:
    """All training ids in the seed's order, and how many from the front cover every class."""
    classes = {record.id: _classes_of([record]) for record in training}
    frequency: dict[int, int] = {}
    for present in classes.values():
        for c in present:
            frequency[c] = frequency.get(c, 0) + 1
    # A video counts for its rarest class; one without annotations is of no class.
    strata = {v: min(p, key=lambda c: (frequency[c], c)) if p else -1 for v, p in classes.items()}
    position = _stratified_positions(strata, seed)
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


def _by_first_class(annotations: Annotations, training: list[VideoRecord], ratio: float, seed: int) -> list[str]:
    """The labelled ids, every class's share of them, in the seed's order."""
    strata = {
        record.id: annotations.first_classes.get(record.id, int(record.labels[0]) if len(record.labels) else -1)
        for record in training
    }
    # The unlabelled share is what the published files round: n - round(0.9 n) gives their 966 videos, round(0.1 n) 961.
    places = {c: n - round((1 - ratio) * n) for c, n in Counter(strata.values()).items()}
    position = _stratified_positions(strata, seed)
    labelled = []
    for video in sorted(strata, key=lambda video: position[video]):
        if places[strata[video]] > 0:
            places[strata[video]] -= 1
            labelled.append(video)
    if not labelled:
        found = f"a share that rounds to no video in any of {len(places)} classes"
        remedy = "a larger ratio, or `data.split_rule=cover`"
        raise refusal(f"`data.label_ratio={ratio:g}`", found, "at least one labelled video", remedy)
    return labelled


def _stratified_positions(strata: dict[str, int], seed: int) -> dict[str, tuple[float, str]]:
    """A sorting key per video: place k of m in its shuffled stratum becomes about k/m, so strata interleave."""
    members: dict[int, list[str]] = {}
    for video, stratum in strata.items():
        members.setdefault(stratum, []).append(video)
    random = np.random.default_rng(seed)
    position: dict[str, tuple[float, str]] = {}
    for _, videos in sorted(members.items()):
        shuffled = random.permutation(len(videos))
        jitter = random.random(len(videos))
        for k, i in enumerate(shuffled):
            position[videos[i]] = (float((k + jitter[k]) / len(videos)), videos[i])
    return position


def _classes_of(records: list[VideoRecord]) -> frozenset[int]:
    """Every class that some of the records show."""
    return frozenset(c for record in records for c in record.present_classes)


def _read_labelled(
    path: Path, annotations: Annotations, training: list[VideoRecord], settings: DataSettings
) -> list[str]:
    """The labelled ids of a split file, which must be training videos."""
    known = {record.id for record in training}
    if path.suffix.lower() == ".csv":
        return _read_table(path, annotations, known, settings)
    labelled = load_json(path).get("labelled")
    if not isinstance(labelled, list) or not labelled or not all(isinstance(video, str) for video in labelled):
        raise refusal(f"{path}: labelled", shown(labelled), "a list of video ids", "use a file of write_split")
    clean = cleaned_keys(dict.fromkeys(labelled), f"{path}: labelled", "the id of a video")
    videos = [find_recording(video, known) or video for video in clean if not _left_out(video, annotations)]
    _check_training(f"{path}: labelled", videos, known)
    return list(dict.fromkeys(videos))


def _left_out(video: str, annotations: Annotations) -> bool:
    """Whether `data.exclude` names the video: published splits still list it."""
    return find_recording(video, set(annotations.excluded)) is not None


def _read_table(path: Path, annotations: Annotations, training: set[str], settings: DataSettings) -> list[str]:
    """The labelled ids of a CSV in SPOT's layout: subset "training" or, for unlabelled videos, "training_unlabel".

    Training videos that the table leaves out are unlabelled; rows of a subset that is neither trained on nor evaluated
    (ActivityNet's testing videos) are passed over.
    """
    rows = load_csv(path)
    columns = list(rows[0][1])
    name = next((c for c in columns if c.lower() in ("video", "video_id", "name")), None)
    kind = next((c for c in columns if c.lower() == "subset"), None)
    if name is None or kind is None:
        expected = 'a column "video" and a column "subset", as in video_info_new_0.9.csv of SPOT'
        raise refusal(f"{path}: header", f"columns {repr(columns)[1:-1][:300]}", expected, "rename the columns")
    subsets: dict[str, str] = {}
    words = "training", settings.training_subset.lower()
    for line, row in rows:
        where, subset = f"{path}: line {line}, video {shown(row[name])}", row[kind].lower()
        given = read_name(row[name], f"{path}: line {line}", "the id of a video")
        video = find_recording(given, annotations.videos) or given
        if video in subsets:
            raise refusal(where, "it a second time", "each video once", "remove one of its rows")
        if video in training and subset not in (*words, settings.test_subset.lower()) and "unlabel" not in subset:
            found = f"{shown(row[kind])} of a training video{hint(subset, _TABLE_SUBSETS)}"
            raise refusal(f"{where}, {kind}", found, " or ".join(map(repr, _TABLE_SUBSETS)), "correct the row")
        if not _left_out(video, annotations):
            subsets[video] = subset
    labelled = [video for video, s in subsets.items() if s in words]
    unlabelled = [video for video, s in subsets.items() if "unlabel" in s]
    evaluated = [video for video, s in subsets.items() if s == settings.test_subset.lower()]
    if not labelled:
        found = f"subsets {', '.join(sorted(map(repr, set(subsets.values()))))[:300]}"
        expected = f"rows of subset {settings.training_subset!r}, which are labelled"
        raise refusal(f"{path}: {kind}", found, expected, "`data.training_subset`, or correct the table")
    used = labelled + unlabelled + evaluated
    absent = sorted(set(used) - set(annotations.videos))
    if absent:
        found = f"{len(absent)} of {len(used)} videos that the annotations lack, such as {absent[0]!r}"
        remedy = "the annotations that the split was made for, or remove these rows"
        raise refusal(f"{path}: {name}", found, "videos of this data set", remedy)
    _check_training(f"{path}: subset training", labelled, training)
    _check_training(f"{path}: subset unlabelled", unlabelled, training)
    leaked = sorted(set(evaluated) & training)
    if leaked:
        found = f"{len(leaked)} videos such as {leaked[0]!r} that the annotations train on"
        raise refusal(f"{path}: {kind}", found, "videos kept for evaluation", "use a split of this data set")
    return labelled


def _check_training(where: str, videos: list[str], training: set[str]) -> None:
    """Refuses ids that are no training videos."""
    strangers = sorted(set(videos) - training)
    if strangers:
        found = f"{len(strangers)} ids such as {shown(strangers[0])}{hint(strangers[0], training)}"
        raise refusal(where, found, "ids of training videos", "use a split of this data set")


def _check_annotated(where: str, labelled: list[str], annotations: Annotations) -> None:
    """Refuses labelled videos that nobody annotated: they would be taught as being without an instance."""
    bare = [video for video in labelled if not annotations.videos[video].annotated]
    if bare:
        found = f"{len(bare)} videos such as {shown(bare[0])}, which nobody annotated"
        raise refusal(where, found, "annotated videos", 'annotate them ("annotations": [] says that nothing happens)')


def _uncovered(names: list[str], count: int, total: int, cover: int, settings: DataSettings) -> DataError:
    """The refusal of a split that leaves classes without a labelled video."""
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    where = settings.split_file or f"`data.label_ratio={settings.label_ratio:g}`"
    found = f"{count} labelled of {total} training videos, which leave uncovered: {shown}"
    smallest = math.ceil(1000 * cover / total) / 1000
    larger = f"`data.label_ratio={smallest:g}` (the smallest that covers all), or " if cover else ""
    if settings.split_rule == "first_class" and not settings.split_file:
        larger = "`data.split_rule=cover`, or "
    remedy = f"{larger}`data.allow_uncovered=True` to go on without these classes"
    return refusal(where, found, "at least one labelled video of every class", remedy)
