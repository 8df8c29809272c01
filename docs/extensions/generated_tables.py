"""Parts of pages that are made of the code itself: public names, the settings of a class, the help of a command."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from typing import Any

from docstrings import field_comments, link_specification
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import apl_jax
from apl_jax.declarations import Chain, Choice, bounds_in_words, to_dict


class PublicNames(SphinxDirective):
    """``{public-names}``: what ``import apl_jax as apl`` offers, with the first sentence of each."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        lines = ["| name | what it is |", "|---|---|"]
        for name in sorted(apl_jax.__all__, key=str.lower):
            found = getattr(apl_jax, name)
            words = (inspect.getdoc(found) or "").split("\n\n")[0].replace("\n", " ") if name != "__version__" else ""
            role = "class" if inspect.isclass(found) else "mod" if inspect.ismodule(found) else "func"
            where = getattr(found, "__module__", "apl_jax")
            shown = f"`apl.{name}`"
            if role != "mod" and callable(found):
                shown = f"{{py:{role}}}`apl.{name} <{where}.{found.__qualname__}>`"
            lines.append(f"| {shown} | {_plain(words) or 'the version of the package, as text'} |")
        return self.parse_text_to_nodes("\n".join(lines))


def _plain(words: str) -> str:
    """The first sentence of a docstring, in Markdown."""
    words = words.replace(":class:", "").replace(":func:", "").replace("``", "`").replace("`~", "`").replace("|", r"\|")
    return words.split(". ")[0].removesuffix(".")


class SettingsTable(SphinxDirective):
    """``{settings} apl_jax.settings.StageSettings``: path, default, what is allowed, and the comment of each field.

    The content of the directive is the path of the settings in a configuration, such as ``learning.self_train``.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The table."""
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        prefix = "".join(self.content).strip()
        lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
        lines += [_row(cls, f, f"{prefix}." if prefix else "") for f in dataclasses.fields(cls)]
        return self.parse_text_to_nodes("\n".join(lines))


def _row(cls: type, field: dataclasses.Field, prefix: str) -> str:
    default = getattr(cls(), field.name)
    words = next(
        (w for c in cls.__mro__ if (w := field_comments(c.__module__).get(c.__name__, {}).get(field.name))), ""
    )
    allowed = ""
    if choices := field.metadata.get("choices"):
        allowed = ", ".join(f"`{choice}`" for choice in choices)
    elif bounds := field.metadata.get("bounds"):
        allowed = bounds_in_words(bounds) if any(math.isfinite(b) for b in bounds) else "any number"
    if isinstance(default, Choice):
        shown, words = default.name, words or "one entry of a registry, with its settings"
    elif isinstance(default, Chain):
        shown, words = " -> ".join(default.names), words or "links of the selection chain, with their settings"
    elif dataclasses.is_dataclass(default):
        shown, words = "", words or f"settings of their own: {type(default).__name__}"
    else:
        shown = str(default) if isinstance(default, tuple) else str(to_dict(default))
        shown = shown or '""'
    words = link_specification(words.replace("`", "'")).replace(":ref:`", "{ref}`")
    cells = (f"`{prefix}{field.name}`", f"`{shown}`" if shown else "", allowed, _markdown(words))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _markdown(words: str) -> str:
    return words.replace("*", r"\*").replace("<=", "≤").replace("_", r"\_") if "{ref}" not in words else words


class CommandHelp(Directive):
    """``{command-help} run``: what ``apl-jax run --help`` prints; without a name the overview."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A literal block."""
        from apl_jax.cli.dispatch import COMMANDS
        from apl_jax.cli.parser import build_parser

        overview, parsers = build_parser(COMMANDS)
        text = (parsers[self.arguments[0]] if self.arguments else overview).format_help()
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("settings", SettingsTable)
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
