"""Batches as a stage hands them to a method, and weights to try it with, for the laws."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from fixtures import random_bank, random_weights

from apl_jax.learning.icd import InstanceBank
from apl_jax.learning.method import (
    INSTANCES,
    LABELLED,
    PSEUDO_LABELLED,
    TRAINING,
    UNLABELLED,
    Method,
    Objective,
    join_batches,
)
from apl_jax.structs import Batch, PyTree


def without_annotations(batch: Batch) -> Batch:
    """The same videos, of which nothing is annotated."""
    return dataclasses.replace(batch, targets=jax.tree.map(lambda x: jnp.zeros_like(x[:, :1]), batch.targets))


def tables_of(method: Method, labelled: Batch, unlabelled: Batch) -> dict[str, Batch]:
    """The videos that a method's passes ask for and no others; ``unlabelled`` comes with its pseudo labels."""
    given = {
        LABELLED: labelled,
        PSEUDO_LABELLED: unlabelled,
        UNLABELLED: without_annotations(unlabelled),
        TRAINING: without_annotations(join_batches([labelled, unlabelled])),
    }
    return {videos: given[videos] for videos in sorted(method.videos)}


def batches_of(method: Method, labelled: Batch, unlabelled: Batch, bank: InstanceBank | None = None) -> dict[str, Any]:
    """One step's worth of them, with the constants that the terms ask for."""
    bank = random_bank() if bank is None else bank
    return tables_of(method, labelled, unlabelled) | ({INSTANCES: bank} if method.constants else {})


def weights_of(objective: Objective, seed: int = 0) -> tuple[PyTree, PyTree]:
    """Random parameters by owner, and the terms' state before the first step."""
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    state = jax.jit(lambda key: objective.init(key)[1])(jax.random.key(0))
    return random_weights(shapes, seed), jax.device_get(state)
