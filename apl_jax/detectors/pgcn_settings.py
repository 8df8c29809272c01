"""Settings of P-GCN (detectors/pgcn.py). Defaults are those of the paper on THUMOS14, save where a comment says so."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from apl_jax.declarations import Checked, Choice, SettingsError, choice, number, numbers, one_of
from apl_jax.detectors.quality import QualitySettings
from apl_jax.registry import DETECTORS
from apl_jax.settings import NmsSettings


@dataclass(frozen=True)
class PgcnDecoding(NmsSettings):
    """From proposals to detections: suppression first, regression second (spec 5.3, 1)."""

    top_k_per_level: int = number(2000, at_least=1, at_most=1_000_000)  # pairs (proposal, class) per video
    method: str = one_of("hard", "gaussian")  # hard | gaussian (soft-NMS)
    iou_threshold: float = number(0.2, at_least=0, at_most=1)  # hard NMS only; .35 in the public script
    # how completeness is brought to [0, 1]: its sigmoid | exponential, the score over the video's largest (spec 5.2, 3)
    completeness: str = one_of("sigmoid", "maximum")
    rank_by_quality: bool = True  # the joint score, not the class score, ranks detections


@dataclass(frozen=True)
class PgcnSettings(Checked):
    """P-GCN on THUMOS14 (spec 5)."""

    generator: Choice = choice(DETECTORS, "actionformer")  # makes the proposals, trained on the labelled videos
    # of graph nodes: the nearest (ours) | drawn from one pool (public code) | the first of that pool
    neighbours: str = one_of("nearest", "drawn", "first")
    contextual_neighbours: int = number(3, at_least=0, at_most=1000)  # of each proposal, by falling tIoU
    surrounding_neighbours: int = number(1, at_least=0, at_most=1000)  # of each proposal, by rising distance
    contextual_tiou: float = number(0.7, at_least=0, below=1)  # from which on proposals are contextual
    # contextual candidates in the pool of "drawn" and "first"; as many as the two numbers above are taken from it
    pool_contextual: int = number(8, at_least=0, at_most=1000)
    pool_surrounding: int = number(2, at_least=0, at_most=1000)  # surrounding candidates in it
    extension: float = number(0.5, at_least=0, at_most=100)  # of the parts before and after, of the proposal's length
    # what is pooled: the input rows (published) | their projection, which contrast may shape (spec 5.2, 6)
    rows: str = one_of("input", "projection")
    projection_width: int = number(128, at_least=1, at_most=65_536)  # of the rows that contrast looks at
    width: int = number(512, at_least=1, at_most=65_536)  # between the two graph convolutions
    dropout: float = number(0.7, at_least=0, below=1)  # after the first graph convolution
    head_dropout: float = number(0.8, at_least=0, below=1)  # before the activity head
    head_deviation: float = number(0.001, at_least=0, at_most=10)  # of the heads' weights at initialisation
    # whether training has annotated instances among the proposals, in place of the least sure ones
    annotated_proposals: bool = True
    foreground_tiou: float = number(0.7, at_least=0, below=1)  # least, exclusive
    incomplete_tiou: float = number(0.3, at_least=0, at_most=1)  # most, exclusive; .6 on ActivityNet
    incomplete_overlap: float = number(0.01, at_least=0, below=1)  # least share of the proposal in an instance
    background_tiou: float = number(0.01, above=0, at_most=1)  # most, exclusive; .1 on ActivityNet
    background_coverage: float = number(0.02, at_least=0, below=1)  # least share of the video
    foreground_samples: int = number(1, at_least=1, at_most=10_000)  # foreground proposals of a video at each step
    incomplete_samples: int = number(6, at_least=1, at_most=10_000)  # the same of incomplete proposals
    background_samples: int = number(1, at_least=1, at_most=10_000)  # and of background
    # where a video lacks a kind: leave it out (ours) | fill its places with foreground, by position (public code)
    missing: str = one_of("masked", "literal")
    hard_share: float = number(0.17, above=0, at_most=1)  # of the incomplete samples, whose completeness loss counts
    completeness_weight: float = number(0.5, at_least=0, at_most=1e6)
    regression_weight: float = number(0.5, at_least=0, at_most=1e6)
    # shift, and logarithm of the length's ratio, that an output of 0 means
    regression_mean: tuple[float, float] = numbers((0.0, 0.0), at_least=-10, at_most=10)
    # how much an output of 1 adds to them
    regression_deviation: tuple[float, float] = numbers((0.1, 0.2), above=0, at_most=10)
    # by what the regression loss divides differences: deviations of the targets so far | `regression_deviation`
    regression_scale: str = one_of("running", "fixed")
    regression_momentum: float = number(0.99, at_least=0, at_most=1)  # of the running deviations
    online_threshold: float = number(0.3, at_least=0, at_most=1)  # least confidence of on-line pseudo labels
    compare_threshold: float = number(0.3, at_least=0, at_most=1)  # teacher's least score where segments are compared
    dtype: str = one_of("float32", "bfloat16")  # of the products of the graph convolutions
    quality: QualitySettings = field(default_factory=QualitySettings)  # soft_focal, background_gradient: not read
    online: PgcnDecoding = field(default_factory=PgcnDecoding)  # of on-line pseudo labels (C8)
    decoding: PgcnDecoding = field(default_factory=PgcnDecoding)


def without_quality(settings: PgcnSettings) -> PgcnSettings:
    """The published detector: no quality heads, and default values for what only they read."""
    return dataclasses.replace(settings, quality=QualitySettings(branches="none"))


def check_pgcn(s: PgcnSettings) -> None:
    """Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one another."""
    for name in ("regression_mean", "regression_deviation"):
        found = getattr(s, name)
        if len(found) != 2:
            raise SettingsError(f"`detector.{name}`: found {len(found)} values, expected 2, of shift and length")
    neighbours = s.contextual_neighbours + s.surrounding_neighbours
    if neighbours == 0:
        raise SettingsError(
            "`detector.contextual_neighbours`: found 0, as is `detector.surrounding_neighbours`; expected at least 1 "
            "for one of them"
        )
    pool = s.pool_contextual + s.pool_surrounding
    if s.neighbours != "nearest" and pool < neighbours:
        raise SettingsError(
            f"`detector.pool_contextual`: found {s.pool_contextual}, with `detector.pool_surrounding` {pool}; expected "
            f"at least as many candidates as neighbours, {neighbours}"
        )
