"""Every shell and Python block of README and of the documentation is executed, or its source says why it cannot be.

``python tests/docs/test_blocks.py`` prints the list. What stands in a comment right before a block decides:

``<!-- not run: REASON -->``
    It is not executed. Whatever the reason, its command lines are read as far as the settings that they mean.
``<!-- run by: FILE -->``
    Another test executes it.
``<!-- slow: REASON -->``
    A Python block that the slow test executes, in a folder with a finished run.
no comment
    Python is executed by the fast test. Shell is read by the fast test and executed by the slow one.

The blocks of a page share a folder, and its Python blocks their names: they are executed from top to bottom.
``{code-cell}`` blocks are executed when the site is built, and by the fast test.
"""

from __future__ import annotations

import ast
import importlib.resources
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(page for page in DOCS.rglob("*.md") if DOCS / "_build" not in page.parents),
]
SHELL, PYTHON, CELL = ("bash", "sh", "shell", "console"), ("python", "py"), "{code-cell}"
INCLUDED = "{literalinclude}"
DATA = {"json": json.loads, "toml": tomllib.loads}  # other blocks, which must at least be what they say
PLAIN = ("text", "", "{eval-rst}", "{toctree}", "{settings}", "{command-help}", "{public-names}")
LONGEST_S = 300  # of one executed shell block


class Block(NamedTuple):
    """One fenced block."""

    page: Path
    line: int  # of its fence, from 1
    language: str  # first word behind the fence
    argument: str  # the others
    text: str
    mark: str  # of the comment before it: not run | run by | slow, or ""
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def how(self) -> str:
        """How it is executed, in words."""
        if self.language == INCLUDED:
            return f"a part of {self.argument}, which the tests load"
        if self.mark == "not run":
            read = "command lines read, " if self.language in SHELL else ""
            return f"{read}not run: {self.reason}"
        if self.mark == "run by":
            return f"run by {self.reason}"
        if self.language == CELL:
            return "executed (fast), and when the site is built"
        slow = self.mark == "slow" or self.language in SHELL
        return "executed (slow), in a folder with a finished run" if slow else "executed (fast)"


_FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})\s*(\S*)\s*(.*?)\s*$")
_MARK = re.compile(r"<!--\s*(not run|run by|slow):\s*(.+?)\s*-->")


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    lines = page.read_text("utf-8").splitlines()
    found, i = [], 0
    while i < len(lines):
        opened = _FENCE.match(lines[i])
        if not opened:
            i += 1
            continue
        fence, last = opened[2], i + 1
        while last < len(lines) and not re.match(rf"^\s*{re.escape(fence)}{fence[0]}*\s*$", lines[last]):
            last += 1
        mark = _MARK.search(_comment_before(lines, i))
        text = textwrap.dedent("\n".join(lines[i + 1 : last]))
        found.append(Block(page, i + 1, opened[3], opened[4], text, *(mark.groups() if mark else ("", ""))))
        i = last + 1
    return found


def _comment_before(lines: list[str], fence: int) -> str:
    """The comment that ends on the line before a fence; one empty line may be between."""
    end = fence - 1 if fence and lines[fence - 1].strip() else fence - 2
    if end < 0 or not lines[end].rstrip().endswith("-->"):
        return ""
    start = end
    while start and "<!--" not in lines[start]:
        start -= 1
    return " ".join(lines[start : end + 1])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNABLE = [block for block in BLOCKS if block.language in (*SHELL, *PYTHON, CELL)]


def fast(block: Block) -> bool:
    return block.language == CELL or (block.language in PYTHON and not block.mark)


def slow(block: Block) -> bool:
    return (block.language in SHELL and not block.mark) or (block.language in PYTHON and block.mark == "slow")


def pages_with(*kinds: Any) -> list[Any]:
    """Pages that have such blocks, as parameters."""
    pages = dict.fromkeys(block.page for block in RUNNABLE if any(kind(block) for kind in kinds))
    return [pytest.param(page, id=page.relative_to(REPOSITORY).as_posix()) for page in pages]


# What the source must say


def test_blocks_are_found() -> None:
    kinds = {kind: sum(block.language in kind for block in RUNNABLE) for kind in (SHELL, PYTHON, (CELL,))}
    assert min(kinds.values()) >= 5, kinds


