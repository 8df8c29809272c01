"""The programs of a run, from shapes: what its stages compile, with the same functions, and nothing is computed.

A training stage compiles a dispatch of some steps with the gathering of its batches, a labelling stage the prediction
of all unlabelled videos with what the selection chain observes, an evaluation the prediction of the evaluated ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apl_jax.compilation import EVALUATION, LABELLING, TRAINING
from apl_jax.compilation.shapes import RunShapes, TableShape
from apl_jax.declarations import SettingsError
from apl_jax.detectors import build_detector
from apl_jax.detectors.ensemble import members_of
from apl_jax.devices import DATA_AXIS, batch_sharding, replicated
from apl_jax.evaluation.detections import predict_batch
from apl_jax.feeds.passes import BatchFn, BatchPlan, plan_chunks, stored_program
from apl_jax.feeds.resident import Feed, device_feed, rows_layout
from apl_jax.feeds.streamed import portion_batches, portion_steps, spread
from apl_jax.learning.icd import ClassMembers, build_bank, pool_instances
from apl_jax.learning.method import DETECTOR, INSTANCES, LABELLED, PSEUDO_LABELLED, build_objective
from apl_jax.learning.selection import Known
from apl_jax.runs.context import holds_copies, streams
from apl_jax.runs.evidence import foreseen_stages
from apl_jax.runs.labelling_stage import LabellingPart, build_selection, predict_and_observe
from apl_jax.runs.scoring_stages import EvaluationPart
from apl_jax.runs.settings import Settings
from apl_jax.runs.stages import Stage
from apl_jax.runs.training_stage import (
    TrainingPart,
    abstract_state,
    batch_sizes,
    beginning,
    build_method,
    stage_step,
)
from apl_jax.stored_videos import StoredVideos
from apl_jax.structs import Batch, PyTree, Targets
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.step import build_dispatch

PSEUDO_INSTANCES = 64  # a round number of pseudo labels of a recording: how many there will be, nobody knows yet


@dataclass(frozen=True)
class Program:
    """One program of a run."""

    stages: tuple[str, ...]  # that it is compiled for
    kind: str  # one of KINDS
    calls: str  # how often it is called, in words
    lower: Callable[[], Any]  # -> jax.stages.Lowered


@dataclass(frozen=True)
class Surroundings:
    """What all programs of a run have in common."""

    settings: Settings
    shapes: RunShapes
    mesh: Mesh
    streamed: bool
    copies: bool  # whether every device holds all rows
    training_rows: int  # that the labelled and the unlabelled videos share


def surroundings(settings: Settings, shapes: RunShapes, mesh: Mesh, device_bytes: int) -> Surroundings:
    """Whether features stream follows ``runtime.feed`` and, at "auto", the memory ``device_bytes`` of all devices."""
    training = shapes.training if "semi_supervised" in settings.variants else shapes.labelled
    need = training.bytes + shapes.evaluation.bytes
    streamed = streams(settings.runtime, need, device_bytes)
    copies = holds_copies(settings.runtime, need, device_bytes, mesh.size)
    return Surroundings(settings, shapes, mesh, streamed, copies, training.rows)


def programs_of(around: Surroundings) -> list[Program]:
    """The programs of all stages that are known before the run, in order; equal ones once.

    What cross-fitting compiles, for networks of folds, is not among them. Raises
    :class:`~apl_jax.declarations.SettingsError` for a detector that wants proposals, whose number no annotation tells.
    """
    if build_detector(around.settings.detector, around.shapes.facts).facts.wants_proposals:
        wanting = f"`detector.name`: found {around.settings.detector.name!r}, which wants proposals"
        raise SettingsError(f"{wanting}, expected a detector that finds segments by itself")
    found: dict[tuple, tuple[list[str], Program]] = {}
    for stage in foreseen_stages(around.settings, around.shapes.facts, {}):
        if isinstance(stage.handed, TrainingPart):
            key, program = _training(around, stage, stage.handed)
        elif isinstance(stage.handed, LabellingPart):
            key, program = _labelling(around, stage, stage.handed)
        elif isinstance(stage.handed, EvaluationPart):
            key, program = _evaluation(around, stage, stage.handed)
        else:
            continue
        found.setdefault(key, ([], program))[0].append(stage.name)
    return [dataclasses.replace(program, stages=tuple(names)) for names, program in found.values()]


# Training


def _training(around: Surroundings, stage: Stage, part: TrainingPart) -> tuple[tuple, Program]:
    mesh, facts = around.mesh, around.shapes.facts
    detector, networks = members_of(part.detector)
    method, context = build_method(part.method, detector, part.stage, facts)
    sizes = batch_sizes(method, part.stage)
    feed, arrays = _feed(around, part, sizes, bool(method.constants))
    count = min(feed.most_steps or part.steps_per_dispatch, part.stage.steps)

    def lower() -> Any:
        objective = build_objective(method, context)
        optimizer = build_optimizer(part.stage.optimizer, objective.groups, part.stage.steps)
        step = stage_step(part, objective, optimizer, networks, mesh)
        state = abstract_state(beginning(objective, optimizer, networks), mesh)
        dispatch: Any = build_dispatch(step, feed, mesh, count)
        return dispatch.lower(state, _key(mesh), arrays)

    alike = dataclasses.replace(part.stage, steps=0 if part.stage.steps >= count else part.stage.steps)
    key = (TRAINING, part.detector, part.method, alike, count)
    calls = f"every {count} steps" if count > 1 else "every step"
    return key, Program((stage.name,), TRAINING, calls, lower)


def _feed(around: Surroundings, part: TrainingPart, sizes: dict[str, int], with_instances: bool) -> tuple[Feed, PyTree]:
    """A stage's feed, and the arrays that a dispatch is given."""
    shapes, mesh, runtime = around.shapes, around.mesh, around.settings.runtime
    constants = {INSTANCES: _replicated(_bank(shapes), mesh)} if with_instances else {}
    most = {LABELLED: shapes.labelled.most_instances, PSEUDO_LABELLED: PSEUDO_INSTANCES}
    tables = {videos: shapes.table(videos) for videos in sizes}
    if not around.streamed:
        rows = _rows(around, around.training_rows)
        placed = {name: _stored(around, table, rows, most.get(name, 1)) for name, table in tables.items()}
        feed = device_feed(placed, sizes, constants)
        return feed, feed.arrays
    window_t = int(np.ceil(part.stream_window * part.crop_t))
    steps_t = {name: min(table.length_t, window_t) for name, table in tables.items()}
    step_bytes = sum(4 * sizes[name] * steps_t[name] * table.width for name, table in tables.items())
    count = portion_steps(step_bytes, runtime)
    portion = {
        name: batch_shape((count, sizes[name]), steps_t[name], t.width, most.get(name, 1), spread(mesh, sizes[name]))
        for name, t in tables.items()
    }
    first = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return Feed({}, portion_batches, sizes, None, count), {"first": first, "portion": portion, "constants": constants}


