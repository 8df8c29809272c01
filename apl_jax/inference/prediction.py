"""A model put to use on feature files, annotated or not, without the training data."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apl_jax.data.annotations import Annotations, VideoRecord, unannotated
from apl_jax.data.batching import bucket_length, stack_table, whole_table
from apl_jax.data.features.loose_files import open_loose
from apl_jax.data.features.manifest import check_clock
from apl_jax.data.features.outliers import outlier_note
from apl_jax.data.features.sources import FeatureSource
from apl_jax.data.files import refusal, write_text
from apl_jax.data.grids import TRANSPOSED, count_samples, place_rows
from apl_jax.data.names import clean_name
from apl_jax.data.rates import systematic_ratio
from apl_jax.data.truth import read_truth
from apl_jax.data.values import LONGEST_S, is_rate
from apl_jax.devices import first_rows, shard_batch, to_host
from apl_jax.evaluation.average_precision import Instances
from apl_jax.evaluation.detections import to_instances
from apl_jax.evaluation.proposal_files import GivenProposals
from apl_jax.evaluation.scoring import coverage_notes, judged
from apl_jax.evaluation.submission import read_submission, write_submission
from apl_jax.evaluation.thresholds import Thresholds, best_thresholds, read_thresholds, select_confident
from apl_jax.inference.clock import Clock, annotated_records
from apl_jax.inference.model import Model, open_model, read_card
from apl_jax.inference.proposals import read_wanted, refuse_without
from apl_jax.structs import TimeGrid
from apl_jax.text import for_csv

_SUFFIXES = (".json", ".csv")
_COLUMNS = ("video", "label", "segments_s", "score")
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be predicted, and how it is to be shown. Raises ``ValueError`` for impossible values."""

    features: Path  # a file or a folder (data/loose_files.py)
    stage: str = ""  # "" = that of the final variant
    annotations: Path | None = None  # fps and duration of the videos; instances in it are not looked at
    fps: float | None = None  # of videos that the annotations do not know
    duration_s: float | None = None  # of a single video; None = as long as its features
    thresholds: Path | None = None  # least score per class, as apl-jax thresholds writes it
    min_score: float = 0.0  # of classes without a threshold
    top_k: int | None = None  # per video
    out: Path | None = None  # .json or .csv
    timelines: Path | None = None  # .html, or a folder for one .png per video
    subset: str = ""  # of the annotations: only its videos are predicted; "" = all
    proposals: Path | None = None  # JSON or CSV, for a model that refines proposals and has no generator

    def __post_init__(self) -> None:
        checks = (
            (0 <= self.min_score <= 1, "`min_score`", self.min_score, "a number in [0, 1]", "0.1"),
            (self.top_k is None or self.top_k > 0, "`top_k`", self.top_k, "at least 1 per video", "leave it out"),
            (
                self.fps is None or is_rate(self.fps),
                "`fps`", self.fps, "samples or frames per second, from 0.001 to 1e6", "25",
            ),
            (
                self.duration_s is None or 0 < self.duration_s <= LONGEST_S,
                "`duration`", self.duration_s, "seconds", "leave it out: the features tell",
            ),
            (
                self.out is None or self.out.suffix.lower() in _SUFFIXES,
                "`out`", self.out, "a .json or .csv file", "predictions.csv",
            ),
            (
                self.timelines is None or self.timelines.suffix.lower() in (".html", ""),
                "`timelines`", self.timelines, "an .html file, or a folder for one .png per video", "timelines.html",
            ),
        )  # fmt: skip
        for fine, where, found, expected, remedy in checks:
            if not fine:
                raise refusal(where, str(found), expected, remedy)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a model found: instances by video, then by falling score; the video row is the place in ``records``."""

    instances: Instances
    records: tuple[VideoRecord, ...]  # with the annotated instances of the model's classes, where there are any
    classes: tuple[str, ...]
    stage: str


def predict(workdir: Path, request: Request) -> Predictions:
    """Predicts with the model of a finished run. Raises ``DataError`` as :func:`open_model` and :func:`predict_videos`,
    also for annotations and thresholds that cannot be read."""
    model = open_model(workdir, request.stage)
    grid, classes = model.card.grid, model.classes
    source = open_loose(request.features, grid, model.windowed)
    thresholds = read_thresholds(request.thresholds, classes) if request.thresholds else None
    annotations = read_truth(request.annotations) if request.annotations else None
    if annotations is not None and grid.class_agnostic:
        annotations = annotations.agnostic()
    if request.duration_s is not None and len(source.ids) > 1:
        found, remedy = f"{len(source.ids)} videos", "`annotations=<json with the duration of each>`"
        raise refusal(f"`duration={request.duration_s:g}`", found, "one video", remedy)
    log.info("videos: %d, model: %s of %s", len(source.ids), model.card.stage, workdir)
    clock = Clock(request.fps, source.manifest and source.manifest.fps, model.card.fps, grid.fps)
    records = tuple(_records(source, annotations, classes, str(request.annotations), request.duration_s))
    records = _of_subset(records, request)
    clock.note([record.fps for record in records], grid)
    records = tuple(dataclasses.replace(record, fps=clock.rate(record.fps)[0]) for record in records)
    proposals = read_wanted(model, request.proposals, records) if request.proposals else None
    records, instances = predict_videos(model, source, records, proposals)
    chosen = select_confident(instances, request.min_score, thresholds, request.top_k)
    return Predictions(chosen, records, classes, model.card.stage)


def _of_subset(records: tuple[VideoRecord, ...], request: Request) -> tuple[VideoRecord, ...]:
    """The records of the subset that is asked for."""
    if not request.subset:
        return records
    if request.annotations is None:
        raise refusal("`subset`", repr(request.subset), "annotations that name subsets", "`annotations=<json>` as well")
    chosen = tuple(record for record in records if record.subset == request.subset.lower())
    if not chosen:
        found = ", ".join(sorted({record.subset or "(none)" for record in records}))
        where, remedy = f"{request.annotations}: `subset`", "one of these, or none"
        raise refusal(where, f"subsets {found}", f"videos of {request.subset!r}", remedy)
    return chosen


def _records(
    source: FeatureSource, annotations: Annotations | None, classes: tuple[str, ...], where: str,
    duration_s: float | None,
) -> Iterator[VideoRecord]:  # fmt: skip
    """Each video of the source as a record, annotated where the file ``where`` knows it; a duration of nan and a rate
    of 0 are not known."""
    pairs = annotated_records(source, annotations, where) if annotations else ((name, None) for name in source.ids)
    for name, known in pairs:
        try:
            name.encode()
        except UnicodeEncodeError:
            remedy = "rename it: predictions are UTF-8"
            raise refusal(f"{source.place(name)}", "a name that is no UTF-8", "text", remedy) from None
        if annotations is None or known is None:
            yield unannotated(name, duration_s or math.nan, 0.0)
        else:
            yield dataclasses.replace(_in_classes(known, annotations.classes, classes), id=name)


def _in_classes(record: VideoRecord, names: tuple[str, ...], classes: tuple[str, ...]) -> VideoRecord:
    """The record with the instances of ``classes`` only, numbered by them."""
    index = {clean_name(name): i for i, name in enumerate(classes)}
    number = np.array([index.get(name, -1) for name in names], np.int32)
    labels = number[record.labels] if len(names) else record.labels
    kept = labels >= 0
    return dataclasses.replace(
        record, segments_s=record.segments_s[kept], labels=labels[kept], weight=record.weight[kept],
        ignore=record.ignore[kept],
    )  # fmt: skip


def predict_videos(
    model: Model, source: FeatureSource, records: Sequence[VideoRecord], proposals: GivenProposals | None = None
) -> tuple[tuple[VideoRecord, ...], Instances]:
    """All detections of videos of any length, each seen whole, and the records with the durations that were not known.

    Videos of about the same length go together, some at a time; lengths are rounded up to a power of two (times the
    grid's ``length_multiple``), so that few programs serve all. Detections that lie outside their
    video are left out. Raises :class:`~apl_jax.data.files.DataError` for an unknown frame rate (duration, where rows
    span their video), another feature width, a video shorter than one window, and a length that disagrees with a stated
    duration by more than ``length_tolerance``. Improbable values and rates are noted. ``proposals`` of the records, in
    their order, are for a model that wants some, which is refused without them.
    """
    refuse_without(model, proposals)
    batch, program = model.card.prediction_batch, model.program
    if source.outliers is not None:
        source.outliers.expect(*_usual_values(model))
    grids: dict[int, TimeGrid] = {}
    whole: set[int] = set()  # lengths for which the program of a whole batch exists
    done: dict[int, VideoRecord] = {}
    parts: list[Instances] = []
    for length_t, videos in _batches(model, source, records):
        whole |= {length_t} if len(videos) == batch else set()
        rows = batch if length_t in whole else min(batch, 1 << (len(videos) - 1).bit_length())
        numbers, seen, read = zip(*videos, strict=True)
        blank = [record.without_annotations() for record in seen]
        table = stack_table(blank, read, model.card.standardizer, length_t)
        if proposals is not None:
            durations_s = [record.duration_s for record in seen]
            table = dataclasses.replace(table, proposals=proposals.on_grids(numbers, table.grids, durations_s))
        table = whole_table(table)
        table = jax.tree.map(lambda x, rows=rows: np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1)), table)
        found = first_rows(to_host(program(model.params, shard_batch(table, model.mesh))), len(videos))
        instances, _ = to_instances(found, [grid for grid, _ in read], None, [record.duration_s for record in seen])
        parts.append(dataclasses.replace(instances, video=np.array(numbers)[instances.video]))
        done.update(zip(numbers, seen, strict=True))
        grids.update((number, grid) for number, (grid, _) in zip(numbers, read, strict=True))
    stated = [i for i, record in enumerate(records) if not math.isnan(record.duration_s)]
    for note in (
        *systematic_ratio([records[i] for i in stated], [grids[i] for i in stated], model.card.grid),
        *(outlier_note(source.outliers.found()) if source.outliers else ()),
    ):
        log.info("note: %s", note)
    video, label, segments_s, score = (np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS)
    inside = segments_s[:, 1] > segments_s[:, 0]
    return tuple(done[i] for i in range(len(records))), Instances(video, label, segments_s, score).select(inside)


def _usual_values(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel in training: of raw signals, over the samples of a window."""
    scale = model.card.standardizer
    if model.windowed:
        return scale.mean, scale.std
    mean, std = (values.reshape(model.card.grid.window, -1) for values in (scale.mean, scale.std))
    return mean.mean(0), std.max(0)


def _batches(
    model: Model, source: FeatureSource, records: Sequence[VideoRecord]
) -> Iterator[tuple[int, list[tuple[int, VideoRecord, tuple[TimeGrid, np.ndarray]]]]]:
    """Padded length and videos (place, record, grid and rows) of each batch, whole ones as soon as they are read."""
    grid, batch = model.card.grid, model.card.prediction_batch
    multiple, longest = grid.length_multiple, sys.maxsize if grid.grid == "rows" else grid.fixed_length_t
    waiting: dict[int, list[tuple[int, VideoRecord, tuple[TimeGrid, np.ndarray]]]] = {}
    for number, record in enumerate(records):
        known, placed, rows = read_video(model, source, record)
        length_t = bucket_length(len(rows), multiple, longest)
        waiting.setdefault(length_t, []).append((number, known, (placed, rows)))
        if len(waiting[length_t]) == batch:
            yield length_t, waiting.pop(length_t)
    yield from sorted(waiting.items())


def read_video(model: Model, source: FeatureSource, record: VideoRecord) -> tuple[VideoRecord, TimeGrid, np.ndarray]:
    """One video: its record with a duration, its grid, and its rows ``[T, D]``, not standardised."""
    data, width = model.card.grid, model.card.feature_width
    where = f"{source.place(record.id)}: video {record.id!r}"
    if data.stride and not record.fps:  # rows that span their video (stride 0) need no rate
        found, remedy = "no frame rate", "`fps=<rate>`, or `annotations=<json with fps>`"
        raise refusal(where, found, "frames (or samples) per second: training had several", remedy)
    if source.manifest is not None:
        check_clock(source.manifest, record)
    array = source.read(record.id)
    values = array.shape[1] * (1 if model.windowed else data.window)
    if values != width:
        raise refusal(where, *_wrong_width(model, *array.shape))
    stated_s = None if math.isnan(record.duration_s) else record.duration_s
    grid, rows = place_rows(array, model.windowed, record.fps, stated_s, data, record.id)
    duration_s = stated_s or count_samples(len(array), model.windowed, data) / record.fps
    return dataclasses.replace(record, duration_s=duration_s), grid, rows


def _wrong_width(model: Model, rows: int, found: int) -> tuple[str, str, str]:
    """Found, expected and the likely cause, for features of another width than the model's."""
    data, width = model.card.grid, model.card.feature_width
    if not model.windowed:
        channels, window = width // data.window, data.window
        cause = "the channels of the training recordings, in their order"
        if found == width:
            cause = "the raw signal: these look like windows of it, which the model makes itself"
        turned = TRANSPOSED if rows * window == width else ""
        words = f"{found} channels{turned} x window {window} = {found * window} values per row"
        return words, f"{width} ({channels} channels x window {window}) as in training", cause
    cause = "features of the extractor that training used"
    if data.streams:
        cause = f"the folder that holds the streams {', '.join(data.streams)}: training joined them in this order"
    elif width == 2 * found:
        cause = "both streams (rgb, flow) joined on channels: one seems to be missing"
    elif found * data.window == width:
        cause = f"rows of {data.window} samples each: these look like the raw signal"
    turned = TRANSPOSED if rows == width else ""
    return f"{found} values per row{turned}", f"{width} as in training", cause


def write_predictions(path: Path, found: Predictions) -> None:
    """Writes ActivityNet's submission JSON, or a CSV ``video,label,start_s,end_s,score``, by the suffix of ``path``.

    Raises ``OSError`` when the disk refuses; a file that was there before then stays as it was.
    """
    if path.suffix.lower() != ".csv":
        write_submission(path, found.instances, [record.id for record in found.records], found.classes)
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("video", "label", "start_s", "end_s", "score"))
    columns: list[list[Any]] = [getattr(found.instances, name).tolist() for name in _COLUMNS]
    for video, label, (start, end), score in zip(*columns, strict=True):
        table.writerow((for_csv(found.records[video].id), for_csv(found.classes[label]), start, end, score))
    write_text(path, text.getvalue())


