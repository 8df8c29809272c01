"""The elements of the page: text is escaped here, and figures become inline SVG."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from apl_jax.report.figures import to_svg

_BAR = "#DCE9F2"
_STYLE = """
:root{color:#1f2933;background:#f3f5f7;font:15px/1.5 system-ui,"Segoe UI","Helvetica Neue",Arial,sans-serif}
body{max-width:1064px;margin:0 auto;padding:12px 16px 48px}
header{padding:8px 4px}h1{font-size:25px;margin:8px 0 2px}h2{font-size:19px;margin:0 0 10px}
h3{font-size:16px;margin:18px 0 4px}p{margin:6px 0 10px}header p,.note{color:#52606d}
nav a{display:inline-block;margin:2px 18px 2px 0;color:#0b5394;text-decoration:none}
nav a:hover{text-decoration:underline}
section{background:#fff;border:1px solid #dfe4e9;border-radius:8px;padding:16px 20px;margin:14px 0;overflow-x:auto}
.lead{font-size:17px;font-weight:600;color:#0b5394}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:8px 0}
th{font-weight:600;color:#52606d;border-bottom:2px solid #cbd2d9;vertical-align:bottom}
th,td{padding:4px 12px;text-align:right}th:first-child,td:first-child{text-align:left;padding-left:2px}
td{border-bottom:1px solid #edf0f3}tr:hover td{background-color:#f7f9fb}
.bars td:first-child{min-width:150px}.bars th:not(:first-child){width:132px;min-width:64px}
td.text{text-align:left;overflow-wrap:anywhere}
.row{display:flex;flex-wrap:wrap;gap:10px 8px}figure{margin:0;min-width:0}
figcaption{font-size:14px;font-weight:600;margin:4px 0}
svg{display:block;max-width:100%;height:auto}svg text{font-family:system-ui,"Segoe UI",Arial,sans-serif!important}
.chips{font-size:13px;margin:4px 0 8px}.chips span{display:inline-block;margin-right:16px}
.chips i{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:6px;vertical-align:-1px}
details{margin:8px 0}summary{cursor:pointer;color:#0b5394}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:4px 0 10px}dt{color:#52606d}
dd{margin:0;overflow-wrap:anywhere}
@media print{body{max-width:none}section{break-inside:avoid;border:0}}
"""


def escaped(text: object) -> str:
    """Text that a page shows as it stands, in elements and in attributes."""
    return html.escape(str(text))


def document(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page: sections are (title, HTML), and those without content are left out."""
    filled = [(name, content) for name, content in sections if content]
    links = "".join(f'<a href="#s{i}">{escaped(name)}</a>' for i, (name, _) in enumerate(filled))
    body = "".join(f'<section id="s{i}"><h2>{escaped(n)}</h2>{c}</section>' for i, (n, c) in enumerate(filled))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><header>'
        f"<h1>{escaped(title)}</h1><p>{escaped(subtitle)}</p><nav>{links}</nav></header>{body}</body></html>\n"
    )


def paragraph(text: str, kind: str = "note") -> str:
    """One paragraph of plain text; kind: note or lead."""
    return f'<p class="{kind}">{escaped(text)}</p>' if text else ""


def fold(title: str, content: str) -> str:
    """Content that a click opens."""
    return f"<details><summary>{escaped(title)}</summary>{content}</details>"


def chips(colours: Mapping[str, str]) -> str:
    """A legend, name -> colour."""
    spans = (f'<span><i style="background:{colour}"></i>{escaped(name)}</span>' for name, colour in colours.items())
    return f'<p class="chips">{"".join(spans)}</p>'


def number_table(rows: Sequence[Sequence[str]], best: str = "", plain: int = 1, bars: bool = False) -> str:
    """Rows of percentages as a table; the first row is the head, the first ``plain`` columns are no percentages.

    best: "column" or "row" sets the largest value of each in bold; bars: a bar behind every value.
    """
    head, *body = rows
    values = [[_number(cell) for cell in row[plain:]] for row in body]
    largest = {"column": [max(column) for column in zip(*values, strict=True)], "row": [max(row) for row in values]}
    lines = ["".join(f"<th>{escaped(cell)}</th>" for cell in head)]
    for r, row in enumerate(body):
        cells = [f"<td>{escaped(cell)}</td>" for cell in row[:plain]]
        for c, cell in enumerate(row[plain:]):
            text, value = escaped(cell), values[r][c]
            if best and value == largest[best][r if best == "row" else c] and len(largest[best]) and value >= 0:
                text = f"<b>{text}</b>"
            filled = f' style="background:linear-gradient(90deg,{_BAR} {value:.1f}%,transparent 0)"'
            cells.append(f"<td{filled if bars and value > 0 else ''}>{text}</td>")
        lines.append("".join(cells))
    return f"<table{' class=bars' if bars else ''}>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as a table; the first row is the head."""
    head, *body = rows
    lines = ["".join(f'<th style="text-align:left">{escaped(cell)}</th>' for cell in head)]
    lines += ["".join(f'<td class="text">{escaped(cell)}</td>' for cell in row) for row in body]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:  # a dash: nothing to compare
        return -1.0


def figure(width_in: float, height_in: float, caption: str, draw: Callable[..., Any], *arrays: Any) -> str:
    """A drawing of :mod:`apl_jax.report.figures` as inline SVG, with its caption above."""
    canvas = Figure((width_in, height_in), layout="constrained")
    draw(canvas, *arrays)
    title = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return f"<figure>{title}{to_svg(canvas)}</figure>"


def row(figures: Sequence[str]) -> str:
    """Figures side by side as far as the page is wide."""
    return f'<div class="row">{"".join(figures)}</div>'
