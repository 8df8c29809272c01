"""Training stages: one method, trained from fresh or inherited parameters, interrupted and resumed at will."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from apl_jax.data.annotations import read_annotations
from apl_jax.data.batching import VideoTable
from apl_jax.declarations import Choice, SettingsError
from apl_jax.detectors import build_detector
from apl_jax.detectors.ensemble import members_of
from apl_jax.devices import replicated, to_host
from apl_jax.feeds.resident import Feed, device_feed
from apl_jax.feeds.streamed import stream_feed
from apl_jax.inference.model import GENERATOR
from apl_jax.learning.method import (
    DETECTOR,
    INSTANCES,
    LABELLED,
    PSEUDO_LABELLED,
    Method,
    MethodContext,
    Objective,
    build_objective,
    random_view,
)
from apl_jax.registry import METHODS
from apl_jax.runs.artefacts import CHECKPOINTS
from apl_jax.runs.context import StageInputs
from apl_jax.settings import StageSettings
from apl_jax.structs import Array, DataFacts, leaves_by_name
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.training.loop import Plan, fit
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.side_by_side import at_once, build_steps, inherited_by_each, initial_states
from apl_jax.training.state import TrainState, inherits, initial_state
from apl_jax.training.step import build_dispatch, build_step
from apl_jax.training.writers import open_writers

PSEUDO_LABELS = "pseudo_labels.json"
Beginning = Callable[[Array, Mapping[str, Array]], TrainState]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPart:
    """What a training stage is handed."""

    name: str  # seeds the stage's key: different stages draw different numbers
    seed: int
    detector: Choice  # without its decoding, which training does not read
    method: Choice
    stage: StageSettings
    crop_t: int  # grid steps of a training crop
    stream_window: float  # of the crop: what a stream reads of longer videos
    steps_per_dispatch: int
    start: str = ""  # stage whose averaged parameters it begins with
    labels: str = ""  # stage whose pseudo labels it learns from
    proposals: str = ""  # stage that left proposals, for detectors that want them
    proposer: str = ""  # stage that trained the network which makes proposals; it goes with the model


def build_method(
    method: Choice, detector: Choice, stage: StageSettings, facts: DataFacts
) -> tuple[Method, MethodContext]:
    """The method that a stage trains by, and what it was built from."""
    context = MethodContext(build_detector(detector, facts), random_view(stage.perturb, facts), facts)
    return METHODS[method.name].build(method.settings, context), context


def batch_sizes(method: Method, stage: StageSettings) -> dict[str, int]:
    """How many videos of each kind a step sees, by kind, in their order in a feed."""
    size = lambda videos: stage.labelled_batch if videos == LABELLED else stage.unlabelled_batch
    return {videos: size(videos) for videos in sorted(method.videos)}


def stage_step(
    part: TrainingPart, objective: Objective, optimizer: optax.GradientTransformation, networks: int, mesh: Mesh
) -> Callable:
    """The step of one network (``networks`` 0), or of so many side by side."""
    if networks:
        return build_steps(objective, optimizer, part.stage.optimizer, at_once(mesh), shared=True)
    return build_step(objective, optimizer, part.stage.optimizer)


def train(part: TrainingPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Trains one method; interrupted, it goes on from its latest checkpoint, bit for bit."""
    inputs = inputs.with_proposals(part.proposals)
    key = stage_key(inputs.mesh, part.seed, part.name)
    detector, networks = members_of(part.detector)
    method, context = build_method(part.method, detector, part.stage, inputs.facts)
    objective = build_objective(method, context)
    optimizer = build_optimizer(part.stage.optimizer, objective.groups, part.stage.steps)
    begin = beginning(objective, optimizer, networks)
    store = Checkpoints(folder / CHECKPOINTS, inputs.runtime.checkpoint_every)
    state = store.resume(abstract_state(begin, inputs.mesh))
    if state is None:
        state = fresh_state(part, inputs, begin, key)
    resumed = int(to_host(state.step))
    feed = build_feed(part, inputs, method, key)
    step = stage_step(part, objective, optimizer, networks, inputs.mesh)
    compiled: dict[int, Any] = {}

    def dispatch(count: int):
        if count not in compiled:
            compiled[count] = build_dispatch(step, feed, inputs.mesh, count)
        return compiled[count]

    plan = Plan(part.name, part.stage.steps, part.steps_per_dispatch, inputs.runtime)
    with contextlib.closing(open_writers(folder, resumed, inputs.first_process)) as writer:
        final = fit(state, dispatch, key, feed, plan, store, writer)
    store.close()
    params = final.ema_params
    if part.proposer:  # prediction makes proposals itself
        params = params | {GENERATOR: inputs.parameters(part.proposer)[DETECTOR]}
    inputs.write_parameters(folder, params)
    return {"steps": int(to_host(final.step))}


