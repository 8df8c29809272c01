"""The four pytrees that cross rooms, the letters of their shapes, and the one bridge between clocks.

Letters
    B videos · T grid steps · D feature width · N annotated instances (padded) · K detections (padded) ·
    C action classes · L pyramid levels · P pyramid points. Arrays are channel-last, ``[B, T, D]``.

Clocks, never a bare float
    ``_s`` seconds · ``_t`` grid steps · ``_u`` unit interval of the video. :class:`TimeGrid` is the only bridge.

Names
    A mask is bool and ends in ``_mask`` (or is a field ``mask``); a weight is float and ends in ``_weight``. A *logit*
    is never called a score. *score* = class probability, *quality* = localisation reliability (ALQA),
    *confidence* = score x quality, the joint score of APL, Eq. 4.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

Array = jax.Array
PyTree = Any
_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True)
def pytree(cls: _Class) -> _Class:
    """Makes ``cls`` a frozen dataclass whose fields are all pytree leaves or subtrees."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree
class Targets:
    """What a batch is taught: annotated (or pseudo-annotated) instances, padded to N."""

    segments_t: Array  # [B, N, 2] start and end, grid steps; may lie slightly outside [0, T)
    labels: Array  # [B, N] int32 in [0, C)
    mask: Array  # [B, N] bool, which rows hold an instance
    weight: Array  # [B, N] float in [0, 1], how much the instance teaches; 1 for human annotations
    ignore_mask: Array  # [B, N] bool, instances that teach nothing but also silence the background loss under them


@pytree
class Batch:
    """Feature rows of B videos on their grids, with the targets that the split lets training see."""

    features: Array  # [B, T, D] float
    mask: Array  # [B, T] bool, which steps are real
    targets: Targets
    video: Array  # [B] int32, row of the video in its table; -1 for a row added to fill the batch
    proposals: Detections | None = None  # [B, K] class-agnostic segments, for detectors that want them


@pytree
class Detections:
    """Predicted instances after NMS, sorted by falling confidence, padded to K; still on the grid's clock."""

    segments_t: Array  # [B, K, 2]
    labels: Array  # [B, K] int32
    confidence: Array  # [B, K] in [0, 1], ranking score after soft-NMS decay
    score: Array  # [B, K] class probability
    tiou: Array  # [B, K] predicted overlap, 1 where the detector has no quality head
    tnd: Array  # [B, K] predicted normalised centre distance, 0 where the detector has no quality head
    mask: Array  # [B, K] bool


class Reason(enum.IntEnum):
    """Why a detection is, or is not, a pseudo label (APL 3.1 and 3.2)."""

    BELOW_THRESHOLD = 0  # confidence <= tau_neg, or padding: not considered
    KEPT = 1  # positive by confidence, kept by ICD
    PROMOTED = 2  # candidate that ICD promoted (MPP)
    DROPPED = 3  # positive that ICD eliminated (EAP)
    CANDIDATE = 4  # candidate that stays one


@pytree
class PseudoLabels:
    """The decision on every detection of an unlabelled set; rows with weight 0 teach nothing."""

    detections: Detections
    similarity: Array  # [B, K] mean ICD probability against the labelled instances of the class, .5 when unknown
    threshold: Array  # [B, K] confidence that the detection had to reach, 1 before any rule has looked at it
    reason: Array  # [B, K] int32, values of :class:`Reason`
    weight: Array  # [B, K] float, > 0 exactly where reason is KEPT or PROMOTED


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """What builders may know of the data, besides their own settings."""

    feature_width: int  # D
    num_classes: int  # C
    max_steps: int = 0  # grid steps of a training crop; 0: videos are seen whole
    edge_t: float = 0.0  # half a window, grid steps: how far a crop sees beyond its first and last row


@dataclasses.dataclass(frozen=True)
class TimeGrid:
    """Which second each feature row is: row g sees frames [g*stride, g*stride + window) and stands for their centre.

    ``fps`` frames per second · ``stride``, ``window`` in frames · ``length`` number of real rows. The ActionFormer
    convention (spec 1.2): ``g = t * fps / stride - offset`` with ``offset = 0.5 * window / stride``. All methods
    take and return numpy float64, of any shape.
    """

    fps: float
    stride: float
    window: float
    length: int

    @property
    def offset(self) -> float:
        """Half a window, in grid steps."""
        return 0.5 * self.window / self.stride

    def to_t(self, seconds_s: np.ndarray | float) -> np.ndarray:
        """Seconds to grid steps; values below 0 are legal for times before the centre of the first window."""
        return np.asarray(seconds_s, np.float64) * self.fps / self.stride - self.offset

    def to_s(self, steps_t: np.ndarray | float) -> np.ndarray:
        """Grid steps to seconds, the inverse of :meth:`to_t`."""
        return (np.asarray(steps_t, np.float64) + self.offset) * self.stride / self.fps


def leaves_by_name(tree: PyTree) -> dict[str, Any]:
    """The leaves of nested dicts (or other pytrees) by their path, as ``"detector/neck/norm_0/scale"``."""
    step = lambda k: str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(map(step, path)): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path, the inverse of :func:`leaves_by_name` for dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree
