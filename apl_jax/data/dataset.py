"""A data set opened for one run: what training may know, what it must predict, and nothing it may not see."""

from __future__ import annotations

from dataclasses import dataclass

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.batching import Standardizer, VideoTable, padded_length, read_rows, stack_table
from apl_jax.data.features import FeatureSource, data_root, open_features
from apl_jax.data.published import read_published
from apl_jax.data.splits import Split, build_split
from apl_jax.declarations import fingerprint
from apl_jax.settings import DataSettings


@dataclass(frozen=True, eq=False)
class Dataset:
    """Tables of one split. Only ``labelled`` records hold annotations: no others can be reached from here (law 3)."""

    name: str
    classes: tuple[str, ...]
    split: Split
    labelled: VideoTable  # T as in unlabelled
    unlabelled: VideoTable  # V = 0 at ratio 1; records without annotations
    evaluation: VideoTable  # records without annotations; its own T
    standardizer: Standardizer
    digest: str  # changes with the labelled annotations, the features, the split, and nothing else
    notes: tuple[str, ...] = ()  # what reading the annotations changed, in words
    variant: str = ""  # which of several published versions of the data set this is (data/published.py)


def open_dataset(settings: DataSettings) -> Dataset:
    """Reads annotations and features, splits the videos and standardises them.

    Feature statistics are those of all training videos, labelled and unlabelled: they use no label. Raises
    :class:`~apl_jax.data.annotations.DataError`, which names file, video and field.
    """
    annotations = open_truth(settings)
    split = build_split(annotations, settings)
    source = open_features(None, settings)
    labelled = [annotations.videos[video] for video in split.labelled]
    unlabelled = [annotations.videos[video].without_annotations() for video in split.unlabelled]
    evaluation = [annotations.videos[video].without_annotations() for video in split.evaluation]
    seen = [read_rows(record, source, settings) for record in labelled + unlabelled]
    unseen = [read_rows(record, source, settings) for record in evaluation]
    standardizer = Standardizer.fit([values for _, values in seen], settings.std_floor)
    training_t = padded_length([len(values) for _, values in seen], settings.length_multiple)
    evaluation_t = padded_length([len(values) for _, values in unseen], settings.length_multiple)
    count = len(labelled)
    return Dataset(
        name=settings.name,
        classes=annotations.classes,
        split=split,
        labelled=stack_table(labelled, seen[:count], standardizer, training_t),
        unlabelled=stack_table(unlabelled, seen[count:], standardizer, training_t),
        evaluation=stack_table(evaluation, unseen, standardizer, evaluation_t),
        standardizer=standardizer,
        digest=_digest(annotations.classes, split, source, labelled, unlabelled + evaluation, settings),
        notes=annotations.notes,
        variant=annotations.variant,
    )


def open_truth(settings: DataSettings) -> Annotations:
    """All annotations of the data set, the held-back ones included: for ``evaluation/`` only, never for training.

    Raises :class:`~apl_jax.data.annotations.DataError`.
    """
    return read_published(data_root(settings), settings)


def _digest(
    classes: tuple[str, ...],
    split: Split,
    source: FeatureSource,
    labelled: list[VideoRecord],
    others: list[VideoRecord],
    settings: DataSettings,
) -> str:
    """A hash of all that a run depends on; annotations outside the labelled set are not in it."""
    taught = [
        [record.id, record.segments_s.tolist(), record.labels.tolist(), record.weight.tolist(), record.ignore.tolist()]
        for record in labelled
    ]
    clocks = [[record.id, record.fps, record.duration_s] for record in labelled + others]
    rows = settings.window, settings.stride, settings.length_multiple, settings.std_floor
    return fingerprint(list(classes), split.digest, source.digest(), taught, clocks, list(rows))
