"""Figures of a run: arrays in, drawn into a ``matplotlib.figure.Figure``; used by the report and by the notebook.

Nothing here touches pyplot or a display, so that a server, a test and a notebook all draw alike. Make figures with
``layout="constrained"``; :func:`apl_jax.report.figures.svg.to_svg` makes text of them for a page. Colours are safe for
colour-blind readers: classes have Paul Tol's "muted" scheme, reasons ColorBrewer's "Dark2", loss terms Okabe and Ito's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from apl_jax.structs import Reason

HALF_WIDTH_IN, FULL_WIDTH_IN = 5.25, 10.5  # two figures side by side, or one, on a page of 1020 pixels
HISTOGRAM_BINS = 40  # of 0.025: the usual thresholds are edges
MOST_BARS = 20  # classes in one bar chart
CLASS_LABEL = 18  # characters of a class name on an axis

# Paul Tol's nine muted colours; then, one by one, the colour of at most their strength that lies farthest from all
# before it in CIELAB, from white, from the ink and from OTHER_CLASS. The nearest two are 22 apart.
_CLASS_COLOURS = (
    "#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#995511",
    "#5577BB", "#33DD99", "#771111", "#DD9977", "#DD99DD", "#555511", "#77BB55", "#775577", "#9977DD", "#557755",
    "#117799", "#553311", "#113377", "#11DDDD", "#99BB99", "#99DD99", "#3355BB",
)  # fmt: skip
OTHER_CLASS = "#9AA0A6"
REASON_COLOURS = {
    Reason.KEPT: "#1B9E77", Reason.PROMOTED: "#7570B3", Reason.DROPPED: "#D95F02", Reason.CANDIDATE: "#A6A6A6",
}  # fmt: skip
SET_NAMES = {"before_icd": "before ICD", "after_eap": "after EAP", "after_mpp": "after MPP", "final": "after both"}
SET_COLOURS = {"before_icd": "#BBBBBB", "after_eap": "#D95F02", "after_mpp": "#7570B3", "final": "#1B9E77"}
MEASURES = {"class_accuracy": "class accuracy", "mean_tiou": "mean tIoU", "positive_accuracy": "positive accuracy"}
_TERMS = {
    "loss": "#111111", "class": "#0072B2", "regression": "#E69F00", "quality": "#009E73", "contrast_coarse": "#56B4E9",
    "contrast_fine": "#CC79A7", "accuracy": "#D55E00", "gradient_norm": "#999999",
}  # fmt: skip
_MORE_TERMS = ["#8C510A", "#35978F", "#762A83", "#5AAE61", "#4D4D4D"]
INK, RULE = "#333D47", "#D5DAE0"

styled = matplotlib.rc_context(
    {
        "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": "#9AA5B1", "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.titlelocation": "left", "axes.axisbelow": True, "grid.color": "#E8EBEF",
        "grid.linewidth": 0.7, "text.parse_math": False, "figure.facecolor": "none", "axes.facecolor": "none",
    }
)  # fmt: skip


def class_colours(frequency: np.ndarray) -> list[str]:
    """A colour per class, ``frequency [C]`` being the number of instances.

    Up to 27 classes are told apart; where there are more, the rarest share :data:`OTHER_CLASS`.
    """
    colours, most = [OTHER_CLASS] * len(frequency), len(_CLASS_COLOURS)
    for colour, c in zip(_CLASS_COLOURS, sorted(np.argsort(-frequency, kind="stable")[:most]), strict=False):
        colours[c] = colour
    return colours


def mixed(colour: str, grey: float, part: float) -> str:
    """A colour with a part of grey in it; grey 1 is white."""
    red, green, blue = ((1 - part) * x + part * grey for x in to_rgb(colour))
    return to_hex((red, green, blue))


def term_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour per loss term, the same on every panel; ``names`` as in metrics.jsonl, with or without ``group/``."""
    terms = list(dict.fromkeys(name.rpartition("/")[2] for name in names))
    strange = [term for term in terms if term not in _TERMS]
    return {t: _TERMS.get(t) or _MORE_TERMS[strange.index(t) % len(_MORE_TERMS)] for t in terms}


