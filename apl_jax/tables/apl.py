"""Tables 1 to 5 of APL (ECCV 2024), with its numbers."""

from __future__ import annotations

from apl_jax.tables.changes import (
    changed,
    fixed_threshold,
    instead,
    mean_teacher,
    npl_style,
    only,
    with_apl,
    without_contrast,
    without_discriminator,
)
from apl_jax.tables.table import ACTIVITYNET, ALQA, ANY, APL, BMN, FOUR, ICD, SPOT, THUMOS14, Row, Table, two_ratios

# Label ratio -> row -> the averages on THUMOS14 and ActivityNet v1.3 (Table 1).
_AVERAGES = {
    0.1: {
        "ActF*": (15.6, 25.6), "ActF + MixUp": (16.7, 28.8), "NPL (ActF)": (20.3, 32.5), "APL (ActF)": (24.5, 33.5),
        "SSP (BMN)": (25.8, 27.6), "SSTAP (BMN)": (27.0, 28.2), "SPOT": (31.3, 32.1), "NPL (BMN)": (32.4, 32.6),
        "APL (BMN)": (33.3, 33.0),
    },
    0.2: {
        "ActF*": (31.4, None), "ActF + MixUp": (33.3, 33.3), "NPL (ActF)": (37.8, 33.8), "APL (ActF)": (42.8, 34.5),
        "SPOT": (34.4, 32.3), "NPL (BMN)": (35.8, 32.9), "APL (BMN)": (36.6, 33.4),
    },
    0.4: {
        "ActF*": (45.9, 34.2), "ActF + MixUp": (47.7, 34.5), "NPL (ActF)": (51.5, 35.3), "APL (ActF)": (54.8, 35.5),
        "SPOT": (37.3, 33.2), "NPL (BMN)": (38.3, 33.8), "APL (BMN)": (39.3, 34.1),
    },
    0.6: {
        "ActF*": (55.4, None), "ActF + MixUp": (56.7, 35.2), "NPL (ActF)": (59.0, 35.8), "APL (ActF)": (61.1, 36.0),
        "SSP (BMN)": (37.8, 33.5), "SSTAP (BMN)": (39.9, 34.0), "SPOT": (41.5, 35.2), "NPL (BMN)": (42.2, 35.7),
        "APL (BMN)": (42.6, 35.9),
    },
}  # fmt: skip
# Our name of a row, what is changed, what is read, its configurations, and the paper's name for it.
_ROWS_1 = (
    ("supervised only, ActionFormer", only("supervised"), "supervised", ANY, "ActF*"),
    ("the same for as many steps as APL", only("supervised_matched"), "supervised_matched", ANY, ""),
    ("MixUp, ActionFormer", instead("mixup"), "final", ANY, "ActF + MixUp"),
    ("NPL-style, ActionFormer", npl_style, "final", ANY, "NPL (ActF)"),
    ("APL, ActionFormer", with_apl, "final", ANY, "APL (ActF)"),
    ("SSP, BMN", mean_teacher("ssp"), "final", BMN, "SSP (BMN)"),
    ("SSTAP, BMN", mean_teacher("sstap"), "final", BMN, "SSTAP (BMN)"),
    ("SPOT", only("semi_supervised"), "final", SPOT, "SPOT"),
    ("NPL-style, BMN", npl_style, "final", BMN, "NPL (BMN)"),
    ("APL, BMN", with_apl, "final", BMN, "APL (BMN)"),
)
TSN_OR_I3D = (
    "The paper's ActionFormer reads I3D features, its BMN and SPOT read TSN features and take classes from a "
    "video-level classifier; here all rows read the same features and find their classes themselves."
)


def _table_1(ratio: float) -> tuple[Row, ...]:
    rows, known = [], _AVERAGES[ratio]
    for name, changes, read, bases, theirs in _ROWS_1:
        numbers = known.get(theirs)
        published = {THUMOS14: numbers[:1], ACTIVITYNET: numbers[1:]} if numbers else {}
        rows.append(Row(f"{ratio:.0%}: {name}", changes, read, bases, ratio, published))
    return tuple(rows)


_MPP_ALONE = changed(without_contrast, learning__selection__icd__eliminate=False)
_EAP_ALONE = changed(without_contrast, learning__selection__icd__promote=False)

TABLES = (
    Table(
        "apl:1", "Comparison with other methods", tuple(row for ratio in _AVERAGES for row in _table_1(ratio)),
        ("average",), note=TSN_OR_I3D,
    ),
    Table(
        "apl:2", "The three parts of APL",
        two_ratios(
            ("fixed threshold .3", fixed_threshold, (26.6, 17.8, 6.1, 17.0), (65.9, 51.7, 22.8, 48.8)),
            ("+ ALQA", without_discriminator, *ALQA),
            ("+ ICD", without_contrast, *ICD),
            ("+ ACP (= APL)", with_apl, *APL),
        ),
        FOUR,
    ),
    Table(
        "apl:3", "How localisation reliability is learnt (ALQA alone)",
        two_ratios(
            ("tIoU, one branch", changed(without_discriminator, detector__quality__branches="tiou"),
             (28.9, 20.7, 7.6, 19.4), (68.4, 54.8, 24.4, 50.7)),
            ("DIoU, one branch", changed(without_discriminator, detector__quality__branches="diou"),
             (30.7, 20.8, 8.0, 20.0), (70.3, 55.4, 26.0, 51.8)),
            ("tIoU and tND, two branches", without_discriminator,
             *ALQA),
        ),
        FOUR,
    ),
    Table(
        "apl:4", "The effect of ICD (without ACP)",
        two_ratios(
            ("no ICD", without_discriminator, *ALQA),
            ("EAP", _EAP_ALONE, (31.7, 23.6, 9.9, 22.1), (71.5, 57.3, 27.2, 53.2)),
            ("MPP", _MPP_ALONE, (32.4, 23.5, 10.0, 22.5), (71.7, 57.7, 27.5, 53.3)),
            ("EAP and MPP", without_contrast, *ICD),
        ),
        FOUR,
    ),
    Table(
        "apl:5", "The effect of coarse and fine contrast",
        two_ratios(
            ("no ACP", without_contrast, *ICD),
            ("coarse", changed(with_apl, learning__pretext__fine=False, learning__teacher__contrast__fine=False,
                               learning__method__contrast__fine=False),
             (34.6, 25.5, 10.6, 24.1), (72.5, 58.6, 28.4, 54.4)),
            ("fine", changed(with_apl, learning__pretext__coarse=False, learning__teacher__contrast__coarse=False,
                             learning__method__contrast__coarse=False),
             (34.4, 25.1, 10.5, 23.8), (72.3, 59.0, 27.9, 54.4)),
            ("coarse and fine", with_apl, *APL),
        ),
        FOUR,
    ),
)  # fmt: skip
