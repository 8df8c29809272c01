"""THUMOS14: 200 validation videos to train on, 212 test videos (data.variant), 20 actions.

    apl-jax run --config=thumos14:apl --config.data.root=<folder> --workdir=runs/thumos14_apl

The folder holds thumos14.json (ActionFormer's) and features/<video>.npy: I3D, 2048 channels (rgb 1024, then flow 1024),
16 frames every 4. Where rgb/ and flow/ lie apart: --config.data.streams="('rgb', 'flow')".

=========  =====================================================  ==============================================
variant    what                                                   the papers' average mAP of .3:.1:.7
=========  =====================================================  ==============================================
apl        APL whole, 10 % labels                                 24.5 (APL, Tables 1, 2), supervised only 15.6
icd        without pre-training and contrast                      23.3 (APL, Table 2)
alqa       and without the discriminator of instances             21.3
fixed      and without quality heads: pseudo labels above .3      17.0
full       plain ActionFormer, every label                        66.83 (its authors' code)
tridet     plain TriDet, every label                              69.27 (its authors' code)
bmn        plain BMN in windows, every label                      51.70 with external classes (OpenTAD, I3D)
pgcn       plain P-GCN over ActionFormer's proposals, every label 49.07 at .5, over BSN's proposals (its code)
nontarget  plain ActionFormer, positive and negative classes      25.6 (paper 002, Table III)
spot       SPOT in windows, positive and negative classes, I3D    51.3, 34.8, 14.9 at .3, .5, .7 (Table VI)
spot_tsn   the same with TSN features, one row every 5 frames     34.2 (Tables I, II); target class only 31.9
synthetic  apl with a small network on synthetic features         none: see apl_jax/data/synthetic.py
=========  =====================================================  ==============================================

The rows of paper 002's Table II between are --config.learning.method.positive_weight=0, and also negative_weight=0
and labelled_negative=False. At 20, 40, 60 % labels (--config.data.label_ratio) APL's Table 1 has 42.8, 54.8, 61.1;
beyond 57 % the supervised stage needs more steps than stand here, 35 for every second labelled video.

`bmn` is OpenTAD's recipe: 128 rows at once, segments of at most 64, the map without starts and ends as the score, 8
passes. Here it names classes itself; its number needs those of UntrimmedNet:

    ... --config.data.class_agnostic=True --config.detector.classes=none --config.evaluation.protocol=external
        --config.evaluation.external_scores=<file> --config.evaluation.external_combination=product

`pgcn` refines what ActionFormer finds, which is trained first, with the schedule of `full`. P-GCN's authors take BSN's
proposals (--config.learning.proposals=<file>), train a network for each of rgb and flow (37.23 and 47.42 at .5, both
49.07) by SGD, and suppress at .2, as here, or .35.

Hardware, by arithmetic: rows take 5.3 GB, those of the training videos 2.5 GB (streamed when the device cannot hold
them); weights, gradients, averages and moments of 29.3 million parameters .6 GB; four crops of 2,304 steps some 1.5 GB
of activations. One GPU of 8 GB and a machine of 16 GB. `synthetic` is made for two CPU cores.

Not from the papers: at least 2,000 steps of supervised training, the averaged weights' ramp, which 20 videos are
labelled, and whatever is unlike 1.1 of the specification in the settings, where it stands; of SPOT here: windows,
embedding width and batch, since its THUMOS14 code was never released; of BMN: two recordings at once, not 16 windows,
and a cosine in place of steps; of P-GCN: the optimiser, the passes, one network on rgb and flow together, and at most
400 proposals, which ActionFormer leaves under class-agnostic suppression.
"""

from ml_collections import ConfigDict

from apl_jax.configs.spsw import RUNGS, apply_ablation
from apl_jax.runs.settings import choose, choose_selection, default_config


def get_config(variant: str = "apl") -> ConfigDict:
    config = default_config(detector="actionformer", method="apl")
    data = config.data
    data.name = "thumos14"
    data.root = "../shared/data/annotations"
    data.window, data.stride = 16, 4
    data.training_subset, data.test_subset = "validation", "test"
    data.strict_annotations = False  # 22 instances of a test video lie behind its end
    data.length_multiple = 32  # the coarsest stride of six levels
    config.runtime.prediction_batch = 2

    # The network is that of the defaults. Of 200 videos 20 are labelled and 180 are not.
    learning = config.learning
    epochs_to_steps(learning.pretrain, 15, 200)  # 15 x 100 steps
    epochs_to_steps(learning.supervised, 35, 20)  # 35 x 10 steps of ActionFormer's epochs, which are too few (A10)
    learning.supervised.steps = max(learning.supervised.steps, 2000)
    epochs_to_steps(learning.self_train, 40, 180)  # 40 x 90 steps
    warm_up(learning, 1 / 15, 5 / 35, 5 / 40)
    for stage in (learning.pretrain, learning.supervised, learning.self_train):
        stage.optimizer.learning_rate = 1e-4
        stage.optimizer.weight_decay = 1e-4

    if variant in RUNGS:
        return apply_ablation(config, variant)
    if variant == "full":
        use_every_label(config)
        epochs_to_steps(learning.supervised, 35, 200)  # 35 x 100 steps
        return config
    if variant == "tridet":
        use_every_label(config)
        choose(config, "detector", "tridet")
        learning.supervised.optimizer.weight_decay = 0.025
        learning.supervised.optimizer.warmup_fraction = 0.5
        epochs_to_steps(learning.supervised, 40, 200)  # 20 epochs of warm-up and 20 more
        return config
    if variant == "bmn":
        return use_bmn(config)
    if variant == "pgcn":
        return use_pgcn(config)
    if variant == "nontarget":
        return learn_from_non_targets(apply_ablation(config, "fixed"))
    if variant in ("spot", "spot_tsn"):
        if variant == "spot_tsn":
            data.window, data.stride = 5, 5
        # A test video lasts up to 28 minutes: 6 s for each of 256 snippets, longer than most instances (C15).
        spot = use_spot(config, 1e-5, (200, 20, 180))
        spot.steps, spot.window_mode = 256, "windows"
        spot.width = 512  # at 2,048 the attention alone would have 67 million weights, for 20 videos
        return config
    if variant == "synthetic":
        return use_synthetic_features(apply_ablation(config, "apl"))
    known = ", ".join((*RUNGS, "full", "tridet", "bmn", "pgcn", "nontarget", "spot", "spot_tsn", "synthetic"))
    raise ValueError(f"configs/thumos14.py:{variant}: expected one of {known}")


