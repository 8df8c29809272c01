"""ActivityNet v1.3: 9,649 videos to train on, 4,728 validation videos to test on, 200 actions.

    apl-jax run --config=activitynet:apl --config.data.root=<folder> --workdir=runs/anet_apl

The folder holds activity_net.v1-3.min.json, or activitynet13_anno.json and activitynet13_video_info.csv, and the
features of every video. ActionFormer resizes them to 192 rows; SPOT and BMN take TSN's as they are published, 400
channels in 100 rows (csv).

=========  =========================================================  ==============================================
variant    what                                                       the papers' average mAP of .5:.05:.95
=========  =========================================================  ==============================================
apl        APL whole, 10 % labels; I3D, 2048, 16 frames of 25 per s   33.5 (APL, Table 1), supervised only 25.6
fixed      plain ActionFormer, pseudo labels above .3                 none
full       plain ActionFormer, every label                            36.03 (its authors' code)
nontarget  plain ActionFormer, positive and negative classes          none
bmn        plain BMN, every label; TSN, 400 x 100                     34.21 with external classes (OpenTAD)
spot       SPOT, positive and negative classes; TSN, 400 x 100        34.5 (paper 002, Table I); target only 32.1
synthetic  apl-tsp with a small network on synthetic features         none: see apl_jax/data/synthetic.py
=========  =========================================================  ==============================================

ActionFormer's also as apl-tsp, fixed-tsp, full-tsp (36.56), nontarget-tsp: TSP, 512, 16 frames of 15 per second.
`icd` and `alqa` are the rungs between `fixed` and `apl`. At 20, 40, 60 % labels APL's Table 1 has 34.5, 35.5, 36.0.

The papers' ActionFormer finds segments of one class and takes names from a classifier that was trained with all labels
of all videos. Here it tells 200 classes apart itself, so its numbers are bound to be lower; theirs compare with

    ... --config.data.class_agnostic=True --config.evaluation.protocol=external
        --config.evaluation.external_scores=cuhk_val_simp_share.json

For `bmn` --config.detector.classes=none and --config.evaluation.external_combination=product besides. Of its proposals
the paper has AR@1 33.0, AR@100 75.0 and AUC 67.1, OpenTAD AR@1, 5, 10, 100 33.58, 49.16, 56.53, 75.34 and AUC 67.23.
`apl-jax evaluate --proposals` measures them on the run's predictions.json. The suppression is that of proposals. For
detection OpenTAD has --config.detector.decoding.sigma=0.5 with min_score .01, voting_threshold .95, boundary_scores
False, and decay_above_short and decay_above_long 0.

Labels: every class its share, 966 videos (spec 3.8). SPOT's published split, whose files name the videos:
--config.data.split_file=<folder>/video_info_new_0.9.csv

Hardware, by arithmetic: rows of 192 x 2048 take 15.2 GB in training and 7.4 GB in testing, of 192 x 512 3.8 and 1.9 GB,
of 100 x 400 1.5 and .8 GB; what a device cannot hold is streamed. Weights and their companions .2 GB, 32 crops of 192
steps about .5 GB. One GPU of 8 GB and a machine of 16 to 32 GB.

Not from the papers: 200 classes, at least 2,000 steps of supervised training, the averaged weights' ramp; of SPOT's
optimiser the decay; of BMN's a decay that is not coupled with the gradient, and a cosine in place of a step after 7 of
9 passes.
"""

from ml_collections import ConfigDict

from apl_jax.configs import thumos14
from apl_jax.configs.spsw import RUNGS, apply_ablation, contrasts
from apl_jax.configs.thumos14 import epochs_to_steps
from apl_jax.runs.settings import choose

TRAINING, LABELLED = 9649, 966
UNLABELLED = TRAINING - LABELLED