@styled
def reason_histograms(
    figure: Figure, values: Mapping[str, np.ndarray], reason: np.ndarray,
    marks: Mapping[str, Sequence[tuple[float, str]]],
) -> None:  # fmt: skip
    """Numbers in [0, 1] of M detections, name -> ``[M]``, a panel each, stacked by ``reason [M]``.

    ``marks``: name -> thresholds (value, words) drawn across its panel.
    """
    grid = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (name, column) in zip(grid, values.items(), strict=True):
        _stack(axes, column, reason)
        axes.set_xlabel(name)
        line, before = 0, -1.0
        for value, words in sorted(marks.get(name, ())):
            right = value > 0.8
            line = line + 1 if value - before < 0.3 else 0  # words that would meet stand below each other
            before = value
            axes.axvline(value, color=INK, lw=1, ls=(0, (4, 2)))
            axes.annotate(
                f"{words} {value:.2f}", (value, 0.98 - 0.09 * line), (-4 if right else 4, 0),
                ha="right" if right else "left", va="top", fontsize=8,
                xycoords=("data", "axes fraction"), textcoords="offset points",
            )  # fmt: skip
    grid[0].set_ylabel("detections")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=4, handlelength=0.9, columnspacing=1.2)


def _stack(axes: Axes, values: np.ndarray, reason: np.ndarray) -> None:
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    base = np.zeros(HISTOGRAM_BINS)
    for r, colour in REASON_COLOURS.items():
        chosen = values[reason == r]
        count = np.histogram(chosen, edges)[0]
        name = f"{r.name.lower()} ({len(chosen):,})"
        bars = axes.bar(edges[:-1], count, np.diff(edges), base, align="edge", color=colour, label=name, lw=0)
        for bar, n, low in zip(bars, count, edges, strict=False):
            bar.set_gid(f"tip:{r.name.lower()}: {n} from {low:.3f} to {low + edges[1]:.3f}")
        base = base + count
    axes.set(xlim=(0, 1), ylim=(0, max(1.0, 1.12 * base.max())))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y")


@styled
def quality_bars(figure: Figure, quality: Mapping[str, Mapping[str, float | None]]) -> None:
    """Figure 3(c) of one round: the :data:`MEASURES` of the sets that EAP and MPP make, in percent.

    ``quality``: as :func:`apl_jax.evaluation.label_quality.label_quality` returns it; None is drawn as nothing.
    """
    axes = figure.subplots()
    sets = [name for name in SET_NAMES if name in quality]
    width = 0.84 / max(len(sets), 1)
    for s, name in enumerate(sets):
        values = [quality[name][measure] for measure in MEASURES]
        for m, value in enumerate(values):
            x = m + (s - (len(sets) - 1) / 2) * width
            axes.bar(
                x, 100 * (value or 0), width * 0.92, color=SET_COLOURS[name], label=SET_NAMES[name] if not m else None
            )
            text = "–" if value is None else f"{100 * value:.0f}"
            axes.annotate(text, (x, 100 * (value or 0)), (0, 2), textcoords="offset points", ha="center", fontsize=7.5)
    axes.set_xticks(range(len(MEASURES)), list(MEASURES.values()))
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(0, 108), ylabel="%")
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=4, handlelength=0.9, columnspacing=1.2)


@styled
def class_counts(
    figure: Figure, classes: Sequence[str], truth: np.ndarray, selected: np.ndarray, correct: np.ndarray,
    colours: Sequence[str],
) -> int:  # fmt: skip
    """True instances of the unlabelled videos, pseudo labels and correct ones among them, each ``[C]``, as bars.

    Draws the :data:`MOST_BARS` most frequent classes and returns how many are left out.
    """
    axes = figure.subplots()
    shown = np.argsort(-truth, kind="stable")[:MOST_BARS]
    y = np.arange(len(shown))
    axes.barh(y - 0.2, truth[shown], 0.36, color="#D5DAE0", label="true instances")
    paint = [colours[c] for c in shown]
    axes.barh(y + 0.2, selected[shown], 0.36, color=paint, alpha=0.4, label="pseudo labels")
    axes.barh(y + 0.2, correct[shown], 0.36, color=paint, label="of them correct at tIoU .5")
    furthest = max(1.0, float(max(truth.max(initial=0), selected.max(initial=0))))
    for row, c in enumerate(shown):
        text = f"{correct[c]:,.0f} of {selected[c]:,.0f}"
        axes.annotate(text, (selected[c], row + 0.2), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.set_yticks(y, [short_name(classes[int(c)]) for c in shown])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.12 * furthest), ylim=(len(shown) - 0.4, -0.6), xlabel="instances in the unlabelled videos")
    axes.grid(axis="x")
    legend = figure.legend(loc="outside upper left", ncols=3, handlelength=0.9, columnspacing=1.2)
    for handle, alpha in zip(legend.get_patches()[1:], (0.35, 0.8), strict=True):
        handle.set(facecolor=INK, alpha=alpha)
    return len(truth) - len(shown)


