"""The pseudo-label stage: the unlabelled set predicted, selected from, and written as annotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from apl_jax.data.files import refusal, write_bytes
from apl_jax.data.tensors import read_tensors
from apl_jax.declarations import Chain, Choice
from apl_jax.detectors import build_detector
from apl_jax.detectors.base import Detector
from apl_jax.detectors.ensemble import members_of
from apl_jax.devices import place, replicated, to_host
from apl_jax.evaluation.detections import predict_batch, to_instances, to_rows
from apl_jax.evaluation.label_quality import BACKGROUND, LEFT_ASIDE, SELECTED
from apl_jax.learning.method import DETECTOR
from apl_jax.learning.selection import Known, Link, chain, unselected
from apl_jax.registry import SELECTION
from apl_jax.runs.context import StageInputs
from apl_jax.runs.training_stage import PSEUDO_LABELS
from apl_jax.structs import Batch, DataFacts, Detections, PseudoLabels, PyTree, Reason, leaves_by_name
from apl_jax.text import shown, some

SELECTION_STATE = "selection_state.safetensors"


@dataclass(frozen=True)
class LabellingPart:
    """What a labelling stage is handed."""

    name: str
    detector: Choice
    selection: Chain
    candidates: str  # ignore | background: what unselected candidates are in training (A14)
    teacher: str  # stage whose averaged parameters label
    proposals: str = ""  # stage that left proposals, for detectors that want them
    before: str = ""  # labelling stage of the round before, whose selection state this one continues


def build_selection(selection: Chain, facts: DataFacts) -> Link:
    """The chain that settings describe, as one link."""
    return chain(*(SELECTION[link.name].build(link.settings, facts) for link in selection.links))


def label(part: LabellingPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Predicts the whole unlabelled set with the teacher's averaged parameters, selects, and writes the decisions as
    annotations; a stage of its own scores them (:func:`~apl_jax.runs.scoring_stages.measure_label_quality`)."""
    inputs = inputs.with_proposals(part.proposals)
    labels = select_pseudo_labels(part, inputs, folder)
    inputs.write(folder / PSEUDO_LABELS, as_annotations(part, inputs, labels))
    table, reasons = inputs.table("unlabelled"), np.asarray(labels.reason)
    _, reason = to_instances(labels.detections, table.grids, reasons)
    considered = reasons != Reason.BELOW_THRESHOLD
    tau = float(np.asarray(labels.threshold)[considered].mean()) if considered.any() else 0.0
    counts = {r.name.lower(): int((reason == r).sum()) for r in Reason if r is not Reason.BELOW_THRESHOLD}
    return {"tau_pos": tau, "counts": counts, "warnings": _without_labels(inputs, labels)}


def _without_labels(inputs: StageInputs, labels: PseudoLabels) -> list[str]:
    """Says which classes have labelled instances, and no pseudo label: nothing more will be learnt about them."""
    count = len(inputs.classes)
    taught = np.concatenate([record.labels[~record.ignore] for record in inputs.table("labelled").records])
    chosen = np.asarray(labels.detections.labels)[np.asarray(labels.weight) > 0]
    known, found = (np.bincount(part.astype(int), minlength=count) > 0 for part in (taught, chosen))
    lost = [name for name, missing in zip(inputs.classes, known & ~found, strict=True) if missing]
    return [f"{len(lost)} of {count} classes have no pseudo label: {some(lost)}"] if lost else []


def select_pseudo_labels(part: LabellingPart, inputs: StageInputs, folder: Path) -> PseudoLabels:
    """The decision on every detection, as numpy."""
    detector, link = build_detector(part.detector, inputs.facts), build_selection(part.selection, inputs.facts)
    params = inputs.parameters(part.teacher)
    if members_of(part.detector)[1]:  # all of them detect; what else they have trained is asked of the first
        params = {
            owner: tree if owner == DETECTOR else jax.tree.map(lambda x: x[0], tree) for owner, tree in params.items()
        }
    known = Known(params, inputs.bank, inputs.members)
    state = read_selection_state(link, inputs.folder(part.before)) if part.before else link.init()
    state, labels = select_from(detector, link, inputs)(known, state)
    write_selection_state(state, folder, inputs.first_process)
    return labels


