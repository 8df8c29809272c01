"""The shape of a checkout in numbers: length of functions, lines by part, files that see a whole run's settings.

python benchmarks/structure.py [FOLDER]      # apl_jax of this checkout, or of another
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WHOLE = re.compile(r"^\s*(?:from|import) [^\n]*\bSettings\b|^    Settings,$", re.MULTILINE)


def function_lengths(text: str) -> Iterator[tuple[int, str]]:
    """Code lines of each function, without docstring, comments and empty lines, and its name."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = node.body[0]
        said = range(first.lineno, (first.end_lineno or 0) + 1) if ast.get_docstring(node, clean=False) else ()
        code = [
            row
            for row in range(node.lineno, (node.end_lineno or 0) + 1)
            if row not in said and lines[row - 1].strip() and not lines[row - 1].lstrip().startswith("#")
        ]
        yield len(code), node.name


def main(root: Path) -> None:
    files = {path: path.read_text("utf-8") for path in sorted(root.rglob("*.py"))}
    functions = [(count, name, path) for path, text in files.items() for count, name in function_lengths(text)]
    lengths = np.array([count for count, *_ in functions])
    p50, p90, p99 = np.percentile(lengths, (50, 90, 99)).astype(int)
    count, name, path = max(functions, key=lambda row: row[0])
    print(f"functions  {len(lengths):,}; code lines p50 {p50}, p90 {p90}, p99 {p99}, longest {count} ({path}: {name})")
    parts: Counter[str] = Counter()
    for file, text in files.items():
        inside = file.relative_to(root).parts
        parts[inside[0] if len(inside) > 1 else "."] += len(text.splitlines())
    print(f"lines      {sum(parts.values()):,}: " + ", ".join(f"{part} {n:,}" for part, n in parts.most_common()))
    longest = sorted(((len(text.splitlines()), str(file)) for file, text in files.items()), reverse=True)[:3]
    print("longest    " + ", ".join(f"{file} {n}" for n, file in longest))
    seen = [str(file) for file, text in files.items() if WHOLE.search(text)]
    print(f"settings   {len(seen)} files import the whole settings of a run: {', '.join(seen)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "apl_jax")
