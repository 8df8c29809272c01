"""Figures and pages as text: nothing in them that a terminal, a browser or matplotlib's fonts stumble over."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from apl_jax.report.figures.svg import to_svg
from apl_jax.report.rendering import render_page


@pytest.mark.filterwarnings("error")
def test_point_20_names_in_figures_hold_no_escape_sequences() -> None:
    """Neither in the picture, nor on the terminal: matplotlib would warn of glyphs that its own font lacks."""
    figure = Figure(layout="constrained")
    figure.add_subplot().set_title("\x1b[31mred\x07 \u884c")
    text = to_svg(figure)
    assert "\\x1b[31mred\\x07 \u884c" in text and not set(text) & set("\x1b\x07")


def test_point_20_pages_hold_no_escape_sequences() -> None:
    page = render_page("inspection.html", "\x1b[31mred\x9b", "one\ttwo", [])
    assert "\\x1b[31mred\\x9b" in page and "one\ttwo" in page and not set(page) & set("\x1b\x9b")
