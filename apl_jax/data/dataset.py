"""A data set opened for one run: what training may know, what it must predict, and nothing it may not see."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.batching import RowStore, Standardizer, VideoTable, padded_length
from apl_jax.data.features.folder import open_features
from apl_jax.data.features.outliers import outlier_note
from apl_jax.data.features.sources import SYNTHETIC_NOTE, data_root, transposed_note
from apl_jax.data.published import read_published
from apl_jax.data.rates import systematic_ratio
from apl_jax.data.splits import Split, annotation_notes, build_split
from apl_jax.declarations import fingerprint
from apl_jax.settings import DataSettings
from apl_jax.structs import TimeGrid


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
    windowed: bool  # the files hold feature rows; False: raw signals, windowed at load
    held: bool  # all features are in memory; False: read from their files whenever they are needed
    held_bytes: int  # of memory that features take
    identity: str  # equal for the same recordings, features and classes, however they are split
    digests: Mapping[str, str]  # by what is read: training and evaluation (features, clocks), labelled (annotations)
    notes: tuple[str, ...] = ()  # what reading the annotations changed, in words
    variant: str = ""  # which of several published versions of the data set this is (data/published.py)
    synthetic: bool = False  # synthetic features: no score on them is a result
    licence: str = ""  # of the data
    excluded: tuple[str, ...] = ()  # recordings that `data.exclude` has left out

    @property
    def digest(self) -> str:
        """Equal exactly when all digests are."""
        return fingerprint(dict(self.digests))

    @functools.cached_property
    def all_training(self) -> VideoTable:
        """Labelled and unlabelled videos together, all without annotations: what pre-training sees."""
        return self.labelled.join(self.unlabelled).without_annotations()


def open_dataset(settings: DataSettings, hold_bytes: float = math.inf) -> Dataset:
    """Reads annotations and features, splits the videos and standardises them.

    Features stay in memory up to ``hold_bytes``; beyond, they are read anew whenever they are needed. Their statistics
    are those of all training videos, labelled and unlabelled: they use no label. Raises
    :class:`~apl_jax.data.annotations.DataError`, which names file, video and field.
    """
    # Which videos show their labels goes by the classes' names even where they are not told apart.
    split = build_split(open_truth(settings, named=True), settings)
    annotations = open_truth(settings)
    source = open_features(settings)
    labelled = [annotations.videos[video] for video in split.labelled]
    unlabelled = [annotations.videos[video].without_annotations() for video in split.unlabelled]
    evaluation = [annotations.videos[video].without_annotations() for video in split.evaluation]
    seen = RowStore(labelled + unlabelled, source, settings, hold_bytes)
    unseen = RowStore(evaluation, source, settings, hold_bytes - seen.bytes if seen.held else 0)
    standardizer = Standardizer.fit(seen, settings.std_floor)
    training_t = padded_length([grid.length for grid in seen.grids], settings.length_multiple)
    evaluation_t = padded_length([grid.length for grid in unseen.grids], settings.length_multiple)
    table = [settings.length_multiple, settings.std_floor]  # how rows are padded and standardised
    return Dataset(
        name=f"{settings.title} (synthetic features)" if source.synthetic else settings.title,
        classes=annotations.classes,
        split=split,
        labelled=seen.table(labelled, 0, standardizer, training_t),
        unlabelled=seen.table(unlabelled, len(labelled), standardizer, training_t),
        evaluation=unseen.table(evaluation, 0, standardizer, evaluation_t),
        standardizer=standardizer,
        windowed=source.windowed,
        held=seen.held and unseen.held,
        held_bytes=sum(store.bytes for store in (seen, unseen) if store.held),
        identity=_feature_digest(annotations.classes, *_by_id(labelled + unlabelled + evaluation, seen, unseen)),
        digests={
            "training": fingerprint(
                table, _feature_digest(annotations.classes, labelled + unlabelled, seen.digests, seen.grids)
            ),
            "labelled": annotation_digest(labelled),
            "evaluation": fingerprint(
                table, _feature_digest(annotations.classes, evaluation, unseen.digests, unseen.grids)
            ),
        },
        licence=settings.licence,
        notes=annotations.notes
        + annotation_notes(annotations, split)
        + ((SYNTHETIC_NOTE,) if source.synthetic else ())
        + transposed_note(source, settings)
        + systematic_ratio(labelled + unlabelled + evaluation, seen.grids + unseen.grids, settings)
        + (outlier_note(source.outliers.found()) if source.outliers else ()),
        excluded=annotations.excluded,
        synthetic=source.synthetic,
        variant=annotations.variant,
    )


def open_truth(settings: DataSettings, named: bool = False) -> Annotations:
    """All annotations of the data set, the held-back ones included: for ``evaluation/`` only, never for training.

    Their classes are those that are told apart: one under ``settings.class_agnostic``, unless they are asked for with
    their names. Raises :class:`~apl_jax.data.annotations.DataError`.
    """
    annotations = read_published(data_root(settings), settings)
    return annotations.agnostic() if settings.class_agnostic and not named else annotations


def annotation_digest(records: Sequence[VideoRecord]) -> str:
    """A hash of what is annotated in some videos."""
    columns = "segments_s", "labels", "weight", "ignore"
    return fingerprint([[r.id, r.annotated, *(getattr(r, name).tolist() for name in columns)] for r in records])


def truth_digest(truth: Annotations, videos: Sequence[str]) -> str:
    """A hash of all that predictions of some videos are measured by."""
    return fingerprint(list(truth.classes), annotation_digest([truth.videos[video] for video in videos]))


def _by_id(
    records: Sequence[VideoRecord], seen: RowStore, unseen: RowStore
) -> tuple[Sequence[VideoRecord], Sequence[str], Sequence[TimeGrid]]:
    """All videos of a data set, digests of their rows, and grids: in an order that no split decides."""
    rows = zip(records, seen.digests + unseen.digests, seen.grids + unseen.grids, strict=True)
    return tuple(zip(*sorted(rows, key=lambda row: row[0].id), strict=True))  # pyright: ignore[reportReturnType]


def _feature_digest(
    classes: Sequence[str], records: Sequence[VideoRecord], digests: Sequence[str], grids: Sequence[TimeGrid]
) -> str:
    """A hash of the feature rows of some videos, of their clocks and of the classes; no annotation is in it."""
    rows = zip(records, digests, grids, strict=True)
    return fingerprint(
        list(classes), [[r.id, r.duration_s, digest, grid.fps, grid.stride, grid.window] for r, digest, grid in rows]
    )
