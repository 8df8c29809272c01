"""Learnt frames: a fair sample of the frames of unlabelled videos, and what a network makes of them.

For looking only: the true class of every frame is read, which no training stage may do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.declarations import Choice
from apl_jax.detectors import build_detector
from apl_jax.detectors.base import Detector
from apl_jax.evaluation.label_space import frame_truth
from apl_jax.runs.context import StageInputs
from apl_jax.structs import Array, Batch, PyTree


@dataclass(frozen=True)
class Frames:
    """M frames of some unlabelled videos."""

    videos: np.ndarray  # [V] rows of the unlabelled table
    row: np.ndarray  # [M] which of these videos
    step: np.ndarray  # [M] grid step
    kind: np.ndarray  # [M] true class; C is background


def sample_frames(inputs: StageInputs, videos: int, frames: int, seed: int = 0) -> Frames:
    """About ``frames`` frames of ``videos`` unlabelled videos that are annotated, spread over the list; every class and
    the background give equally many, as far as they have them. None where none is annotated."""
    table, truth = inputs.table("unlabelled"), inputs.unlabelled_truth()
    known = np.flatnonzero([record.annotated for record in truth])
    chosen = known[np.unique(np.linspace(0, len(known) - 1, videos).round().astype(int))] if len(known) else known
    found = [np.zeros((3, 0), int)]
    for row, v in enumerate(chosen):
        steps = np.arange(int(table.lengths[v]))
        kinds = frame_truth(table.grids[v].to_s(steps), truth[v], len(inputs.classes))
        found.append(np.stack([np.full_like(steps, row), steps, kinds])[:, kinds >= 0])
    row, step, kind = np.concatenate(found, axis=1)
    draws, kinds = np.random.default_rng(seed), np.unique(kind)
    if not len(kinds):
        return Frames(chosen[:0], row, step, kind)
    most = max(frames // len(kinds), 1)
    few = np.concatenate([draws.permutation(np.flatnonzero(kind == c))[:most] for c in kinds])
    return Frames(chosen, row[few], step[few], kind[few])


def representation(detector: Detector, inputs: StageInputs, params: PyTree, frames: Frames) -> np.ndarray:
    """What a detector with these parameters makes of the frames: ``[M, E]``."""
    table = inputs.table("unlabelled").take(frames.videos)
    # Frames of each video side by side [V, most]; the places that a video does not fill repeat its first step.
    place = np.zeros(len(frames.row), int)
    steps = np.zeros((len(table.ids), np.bincount(frames.row).max()), np.int32)
    for row in np.unique(frames.row):
        own = frames.row == row
        place[own] = np.arange(own.sum())
        steps[row, : own.sum()] = frames.step[own]

    def represent(params: PyTree, videos: Batch) -> Array:
        return detector.apply(params, videos, None).represent(jnp.asarray(steps)[videos.video])

    return np.asarray(inputs.map_few(table, represent, params))[frames.row, place]


def representations(
    detector: Choice, inputs: StageInputs, stages: Mapping[str, str], frames: Frames, seed: int = 0
) -> dict[str, np.ndarray]:
    """Input features, the detector as it is initialised, and ``stages``, name -> finished training stage of the
    semi-supervised variant: name -> ``[M, E]``."""
    built = build_detector(detector, inputs.facts)
    params = {"as initialised": jax.jit(lambda key: built.init(key)[0])(jax.random.key(seed))}
    params |= {name: inputs.parameters(stage)["detector"] for name, stage in stages.items()}
    table = inputs.table("unlabelled").take(frames.videos)
    rows = np.stack([table.read(row)[step] for row, step in zip(frames.row, frames.step, strict=True)])
    return {"input features": rows} | {name: representation(built, inputs, p, frames) for name, p in params.items()}
