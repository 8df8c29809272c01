"""A detector over a whole table of videos, on the device, and its detections as rows of seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.detectors.base import Detector
from apl_jax.evaluation.average_precision import Instances
from apl_jax.structs import Batch, Detections, PyTree, TimeGrid


def predict_batch(detector: Detector, params: PyTree, batch: Batch) -> Detections:
    """Detections ``[B, K]`` of a batch of whole videos; traceable."""
    return detector.decode(detector.apply(params, batch, None))


def to_rows(
    detections: Detections,
    records: Sequence[VideoRecord],
    grids: Sequence[TimeGrid],
    classes: Sequence[str],
    extra: dict[str, np.ndarray] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Valid detections (numpy leaves) per video id: label, segment in seconds clamped to the video, and scores.

    ``extra`` adds further columns ``[V, K]``. Rows keep the falling order of confidence.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    found: dict[str, np.ndarray] = {
        field.name: np.asarray(getattr(detections, field.name)) for field in dataclasses.fields(detections)
    }
    for v, (record, grid) in enumerate(zip(records, grids, strict=True)):
        segments_s = np.clip(grid.to_s(found["segments_t"][v]), 0.0, record.duration_s)
        rows = []
        for k in np.flatnonzero(found["mask"][v]):
            row = {
                "label": classes[found["labels"][v, k]],
                "segment": [float(x) for x in segments_s[k]],
                **{name: float(found[name][v, k]) for name in ("confidence", "score", "tiou", "tnd")},
            }
            rows.append(row | {name: column[v, k].item() for name, column in (extra or {}).items()})
        result[record.id] = rows
    return result


def to_instances(
    detections: Detections,
    grids: Sequence[TimeGrid],
    column: np.ndarray | None = None,
    durations_s: Sequence[float] | None = None,
) -> tuple[Instances, np.ndarray]:
    """Valid detections (numpy leaves) as one flat table, and the values of ``column [V, K]`` beside them.

    Segments are in seconds, clamped to [0, duration] where durations are given.
    """
    mask = np.asarray(detections.mask)
    labels, confidence = np.asarray(detections.labels), np.asarray(detections.confidence)
    segments_s = np.stack([grid.to_s(s) for grid, s in zip(grids, np.asarray(detections.segments_t), strict=True)])
    if durations_s is not None:
        segments_s = np.clip(segments_s, 0.0, np.asarray(durations_s)[:, None, None])
    video = np.broadcast_to(np.arange(len(mask))[:, None], mask.shape)
    instances = Instances(video[mask], labels[mask], segments_s[mask], confidence[mask])
    return instances, np.asarray(column)[mask] if column is not None else np.zeros(len(instances))
