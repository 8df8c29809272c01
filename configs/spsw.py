"""The embedded smartphone data set: 223 recordings, 4 actions.

    apl-jax run --config=configs/spsw.py:apl --workdir=runs/spsw

`apl` is the whole method at 10 % labels; `fixed`, `alqa`, `icd` are the lower rungs of APL's Table 2; `full` is the
supervised detector with every label; `demo` is `apl` in stages of 300 steps, for `make demo`; `smoke` runs every stage
for a few steps with a tiny model, to see that all works.
"""

import dataclasses

from ml_collections import ConfigDict

from apl_jax.settings import Settings


def get_config(variant: str = "apl") -> ConfigDict:
    config = ConfigDict(dataclasses.asdict(Settings()))

    detector = config.actionformer
    detector.width = 64
    detector.stem_blocks = 2
    detector.branch_blocks = 4
    detector.windows = (9, 9, 9, 9, 9)
    detector.regression_ranges = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 10000))

    learning = config.learning
    learning.pretrain.steps = 500
    learning.supervised.steps = 500
    learning.self_train.steps = 500
    learning.pretrain.unlabelled_batch = 8
    learning.supervised.labelled_batch = 4
    learning.self_train.labelled_batch = 4
    learning.self_train.unlabelled_batch = 4
    for stage in (learning.pretrain, learning.supervised, learning.self_train):
        stage.optimizer.learning_rate = 1e-3
    learning.contrastive.partitions = 32
    # Mean without deviation (A1): 92.1 against 91.9 on held-out subjects 2, 8, 14, 20. Confidences are so bimodal here
    # that mean + std keeps a fifth of the labels.
    learning.selection.deviations = 0.0

    if variant == "smoke":
        return shrink(config)
    if variant == "demo":
        for stage in (learning.pretrain, learning.supervised, learning.self_train):
            stage.steps = 300
        return config
    rungs = ("fixed", "alqa", "icd", "apl")
    if variant == "full":
        config.data.label_ratio = 1.0
        config.arms = ("supervised",)
        learning.supervised.steps = 630
        learning.supervised.labelled_batch = 8
        return config
    if variant not in rungs:
        raise ValueError(f"configs/spsw.py:{variant}: expected one of full, demo, smoke, {', '.join(rungs)}")
    rung = rungs.index(variant)
    if rung < 3:
        learning.pretrain.steps = 0
        learning.contrastive.later = "none"
    if rung < 2:
        learning.selection.discriminator.enabled = False
    if rung < 1:
        config.actionformer.quality.branches = "none"
        learning.selection.rule = "fixed"
        learning.selection.candidates = "background"
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """Every stage, a few steps, a tiny model: checks the plumbing, teaches nothing."""
    detector = config.actionformer
    detector.width, detector.heads = 16, 2
    detector.embedding_convs, detector.stem_blocks, detector.branch_blocks, detector.head_layers = 1, 1, 1, 2
    detector.windows = (5, 5)
    detector.regression_ranges = ((0, 12), (12, 10000))
    detector.nms.max_detections = 50
    learning = config.learning
    for stage in (learning.pretrain, learning.supervised, learning.self_train):
        stage.steps = 40
        stage.optimizer.learning_rate = 1e-2
    learning.pretrain.unlabelled_batch = 4
    learning.selection.tau_neg = 0.02
    learning.selection.tau_min = 0.02
    config.evaluation.label_space = True
    config.runtime.steps_per_dispatch = 10
    config.runtime.log_every = 10
    config.runtime.checkpoint_every = 20
    config.runtime.progress = False
    return config
