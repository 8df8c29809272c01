"""A table as a page: our numbers with their differences, beside the paper's, in Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apl_jax.data.files import write_text
from apl_jax.report.elements import number_table
from apl_jax.report.rendering import Section, render_page
from apl_jax.report.tables import mean_and_deviation
from apl_jax.tables.measures import MEASURES, read_numbers
from apl_jax.tables.plan import Plan
from apl_jax.tables.statistics import Difference, difference
from apl_jax.tables.table import Row

_NONE = "–"
_AVERAGE = "average"
SUFFIXES = ("md", "csv", "html")


@dataclass(frozen=True)
class Page:
    """What a page shows."""

    title: str
    about: tuple[str, ...]  # sentences above the table
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: tuple[tuple[str, str], ...]  # row, reason
    commands: tuple[tuple[str, str], ...]  # row, command of its first seed


def build_page(plan: Plan) -> Page:
    """The page of a table, from the runs that are done; the others are missing from it, which it says."""
    found = _numbers(plan)
    columns = list(dict.fromkeys(name for by_seed in found.values() for row in by_seed.values() for name in row))
    compared = _AVERAGE if _AVERAGE in columns else (columns[0] if columns else "")
    papers = list(dict.fromkeys(data for row in plan.table.rows for data in row.published))
    theirs = [f"paper, {data}: {name}" for data in papers for name in plan.table.published_columns]
    measure = MEASURES[plan.table.measure]
    shown = [f"{name}, {measure.unit}" if measure.unit else name for name in columns]
    head = ("row", "seeds", *shown, "against the row above", "p, t-test", "p, Wilcoxon", *theirs)
    rows = []
    above: tuple[str, Mapping[int, float]] = ("", {})
    for place, row in enumerate(plan.table.rows):
        by_seed = found.get(place, {})
        cells = [mean_and_deviation([*_column(by_seed, name).values()], decimals=measure.decimals) for name in columns]
        values = _column(by_seed, compared)
        gain = difference(values, above[1]) if values and above[0] == _group(row) else None
        published = [_published(row, data, i) for data in papers for i in range(len(plan.table.published_columns))]
        rows.append((row.name, str(len(by_seed)), *cells, *_difference(gain, measure.decimals), *published))
        if values:
            above = (_group(row), values)
    by_hand = [run for run in plan.runs if run.seed == plan.seeds[0]] if measure.by_hand else []
    return Page(
        f"{plan.table.name}: {plan.table.title}", _about(plan, found, compared), head, tuple(rows),
        tuple((plan.table.rows[place].name, why) for place, why in sorted(plan.left_out.items())),
        tuple((plan.table.rows[run.row].name, run.command) for run in by_hand),
    )  # fmt: skip


def _numbers(plan: Plan) -> dict[int, dict[int, Mapping[str, float | None]]]:
    """Row -> seed -> numbers by column, of the runs that are done."""
    found: dict[int, dict[int, Mapping[str, float | None]]] = {}
    for run in plan.runs:
        numbers = read_numbers(plan.table.measure, run.folder, plan.table.rows[run.row].read)
        if numbers is not None:
            found.setdefault(run.row, {})[run.seed] = numbers
    return found


def _column(by_seed: Mapping[int, Mapping[str, float | None]], name: str) -> dict[int, float]:
    """The values of one column by seed, as far as there are some."""
    return {seed: value for seed, numbers in by_seed.items() if (value := numbers.get(name)) is not None}


def _group(row: Row) -> str:
    """Rows of another share of labels, or of another detector, are not compared: what stands before the colon."""
    return row.name.partition(":")[0] if ":" in row.name else ""


def _about(plan: Plan, found: Mapping[int, Mapping[int, object]], compared: str) -> tuple[str, ...]:
    seeds = ", ".join(map(str, plan.seeds))
    missing = len(plan.runs) - sum(map(len, found.values()))
    sentences = [
        f"Data: {plan.data}. Seeds of network and split: {seeds}. Mean ± sample standard deviation over them.",
        f"Differences are of the column {compared!r}, seed by seed, with the p-values of two paired tests.",
        "The numbers of the paper are of its own data and features, which are named; ours are not to be compared with "
        "them but for the order of the rows.",
        plan.table.note,
        f"{missing} of {len(plan.runs)} runs are not done yet: the same command goes on." if missing else "",
    ]
    return tuple(sentence for sentence in sentences if sentence)


def _difference(found: Difference | None, decimals: int) -> tuple[str, str, str]:
    if found is None:
        return _NONE, _NONE, _NONE
    p_value = lambda p: _NONE if p is None else f"{p:.3f}"
    return mean_and_deviation(found.values, "+", decimals), p_value(found.t_test), p_value(found.wilcoxon)


def _published(row: Row, data: str, column: int) -> str:
    numbers = row.published.get(data, ())
    value = numbers[column] if column < len(numbers) else None
    return _NONE if value is None else f"{value:g}"


# Forms


def as_markdown(page: Page) -> str:
    """The page as Markdown."""
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    parts = [f"# {page.title}", *page.about]
    parts.append("\n".join([line(page.head), line(["---"] * len(page.head)), *map(line, page.rows)]))
    if page.left_out:
        parts.append("\n".join(["Rows that are not here:", "", *(f"* {name}: {why}" for name, why in page.left_out)]))
    if page.commands:
        lines = [f"# {name}\n{command}" for name, command in page.commands]
        parts.append("\n".join(["Each row by hand, with its first seed:", "", "```bash", *lines, "```"]))
    return "\n\n".join(parts) + "\n"


def as_csv(page: Page) -> str:
    """The table alone, as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([page.head, *page.rows])
    return text.getvalue()


def as_html(page: Page) -> str:
    """The page as one HTML file."""
    content = {"about": page.about, "table": number_table([page.head, *page.rows], plain=2)}
    sections = [
        Section("Table", "table", content),
        Section("Rows that are not here", "pairs", [("row", "why"), *page.left_out] if page.left_out else []),
        Section("Each row by hand", "pairs", [("row", "command"), *page.commands] if page.commands else []),
    ]
    return render_page("tables.html", page.title, "", sections)


def write_page(plan: Plan, workdir: Path) -> Path:
    """Writes the page in its three forms, and returns the path of the Markdown."""
    page = build_page(plan)
    name = f"{plan.table.name.replace(':', '_')}-{Path(plan.data).stem}"
    for suffix, text in zip(SUFFIXES, (as_markdown(page), as_csv(page), as_html(page)), strict=True):
        write_text(workdir / f"{name}.{suffix}", text)
    return workdir / f"{name}.{SUFFIXES[0]}"
