"""Settings of BMN (detectors/bmn.py). Defaults are those of the paper on ActivityNet, in layout J (spec 2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from apl_jax.declarations import Checked, SettingsError, number, one_of
from apl_jax.ops.boundary_matching import Sampling
from apl_jax.settings import NmsSettings


@dataclass(frozen=True)
class BmnDecoding(NmsSettings):
    """From the map of segments to detections (spec 2.7)."""

    score_threshold: float = number(0.0, at_least=0, at_most=1)  # before NMS
    top_k_per_level: int = number(2000, at_least=1, at_most=1_000_000)  # cells of the map per window
    sigma: float = number(0.4, above=0, at_most=1e6)  # alpha
    min_score: float = number(0.0, at_least=0, at_most=1)
    max_detections: int = number(100, at_least=1, at_most=100_000)  # K
    class_wise: bool = False  # True: classes do not suppress one another
    voting_threshold: float = number(0.0, at_least=0, at_most=1)  # class-agnostic only; 0 = no voting
    # tIoU above which soft-NMS decays: t1, of a very short pick, and t2, of one that fills its recording
    decay_above_short: float = number(0.5, at_least=0, at_most=1)
    decay_above_long: float = number(0.9, at_least=0, at_most=1)
    boundary_scores: bool = True  # start and end probabilities count; False: the map alone (O's way for detection)
    rank_by_quality: bool = True  # max(tIoU - tND, epsilon) ranks, not tIoU alone (needs the tND channel)
    labels_per_segment: int = number(1, at_least=1, at_most=1000)  # surest classes that a cell is a candidate of


@dataclass(frozen=True)
class MapQualitySettings(Checked):
    """APL's localisation reliability on the map, whose regression channel predicts tIoU already (spec 2.9)."""

    # a tND channel besides | cross-entropy on tIoU alone | plain BMN
    branches: str = one_of("tiou_tnd", "tiou", "none")
    loss: str = one_of("bce", "kl")  # APL's Table S1
    weight: float = number(0.1, at_least=0, at_most=1e6)  # lambda_locq, added to the squared loss
    epsilon: float = number(1e-4, above=0, below=1)  # floor of tIoU - tND (A3)
    tnd_bias: float = number(-3.0, at_least=-50, at_most=50)  # a neutral bias would make the joint score zero (A3)


