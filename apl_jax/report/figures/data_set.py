"""What a data set looks like before anything is trained: how long its videos and instances are, and of which class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from apl_jax.report.figures.drawing import MOST_BARS, short_name, styled

_BINS = 40
_WIDE = 30.0  # a histogram whose largest value is so many times its median has a logarithmic axis
_BAR, _DARK, _INK = "#88A9C3", "#1F5A85", "#333D47"


@styled
def length_histogram(figure: Figure, values: np.ndarray, unit: str, counted: str, mark: tuple[float, str]) -> None:
    """How many ``counted`` have which length ``values [N] > 0``; ``mark``: a length and its words, 0 for none."""
    axes = figure.subplots()
    low, high = float(values.min()), float(values.max())
    wide = high > _WIDE * float(np.median(values)) or float(np.median(values)) > _WIDE * low
    edges = np.geomspace(low, high * 1.001, _BINS + 1) if wide else np.linspace(0, high * 1.001, _BINS + 1)
    count = np.histogram(values, edges)[0]
    bars = axes.bar(edges[:-1], count, np.diff(edges), align="edge", color=_BAR, lw=0)
    for bar, n, left, right in zip(bars, count, edges[:-1], edges[1:], strict=True):
        bar.set_gid(f"tip:{n:,} {counted}, {left:.3g} to {right:.3g} {unit}")
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    value, words = mark
    if edges[0] <= value <= edges[-1] and value > 0:
        axes.axvline(value, color=_INK, lw=1, ls=(0, (4, 2)))
        axes.annotate(
            words, (value, 0.98), (4, 0), va="top", xycoords=("data", "axes fraction"), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip
    axes.set(ylabel=counted, xlabel=unit, xlim=(edges[0], edges[-1]), ylim=(0, 1.12 * max(1, count.max())))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y")


@styled
def class_bars(figure: Figure, classes: Sequence[str], total: np.ndarray, labelled: np.ndarray) -> None:
    """Instances of the ``MOST_BARS`` most frequent classes ``[C]``, and those of the labelled part within them."""
    axes = figure.subplots()
    shown = np.argsort(-total, kind="stable")[:MOST_BARS]
    y = np.arange(len(shown))
    axes.barh(y, total[shown], 0.66, color="#D5DAE0", label="all subsets")
    axes.barh(y, labelled[shown], 0.66, color=_DARK, label="labelled part of the split")
    for row, c in enumerate(shown):
        text = f"{labelled[c]:,} of {total[c]:,}"
        axes.annotate(text, (total[c], row), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.set_yticks(y, [short_name(classes[int(c)]) for c in shown])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.2 * max(1, total.max(initial=0))), ylim=(len(shown) - 0.4, -0.6), xlabel="instances")
    axes.grid(axis="x")
    figure.legend(loc="outside upper left", ncols=2, handlelength=0.9, columnspacing=1.2)