def beginning(objective: Objective, optimizer: optax.GradientTransformation, networks: int) -> Beginning:
    """``begin(key, inherited) -> state`` of one network (``networks`` 0), or of so many side by side."""
    if not networks:
        return lambda key, old: initial_state(key, objective, optimizer, old)
    return lambda key, old: initial_states(jax.random.split(key, networks), objective, optimizer, old)


def fresh_state(part: TrainingPart, inputs: StageInputs, begin: Beginning, key: Array) -> TrainState:
    """The state before the first step; says which parameters an earlier stage could not give."""
    inherited = leaves_by_name(inputs.parameters(part.start)) if part.start else {}
    if part.start and inputs.first_process:
        fresh = leaves_by_name(jax.eval_shape(begin, jax.random.key(0), {}).params)
        fits = inherited_by_each if members_of(part.detector)[1] else inherits
        own = [name for name, leaf in fresh.items() if not fits(leaf, inherited.get(name))]
        if own:
            log.info(
                "%s: %d of %d parameters are not %s's, such as %s", part.name, len(own), len(fresh), part.start, own[0]
            )
    # Compiled as one program, for parts computed one by one take seconds.
    return jax.jit(begin, out_shardings=replicated(inputs.mesh))(key, inherited)


def abstract_state(begin: Beginning, mesh: Mesh) -> TrainState:
    """Shapes, types and placement of a train state, without computing anything."""
    shapes = jax.eval_shape(lambda: begin(jax.random.key(0), {}))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes)


def build_feed(part: TrainingPart, inputs: StageInputs, method: Method, key: Array) -> Feed:
    """The batches of a stage, by what its method's passes ask for."""
    tables, sizes = {}, batch_sizes(method, part.stage)
    for videos, size in sizes.items():
        if size < 1:
            kind = "labelled" if videos == LABELLED else "unlabelled"
            found = f"`learning`: found a {kind}_batch of 0 in stage {part.name!r}"
            raise SettingsError(f"{found}, expected at least 1: method {part.method.name!r} reads {videos} videos")
        labelled_by_stage = videos == PSEUDO_LABELLED
        tables[videos] = pseudo_labelled(inputs, part.labels) if labelled_by_stage else inputs.table(videos)
    constants = {INSTANCES: inputs.bank} if method.constants else {}
    # N is rounded up to a power of two, so that another round of labels seldom means another program.
    most = {name: most_instances(table) if name == PSEUDO_LABELLED else None for name, table in tables.items()}
    if inputs.streamed:
        window_t = math.ceil(part.stream_window * part.crop_t)
        steps = part.stage.steps
        return stream_feed(tables, sizes, constants, key, steps, window_t, inputs.runtime, inputs.mesh, most)
    placed = {
        name: inputs.pseudo_labelled(table, most[name] or 1) if name == PSEUDO_LABELLED else inputs.resident(name)
        for name, table in tables.items()
    }
    return device_feed(placed, sizes, constants)


def most_instances(table: VideoTable) -> int:
    """The most instances of a recording, rounded up to a power of two."""
    most = max((len(record.labels) for record in table.records), default=0)
    return 1 << max(most - 1, 0).bit_length()


def pseudo_labelled(inputs: StageInputs, labels: str) -> VideoTable:
    """The unlabelled videos with the annotations that the stage ``labels`` wrote."""
    pseudo = read_annotations(inputs.folder(labels) / PSEUDO_LABELS, inputs.classes).videos
    table = inputs.table("unlabelled")
    return dataclasses.replace(table, records=tuple(pseudo[video] for video in table.ids))


def stage_key(mesh: Mesh, seed: int, name: str) -> Array:
    """The key of a stage, on all devices: different stages draw different numbers."""
    number = zlib.crc32(name.encode()) & 0x7FFFFFFF  # Python's own hash changes from process to process
    make = jax.jit(lambda s, n: jax.random.fold_in(jax.random.key(s), n), out_shardings=replicated(mesh))
    return make(np.uint32(seed), np.uint32(number))