@dataclass(frozen=True)
class BmnSettings(Checked):
    """BMN on ActivityNet as the paper describes it; what public code does otherwise are switches (spec 2)."""

    # W, snippets that the network sees at once, the map's starts; 128 or 256 on THUMOS14
    steps: int = number(100, at_least=1, at_most=1024)
    durations: int = number(0, at_least=0, at_most=1024)  # D, rows of the map; 0: as many as steps. 64 on THUMOS14
    # how a recording becomes snippets: resized, or cut in windows of grid steps
    window_mode: str = one_of("resize", "windows")
    overlap: float = number(0.5, at_least=0, below=1)  # of neighbouring windows
    # share of an instance that must lie in a window to be taught there; otherwise the window is silent about it
    least_inside: float = number(0.75, at_least=0, at_most=1)

    width: int = number(256, at_least=1, at_most=65_536)  # of the base module and the heads over time
    groups: int = number(4, at_least=1, at_most=1024)  # of their convolutions; must divide the feature width
    matching_width: int = number(256, at_least=1, at_most=65_536)  # of what is sampled; paper, O: 128
    sample_width: int = number(512, at_least=1, at_most=65_536)  # of a cell, all its samples together
    map_width: int = number(128, at_least=1, at_most=65_536)
    samples: int = number(32, at_least=1, at_most=1024)  # N, of a segment
    sample_points: int = number(3, at_least=1, at_most=64)  # that make up a sample
    extension: float = number(0.5, at_least=0, at_most=10)  # that samples reach beyond a segment, in its lengths
    # the map: J, starts x ends, where cell (s, s + d) is sampled from s to s + d + 1 | S, also O and the authors:
    # durations x starts, where cell (d, s) is sampled from s to s + d
    layout: str = one_of("J", "S")

    # snippets that a boundary label compares with a boundary: J, as wide as one, around its start | S, twice as wide |
    # O, the snippet itself
    anchors: str = one_of("J", "S", "O")
    boundary_width: float = number(3.0, above=0, at_most=1e4)  # snippets around a boundary that are its region
    boundary_positive: float = number(0.5, at_least=0, below=1)  # label above which a snippet is a start or an end
    map_positive: float = number(0.9, at_least=0, below=1)  # tIoU above which the classification has a positive
    high_tiou: float = number(0.7, at_least=0, below=1)  # the regression keeps all cells above it, and as many ...
    middle_tiou: float = number(0.3, at_least=0, below=1)  # ... between the two, and as many below
    low_cells: str = one_of("overlapping", "all")  # the latter: of tIoU > 0 (J and S) | of tIoU 0 too (O)
    boundary_weight: float = number(1.0, at_least=0, at_most=1e6)
    regression_weight: float = number(10.0, at_least=0, at_most=1e6)  # of half the squared error
    map_weight: float = number(1.0, at_least=0, at_most=1e6)  # of the classification of cells
    classes: str = one_of("snippet", "none")  # a class head over snippets | none: one class, "action"
    class_weight: float = number(1.0, at_least=0, at_most=1e6)
    online_threshold: float = number(0.3, at_least=0, at_most=1)  # least confidence of on-line pseudo labels
    # of a mean teacher's starts and ends on videos without annotations: probabilities that become 1 and 0, and what the
    # surest start and the surest end of a video must exceed for it to teach (spec 4.1)
    teacher_above: float = number(0.9, at_least=0, at_most=1)
    teacher_below: float = number(0.1, at_least=0, at_most=1)
    teacher_least: float = number(0.6, at_least=0, at_most=1)
    # strict (what lies behind a short recording's end is nothing) | reference (rows of zeros like any others)
    masking: str = one_of("strict", "reference")
    dtype: str = one_of("float32", "bfloat16")  # of convolutions and of the products with the map
    quality: MapQualitySettings = field(default_factory=MapQualitySettings)
    online: BmnDecoding = field(default_factory=BmnDecoding)  # of on-line pseudo labels (C8)
    decoding: BmnDecoding = field(default_factory=BmnDecoding)


def without_quality(settings: BmnSettings) -> BmnSettings:
    """The published BMN: no tND channel and no cross-entropy on tIoU."""
    return dataclasses.replace(settings, quality=MapQualitySettings(branches="none"))


def sampling_of(s: BmnSettings) -> Sampling:
    """How the cells of the map are sampled."""
    return Sampling(s.steps, s.durations or s.steps, s.samples, s.sample_points, s.extension, s.layout)


def check_bmn(s: BmnSettings, feature_width: int, num_classes: int) -> None:
    """Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one another, or the data."""
    problems = [
        (s.durations > s.steps, f"durations`: found {s.durations}, expected at most `detector.steps` = {s.steps}"),
        (s.width % s.groups != 0,
         f"groups`: found {s.groups}, expected a divisor of `detector.width` = {s.width}"),
        (feature_width % s.groups != 0,
         f"groups`: found {s.groups}, expected a divisor of the feature width {feature_width}"),
        (s.middle_tiou > s.high_tiou,
         f"middle_tiou`: found {s.middle_tiou}, expected at most `detector.high_tiou` = {s.high_tiou}"),
        (s.classes == "none" and num_classes > 1,
         f"classes`: found none, which tells no classes apart; the data have {num_classes}; expected "
         "`data.class_agnostic` = True besides, or snippet"),
    ]  # fmt: skip
    for wrong, message in problems:
        if wrong:
            raise SettingsError(f"`detector.{message}")
