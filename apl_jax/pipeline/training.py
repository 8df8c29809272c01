"""Training stages: one method, trained from fresh or inherited parameters, interrupted and resumed at will."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apl_jax.data.annotations import read_annotations
from apl_jax.data.feeds import Feed, device_feed
from apl_jax.learning.methods import METHODS, STAGE_METHODS
from apl_jax.learning.objective import Method
from apl_jax.pipeline.ledger import Stage
from apl_jax.pipeline.room import Room
from apl_jax.settings import Settings, StageSettings
from apl_jax.structs import Array, Batch, PyTree
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.training.loop import Plan, fit
from apl_jax.training.mesh import place, replicated, to_host
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.state import TrainState, initial_state
from apl_jax.training.step import build_dispatch
from apl_jax.training.writers import open_writers


def training_stage(
    name: str, settings: Settings, kind: str, stage: StageSettings, start: str | None, labels: str | None
) -> Stage:
    """Trains one method; ``start`` is the stage whose averaged parameters it begins with, ``labels`` the stage whose
    pseudo labels it learns from. Interrupted, it goes on from its latest checkpoint, bit for bit."""

    def run(room: Room, folder: Path) -> dict[str, Any]:
        key = _stage_key(room, settings.seed, name)
        method, optimizer, like = _fresh(room, settings, kind, stage, key)
        store = Checkpoints(folder / "checkpoints", settings.runtime.checkpoint_every)
        if store.latest() is not None:
            state = store.restore(like)
        elif start is None:
            state = like
        else:
            inherited = averaged_parameters(room, start, like)
            state = place(initial_state(key, method, optimizer, inherited), replicated(room.mesh))
        resumed = int(to_host(state.step))
        writer = open_writers(folder, resumed, room.ledger.first_process)
        feed = _feed(room, stage, kind, labels)
        compiled: dict[int, Any] = {}

        def dispatch(count: int):
            if count not in compiled:
                compiled[count] = build_dispatch(method, optimizer, feed, room.mesh, count)
            return compiled[count]

        final = fit(state, dispatch, (key, feed.arrays), Plan(name, stage.steps, settings.runtime), store, writer)
        writer.close()
        store.close()
        return {"steps": int(to_host(final.step))}

    learning = settings.learning
    depends = {
        "kind": kind, "stage": dataclasses.asdict(stage), "detector": settings.detector, "seed": settings.seed,
        "network": _trained_part(settings, kind),
        "crop": [settings.data.max_length_t, settings.data.window / settings.data.stride],
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


def _fresh(room: Room, settings: Settings, kind: str, stage: StageSettings, key: Array):
    method: Method = (STAGE_METHODS | METHODS)[kind](room.ingredients(settings, stage))
    optimizer = build_optimizer(stage.optimizer, settings.learning.selection.discriminator, stage.steps)
    make = jax.jit(lambda k: initial_state(k, method, optimizer), out_shardings=replicated(room.mesh))
    return method, optimizer, make(key)


def averaged_parameters(room: Room, stage: str, like: TrainState) -> PyTree:
    """The averaged parameters that a finished training stage left, as global arrays."""
    store = Checkpoints(room.ledger.folder(stage) / "checkpoints", 1)
    averaged = store.restore(like).averaged
    store.close()
    return averaged


def _feed(room: Room, stage: StageSettings, kind: str, labels: str | None) -> Feed:
    tables: dict[str, Batch] = {}
    videos: dict[str, int] = {}
    sizes: dict[str, int] = {}
    constants: dict[str, PyTree] = {}
    if stage.labelled_batch:
        tables["labelled"], sizes["labelled"] = room.labelled, stage.labelled_batch
        videos["labelled"] = len(room.dataset.labelled.ids)
        constants["bank"] = room.bank
    if stage.unlabelled_batch:
        sizes["unlabelled"] = stage.unlabelled_batch
        videos["unlabelled"] = len(room.dataset.unlabelled.ids)
        if labels is None:
            tables["unlabelled"] = room.all_training
            videos["unlabelled"] += len(room.dataset.labelled.ids)
        else:
            path = room.ledger.folder(labels) / "pseudo_labels.json"
            pseudo = read_annotations(path, room.dataset.classes).videos
            tables["unlabelled"] = room.pseudo_labelled([pseudo[video] for video in room.dataset.unlabelled.ids])
    missing = {"labelled", "unlabelled"} - set(tables) if kind in METHODS else set()
    if missing:
        raise ValueError(f"config.learning: stage {kind!r} needs a batch of {', '.join(missing)} videos, found 0")
    return device_feed(tables, videos, sizes, constants)


def _stage_key(room: Room, seed: int, name: str) -> Array:
    """The key of a stage, on all devices: different stages draw different numbers."""
    number = zlib.crc32(name.encode()) & 0x7FFFFFFF  # Python's own hash changes from process to process
    make = jax.jit(lambda s, n: jax.random.fold_in(jax.random.key(s), n), out_shardings=replicated(room.mesh))
    return make(np.uint32(seed), np.uint32(number))


def trained_parameters(room: Room, settings: Settings, stage: str) -> PyTree:
    """The averaged parameters of a finished training stage of the arm with these settings."""
    # All training stages of an arm share the shape of their state, whatever they minimise.
    _, _, like = _fresh(room, settings, "supervised", settings.learning.supervised, jax.random.key(0))
    return averaged_parameters(room, stage, like)
