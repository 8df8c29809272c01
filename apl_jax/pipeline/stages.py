"""The stages of a run. Each reads what its needs wrote, writes into its own folder, and returns JSON types.

An *arm* is a row of the final table: ``supervised`` (annotated videos only, the plain detector), ``supervised_matched``
(the same for as many steps as the semi-supervised arm takes altogether), ``semi_supervised`` (the method itself).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from apl_jax.data.annotations import read_annotations
from apl_jax.data.feeds import Feed, device_feed
from apl_jax.evaluation.average_precision import (
    Instances,
    average_precision,
    instances_from_annotations,
    write_submission,
)
from apl_jax.evaluation.label_quality import label_quality
from apl_jax.evaluation.predict import predict_table, to_instances, to_rows
from apl_jax.learning.instances import mean_similarity
from apl_jax.learning.methods import METHODS, STAGE_METHODS, Method
from apl_jax.learning.selection import build_selector, refine
from apl_jax.pipeline.room import Room
from apl_jax.settings import Settings, StageSettings
from apl_jax.structs import Array, Batch, Detections, PseudoLabels, PyTree, Reason
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.training.loop import Plan, fit
from apl_jax.training.mesh import place, replicated, to_host
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.state import TrainState, initial_state
from apl_jax.training.step import build_dispatch
from apl_jax.training.writers import open_writers


class Stage(NamedTuple):
    """A step of the calendar."""

    name: str
    needs: tuple[str, ...]  # names of earlier stages
    depends_on: Any  # JSON types: with the needs' fingerprints and the data's digest, all that the result depends on
    run: Callable[[Room, Path], dict[str, Any]]


def plan_stages(settings: Settings) -> list[Stage]:
    """All stages of a run in order: each arm's training, its pseudo labels, its evaluation."""
    plain = plain_settings(settings)
    learning = settings.learning
    stages: list[Stage] = []
    if "supervised" in settings.arms:
        stages += _supervised_arm("supervised", plain, learning.supervised)
    if "supervised_matched" in settings.arms:
        longer = dataclasses.replace(learning.supervised, steps=matched_steps(settings))
        stages += _supervised_arm("supervised_matched", plain, longer)
    if "semi_supervised" in settings.arms:
        stages += _semi_supervised_arm(settings)
    return stages


def plain_settings(settings: Settings) -> Settings:
    """The baseline: the detector without quality heads, contrast or discriminator."""
    detector = dataclasses.replace(
        settings.actionformer, quality=dataclasses.replace(settings.actionformer.quality, branches="none")
    )
    selection = settings.learning.selection
    learning = dataclasses.replace(
        settings.learning,
        contrastive=dataclasses.replace(settings.learning.contrastive, later="none"),
        selection=dataclasses.replace(
            selection, discriminator=dataclasses.replace(selection.discriminator, enabled=False)
        ),
    )
    return dataclasses.replace(settings, actionformer=detector, learning=learning)


def matched_steps(settings: Settings) -> int:
    """Optimiser steps that the semi-supervised arm takes altogether, pre-training included."""
    learning = settings.learning
    return learning.pretrain.steps + learning.supervised.steps + learning.rounds * learning.self_train.steps


def _supervised_arm(name: str, settings: Settings, stage: StageSettings) -> list[Stage]:
    return [
        training_stage(name, settings, "supervised", stage, None, None),
        evaluation_stage(f"{name}_evaluation", settings, name),
    ]


def _semi_supervised_arm(settings: Settings) -> list[Stage]:
    learning = settings.learning
    stages: list[Stage] = []
    start = None
    if learning.pretrain.steps > 0:
        stages.append(training_stage("pretrain", settings, "pretrain", learning.pretrain, None, None))
        start = "pretrain"
    stages.append(training_stage("teacher", settings, "supervised", learning.supervised, start, None))
    stages.append(evaluation_stage("teacher_evaluation", settings, "teacher"))
    teacher = "teacher"
    for r in range(1, learning.rounds + 1):
        labels, student = f"pseudo_label_{r}", f"self_train_{r}"
        stages.append(labelling_stage(labels, settings, teacher))
        stages.append(training_stage(student, settings, learning.method, learning.self_train, teacher, labels))
        stages.append(evaluation_stage(f"{student}_evaluation", settings, student))
        teacher = student
    return stages


# Training


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
        "network": _trained_part(settings),
        "crop": [settings.data.max_length_t, settings.data.window / settings.data.stride],
        "contrastive": dataclasses.asdict(learning.contrastive), "unlabelled_weight": learning.unlabelled_weight,
        "discriminator": dataclasses.asdict(learning.selection.discriminator),
        "portions": [settings.runtime.steps_per_dispatch],
    }  # fmt: skip
    return Stage(name, tuple(n for n in (start, labels) if n), depends, run)


def _trained_part(settings: Settings) -> dict[str, Any]:
    """The detector's settings but for its NMS, which may be changed without training again."""
    return {k: v for k, v in dataclasses.asdict(settings.actionformer).items() if k != "nms"}


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


# Pseudo labels


