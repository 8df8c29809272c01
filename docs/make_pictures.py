"""Draws the picture of README and of the first page, from a finished run.

    apl-jax run --config=spsw:demo --workdir=runs/demo
    python docs/make_pictures.py runs/demo

It writes ``docs/images/timelines.svg``: some evaluated recordings, at equal distances in the list and not chosen by
result, with the true instances and those that the baseline and the method found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from apl_jax.evaluation.average_precision import instances_from_annotations
from apl_jax.report.figures import FULL_WIDTH_IN, Panel, class_colours, timeline_height, timelines, to_svg
from apl_jax.report.finished_run import FinishedRun, open_run
from apl_jax.report.timelines import TIMELINE_CONFIDENCE, predicted_lane, true_lane

IMAGES = Path(__file__).parent / "images"
VIDEOS = 3
LEGEND_IN = 0.35


def main() -> None:
    """Reads the folder of the run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="folder of a finished run")
    page = IMAGES / "timelines.svg"
    page.write_text(draw(open_run(parser.parse_args().workdir)), "utf-8")
    print(page)


def draw(run: FinishedRun) -> str:
    """The picture as SVG, on white, for pages of any colour."""
    records, classes = run.records("evaluation"), run.scored_truth.classes
    final = str(run.results["final_variant"])
    names = {"supervised_matched": "supervised only", final: run.results["method"].upper()}
    found = {variant: run.predictions(variant) for variant in names if variant in run.results["variants"]}
    panels = []
    for v in np.linspace(0, len(records) - 1, VIDEOS + 2).round().astype(int)[1:-1]:
        lanes = [true_lane("true actions", records[v], classes)]
        for variant, instances in found.items():
            rows = (instances.video == v) & (instances.score >= TIMELINE_CONFIDENCE)
            lanes.append(predicted_lane(names[variant], instances.select(rows), classes))
        panels.append(Panel(f"recording {records[v].id}", (0.0, records[v].duration_s), lanes))
    truth = instances_from_annotations(records)
    colours = class_colours(np.bincount(truth.label, minlength=len(classes)))
    figure = Figure(figsize=(FULL_WIDTH_IN * 0.8, timeline_height(panels) + LEGEND_IN), facecolor="white")
    timelines(figure, panels, colours)
    patches = [Patch(facecolor=c, label=name.replace("_", " ")) for c, name in zip(colours, classes, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(classes), frameon=False, fontsize=8)
    return to_svg(figure)


if __name__ == "__main__":
    main()
