"""ACP: action-aware contrast of frames, coarse within a video and fine across videos (APL 3.3, Eq. 11).

Without labels, clusters of input features guide it: the pre-training :func:`build_contrast`. With labels, classes do:
the term :func:`class_contrast` of later stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.declarations import Checked, SettingsError, number
from apl_jax.learning.method import (
    TRAINING,
    Method,
    MethodContext,
    Pass,
    PassResult,
    Term,
    TermInputs,
    TermValue,
    register_method,
)
from apl_jax.ops.clustering import kmeans
from apl_jax.ops.losses import info_nce
from apl_jax.ops.segments import frame_labels
from apl_jax.structs import Array, Batch


@dataclass(frozen=True)
class ContrastSettings(Checked):
    """What both forms of the contrast share (APL 3.3)."""

    partitions: int = number(64, at_least=1, at_most=100_000)  # N segments per video, one random valid frame each (B1)
    temperature: float = number(0.1, above=0, at_most=1e3)  # B2
    coarse: bool = True
    fine: bool = True  # Table 5
    # videos contrasted together in the fine term; 0 = the whole batch
    fine_group: int = number(0, at_least=0, at_most=100_000)
    exclude_self: bool = True  # B4


@dataclass(frozen=True)
class ClusterContrastSettings(ContrastSettings):
    """Contrast that clusters guide, without labels."""

    coarse_clusters: int = number(2, at_least=2, at_most=100_000)
    fine_clusters: int = number(4, at_least=2, at_most=100_000)  # B (B8)
    kmeans_iterations: int = number(10, at_least=1, at_most=10_000)


@dataclass(frozen=True)
class ClassContrastSettings(ContrastSettings):
    """Contrast that classes guide, beside the detection loss."""

    weight: float = number(0.1, at_least=0, at_most=1e6)  # lambda_acp; 0 leaves it out


@dataclass(frozen=True)
class StudentContrastSettings(ClassContrastSettings):
    """The same in self-training."""

    unlabelled: bool = True  # pseudo labels guide a contrast of unlabelled videos too (Table S4)


class FrameLabels(NamedTuple):
    """What guides the contrast of the sampled frames ``[B, N]``; the fine labels are in groups ``[G, B / G * N]``."""

    coarse: Array
    fine: Array
    mask: Array


def sample_frames(key: Array, mask: Array, partitions: int) -> tuple[Array, Array]:
    """One random valid step from each of N equal segments of each video (mask ``[B, T]``).

    Returns rows ``[B, N]`` int32 and their mask; a video shorter than N leaves the segments without a step out.
    """
    length = mask.sum(-1, keepdims=True)
    edge = jnp.arange(partitions + 1) * length // partitions
    first, size = edge[:, :-1], jnp.diff(edge, axis=-1)
    fraction = jax.random.uniform(key, first.shape)
    rows = first + jnp.floor(fraction * size).astype(jnp.int32)
    return jnp.minimum(rows, mask.shape[1] - 1), size > 0


def cluster_contrast_loss(key: Array, seen: PassResult, settings: ClusterContrastSettings) -> tuple[Array, Array]:
    """Coarse and fine contrast of sampled frames, over the global batch, guided by clusters.

    Clusters are k-means of the sampled frames' own L2-normalised input features: two per video for the coarse contrast,
    B over each group of videos for the fine one.
    """
    s = settings

    def label(key: Array, rows: Array, mask: Array) -> FrameLabels:
        coarse_key, fine_key = jax.random.split(key)
        inputs = _take(seen.view.features, rows)
        inputs = inputs / jnp.sqrt(jnp.maximum((inputs**2).sum(-1, keepdims=True), 1e-12))
        cluster = lambda key, x, m, k: jax.vmap(
            lambda key, x, m: kmeans(key, x, m, clusters=k, iterations=s.kmeans_iterations).labels
        )(jax.random.split(key, len(x)), x, m)
        coarse = cluster(coarse_key, inputs, mask, s.coarse_clusters)
        return FrameLabels(coarse, cluster(fine_key, _group(inputs, s), _group(mask, s), s.fine_clusters), mask)

    return contrast_loss(key, seen, s, label)


def class_contrast_loss(
    key: Array, seen: PassResult, settings: ContrastSettings, num_classes: int
) -> tuple[Array, Array]:
    """Coarse and fine contrast of sampled frames, guided by the classes of the view's targets.

    Coarse: action against background. Fine: class against class, background being one. Steps under ignored instances
    are left out.
    """

    def label(_: Array, rows: Array, mask: Array) -> FrameLabels:
        labels, ignored = _annotated_frames(seen.view, num_classes)
        fine = _take(labels, rows)
        coarse = (fine < num_classes).astype(jnp.int32)
        return FrameLabels(coarse, _group(fine, settings), mask & ~_take(ignored, rows))

    return contrast_loss(key, seen, settings, label)


def contrast_loss(
    key: Array, seen: PassResult, settings: ContrastSettings, label: Callable[[Array, Array, Array], FrameLabels]
) -> tuple[Array, Array]:
    """Coarse and fine InfoNCE of frames that ``label(key, rows, mask)`` labels (APL Eq. 11); 0 for a part that is
    off."""
    frame_key, label_key = jax.random.split(key)
    rows, mask = sample_frames(frame_key, seen.view.mask, settings.partitions)
    frames, labels = seen.outputs.represent(rows), label(label_key, rows, mask)
    contrast = jax.vmap(
        lambda x, y, m: info_nce(x, y, m, temperature=settings.temperature, exclude_self=settings.exclude_self)
    )
    zero = jnp.zeros(())
    coarse = contrast(frames, labels.coarse, labels.mask).mean() if settings.coarse else zero
    grouped = _group(frames, settings), labels.fine, _group(labels.mask, settings)
    return coarse, contrast(*grouped).mean() if settings.fine else zero


def _take(x: Array, rows: Array) -> Array:
    """Steps ``rows [B, N]`` of ``x [B, T, ...]``."""
    return jnp.take_along_axis(x, rows.reshape(*rows.shape, *[1] * (x.ndim - 2)), axis=1)


def _group(x: Array, settings: ContrastSettings) -> Array:
    """``x [B, N, ...]`` as groups of videos ``[G, B / G * N, ...]``."""
    videos = x.shape[0]
    group = settings.fine_group if 0 < settings.fine_group < videos else videos
    if videos % group:
        raise SettingsError(f"`fine_group` of the contrast: found {group}, expected a divisor of the batch ({videos})")
    return x.reshape(videos // group, group * x.shape[1], *x.shape[2:])


def _annotated_frames(batch: Batch, num_classes: int) -> tuple[Array, Array]:
    """Class of every step ``[B, T]`` (background = ``num_classes``) and which steps lie under an ignored instance."""
    targets, steps = batch.targets, batch.mask.shape[1]
    label = jax.vmap(lambda s, y, m: frame_labels(s, y, m, steps, num_classes))
    labels = label(targets.segments_t, targets.labels, targets.mask & ~targets.ignore_mask)
    under = label(targets.segments_t, jnp.zeros_like(targets.labels), targets.mask & targets.ignore_mask) == 0
    return labels, under & (labels == num_classes)


def class_contrast(context: MethodContext, settings: ContrastSettings, seen: str, weight: float) -> Term:
    """Class-guided contrast on the pass ``seen``."""

    def loss(inputs: TermInputs) -> TermValue:
        found = class_contrast_loss(inputs.key, inputs.passes[seen], settings, context.facts.num_classes)
        return TermValue(found[0] + found[1], _metrics(found, f"{seen}/"))

    return Term(loss, (seen,), weight=weight)


def build_contrast(settings: ClusterContrastSettings, context: MethodContext) -> Method:
    """ACP without labels: clusters of input frames guide the contrast. The heads get no gradient (B9)."""
    del context

    def loss(inputs: TermInputs) -> TermValue:
        found = cluster_contrast_loss(inputs.key, inputs.passes["training"], settings)
        return TermValue(found[0] + found[1], _metrics(found))

    return Method({"training": Pass(TRAINING)}, {"contrast": Term(loss, ("training",))}, teacher=False)


def _metrics(found: tuple[Array, Array], prefix: str = "") -> dict[str, Array]:
    return {f"{prefix}contrast_{name}": value for name, value in zip(("coarse", "fine"), found, strict=True)}


register_method("contrast", ClusterContrastSettings, build_contrast)
