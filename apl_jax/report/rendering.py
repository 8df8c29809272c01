"""Pages from the templates in ``templates/``: each is one file that needs no network and no JavaScript."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from apl_jax.text import for_terminal

_TEMPLATES = Environment(
    loader=PackageLoader("apl_jax.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # which HTML forbids


@dataclass(frozen=True)
class Section:
    """One section of a page; it is left out when ``content`` is empty."""

    title: str
    macro: str  # of the page's layout, which writes the content
    content: Any


def render_page(layout: str, title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A whole page as text; ``layout`` is the template whose macros write the sections."""
    shown = [section for section in sections if section.content]
    page = _TEMPLATES.get_template("page.html").render(layout=layout, title=title, subtitle=subtitle, sections=shown)
    return _CONTROLS.sub(lambda found: for_terminal(found[0]), page)
