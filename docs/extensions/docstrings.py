"""What this package's docstrings need beyond autodoc.

* Fields of dataclasses and named tuples are described by comments, behind the field or in the lines before it. Here the
  comment becomes the field's description.
* "spec 1.5" and "spec A4" become links to the specification.
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

_ALIAS = re.compile(r"Alias for field number \d+")
_SPEC = re.compile(r"(?<![`\w])spec (?:section )?(\d+(?:\.\d+)?|[ABCP]\d+b?)\b")


@functools.cache
def field_comments(module: str) -> dict[str, dict[str, str]]:
    """The comments of all annotated fields of a module's classes: class name -> field -> words."""
    text = Path(str(importlib.import_module(module).__file__)).read_text("utf-8")
    comments: dict[int, tuple[str, bool]] = {}  # line -> its comment, and whether nothing else is on the line
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# fmt", "# pyright", "# noqa")):
            comments[token.start[0]] = token.string[1:].split("  # pyright")[0].strip(), not token.line[: token.start[1]].strip()
    found: dict[str, dict[str, str]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
            found[node.name] = {f.target.id: _comment(f, comments) for f in fields}  # pyright: ignore
    return found


def _comment(field: ast.AnnAssign, comments: dict[int, tuple[str, bool]]) -> str:
    """The comment behind a field, or the lines of comment right above it."""
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
    try:
        return field_comments(module).get(cls, {}).get(field, "")
    except (ImportError, OSError):
        return ""


@functools.cache
def specification_labels() -> frozenset[str]:
    """All targets of docs/specification."""
    pages = (Path(__file__).parents[1] / "specification").glob("*.md")
    return frozenset(label for page in pages for label in re.findall(r"^\((spec-[\w-]+)\)=", page.read_text("utf-8"), re.M))


def link_specification(text: str) -> str:
    """Plain words such as "spec 1.5", in reStructuredText, as references."""

    def reference(match: re.Match[str]) -> str:
        label = "spec-" + match[1].replace(".", "-")
        return f":ref:`{match[0]} <{label}>`" if label in specification_labels() else match[0]

    return _SPEC.sub(reference, text)


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
    if what == "attribute" and (not any(lines) or _ALIAS.match(lines[0])):
        lines[:] = [_escaped(_describe_field(name)), ""]
    lines[:] = [link_specification(line) for line in lines]


def _resolve(app: Sphinx, env: Any, node: nodes.Element, contnode: nodes.Element) -> nodes.Element | None:
    """A reference to a name that has its entry elsewhere."""
    if node.get("refdomain") != "py":
        return None
    domain, target = env.get_domain("py"), node["reftarget"]
    last = target.rpartition(".")[2]
    entries = {o.node_id + o.docname: (name, o) for name, o in domain.objects.items() if name.rpartition(".")[2] == last}
    entries = {key: value for key, value in entries.items() if value[1].objtype not in ("attribute", "module")}
    if len(entries) != 1:
        return None
    ((name, entry),) = entries.values()
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def _shorten_types(app: Sphinx, doctree: nodes.document) -> None:
    """jaxtyping calls an array by the module that it is compiled in."""
    for signature in doctree.findall(addnodes.desc_signature):
        for text in list(signature.findall(nodes.Text)):
            if "jaxlib._jax." in text:
                text.parent.replace(text, nodes.Text(text.replace("jaxlib._jax.", "")))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    ModuleAnalyzer.analyze = _read_comments(ModuleAnalyzer.analyze)  # pyright: ignore[reportAttributeAccessIssue]
    app.connect("autodoc-process-docstring", _process_docstring)
    app.connect("doctree-read", _shorten_types)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