# Passes over all videos


def _labelling(around: Surroundings, stage: Stage, part: LabellingPart) -> tuple[tuple, Program]:
    shapes = around.shapes
    detector = build_detector(part.detector, shapes.facts)
    link = build_selection(part.selection, shapes.facts)
    settings = around.settings.learning

    def lower() -> Any:
        method, context = build_method(
            settings.teacher, members_of(part.detector)[0], settings.supervised, shapes.facts
        )
        params = jax.eval_shape(lambda: build_objective(method, context).init(jax.random.key(0))[0])
        params = {**params, DETECTOR: jax.eval_shape(lambda: detector.init(jax.random.key(0))[0])}
        most = max(max(shapes.instances_of_class), 1)
        rows = jax.ShapeDtypeStruct((shapes.facts.num_classes, most), jnp.int32)
        members = ClassMembers(rows, jax.ShapeDtypeStruct(rows.shape, bool))  # pyright: ignore[reportArgumentType]
        known = Known(params, _bank(shapes), members)
        return _pass(around, predict_and_observe(detector, link), known, shapes.unlabelled)

    calls = _calls(around, shapes.unlabelled)
    return (LABELLING, part.detector, part.selection), Program((stage.name,), LABELLING, calls, lower)


def _evaluation(around: Surroundings, stage: Stage, part: EvaluationPart) -> tuple[tuple, Program]:
    detector = build_detector(part.detector, around.shapes.facts)

    def lower() -> Any:
        params = jax.eval_shape(lambda: detector.init(jax.random.key(0))[0])
        function = lambda params, videos: predict_batch(detector, params, videos)
        return _pass(around, function, params, around.shapes.evaluation)

    calls = _calls(around, around.shapes.evaluation)
    return (EVALUATION, part.detector), Program((stage.name,), EVALUATION, calls, lower)


