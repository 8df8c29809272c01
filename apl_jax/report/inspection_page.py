"""What :mod:`apl_jax.inspection.inspection` found, as lines for the terminal and as a page, ``inspect.html``."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.data.files import write_text
from apl_jax.inspection.inspection import Inspection, Uncovered
from apl_jax.inspection.survey import Finding, Survey
from apl_jax.report.elements import Drawing, drawn, folded_classes, number_table
from apl_jax.report.figures import FULL_WIDTH_IN, HALF_WIDTH_IN, MOST_BARS
from apl_jax.report.figures.data_set import class_bars, length_histogram
from apl_jax.report.rendering import Section, render_page
from apl_jax.report.tables import aligned
from apl_jax.text import for_file_name

PAGE = "inspect.html"
SHOWN_CLASSES = 12  # on the terminal; the page shows all
SHOWN_INSTANCES = 200  # of those that nothing covers, on the page
SHOWN_RATES = 5
WIDTH = 110  # characters of a line of the terminal
_QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}


def terminal_text(found: Inspection) -> str:
    """All that was found, in lines: tables, then errors, then notes."""
    facts = [f"{name:<11}{fact}" for name, fact in grid_facts(found)]
    parts = [
        f"{headline(found)}\n{found.root.absolute()}",
        aligned(subset_rows(found)),
        split_words(found),
        aligned(class_rows(found, SHOWN_CLASSES)),
        aligned(length_rows(found)),
        "\n".join(facts),
        *(_listing(name, kind) for name, kind in (("errors", found.errors), ("notes", found.notes)) if kind),
    ]
    return "\n\n".join(part for part in parts if part)


def write_inspection(found: Inspection, folder: Path, command: str) -> Path:
    """Writes ``inspect.html`` into a folder, which is made, and returns its path; ``OSError`` if it cannot."""
    subsets = {"table": number_table(subset_rows(found)), "split": split_words(found)}
    sections = [
        Section("Errors", "findings", found.errors),
        Section("Notes", "findings", found.notes),
        Section("Videos and instances", "subsets", subsets),
        Section("Lengths", "lengths", _lengths(found)),
        Section("Classes", "classes", _classes(found)),
        Section("Grid", "grid", dict([*grid_facts(found), ("command", command)])),
        Section("Instances that no grid point covers", "uncovered", _uncovered(found)),
    ]
    summary = f"{_count(len(found.errors), 'error')}, {_count(len(found.notes), 'note')}. {found.root.absolute()}"
    path = folder / PAGE
    write_text(path, render_page("inspection.html", headline(found), summary, sections))
    return path


def headline(found: Inspection) -> str:
    """The data set and its size."""
    videos, instances = len(found.durations_s), len(found.lengths_s)
    version = f" (variant {found.variant})" if found.variant else ""
    return (
        f"{found.name}{version}: {_count(videos, 'video')}, {_count(instances, 'instance')}, "
        f"{len(found.classes)} {'class' if len(found.classes) == 1 else 'classes'}"
    )


# Facts, the same on the terminal and on the page


def subset_rows(found: Inspection) -> list[list[str]]:
    """Videos, instances and hours of each subset, the head first."""
    rows = [["subset", "videos", "instances", "hours"]]
    for subset, (videos, instances, seconds) in found.subsets.items():
        rows.append([subset or "(none)", f"{videos:,}", f"{instances:,}", f"{seconds / 3600:,.2f}"])
    return rows


def split_words(found: Inspection) -> str:
    """How a run would split the videos."""
    split = found.split
    if split is None:
        return "No split: see the errors."
    return (
        f"A run sees {split.ratio:g} of the labels (seed {split.seed}): {len(split.labelled):,} videos labelled, "
        f"{len(split.unlabelled):,} unlabelled, {len(split.evaluation):,} evaluated."
    )


def class_rows(found: Inspection, most: int = 0) -> list[list[str]]:
    """Instances of each class by subset and in the labelled part, the most frequent first; ``most`` 0: all.

    A single class more than ``most`` is shown: the line that counts it would be as long.
    """
    most += most > 0 and len(found.classes) == most + 1
    total = np.sum(list(found.class_counts.values()), axis=0)
    order = [int(c) for c in np.argsort(-total, kind="stable")]
    rows = [["instances", *(subset or "(none)" for subset in found.class_counts), "labelled part"]]
    for c in order[:most] if most and len(order) > most else order:
        counts = [*(count[c] for count in found.class_counts.values()), found.labelled_counts[c]]
        rows.append([found.classes[c], *(f"{n:,}" for n in counts)])
    if most and len(order) > most:
        rest = order[most:]
        columns = [*found.class_counts.values(), found.labelled_counts]
        rows.append([f"{len(rest)} more", *(f"{int(count[rest].sum()):,}" for count in columns)])
    return rows


def length_rows(found: Inspection) -> list[list[str]]:
    """Quantiles of the lengths of videos and instances, in seconds and in rows, the head first."""
    lengths = {"video, s": found.durations_s, "instance, s": found.lengths_s}
    if found.survey is not None:
        lengths |= {"video, rows": found.survey.rows, "instance, rows": found.survey.lengths_t}
    rows = [["length", *_QUANTILES]]
    for name, values in lengths.items():
        if len(values):
            rows.append([name, *(_number(q) for q in np.quantile(values, list(_QUANTILES.values())))])
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def grid_facts(found: Inspection) -> list[tuple[str, str]]:
    """Clocks, shapes and memory, in words."""
    if len(found.rates) > SHOWN_RATES:
        rates = f"{min(found.rates):g} to {max(found.rates):g} ({len(found.rates):,} different rates)"
    else:
        rates = ", ".join(f"{rate:g} ({_count(n, 'video')})" for rate, n in found.rates.items())
    facts = [("fps", rates)]
    survey = found.survey
    if survey is None or not len(survey.rows):
        return facts
    seconds = survey.seconds_per_row
    each = f"{seconds.min():.4g}" + (f" to {seconds.max():.4g}" if np.ptp(seconds) > 1e-9 else "") + " s per row"
    kind = "rows as extracted" if survey.windowed else "windows of raw signals"
    table, steps = survey.table_bytes, "T" if found.grid == "rows" else survey.rows[0]
    return [
        *facts,
        ("features", f"[{steps}, {survey.width}], {kind}"),
        ("grid", f"{_grid_words(found, survey)}: {each}"),
        (
            "round trip",
            f"seconds -> grid -> seconds within {survey.round_trip_s:.1g} s "
            f"({survey.round_trip_float32_s:.1g} s as float32, which targets are)",
        ),
        (
            "memory",
            f"the rows of all videos need {size(sum(table.values()))} (training {size(table['training'])}, evaluation "
            f"{size(table['evaluation'])})",
        ),
    ]


def _grid_words(found: Inspection, survey: Survey) -> str:
    """How the rows that were extracted, or windowed, become those that detectors see."""
    words = f"window {found.window}, stride {found.stride}" if found.stride else "rows that span their video"
    if found.grid == "rows":
        return words
    if len(survey.extracted):
        low, high = survey.extracted.min(), survey.extracted.max()
        words += f", {low:,} rows" if low == high else f", {low:,} to {high:,} rows"
    how = "resized" if found.grid == "resize" else "pooled as in BSN"
    return f"{words}, {how} to {survey.rows[0]:,}"


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# The terminal


def _listing(name: str, findings: Sequence[Finding]) -> str:
    lines = [name]
    for finding in findings:
        number = f"{finding.count:,}" if finding.count else "-"
        lines += _wrapped(f"{number:>7}  ", finding.what)
        for example in finding.examples:
            lines += _wrapped(" " * 9 + "· ", example)
        rest = finding.count - len(finding.examples)
        if finding.examples and rest:
            lines.append(f"{'':9}· and {rest:,} more")
    return "\n".join(lines)


def _wrapped(first: str, text: str) -> list[str]:
    # Paths and names may be long, and break nowhere.
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def default_folder(name: str) -> Path:
    """Where the page of a data set goes when nobody says: in the current folder."""
    return Path("inspect_" + _file_name(name))


def _file_name(name: str) -> str:
    """The name of a data set as part of a file's."""
    return for_file_name(name or "data")


