"""The embedded smartphone data set: 223 recordings, 4 actions.

    apl-jax run --config=spsw:apl --workdir=runs/spsw

`apl` is the whole method at 10 % labels; `fixed`, `alqa`, `icd` are the lower rungs of APL's Table 2; `full` is the
supervised detector with every label; `demo` is `apl` in stages of 300 steps, for `make demo`; `smoke` runs every stage
for a few steps with a tiny model, to see that all works. `apl-tridet`, `apl-bmn` and so on put TriDet or BMN in place
of ActionFormer; `apl-pgcn` and so on put P-GCN there, which refines ActionFormer's proposals.
"""

from ml_collections import ConfigDict

from apl_jax.runs.settings import choose, choose_selection, default_config

RUNGS = ("fixed", "alqa", "icd", "apl")


def get_config(variant: str = "apl") -> ConfigDict:
    name, _, detector = variant.partition("-")
    config = with_actionformer(name)
    others = {"tridet": use_tridet, "bmn": use_bmn, "pgcn": use_pgcn}
    if detector and (detector not in others or name == "smoke"):
        expected = f"{', '.join(f'-{other}' for other in others)}, or nothing, behind the variant"
        raise ValueError(f"configs/spsw.py:{variant}: expected {expected}")
    return others[detector](config) if detector else config


def use_tridet(config: ConfigDict) -> ConfigDict:
    """TriDet of the size of the ActionFormer that is configured: the same pyramid, quality heads and decoding."""
    actionformer = config.detector
    tridet = choose(config, "detector", "tridet")
    for field in set(actionformer) & set(tridet) - {"name", "windows"}:
        tridet[field] = actionformer[field]
    tridet.head_width = tridet.width
    tridet.mlp_width = 2 * tridet.width
    tridet.windows = (1,) * (tridet.branch_blocks + 1)  # as on THUMOS14; the wider window is of 11 rows
    tridet.tiou_power = 0.2
    return config


def use_bmn(config: ConfigDict) -> ConfigDict:
    """BMN with its quality channel where the ActionFormer that is configured has quality heads."""
    branches = config.detector.quality.branches
    bmn = choose(config, "detector", "bmn")
    bmn.quality.branches = branches
    # One window holds a recording, 148 rows at most; no instance of training has more than 39 rows.
    bmn.window_mode, bmn.steps, bmn.durations = "windows", 160, 40
    bmn.width, bmn.matching_width, bmn.sample_width, bmn.map_width = 64, 32, 64, 32
    bmn.groups = 1  # channels of a raw signal belong together
    bmn.samples = 16
    # On held-out subjects 1, 5, 11, 17, supervised only: 75.3 so; 74.5, 67.8, 58.9 with sigma .1, .2, .4; 69.6 with
    # starts and ends in the score and sigma .1; 51.6 with BMN's own decoding. Twice the widths: 69.6.
    for decoding in (bmn.decoding, bmn.online):
        decoding.boundary_scores, decoding.sigma = False, 0.05
        decoding.decay_above_short = decoding.decay_above_long = 0.0
    return config


def use_pgcn(config: ConfigDict) -> ConfigDict:
    """P-GCN over the proposals of the ActionFormer that is configured, which finds segments of any class for it."""
    actionformer = config.detector
    pgcn = choose(config, "detector", "pgcn")
    pgcn.quality.branches = actionformer.quality.branches
    pgcn.generator = actionformer
    proposals = pgcn.generator.decoding
    proposals.class_wise, proposals.voting_threshold, proposals.max_detections = False, 0.0, 100
    # On held-out subjects 1, 5, 11, 17, supervised only: 65.9 so; 40.7 on the windows of signal themselves; 65.3 with
    # twice the widths; 50.9 with the published dropout (.7, .8) and samples (1, 6, 1).
    pgcn.rows = "projection"
    pgcn.projection_width, pgcn.width = 64, 64
    pgcn.foreground_samples, pgcn.incomplete_samples, pgcn.background_samples = 4, 24, 4
    pgcn.dropout, pgcn.head_dropout = 0.3, 0.3
    return config


def with_actionformer(variant: str) -> ConfigDict:
    """The configuration with ActionFormer."""
    config = default_config(detector="actionformer", method="apl")

    detector = config.detector
    detector.width = 64
    detector.stem_blocks = 2
    detector.branch_blocks = 4
    detector.windows = (9, 9, 9, 9, 9)
    detector.regression_ranges = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 10000))

    learning = config.learning
    learning.pretrain.unlabelled_batch = 8
    learning.supervised.labelled_batch = 4
    learning.self_train.labelled_batch = 4
    learning.self_train.unlabelled_batch = 4
    for stage in (learning.pretrain, learning.supervised, learning.self_train):
        stage.steps = 500
        stage.optimizer.learning_rate = 1e-3
    for contrast in contrasts(learning):
        contrast.partitions = 32
    # Mean without deviation (A1): 92.1 against 91.9 on held-out subjects 2, 8, 14, 20. Confidences are so bimodal here
    # that mean + std keeps a fifth of the labels.
    learning.selection.dynamic.deviations = 0.0

    if variant == "smoke":
        return shrink(config)
    if variant == "demo":
        for stage in (learning.pretrain, learning.supervised, learning.self_train):
            stage.steps = 300
        return config
    if variant == "full":
        config.data.label_ratio = 1.0
        config.variants = ("supervised",)
        learning.supervised.steps = 630
        learning.supervised.labelled_batch = 8
        return config
    if variant not in RUNGS:
        raise ValueError(f"configs/spsw.py:{variant}: expected one of full, demo, smoke, {', '.join(RUNGS)}")
    return apply_ablation(config, variant)


def contrasts(learning: ConfigDict) -> list[ConfigDict]:
    """The settings of every contrast of frames: of pre-training, of the teacher and, where it has one, of the
    method."""
    own = [learning.method.contrast] if "contrast" in learning.method else []
    return [learning.pretext, learning.teacher.contrast, *own]


def apply_ablation(config: ConfigDict, rung: str) -> ConfigDict:
    """A rung of APL's Table 2, of which the last is the whole method."""
    learning, height = config.learning, RUNGS.index(rung)
    trained = (learning.teacher, learning.method)
    if height < 3:
        learning.pretrain.steps = 0
        for part in trained:
            part.contrast.weight = 0.0
    if height < 2:
        for part in trained:
            part.icd.enabled = False
        choose_selection(config, "dynamic")
    if height < 1:
        config.detector.quality.branches = "none"
        choose_selection(config, "fixed")
        learning.candidates = "background"
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """Every stage, a few steps, a tiny model: shows that all works, teaches nothing."""
    detector = config.detector
    detector.width, detector.heads = 16, 2
    detector.embedding_convs, detector.stem_blocks, detector.branch_blocks, detector.head_layers = 1, 1, 1, 2
    detector.windows = (5, 5)
    detector.regression_ranges = ((0, 12), (12, 10000))
    detector.decoding.max_detections = 50
    learning = config.learning
    for stage in (learning.pretrain, learning.supervised, learning.self_train):
        stage.steps = 40
        stage.optimizer.learning_rate = 1e-2
    learning.pretrain.unlabelled_batch = 4
    learning.selection.dynamic.tau_neg = 0.02
    learning.selection.dynamic.tau_min = 0.02
    config.evaluation.label_space.enabled = True
    config.evaluation.label_space.foreground_score = 0.02
    config.runtime.steps_per_dispatch = 10
    config.runtime.log_every = 10
    config.runtime.checkpoint_every = 20
    config.runtime.progress = False
    return config