def short_name(name: str) -> str:
    return name if len(name) <= CLASS_LABEL else name[: CLASS_LABEL - 1] + "…"


@styled
def training_curves(figure: Figure, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Scalars of one stage by step, name -> (steps [S], values [S]); a panel per group, the part before "/".

    Losses have a logarithmic axis, a group with an accuracy a linear one. Terms that are zero throughout (a loss the
    variant does not use) are left out.
    """
    groups = curve_groups(list(curves))
    colours = term_colours(list(curves))
    grid = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (group, names) in zip(grid, groups.items(), strict=True):
        for name in names:
            steps, values = curves[name]
            term = name.rpartition("/")[2]
            if np.any(values != 0):
                axes.plot(steps, values, color=colours[term], lw=1.9 if term == "loss" else 1.4)[0].set_gid(
                    f"tip:{name}"
                )
        if not any(name.endswith("accuracy") for name in names):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.set_title(group)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid()


def curve_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of scalars by panel: "total", then by the part before "/". Counts of positives are no loss: left out."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda n: ("/" in n, n.startswith("icd/"), n)):
        if not name.endswith("/positives"):
            groups.setdefault(name.partition("/")[0] if "/" in name else "total", []).append(name)
    return groups


@styled
def embeddings(figure: Figure, points: Mapping[str, np.ndarray], groups: Sequence[tuple[str, np.ndarray, str]]) -> None:
    """Planar embeddings ``[M, 2]`` side by side, title -> points, coloured by group: (name, ``[M]`` bool, colour)."""
    grid = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (title, xy) in zip(grid, points.items(), strict=True):
        for name, mask, colour in groups:
            axes.scatter(*xy[mask].T, s=7, color=colour, lw=0, alpha=0.8, label=name, rasterized=True)
        axes.set(xticks=[], yticks=[], title=title)
        axes.spines[["top", "right"]].set_visible(True)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 8), markerscale=2.2)


@styled
def calibration(figure: Figure, estimates: Mapping[str, np.ndarray], tiou: np.ndarray) -> None:
    """What an estimate promises and what it is worth: true tIoU ``[M]`` against each estimate, name -> ``[M]``.

    The line joins the means of ten equally full bins; r is Pearson's correlation.
    """
    grid = figure.subplots(1, len(estimates), squeeze=False, sharey=True)[0]
    for axes, (name, values) in zip(grid, estimates.items(), strict=True):
        axes.scatter(values, tiou, s=6, color="#88A9C3", lw=0, alpha=0.45, rasterized=True)
        bins = [rows for rows in np.array_split(np.argsort(values, kind="stable"), 10) if len(rows)]
        axes.plot([values[b].mean() for b in bins], [tiou[b].mean() for b in bins], "o-", color=INK, ms=3.5, lw=1.3)
        varied = len(values) > 1 and np.ptp(values) > 0 and np.ptp(tiou) > 0
        axes.set_title(f"{name}, r = {np.corrcoef(values, tiou)[0, 1]:.2f}" if varied else name)
        axes.set(ylim=(-0.02, 1.02), xlabel=name)
        axes.grid()
    grid[0].set_ylabel("tIoU with the truth")


@styled
def reliability(figure: Figure, diagrams: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Share of right detections against the precision that was promised, a line for each name; on the diagonal both are
    equal. A diagram is that of :func:`~apl_jax.evaluation.held_out.reliability`."""
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#B5BDC5", lw=0.8)
    for (name, rows), colour in zip(diagrams.items(), ("#4C88C4", INK), strict=False):
        axes.plot([row[0] for row in rows], [row[1] for row in rows], "o-", color=colour, ms=3.5, lw=1.3, label=name)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="promised", ylabel="share of right detections")
    axes.legend(loc="upper left")
    axes.grid()
