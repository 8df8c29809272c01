"""The files of a finished run as arrays: predictions, pseudo labels with every score, curves, and the truth.

Only the report and notebooks read a run this way; no stage does, since the truth is in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.dataset import open_truth
from apl_jax.data.files import load_json, refusal
from apl_jax.declarations import from_dict
from apl_jax.evaluation.average_precision import Instances
from apl_jax.evaluation.external import protocol_words
from apl_jax.evaluation.submission import read_submission
from apl_jax.settings import Settings
from apl_jax.structs import Reason


@dataclass(frozen=True)
class PseudoLabelTable:
    """Everything that a labelling stage considered, M rows; the video row is the place in the unlabelled list."""

    instances: Instances  # score = confidence
    reason: np.ndarray  # [M] values of Reason, never BELOW
    score: np.ndarray  # [M] class probability
    tiou: np.ndarray  # [M]
    tnd: np.ndarray  # [M]
    similarity: np.ndarray  # [M]


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run folder, opened for reading."""

    workdir: Path
    settings: Settings
    results: dict[str, Any]
    split: dict[str, Any]
    truth: Annotations  # the held-back ones included, of the classes that were taught
    scored_truth: Annotations  # the same of the classes that predictions have: others where the protocol names them

    def known(self, role: str) -> Annotations:
        """By what the videos of a role (labelled, unlabelled or evaluation) are judged."""
        return self.scored_truth if role == "evaluation" else self.truth

    def records(self, role: str) -> list[VideoRecord]:
        """The true annotations of the split's videos, as :meth:`known`."""
        known = self.known(role).videos
        missing = [video for video in self.split[role] if video not in known]
        if missing:
            where, remedy = f"{self.workdir / 'split.json'}: {role}", "use the data that the run was made with"
            raise refusal(where, f"video {missing[0]!r}, which has no annotation", "videos of the data set", remedy)
        return [known[video] for video in self.split[role]]

    def pseudo_labels(self, stage: str) -> PseudoLabelTable:
        """What the stage ``pseudo_label_<round>`` wrote; values that a hand-made label lacks are those of certainty."""
        database = load_json(self.workdir / "stages" / stage / "pseudo_labels.json")["database"]
        lists = ("annotations", "ignored", "unselected")
        rows = [
            (v, row)
            for v, video in enumerate(self.split["unlabelled"])
            for name in lists
            for row in database.get(video, {}).get(name, [])
        ]

        def column(name: str, default: float) -> np.ndarray:
            return np.array([row.get(name, default) for _, row in rows], np.float64)

        instances = Instances(
            np.array([v for v, _ in rows], np.int64),
            np.array([self.truth.classes.index(row["label"]) for _, row in rows], np.int64),
            np.array([row["segment"] for _, row in rows], np.float64).reshape(-1, 2),
            column("confidence", 1.0),
        )
        reason = np.array([Reason[row.get("reason", "kept").upper()] for _, row in rows], np.int64)
        unknown = self.settings.learning.selection.discriminator.unknown_similarity
        others = column("score", 1.0), column("tiou", 1.0), column("tnd", 0.0), column("similarity", unknown)
        return PseudoLabelTable(instances, reason, *others)

    def label_space(self, stage: str) -> dict[str, Any]:
        """What was kept of a network's class distributions: ``classes``, ``examples`` and perhaps ``plane``."""
        return load_json(self.workdir / "stages" / f"{stage}_label_space" / "label_space.json")

    def predictions(self, arm: str) -> Instances:
        """What an arm predicts on the evaluation videos."""
        path = self.workdir / "stages" / f"{arm}_evaluation" / "predictions.json"
        return read_submission(path, self.split["evaluation"], self.scored_truth.classes).instances

    def curves(self, stage: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Scalars that a training stage logged, name -> (steps [S], values [S]); empty without a log."""
        path = self.workdir / "stages" / stage / "metrics.jsonl"
        lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []  # the last may be half-written
        rows = [json.loads(line) for line in lines]
        names = [name for name in dict.fromkeys(n for row in rows for n in row) if name != "step"]
        pairs = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
        return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in pairs.items()}


def open_run(workdir: Path) -> FinishedRun:
    """Opens the folder of a finished run.

    Raises :class:`~apl_jax.data.annotations.DataError` naming the file when one is missing or broken, or when the data
    set has gone.
    """
    names = "settings", "results", "split"
    for name in names:
        if not (workdir / f"{name}.json").is_file():
            remedy = f"finish it with apl-jax run --workdir={workdir}, or give another --workdir"
            raise refusal(f"{workdir / name}.json", "no such file", "the folder of a finished run", remedy)
    settings, results, split = (load_json(workdir / f"{name}.json") for name in names)
    opened = from_dict(Settings, settings)
    data = opened.data
    asked = protocol_words(opened.evaluation, data.class_agnostic)
    if results["protocol"] != asked:  # the table would be of one protocol, the predictions beside it of another
        where, found = f"{workdir / 'results.json'}: protocol", f"{results['protocol']!r}"
        raise refusal(where, found, f"{asked!r} as in settings.json", "finish the run, which was begun again")
    scored = open_truth(data, named=opened.evaluation.protocol == "external")
    return FinishedRun(workdir, opened, results, split, open_truth(data), scored)