def next_step(found: Inspection) -> str:
    """What to do now."""
    if found.errors:
        return f"{_count(len(found.errors), 'error')}: a run would stop there. Correct them, and inspect again."
    folder = f"runs/{_file_name(found.name)}"
    return f"No errors. Next: a run with these settings, and with a new folder as `workdir`, such as {folder}."


# The page


def _lengths(found: Inspection) -> dict[str, Any]:
    survey = found.survey
    span = float(np.median(survey.seconds_per_row)) if survey is not None and len(survey.seconds_per_row) else 0.0
    figures = [_histogram("Durations of videos", found.durations_s, "videos", (0.0, ""))]
    if len(found.lengths_s):
        mark = span, f"one row, {span:.3g} s"
        figures.append(_histogram("Lengths of instances", found.lengths_s, "instances", mark))
    return {"figures": figures, "table": number_table(length_rows(found))}


def _histogram(title: str, values: np.ndarray, counted: str, mark: tuple[float, str]) -> Drawing:
    return drawn(HALF_WIDTH_IN, 2.6, title, length_histogram, values, "seconds", counted, mark)


def _classes(found: Inspection) -> dict[str, Any] | None:
    if not found.classes:
        return None
    total = np.sum(list(found.class_counts.values()), axis=0)
    shown = min(len(found.classes), MOST_BARS)
    title = "" if shown == len(found.classes) else f"The {shown} most frequent of {len(found.classes)} classes"
    arrays = found.classes, total, found.labelled_counts
    return {
        "figure": drawn(FULL_WIDTH_IN, 0.9 + 0.24 * shown, title, class_bars, *arrays),
        "folded": folded_classes(len(found.classes)),
        "table": number_table(class_rows(found)),
    }


def _uncovered(found: Inspection) -> list[dict[str, Any]]:
    """The instances that no grid point covers, by cause."""
    causes = dict.fromkeys(hit.cause for hit in found.uncovered)
    hits = {cause: [hit for hit in found.uncovered if hit.cause == cause] for cause in causes}
    return [
        {
            "title": f"{len(some):,} {cause}",
            "rows": _instance_rows(some[:SHOWN_INSTANCES], found.classes),
            "more": f"and {len(some) - SHOWN_INSTANCES:,} more" if len(some) > SHOWN_INSTANCES else "",
        }
        for cause, some in hits.items() if some
    ]  # fmt: skip


def _instance_rows(hits: Sequence[Uncovered], classes: Sequence[str]) -> list[list[str]]:
    rows = [["video", "part", "class", "start, s", "end, s"]]
    return rows + [[h.video, h.role, classes[h.label], f"{h.start_s:.3f}", f"{h.end_s:.3f}"] for h in hits]
