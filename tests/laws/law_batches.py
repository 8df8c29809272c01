"""Batches as a stage hands them to a method, for the laws."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from fixtures import random_bank

from apl_jax.learning.icd import InstanceBank
from apl_jax.learning.method import (
    INSTANCES,
    LABELLED,
    PSEUDO_LABELLED,
    TRAINING,
    UNLABELLED,
    Method,
    join_batches,
)
from apl_jax.structs import Batch


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
