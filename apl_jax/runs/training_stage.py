"""Training stages: one method, trained from fresh or inherited parameters, interrupted and resumed at will."""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from apl_jax.data.annotations import read_annotations
from apl_jax.data.batching import VideoTable
from apl_jax.feeds.resident import Feed, device_feed
from apl_jax.learning.methods import METHODS, STAGE_METHODS
from apl_jax.learning.objective import Ingredients, Method
from apl_jax.runs.ledger import Stage
from apl_jax.runs.context import Room, build_ingredients
from apl_jax.settings import Settings, StageSettings
from apl_jax.structs import Array, PyTree
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.training.loop import Plan, fit
from apl_jax.devices import replicated, to_host
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.state import TrainState, initial_state
from apl_jax.training.step import build_dispatch
from apl_jax.feeds.streamed import stream_feed
from apl_jax.training.writers import open_writers


def training_stage(
    name: str, settings: Settings, kind: str, stage: StageSettings, start: str | None, labels: str | None
) -> Stage:
    """Trains one method; ``start`` is the stage whose averaged parameters it begins with, ``labels`` the stage whose
    pseudo labels it learns from. Interrupted, it goes on from its latest checkpoint, bit for bit."""

    def run(room: Room, folder: Path) -> dict[str, Any]:
        key = _stage_key(room, settings.seed, name)
        method, optimizer = _objective(room.ingredients(settings, stage), kind)
        like = abstract_state(method, optimizer, room.mesh)
        store = Checkpoints(folder / "checkpoints", settings.runtime.checkpoint_every)
        if store.latest() is not None:
            state = store.restore(like)
        else:
            # Compiled as one program, for parts computed one by one take seconds.
            make = jax.jit(
                lambda k, inherited: initial_state(k, method, optimizer, inherited), out_shardings=replicated(room.mesh)
            )
            state = make(key, None if start is None else averaged_parameters(room, start, like))
        resumed = int(to_host(state.step))
        writer = open_writers(folder, resumed, room.ledger.first_process)
        feed = _feed(room, key, stage, kind, labels)
        compiled: dict[int, Any] = {}

        def dispatch(count: int):
            if count not in compiled:
                compiled[count] = build_dispatch(method, optimizer, feed, room.mesh, count)
            return compiled[count]

        final = fit(state, dispatch, key, feed, Plan(name, stage.steps, settings.runtime), store, writer)
        writer.close()
        store.close()
        return {"steps": int(to_host(final.step))}

    learning = settings.learning
    depends = {
        "kind": kind, "stage": dataclasses.asdict(stage), "detector": settings.detector, "seed": settings.seed,
        "network": _trained_part(settings, kind),
        "crop": [settings.data.max_length_t, settings.data.stream_window],
        "contrastive": dataclasses.asdict(learning.contrastive), "unlabelled_weight": learning.unlabelled_weight,
        "nontarget": dataclasses.asdict(learning.nontarget) if "nontarget" in kind else None,
        "foreground_share": learning.foreground_share if kind == "foreground" else None,
        "discriminator": dataclasses.asdict(learning.selection.discriminator),
        "portions": [settings.runtime.steps_per_dispatch],
    }  # fmt: skip
    return Stage(name, tuple(n for n in (start, labels) if n), depends, run)


def _trained_part(settings: Settings, kind: str) -> dict[str, Any]:
    """The detector's settings but for its NMS, which may be changed without training again; not so where pseudo labels
    are made on line, for they pass it."""
    online = kind == "nontarget" and settings.learning.nontarget.pseudo_labels != "teacher"
    return {k: v for k, v in dataclasses.asdict(settings.network).items() if k != "nms" or online}


def _objective(parts: Ingredients, kind: str) -> tuple[Method, optax.GradientTransformation]:
    """What a stage of this kind minimises, and its optimiser."""
    discriminator = parts.settings.selection.discriminator
    optimizer = build_optimizer(parts.stage.optimizer, discriminator, parts.stage.steps)
    return (STAGE_METHODS | METHODS)[kind](parts), optimizer


