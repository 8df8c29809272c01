"""Every hyper-parameter of the project: its name, unit, default and source. Nothing else holds one.

Frozen dataclasses are hashable, hence legal static arguments of ``jax.jit``, and their JSON has a stable hash, hence
stage fingerprints. Defaults are those of ActionFormer and APL on THUMOS14; ``configs/*.py`` state differences only.
"systems" in the comments is the behavioural specification, by section or by item (A4, B2 ...).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from apl_jax.declarations import Checked, one_of


@dataclass(frozen=True)
class RehearsalSettings(Checked):
    """Features made up from the annotations (data/rehearsal.py). Sizes are lengths, that of a class's prototype is 1.

    In no paper. Chosen so that a linear classifier (of 150 principal components), taught by 10 % of THUMOS14, finds two
    thirds of the action rows of test videos and names five sixths of these; APL's Table S2 has 66 % recall on I3D.
    """

    enabled: bool = False
    width: int = 2048  # D
    seed: int = 0  # another world: prototypes, scenes, noise
    group: int = 4  # classes, neighbours by number, that are confusable with one another
    confusion: float = 0.5  # cosine of their prototypes, and of a group's with the background that resembles it
    leak: float = 0.35  # largest share of an instance that is the prototype of another class of its group
    weakest: float = 0.5  # of an instance: strengths are uniform between this and 1
    blur: float = 2.0  # windows over which a boundary is blurred; network outputs have seen more than their window
    instance: float = 0.4  # an instance's own deviation
    scene: float = 0.5  # a video's own offset, in its background and actions alike
    gain: float = 0.15  # standard deviation of a video's log-normal gain
    backgrounds: int = 12  # prototypes that background wanders between
    backgrounds_spread: float = 2.0  # standard deviation of their log-weights in a mixture; large: one at a time
    wander_s: float = 4.0  # seconds from one mixture of them to another
    flicker: float = 0.3  # disturbance of each row along the directions of scenes and instances
    noise: float = 1.4  # white noise, over all directions together


@dataclass(frozen=True)
class DataSettings(Checked):
    """Where recordings come from, how they become grids, and which of them may show their labels."""

    name: str = "spsw"  # embedded data set, or the name printed for `root`
    root: str = ""  # folder with annotations.json and features; empty = the data set embedded in the package
    # folders in root (rgb, flow) whose features are joined on channels, in this order; empty: one array per video
    streams: tuple[str, ...] = field(default=(), metadata={"entries": str})
    window: int = 20  # samples of raw signal per feature row
    stride: int = 10  # samples between rows; 0: ready-made rows that span their video in equal parts
    # rows: as many as the recording has | resize: linear, to fixed_length_t (systems 1.2) | pool: BSN's (systems 2.6)
    grid: str = one_of("rows", "resize", "pool")
    fixed_length_t: int = 192  # rows of every recording after resize or pool; ActivityNet: 192, TSN for SPOT: 100
    training_subset: str = "training"  # compared in lower case
    test_subset: str = "test"
    label_ratio: float = 0.1  # fraction of training videos whose annotations training may see, in (0, 1]
    split_seed: int = 0
    validation_subjects: tuple[int, ...] = ()  # training subjects held out, and evaluated instead of the test set
    length_multiple: int = 16  # grids are padded to a multiple of this; the coarsest pyramid stride must divide it
    max_length_t: int = 2304  # longer videos are cropped in training; prediction sees them whole
    stream_window: float = 1.25  # of max_length_t: what a stream reads of longer videos, for a crop to be cut from
    std_floor: float = 1e-3  # in feature units; a feature that deviates less in training is centred, not scaled
    strict_annotations: bool = True  # False: keep segments outside their video, drop empty ones (THUMOS14, ActivityNet)
    # every class is taught and detected as one, "action"; names then come from the external protocol (systems 1.1, 1.9)
    class_agnostic: bool = False
    allow_uncovered: bool = False  # go on when the labelled videos leave a class without an instance
    split_file: str = ""  # JSON with ids under "labelled", or SPOT's CSV; replaces label_ratio, split_seed, split_rule
    # cover: every class first, nested over ratios | first_class: each class its share, by a video's first annotation,
    # as in SPOT's published splits (systems 3.8)
    split_rule: str = one_of("cover", "first_class")
    variant: str = ""  # test set of THUMOS14: 213 | 212 | 211 | 210 (data/published.py); empty = 212
    task: str = one_of("verb", "noun", "action")  # classes of EPIC-KITCHENS-100
    # frames per second that window and stride count, where features were extracted at a rate that is not their videos'
    # own (EPIC-KITCHENS-100: 30); 0: each video's, as annotated
    fps: float = 0.0
    rehearsal: RehearsalSettings = field(default_factory=RehearsalSettings)


@dataclass(frozen=True)
class QualitySettings(Checked):
    """ALQA: the localisation-reliability heads and the joint score (APL 3.1, Eq. 1 to 5)."""

    branches: str = one_of(
        "tiou_tnd", "diou", "tiou", "none"
    )  # tiou_tnd (two branches) | diou | tiou (one, Table 3) | none (plain ActionFormer)
    loss: str = one_of("bce", "kl")  # bce | kl (Table S1)
    soft_focal: str = one_of("qfl", "af")  # af (ActionFormer's focal form on the joint probability) | qfl (systems A4)
    weight: float = 0.1  # lambda_locq
    epsilon: float = 1e-4  # floor of tIoU - tND (A3)
    tiou_bias: float = 0.0  # logit bias at initialisation (A3)
    tnd_bias: float = -3.0  # a neutral bias would zero the joint score (A3)
    background_gradient: bool = True  # let the classification loss at background points reach the quality heads (A6b)
    rank_by_quality: bool = True  # the joint score, not the class score, ranks detections (A24)


@dataclass(frozen=True)
class NmsSettings(Checked):
    """Turning dense predictions into detections (systems 1.9)."""

    score_threshold: float = 0.001  # before NMS
    top_k_per_level: int = 2000  # SPOT: runs of class sequences per window
    duration_threshold_t: float = 0.05  # grid steps; shorter predictions are discarded
    method: str = one_of("gaussian", "hard")  # gaussian (soft-NMS) | hard
    sigma: float = 0.5
    iou_threshold: float = 0.1  # hard NMS only
    min_score: float = 0.001
    max_detections: int = 200  # K
    class_wise: bool = True  # False: one pass over all classes, then voting
    voting_threshold: float = 0.7  # class-agnostic only; 0 = no voting


@dataclass(frozen=True)
class ActionFormerSettings(Checked):
    """ActionFormer on THUMOS14 (systems 1.1, 1.3)."""

    width: int = 512
    heads: int = 4
    embedding_convs: int = 2
    stem_blocks: int = 2
    branch_blocks: int = 5  # pyramid levels = branch_blocks + 1
    windows: tuple[int, ...] = (19, 19, 19, 19, 19, 19)  # per level, 0 or 1 = global
    neck: str = one_of("identity", "fpn")  # identity | fpn
    absolute_position: bool = False
    position_length_t: int = 2304  # length that the position table is built for
    head_layers: int = 3  # hidden layers + predictor
    expansion: int = 4  # MLP width / width
    dropout: float = 0.0
    drop_path: float = 0.1  # stochastic depth probability
    layer_scale: bool = True  # the reference drops it when drop_path is 0; here it is its own switch
    layer_scale_init: float = 1e-4
    regression_ranges: tuple[tuple[float, float], ...] = (
        (0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 10000.0),
    )  # fmt: skip
    center_radius: float = 1.5  # in strides
    prior_probability: float = 0.01  # of a class at initialisation
    label_smoothing: float = 0.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    regression_weight: float = 1.0  # lambda_reg; <= 0: balanced against the class loss (systems 1.7)
    normalizer_init: float = 100.0
    normalizer_momentum: float = 0.9
    online_threshold: float = 0.3  # confidence of detections that serve as pseudo labels within the same step
    masking: str = one_of(
        "strict", "reference"
    )  # strict (law 1) | reference (ActionFormer's leaky masking, for parity)
    dtype: str = one_of(
        "float32", "bfloat16"
    )  # of convolutions, projections and attention products: float32 | bfloat16
    quality: QualitySettings = field(default_factory=QualitySettings)
    nms: NmsSettings = field(default_factory=NmsSettings)


@dataclass(frozen=True)
class SpotSettings(Checked):
    """SPOT on ActivityNet as the papers describe it; the public code's departures are switches (systems 3)."""

    steps: int = 100  # snippets that the network sees at once; 256 on THUMOS14
    fit: str = one_of("resize", "windows")  # how a recording becomes snippets: resized, or cut in windows of grid steps
    overlap: float = 0.5  # of neighbouring windows
    width: int = 0  # of the embedding; 0 = the feature width, without a projection (the public code)
    embedding_convs: int = 0  # 3-wide convolutions instead of the projection, for features without temporal context
    heads: int = 4
    head_width: int = 0  # of each head's queries, keys and values; 0 = width (the public code)
    attention_dropout: float = 0.1
    dropout: float = 0.3
    mask_head: str = one_of("rows", "bilinear")  # rows (weights depend on `steps`) | bilinear (query x key)
    mask_hidden: int = 256
    class_loss: str = one_of("cross_entropy", "reference")  # per snippet | factor (1 - exp(-c))^2 / 2 on the mean c
    bce_share: float = 0.4  # of the mask loss; the rest is dice
    dice_factor: float = 2.0  # 1 = the public code, whose perfect mask loses 0.5
    mask_smoothing: float = 10.0  # cells added to the counts of the weighted BCE
    target_edges: str = one_of("floor", "nearest")  # which snippet edge an annotated time becomes (systems 3.3: floor)
    target_shrink: int = 0  # snippets taken off each end of a target; 1 = the public code
    reconstruction_weight: float = 1.0
    refinement_weight: float = 0.5
    refinement_temperature: float = 0.07
    easy_snippets: int = 10
    hard_snippets: int = 20
    band_inner: int = 4  # snippets; the hard bands lie between erosions, and dilations, by the two
    band_outer: int = 8
    mask_threshold: float = 0.7  # of on-line pseudo masks (C12)
    top_snippets: int = 10  # whose mask rows become proposals
    mask_thresholds: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8)
    class_thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    class_candidates: int = 5  # classes per recording whose score sequence becomes proposals
    shortest_share: float = 0.02  # of `steps`; shorter proposals are discarded
    extent: str = one_of("component", "span")  # component that holds the snippet | first to last active (public code)
    label: str = one_of("snippet", "video")  # class of a proposal: its snippet's | the recording's (one action only)
    dtype: str = one_of("float32", "bfloat16")
    nms: NmsSettings = field(
        default_factory=lambda: NmsSettings(sigma=0.1, max_detections=100, top_k_per_level=200)  # exp(-10 IoU^2), C13
    )


@dataclass(frozen=True)
class PerturbSettings(Checked):
    """Random truncation (systems 1.2) and feature noise during training."""

    crop_ratio: float = 0.9  # shortest crop as a fraction of the video; 1 = no cropping
    keep_ratio: float = 0.5  # an instance survives a crop if at least this fraction of it is inside
    crop_attempts: int = 16  # starts drawn at once; the first that keeps an instance is used (reference: up to 200)
    noise: float = 0.0  # standard deviation of Gaussian noise added to features (TriDet: 5e-4)
    channel_drop: float = 0.0  # probability that a feature channel is zeroed over the whole video (OpenTAD: 0.2)
    scale: float = 0.0  # standard deviation of a per-video log-normal gain


@dataclass(frozen=True)
class OptimizerSettings(Checked):
    """AdamW with role-based decay, global-norm clipping, warm-up + cosine, EMA (systems 1.8)."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.05  # APL: 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    warmup_fraction: float = 0.1  # of the stage's steps
    final_learning_rate: float = 1e-8
    ema_decay: float = 0.999
    ema_ramp: bool = True  # decay min(ema_decay, (1 + i) / (10 + i)); False = the reference's constant


@dataclass(frozen=True)
class ContrastiveSettings(Checked):
    """ACP: coarse and fine contrast of pyramid frames (APL 3.3, Eq. 11)."""

    partitions: int = 64  # N segments per video, one random valid frame each (B1)
    temperature: float = 0.1  # B2
    coarse_clusters: int = 2
    fine_clusters: int = 4  # B (B8)
    fine_group: int = 0  # videos clustered together; 0 = the whole batch
    kmeans_iterations: int = 10
    coarse: bool = True
    fine: bool = True  # Table 5
    exclude_self: bool = True  # B4
    weight: float = 0.1  # lambda_acp in the later stages; 1 in pre-training
    later: str = one_of(
        "labelled_unlabelled", "labelled", "none"
    )  # none | labelled | labelled_unlabelled (Table S4's three cases)


@dataclass(frozen=True)
class DiscriminatorSettings(Checked):
    """ICD: similarity of two instances from their max-pooled raw features (APL 3.2, Eq. 7 to 10)."""

    enabled: bool = True
    hidden: int = 128  # A16
    pairs: int = 10  # positive pairs per step, and as many negative ones (A17)
    symmetric: bool = True  # average D(a,b) and D(b,a) (A18)
    learning_rate: float = 1e-4  # own AdamW (A17)
    weight_decay: float = 1e-4
    unknown_similarity: float = 0.5  # class without labelled instance (A19)


@dataclass(frozen=True)
class SelectionSettings(Checked):
    """Which detections become pseudo labels (APL Eq. 6)."""

    rule: str = "dynamic"  # dynamic (mean + std) | fixed; names of learning.selection.SELECTORS
    fixed_threshold: float = 0.3
    tau_neg: float = 0.15
    scope: str = one_of("pooled", "class", "video")  # pooled | class | video (A1)
    deviations: float = 1.0  # tau_pos = mean + deviations * std; 0 = mean only
    tau_min: float = 0.2
    tau_max: float = 0.9
    eliminate: bool = True  # EAP, where ICD is enabled
    promote: bool = True  # MPP, where ICD is enabled
    eliminate_below: float = 0.3  # tau_icd
    promote_above: float = 0.7  # varsigma_icd
    promote_overlap: float = 1.0  # largest tIoU of a promoted candidate with a surer label of its class; 1 = any (APL)
    candidates: str = one_of(
        "ignore", "background"
    )  # background | ignore: what unselected candidates are in training (A14)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)


@dataclass(frozen=True)
class NonTargetSettings(Checked):
    """Learning from non-target classes (paper 002 III-C to III-F; systems 7.B)."""

    closeness: float = 0.85  # lambda: least probability of a positive class, as a fraction of the target's (Table IV)
    spared: int = 0  # likeliest classes after the target that are never negative; 0 is the paper's rule (Eq. 8)
    max_positives: int = 5  # of a snippet; a flat distribution would make every class positive (systems 7.B)
    negative_weight: float = 1.0  # of l_neg; 0 leaves it out, as rows of Table II do
    positive_weight: float = 1.0  # of l_pos
    labelled_negative: bool = True  # negative learning on labelled snippets too (III-F)
    # whose they are: the network's own at each step | its averaged weights' | those of the pseudo_label stage (C8)
    pseudo_labels: str = one_of("online", "averaged", "teacher")
    rival: str = one_of("none", "soft_label", "complementary")  # Table V, in place of positive and negative classes
    sharpening: float = 0.5  # temperature of the soft label (C12)
    given_action: bool = True  # sigmoids: divide the classes of a foreground point without background; False = C11
    unlabelled_weight: float = 1.0  # alpha, Eq. 1
    silenced_weight: float = 0.5  # apl_nontarget: of negative learning under instances that selection left aside


@dataclass(frozen=True)
class StageSettings(Checked):
    """Length and batch of one training stage."""

    steps: int = 2000
    labelled_batch: int = 2
    unlabelled_batch: int = 0
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    perturb: PerturbSettings = field(default_factory=PerturbSettings)


@dataclass(frozen=True)
class LearningSettings(Checked):
    """The semi-supervised method and its three kinds of stage."""

    method: str = "apl"  # name in learning.methods.METHODS
    rounds: int = 1  # (pseudo_label -> self_train) repetitions
    unlabelled_weight: float = 2.0  # beta, Eq. 12
    pretext: str = one_of("contrast", "foreground")  # of pre-training: ACP | SPOT's random foreground
    foreground_share: float = 0.1  # shortest random foreground, as a fraction of the video
    pretrain: StageSettings = field(default_factory=lambda: StageSettings(labelled_batch=0, unlabelled_batch=2))
    supervised: StageSettings = field(default_factory=StageSettings)
    self_train: StageSettings = field(default_factory=lambda: StageSettings(unlabelled_batch=2))
    contrastive: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    nontarget: NonTargetSettings = field(default_factory=NonTargetSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)


@dataclass(frozen=True)
class EvaluationSettings(Checked):
    """tIoU thresholds and recall ranks of the final table."""

    tiou: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    recall_at: tuple[int, ...] = (1, 5)
    batch: int = 16
    # strict: the model's own classes | external: those of a video-level classifier (evaluation/external.py)
    protocol: str = one_of("strict", "external")
    external_scores: str = ""  # JSON or CSV with a probability per video and class, matched by name
    external_top_k: int = 2  # classes of a video that each of its segments is given (systems 1.9)
    external_combination: str = one_of("sqrt", "product")  # of class and segment score: ActionFormer | BMN, OpenTAD
    external_segments: int = 200  # of a video, the surest (systems 1.9)
    label_space: bool = False  # measure on unlabelled videos what the true class is to a snippet (paper 002, III-B)
    label_space_examples: int = 6  # snippets whose whole distribution is kept for the report (Figure 6)
    label_space_frames: int = 500  # frames whose learnt features are drawn in a plane (Figures 3 and 4); 0 = none
    label_space_videos: int = 32  # unlabelled videos that these frames come from

    def __post_init__(self) -> None:
        """Refuses, besides unknown words, counts below 1."""
        super().__post_init__()
        for name in ("external_top_k", "external_segments"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class RuntimeSettings(Checked):
    """Machine matters; nothing here may change a result beyond float rounding, but for ``feed`` where videos are longer
    than ``data.stream_window`` lets a stream read at once."""

    steps_per_dispatch: int = 25  # optimiser steps inside one jitted call
    checkpoint_every: int = 250  # steps, a multiple of steps_per_dispatch
    log_every: int = 25
    progress: bool = True
    distributed: str = one_of("off", "auto")  # off | auto: jax.distributed.initialize()
    # device: all features stay on the devices | stream: batches are read while they compute | auto: device if it fits
    feed: str = one_of("auto", "device", "stream")
    device_share: float = 0.4  # of the devices' memory that `auto` fills with features
    host_share: float = 0.4  # of the machine's memory in which a stream keeps features; beyond, files are read again
    portion_mib: float = 256.0  # of the batches that a stream brings at once
    read_threads: int = 2  # that read portions ahead, and as many portions


@dataclass(frozen=True)
class Settings(Checked):
    """One run, whole."""

    seed: int = 0  # initialisation, data order, perturbation
    arms: tuple[str, ...] = ("supervised", "supervised_matched", "semi_supervised")  # rows of the final table
    detector: str = "actionformer"  # name in detectors.DETECTORS
    data: DataSettings = field(default_factory=DataSettings)
    actionformer: ActionFormerSettings = field(default_factory=ActionFormerSettings)
    spot: SpotSettings = field(default_factory=SpotSettings)
    learning: LearningSettings = field(default_factory=LearningSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)

    @property
    def network(self) -> Any:
        """The settings of the detector that ``detector`` names: those under its own name."""
        return getattr(self, self.detector)
