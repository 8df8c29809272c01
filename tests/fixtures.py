"""Small living things to experiment on: detectors, batches, weights and training methods of a few numbers each.

Everything is a function of its arguments and is drawn by numpy, so that two processes draw the same.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.cli import to_settings
from apl_jax.detectors import build_detector
from apl_jax.learning.instances import InstanceBank
from apl_jax.learning.methods import METHODS, STAGE_METHODS
from apl_jax.learning.objective import Ingredients, Method
from apl_jax.nn.discriminator import build_discriminator
from apl_jax.settings import (
    ActionFormerSettings,
    ContrastiveSettings,
    DiscriminatorSettings,
    LearningSettings,
    NmsSettings,
    OptimizerSettings,
    PerturbSettings,
    QualitySettings,
    SelectionSettings,
    Settings,
    SpotSettings,
    StageSettings,
)
from apl_jax.structs import Batch, Targets

GOLDEN = Path(__file__).parent / "golden"
FEATURE_WIDTH = 6
CLASSES = 3

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
    nms=NmsSettings(top_k_per_level=64, max_detections=24),
)

_SPOT = SpotSettings(
    steps=16,
    heads=2,
    mask_hidden=6,
    easy_snippets=3,
    hard_snippets=4,
    band_inner=2,
    band_outer=4,
    top_snippets=6,
    nms=NmsSettings(top_k_per_level=64, max_detections=24),
)

# Per detector, variants that together reach all its branches; the first is the one that further tests train.
# A new detector is tested by being registered and by having its line here.
_DETECTORS: dict[str, dict[str, Settings]] = {
    "actionformer": {
        name: Settings(detector="actionformer", actionformer=dataclasses.replace(_ACTIONFORMER, **changes))
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
                "nms": dataclasses.replace(_ACTIONFORMER.nms, class_wise=False),
            },
        }.items()
    },
    "spot": {
        name: Settings(detector="spot", spot=dataclasses.replace(_SPOT, **changes))
        for name, changes in {
            "resize": {},
            "windows": {
                "steps": 8, "fit": "windows", "width": 8, "head_width": 3, "mask_head": "bilinear",
                "target_edges": "nearest", "class_loss": "reference", "embedding_convs": 2,
            },
        }.items()
    },
}  # fmt: skip

TINY_LEARNING = LearningSettings(
    contrastive=ContrastiveSettings(partitions=8, fine_clusters=3, kmeans_iterations=3),
    selection=SelectionSettings(discriminator=DiscriminatorSettings(hidden=4, pairs=4)),
)

# Every objective that a training stage can have.
KINDS = STAGE_METHODS | METHODS


def variants(detector: str) -> dict[str, Settings]:
    """Tiny settings of a detector, by name of the variant."""
    if detector not in _DETECTORS:
        raise LookupError(f"detector {detector!r} is registered but has no tiny settings in {__file__}: add them")
    return _DETECTORS[detector]


def tiny_settings(detector: str) -> Settings:
    """The first variant."""
    return next(iter(variants(detector).values()))


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
    return InstanceBank(
        jnp.asarray(draws.normal(size=(instances, FEATURE_WIDTH)), jnp.float32),
        jnp.asarray(draws.integers(0, CLASSES, instances), jnp.int32),
        jnp.asarray(np.arange(instances) < instances - 1),
    )


def build_kind(
    kind: str, settings: Settings, steps: int, perturb: PerturbSettings, learning: LearningSettings = TINY_LEARNING
) -> Method:
    """The objective ``kind`` of :data:`KINDS` on the detector of ``settings``, for crops of ``steps`` grid steps."""
    stage = StageSettings(steps=10, perturb=perturb, optimizer=OptimizerSettings(learning_rate=1e-2))
    discriminator = build_discriminator(learning.selection.discriminator)
    detector = build_detector(settings, FEATURE_WIDTH, CLASSES)
    return KINDS[kind](Ingredients(detector, discriminator, learning, stage, FEATURE_WIDTH, CLASSES, steps))


def in_bfloat16(settings: Settings) -> Settings:
    """The same settings with bfloat16 products in every detector."""
    changed = {}
    for field in dataclasses.fields(settings):
        value: Any = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and hasattr(value, "dtype"):
            changed[field.name] = dataclasses.replace(value, dtype="bfloat16")  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(settings, **changed)


def smoke_settings(**overrides: Any) -> Settings:
    """The settings of ``configs/spsw.py:smoke``; overrides are dotted names, e.g. ``{"learning.rounds": 2}``."""
    path = Path(__file__).parents[1] / "configs" / "spsw.py"
    spec = importlib.util.spec_from_file_location("spsw_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("smoke")
    config.update_from_flattened_dict(overrides)
    return to_settings(config)