def test_every_block_says_what_it_is() -> None:
    known = (*SHELL, *PYTHON, CELL, INCLUDED, *DATA, *PLAIN)
    strange = [f"{b.place}: {b.language!r}" for b in BLOCKS if b.language not in known]
    assert not strange, "no such kind of block; name its language:\n" + "\n".join(strange)
    hidden = [
        f"{b.place}: {b.text.splitlines()[0]}" for b in BLOCKS if b.language in ("text", "") and _is_command(b.text)
    ]
    assert not hidden, "commands in a block that is not tested:\n" + "\n".join(hidden)


def _is_command(text: str) -> bool:
    return bool(re.search(r"^\s*(\$ |apl-jax |make |pip |python |import |from \w+ import )", text, re.M))


def test_no_code_hides_in_indented_blocks() -> None:
    markdown = pytest.importorskip("markdown_it")
    found = []
    for page in PAGES:
        text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text("utf-8"), flags=re.S)
        tokens = markdown.MarkdownIt().parse(text)
        found += [f"{page.name}: {t.content.splitlines()[0]}" for t in tokens if t.type == "code_block"]
    assert not found, "use fences:\n" + "\n".join(found)


@pytest.mark.parametrize("block", [pytest.param(b, id=b.place) for b in BLOCKS if b.language in DATA])
def test_data_blocks_can_be_read(block: Block) -> None:
    DATA[block.language](block.text)


def test_tests_that_are_named_exist() -> None:
    named = {b.place: b.reason.split("::")[0] for b in RUNNABLE if b.mark == "run by"}
    for block in RUNNABLE:
        if block.mark == "not run":
            paths = re.findall(r"tests/[\w/]+(?:\.py)?", block.reason)
            named |= {f"{block.place} ({path})": path for path in paths}
    missing = [f"{place}: {path}" for place, path in named.items() if not (REPOSITORY / path).exists()]
    assert not missing, "no such test:\n" + "\n".join(missing)


