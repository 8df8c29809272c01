"""Predictions shown to people: the surest as a table, and timelines as a page or as pictures. No run folder needed."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.files import write_text
from apl_jax.evaluation.average_precision import Instances
from apl_jax.evaluation.thresholds import Thresholds
from apl_jax.report import figures as plots
from apl_jax.report.elements import drawn
from apl_jax.report.figures import FULL_WIDTH_IN, Lane, Panel
from apl_jax.report.figures.drawing import short_name
from apl_jax.report.rendering import Section, render_page
from apl_jax.report.tables import aligned, percent
from apl_jax.report.timelines import predicted_lane, true_lane
from apl_jax.text import counted, file_names, say

PAGE_VIDEOS = 100  # of a page; a folder of pictures has no limit
MOST_LANES = 20  # classes of one video
PICTURE_DPI = 150


def print_surest(instances: Instances, records: Sequence[VideoRecord], classes: Sequence[str], most: int) -> None:
    """Prints the ``most`` predictions of the highest score, of all videos."""
    rows = [["video", "class", "start, s", "end, s", "score"]]
    for i in np.argsort(-instances.score, kind="stable")[:most]:
        start_s, end_s = instances.segments_s[i]
        names = records[int(instances.video[i])].id, classes[int(instances.label[i])]
        rows.append([*names, f"{start_s:.2f}", f"{end_s:.2f}", f"{instances.score[i]:.3f}"])
    if len(rows) > 1:
        say(aligned(rows), end="\n\n")
    say(f"{len(rows) - 1} of {counted(len(instances), 'instance')} in {counted(len(records), 'video')}")


def print_thresholds(thresholds: Thresholds, classes: Sequence[str]) -> None:
    """Prints the threshold of each class and what it gives."""
    rows = [["class", "instances", "threshold", "F1, %", "precision", "recall"]]
    for c, name in enumerate(classes):
        known = not np.isnan(thresholds.score[c])
        values = [thresholds.f1[c], thresholds.precision[c], thresholds.recall[c]]
        cells = [f"{thresholds.score[c]:.3f}" if known else "–", *(percent(v if known else None) for v in values)]
        rows.append([name, f"{thresholds.truth[c]:,}", *cells])
    say(aligned(rows))


def write_timelines(
    path: Path, instances: Instances, records: Sequence[VideoRecord], classes: Sequence[str], title: str
) -> Path:
    """Draws every video's predictions, and its annotated instances where it has some; returns ``path``.

    ``path`` with the suffix .html becomes one self-contained page of at most :data:`PAGE_VIDEOS` videos; anything else
    a folder with ``<video>.png``. Raises ``OSError`` when the disk refuses.
    """
    colours = plots.class_colours(np.bincount(instances.label, minlength=len(classes)))
    bounds = np.searchsorted(instances.video, np.arange(len(records) + 1))
    shown = len(records) if path.suffix.lower() != ".html" else min(len(records), PAGE_VIDEOS)
    panels = (_panel(records[v], instances.select(np.arange(bounds[v], bounds[v + 1])), classes) for v in range(shown))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in scripts that the font lacks
        if path.suffix.lower() == ".html":
            _write_page(path, list(panels), colours, title, len(records))
        else:
            _write_pictures(path, [record.id for record in records], panels, colours)
    return path


def _write_page(path: Path, panels: Sequence[Panel], colours: Sequence[str], title: str, videos: int) -> None:
    height = lambda panel: plots.timeline_height([panel])
    figures = [drawn(FULL_WIDTH_IN, height(panel), "", plots.timelines, [panel], colours) for panel in panels]
    section = Section("Timelines", "timelines", {"figures": figures, "videos": videos})
    write_text(path, render_page("predictions.html", "Predictions", title, [section]))


def _write_pictures(folder: Path, names: Sequence[str], panels: Iterable[Panel], colours: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, panel in zip(file_names(names), panels, strict=True):
        file = io.BytesIO()
        canvas = Figure((FULL_WIDTH_IN, plots.timeline_height([panel])), layout="constrained")
        plots.timelines(canvas, [panel], colours)
        canvas.savefig(file, format="png", dpi=PICTURE_DPI, facecolor="white")
        beside = folder / f".{stem}.tmp"
        beside.write_bytes(file.getvalue())
        os.replace(beside, folder / f"{stem}.png")


def _panel(record: VideoRecord, found: Instances, classes: Sequence[str]) -> Panel:
    """The timeline of a video: the annotated instances, if any, and a lane per class, the surest first."""
    lanes = [true_lane("annotated", record, classes)] if len(record.labels) else []
    best = np.zeros(len(classes))
    np.maximum.at(best, found.label, found.score)
    present = np.flatnonzero(np.bincount(found.label, minlength=len(classes)))
    present = present[np.argsort(-best[present], kind="stable")]
    for c in map(int, present[:MOST_LANES]):
        lanes.append(predicted_lane(short_name(classes[c]), found.select(found.label == c), classes))
    hidden = len(present) - MOST_LANES
    more = f", {hidden} more classes are not drawn" if hidden > 0 else ""
    title = f"{record.id}, {record.duration_s:,.1f} s, {len(found):,} instances{more}"
    return Panel(title, (0.0, record.duration_s), lanes or [Lane("nothing", np.zeros((0, 2)), np.zeros(0, np.int64))])
