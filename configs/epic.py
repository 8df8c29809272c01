"""EPIC-KITCHENS-100: 495 videos to train on, 138 validation videos to test on; 97 verbs, 300 nouns.

    apl-jax run --config=epic:verb --config.data.root=<folder> --workdir=runs/epic_verb

The folder holds EPIC_100_train.csv, EPIC_100_validation.csv, EPIC_100_video_info.csv, EPIC_100_verb_classes.csv,
EPIC_100_noun_classes.csv and features/<video>.npz: SlowFast, 2304 channels, 32 frames every 16 at 30 frames per second.

===========  ==============================================  ==================================================
variant      what                                            the papers' average mAP of .1:.1:.5
===========  ==============================================  ==================================================
verb, noun   APL whole, 10 % labels                          16.9, 12.9 (APL, Table S7), plain 12.6, 8.9
action       the same for pairs of verb and noun             none
verb_full    plain ActionFormer, every label; so noun_full,  23.51, 21.88 (its authors' code)
             action_full
===========  ==============================================  ==================================================

An action run learns the pairs that occur in training as classes of their own; scores of a verb run and a noun run are
not combined.

Hardware, by arithmetic: 100 hours are 680,000 rows, 6.2 GB. Weights and their companions .6 GB, four crops of 2,304
steps some 1.5 GB; with some 4,000 actions as classes, 1 to 2 GB more. One GPU of 8 GB and a machine of 16 GB.

Not from the papers: the passes of self-training (ActionFormer's own 21), at least 2,000 steps of supervised training,
the averaged weights' ramp, and which videos are labelled. A tenth of them leaves rare classes without an instance,
which cannot be helped, hence data.allow_uncovered.
"""

from ml_collections import ConfigDict

from apl_jax.configs import thumos14
from apl_jax.configs.thumos14 import epochs_to_steps

TASKS = ("verb", "noun", "action")
TRAINING, LABELLED = 495, 50
UNLABELLED = TRAINING - LABELLED


def get_config(variant: str = "verb") -> ConfigDict:
    task, _, kind = variant.partition("_")
    if task not in TASKS or kind not in ("", "full"):
        raise ValueError(f"configs/epic.py:{variant}: expected ({'|'.join(TASKS)})[_full]")
    config = thumos14.get_config()
    data = config.data
    data.name = "epic"
    data.root = "../epic"
    data.task = task
    data.training_subset, data.test_subset = "training", "validation"
    data.fps = 30.0
    data.window, data.stride = 32, 16
    data.allow_uncovered = True
    config.evaluation.tiou = (0.1, 0.2, 0.3, 0.4, 0.5)

    detector = config.detector
    detector.windows = (9, 9, 9, 9, 9, 9)
    detector.regression_ranges = ((0, 4), (2, 8), (4, 16), (8, 32), (16, 64), (32, 10000))
    detector.normalizer_init = 250.0
    detector.label_smoothing = 0.0 if task == "verb" else 0.1  # of the plain detector: ALQA's soft labels replace it
    detector.decoding.top_k_per_level = 5000
    detector.decoding.sigma = 0.4
    detector.decoding.max_detections = 2000

    learning = config.learning
    for stage in (learning.pretrain, learning.supervised, learning.self_train):
        stage.perturb.keep_ratio = 0.3
    epochs_to_steps(learning.pretrain, 15, TRAINING)  # 15 x 247 steps
    epochs_to_steps(
        learning.supervised, 21, LABELLED
    )  # 21 x 25 steps of ActionFormer's epochs, and no less than on THUMOS14
    learning.supervised.steps = max(learning.supervised.steps, 2000)
    epochs_to_steps(learning.self_train, 21, UNLABELLED)  # 21 x 222 steps
    thumos14.warm_up(learning, 1 / 15, 5 / 21, 5 / 21)
    if kind == "full":
        thumos14.use_every_label(config)
        epochs_to_steps(learning.supervised, 21, TRAINING)  # 21 x 247 steps
    return config
