"""Timelines of videos: which instances a lane shows, and what a reader sees when pointing at one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.evaluation.average_precision import Instances, instances_from_annotations
from apl_jax.evaluation.label_quality import PseudoLabelTable
from apl_jax.report import figures as plots
from apl_jax.report.elements import drawn
from apl_jax.report.figures import FULL_WIDTH_IN, REASON_COLOURS, Lane, Panel
from apl_jax.report.finished_run import FinishedRun
from apl_jax.report.tables import stage_name, variant_name
from apl_jax.structs import Reason

TIMELINE_VIDEOS = 6  # of each kind
TIMELINE_LENGTHS = 50  # a timeline shows at most so many median true durations: shorter instances could not be seen
TIMELINE_CONFIDENCE = 0.1  # predictions below are not drawn


def unlabelled_timelines(run: FinishedRun, colours: Sequence[str]) -> dict[str, Any] | None:
    """The pseudo labels of the last round beside the truth; None for a run without pseudo labels."""
    name = next(reversed(run.results["pseudo_labels"]), None)
    if name is None:
        return None
    records, table, classes = run.records("unlabelled"), run.pseudo_labels(name), run.truth.classes
    moved = np.isin(table.reason, (Reason.PROMOTED, Reason.DROPPED))
    moves = np.bincount(table.instances.video[moved], minlength=len(records))
    most = [int(v) for v in np.argsort(-moves, kind="stable")[: TIMELINE_VIDEOS // 2] if moves[v]]
    rest = [v for v in range(len(records)) if v not in most]
    chosen = sorted([*most, *(rest[i] for i in _spread(TIMELINE_VIDEOS - len(most), len(rest)))])
    panels = [_panel(records[v], classes, _reason_lanes(table, v, classes)) for v in chosen]
    note = (
        f"{stage_name(name)}. {len(chosen)} of {len(records)} videos"
        + (f": {len(most)} in which ICD changed most, the others" if most else ",")
        + " at equal distances in the list. The more confident, the more opaque; point at an instance to read it."
    )
    return _timelines(classes, panels, colours, note)


def _reason_lanes(table: PseudoLabelTable, video: int, classes: Sequence[str]) -> list[Lane]:
    lanes = []
    for reason, colour in REASON_COLOURS.items():
        rows = np.flatnonzero((table.instances.video == video) & (table.reason == reason))
        numbers = zip(table.score[rows], table.tiou[rows], table.tnd[rows], table.similarity[rows], strict=True)
        details = [f", score {p:.2f}, tIoU {u:.2f}, tND {d:.3f}, similarity {s:.2f}" for p, u, d, s in numbers]
        lanes.append(predicted_lane(reason.name.lower(), table.instances.select(rows), classes, details, colour))
    return lanes


def evaluation_timelines(run: FinishedRun, colours: Sequence[str]) -> dict[str, Any] | None:
    """The predictions of the final variant and of a baseline beside the truth; None for a run without scores."""
    variants = run.results["variants"]
    wanted = (str(run.results["final_variant"]), "supervised_matched", "supervised")
    shown = [variant for variant in dict.fromkeys(wanted) if variant in variants][:2]
    records, predictions = run.records("evaluation"), {variant: run.predictions(variant) for variant in shown}
    panels, classes = [], run.scored_truth.classes
    for v in _spread(TIMELINE_VIDEOS, len(records)) if shown else ():
        lanes = []
        for variant, found in predictions.items():
            rows = (found.video == v) & (found.score >= TIMELINE_CONFIDENCE)
            lanes.append(predicted_lane(variant_name(variant), found.select(rows), classes))
        panels.append(_panel(records[v], classes, lanes))
    note = (
        f"{len(panels)} of {len(records)} videos, at equal distances in the list, not chosen by result. The more "
        f"confident, the more opaque; predictions below {TIMELINE_CONFIDENCE:g} are not drawn. Point at an instance to "
        "read it."
    )
    return _timelines(classes, panels, colours, note)


def _timelines(
    classes: Sequence[str], panels: Sequence[Panel], colours: Sequence[str], note: str
) -> dict[str, Any] | None:
    if not panels:
        return None
    numbered = len(colours) >= plots.NUMBERED_FROM
    present = sorted({int(c) for panel in panels for lane in panel.lanes for c in lane.labels})
    return {
        "note": note,
        "colours": {(f"{c} {classes[c]}" if numbered else classes[c]): colours[c] for c in present},
        "figure": drawn(FULL_WIDTH_IN, plots.timeline_height(panels), "", plots.timelines, panels, colours),
    }


def _panel(record: VideoRecord, classes: Sequence[str], lanes: Sequence[Lane]) -> Panel:
    low, high = _visible_span(record)
    whole = high - low >= record.duration_s
    part = f"{record.duration_s:,.0f} s" if whole else f"{low:,.0f} to {high:,.0f} of {record.duration_s:,.0f} s"
    return Panel(f"{record.id}, {part}", (low, high), [true_lane("truth", record, classes), *lanes])


def _visible_span(record: VideoRecord) -> tuple[float, float]:
    """The part of a video that is drawn: all, or as much as can be seen where most true instances are."""
    starts, ends = record.segments_s.T
    span = TIMELINE_LENGTHS * float(np.median(ends - starts)) if len(starts) else record.duration_s
    if span >= record.duration_s:
        return 0.0, record.duration_s
    lows = np.clip(starts - 0.02 * span, 0, record.duration_s - span)
    held = [((starts >= low) & (ends <= low + span)).sum() for low in lows]
    low = float(lows[int(np.argmax(held))])
    return low, low + span


def _spread(count: int, total: int) -> list[int]:
    """``count`` places of a list at equal distances."""
    return sorted({int(x) for x in np.linspace(0, total - 1, min(count, total)).round()})


# Lanes


def true_lane(name: str, record: VideoRecord, classes: Sequence[str]) -> Lane:
    """The annotated instances of a video."""
    truth = instances_from_annotations([record])
    return Lane(name, truth.segments_s, truth.label, None, _tips(truth, classes))


def predicted_lane(
    name: str, found: Instances, classes: Sequence[str], details: Sequence[str] = (), colour: str = ""
) -> Lane:
    """Predicted instances, the surer the more opaque; ``details`` are added to what a reader sees at each."""
    details = details or [""] * len(found)
    tips = [
        f"{tip}, confidence {score:.2f}{more}"
        for tip, score, more in zip(_tips(found, classes), found.score, details, strict=True)
    ]
    return Lane(name, found.segments_s, found.label, found.score, tips, colour)


def _tips(instances: Instances, classes: Sequence[str]) -> list[str]:
    rows = zip(instances.label, instances.segments_s, strict=True)
    return [f"{classes[label]}, {start_s:.1f} to {end_s:.1f} s" for label, (start_s, end_s) in rows]
