"""Timelines of videos, an instance at its place (Figures S3 and S4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from apl_jax.report.figures.drawing import INK, RULE, mixed, styled

LANE_IN, PANEL_IN = 0.2, 0.72  # height of one lane of a timeline, and of a panel's title and axis together
FAINTEST = 0.1  # opacity of a prediction without confidence
NUMBERED_FROM = 10  # with this many classes, timelines print class numbers too: colours alone no longer tell


@dataclass(frozen=True)
class Lane:
    """One row of a timeline: M instances of one origin."""

    name: str
    segments_s: np.ndarray  # [M, 2]
    labels: np.ndarray  # [M] index of the class
    opacity: np.ndarray | None = None  # [M] in [0, 1], 1 where None
    tips: Sequence[str] = ()  # [M] what a reader sees when pointing at an instance; may be empty
    colour: str = ""  # of the name and of a line under every instance; "" = none


@dataclass(frozen=True)
class Panel:
    """The timeline of one video, cut to ``span_s``."""

    title: str
    span_s: tuple[float, float]
    lanes: Sequence[Lane]


def timeline_height(panels: Sequence[Panel]) -> float:
    """Inches that :func:`timelines` needs."""
    return sum(PANEL_IN + LANE_IN * len(panel.lanes) for panel in panels)


@styled
def timelines(figure: Figure, panels: Sequence[Panel], colours: Sequence[str]) -> None:
    """One panel per video, one lane per origin, every instance in the colour of its class (Figures S3 and S4).

    Where there are many classes, an instance also carries the number of its class if there is room.
    """
    figure.set_layout_engine("constrained", h_pad=0.09)
    ratios = [PANEL_IN / 2 + LANE_IN * len(panel.lanes) for panel in panels]
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        for row, lane in enumerate(panel.lanes):
            _draw_lane(axes, row, lane, panel.span_s, colours)
        axes.set(
            xlim=panel.span_s,
            ylim=(len(panel.lanes) - 0.45, -0.55),
        )
        axes.set_title(panel.title, fontweight="bold")
        axes.set_yticks(range(len(panel.lanes)), [lane.name for lane in panel.lanes])
        for text, lane in zip(axes.get_yticklabels(), panel.lanes, strict=True):
            text.set_color(lane.colour or INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter("{x:g} s")
        axes.tick_params(axis="x", length=2, pad=1)
        axes.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 5, 10]))
        axes.grid(axis="x")


def _draw_lane(axes: Axes, row: int, lane: Lane, span_s: tuple[float, float], colours: Sequence[str]) -> None:
    low, high = span_s
    axes.axhline(row, color=RULE, lw=0.7, zorder=0)
    opacity = np.ones(len(lane.labels)) if lane.opacity is None else np.clip(lane.opacity, FAINTEST, 1)
    for i in np.argsort(opacity, kind="stable"):  # the surest on top
        start, end = (float(np.clip(x, low, high)) for x in lane.segments_s[i])
        if end <= start:
            continue
        colour = colours[int(lane.labels[i])]
        fill = mixed(colour, 1.0, 1 - float(opacity[i]))  # as if transparent, but blends with nothing
        box = Rectangle((start, row - 0.36), end - start, 0.72, fc=fill, ec=colour, lw=0.6, zorder=2)
        if len(lane.tips):
            box.set_gid(f"tip:{lane.tips[i]}")
        axes.add_patch(box)
        if lane.colour:
            axes.plot([start, end], [row + 0.36] * 2, color=lane.colour, lw=2, solid_capstyle="butt", zorder=2)
        if len(colours) >= NUMBERED_FROM and end - start > 0.016 * (high - low):
            dark = np.dot(to_rgb(fill), (0.3, 0.59, 0.11)) < 0.55
            axes.text(
                (start + end) / 2, row, str(lane.labels[i]), ha="center", va="center_baseline", fontsize=7,
                color="white" if dark else INK, clip_on=True, zorder=2,
            )  # fmt: skip
