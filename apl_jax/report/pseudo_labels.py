"""The section on pseudo labels: what each round selected, and how right it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apl_jax.evaluation.average_precision import divide_truth, instances_from_annotations
from apl_jax.evaluation.label_quality import PseudoLabelTable, quality_per_class
from apl_jax.evaluation.scoring import on_annotated
from apl_jax.report import figures as plots
from apl_jax.report.elements import Drawing, drawn, number_table
from apl_jax.report.figures import HALF_WIDTH_IN
from apl_jax.report.finished_run import FinishedRun
from apl_jax.report.tables import counts, no_pseudo_labels, quality_rows, stage_name

_HEIGHT_IN = 2.6


def pseudo_label_section(run: FinishedRun, colours: Sequence[str]) -> dict[str, Any] | None:
    """Every round's counts, quality and figures; None for a run that trains with labelled videos only."""
    rounds = [
        {
            "title": stage_name(name),
            "counts": counts(labels),
            "table": number_table(quality_rows(labels["quality"]), plain=2),
            "figures": _figures(run, run.pseudo_labels(name), labels, colours),
        }
        for name, labels in run.results["pseudo_labels"].items()
    ]
    missing = no_pseudo_labels(run.results)
    return {"rounds": rounds, "missing": missing} if rounds or missing else None


def _figures(
    run: FinishedRun, table: PseudoLabelTable, labels: Mapping[str, Any], colours: Sequence[str]
) -> list[Drawing]:
    marks = [(run.selection_setting("tau_neg"), "τ neg"), (labels["tau_pos"], "τ pos")]
    name = "confidence = score × quality"
    figures = [
        _histogram("Confidence", name, table.instances.score, table.reason, marks),
        drawn(HALF_WIDTH_IN, _HEIGHT_IN, "Quality (Figure 3(c) of the paper)", plots.quality_bars, labels["quality"]),
    ]
    if "icd" in run.selection_chain:
        marks = [
            (run.selection_setting("eliminate_below"), "EAP below"),
            (run.selection_setting("promote_above"), "MPP above"),
        ]
        name = "similarity to labelled instances of the class"
        figures.append(_histogram("Similarity (ICD)", name, table.similarity, table.reason, marks))
    return [*figures, _class_counts(run, table, colours)]


def _histogram(
    caption: str, name: str, values: np.ndarray, reason: np.ndarray, marks: Sequence[tuple[float | None, str]]
) -> Drawing:
    """A histogram by reason; thresholds that the run's selection does not have are not drawn."""
    known = {name: [(value, words) for value, words in marks if value is not None]}
    return drawn(HALF_WIDTH_IN, _HEIGHT_IN, caption, plots.reason_histograms, {name: values}, reason, known)


def _class_counts(run: FinishedRun, table: PseudoLabelTable, colours: Sequence[str]) -> Drawing:
    classes, records = run.truth.classes, run.records("unlabelled")
    truth, known = instances_from_annotations(records), on_annotated(records, table.instances)
    labels, reason = table.instances.select(known), table.reason[known]
    per_class = quality_per_class(labels, reason, truth, classes, "final").values()
    true = np.bincount(divide_truth(truth)[0].label, minlength=len(classes))
    selected = np.array([entry["count"] for entry in per_class])
    correct = np.array([round(entry["count"] * (entry["precision"] or 0)) for entry in per_class])
    shown = min(len(classes), plots.MOST_BARS)
    caption = "Classes" if shown == len(classes) else f"The {shown} most frequent of {len(classes)} classes"
    height = max(_HEIGHT_IN, 0.8 + 0.34 * shown)
    return drawn(HALF_WIDTH_IN, height, caption, plots.class_counts, classes, true, selected, correct, colours)