def epochs_to_steps(stage: ConfigDict, epochs: int, videos: int) -> None:
    """A stage of so many passes over so many videos: the unlabelled ones, where it sees both kinds (A11)."""
    stage.steps = epochs * (videos // (stage.unlabelled_batch or stage.labelled_batch))


def warm_up(learning: ConfigDict, pretrain: float, supervised: float, self_train: float) -> None:
    """Shares of the stages in which the learning rate rises."""
    learning.pretrain.optimizer.warmup_fraction = pretrain
    learning.supervised.optimizer.warmup_fraction = supervised
    learning.self_train.optimizer.warmup_fraction = self_train


def use_every_label(config: ConfigDict) -> None:
    """The plain detector alone, with every label and the decay of its authors."""
    config.data.label_ratio = 1.0
    config.variants = ("supervised",)
    config.learning.supervised.optimizer.weight_decay = 0.05


def use_bmn(config: ConfigDict) -> ConfigDict:
    """BMN with every label, by OpenTAD's recipe for THUMOS14 (spec 2.8; 2.10, 6 to 8)."""
    use_every_label(config)
    bmn = choose(config, "detector", "bmn")
    bmn.window_mode, bmn.steps, bmn.durations = "windows", 128, 64
    bmn.layout, bmn.anchors, bmn.low_cells = "S", "O", "all"
    bmn.matching_width = 128
    bmn.quality.branches = "none"
    nms = bmn.decoding
    nms.boundary_scores = False
    nms.decay_above_short = nms.decay_above_long = 0.0
    nms.sigma, nms.min_score, nms.max_detections, nms.voting_threshold = 0.3, 1e-4, 200, 0.95
    supervised = config.learning.supervised
    supervised.optimizer.weight_decay = 1e-4
    supervised.optimizer.warmup_fraction = 0.0
    epochs_to_steps(supervised, 8, 200)  # 8 x 100 steps
    return config


def use_pgcn(config: ConfigDict) -> ConfigDict:
    """P-GCN with every label (spec 5.1), over what the ActionFormer that is configured finds of any class."""
    use_every_label(config)
    actionformer = config.detector
    pgcn = choose(config, "detector", "pgcn")
    pgcn.quality.branches = "none"
    pgcn.generator = actionformer
    proposals = pgcn.generator.decoding
    proposals.class_wise, proposals.voting_threshold, proposals.max_detections = False, 0.0, 400
    epochs_to_steps(config.learning.supervised, 35, 200)  # ActionFormer's 35 x 100 steps
    return config


def learn_from_non_targets(config: ConfigDict) -> ConfigDict:
    """Paper 002's losses; lambda .85 and alpha 1 are the defaults."""
    method = choose(config, "learning.method", "nontarget")
    method.pseudo_labels = "online" if config.detector.name == "spot" else "teacher"
    config.evaluation.label_space.enabled = True
    return config


def use_spot(config: ConfigDict, learning_rate: float, videos: tuple[int, int, int]) -> ConfigDict:
    """SPOT with paper 002's losses and schedule, 12 and 15 passes; ``videos`` are all, labelled and unlabelled ones.
    Returns the detector's part."""
    learning = config.learning
    spot = choose(config, "detector", "spot")
    choose(config, "learning.pretext", "foreground")
    learning.teacher.contrast.weight = 0.0
    learning.teacher.icd.enabled = False
    choose_selection(config, "dynamic")
    epochs_to_steps(learning.pretrain, 12, videos[0])
    epochs_to_steps(learning.supervised, 15, videos[1])
    learning.supervised.steps = max(learning.supervised.steps, 2000)  # as for ActionFormer
    epochs_to_steps(learning.self_train, 15, videos[2])
    warm_up(learning, 0.0, 0.0, 0.0)  # cosine from the first step on
    for stage in (learning.pretrain, learning.supervised, learning.self_train):
        stage.optimizer.learning_rate = learning_rate
    learn_from_non_targets(config)
    return spot


def use_synthetic_features(config: ConfigDict) -> ConfigDict:
    """All data, all stages, at their real lengths in time; only the network is small and trained for few steps."""
    config.data.synthetic.enabled = True
    detector, learning = config.detector, config.learning
    detector.width, detector.heads = 32, 2
    detector.stem_blocks, detector.embedding_convs, detector.head_layers = 1, 1, 2
    for stage, steps in ((learning.pretrain, 100), (learning.supervised, 300), (learning.self_train, 300)):
        stage.steps = steps
        stage.optimizer.learning_rate = 1e-3
    return config
