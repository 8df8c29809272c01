"""Settings that belong to no single detector, method or selection rule: data, stages, evaluation, the machine.

Every hyper-parameter of the project stands in a settings class with its unit, default, bounds and source; those of a
detector, a method or a selection rule stand in its own file, and the tree that a run is given in ``runs/settings.py``.
Frozen dataclasses are hashable, hence legal static arguments of ``jax.jit``, and their JSON has a stable hash. Defaults
are those of ActionFormer and APL on THUMOS14. "spec" in comments is the specification (docs/specification), by section
or by item (A4, B2 ...).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from apl_jax.declarations import Checked, SettingsError, number, numbers, one_of

LARGEST_SEED = 2**31 - 1
SLOWEST_RATE, FASTEST_RATE = 1e-3, 1e6  # samples or frames per second that a recording can have


@dataclass(frozen=True)
class SyntheticSettings(Checked):
    """Features made from the annotations (data/synthetic.py). Sizes are lengths, that of a class's prototype is 1.

    In no paper. Chosen so that a linear classifier (of 150 principal components), taught by 10 % of THUMOS14, finds two
    thirds of the action rows of test videos and names five sixths of these; APL's Table S2 has 66 % recall on I3D.
    """

    enabled: bool = False
    width: int = number(2048, at_least=1, at_most=65_536)  # D
    seed: int = number(0, at_least=0, at_most=LARGEST_SEED)  # another world: prototypes, scenes, noise
    # classes, neighbours by number, that are confusable with one another
    group: int = number(4, at_least=1, at_most=10_000)
    confusion: float = number(0.5, at_least=0, at_most=1)  # cosine of their prototypes, and with similar background
    leak: float = number(0.35, at_least=0, at_most=1)  # largest share of an instance that is another class of its group
    weakest: float = number(0.5, at_least=0, at_most=1)  # of an instance: strengths are uniform between this and 1
    blur: float = number(2.0, at_least=0, at_most=1e4)  # windows over which a boundary is blurred
    instance: float = number(0.4, at_least=0, at_most=1e6)  # an instance's own deviation
    scene: float = number(0.5, at_least=0, at_most=1e6)  # a video's own offset, in its background and actions alike
    gain: float = number(0.15, at_least=0, at_most=10)  # standard deviation of a video's log-normal gain
    backgrounds: int = number(12, at_least=1, at_most=10_000)  # prototypes that background moves between
    # deviation of their log-weights; large: one at a time
    backgrounds_spread: float = number(2.0, at_least=0, at_most=1e6)
    wander_s: float = number(4.0, above=0, at_most=1e6)  # seconds from one mixture of them to another
    # disturbance of each row along the directions of scenes and instances
    flicker: float = number(0.3, at_least=0, at_most=1e6)
    noise: float = number(1.4, at_least=0, at_most=1e6)  # white noise, over all directions together


@dataclass(frozen=True)
class GridSettings(Checked):
    """How a recording becomes rows on a grid; prediction needs the same as training."""

    # folders in root (rgb, flow) whose features are joined on channels, in this order; empty: one array per video
    streams: tuple[str, ...] = field(default=(), metadata={"entries": str})
    # stored: feature rows or signals, as the folder holds them | signal: feature rows are windowed like a raw signal,
    # one sample for each; for rows that are much finer than the actions
    features: str = one_of("stored", "signal")
    window: int = number(20, at_least=1, at_most=1_000_000)  # samples of raw signal per feature row
    # samples between rows; 0: ready-made rows that span their video in equal parts
    stride: int = number(10, at_least=0, at_most=1_000_000)
    # rows: as many as the recording has | resize: linear, to fixed_length_t (spec 1.2) | pool: BSN's (spec 2.6)
    grid: str = one_of("rows", "resize", "pool")
    # rows after resize or pool; ActivityNet: 192, TSN for SPOT: 100
    fixed_length_t: int = number(192, at_least=2, at_most=100_000)
    # grids are padded to a multiple; the coarsest stride must divide it
    length_multiple: int = number(16, at_least=1, at_most=100_000)
    # every class is taught and detected as one, "action"; names then come from the external protocol (spec 1.1, 1.9)
    class_agnostic: bool = False
    # frames per second that window and stride count, where features were extracted at a rate that is not their videos'
    # own (EPIC-KITCHENS-100: 30); 0: each video's, as annotated
    fps: float = number(0.0, at_least=0, at_most=FASTEST_RATE)
    # share of the annotated duration by which the length of features may differ from it (spec 8, row 11); more means
    # features of another rate or another cut
    length_tolerance: float = number(0.05, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.fps < SLOWEST_RATE:
            raise SettingsError(f"`fps`: found {self.fps:g}, expected 0 or at least {SLOWEST_RATE:g}")


@dataclass(frozen=True)
class DataSettings(GridSettings):
    """Where recordings come from, how they become grids, and which of them may show their labels."""

    name: str = "spsw"  # embedded data set, or the name printed for `root`
    root: str = ""  # folder with annotations.json and features; empty = the data set embedded in the package
    training_subset: str = "training"  # compared in lower case
    test_subset: str = "test"
    label_ratio: float = number(0.1, above=0, at_most=1)  # share of training videos whose annotations training may see
    split_seed: int = number(0, at_least=0, at_most=LARGEST_SEED)
    # training subjects held out, and evaluated instead of the test set
    validation_subjects: tuple[int, ...] = numbers((), at_least=0, at_most=1_000_000)
    # longer videos are cropped in training; prediction sees them whole
    max_length_t: int = number(2304, at_least=1, at_most=10_000_000)
    # of max_length_t: what a stream reads of longer videos
    stream_window: float = number(1.25, at_least=1, at_most=1e3)
    # in feature units; a feature that deviates less is only centred
    std_floor: float = number(1e-3, at_least=0, at_most=1e6)
    # recordings to leave out: ids with commas between them, or a file: .txt with one in each line, .json with a list
    exclude: str = ""
    strict_annotations: bool = True  # False: keep segments outside their video, drop empty ones (THUMOS14, ActivityNet)
    allow_uncovered: bool = False  # go on when the labelled videos leave a class without an instance
    split_file: str = ""  # JSON with ids under "labelled", or SPOT's CSV; replaces label_ratio, split_seed, split_rule
    # cover: every class first, nested over ratios | first_class: each class its share, by a video's first annotation,
    # as in SPOT's published splits (spec 3.8)
    split_rule: str = one_of("cover", "first_class")
    variant: str = ""  # test set of THUMOS14: 213 | 212 | 211 | 210 (data/published.py); empty = 212
    task: str = one_of("verb", "noun", "action")  # classes of EPIC-KITCHENS-100
    licence: str = ""  # of the data, kept with every model that is trained on it
    synthetic: SyntheticSettings = field(default_factory=SyntheticSettings)

    @property
    def title(self) -> str:
        """What the data set is called on pages and in tables: its name; that of its folder, where it has only the name
        of the embedded one."""
        own = self.root and self.name == DataSettings.name
        return Path(self.root).absolute().name or self.name if own else self.name

    def for_prediction(self) -> GridSettings:
        """The part that prediction needs, and models keep."""
        return GridSettings(**{f.name: getattr(self, f.name) for f in fields(GridSettings)})


@dataclass(frozen=True)
class NmsSettings(Checked):
    """From dense predictions to detections: thresholds, and non-maximum suppression (spec 1.9)."""

    score_threshold: float = number(0.001, at_least=0, at_most=1)  # before NMS
    top_k_per_level: int = number(2000, at_least=1, at_most=1_000_000)  # SPOT: runs of class sequences per window
    duration_threshold_t: float = number(0.05, at_least=0, at_most=1e6)  # grid steps; shorter predictions are discarded
    method: str = one_of("gaussian", "hard")  # gaussian (soft-NMS) | hard
    sigma: float = number(0.5, above=0, at_most=1e6)
    iou_threshold: float = number(0.1, at_least=0, at_most=1)  # hard NMS only
    min_score: float = number(0.001, at_least=0, at_most=1)
    max_detections: int = number(200, at_least=1, at_most=100_000)  # K
    class_wise: bool = True  # False: one pass over all classes, then voting
    voting_threshold: float = number(0.7, at_least=0, at_most=1)  # class-agnostic only; 0 = no voting


@dataclass(frozen=True)
class PerturbSettings(Checked):
    """Random truncation (spec 1.2) and feature noise during training."""

    crop_ratio: float = number(0.9, above=0, at_most=1)  # shortest crop as a fraction of the video; 1 = no cropping
    keep_ratio: float = number(0.5, at_least=0, at_most=1)  # an instance survives if at least this much of it is inside
    # starts drawn at once; the first that keeps an instance is used
    crop_attempts: int = number(16, at_least=1, at_most=10_000)
    # standard deviation of Gaussian noise added to features (TriDet: 5e-4)
    noise: float = number(0.0, at_least=0, at_most=1e3)
    channel_drop: float = number(0.0, at_least=0, below=1)  # probability that a channel is zero over the whole video
    scale: float = number(0.0, at_least=0, at_most=10)  # standard deviation of a per-video log-normal gain


@dataclass(frozen=True)
class OptimizerSettings(Checked):
    """AdamW with role-based decay, global-norm clipping, warm-up + cosine, EMA (spec 1.8)."""

    learning_rate: float = number(1e-4, above=0, at_most=10)
    weight_decay: float = number(0.05, at_least=0, at_most=10)  # APL: 1e-4
    beta1: float = number(0.9, at_least=0, below=1)
    beta2: float = number(0.999, at_least=0, below=1)
    epsilon: float = number(1e-8, above=0, at_most=1)
    clip_norm: float = number(1.0, above=0, at_most=1e9)
    warmup_fraction: float = number(0.1, at_least=0, at_most=1)  # of the stage's steps
    final_learning_rate: float = number(1e-8, at_least=0, at_most=10)
    ema_decay: float = number(0.999, at_least=0, below=1)
    ema_ramp: bool = True  # decay min(ema_decay, (1 + i) / (N + i)); False = the reference's constant
    ema_ramp_length: float = number(10.0, at_least=1, at_most=1e6)  # N; SSTAP's teacher: 21


@dataclass(frozen=True)
class StageSettings(Checked):
    """Length and batch of one training stage."""

    steps: int = number(2000, at_least=0, at_most=1_000_000_000)  # 0 leaves pre-training out
    labelled_batch: int = number(2, at_least=0, at_most=100_000)  # videos
    unlabelled_batch: int = number(0, at_least=0, at_most=100_000)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    perturb: PerturbSettings = field(default_factory=PerturbSettings)


@dataclass(frozen=True)
class LabelSpaceSettings(Checked):
    """What the true class of an unlabelled snippet is to the network (paper 002, III-B); for looking only."""

    enabled: bool = False
    # snippets whose whole distribution is kept for the report (Figure 6)
    examples: int = number(6, at_least=0, at_most=10_000)
    # frames whose learnt features are drawn in a plane (Figures 3, 4); 0 = none
    frames: int = number(500, at_least=0, at_most=100_000)
    videos: int = number(32, at_least=1, at_most=1_000_000)  # unlabelled videos that these frames come from
    closeness: float = number(0.85, at_least=0, at_most=1)  # lambda of the division, as in learning.method
    foreground_score: float = number(0.15, at_least=0, at_most=1)  # of sigmoids: least score of a point that is counted


@dataclass(frozen=True)
class EvaluationSettings(Checked):
    """tIoU thresholds and recall ranks of the final table, and the protocol."""

    tiou: tuple[float, ...] = numbers((0.3, 0.4, 0.5, 0.6, 0.7), above=0, at_most=1)
    recall_at: tuple[int, ...] = numbers((1, 5), at_least=1, at_most=100_000)
    # strict: the model's own classes | external: those of a video-level classifier (evaluation/external.py)
    protocol: str = one_of("strict", "external")
    external_scores: str = ""  # JSON or CSV with a probability per video and class, matched by name
    # classes of a video that each of its segments is given (spec 1.9)
    external_top_k: int = number(2, at_least=1, at_most=100_000)
    external_combination: str = one_of("sqrt", "product")  # of class and segment score: ActionFormer | BMN, OpenTAD
    external_segments: int = number(200, at_least=1, at_most=1_000_000)  # of a video, the surest (spec 1.9)
    label_space: LabelSpaceSettings = field(default_factory=LabelSpaceSettings)


@dataclass(frozen=True)
class RuntimeSettings(Checked):
    """Machine matters; nothing here may change a result beyond float rounding, but for ``feed`` where videos are longer
    than ``data.stream_window`` lets a stream read at once."""

    steps_per_dispatch: int = number(25, at_least=1, at_most=1_000_000)  # optimiser steps inside one jitted call
    checkpoint_every: int = number(250, at_least=1, at_most=1_000_000_000)  # steps, rounded up to whole dispatches
    log_every: int = number(25, at_least=1, at_most=1_000_000_000)
    progress: bool = True
    distributed: str = one_of("off", "auto")  # off | auto: jax.distributed.initialize()
    grace_seconds: float = number(20.0, at_least=0, at_most=3600)  # from a request to stop to the end of the process
    silence_seconds: float = number(12.0, at_least=6, at_most=3600)  # from which on another process counts as lost
    # device: all features stay on the devices | stream: batches are read while they compute | auto: device if it fits
    feed: str = one_of("auto", "device", "stream")
    device_share: float = number(0.4, at_least=0, at_most=1)  # of the devices' memory that `auto` fills with features
    host_share: float = number(0.4, at_least=0, at_most=1)  # of the machine's memory in which a stream keeps features
    portion_mib: float = number(256.0, above=0, at_most=1e6)  # of the batches that a stream brings at once
    read_threads: int = number(2, at_least=1, at_most=256)  # that read portions ahead, and as many portions
    prediction_batch: int = number(16, at_least=1, at_most=100_000)  # videos that are predicted together