def get_config(variant: str = "apl") -> ConfigDict:
    known = (*RUNGS, "full", "nontarget")
    name, _, features = variant.partition("-")
    if not (name in known and features in ("", "tsp")) and variant not in ("spot", "bmn", "synthetic"):
        expected = f"({'|'.join(known)})[-tsp], spot, bmn or synthetic"
        raise ValueError(f"configs/activitynet.py:{variant}: expected {expected}")
    config = thumos14.get_config()
    data = config.data
    data.name = "activitynet"
    data.training_subset, data.test_subset = "training", "validation"
    data.split_rule = "first_class"
    data.fps = 15.0 if features == "tsp" or variant == "synthetic" else 25.0
    data.window, data.stride = 16, 16
    data.grid, data.fixed_length_t, data.max_length_t = "resize", 192, 192
    config.evaluation.tiou = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
    config.runtime.prediction_batch = 32
    network(config.detector)

    learning = config.learning
    for contrast in contrasts(learning):
        contrast.partitions = 32
    learning.pretext.fine_clusters = 2
    learning.pretrain.unlabelled_batch = learning.supervised.labelled_batch = 16
    learning.self_train.labelled_batch = learning.self_train.unlabelled_batch = 16
    for stage in (learning.pretrain, learning.supervised, learning.self_train):
        stage.optimizer.learning_rate = 1e-3
    epochs_to_steps(learning.pretrain, 15, TRAINING)  # 15 x 603 steps
    epochs_to_steps(
        learning.supervised, 15, LABELLED
    )  # 15 x 60 steps of ActionFormer's epochs, and no less than on THUMOS14
    learning.supervised.steps = max(learning.supervised.steps, 2000)
    epochs_to_steps(learning.self_train, 15, UNLABELLED)  # 15 x 542 steps
    thumos14.warm_up(learning, 1 / 15, 5 / 15, 5 / 15)

    if variant == "spot":
        return _use_spot(config)
    if variant == "bmn":
        return _use_bmn(config)
    if variant == "synthetic":
        data.synthetic.width = 512
        return thumos14.use_synthetic_features(config)
    if name == "full":
        thumos14.use_every_label(config)
        epochs_to_steps(learning.supervised, 15, TRAINING)  # 15 x 603 steps
        return config
    if name == "nontarget":
        return thumos14.learn_from_non_targets(apply_ablation(config, "fixed"))
    return apply_ablation(config, name)


def network(detector: ConfigDict) -> None:
    """ActionFormer on ActivityNet (spec 1.1)."""
    detector.width = 256
    detector.windows = (7, 7, 7, 7, 7, 0)
    detector.absolute_position = True
    detector.position_length_t = 192
    detector.regression_weight = 2.0
    detector.normalizer_init = 200.0
    detector.label_smoothing = 0.1  # of the plain detector: ALQA's soft labels take its place
    nms = detector.decoding
    nms.duration_threshold_t = 0.001
    nms.sigma = 0.75
    nms.class_wise = False
    nms.voting_threshold = 0.9
    nms.max_detections = 100


def _use_spot(config: ConfigDict) -> ConfigDict:
    """SPOT as its public code has it: all of a video in 100 snippets, 100 labelled and 24 unlabelled videos a step."""
    _use_tsn(config.data)
    learning = config.learning
    learning.supervised.labelled_batch = learning.self_train.labelled_batch = 100
    learning.pretrain.unlabelled_batch, learning.self_train.unlabelled_batch = 100, 24
    spot = thumos14.use_spot(config, 1e-4, (TRAINING, LABELLED, UNLABELLED))  # 12 x 96, 15 x 9, 15 x 361 steps
    spot.steps = 100
    return config


def _use_bmn(config: ConfigDict) -> ConfigDict:
    """BMN with every label, as published (spec 2.5): all of a video in 100 snippets, 16 videos a step."""
    _use_tsn(config.data)
    thumos14.use_every_label(config)
    bmn = choose(config, "detector", "bmn")  # whose defaults are these
    bmn.steps = 100
    bmn.quality.branches = "none"
    supervised = config.learning.supervised
    supervised.optimizer.weight_decay = 1e-4
    supervised.optimizer.warmup_fraction = 0.0
    epochs_to_steps(supervised, 9, TRAINING)  # 9 x 603 steps
    return config


def _use_tsn(data: ConfigDict) -> None:
    """TSN's features as they are published: 100 rows that span the video, whatever its length."""
    data.fps = 0.0
    data.stride, data.window = 0, 16
    data.fixed_length_t = data.max_length_t = data.length_multiple = 100
