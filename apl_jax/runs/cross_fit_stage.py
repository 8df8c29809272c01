"""Cross-fitting: what a teacher trained on some labelled recordings finds in those that it has not seen.

The labelled recordings are divided into folds (by subject, where known); one network for each fold is trained on all
others, all of them at once (training/fold_training.py), and predicts its own. From these honest detections follows what
no rule can know: how precise which confidence is, how many steps are enough, whether a pretext helps. No annotation of
an unlabelled or evaluated recording is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apl_jax.data.folds import make_folds
from apl_jax.declarations import Choice
from apl_jax.detectors import build_detector
from apl_jax.devices import place, replicated, to_host
from apl_jax.evaluation.detections import predict_batch, to_instances
from apl_jax.evaluation.scoring import score
from apl_jax.evaluation.submission import write_submission
from apl_jax.learning.icd import InstanceBank
from apl_jax.learning.method import INSTANCES, LABELLED, Objective, build_objective
from apl_jax.runs.artefacts import CHECKPOINTS
from apl_jax.runs.context import StageInputs
from apl_jax.runs.training_stage import build_method, stage_key
from apl_jax.settings import StageSettings
from apl_jax.structs import Array, PyTree, leaves_by_name
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.training.fold_training import build_fold_step, fold_feed, fold_states
from apl_jax.training.loop import Plan, fit
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.state import TrainState
from apl_jax.training.step import build_dispatch
from apl_jax.training.writers import open_writers


@dataclass(frozen=True)
class CrossFitPart:
    """What a cross-fitting stage is handed."""

    name: str
    seed: int
    detector: Choice
    method: Choice  # of the teacher
    stage: StageSettings
    milestones: tuple[int, ...]  # steps after which held-out recordings are predicted; the last one is the end
    folds: int  # at most
    tiou: tuple[float, ...]
    crop_t: int
    steps_per_dispatch: int
    start: str = ""  # stage whose averaged parameters all networks begin with


def cross_fit(part: CrossFitPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Trains a network for each fold and scores, at each milestone, what they find in the recordings held out."""
    table = inputs.table("labelled")
    folds = make_folds(table.records, part.folds, len(inputs.classes))
    count = int(folds.max()) + 1
    if count < 2:
        return {"folds": 1, "held_out": {}}
    steps = part.milestones[-1]
    key = stage_key(inputs.mesh, part.seed, part.name)
    network = dataclasses.replace(part.stage, steps=steps)
    method, context = build_method(part.method, part.detector, network, inputs.facts)
    objective = build_objective(method, context)
    optimizer = build_optimizer(part.stage.optimizer, objective.groups, steps)
    inherited = leaves_by_name(inputs.parameters(part.start)) if part.start else {}
    begin = jax.jit(
        lambda k, old: fold_states(k, count, objective, optimizer, old), out_shardings=replicated(inputs.mesh)
    )
    shapes = jax.eval_shape(begin, jax.random.key(0), inherited)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(inputs.mesh)), shapes)
    store = Checkpoints(folder / CHECKPOINTS, inputs.runtime.checkpoint_every)
    state = store.resume(like) or begin(key, inherited)
    dispatch, feed = _dispatches(part, inputs, objective, optimizer, bool(method.constants), folds)
    held_out: dict[str, Any] = {}
    with contextlib.closing(open_writers(folder, int(to_host(state.step)), inputs.first_process)) as writer:
        for milestone in part.milestones:
            plan = Plan(part.name, milestone, part.steps_per_dispatch, inputs.runtime)
            state = fit(state, dispatch, key, feed, plan, store, writer)
            held_out[str(milestone)] = _score(part, inputs, state, folds, folder / f"held_out_{milestone}.json")
    store.close()
    return {"folds": count, "held_out": held_out}


def _dispatches(
    part: CrossFitPart, inputs: StageInputs, objective: Objective, optimizer: Any, with_bank: bool, folds: np.ndarray
) -> tuple[Any, Any]:
    """The compiled step by number of steps, and the batches of all folds."""
    everywhere = lambda tree: place(tree, replicated(inputs.mesh))
    seen = folds != np.arange(int(folds.max()) + 1)[:, None]  # [K, V]
    bank = inputs.bank if with_bank else None

    def constants(bank: InstanceBank | None, mask: Array) -> dict[str, PyTree]:
        if bank is None:
            return {}
        rows_each = len(bank.mask) // len(mask)  # a recording's rows follow one another
        return {INSTANCES: dataclasses.replace(bank, mask=bank.mask & mask.repeat(rows_each))}

    videos = jax.tree.map(lambda x: x[: len(folds)], to_host(inputs.resident("labelled")))
    feed = fold_feed(videos, seen, part.stage.labelled_batch, LABELLED, constants, bank)
    feed = feed._replace(arrays=everywhere(to_host(feed.arrays)))
    step = build_fold_step(objective, optimizer, part.stage.optimizer)
    compiled: dict[int, Any] = {}

    def dispatch(count: int) -> Any:
        if count not in compiled:
            compiled[count] = build_dispatch(step, feed, inputs.mesh, count)
        return compiled[count]

    return dispatch, feed


def _score(part: CrossFitPart, inputs: StageInputs, state: TrainState, folds: np.ndarray, path: Path) -> dict[str, Any]:
    """What every network finds in its own fold, written and scored."""
    detector, table = build_detector(part.detector, inputs.facts), inputs.table("labelled")
    predict = lambda params, videos: predict_batch(detector, params, videos)
    of_fold = lambda tree, k: jax.tree.map(lambda x: x[k], tree)
    count = int(folds.max()) + 1
    each = [
        to_host(inputs.map_videos("labelled", predict, of_fold(state.ema_params["detector"], k))) for k in range(count)
    ]
    held_out = lambda *leaves: np.stack([leaves[k][v] for v, k in enumerate(folds)])
    found = jax.tree.map(held_out, *each)
    instances, _ = to_instances(found, table.grids, None, [record.duration_s for record in table.records])
    if inputs.first_process:
        write_submission(path, instances, table.ids, inputs.classes)
    return score(table.records, instances, inputs.classes, part.tiou, ())