def labelling_stage(name: str, settings: Settings, teacher: str) -> Stage:
    """Predicts the whole unlabelled set with the teacher's averaged parameters, selects, asks ICD, and writes the
    verdicts as annotations; then scores them against the truth that training never sees (Figure 3(c))."""

    def run(room: Room, folder: Path) -> dict[str, Any]:
        params = _teacher_parameters(room, settings, teacher)
        labels, tau = _label(room, settings, params)
        ids = [record.id for record in room.dataset.unlabelled.records]
        room.ledger.write(folder / "pseudo_labels.json", _document(room, labels, name))
        instances, reason = to_instances(labels.detections, room.dataset.unlabelled.grids, np.asarray(labels.reason))
        truth = instances_from_annotations([room.truth.videos[video] for video in ids])
        counts = {r.name.lower(): int((reason == r).sum()) for r in Reason if r is not Reason.BELOW}
        return {"tau_pos": tau, "counts": counts, "quality": label_quality(instances, reason, truth)}

    depends = {
        "selection": dataclasses.asdict(settings.learning.selection),
        "nms": dataclasses.asdict(settings.actionformer.nms),
    }
    return Stage(name, (teacher,), depends, run)


def _teacher_parameters(room: Room, settings: Settings, teacher: str) -> PyTree:
    # All training stages of an arm share the shape of their state, whatever they minimise.
    _, _, like = _fresh(room, settings, "supervised", settings.learning.supervised, jax.random.key(0))
    return averaged_parameters(room, teacher, like)


def label_table(
    settings: Settings, room: Room, params: PyTree, table: Batch, bank: PyTree
) -> tuple[PseudoLabels, Array]:
    """The whole pass over the unlabelled set as one traceable masked computation: predict, NMS, tau_pos, ICD."""
    parts = room.ingredients(settings, settings.learning.supervised)
    selection = settings.learning.selection
    selector = build_selector(selection)
    detections = predict_table(parts.detector, params["detector"], table, settings.evaluation.batch, room.mesh)
    _, selected = selector.select(selector.init(), detections, parts.num_classes)
    if selection.discriminator.enabled:
        similarity = mean_similarity(
            params["discriminator"], bank, table, detections.segments_t, detections.labels,
            parts.discriminator, selection.discriminator, room.mesh.size,
        )  # fmt: skip
    else:
        similarity = jax.numpy.full_like(detections.confidence, selection.discriminator.unknown_similarity)
    considered = selected.positive_mask | selected.candidate_mask
    tau = jax.numpy.where(considered, selected.tau_pos, 0).sum() / jax.numpy.maximum(considered.sum(), 1)
    return refine(detections, selected, similarity, selection), tau


def first_rows(tree: PyTree, count: int) -> PyTree:
    """The rows that are videos, without those that let the devices divide the table."""
    return jax.tree.map(lambda x: x[:count], tree)


def _label(room: Room, settings: Settings, params: PyTree) -> tuple[PseudoLabels, float]:
    label = jax.jit(lambda p, table, bank: label_table(settings, room, p, table, bank))
    labels, tau = to_host(label(params, room.unlabelled, room.bank))
    return first_rows(labels, len(room.dataset.unlabelled.ids)), float(tau)


def _document(room: Room, labels: PseudoLabels, name: str) -> dict[str, Any]:
    """Annotation JSON: selected instances as ``annotations``, the others as ``ignored``, each with its scores."""
    table, classes = room.dataset.unlabelled, room.dataset.classes
    columns = {name: np.asarray(getattr(labels, name)) for name in ("similarity", "reason", "weight")}
    rows = to_rows(labels.detections, table.records, table.grids, classes, columns)
    database = {}
    for record in table.records:
        entry: dict[str, Any] = {
            "subset": record.subset, "duration": record.duration_s, "fps": record.fps,
            "annotations": [], "ignored": [],
        }  # fmt: skip
        for row in rows[record.id]:
            reason = Reason(row["reason"])
            if reason is Reason.BELOW or row["segment"][1] <= row["segment"][0]:
                continue
            chosen = "annotations" if row["weight"] > 0 else "ignored"
            weight = row["weight"] if row["weight"] > 0 else 1.0
            label_id = classes.index(row["label"])
            entry[chosen].append(row | {"label_id": label_id, "reason": reason.name.lower(), "weight": weight})
        if room.settings.learning.selection.candidates == "background":
            entry["unselected"] = entry.pop("ignored")  # kept on record, but not read back: background
        database[record.id] = entry
    return {"version": "pseudo labels", "provenance": name, "database": database}


# Evaluation


def evaluation_stage(name: str, settings: Settings, trained: str) -> Stage:
    """Predicts the evaluation videos with a stage's averaged parameters and scores them."""

    def run(room: Room, folder: Path) -> dict[str, Any]:
        params = _teacher_parameters(room, settings, trained)
        detector, table = room.detector(settings), room.dataset.evaluation
        predict = jax.jit(lambda p, t: predict_table(detector, p, t, settings.evaluation.batch, room.mesh))
        detections: Detections = first_rows(to_host(predict(params["detector"], room.evaluation)), len(table.ids))
        instances, _ = to_instances(detections, table.grids, None, [record.duration_s for record in table.records])
        if room.ledger.first_process:
            write_submission(folder / "predictions.json", instances, table.ids, room.dataset.classes)
        return score(room, instances)

    depends = {
        "evaluation": dataclasses.asdict(settings.evaluation),
        "nms": dataclasses.asdict(settings.actionformer.nms),
        "rank_by_quality": settings.actionformer.quality.rank_by_quality,
    }
    return Stage(name, (trained,), depends, run)


def score(room: Room, predictions: Instances) -> dict[str, Any]:
    """mAP and recall of predictions on the evaluation videos, as JSON types."""
    truth = instances_from_annotations([room.truth.videos[video] for video in room.dataset.evaluation.ids])
    e = room.settings.evaluation
    result = average_precision(truth, predictions, e.tiou, len(room.dataset.classes), e.recall_at)
    return result.as_dict(room.dataset.classes)
