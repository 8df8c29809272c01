"""Settings of TriDet (detectors/tridet.py). Defaults are the paper's on THUMOS14, save `initial_deviation`."""

from __future__ import annotations

from dataclasses import dataclass

from apl_jax.declarations import number, numbers
from apl_jax.detectors.pyramid_settings import PyramidSettings, check_levels, refuse


@dataclass(frozen=True)
class TriDetSettings(PyramidSettings):
    """TriDet on THUMOS14 (spec 1.12)."""

    tiou_power: float = number(0.2, at_least=0, at_most=10)
    # of the branch blocks of each level; that of the first level, whose blocks are the stem, is 1 in the reference
    windows: tuple[int, ...] = numbers((1, 1, 1, 1, 1, 1), at_least=1, at_most=1_000_001)
    kernel_factor: float = number(5.0, above=0, at_most=1e3)  # k: the wider window is k (window + 1), made odd
    # of the convolutions' weights at initialisation; at 0, as in the reference on THUMOS14 and EPIC, they never train
    initial_deviation: float = number(0.1, at_least=0, at_most=10)
    mlp_width: int = number(768, at_least=1, at_most=1_000_000)
    norm_groups: int = number(16, at_least=1, at_most=65_536)  # of the group normalisation before each MLP
    head_width: int = number(512, at_least=1, at_most=65_536)
    head_kernel: int = number(3, at_least=1, at_most=1001)
    boundary_kernel: int = number(3, at_least=1, at_most=1001)  # of the heads of starts and ends
    bins: int = number(16, at_least=1, at_most=1000)  # N: how many strides a start or an end may be away
    input_noise: float = number(5e-4, at_least=0, at_most=1e3)  # deviation, added to the features in training


def check_tridet(s: TriDetSettings) -> None:
    """Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one another."""
    check_levels(s, s.windows)
    odd = lambda name: f"{name}`: found {getattr(s, name)}, expected odd"
    refuse([
        (s.width % s.norm_groups != 0,
         f"width`: found {s.width}, expected a multiple of `detector.norm_groups` = {s.norm_groups}"),
        (any(w % 2 == 0 for w in s.windows), odd("windows")),
        (s.head_kernel % 2 == 0, odd("head_kernel")),
        (s.boundary_kernel % 2 == 0, odd("boundary_kernel")),
    ])  # fmt: skip
