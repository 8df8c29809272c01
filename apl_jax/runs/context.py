"""What the stages of one run share: data on the devices or on its way there, the devices, the ledger. No settings.

A stage is handed :class:`StageInputs`: the same, cut down to the data that the stage said it reads. Its fingerprint
holds the digests of exactly these, so that nothing it depends on can be forgotten.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.batching import VideoTable, build_targets, padded_length, whole_table
from apl_jax.data.dataset import Dataset, truth_digest
from apl_jax.data.files import refusal, write_bytes
from apl_jax.data.tensors import read_tensors
from apl_jax.devices import first_rows, place, replicated, shard_batch, to_host
from apl_jax.feeds.passes import BatchFn, BatchPlan, map_resident, map_streamed
from apl_jax.inference.model import FOLDER, read_parameters, write_parameters
from apl_jax.learning.icd import ClassMembers, InstanceBank, build_bank, class_members, pool_instances
from apl_jax.runs.ledger import Ledger
from apl_jax.settings import RuntimeSettings
from apl_jax.structs import Batch, DataFacts, Detections, PyTree, nested

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

    Tables that fit are split over the devices when first asked for, and stay there; rows of zeros may follow their
    videos, to let the devices divide them. Otherwise they are ``streamed``.
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
    pretrains: bool  # whether some stage needs all training videos in one table

    @functools.cached_property
    def streamed(self) -> bool:
        """Whether batches are read while the devices compute (``runtime.feed``)."""
        return streams(self.runtime, self._feature_bytes, self.device_bytes)

    def describe_feed(self) -> str:
        """Where features are during the run and why, in words."""
        need, granted = self._feature_bytes / _GIB, self.runtime.device_share * self.device_bytes / _GIB
        why = "as runtime.feed asks"
        if self.runtime.feed == "auto":
            why = f"they would take {need:.2f} GiB, runtime.device_share grants {granted:.2f} GiB"
        place = "memory" if self.dataset.held else "their files, which is slower: they do not fit in memory"
        return f"streamed from {place} ({why})" if self.streamed else f"all features on the devices ({why})"

    @functools.cached_property
    def labelled(self) -> Batch:
        """All labelled videos with their annotations, on the devices."""
        return self._place(self.dataset.labelled)

    @functools.cached_property
    def unlabelled(self) -> Batch:
        """All unlabelled videos, without targets, on the devices."""
        return self._place(self.dataset.unlabelled)

    @functools.cached_property
    def evaluation(self) -> Batch:
        """The videos that are predicted and scored, on the devices."""
        return self._place(self.dataset.evaluation)

    @functools.cached_property
    def training(self) -> Batch:
        """What pre-training sees, on the devices."""
        return self._place(self.dataset.all_training)

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
        """``function(params, videos)`` of all V videos of a table, some at a time: ``[V, ...]``, on the devices, or as
        numpy where data is streamed. ``proposals [V, K]`` (numpy) become those of the videos."""
        table = self.table(videos)
        if self.streamed:
            table = dataclasses.replace(table, proposals=proposals)
            return map_streamed(function, params, table, self.batches, self.mesh)
        batch = with_proposals(getattr(self, videos), proposals, self.mesh)
        found = map_resident(function, params, batch, self.batches.batch, self.mesh)
        return jax.jit(lambda t: first_rows(t, len(table.ids)))(found)

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

    def _place(self, table: VideoTable) -> Batch:
        return shard_batch(whole_table(table), self.mesh)

    @property
    def _feature_bytes(self) -> int:
        """Memory that features take where all are on the devices: the padded tables that the run's stages put there,
        a copy of the largest for a pass over it, and what the host holds where it is the device too."""
        dataset = self.dataset
        tables = [dataset.labelled, dataset.unlabelled, dataset.evaluation]
        tables += [dataset.all_training] if self.pretrains else []
        shared = dataset.held_bytes if self.mesh.devices.flat[0].platform == "cpu" else 0
        return resident_bytes([table.padded_bytes for table in tables]) + shared


def resident_bytes(tables: Sequence[int]) -> int:
    """Memory of padded tables of so many bytes each, and of a copy of the largest for a pass over it."""
    return sum(tables) + max(tables)


def streams(runtime: RuntimeSettings, feature_bytes: int, device_bytes: int) -> bool:
    """Whether features that would take so much of the devices' memory are streamed (``runtime.feed``)."""
    if runtime.feed != "auto":
        return runtime.feed == "stream"
    return feature_bytes > runtime.device_share * device_bytes


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


def with_proposals(batch: Batch, proposals: Detections | None, mesh: Mesh) -> Batch:
    """A table on the devices with proposals ``[V, K]`` (numpy) beside its features."""
    return batch if proposals is None else dataclasses.replace(batch, proposals=shard_batch(proposals, mesh))


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

    def resident(self, videos: str) -> Batch:
        """The same, on the devices."""
        self._require(*_NEEDED[videos])
        return with_proposals(getattr(self._context, videos), self._proposals.get(videos), self.mesh)

    def pseudo_labelled(self, table: VideoTable, max_instances: int) -> Batch:
        """The unlabelled videos on the devices, with the annotations that they have in ``table``."""
        targets = shard_batch(build_targets(table.records, table.grids, max_instances), self.mesh)
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
