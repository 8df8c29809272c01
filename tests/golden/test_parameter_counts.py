"""Parameter counts of the released ActionFormer and TriDet models (spec 1.1, 1.12) and of Table S6 (spec A16)."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from apl_jax.detectors.actionformer import build_actionformer
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.pyramid_settings import PyramidSettings
from apl_jax.detectors.quality import QualitySettings
from apl_jax.detectors.tridet import build_tridet
from apl_jax.detectors.tridet_settings import TriDetSettings
from apl_jax.nn.discriminator import build_discriminator
from apl_jax.structs import DataFacts

PLAIN = ActionFormerSettings(quality=QualitySettings(branches="none"))
ANET = dataclasses.replace(PLAIN, width=256, windows=(7, 7, 7, 7, 7, 0), absolute_position=True, position_length_t=192)
EPIC = dataclasses.replace(
    PLAIN,
    windows=(9,) * 6,
    regression_ranges=((0, 4), (2, 8), (4, 16), (8, 32), (16, 64), (32, 10000)),
)


TRIDET = TriDetSettings(quality=QualitySettings(branches="none"))
HACS = dataclasses.replace(
    TRIDET, width=1024, mlp_width=1024, head_width=1024, windows=(1, 15, 15, 15, 15, 15), kernel_factor=1.2,
    head_kernel=5, boundary_kernel=1,
)  # fmt: skip
SEVEN_RANGES = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 10000))


def sizes(settings: PyramidSettings, feature_width: int, classes: int) -> dict[str, int]:
    """Entries of each parameter by its slash-separated path; nothing is computed."""
    build = build_tridet if isinstance(settings, TriDetSettings) else build_actionformer
    shapes = jax.eval_shape(build(settings, DataFacts(feature_width, classes)).init, jax.random.key(0))[0]
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {"/".join(str(key.key) for key in path): int(np.prod(leaf.shape)) for path, leaf in leaves}


@pytest.mark.parametrize(
    ("settings", "feature_width", "classes", "expected"),
    [
        pytest.param(PLAIN, 2048, 20, 29_251_612, id="thumos14"),
        pytest.param(ANET, 512, 1, 6_943_497, id="activitynet_tsp"),
        pytest.param(ANET, 2048, 1, 8_123_145, id="activitynet_i3d"),
        pytest.param(EPIC, 2304, 97, 29_763_177, id="epic_verb"),
    ],
)
def test_released_models(settings: ActionFormerSettings, feature_width: int, classes: int, expected: int) -> None:
    found = sizes(settings, feature_width, classes)
    assert sum(found.values()) == expected
    assert len(found) == 229


@pytest.mark.parametrize(
    ("changes", "of", "feature_width", "classes", "expected"),
    [
        pytest.param({}, TRIDET, 2048, 20, 15_989_604, id="thumos14"),
        pytest.param(
            {"width": 256, "mlp_width": 2048, "windows": (1, 15, 15, 15, 15, 15), "kernel_factor": 1.3, "bins": 12},
            TRIDET, 512, 1, 12_811_555, id="activitynet_tsp",
        ),
        pytest.param({"mlp_width": 1024, "kernel_factor": 4.0}, TRIDET, 2304, 300, 19_503_532, id="epic_noun"),
        pytest.param(
            {"mlp_width": 1024, "windows": (1, 5, 5, 5, 5, 5), "kernel_factor": 2.0}, TRIDET, 2304, 97, 18_594_123,
            id="epic_verb",
        ),
        pytest.param({"bins": 14, "windows": (1, 3, 3, 3, 3, 3)}, HACS, 2304, 200, 51_860_092, id="hacs_slowfast"),
        pytest.param(
            {"bins": 12, "branch_blocks": 6, "windows": (1, *(15,) * 6), "regression_ranges": SEVEN_RANGES}, HACS, 2048,
            200, 53_412_473, id="hacs_i3d",
        ),
    ],
)  # fmt: skip
def test_released_tridet(changes: dict, of: TriDetSettings, feature_width: int, classes: int, expected: int) -> None:
    found = sizes(dataclasses.replace(of, **changes), feature_width, classes)
    assert sum(found.values()) == expected


def test_parts_of_the_thumos14_model() -> None:
    found = sizes(PLAIN, 2048, 20)
    parts = {part: sum(n for name, n in found.items() if name.startswith(part)) for part in
             ("backbone", "neck", "class_head", "regression_head")}  # fmt: skip
    assert parts == {"backbone": 26_061_824, "neck": 6_144, "class_head": 1_605_652, "regression_head": 1_577_992}


def without_norms_and_scales(found: dict[str, int], heads: bool) -> int:
    """What Table S6 counts: neither LayerNorms nor layer scales nor the levels' scales."""
    kept = {name: n for name, n in found.items() if "norm" not in name and "scale" not in name}
    return sum(n for name, n in kept.items() if ("head" in name) == heads)


def test_table_s6() -> None:
    plain = sizes(PLAIN, 2048, 20)
    alqa = sizes(ActionFormerSettings(), 2048, 20)
    assert without_norms_and_scales(plain, heads=False) == 26_016_768
    assert without_norms_and_scales(plain, heads=True) == 3_179_542
    assert without_norms_and_scales(alqa, heads=True) == 3_182_616
    assert without_norms_and_scales(alqa, heads=False) == 26_016_768
    icd = jax.eval_shape(lambda: build_discriminator(hidden=128, symmetric=True).init(jax.random.key(0), 2048))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(icd)) == 524_545


@pytest.mark.parametrize(("branches", "extra"), [("tiou", 1_537), ("diou", 1_537), ("tiou_tnd", 3_074)])
def test_a_quality_branch_is_one_convolution(branches: str, extra: int) -> None:
    settings = dataclasses.replace(PLAIN, quality=QualitySettings(branches=branches))
    assert sum(sizes(settings, 2048, 20).values()) - sum(sizes(PLAIN, 2048, 20).values()) == extra
