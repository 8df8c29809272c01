"""Prediction of arrays that a person already has in memory, without files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apl_jax.data.annotations import unannotated
from apl_jax.data.features.sources import FeatureSource
from apl_jax.data.files import refusal
from apl_jax.data.values import is_rate
from apl_jax.evaluation.average_precision import Instances
from apl_jax.inference.model import Model
from apl_jax.inference.prediction import predict_videos


class Detection(NamedTuple):
    """One predicted action instance."""

    label: str
    start_s: float
    end_s: float
    score: float  # in [0, 1]: the confidence that ranks detections


class ArraySource(FeatureSource):
    """Recordings in memory, by name."""

    def __init__(self, arrays: Mapping[str, np.ndarray], windowed: bool) -> None:
        self.windowed = windowed
        self._arrays = dict(arrays)
        super().__init__(tuple(arrays))

    def place(self, video_id: str) -> Path:
        """There is no file; messages name the array."""
        return Path(f"array {video_id!r}")

    def _load(self, name: str) -> np.ndarray:
        return self._arrays[name]


def predict_arrays(
    model: Model, recordings: Any, fps: float | None = None, duration_s: float | None = None
) -> list[Detection] | list[list[Detection]] | dict[str, list[Detection]]:
    """Detections of each recording, sorted by falling score; they lie inside their recording.

    Args:
        recordings: one array ``[T, channels]``, a list of them, or a dict by name: raw signals, or feature rows, as the
            model was trained on. Recordings may have any length.
        fps: samples, or frames, per second; needed where training had several rates.
        duration_s: length of a single recording in seconds, where its rows do not tell.

    Returns:
        A list of :class:`Detection` for one array, a list of lists for a list, a dict for a dict.

    Raises :class:`~apl_jax.data.files.DataError` for arrays that are not two-dimensional, not finite, or of another
    width than in training, and where no rate is known.
    """
    single = not isinstance(recordings, (Mapping, list, tuple))
    some = [recordings] if single else recordings
    named: Mapping[Any, Any] = some if isinstance(some, Mapping) else _numbered(some)
    for name, number, fine in (
        ("fps", fps, is_rate(fps)),
        ("duration_s", duration_s, 0 < (duration_s or 0) < math.inf),
    ):
        if number is not None and not fine:
            expected = "a positive number" + (" (0.001 to 1e6)" if name == "fps" else "")
            raise refusal(f"`{name}`", f"{number!r}", expected, "leave it out where training tells it")
    if duration_s is not None and len(named) != 1:
        raise refusal("`duration_s`", f"{len(named)} recordings", "one recording", "predict them one by one")
    source = ArraySource({str(name): np.asarray(array) for name, array in named.items()}, model.windowed)
    rate = fps or model.card.grid.fps or model.card.fps or 0.0
    records = [unannotated(str(name), duration_s or math.nan, rate) for name in named]
    if not records:
        return {} if isinstance(recordings, Mapping) else []
    instances = predict_videos(model, source, records)[1]
    found = [_detections(instances, v, model.classes) for v in range(len(records))]
    if isinstance(recordings, Mapping):
        return dict(zip(recordings, found, strict=True))
    return found[0] if single else found


def _numbered(arrays: Sequence[Any]) -> dict[str, Any]:
    return {f"recordings[{i}]": array for i, array in enumerate(arrays)}


def _detections(instances: Instances, video: int, classes: Sequence[str]) -> list[Detection]:
    own = instances.select(instances.video == video)
    own = own.select(np.argsort(-own.score, kind="stable"))
    rows = zip(own.label.tolist(), own.segments_s.tolist(), own.score.tolist(), strict=True)
    names = tuple(classes)
    return [Detection(names[label], start_s, end_s, score) for label, (start_s, end_s), score in rows]