def _pass(around: Surroundings, function: BatchFn, params: PyTree, table: TableShape) -> Any:
    """The largest batch of a pass over a table."""
    mesh, plan = around.mesh, _batch_plan(around.settings)
    params = _replicated(params, mesh)
    largest = max(plan_chunks(table.lengths, plan, mesh.size), key=lambda c: (len(c.rows) + c.fill) * c.length_t)
    count = len(largest.rows) + largest.fill
    if not around.streamed:
        rows = _rows(around, table.rows if table is around.shapes.evaluation else around.training_rows)
        stored = _stored(around, table, rows, table.most_instances)
        chosen = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=batch_sharding(mesh, count))
        return stored_program(function, mesh).lower(params, stored, chosen, largest.length_t)
    over = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    videos = batch_shape((count,), largest.length_t, table.width, table.most_instances, over)
    return jax.jit(function).lower(params, videos)


def _calls(around: Surroundings, table: TableShape) -> str:
    chunks = plan_chunks(table.lengths, _batch_plan(around.settings), around.mesh.size)
    shapes = {(len(chunk.rows) + chunk.fill, chunk.length_t) for chunk in chunks}
    largest = f", in {len(shapes)} shapes, of which the largest is shown" if len(shapes) > 1 else ""
    return f"{len(chunks)} times{largest}" if len(chunks) > 1 else "once"


def _batch_plan(settings: Settings) -> BatchPlan:
    runtime, data = settings.runtime, settings.data
    return BatchPlan(runtime.prediction_batch, data.max_length_t, data.length_multiple, runtime.read_threads)


# Shapes


def batch_shape(
    leading: tuple[int, ...], length_t: int, width: int, most: int = 1, sharding: NamedSharding | None = None
) -> Batch:
    """A batch of videos, ``leading`` before T, with at most ``most`` instances each, as shapes."""

    def shape(*rest: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((*leading, *rest), dtype, sharding=sharding)

    targets = Targets(
        segments_t=shape(most, 2), labels=shape(most, dtype=jnp.int32), mask=shape(most, dtype=bool),
        weight=shape(most), ignore_mask=shape(most, dtype=bool),
    )  # fmt: skip
    return Batch(shape(length_t, width), shape(length_t, dtype=bool), targets, shape(dtype=jnp.int32))


def _rows(around: Surroundings, count: int) -> Any:
    """The rows of a table on the devices."""
    shape, sharding = rows_layout(count, around.shapes.facts.feature_width, around.mesh, around.copies)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def _stored(around: Surroundings, table: TableShape, rows: Any, most: int) -> StoredVideos:
    """The videos of a table whose rows are among ``rows``, with at most ``most`` instances each."""
    batch = batch_shape((table.videos,), table.length_t, table.width, most, replicated(around.mesh))
    return StoredVideos(rows, batch.video, batch.video, batch.video, batch.targets, steps=table.length_t)


def _bank(shapes: RunShapes) -> PyTree:
    """The memory of all labelled instances."""
    table = shapes.labelled
    videos = batch_shape((table.videos,), table.length_t, table.width, table.most_instances)
    return jax.eval_shape(lambda v: build_bank(pool_instances(v), v.targets), videos)


def _replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)


def _key(mesh: Mesh) -> Any:
    return _replicated(jax.eval_shape(lambda: jax.random.key(0)), mesh)
