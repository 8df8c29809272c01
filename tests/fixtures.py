"""Detectors, batches, weights and training methods of a few numbers each, for tests.

Everything is a function of its arguments and is drawn by numpy, so that two processes draw the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apl_jax.declarations import Choice, override
from apl_jax.detectors import build_detector
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.bmn_settings import BmnDecoding, BmnSettings, MapQualitySettings
from apl_jax.detectors.ensemble import EnsembleSettings
from apl_jax.detectors.pgcn_settings import PgcnDecoding, PgcnSettings
from apl_jax.detectors.pyramid_settings import PyramidDecoding
from apl_jax.detectors.quality import QualitySettings
from apl_jax.detectors.spot_settings import SpotDecoding, SpotSettings
from apl_jax.detectors.tridet_settings import TriDetSettings
from apl_jax.devices import DATA_AXIS, build_mesh, filled, place, replicated
from apl_jax.learning.icd import PARTS, InstanceBank
from apl_jax.learning.method import Method, MethodContext, Objective, build_objective, random_view
from apl_jax.registry import DETECTORS, METHODS
from apl_jax.runs.plugins import load_plugin
from apl_jax.runs.settings import Settings, read_config
from apl_jax.settings import OptimizerSettings, PerturbSettings
from apl_jax.stored_videos import StoredVideos
from apl_jax.structs import Batch, DataFacts, Detections, Targets

REPOSITORY = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
FEATURE_WIDTH = 6
CLASSES = 3
PROPOSALS = 15

# The laws hold for whatever is registered, a stranger's detector, methods and selection rules included.
load_plugin(str(REPOSITORY / "examples" / "plugin.py"))

_ACTIONFORMER = ActionFormerSettings(
    width=8,
    heads=2,
    embedding_convs=1,
    stem_blocks=1,
    branch_blocks=1,
    windows=(3, 0),
    head_layers=2,
    expansion=2,
    regression_ranges=((0, 4), (4, 10000)),
    normalizer_init=10.0,
    layer_scale_init=0.5,
    decoding=PyramidDecoding(top_k_per_level=64, max_detections=24),
    online=PyramidDecoding(top_k_per_level=64, max_detections=24),
)

_TRIDET = TriDetSettings(
    width=8,
    norm_groups=4,
    embedding_convs=1,
    stem_blocks=1,
    branch_blocks=1,
    windows=(1, 3),
    kernel_factor=1.5,
    mlp_width=12,
    head_width=8,
    head_layers=2,
    bins=4,
    regression_ranges=((0, 4), (4, 10000)),
    normalizer_init=10.0,
    layer_scale_init=0.5,
    decoding=PyramidDecoding(top_k_per_level=64, max_detections=24),
    online=PyramidDecoding(top_k_per_level=64, max_detections=24),
)

_SPOT = SpotSettings(
    steps=16,
    heads=2,
    mask_hidden=6,
    easy_snippets=3,
    hard_snippets=4,
    band_inner=2,
    band_outer=4,
    decoding=SpotDecoding(top_snippets=6, top_k_per_level=64, max_detections=24),
)

_BMN = BmnSettings(
    steps=16,
    width=8,
    groups=2,
    matching_width=6,
    sample_width=8,
    map_width=6,
    samples=4,
    sample_points=2,
    decoding=BmnDecoding(top_k_per_level=64, max_detections=24),
    online=BmnDecoding(top_k_per_level=64, max_detections=24),
)

_PGCN = PgcnSettings(
    generator=Choice("actionformer", _ACTIONFORMER),
    width=5,
    projection_width=4,
    head_deviation=0.3,
    incomplete_samples=3,
    decoding=PgcnDecoding(max_detections=24),
    online=PgcnDecoding(max_detections=24),
)

# Of detectors with branches, variants that together reach all of them; the first is the one that further tests train.
# Any other registered detector is tested with its default settings.
_VARIANTS: dict[str, dict[str, Any]] = {
    "actionformer": {
        name: dataclasses.replace(_ACTIONFORMER, **changes)
        for name, changes in {
            "identity": {},
            "fpn": {
                "neck": "fpn", "branch_blocks": 2, "windows": (3, 0, 5), "absolute_position": True,
                "position_length_t": 16, "regression_ranges": ((0, 4), (4, 8), (8, 10000)),
                "quality": QualitySettings(branches="diou", soft_focal="af"),
            },
            "plain": {
                "windows": (0, 7), "absolute_position": True, "regression_weight": -1.0,
                "label_smoothing": 0.1, "quality": QualitySettings(branches="none"),
                "decoding": dataclasses.replace(_ACTIONFORMER.decoding, class_wise=False),
            },
        }.items()
    },
    "bmn": {
        name: dataclasses.replace(_BMN, **changes)
        for name, changes in {
            "quality": {},
            "windows": {
                "steps": 8, "durations": 6, "window_mode": "windows", "layout": "S", "anchors": "O", "low_cells": "all",
                "masking": "reference", "quality": MapQualitySettings(branches="none"),
                "decoding": dataclasses.replace(_BMN.decoding, boundary_scores=False, labels_per_segment=2),
            },
        }.items()
    },
    "spot": {
        name: dataclasses.replace(_SPOT, **changes)
        for name, changes in {
            "resize": {},
            "windows": {
                "steps": 8, "window_mode": "windows", "width": 8, "head_width": 3, "mask_head": "bilinear",
                "target_edges": "nearest", "class_loss": "reference", "embedding_convs": 2,
            },
        }.items()
    },
    "tridet": {
        name: dataclasses.replace(_TRIDET, **changes)
        for name, changes in {
            "quality": {},
            "plain": {
                "windows": (3, 1), "absolute_position": True, "head_kernel": 5, "boundary_kernel": 1,
                "label_smoothing": 0.1, "quality": QualitySettings(branches="none"),
                "decoding": dataclasses.replace(_TRIDET.decoding, class_wise=False),
            },
        }.items()
    },
    "pgcn": {
        name: dataclasses.replace(_PGCN, **changes)
        for name, changes in {
            "nearest": {},
            "drawn": {
                "neighbours": "drawn", "rows": "projection", "missing": "literal", "regression_scale": "fixed",
                "annotated_proposals": False, "quality": QualitySettings(branches="none"),
                "decoding": PgcnDecoding(max_detections=24, completeness="maximum"),
            },
        }.items()
    },
    "ensemble": {"conv": EnsembleSettings(of=Choice("conv", DETECTORS["conv"].settings()), networks=2)},
}  # fmt: skip

# Of settings that any method may have, smaller values: a method is tested with these where it has such a field.
_TINY_METHOD = {
    "partitions": 8, "fine_clusters": 3, "kmeans_iterations": 3, "hidden": 4, "pairs": 4,
    "contrast.partitions": 8, "icd.hidden": 4, "icd.pairs": 4,
}  # fmt: skip

# Every objective that a training stage can have; that of `auto` is its student's.
KINDS = tuple(name for name in METHODS if name != "auto")


def rarely(cases: Iterable[Any], often: Callable[[Any], bool]) -> list[Any]:
    """Cases of a test, those that are not looked at ``often`` only in `make exhaustive`: compiling takes time."""
    marked = lambda case: pytest.param(case, marks=pytest.mark.exhaustive)
    return [case if often(case) else marked(case) for case in cases]


def variants(detector: str) -> dict[str, Choice]:
    """Tiny settings of a detector, by name of the variant."""
    found = _VARIANTS.get(detector, {"default": DETECTORS[detector].settings()})
    return {name: Choice(detector, settings) for name, settings in found.items()}


# Looked at by most laws in `make exhaustive` alone: an ensemble, whose networks are another detector's, and TriDet,
# whose losses, decoding and comparison are ActionFormer's.
SELDOM = ("ensemble", "tridet")


def is_usual(case: tuple[str, str]) -> bool:
    """Whether `make test` looks at this detector in this variant: at the first of each detector that is its own."""
    detector, variant = case
    return detector not in SELDOM and variant == next(iter(variants(detector)))


def tiny_choice(detector: str) -> Choice:
    """The first variant."""
    return next(iter(variants(detector).values()))


def method_settings(kind: str, **changes: Any) -> Any:
    """Tiny settings of a method; changes are by dotted name, with two underscores for the dot."""
    settings = METHODS[kind].settings()
    for path, value in _TINY_METHOD.items():
        owner, _, field = path.rpartition(".")
        holder = getattr(settings, owner, None) if owner else settings
        if hasattr(holder, field):
            settings = override(settings, {path: value})
    return override(settings, {path.replace("__", "."): value for path, value in changes.items()})


def random_weights(shapes: Any, seed: int = 0) -> Any:
    """Weights for a tree of shapes by role: kernels by fan-in, scales around 1, biases around 0.

    Fresh weights would hide mistakes: a bias of zero leaks nothing, a layer scale of 1e-4 silences attention.
    """
    draws = np.random.default_rng(seed)

    def draw(path: tuple, leaf: Any) -> jax.Array:
        noise = draws.normal(size=leaf.shape)
        name = str(getattr(path[-1], "key", path[-1])) if path else ""
        if name.endswith("kernel"):
            noise = noise / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        elif name.startswith("scale"):
            noise = 1 + 0.2 * noise
        else:  # tND is small by nature; were it not, no segment would be thought reliable
            noise = 0.3 * noise - 2.0 * ("tnd" in jax.tree_util.keystr(path))
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_batch(
    lengths: Sequence[int], steps: int, *, seed: int = 0, instances: int = 5, padding: float = 0.0
) -> Batch:
    """Videos of these lengths padded to ``steps``; what is in a video depends on neither ``steps`` nor ``padding``.

    Each has ``instances`` rows of targets, the last of them empty, one of low weight and one to be ignored; and
    proposals, for detectors that want them.
    """
    draws = np.random.default_rng(seed)
    count, longest = len(lengths), max(lengths)
    features = np.full((count, steps, FEATURE_WIDTH), padding, np.float32)
    mask = np.arange(steps) < np.asarray(lengths)[:, None]
    content = draws.normal(size=(count, longest, FEATURE_WIDTH))
    features[mask] = content[mask[:, :longest]]
    start = draws.uniform(-0.1, 0.7, (count, instances)) * np.asarray(lengths)[:, None]
    extent = draws.uniform(1.5, 9.0, (count, instances))
    mask_of_rows = np.broadcast_to(np.arange(instances) < instances - 1, (count, instances))
    weight = np.where(np.arange(instances) == 1, 0.5, 1.0) * np.ones((count, 1))
    ignore = np.broadcast_to(np.arange(instances) == 2, (count, instances))
    segments_t = np.stack([start, start + extent], -1)
    targets = Targets(
        jnp.asarray(segments_t, jnp.float32),
        jnp.asarray(draws.integers(0, CLASSES, (count, instances)), jnp.int32),
        jnp.asarray(mask_of_rows),
        jnp.asarray(weight, jnp.float32),
        jnp.asarray(ignore),
    )
    video = jnp.arange(count, dtype=jnp.int32)
    return Batch(jnp.asarray(features), jnp.asarray(mask), targets, video, random_proposals(segments_t, lengths, seed))


def stored(batch: Batch, mesh: Mesh | None = None, copies: bool = True) -> StoredVideos:
    """The videos of a batch as tables keep them: their rows one after the other, whole on every device or split."""
    mesh = mesh or build_mesh(1)
    host = jax.device_get(batch)
    length = host.mask.sum(-1).astype(np.int32)
    rows = host.features[host.mask]
    rows = np.pad(rows, [(0, 0 if copies else filled(len(rows), mesh) - len(rows)), (0, 0)])
    over = NamedSharding(mesh, PartitionSpec() if copies else PartitionSpec(DATA_AXIS))
    first = (np.cumsum(length) - length).astype(np.int32)
    rest = place((first, length, host.video, host.targets, host.proposals), replicated(mesh))
    return StoredVideos(place(rows, over), *rest, host.mask.shape[1])


def random_proposals(instances_t: np.ndarray, lengths: Sequence[int], seed: int = 0) -> Detections:
    """Near and far from the instances ``[B, N, 2]``, by falling confidence, :data:`PROPOSALS` of each video and a last
    one that is empty."""
    draws = np.random.default_rng(1000 + seed)
    videos, instances, _ = instances_t.shape
    near = instances_t[:, np.arange(PROPOSALS) % instances]
    extent = near[..., 1:] - near[..., :1]
    near = near + extent * draws.normal(scale=0.05, size=near.shape)
    length = np.asarray(lengths)[:, None]
    start = draws.uniform(0, 1, (videos, PROPOSALS)) * length
    far = np.stack([start, start + draws.uniform(1, 6, start.shape)], -1)
    segments_t = np.where(np.arange(PROPOSALS)[:, None] % 3 < 2, near, far)
    segments_t = np.concatenate([segments_t, np.zeros((videos, 1, 2))], axis=1)
    confidence = np.broadcast_to(np.linspace(1, 0, PROPOSALS + 1), segments_t.shape[:2])
    one = jnp.ones(confidence.shape)
    return Detections(
        jnp.asarray(segments_t, jnp.float32), jnp.zeros(one.shape, jnp.int32), jnp.asarray(confidence, jnp.float32),
        one, one, 0 * one, jnp.asarray(confidence > 0),
    )  # fmt: skip


def random_bank(instances: int = 8, seed: int = 0) -> InstanceBank:
    """A memory of labelled instances, the last row of it empty."""
    draws = np.random.default_rng(seed)
    features = draws.normal(size=(instances, FEATURE_WIDTH))
    labels = draws.integers(0, CLASSES, instances)
    parts = features[:, None] - np.abs(draws.normal(size=(instances, PARTS, FEATURE_WIDTH)))
    parts[:, 0] = features  # whose maximum they are
    return InstanceBank(
        jnp.asarray(features, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(np.arange(instances) < instances - 1),
        jnp.asarray(parts, jnp.float32),
    )


def method_context(detector: Choice, steps: int, perturb: PerturbSettings) -> MethodContext:
    """What methods on this detector are built from, for crops of ``steps`` grid steps."""
    facts = DataFacts(FEATURE_WIDTH, CLASSES, steps)
    return MethodContext(build_detector(detector, facts), random_view(perturb, facts), facts)


def build_method(kind: str, detector: Choice, steps: int, perturb: PerturbSettings, **changes: Any) -> Method:
    """The method ``kind`` of :data:`KINDS`, with tiny settings and ``changes`` as in :func:`method_settings`."""
    return METHODS[kind].build(method_settings(kind, **changes), method_context(detector, steps, perturb))


def build_kind(kind: str, detector: Choice, steps: int, perturb: PerturbSettings, **changes: Any) -> Objective:
    """The objective of that method."""
    context = method_context(detector, steps, perturb)
    return build_objective(METHODS[kind].build(method_settings(kind, **changes), context), context)


def in_bfloat16(detector: Choice) -> Choice:
    """The same detector with bfloat16 products, where it has a setting for them."""
    if not hasattr(detector.settings, "dtype"):
        return detector
    return dataclasses.replace(detector, settings=dataclasses.replace(detector.settings, dtype="bfloat16"))


OPTIMIZER = OptimizerSettings(learning_rate=1e-2)


def smoke_settings(overrides: dict[str, Any] | None = None, **changes: Any) -> Settings:
    """The settings of ``spsw:smoke``; overrides are by dotted path, e.g. ``{"learning.rounds": 2}``."""
    return override(read_config("spsw:smoke"), {**(overrides or {}), **changes})