def choose_thresholds(
    workdir: Path, annotations: Path, predictions: Path, subset: str, tiou: float
) -> tuple[Thresholds, tuple[str, ...]]:
    """The best threshold of each class of a run's model on annotated videos, and the classes.

    ``predictions`` is a file of :func:`write_predictions`, best with all scores (``min_score`` 0); ``subset`` "" means
    all annotated videos. Instances of videos without predictions count as missed. Raises ``ValueError`` for files
    that cannot be read or do not fit the model.
    """
    card = read_card(workdir)
    classes, agnostic = card.classes, card.grid.class_agnostic
    truth = read_truth(annotations, None if agnostic else classes)
    truth = truth.agnostic() if agnostic else truth
    records = [r for r in truth.videos.values() if not subset or r.subset == subset.lower()]
    if not records:
        found = ", ".join(sorted({r.subset for r in truth.videos.values()}))
        raise refusal(f"{annotations}: `subset`", f"subsets {found}", f"videos of {subset!r}", "one of these, or none")
    submission = read_submission(predictions, [record.id for record in records], classes)
    outside = (submission.instances.score < 0) | (submission.instances.score > 1)
    if outside.any():
        found = f"a score of {submission.instances.score[outside][0]:g} ({int(outside.sum())} such scores)"
        remedy = "apply a sigmoid: a threshold is a least score in [0, 1]"
        raise refusal(f"{predictions}: results", found, "scores in [0, 1]", remedy)
    for note in (*truth.notes, *coverage_notes(records, submission)):
        log.info("note: %s", note)
    return best_thresholds(*judged(records, submission.instances), tiou, len(classes)), classes