def predict_and_observe(detector: Detector, link: Link) -> Callable[[Known, Batch], tuple[Detections, PyTree]]:
    """``(known, videos [B]) -> (detections [B, K], observed [B, ...])``: what is done with every unlabelled video."""

    def look(known: Known, videos: Batch) -> tuple[Detections, PyTree]:
        detections = predict_batch(detector, known.params[DETECTOR], videos)
        return detections, link.observe(known, videos, detections)

    return look


def select_from(
    detector: Detector, link: Link, inputs: StageInputs
) -> Callable[[Known, PyTree], tuple[PyTree, PseudoLabels]]:
    """``select(known, state) -> (state, labels)`` of the whole unlabelled set, as numpy.

    All of it is masked computation on the devices: every video is predicted and observed by the chain, then the whole
    set is selected from. What is compiled serves every teacher of the same shapes.
    """

    look = predict_and_observe(detector, link)

    @jax.jit
    def select(state: PyTree, detections: Detections, observed: PyTree) -> tuple[PyTree, PseudoLabels]:
        return link.select(state, unselected(detections), observed)

    def select_all(known: Known, state: PyTree) -> tuple[PyTree, PseudoLabels]:
        state = place(jax.tree.map(jnp.asarray, state), replicated(inputs.mesh))
        return to_host(select(state, *inputs.map_videos("unlabelled", look, known)))

    return select_all


def write_selection_state(state: PyTree, folder: Path, first_process: bool) -> None:
    """Keeps what the chain remembers, for the next round; nothing where it remembers nothing."""
    leaves = leaves_by_name(state)
    if leaves and first_process:
        write_bytes(folder / SELECTION_STATE, save({name: np.asarray(leaf) for name, leaf in leaves.items()}))


def read_selection_state(link: Link, folder: Path) -> PyTree:
    """What the chain remembered in an earlier round, in the form of ``link.init()``."""
    fresh = link.init()
    if not jax.tree.leaves(fresh):
        return fresh
    path, remedy = folder / SELECTION_STATE, f"remove {folder}, and run the same command again"
    stored, names = read_tensors(path, remedy), list(leaves_by_name(fresh))
    missing = [name for name in names if name not in stored]
    if missing:
        raise refusal(str(path), f"nothing named {shown(missing[0])}", "what the chain remembered", remedy)
    leaves = [jnp.asarray(stored[name]) for name in names]
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def as_annotations(part: LabellingPart, inputs: StageInputs, labels: PseudoLabels) -> dict[str, Any]:
    """Annotation JSON: selected instances as ``annotations``, the others as ``ignored``, each with its scores."""
    table, classes = inputs.table("unlabelled"), inputs.classes
    columns: dict[str, np.ndarray] = {
        name: np.asarray(getattr(labels, name)) for name in ("similarity", "reason", "weight")
    }
    rows = to_rows(labels.detections, table.records, table.grids, classes, columns)
    database = {}
    for record in table.records:
        entry: dict[str, Any] = {
            "subset": record.subset, "duration": record.duration_s, "fps": record.fps,
            SELECTED: [], LEFT_ASIDE: [],
        }  # fmt: skip
        for row in rows[record.id]:
            reason = Reason(row["reason"])
            if reason is Reason.BELOW_THRESHOLD or row["segment"][1] <= row["segment"][0]:
                continue
            chosen = SELECTED if row["weight"] > 0 else LEFT_ASIDE
            weight = row["weight"] if row["weight"] > 0 else 1.0
            label_id = classes.index(row["label"])
            entry[chosen].append(row | {"label_id": label_id, "reason": reason.name.lower(), "weight": weight})
        if part.candidates == "background":
            entry[BACKGROUND] = entry.pop(LEFT_ASIDE)  # kept on record, but not read back: background
        database[record.id] = entry
    return {"version": "pseudo labels", "provenance": part.name, "database": database}
