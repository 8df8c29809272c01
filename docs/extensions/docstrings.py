"""What this package's docstrings need beyond autodoc.

* Fields of dataclasses and named tuples are described by comments, behind the field or in the lines before it. Here the
  comment becomes the field's description.
* "spec 1.5", "A4" or "C11" become links to the specification.
* Names that are documented under another path, such as ``apl_jax.load_model``, and names without a path find their
  entry. What has no entry stays plain text.
"""

from __future__ import annotations

import ast
import functools
import importlib
import io
import re
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

_LITERAL = re.compile(r"(``.*?``|`.*?`)")
_SPEC = re.compile(r"\b(?:spec (?:section )?(\d+(?:\.\d+)?)|(?:spec )?([ABCP]\d+b?))\b")
_DIRECTIVES = ("# fmt", "# pyright", "# noqa", "# ruff", "# type")


@functools.cache
def field_comments(module: str) -> dict[str, dict[str, str]]:
    """The comments of all annotated fields of a module's classes: class name -> field -> words."""
    try:
        text = Path(str(importlib.import_module(module).__file__)).read_text("utf-8")
    except (AttributeError, ImportError, OSError, ValueError):
        return {}  # such as builtins, or a file that is only shown
    comments: dict[int, tuple[str, bool]] = {}  # line -> its comment, and whether nothing else is on the line
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(_DIRECTIVES):
            words = token.string[1:].split("  # pyright")[0].strip()
            comments[token.start[0]] = words, not token.line[: token.start[1]].strip()
    found: dict[str, dict[str, str]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
            found[node.name] = {f.target.id: _comment(f, comments) for f in fields}
    return found


def _comment(field: ast.AnnAssign, comments: dict[int, tuple[str, bool]]) -> str:
    """The lines of comment right above a field, and the comment behind it."""
    behind = [comments[line][0] for line in range(field.lineno, int(field.end_lineno or 0) + 1) if line in comments]
    above: list[str] = []
    line = field.lineno - 1
    while line in comments and comments[line][1]:
        above.insert(0, comments[line][0])
        line -= 1
    return " ".join([*above, *behind])


def _describe_field(name: str) -> str:
    """The comment of a field by its whole path, "" where there is none."""
    path, _, field = name.rpartition(".")
    module, _, cls = path.rpartition(".")
    return field_comments(module).get(cls, {}).get(field, "")


@functools.cache
def specification_labels() -> frozenset[str]:
    """All targets of docs/specification."""
    pages = [page.read_text("utf-8") for page in (Path(__file__).parents[1] / "specification").glob("*.md")]
    return frozenset(label for page in pages for label in re.findall(r"^\((spec-[\w-]+)\)=", page, re.M))


def link_specification(text: str) -> str:
    """Plain words such as "spec 1.5" and "A4", in reStructuredText, as references."""

    def reference(match: re.Match[str]) -> str:
        label = "spec-" + (match[1] or match[2]).replace(".", "-")
        return f":ref:`{match[0]} <{label}>`" if label in specification_labels() else match[0]

    parts = _LITERAL.split(text)
    return "".join(part if i % 2 else _SPEC.sub(reference, part) for i, part in enumerate(parts))


def _escaped(words: str) -> str:
    """Plain words in reStructuredText."""
    return words.replace("\\", r"\\").replace("*", r"\*").replace("|", r"\|").replace("`", r"\`")


def _read_comments(analyze: Callable[[ModuleAnalyzer], None]) -> Callable[[ModuleAnalyzer], None]:
    """Sphinx's reader of source files, with the comments of fields among what it finds."""

    def wrapped(analyzer: ModuleAnalyzer) -> None:
        analyze(analyzer)
        for cls, fields in field_comments(analyzer.modname).items():
            for field, words in fields.items():
                if words:
                    analyzer.attr_docs.setdefault((cls, field), [_escaped(words), ""])

    return wrapped


def _process_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what == "attribute" and (words := _describe_field(name)):
        lines[:] = [_escaped(words), ""]
    elif what == "attribute" and lines and lines[0].startswith("Alias for field number"):
        lines[:] = [""]
    lines[:] = [link_specification(line) for line in lines]


def _resolve(app: Sphinx, env: Any, node: nodes.Element, contnode: nodes.Element) -> nodes.Element | None:
    """A reference to a name that has its entry elsewhere."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rpartition(".")[2]
    entries = {name: o for name, o in env.get_domain("py").objects.items() if name.rpartition(".")[2] == last}
    entries = {name: o for name, o in entries.items() if o.objtype not in ("attribute", "module", "method", "property")}
    if len(entries) != 1:
        return None
    ((name, entry),) = entries.items()
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def _shorten_types(app: Sphinx, doctree: nodes.document) -> None:
    """jaxtyping calls an array by the module that it is compiled in."""
    for signature in doctree.findall(addnodes.desc_signature):
        for text in list(signature.findall(nodes.Text)):
            if "jaxlib._jax." in text and text.parent is not None:
                text.parent.replace(text, nodes.Text(text.replace("jaxlib._jax.", "")))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    ModuleAnalyzer.analyze = _read_comments(ModuleAnalyzer.analyze)  # pyright: ignore[reportAttributeAccessIssue]
    app.connect("autodoc-process-docstring", _process_docstring, priority=900)  # after napoleon
    app.connect("doctree-read", _shorten_types)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
