"""Pages from the templates in ``templates/``: each is one file that needs no network and no JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader("apl_jax.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One section of a page; it is left out when ``content`` is empty."""

    title: str
    macro: str  # of the page's layout, which writes the content
    content: Any


def render_page(layout: str, title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A whole page as text; ``layout`` is the template whose macros write the sections."""
    shown = [section for section in sections if section.content]
    return _TEMPLATES.get_template("page.html").render(layout=layout, title=title, subtitle=subtitle, sections=shown)
