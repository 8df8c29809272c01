"""What a run decided by itself (``learning.method.name=auto``), and the evidence: in words, tables and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apl_jax.report import figures as plots
from apl_jax.report.elements import Drawing, drawn, number_table
from apl_jax.report.figures import HALF_WIDTH_IN
from apl_jax.report.finished_run import FinishedRun
from apl_jax.report.tables import decisions, percent
from apl_jax.runs.evidence import MODEL, TEACHER


def decision_section(run: FinishedRun) -> dict[str, Any] | None:
    """Sentences, the scores of everything that was tried, and the reliability of confidence; None for a run that
    decided nothing."""
    words = decisions(run.results)
    if not words:
        return None
    made = run.results["decisions"]
    tried = made[TEACHER]["tried"] | made.get(MODEL, {}).get("tried", {})
    rows = [["held-out recordings", "steps", "found", "AP of all classes together, %", "mAP, %"]]
    for entry in tried.values():
        scores = percent(entry["pooled"]), percent(entry["average_map"])
        rows.append([entry["name"], f"{entry['steps']:,}", f"{entry['found']:,}", *scores])
    return {"words": words, "table": number_table(rows, plain=3), "figures": _figures(made[TEACHER]["calibration"])}


def _figures(calibration: Mapping[str, Any]) -> list[Drawing]:
    if not calibration:
        return []
    names = {
        f"confidence, error {calibration['error']:.2f}": calibration["diagram"],
        f"calibrated, error {calibration['corrected_error']:.2f}": calibration["corrected_diagram"],
    }
    caption = "Reliability of the teacher's confidence on held-out recordings"
    return [drawn(HALF_WIDTH_IN, 2.6, caption, plots.reliability, names)]
