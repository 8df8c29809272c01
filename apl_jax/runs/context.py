"""What the stages of one run share: data on the devices or on its way there, the devices, the ledger. No settings.

A stage is handed :class:`StageInputs`: the same, cut down to the data that the stage said it reads. Its fingerprint
holds the digests of exactly these, so that nothing it depends on can be forgotten.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.batching import VideoTable, build_targets, padded_length
from apl_jax.data.dataset import Dataset, truth_digest
from apl_jax.data.files import refusal, write_bytes
from apl_jax.data.tensors import read_tensors
from apl_jax.devices import place, replicated, to_host
from apl_jax.feeds.passes import BatchFn, BatchPlan, map_resident, map_streamed
from apl_jax.feeds.resident import place_rows, stored_videos
from apl_jax.inference.model import FOLDER, read_parameters, write_parameters
from apl_jax.learning.icd import ClassMembers, InstanceBank, build_bank, class_members, pool_instances
from apl_jax.runs.ledger import Ledger
from apl_jax.settings import RuntimeSettings
from apl_jax.stored_videos import StoredVideos
from apl_jax.structs import Array, DataFacts, Detections, PyTree, nested

PROPOSALS = "proposals.safetensors"
_GIB = 2**30

# What a stage may read, and be asked to name.
TRAINING = "training"  # features of all training videos, labelled and unlabelled, without annotations
LABELLED = "labelled"  # annotations of the labelled videos
EVALUATION = "evaluation"  # features of the evaluated videos
UNLABELLED_TRUTH = "unlabelled_truth"  # held-back annotations of the unlabelled videos: for measuring only
EVALUATION_TRUTH = "evaluation_truth"
READABLE = (TRAINING, LABELLED, EVALUATION, UNLABELLED_TRUTH, EVALUATION_TRUTH)


@dataclasses.dataclass(frozen=True, eq=False)
class RunContext:
    """One run's surroundings.

    Rows that fit are placed on the devices when first asked for, and stay there: all of them on every device where
    that fits too, otherwise a part on each. Otherwise they are ``streamed``.
    """

    dataset: Dataset
    facts: DataFacts
    truth: Annotations  # all annotations, the held-back ones included
    scored_truth: Annotations  # what predictions are scored against: under the external protocol all names of classes
    ledger: Ledger
    mesh: Mesh
    runtime: RuntimeSettings
    batches: BatchPlan  # of passes over whole videos
    device_bytes: int  # memory of all devices
    reads_unlabelled: bool  # whether some stage does

    @functools.cached_property
    def streamed(self) -> bool:
        """Whether batches are read while the devices compute (``runtime.feed``)."""
        return streams(self.runtime, self._feature_bytes, self.device_bytes)

    @property
    def copies(self) -> bool:
        """Whether every device holds all rows."""
        return holds_copies(self.runtime, self._feature_bytes, self.device_bytes, self.mesh.size)

    def describe_feed(self) -> str:
        """Where features are during the run and why, in words."""
        need, granted = self._feature_bytes / _GIB, self.runtime.device_share * self.device_bytes / _GIB
        why = "as runtime.feed asks, "
        if self.runtime.feed == "auto":
            why = f"runtime.device_share grants {granted:.2f} GiB, "
        why += f"they take {need:.2f} GiB"
        if self.streamed:
            place = "memory" if self.dataset.held else "their files, which is slower: they do not fit in memory"
            return f"streamed from {place} ({why})"
        split = "on the devices" if self.mesh.size == 1 else "on every device" if self.copies else "over the devices"
        return f"all features {split} ({why})"

    @functools.cached_property
    def labelled(self) -> StoredVideos:
        """All labelled videos with their annotations, on the devices."""
        return stored_videos(self.dataset.labelled, self._labelled_rows, 0, self.mesh)

    @functools.cached_property
    def unlabelled(self) -> StoredVideos:
        """All unlabelled videos, without targets, on the devices."""
        first = int(self.dataset.labelled.lengths.sum())
        return stored_videos(self.dataset.unlabelled, self._training_rows, first, self.mesh)

    @functools.cached_property
    def evaluation(self) -> StoredVideos:
        """The videos that are predicted and scored, on the devices."""
        table = self.dataset.evaluation
        return stored_videos(table, place_rows(table, self.mesh, self.copies), 0, self.mesh)

    @functools.cached_property
    def training(self) -> StoredVideos:
        """What pre-training sees, on the devices."""
        return stored_videos(self.dataset.all_training, self._training_rows, 0, self.mesh)

    @functools.cached_property
    def _training_rows(self) -> Array:
        """Those of the labelled videos, then those of the unlabelled ones."""
        return place_rows(self.dataset.all_training, self.mesh, self.copies)

    @functools.cached_property
    def _labelled_rows(self) -> Array:
        if self.reads_unlabelled:
            return self._training_rows
        return place_rows(self.dataset.labelled, self.mesh, self.copies)

    @functools.cached_property
    def bank(self) -> InstanceBank:
        """The memory of all labelled instances, on every device."""
        pooled = self.map_videos("labelled", lambda _, videos: pool_instances(videos), {})
        labelled = self.dataset.labelled
        targets = build_targets(labelled.records, labelled.grids)
        return jax.jit(build_bank, out_shardings=replicated(self.mesh))(pooled, targets)

    @functools.cached_property
    def members(self) -> ClassMembers:
        """The rows of the bank by class, on every device."""
        return place(class_members(to_host(self.bank), self.facts.num_classes), replicated(self.mesh))

    def table(self, videos: str) -> VideoTable:
        """One of the tables: labelled, unlabelled, training, evaluation."""
        return self.dataset.all_training if videos == "training" else getattr(self.dataset, videos)

    def map_videos(self, videos: str, function: BatchFn, params: PyTree, proposals: Detections | None = None) -> PyTree:
        """``function(params, videos)`` of all V videos of a table, some at a time, as numpy: ``[V, ...]``.
        ``proposals [V, K]`` (numpy) become those of the videos."""
        table = self.table(videos)
        if self.streamed:
            table = dataclasses.replace(table, proposals=proposals)
            return map_streamed(function, params, table, self.batches, self.mesh)
        stored = with_proposals(getattr(self, videos), proposals, self.mesh)
        return map_resident(function, params, stored, table.lengths, self.batches, self.mesh)

    def map_few(self, table: VideoTable, function: BatchFn, params: PyTree) -> PyTree:
        """As :meth:`map_videos`, of the videos of a small table, as numpy; all padded to one length, so that one
        program serves them."""
        plan = self.batches._replace(multiple=padded_length(table.lengths, self.batches.multiple))
        return map_streamed(function, params, table, plan, self.mesh)

    def digest(self, read: str) -> str:
        """The digest of one of READABLE."""
        if read == UNLABELLED_TRUTH:
            return truth_digest(self.truth, self.dataset.unlabelled.ids)
        if read == EVALUATION_TRUTH:
            return truth_digest(self.scored_truth, self.dataset.evaluation.ids)
        return self.dataset.digests[read]

    def inputs(self, reads: Iterable[str]) -> StageInputs:
        """The part that a stage sees."""
        return StageInputs(self, frozenset(reads))

    @property
    def _feature_bytes(self) -> int:
        """Memory that features take where all are on the devices once: the rows, and what the host holds where it is
        the device too."""
        dataset = self.dataset
        tables = [dataset.all_training if self.reads_unlabelled else dataset.labelled, dataset.evaluation]
        shared = dataset.held_bytes if self.mesh.devices.flat[0].platform == "cpu" else 0
        return sum(table.row_bytes for table in tables) + shared


def streams(runtime: RuntimeSettings, feature_bytes: int, device_bytes: int) -> bool:
    """Whether features that would take so much of the devices' memory are streamed (``runtime.feed``)."""
    if runtime.feed != "auto":
        return runtime.feed == "stream"
    return feature_bytes > runtime.device_share * device_bytes


