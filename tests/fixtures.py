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

from apl_jax.declarations import Choice, override
from apl_jax.detectors import build_detector
from apl_jax.detectors.actionformer_settings import ActionFormerDecoding, ActionFormerSettings, QualitySettings
from apl_jax.detectors.ensemble import EnsembleSettings
from apl_jax.detectors.spot_settings import SpotDecoding, SpotSettings
from apl_jax.learning.icd import PARTS, InstanceBank
from apl_jax.learning.method import Method, MethodContext, Objective, build_objective, random_view
from apl_jax.registry import DETECTORS, METHODS
from apl_jax.runs.plugins import load_plugin
from apl_jax.runs.settings import Settings, read_config
from apl_jax.settings import OptimizerSettings, PerturbSettings
from apl_jax.structs import Batch, DataFacts, Targets

REPOSITORY = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
FEATURE_WIDTH = 6
CLASSES = 3

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
    decoding=ActionFormerDecoding(top_k_per_level=64, max_detections=24),
    online=ActionFormerDecoding(top_k_per_level=64, max_detections=24),
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

    Each has ``instances`` rows of targets, the last of them empty, one of low weight and one to be ignored.
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
    targets = Targets(
        jnp.asarray(np.stack([start, start + extent], -1), jnp.float32),
        jnp.asarray(draws.integers(0, CLASSES, (count, instances)), jnp.int32),
        jnp.asarray(mask_of_rows),
        jnp.asarray(weight, jnp.float32),
        jnp.asarray(ignore),
    )
    return Batch(jnp.asarray(features), jnp.asarray(mask), targets, jnp.arange(count, dtype=jnp.int32))


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
