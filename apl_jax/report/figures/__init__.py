"""Figures of a run: arrays in, drawn into a ``matplotlib.figure.Figure``; used by the report and by the notebooks."""

from apl_jax.report.figures.drawing import (
    CLASS_LABEL,
    FULL_WIDTH_IN,
    HALF_WIDTH_IN,
    MEASURES,
    MOST_BARS,
    OTHER_CLASS,
    REASON_COLOURS,
    SET_NAMES,
    calibration,
    class_colours,
    class_counts,
    curve_groups,
    embeddings,
    quality_bars,
    reason_histograms,
    term_colours,
    training_curves,
)
from apl_jax.report.figures.label_space import MOST_CLASSES, RELATION_COLOURS, class_distributions, true_class_shares
from apl_jax.report.figures.svg import to_svg
from apl_jax.report.figures.timelines import NUMBERED_FROM, Lane, Panel, timeline_height, timelines

__all__ = [
    "CLASS_LABEL",
    "FULL_WIDTH_IN",
    "HALF_WIDTH_IN",
    "MEASURES",
    "MOST_BARS",
    "MOST_CLASSES",
    "NUMBERED_FROM",
    "OTHER_CLASS",
    "REASON_COLOURS",
    "RELATION_COLOURS",
    "SET_NAMES",
    "Lane",
    "Panel",
    "calibration",
    "class_colours",
    "class_counts",
    "class_distributions",
    "curve_groups",
    "embeddings",
    "quality_bars",
    "reason_histograms",
    "term_colours",
    "timeline_height",
    "timelines",
    "to_svg",
    "training_curves",
    "true_class_shares",
]