def abstract_state(method: Method, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and placement of a train state, without computing anything."""
    shapes = jax.eval_shape(lambda: initial_state(jax.random.key(0), method, optimizer))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes)


def abstract_arm(settings: Settings, feature_width: int, classes: int, mesh: Mesh) -> TrainState:
    """The :func:`abstract_state` of an arm: all its training stages share it, whatever they minimise."""
    parts = build_ingredients(settings, settings.learning.supervised, feature_width, classes)
    return abstract_state(*_objective(parts, "supervised"), mesh)


def averaged_parameters(room: Room, stage: str, like: TrainState) -> PyTree:
    """The averaged parameters that a finished training stage left, as global arrays."""
    store = Checkpoints(room.ledger.folder(stage) / "checkpoints", 1)
    averaged = store.restore(like).averaged
    store.close()
    return averaged


def _feed(room: Room, key: Array, stage: StageSettings, kind: str, labels: str | None) -> Feed:
    """The batches of a stage: labelled videos, and the unlabelled ones with the pseudo labels of the stage ``labels``;
    where there are none, all videos without annotations."""
    dataset = room.dataset
    tables: dict[str, VideoTable] = {}
    if stage.labelled_batch:
        tables["labelled"] = dataset.labelled
    if stage.unlabelled_batch:
        tables["unlabelled"] = dataset.all_training if labels is None else _pseudo_labelled(room, labels)
    missing = {"labelled", "unlabelled"} - set(tables) if kind in METHODS else set()
    if missing:
        raise ValueError(f"config.learning: stage {kind!r} needs a batch of {', '.join(missing)} videos, found 0")
    sizes = {"labelled": stage.labelled_batch, "unlabelled": stage.unlabelled_batch}
    sizes = {role: sizes[role] for role in tables}
    constants = {"bank": room.bank} if stage.labelled_batch else {}
    # N is rounded up to a power of two, so that another round of labels seldom means another program.
    most = {role: max((len(record.labels) for record in table.records), default=0) for role, table in tables.items()}
    most = {role: 1 << max(count - 1, 0).bit_length() if role == "unlabelled" else None for role, count in most.items()}
    if room.streamed:
        data, runtime = room.settings.data, room.settings.runtime
        window_t = math.ceil(data.stream_window * data.max_length_t)
        return stream_feed(tables, sizes, constants, key, stage.steps, window_t, runtime, room.mesh, most)
    placed = {
        role: room.labelled if role == "labelled"
        else room.all_training if labels is None
        else room.pseudo_labelled(table, most[role] or 1)
        for role, table in tables.items()
    }  # fmt: skip
    return device_feed(placed, {role: len(table.ids) for role, table in tables.items()}, sizes, constants)


def _pseudo_labelled(room: Room, labels: str) -> VideoTable:
    """The unlabelled videos with the annotations that the stage ``labels`` wrote."""
    path = room.ledger.folder(labels) / "pseudo_labels.json"
    pseudo = read_annotations(path, room.dataset.classes).videos
    table = room.dataset.unlabelled
    return dataclasses.replace(table, records=tuple(pseudo[video] for video in table.ids))


def _stage_key(room: Room, seed: int, name: str) -> Array:
    """The key of a stage, on all devices: different stages draw different numbers."""
    number = zlib.crc32(name.encode()) & 0x7FFFFFFF  # Python's own hash changes from process to process
    make = jax.jit(lambda s, n: jax.random.fold_in(jax.random.key(s), n), out_shardings=replicated(room.mesh))
    return make(np.uint32(seed), np.uint32(number))


def trained_parameters(room: Room, settings: Settings, stage: str) -> PyTree:
    """The averaged parameters of a finished training stage of the arm with these settings."""
    like = abstract_arm(settings, room.feature_width, len(room.dataset.classes), room.mesh)
    return averaged_parameters(room, stage, like)
