"""Learnt frames of a finished run, for notebooks: a fair sample of unlabelled frames, and what networks make of them.

For looking only: the true class of every frame is read, which no training stage may do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from apl_jax.evaluation.label_space import frame_truth
from apl_jax.pipeline.room import Room
from apl_jax.pipeline.training import trained_parameters
from apl_jax.structs import Batch, PyTree


@dataclass(frozen=True)
class Frames:
    """M frames of some unlabelled videos."""

    batch: Batch  # the videos
    row: np.ndarray  # [M] video of the batch
    step: np.ndarray  # [M] grid step
    kind: np.ndarray  # [M] true class; C is background


def sample_frames(room: Room, videos: int, frames: int, seed: int = 0) -> Frames:
    """About ``frames`` frames of ``videos`` unlabelled videos, spread over the list; every class and the background
    give equally many, as far as they have them."""
    table = room.dataset.unlabelled
    chosen = np.unique(np.linspace(0, len(table.ids) - 1, videos).round().astype(int))
    batch = jax.tree.map(lambda x: x[chosen], room.unlabelled)
    background = len(room.dataset.classes)
    found = []
    for row, v in enumerate(chosen):
        steps = np.arange(int(table.lengths[v]))
        kinds = frame_truth(table.grids[v].to_s(steps), room.truth.videos[table.ids[v]], background)
        found.append(np.stack([np.full_like(steps, row), steps, kinds]))
    row, step, kind = np.concatenate(found, axis=1)
    draws, kinds = np.random.default_rng(seed), np.unique(kind)
    most = max(frames // len(kinds), 1)
    few = np.concatenate([draws.permutation(np.flatnonzero(kind == c))[:most] for c in kinds])
    return Frames(batch, row[few], step[few], kind[few])


def representations(room: Room, stages: Mapping[str, str], frames: Frames) -> dict[str, np.ndarray]:
    """What each network makes of the frames, name -> ``[M, E]``: first their input features, then the detector as it is
    initialised, then those of ``stages``, name -> finished training stage of the semi-supervised arm."""
    settings = room.settings
    detector = room.detector(settings)
    steps = np.broadcast_to(np.arange(frames.batch.mask.shape[1]), frames.batch.mask.shape)
    pick = lambda features: np.asarray(features)[frames.row, frames.step]

    @jax.jit
    def represent(params: PyTree):
        return detector.apply(params, frames.batch, None).represent(steps)

    initial = jax.jit(lambda key: detector.init(key)[0])(jax.random.key(settings.seed))
    params = {"as initialised": initial}
    params |= {name: trained_parameters(room, settings, stage)["detector"] for name, stage in stages.items()}
    return {"input features": pick(frames.batch.features)} | {name: pick(represent(p)) for name, p in params.items()}
