"""What a run's average mAP would be without its second guesses, and if classes did not matter.

    python benchmarks/error_kinds.py RUN [RUN ...]

Three columns for the final variant of each finished run: average mAP; the same without detections that overlap a surer
one of another class (tIoU above .5); and average precision of actions of any class. Two methods that differ in the
first only differ in second guesses; if in all three, in where actions are found and how surely. It looks at evaluated
videos and chooses nothing.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from apl_jax.evaluation.average_precision import Instances, average_precision, instances_from_annotations
from apl_jax.report.finished_run import open_run

OVERLAP = 0.5


def first_guesses(found: Instances) -> Instances:
    """Detections that overlap no surer one of another class."""
    kept = np.ones(len(found), bool)
    start_s, end_s = found.segments_s.T
    for video in np.unique(found.video):
        rows = np.flatnonzero(found.video == video)
        rows = rows[np.argsort(-found.score[rows], kind="stable")]
        for place, row in enumerate(rows):
            surer = rows[:place][kept[rows[:place]]]
            common = np.minimum(end_s[row], end_s[surer]) - np.maximum(start_s[row], start_s[surer])
            union = end_s[row] - start_s[row] + end_s[surer] - start_s[surer] - common
            close = common > OVERLAP * union
            kept[row] = not (close & (found.label[surer] != found.label[row])).any()
    return found.select(kept)


def blind(instances: Instances) -> Instances:
    """The same instances, all of one class."""
    return dataclasses.replace(instances, label=np.zeros_like(instances.label))


def main(folders: list[Path]) -> None:
    print(f"{'run':<40}{'average mAP':>14}{'first guesses':>16}{'any class':>12}")
    for folder in folders:
        run = open_run(folder)
        truth = instances_from_annotations(run.records("evaluation"))
        found, tiou = run.predictions(str(run.results["final_variant"])), run.settings.evaluation.tiou
        classes = len(run.scored_truth.classes)
        cases = (truth, found, classes), (truth, first_guesses(found), classes), (blind(truth), blind(found), 1)
        scores = [
            average_precision(true, guess, tiou, count).as_dict(tuple(map(str, range(count))))["average_map"]
            for true, guess, count in cases
        ]
        print(f"{folder!s:<40}{100 * scores[0]:>14.1f}{100 * scores[1]:>16.1f}{100 * scores[2]:>12.1f}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
