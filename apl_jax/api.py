"""The Python API: a data set, a training run, a model and a score, each in one call.

The commands of ``apl-jax`` do the same. Errors name arguments; settings go by their dotted path, such as
``overrides={"learning.self_train.steps": 300}``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apl_jax.data.annotations import Annotations, parse_annotations
from apl_jax.data.dataset import Dataset, open_dataset, open_truth
from apl_jax.data.files import DataError, expanded, load_json, refusal
from apl_jax.data.splits import Split, build_split
from apl_jax.data.truth import read_truth
from apl_jax.declarations import override
from apl_jax.evaluation.average_precision import (
    AveragePrecision,
    average_precision,
)
from apl_jax.evaluation.label_quality import SELECTED, WRITTEN
from apl_jax.evaluation.scoring import coverage_notes, judged, why_not_scored
from apl_jax.evaluation.submission import parse_submission, read_document
from apl_jax.inference.model import Model, open_model
from apl_jax.interruption import stoppable
from apl_jax.report.finished_run import open_run
from apl_jax.report.page import write_report
from apl_jax.report.tables import average_precision_table, results_table
from apl_jax.runs.artefacts import sealed_file
from apl_jax.runs.plugins import load_entry_points
from apl_jax.runs.run import run as carry_out
from apl_jax.runs.settings import Settings, configurations, read_config, to_settings
from apl_jax.runs.training_stage import PSEUDO_LABELS
from apl_jax.settings import DataSettings


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A data set, and which of its recordings may show their labels; :func:`load_dataset` makes one."""

    settings: DataSettings

    @functools.cached_property
    def annotations(self) -> Annotations:
        """All annotations, the held-back ones included."""
        return open_truth(self.settings)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.annotations.classes

    @functools.cached_property
    def split(self) -> Split:
        """Video ids: labelled, unlabelled, evaluation."""
        return build_split(open_truth(self.settings, named=True), self.settings)

    def open(self) -> Dataset:
        """Reads all features: tables of labelled, unlabelled and evaluated videos on their grids."""
        return open_dataset(self.settings)


def load_dataset(name: str | Path, **settings: Any) -> Data:
    """A data set by the name of a configuration (``"spsw"``), or a folder of one's own.

    Args:
        name: a configuration of this package, whose data settings are taken; or a folder with ``annotations.json`` and
            features (docs: your data).
        settings: fields of :class:`~apl_jax.settings.DataSettings`, such as ``label_ratio=0.1``, ``split_seed=0``,
            ``window=50``, ``stride=25``, ``root="folder"``.

    Raises :class:`~apl_jax.declarations.SettingsError` for unknown or impossible settings, and
    :class:`~apl_jax.data.files.DataError` for annotations that cannot be read or divided.
    """
    folder = expanded(name)
    if folder.is_dir():
        data = DataSettings(name=folder.resolve().name, root=str(folder.resolve()))
    elif str(name) in configurations():
        data = read_config(str(name)).data
    else:
        known = ", ".join(configurations())
        raise refusal("`name`", f"{str(name)!r}", f"a folder, or one of {known}", "check the path")
    loaded = Data(override(data, settings))
    _ = loaded.split  # refuses what a run would refuse
    return loaded


