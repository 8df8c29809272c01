"""Stages that score: detections on the evaluation videos; pseudo labels and class distributions on the unlabelled ones.

They alone read held-back annotations, and no stage needs them: corrected annotations change scores, and train nothing
again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from apl_jax.declarations import Choice, Unhashed
from apl_jax.detectors import build_detector
from apl_jax.devices import to_host
from apl_jax.evaluation.average_precision import instances_from_annotations
from apl_jax.evaluation.detections import predict_batch, to_instances
from apl_jax.evaluation.external import check_unchanged, with_external_classes
from apl_jax.evaluation.label_quality import label_quality, read_pseudo_labels
from apl_jax.evaluation.label_space import examples, frame_truth, label_space, planar_embedding
from apl_jax.evaluation.scoring import on_annotated, score, unannotated
from apl_jax.evaluation.submission import write_submission
from apl_jax.learning.class_division import DivisionSettings, divide_classes, rankable_probs
from apl_jax.runs.context import StageInputs
from apl_jax.runs.frames import representation, sample_frames
from apl_jax.runs.training_stage import PSEUDO_LABELS
from apl_jax.settings import EvaluationSettings, LabelSpaceSettings
from apl_jax.structs import Batch, Detections, PyTree


@dataclass(frozen=True)
class EvaluationPart:
    """What an evaluation stage is handed."""

    detector: Choice
    evaluation: EvaluationSettings
    external_digest: str  # of the file of class scores, "" under the strict protocol
    external_scores: Unhashed  # where that file is
    trained: str  # stage whose averaged parameters are scored
    proposals: str = ""  # stage that left proposals, for detectors that want them


@dataclass(frozen=True)
class LabelQualityPart:
    """What a label-quality stage is handed."""

    labels: str  # stage whose pseudo labels are scored


@dataclass(frozen=True)
class LabelSpacePart:
    """What a label-space stage is handed."""

    detector: Choice
    label_space: LabelSpaceSettings
    trained: str
    proposals: str = ""


def evaluate(part: EvaluationPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Predicts the evaluation videos with a stage's averaged parameters and scores them.

    Under the external protocol, what is written and scored has the classes of its file, which may not change meanwhile.
    """
    inputs = inputs.with_proposals(part.proposals)
    detector, table = build_detector(part.detector, inputs.facts), inputs.table("evaluation")
    predict = lambda params, videos: predict_batch(detector, params, videos)
    params = inputs.parameters(part.trained)["detector"]
    detections: Detections = to_host(inputs.map_videos("evaluation", predict, params))
    instances, _ = to_instances(detections, table.grids, None, [record.duration_s for record in table.records])
    truth, classes = inputs.evaluation_truth()
    if part.evaluation.protocol == "external":
        evaluation = dataclasses.replace(part.evaluation, external_scores=part.external_scores.value)
        instances, _ = with_external_classes(instances, table.ids, classes, evaluation)
        check_unchanged(evaluation, part.external_digest)
    if inputs.first_process:
        write_submission(folder / "predictions.json", instances, table.ids, classes)
    return score(truth, instances, classes, part.evaluation.tiou, part.evaluation.recall_at)


def measure_label_quality(part: LabelQualityPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Scores the pseudo labels of a round against the truth that training never sees (APL, Figure 3(c))."""
    path, ids = inputs.folder(part.labels) / PSEUDO_LABELS, inputs.table("unlabelled").ids
    table = read_pseudo_labels(path, ids, inputs.classes)
    records = inputs.unlabelled_truth()
    known = on_annotated(records, table.instances)
    truth = instances_from_annotations(records)
    quality = label_quality(table.instances.select(known), table.reason[known], truth)
    return {"quality": quality | unannotated(records)}


def measure_label_space(part: LabelSpacePart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Divides the classes of every unlabelled snippet as non-target learning does, and looks where the true class is.

    The counts go into the results, a few whole distributions into ``label_space.json`` (Figure 6). Of a detector whose
    head has no background, points without a class score above ``foreground_score`` are left out.
    """
    inputs = inputs.with_proposals(part.proposals)
    detector, s = build_detector(part.detector, inputs.facts), part.label_space
    division = DivisionSettings(closeness=s.closeness)
    background = detector.facts.background_class

    def divide(params: PyTree, videos: Batch) -> tuple:
        class_probs = detector.apply(params, videos, None).distribution()
        probability = rankable_probs(class_probs.probability, background, division)
        relation = divide_classes(probability, division).astype(jnp.int8)
        mask = class_probs.mask
        if not background:  # most points of a pyramid answer for no instance, and are sure of that
            mask &= class_probs.log_in[..., :-1].max(-1) > jnp.log(s.foreground_score)
        return probability, relation, class_probs.time_t, mask

    params, table = inputs.parameters(part.trained)["detector"], inputs.table("unlabelled")
    probability, relation, time_t, mask = to_host(inputs.map_videos("unlabelled", divide, params))
    truth = _true_classes(inputs, time_t)
    mask = mask & (truth >= 0)
    shown = examples(probability, relation, time_t, mask, truth, s.examples)
    for row in shown:
        row |= {"video": table.ids[row["video"]], "time_s": float(table.grids[row["video"]].to_s(row["time_t"]))}
    document: dict[str, Any] = {"classes": [*inputs.classes, "background"], "examples": shown}
    frames = sample_frames(inputs, s.videos, s.frames) if s.frames else None
    if frames is not None and len(frames.row):
        points = planar_embedding(representation(detector, inputs, params, frames))
        document["plane"] = {"points": points.round(3).tolist(), "truth": frames.kind.tolist()}
    inputs.write(folder / "label_space.json", document)
    return {"label_space": label_space(relation, mask, truth)}


def _true_classes(inputs: StageInputs, time_t: np.ndarray) -> np.ndarray:
    """The annotated class of every snippet ``[V, S]``; C is background, -1 what nobody annotated, or is to be
    ignored."""
    grids, records = inputs.table("unlabelled").grids, inputs.unlabelled_truth()
    return np.stack(
        [
            frame_truth(grid.to_s(times), record, len(inputs.classes))
            for record, grid, times in zip(records, grids, time_t, strict=True)
        ]
    )
