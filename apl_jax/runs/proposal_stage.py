"""Proposals: segments that another detector finds, for detectors that refine segments instead of finding them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apl_jax.declarations import Choice
from apl_jax.detectors import build_detector
from apl_jax.devices import to_host
from apl_jax.evaluation.detections import predict_batch
from apl_jax.runs.context import StageInputs, write_proposals
from apl_jax.structs import Detections


@dataclass(frozen=True)
class ProposalPart:
    """What a proposal stage is handed."""

    generator: Choice
    trained: str  # stage that trained the generator, on the labelled videos only
    videos: str  # table whose videos are given proposals: training | evaluation


def propose(part: ProposalPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Runs the generator over all videos of a table and keeps its detections ``[V, K]``."""
    generator = build_detector(part.generator, inputs.facts)
    params = inputs.parameters(part.trained)["detector"]
    predict = lambda params, videos: predict_batch(generator, params, videos)
    found: Detections = to_host(inputs.map_videos(part.videos, predict, params))
    if inputs.first_process:
        write_proposals(folder, part.videos, found)
    return {"proposals": int(found.mask.sum())}