def holds_copies(runtime: RuntimeSettings, feature_bytes: int, device_bytes: int, devices: int) -> bool:
    """Whether every device holds all features: where they fit so, for then steps send none of them."""
    return devices * feature_bytes <= runtime.device_share * device_bytes


def write_proposals(folder: Path, videos: str, found: Detections) -> None:
    """Keeps proposals ``[V, K]`` (numpy) of all videos of a table."""
    columns = {f.name: np.asarray(getattr(found, f.name), order="C") for f in dataclasses.fields(found)}
    write_bytes(folder / PROPOSALS, save({f"{videos}/{name}": column for name, column in columns.items()}))


def read_proposals(folder: Path) -> dict[str, Detections]:
    """The proposals that a stage left, by table."""
    path, remedy = folder / PROPOSALS, f"remove {folder}, and run the same command again"
    tables = nested(read_tensors(path, remedy))
    try:
        return {videos: Detections(**columns) for videos, columns in tables.items()}
    except TypeError:  # other columns
        raise refusal(f"{path}", "other tensors", "the proposals of every table", remedy) from None


def with_proposals(videos: StoredVideos, proposals: Detections | None, mesh: Mesh) -> StoredVideos:
    """A table on the devices with proposals ``[V, K]`` (numpy) beside its features."""
    if proposals is None:
        return videos
    return dataclasses.replace(videos, proposals=place(proposals, replicated(mesh)))


_NEEDED = {
    "labelled": (TRAINING, LABELLED),
    "unlabelled": (TRAINING,),
    "training": (TRAINING,),
    "evaluation": (EVALUATION,),
}


