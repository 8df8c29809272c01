"""The data of what pages are made of: tables of numbers, and figures as inline SVG (``templates/elements.html``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from apl_jax.report.figures import to_svg

OPEN_CLASSES = 30  # a table of more classes is folded


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    best: bool = False
    share: str = ""  # width of the bar behind the number, such as "45.0%"; "" for none


@dataclass(frozen=True)
class NumberTable:
    """A table whose first column names its rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    bars: bool


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption, which may be empty."""

    caption: str
    svg: Markup


def number_table(rows: Sequence[Sequence[str]], best: str = "", plain: int = 1, bars: bool = False) -> NumberTable:
    """Rows of percentages as a table; the first row is the head, the first ``plain`` columns are no percentages.

    best: "column" or "row" marks the largest value of each; bars: a bar behind every value.
    """
    head, *body = rows
    values = np.array([[_number(cell) for cell in row[plain:]] for row in body]).reshape(len(body), len(head) - plain)
    marked = np.zeros(values.shape, bool)
    if best and values.size:
        largest = values.max(axis=0 if best == "column" else 1, keepdims=True)
        marked = (values == largest) & (values >= 0)
    table = []
    for row, numbers, marks in zip(body, values.tolist(), marked.tolist(), strict=True):
        cells = [Cell(text) for text in row[:plain]]
        for text, value, mark in zip(row[plain:], numbers, marks, strict=True):
            cells.append(Cell(text, mark, f"{value:.1f}%" if bars and value > 0 else ""))
        table.append(cells)
    return NumberTable(head, table, bars)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:  # a dash: nothing to compare
        return -1.0


def drawn(width_in: float, height_in: float, caption: str, draw: Callable[..., Any], *arrays: Any) -> Drawing:
    """A drawing of :mod:`apl_jax.report.figures` for a page."""
    canvas = Figure((width_in, height_in), layout="constrained")
    draw(canvas, *arrays)
    return Drawing(caption, Markup(to_svg(canvas)))


def folded_classes(count: int) -> str:
    """The title under which a table of so many classes is folded; "" when it is short enough to be shown at once."""
    return f"{count} classes" if count > OPEN_CLASSES else ""
