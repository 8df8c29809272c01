"""Settings that the detectors of pyramid points share (detectors/pyramid_outputs.py)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TypeVar

from apl_jax.declarations import Checked, SettingsError, number, numbers, one_of
from apl_jax.detectors.quality import QualitySettings
from apl_jax.settings import NmsSettings


@dataclass(frozen=True)
class PyramidDecoding(NmsSettings):
    """From dense predictions to detections (spec 1.9)."""

    rank_by_quality: bool = True  # the joint score, not the class score, ranks detections (A24)


@dataclass(frozen=True)
class PyramidSettings(Checked):
    """The pyramid's shape, label assignment, losses, decoding. Defaults are ActionFormer's on THUMOS14 (spec 1.1)."""

    width: int = number(512, at_least=1, at_most=65_536)
    embedding_convs: int = number(2, at_least=0, at_most=64)  # 0: the features are the embedding, and `width` wide
    stem_blocks: int = number(2, at_least=0, at_most=64)
    branch_blocks: int = number(5, at_least=0, at_most=30)  # pyramid levels = branch_blocks + 1
    absolute_position: bool = False
    position_length_t: int = number(2304, at_least=1, at_most=10_000_000)  # length that the position table is built for
    head_layers: int = number(3, at_least=1, at_most=64)  # hidden layers + predictor
    drop_path: float = number(0.1, at_least=0, below=1)  # stochastic depth probability
    layer_scale: bool = True  # the reference drops it when drop_path is 0; here it is its own switch
    layer_scale_init: float = number(1e-4, at_least=0, at_most=1e3)
    # per level: which distances (grid steps) from a point to the farther end of an instance it is for
    regression_ranges: tuple[tuple[float, float], ...] = numbers(
        ((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 10000.0)), at_least=0, at_most=1e9
    )
    center_radius: float = number(1.5, above=0, at_most=1e6)  # strides
    prior_probability: float = number(0.01, above=0, below=1)  # of a class at initialisation
    label_smoothing: float = number(0.0, at_least=0, below=1)
    focal_alpha: float = number(0.25, at_least=0, at_most=1)
    focal_gamma: float = number(2.0, at_least=0, at_most=100)
    # of the tIoU of a point's segment, which weighs its class loss; soft labels of ALQA take its place (spec 1.12)
    tiou_power: float = number(0.0, at_least=0, at_most=10)
    # lambda_reg; <= 0: balanced against the class loss (spec 1.7)
    regression_weight: float = number(1.0, at_least=-1, at_most=1e6)
    normalizer_init: float = number(100.0, above=0, at_most=1e9)
    normalizer_momentum: float = number(0.9, at_least=0, at_most=1)
    online_threshold: float = number(0.3, at_least=0, at_most=1)  # least confidence of on-line pseudo labels
    compare_threshold: float = number(0.3, at_least=0, at_most=1)  # teacher's least score where segments are compared
    # strict (padding changes nothing) | reference (that of the published code, where padding leaks; for parity)
    masking: str = one_of("strict", "reference")
    dtype: str = one_of("float32", "bfloat16")  # of convolutions, projections and attention products
    quality: QualitySettings = field(default_factory=QualitySettings)
    online: PyramidDecoding = field(default_factory=PyramidDecoding)  # of on-line pseudo labels (C8)
    decoding: PyramidDecoding = field(default_factory=PyramidDecoding)


_S = TypeVar("_S", bound=PyramidSettings)


def without_quality(settings: _S) -> _S:
    """The published detector: no quality heads, and default values for what only they read."""
    return dataclasses.replace(settings, quality=QualitySettings(branches="none"))


def refuse(problems: list[tuple[bool, str]]) -> None:
    """Raises :class:`~apl_jax.declarations.SettingsError` with the first message whose problem is there."""
    for wrong, message in problems:
        if wrong:
            raise SettingsError(f"`detector.{message}")


def check_levels(s: PyramidSettings, windows: tuple[int, ...]) -> None:
    """Refuses numbers of windows or of ranges that are not one for each level, and ranges that fall."""
    levels = s.branch_blocks + 1
    pairs = [r for r in s.regression_ranges if len(r) != 2 or r[0] > r[1]]
    refuse([
        (len(windows) != levels,
         f"windows`: found {len(windows)} values, expected one per level, `detector.branch_blocks` + 1 = {levels}"),
        (len(s.regression_ranges) != levels,
         f"regression_ranges`: found {len(s.regression_ranges)} pairs, "
         f"expected one per level, `detector.branch_blocks` + 1 = {levels}"),
        (bool(pairs), f"regression_ranges`: found {pairs[:1]}, expected pairs that rise"),
    ])  # fmt: skip