class PseudoLabel(NamedTuple):
    """One detection on an unlabelled recording, and what selection made of it."""

    label: str
    start_s: float
    end_s: float
    selected: bool  # whether training learns from it
    reason: str  # kept | promoted | dropped | candidate
    confidence: float  # score x quality
    score: float  # class probability
    tiou: float  # predicted overlap
    tnd: float  # predicted normalised centre distance
    similarity: float  # to labelled instances of its class; .5 where nothing compared it


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run."""

    workdir: Path
    results: dict[str, Any]  # as results.json

    @functools.cached_property
    def model(self) -> Model:
        """The model of the final variant; others by :func:`load_model` with ``stage``."""
        return open_model(self.workdir)

    def table(self) -> str:
        """The final table, as ``apl-jax run`` prints it."""
        return results_table(self.results)

    def report(self) -> Path:
        """Writes ``report.html`` and returns its path."""
        return write_report(self.workdir)

    def pseudo_labels(self, number: int | None = None) -> dict[str, list[PseudoLabel]]:
        """All considered detections on the unlabelled recordings, with scores and reasons, by recording.

        ``number``: the round of labelling, by default the last. Raises ``ValueError`` where the method has none.
        """
        rounds = [int(name.rpartition("_")[2]) for name in self.results["pseudo_labels"]]
        number = number or max(rounds, default=0)
        if number not in rounds:
            raise ValueError(f"number: found {number}, expected one of the rounds {rounds} of pseudo labels")
        path = sealed_file(self.workdir / "stages" / f"pseudo_label_{number}", PSEUDO_LABELS)
        database = load_json(path)["database"]
        return {video: [*_pseudo_labels(entry)] for video, entry in database.items()}


def _pseudo_labels(entry: Mapping[str, Any]) -> Iterable[PseudoLabel]:
    names = PseudoLabel._fields[4:]
    for kind in WRITTEN:
        for row in entry.get(kind, ()):
            start_s, end_s = row["segment"]
            scores = {name: row[name] for name in names}
            yield PseudoLabel(row["label"], start_s, end_s, kind == SELECTED, **scores)


def train(
    config: str | Settings | Mapping[str, Any], *, workdir: str | Path, data: Data | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:  # fmt: skip
    """Trains, labels, trains again and evaluates; the same call resumes an interrupted run, bit for bit.

    Args:
        config: a configuration with its variant (``"spsw:apl"``), the path of a configuration file, or settings.
        workdir: folder that everything is written to.
        data: replaces the data settings of the configuration.
        overrides: settings by dotted path.

    Raises :class:`~apl_jax.declarations.SettingsError`, :class:`~apl_jax.data.files.DataError`; after SIGTERM or SIGINT
    in the main thread, once the state is saved, :class:`~apl_jax.interruption.Preempted`.
    """
    load_entry_points()
    if isinstance(config, str):
        settings = read_config(config)
    else:
        settings = config if isinstance(config, Settings) else to_settings(config)
    if data is not None:
        settings = dataclasses.replace(settings, data=data.settings)
    settings = override(settings, overrides or {})
    folder = expanded(workdir)
    with stoppable():
        return Run(folder, carry_out(settings, folder))


def load_run(workdir: str | Path) -> Run:
    """A finished run, from its folder. Raises :class:`~apl_jax.data.files.DataError` where it is none."""
    folder = expanded(workdir)
    return Run(folder, open_run(folder).results)


def load_model(path: str | Path, stage: str = "") -> Model:
    """A trained model, from its own folder or a run's; ``stage`` "" is the final variant's.

    Raises :class:`~apl_jax.data.files.DataError`.
    """
    load_entry_points()
    return open_model(expanded(path), stage)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """mAP and recall of predictions; printing it shows the table."""

    scores: AveragePrecision
    classes: tuple[str, ...]
    notes: tuple[str, ...]  # what was left out, in words

    @property
    def average_map(self) -> float:
        """Mean over classes and thresholds, in [0, 1]."""
        return self.scores.average

    def as_dict(self) -> dict[str, Any]:
        """JSON types, as in ``results.json``."""
        return self.scores.as_dict(self.classes)

    def __str__(self) -> str:
        return "\n".join([average_precision_table(self.as_dict()), *(f"note: {note}" for note in self.notes)])


def evaluate(
    predictions: Any, annotations: Any, *, tiou: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7), subset: str = "",
    recall_at: Sequence[int] = (1, 5),
) -> Evaluation:  # fmt: skip
    """Scores predictions against annotations (mean average precision, ActivityNet's way).

    Args:
        predictions: a dict of recording -> detections, each with label, start and end in seconds and score (what
            ``Model.predict`` returns, or tuples in this order); a submission document; or the path of one.
        annotations: a dict of recording -> instances, each with label, start and end in seconds (None: nobody annotated
            it, so that it is not scored); an annotation document (``{"database": ...}``), the path of one or of a data
            folder, or :class:`Data`.
        tiou: thresholds in (0, 1].
        subset: only recordings of this subset; "" means all.
        recall_at: k of Recall@kx.

    Raises :class:`~apl_jax.data.files.DataError` for what cannot be read.
    """
    truth = _annotations(annotations)
    records = [record for record in truth.videos.values() if not subset or record.subset == subset.lower()]
    if not records:
        subsets = ", ".join(sorted({repr(record.subset) for record in truth.videos.values()}))
        raise refusal("`subset`", f"{subset!r}", f"one of {subsets}", "leave it out for all recordings")
    document, path = _predictions(predictions)
    if reason := why_not_scored(records):
        raise refusal("`annotations`", reason, "instances to score against", "annotated recordings")
    found = parse_submission(document, path, [record.id for record in records], truth.classes)
    known, counted = judged(records, found.instances)
    scores = average_precision(known, counted, tuple(tiou), len(truth.classes), tuple(recall_at))
    return Evaluation(scores, truth.classes, (*truth.notes, *coverage_notes(records, found)))


_MEMORY = Path("annotations")


def _annotations(annotations: Any) -> Annotations:
    if isinstance(annotations, Data):
        return annotations.annotations
    if isinstance(annotations, Annotations):
        return annotations
    if isinstance(annotations, (str, Path)):
        return read_truth(annotations)
    if not isinstance(annotations, Mapping):
        raise _no_mapping("annotations", annotations, "(label, start_s, end_s)")
    if "database" in annotations:
        return parse_annotations(dict(annotations), _MEMORY, strict=False, clocks=False)
    database = {}
    for video, rows in annotations.items():
        instances = [_fields(row, "annotations", video) for row in rows or ()]
        entries = [{"label": label, "segment": [start, end]} for label, start, end, *_ in instances]
        database[str(video)] = {"annotations": None if rows is None else entries}
    return parse_annotations({"database": database}, _MEMORY, strict=False, clocks=False)


def _predictions(predictions: Any) -> tuple[dict[str, Any], Path]:
    if isinstance(predictions, (str, Path)):
        path = expanded(predictions)
        return read_document(path), path
    if not isinstance(predictions, Mapping):
        raise _no_mapping("predictions", predictions, "(label, start_s, end_s, score)")
    if "results" in predictions:
        return dict(predictions), Path("predictions")
    results = {}
    for video, rows in predictions.items():
        found = [_fields(row, "predictions", video) for row in rows]
        results[str(video)] = [{"label": d[0], "segment": [d[1], d[2]], "score": d[3]} for d in found]
    return {"results": results}, Path("predictions")


def _no_mapping(argument: str, found: Any, row: str) -> DataError:
    expected = f"a dict of recording -> [{row}, ...], a document, or the path of one"
    return refusal(f"`{argument}`", f"a {type(found).__name__}", expected, "name the recordings")


def _fields(row: Any, argument: str, video: Any) -> tuple[Any, ...]:
    """Label, start, end and, of predictions, score of one instance; plain numbers."""
    expected = "(label, start_s, end_s, score)" if argument == "predictions" else "(label, start_s, end_s)"
    try:
        label, *numbers = row
        values = [float(x) for x in numbers[:3]]
        if len(values) < (3 if argument == "predictions" else 2):
            raise ValueError
    except (TypeError, ValueError):
        found = f"{row!r}"[:80]
        raise refusal(f"`{argument}`: {video!r}", found, expected, "a tuple in this order") from None
    return (str(label), *values)


__all__ = [
    "Data",
    "DataError",
    "Evaluation",
    "PseudoLabel",
    "Run",
    "evaluate",
    "load_dataset",
    "load_model",
    "load_run",
    "train",
]