@dataclasses.dataclass(frozen=True, eq=False)
class StageInputs:
    """A run's surroundings as one stage sees them: data that it has not said it reads is out of reach."""

    _context: RunContext
    _reads: frozenset[str]
    _proposals: Mapping[str, Detections] = dataclasses.field(default_factory=dict)  # by table, numpy

    @property
    def facts(self) -> DataFacts:
        """What builders may know of the data."""
        return self._context.facts

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""
        return self._context.dataset.classes

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self._context.mesh

    @property
    def runtime(self) -> RuntimeSettings:
        """Machine matters, which change no result."""
        return self._context.runtime

    @property
    def streamed(self) -> bool:
        """Whether batches are read while the devices compute."""
        return self._context.streamed

    @property
    def first_process(self) -> bool:
        """Whether this process writes."""
        return self._context.ledger.first_process

    def table(self, videos: str) -> VideoTable:
        """The videos called labelled, unlabelled, training or evaluation."""
        self._require(*_NEEDED[videos])
        return dataclasses.replace(self._context.table(videos), proposals=self._proposals.get(videos))

    def resident(self, videos: str) -> StoredVideos:
        """The same, on the devices."""
        self._require(*_NEEDED[videos])
        return with_proposals(getattr(self._context, videos), self._proposals.get(videos), self.mesh)

    def pseudo_labelled(self, table: VideoTable, max_instances: int) -> StoredVideos:
        """The unlabelled videos on the devices, with the annotations that they have in ``table``."""
        targets = place(build_targets(table.records, table.grids, max_instances), replicated(self.mesh))
        return dataclasses.replace(self.resident("unlabelled"), targets=targets)

    @property
    def bank(self) -> InstanceBank:
        """The memory of all labelled instances, on every device."""
        self._require(*_NEEDED["labelled"])
        return self._context.bank

    @property
    def members(self) -> ClassMembers:
        """The rows of the bank by class, on every device."""
        self._require(*_NEEDED["labelled"])
        return self._context.members

    def unlabelled_truth(self) -> list[VideoRecord]:
        """The held-back annotations of the unlabelled videos, in the order of their table."""
        self._require(UNLABELLED_TRUTH)
        return [self._context.truth.videos[video] for video in self._context.dataset.unlabelled.ids]

    def evaluation_truth(self) -> tuple[list[VideoRecord], tuple[str, ...]]:
        """The annotations that predictions are scored against, in the order of their table, and the classes."""
        self._require(EVALUATION_TRUTH)
        known = self._context.scored_truth
        return [known.videos[video] for video in self._context.dataset.evaluation.ids], known.classes

    def map_videos(self, videos: str, function: BatchFn, params: PyTree) -> PyTree:
        """As :meth:`RunContext.map_videos`."""
        self._require(*_NEEDED[videos])
        return self._context.map_videos(videos, function, params, self._proposals.get(videos))

    def map_few(self, table: VideoTable, function: BatchFn, params: PyTree) -> PyTree:
        """As :meth:`RunContext.map_few`, of a table that :meth:`table` gave."""
        return self._context.map_few(table, function, params)

    def with_proposals(self, stage: str) -> StageInputs:
        """The same inputs, with the proposals that a stage left beside the features; "" changes nothing."""
        if not stage:
            return self
        found = read_proposals(self.folder(stage))
        labelled = len(self._context.dataset.labelled.ids)
        if TRAINING in found:  # labelled videos come first
            part = lambda low, high: jax.tree.map(lambda x: x[low:high], found[TRAINING])
            found |= {"labelled": part(0, labelled), "unlabelled": part(labelled, None)}
        return dataclasses.replace(self, _proposals={**self._proposals, **found})

    def folder(self, stage: str) -> Path:
        """Where an earlier stage left its files."""
        return self._context.ledger.folder(stage)

    def parameters(self, stage: str) -> dict[str, PyTree]:
        """The averaged parameters that a training stage left, by owner, on every device."""
        leaves = read_parameters(self.folder(stage) / FOLDER)
        return place(nested(leaves), replicated(self.mesh))

    def write_parameters(self, folder: Path, params: PyTree) -> None:
        """Keeps averaged parameters for the stages that follow, and for prediction; called by every process."""
        values = to_host(params)
        if self.first_process:
            write_parameters(folder / FOLDER, values)

    def write(self, path: Path, document: dict[str, Any]) -> None:
        """Writes a JSON file whole, from the first process only."""
        self._context.ledger.write(path, document)

    def _require(self, *needed: str) -> None:
        missing = set(needed) - self._reads
        if missing:
            raise RuntimeError(
                f"a stage reads {', '.join(sorted(missing))} without having said so: a fault of the stage"
            )