def test_blocks_that_another_test_runs_stand_there() -> None:
    """Statement by statement, in a string of that test; a training is shorter there, so the call of it may differ."""
    for block in RUNNABLE:
        if block.mark == "run by" and block.language in PYTHON:
            test = ast.parse((REPOSITORY / block.reason.split("::")[0]).read_text("utf-8"))
            texts = [n.value for n in ast.walk(test) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            there = {statement for text in texts if "apl." in text for statement in _statements(text)}
            missing = [s for s in _statements(block.text) if s not in there and "apl.train(" not in s]
            assert not missing, f"{block.place}: not in {block.reason}: {missing}"


def _statements(text: str) -> list[str]:
    try:
        return [ast.unparse(statement) for statement in ast.parse(text).body]
    except SyntaxError:
        return []


def test_included_files_exist() -> None:
    for block in BLOCKS:
        if block.language == INCLUDED:
            assert (block.page.parent / block.argument).is_file(), block.place


# Shell, read


def command_lines(text: str) -> list[list[str]]:
    """The words of each command of a shell block, without comments, assignments, loops and what is behind pipes."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in joined.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and (words[0] in ("for", "do", "done", "then", "fi") or re.match(r"^\w+=", words[0])):
            words = [] if words[0] in ("for", "do", "done", "fi") else words[1:]
        if words:
            found.append([re.sub(r"\$(\w+|\{\w+\})", "0", word) for word in words])
    return found


LINES = [(block, words) for block in RUNNABLE if block.language in SHELL for words in command_lines(block.text)]
# Installed or looked for elsewhere; what they do is the reader's own environment's matter.
FOREIGN = ("pip", "git", "cd", "kubectl", "sbatch", "source", "pytest", "cat", "head")


@pytest.mark.parametrize(
    ("block", "words"), [pytest.param(*line, id=f"{line[0].place}-{i}") for i, line in enumerate(LINES)]
)
def test_command_lines_can_be_read(block: Block, words: list[str]) -> None:
    """Flags, settings, configurations, files of the repository and targets of make that a command names exist."""
    program, *rest = words
    if program == "apl-jax":
        read_command(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M)
        assert set(w for w in rest if "=" not in w and not w.startswith("-")) <= set(targets), words
    elif program.endswith(("python", "python3")):
        check_files([w for w in rest if w.endswith(".py") and not w.startswith("mine_export")])
    else:
        assert program in FOREIGN or (REPOSITORY / program).is_file(), f"{program} is nothing that is known here"
    check_files([w for w in rest if re.match(r"^(launch|benchmarks|tests|examples|docs|configs)/", w)])


def check_files(paths: list[str]) -> None:
    missing = [path for path in paths if not (REPOSITORY / path.split("::")[0]).exists()]
    assert not missing, f"no such file: {missing}"


CONFIGURED = "mine.py"  # what `apl-jax configure` writes on these pages


def read_command(arguments: list[str]) -> None:
    """Reads a command line as far as the settings that it means, and builds what these settings choose."""
    from apl_jax.cli.configuration import read_settings
    from apl_jax.cli.dispatch import COMMANDS
    from apl_jax.cli.parser import parse
    from apl_jax.detectors import build_detector
    from apl_jax.runs.labelling_stage import build_selection
    from apl_jax.runs.plans import chosen_method
    from apl_jax.structs import DataFacts

    arguments = [re.sub(r"^(--(?:plugin|config)=)(examples|configs)/", rf"\1{REPOSITORY}/\2/", a) for a in arguments]
    if "--help" in arguments:
        with pytest.raises(SystemExit):
            parse(COMMANDS, arguments)
        return
    found = parse(COMMANDS, arguments)
    if hasattr(found, "config") and found.config != CONFIGURED:
        settings = read_settings(found)
        facts = DataFacts(8, 3, settings.data.max_length_t)
        build_detector(settings.detector, facts)
        chosen_method(settings, facts)
        build_selection(settings.learning.selection, facts)


# Python, executed


def execute(block: Block, names: dict[str, Any]) -> None:
    """Executes a Python block; what it raises names its line of the page."""
    code = ast.parse(block.text, str(block.page))
    ast.increment_lineno(code, block.line)
    exec(compile(code, str(block.page), "exec"), names)


@pytest.mark.parametrize("page", pages_with(fast))
def test_python_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in filter(fast, blocks_of(page)):
        execute(block, names)


# Everything on a page, executed in a folder with a finished run


def of_slow_pages() -> list[Any]:
    """The pages as parameters. Two are executed in `make exhaustive` only: the longest, and the one whose steps
    tests/end_to_end/test_own_data.py and test_configure.py take too."""
    rare = pytest.mark.exhaustive
    rarely_run = ("commands.md", "your_data.md")
    return [p._replace(marks=(rare,)) if p.values[0].name in rarely_run else p for p in pages_with(slow)]


@pytest.mark.slow
@pytest.mark.parametrize("page", of_slow_pages())
def test_pages_with_a_finished_run(
    page: Path, tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path, small_run)
    names: dict[str, Any] = {"__name__": "__main__"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for block in blocks_of(page):
        if block.language in PYTHON and (fast(block) or slow(block)):
            execute(block, names)
        elif slow(block):
            script = f"set -euo pipefail\n{block.text}"
            done = subprocess.run(
                ["bash", "-c", script],
                env=os.environ | {"PATH": path},
                capture_output=True,
                text=True,
                timeout=LONGEST_S,
            )
            assert done.returncode == 0, f"{block.place}\n{done.stdout}\n{done.stderr}"


def furnish(folder: Path, small_run: Path) -> None:
    """What the pages presuppose: finished runs, recordings, annotations, predictions."""
    import numpy as np

    for name in ("spsw", "mine", "spsw_0"):
        shutil.copytree(small_run, folder / "runs" / name)
    shutil.copytree(small_run, folder / "runs" / "spsw_1")
    for name in ("settings", "results"):  # another seed, for a table of several
        path = folder / "runs" / "spsw_1" / f"{name}.json"
        document = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(document | {"seed": 1}), "utf-8")
    data = importlib.resources.files("apl_jax.data.embedded")
    signals, split = np.load(str(data / "signals_100hz.npz")), json.loads((small_run / "split.json").read_text("utf-8"))
    for place, videos in (("NEW", {"walk": split["evaluation"][0]}), ("VALIDATION", split["evaluation"][:6])):
        (folder / place).mkdir()
        for name in videos:
            video = videos[name] if isinstance(videos, dict) else name
            np.save(folder / place / f"{name}.npy", signals[video].astype(np.float32))
    shutil.copyfile(folder / "NEW" / "walk.npy", folder / "walk.npy")
    (folder / "A.json").write_text((data / "annotations.json").read_text("utf-8"), "utf-8")
    final = json.loads((small_run / "results.json").read_text("utf-8"))["final_variant"]
    shutil.copyfile(small_run / "stages" / f"{final}_evaluation" / "predictions.json", folder / "P.json")


if __name__ == "__main__":
    for b in BLOCKS:
        if b.language in (*SHELL, *PYTHON, CELL, INCLUDED):
            print(f"{b.place:34}{b.language.strip('{}'):16}{b.how}")
