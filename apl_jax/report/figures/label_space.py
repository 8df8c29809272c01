"""What non-target learning makes of the label space: shares of the class relations, whole distributions (Figure 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from apl_jax.learning.class_division import ClassRelation
from apl_jax.report.figures.drawing import short_name, styled

RELATION_COLOURS = {
    ClassRelation.TARGET: "#1B9E77", ClassRelation.POSITIVE: "#7570B3", ClassRelation.AMBIGUOUS: "#BBBBBB",
    ClassRelation.NEGATIVE: "#4C88C4",
}  # fmt: skip
MOST_CLASSES = 12  # bars of one distribution: the likeliest, the true one always among them


@styled
def true_class_shares(figure: Figure, shares: Mapping[str, Mapping[str, Any]]) -> None:
    """What the true class is to foreground snippets, network -> ``foreground`` of :func:`~apl_jax.evaluation.
    label_space.label_space`: a stacked bar each, beside it the same among the snippets whose target is wrong."""
    names = list(shares)
    grid = figure.subplots(1, 2, squeeze=False, sharey=True)[0]
    for axes, wrong in zip(grid, (False, True), strict=True):
        left = [0.0] * len(names)
        for relation, colour in RELATION_COLOURS.items():
            rows = [shares[name]["when_wrong"] if wrong else shares[name] for name in names]
            width = [100 * (row.get(relation.name.lower()) or 0) for row in rows]
            axes.barh(range(len(names)), width, 0.62, left, color=colour, lw=0)
            for y, (w, start) in enumerate(zip(width, left, strict=True)):
                if w > 6:
                    light = relation is ClassRelation.AMBIGUOUS
                    axes.text(
                        start + w / 2, y, f"{w:.0f}", ha="center", va="center", fontsize=7.5,
                        color="#333D47" if light else "white",
                    )  # fmt: skip
            left = [a + b for a, b in zip(left, width, strict=True)]
        counts = [shares[name]["when_wrong"]["snippets"] if wrong else shares[name]["snippets"] for name in names]
        axes.set_title("where the target is wrong" if wrong else "all foreground snippets")
        axes.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.5))
        span = sorted({min(counts), max(counts)})
        axes.set_xlabel(f"% of {' to '.join(f'{n:,}' for n in span)} snippets")
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(names)), names)
    _legend(figure)


@styled
def class_distributions(figure: Figure, rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """Class distributions of example snippets, as ``label_space.json`` holds them.

    Each bar has the colour of its class relation; the true class is marked with a star.
    """
    columns = 3
    grid = figure.subplots(-(-len(rows) // columns), columns, squeeze=False).ravel()
    for axes, row in zip(grid, rows, strict=False):
        order = sorted(range(len(classes)), key=lambda c: -row["probability"][c])[:MOST_CLASSES]
        if row["truth"] not in order:
            order[-1] = row["truth"]
        for y, c in enumerate(order):
            axes.barh(y, row["probability"][c], 0.72, color=RELATION_COLOURS[ClassRelation(row["part"][c])], lw=0)
        names = [f"{short_name(classes[c])}{' ★' if c == row['truth'] else ''}" for c in order]
        axes.set_yticks(range(len(order)), names)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1), ylim=(len(order) - 0.5, -0.5))
        axes.set_title(f"{short_name(row['video'])}, {row['time_s']:.1f} s")
    for axes in grid[len(rows) :]:
        axes.set_axis_off()
    _legend(figure)


def _legend(figure: Figure) -> None:
    handles = [Patch(color=colour, label=relation.name.lower()) for relation, colour in RELATION_COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=0.9, columnspacing=1.2)
