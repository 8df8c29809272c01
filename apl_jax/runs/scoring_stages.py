"""Stages that score a trained network: its detections on the evaluation videos, its class distributions on the
unlabelled ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from apl_jax.data.batching import VideoTable
from apl_jax.evaluation.average_precision import (
    Instances,
    average_precision,
    instances_from_annotations,
)
from apl_jax.evaluation.external import check_unchanged, external_digest, with_external_classes
from apl_jax.evaluation.label_space import examples, frame_truth, label_space, planar_embedding
from apl_jax.evaluation.detections import predict_batch, to_instances
from apl_jax.evaluation.submission import write_submission
from apl_jax.learning.nontarget import rankable_probs, divide_classes
from apl_jax.runs.frames import representation, sample_frames
from apl_jax.runs.ledger import Stage
from apl_jax.runs.context import Room
from apl_jax.runs.training_stage import trained_parameters
from apl_jax.settings import Settings
from apl_jax.structs import Batch, Detections, PyTree
from apl_jax.devices import to_host


def evaluation_stage(name: str, settings: Settings, trained: str) -> Stage:
    """Predicts the evaluation videos with a stage's averaged parameters and scores them.

    Under the external protocol, what is written and scored has the classes of its file, which may not change meanwhile.
    """
    digest = external_digest(settings.evaluation)

    def run(room: Room, folder: Path) -> dict[str, Any]:
        params = trained_parameters(room, settings, trained)
        detector, table = room.detector(settings), room.dataset.evaluation
        predict = lambda known, videos: predict_batch(detector, known, videos)
        detections: Detections = to_host(room.map_videos("evaluation", predict, params["detector"]))
        instances, _ = to_instances(detections, table.grids, None, [record.duration_s for record in table.records])
        if settings.evaluation.protocol == "external":
            instances, _ = with_external_classes(instances, table.ids, room.scored_truth.classes, settings.evaluation)
            check_unchanged(settings.evaluation, digest)
        if room.ledger.first_process:
            write_submission(folder / "predictions.json", instances, table.ids, room.scored_truth.classes)
        return score(room, instances)

    depends = {
        # A file of class scores that only moved is no change.
        "evaluation": dataclasses.asdict(settings.evaluation) | {"external_scores": digest},
        "nms": dataclasses.asdict(settings.network.nms),
    }
    return Stage(name, (trained,), depends, run)


def score(room: Room, predictions: Instances) -> dict[str, Any]:
    """mAP and recall of predictions on the evaluation videos, as JSON types."""
    known, e = room.scored_truth, room.settings.evaluation
    truth = instances_from_annotations([known.videos[video] for video in room.dataset.evaluation.ids])
    result = average_precision(truth, predictions, e.tiou, len(known.classes), e.recall_at)
    return result.as_dict(known.classes)


def label_space_stage(name: str, settings: Settings, trained: str) -> Stage:
    """Divides the classes of every unlabelled snippet as non-target learning does, and looks where the true class is.

    The counts go into the results, a few whole distributions into ``label_space.json`` (Figure 6). Of a detector whose
    head has no background, points without a class score above ``tau_neg`` are left out.
    """

    def run(room: Room, folder: Path) -> dict[str, Any]:
        params, table = trained_parameters(room, settings, trained), room.dataset.unlabelled
        detector = room.detector(settings)

        def divide(known: PyTree, videos: Batch) -> tuple:
            belief = detector.apply(known, videos, None).distribution()
            nontarget = settings.learning.nontarget
            probability = rankable_probs(belief.probability, detector.background, nontarget)
            part = divide_classes(probability, nontarget).astype(jnp.int8)
            mask = belief.mask
            if not detector.background:  # most points of a pyramid answer for no instance, and are sure of that
                mask &= belief.log_in[..., :-1].max(-1) > jnp.log(settings.learning.selection.tau_neg)
            return probability, part, belief.time_t, mask

        probability, part, time_t, mask = to_host(room.map_videos("unlabelled", divide, params["detector"]))
        truth = _true_classes(room, table, time_t)
        shown = examples(probability, part, time_t, mask, truth, settings.evaluation.label_space_examples)
        classes = [*room.dataset.classes, "background"]
        for row in shown:
            row |= {"video": table.ids[row["video"]], "time_s": float(table.grids[row["video"]].to_s(row["time_t"]))}
        document = {"classes": classes, "examples": shown}
        if settings.evaluation.label_space_frames:
            document["plane"] = _plane(room, settings, params["detector"])
        room.ledger.write(folder / "label_space.json", document)
        return {"label_space": label_space(part, mask, truth)}

    depends = {
        "nontarget": dataclasses.asdict(settings.learning.nontarget),
        "examples": settings.evaluation.label_space_examples,
        "frames": [settings.evaluation.label_space_frames, settings.evaluation.label_space_videos],
        "tau_neg": settings.learning.selection.tau_neg,
    }
    return Stage(name, (trained,), depends, run)


def _plane(room: Room, settings: Settings, params: PyTree) -> dict[str, Any]:
    """Learnt frames in a plane, and their true classes (Figures 3 and 4), as JSON types."""
    frames = sample_frames(room, settings.evaluation.label_space_videos, settings.evaluation.label_space_frames)
    points = planar_embedding(representation(room, params, frames))
    return {"points": points.round(3).tolist(), "truth": frames.kind.tolist()}


def _true_classes(room: Room, table: VideoTable, time_t: np.ndarray) -> np.ndarray:
    """The annotated class of every snippet ``[V, S]``; C is background."""
    records = [room.truth.videos[video] for video in table.ids]
    return np.stack(
        [
            frame_truth(grid.to_s(times), record, len(room.dataset.classes))
            for record, grid, times in zip(records, table.grids, time_t, strict=True)
        ]
    )
