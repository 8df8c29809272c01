"""A figure as text for a page, the same for the same figure."""

from __future__ import annotations

import io
import re
import warnings

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from apl_jax.text import for_terminal


def to_svg(figure: Figure) -> str:
    """The figure as one ``<svg>`` element, the same text for the same figure.

    An artist whose gid is ``tip:TEXT`` gets TEXT as its tooltip. Text stays text: it is set in the page's own fonts.
    """
    file = io.StringIO()
    for artist in figure.findobj(Text):
        artist.set_text(for_terminal(artist.get_text()))
    with (
        warnings.catch_warnings(),
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "apl_jax", "text.parse_math": False}),
    ):
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib's own font lacks it; the page's fonts draw the text
        _settle(figure)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = re.sub(r"""<g id=(["'])tip:(.*?)\1>""", r"<g><title>\2</title>", text[text.index("<svg") :])
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def _settle(figure: Figure) -> None:
    """Lays the figure out once and rounds where its axes stand: matplotlib's constraint solver adds up in the order of
    memory addresses, so that its last digits, and with them every number and identifier of the SVG, differ by run."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(float(x), 5) for x in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))
