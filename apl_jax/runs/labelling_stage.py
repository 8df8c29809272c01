"""The pseudo-label stage: the unlabelled set predicted, selected from, asked about, and written as annotations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.evaluation.average_precision import instances_from_annotations
from apl_jax.evaluation.label_quality import label_quality
from apl_jax.evaluation.detections import predict_batch, to_instances, to_rows
from apl_jax.learning.instances import mean_similarity
from apl_jax.learning.selection import build_selector, refine
from apl_jax.runs.ledger import Stage
from apl_jax.runs.context import Room
from apl_jax.runs.training_stage import trained_parameters
from apl_jax.settings import Settings
from apl_jax.structs import Array, Batch, Detections, PseudoLabels, PyTree, Reason
from apl_jax.devices import to_host


def labelling_stage(name: str, settings: Settings, teacher: str) -> Stage:
    """Predicts the whole unlabelled set with the teacher's averaged parameters, selects, asks ICD, and writes the
    verdicts as annotations; then scores them against the truth that training never sees (Figure 3(c))."""

    def run(room: Room, folder: Path) -> dict[str, Any]:
        params = trained_parameters(room, settings, teacher)
        labels, tau = _label(room, settings, params)
        ids = [record.id for record in room.dataset.unlabelled.records]
        room.ledger.write(folder / "pseudo_labels.json", _document(room, labels, name))
        instances, reason = to_instances(labels.detections, room.dataset.unlabelled.grids, np.asarray(labels.reason))
        truth = instances_from_annotations([room.truth.videos[video] for video in ids])
        counts = {r.name.lower(): int((reason == r).sum()) for r in Reason if r is not Reason.BELOW_THRESHOLD}
        return {"tau_pos": tau, "counts": counts, "quality": label_quality(instances, reason, truth)}

    depends = {
        "selection": dataclasses.asdict(settings.learning.selection),
        "nms": dataclasses.asdict(settings.network.nms),
    }
    return Stage(name, (teacher,), depends, run)


def _label(room: Room, settings: Settings, params: PyTree) -> tuple[PseudoLabels, float]:
    """The pass over the unlabelled set, all of it masked computation on the devices: every video predicted and its
    detections compared with the labelled instances; then the whole set divided, and asked about."""
    parts, selection = room.ingredients(settings, settings.learning.supervised), settings.learning.selection
    selector = build_selector(selection)

    def look(known: PyTree, videos: Batch) -> tuple[Detections, Array]:
        detections = predict_batch(parts.detector, known["detector"], videos)
        if not selection.discriminator.enabled:
            return detections, jnp.full_like(detections.confidence, selection.discriminator.unknown_similarity)
        similarity = mean_similarity(
            known["discriminator"], known["bank"], known["members"], videos, detections.segments_t, detections.labels,
            parts.discriminator, selection.discriminator, room.mesh.size,
        )  # fmt: skip
        return detections, similarity

    @jax.jit
    def judge(detections: Detections, similarity: Array) -> tuple[PseudoLabels, Array]:
        _, selected = selector.select(selector.init(), detections, parts.num_classes)
        considered = selected.positive_mask | selected.candidate_mask
        tau = jnp.where(considered, selected.tau_pos, 0).sum() / jnp.maximum(considered.sum(), 1)
        return refine(detections, selected, similarity, selection), tau

    known = {**params, "bank": room.bank, "members": room.members}
    labels, tau = to_host(judge(*room.map_videos("unlabelled", look, known)))
    return labels, float(tau)


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
            if reason is Reason.BELOW_THRESHOLD or row["segment"][1] <= row["segment"][0]:
                continue
            chosen = "annotations" if row["weight"] > 0 else "ignored"
            weight = row["weight"] if row["weight"] > 0 else 1.0
            label_id = classes.index(row["label"])
            entry[chosen].append(row | {"label_id": label_id, "reason": reason.name.lower(), "weight": weight})
        if room.settings.learning.selection.candidates == "background":
            entry["unselected"] = entry.pop("ignored")  # kept on record, but not read back: background
        database[record.id] = entry
    return {"version": "pseudo labels", "provenance": name, "database": database}
