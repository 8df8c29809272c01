"""Settings of ActionFormer (detectors/actionformer.py). Defaults are those of the paper on THUMOS14."""

from __future__ import annotations

from dataclasses import dataclass

from apl_jax.declarations import number, numbers, one_of
from apl_jax.detectors.pyramid_settings import PyramidSettings, check_levels, refuse


@dataclass(frozen=True)
class ActionFormerSettings(PyramidSettings):
    """ActionFormer on THUMOS14 (spec 1.1, 1.3)."""

    heads: int = number(4, at_least=1, at_most=1024)
    # per level, 0 or 1 = global
    windows: tuple[int, ...] = numbers((19, 19, 19, 19, 19, 19), at_least=0, at_most=1_000_001)
    neck: str = one_of("identity", "fpn")
    expansion: int = number(4, at_least=1, at_most=64)  # MLP width / width
    dropout: float = number(0.0, at_least=0, below=1)


def check_actionformer(s: ActionFormerSettings) -> None:
    """Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one another."""
    check_levels(s, s.windows)
    refuse([
        (s.width % s.heads != 0, f"width`: found {s.width}, expected a multiple of `detector.heads` = {s.heads}"),
        (any(w > 1 and w % 2 == 0 for w in s.windows), f"windows`: found {s.windows}, expected odd, or 0 = global"),
    ])  # fmt: skip
