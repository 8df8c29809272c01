"""Tables S1 to S8 and Figure 3 of APL (ECCV 2024), with its numbers."""

from __future__ import annotations

from apl_jax.runs.settings import Settings
from apl_jax.tables.changes import (
    Change,
    changed,
    fixed_threshold,
    only,
    with_apl,
    without_contrast,
    without_discriminator,
)
from apl_jax.tables.table import (
    ACTIVITYNET,
    ALQA,
    APL,
    BMN,
    EPIC,
    FOUR,
    PGCN,
    SPOT,
    THUMOS14,
    Changes,
    Row,
    Table,
    two_ratios,
)

_FRAMES = ("accuracy", "recall")
_SETS = {"before_icd": "before ICD", "after_eap": "after EAP", "after_mpp": "after MPP", "final": "after both"}


def _curve(name: str, setting: str, values: tuple[float, ...]) -> tuple[Row, ...]:
    path = f"learning__selection__icd__{setting}"
    return tuple(Row(f"{name} {value:g}", changed(with_apl, **{path: value})) for value in values)


def _pretext(name: str) -> Change:
    return changed(with_apl, learning__pretext__name=name)


def _spot_after(pretext: str) -> Change:
    """SPOT pre-trained: for as long as its configuration says, which may be not at all, or half as long as it is
    taught."""

    def change(settings: Settings) -> Changes:
        steps = settings.learning.pretrain.steps or settings.learning.supervised.steps // 2
        return {"variants": ("semi_supervised",), "learning.pretext.name": pretext, "learning.pretrain.steps": steps}

    return change


def _detector_row(name: str, changes: Change, bases: tuple[str, ...], average: float) -> Row:
    return Row(name, changes, bases=bases, published={ACTIVITYNET: (average,)})


def _clusters(batch: int, clusters: int, numbers: tuple[float, float]) -> Row:
    values = {"learning__pretrain__unlabelled_batch": batch, "learning__pretext__fine_clusters": clusters}
    name = f"{batch} recordings, {clusters} clusters"
    return Row(name, changed(with_apl, **values), "pretrain", published={THUMOS14: numbers})


def _epic(task: str, plain: float, ours: float) -> tuple[Row, ...]:
    common = {"bases": (f"{{data}}:{task}",), "label_ratio": 0.1, "only_on": (EPIC,)}
    return (
        Row(f"{task}: supervised only", only("supervised"), "supervised", published={EPIC: (plain,)}, **common),
        Row(f"{task}: APL", with_apl, published={EPIC: (ours,)}, **common),
    )


def _pgcn(ratio: float, plain: tuple[float, ...], ours: tuple[float, ...]) -> tuple[Row, ...]:
    matched = only("supervised_matched")
    return (
        Row(f"{ratio:.0%}: supervised only", only("supervised"), "supervised", PGCN, ratio, {THUMOS14: plain}),
        Row(f"{ratio:.0%}: the same for as many steps as APL", matched, "supervised_matched", PGCN, ratio),
        Row(f"{ratio:.0%}: APL", with_apl, "final", PGCN, ratio, {THUMOS14: ours}),
    )


TABLES = (
    Table(
        "apl:s1",
        "The loss of localisation reliability (ALQA alone)",
        two_ratios(
            (
                "KL divergence",
                changed(without_discriminator, detector__quality__loss="kl"),
                (31.2, 21.9, 8.1, 20.8),
                (70.8, 56.3, 26.6, 52.3),
            ),
            ("binary cross-entropy", without_discriminator, *ALQA),
        ),
        FOUR,
    ),
    Table(
        "apl:s2",
        "A linear classifier on frames",
        (
            Row("input features", with_apl, "input features", published={THUMOS14: (72.1, 66.3)}),
            Row("the network as initialised", with_apl, "as initialised"),
            Row("after pre-training by ACP", with_apl, "pretrain", published={THUMOS14: (76.2, 73.0)}),
        ),
        _FRAMES,
        "frames",
    ),
    Table(
        "apl:s3",
        "Pre-training of other detectors",
        (
            _detector_row("BMN: none", changed(with_apl, learning__pretrain__steps=0), BMN, 25.8),
            _detector_row("BMN: SPOT's foreground", _pretext("foreground"), BMN, 26.3),
            _detector_row("BMN: ACP", _pretext("contrast"), BMN, 27.3),
            _detector_row("SPOT: none", changed(only("semi_supervised"), learning__pretrain__steps=0), SPOT, 30.5),
            _detector_row("SPOT: SPOT's foreground", _spot_after("foreground"), SPOT, 32.1),
            _detector_row("SPOT: ACP", _spot_after("contrast"), SPOT, 31.9),
        ),
        ("average",),
    ),
    Table(
        "apl:s4",
        "Where the contrast takes part",
        (
            Row(
                "pre-training alone",
                changed(with_apl, learning__teacher__contrast__weight=0.0, learning__method__contrast__weight=0.0),
                published={THUMOS14: (34.3, 24.7, 10.5, 23.6)},
            ),
            Row(
                "and on labelled recordings",
                changed(with_apl, learning__method__contrast__unlabelled=False),
                published={THUMOS14: (34.6, 25.5, 10.6, 24.1)},
            ),
            Row("and on unlabelled ones (= APL)", with_apl, published={THUMOS14: APL[0]}),
        ),
        FOUR,
    ),
    Table(
        "apl:s5",
        "The number of clusters of the fine contrast",
        (
            _clusters(2, 2, (71.0, 70.1)),
            _clusters(2, 3, (72.8, 73.5)),
            _clusters(2, 4, (76.2, 73.0)),
            _clusters(4, 4, (72.4, 72.3)),
            _clusters(4, 5, (73.9, 74.4)),
            _clusters(4, 8, (75.0, 73.8)),
        ),
        _FRAMES,
        "frames",
    ),
    Table(
        "apl:s6",
        "What the parts cost, for one recording of the configuration's longest crop",
        (
            Row("ActionFormer", fixed_threshold, "detector", published={THUMOS14: (29.196, 45.030)}),
            Row("with tIoU and tND", without_discriminator, "detector", published={THUMOS14: (29.199, 45.044)}),
            Row("with tIoU, tND and ICD", without_contrast, "everything", published={THUMOS14: (29.724, 45.049)}),
        ),
        ("parameters, M", "GFLOP"),
        "size",
        note="XLA counts a multiplication with its addition as two operations, the paper as one.",
    ),
    Table("apl:s7", "EPIC-KITCHENS-100", (*_epic("verb", 12.6, 16.9), *_epic("noun", 8.9, 12.9)), ("average",)),
    Table(
        "apl:s8",
        "P-GCN",
        (
            *_pgcn(0.1, (16.9, 12.0, 4.8, 11.2), (26.4, 17.5, 5.8, 16.6)),
            *_pgcn(0.4, (52.5, 38.7, 14.4, 35.2), (58.8, 43.1, 17.3, 39.7)),
        ),
        FOUR,
        note="Proposals are made by ActionFormer, trained on the labelled recordings alone.",
    ),
    Table("apl:3a", "Figure 3(a): EAP", _curve("tau_icd", "eliminate_below", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5))),
    Table("apl:3b", "Figure 3(b): MPP", _curve("zeta_icd", "promote_above", (0.5, 0.6, 0.7, 0.8, 0.9))),
    Table(
        "apl:3c",
        "Figure 3(c): the quality of pseudo labels",
        tuple(Row(words, without_contrast, name) for name, words in _SETS.items()),
        measure="labels",
    ),
)
