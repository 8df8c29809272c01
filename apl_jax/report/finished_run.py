"""The files of a finished run as arrays: predictions, pseudo labels with every score, curves, and the truth.

Only the report and notebooks read a run this way; no stage does, since the truth is in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.data.annotations import Annotations, VideoRecord
from apl_jax.data.files import load_json, refusal
from apl_jax.declarations import from_dict
from apl_jax.evaluation.average_precision import Instances
from apl_jax.evaluation.external import protocol_words
from apl_jax.evaluation.label_quality import PseudoLabelTable, read_pseudo_labels
from apl_jax.evaluation.submission import read_submission
from apl_jax.report.truth import check_truths, open_truths
from apl_jax.runs.artefacts import sealed_file
from apl_jax.runs.settings import Settings
from apl_jax.runs.training_stage import PSEUDO_LABELS
from apl_jax.settings import DataSettings, EvaluationSettings
from apl_jax.training.writers import METRICS, whole_lines


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run folder, opened for reading."""

    workdir: Path
    document: dict[str, Any]  # settings.json
    results: dict[str, Any]
    split: dict[str, Any]
    truth: Annotations  # the held-back ones included, of the classes that were taught
    scored_truth: Annotations  # the same of the classes that predictions have: others where the protocol names them

    @functools.cached_property
    def settings(self) -> Settings:
        """The run's settings; whatever they name must be registered, which a page does without."""
        return from_dict(Settings, self.document)

    @functools.cached_property
    def chosen(self) -> Settings:
        """The settings by which the run trained in the end: those that it decided, where it decided any."""
        decided = self.results.get("decisions", {})
        return from_dict(Settings, self.document | {n: decided[n] for n in ("learning", "detector") if n in decided})

    @property
    def selection_chain(self) -> list[str]:
        """The links of the selection of pseudo labels, by name."""
        return self._selection["chain"]

    def selection_setting(self, name: str) -> Any:
        """A setting of the first link of the selection that has one of this name; None where none has."""
        links = (self._selection.get(link, {}) for link in self.selection_chain)
        return next((link[name] for link in links if name in link), None)

    @property
    def _selection(self) -> dict[str, Any]:
        """The selection as configured, or as it was decided."""
        decided = self.results.get("decisions", {}).get("learning")
        return (decided or self.document["learning"])["selection"]

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
        """What the stage ``pseudo_label_<round>`` wrote."""
        path = sealed_file(self.workdir / "stages" / stage, PSEUDO_LABELS)
        return read_pseudo_labels(path, self.split["unlabelled"], self.truth.classes)

    def label_space(self, stage: str) -> dict[str, Any]:
        """What was kept of a network's class distributions: ``classes``, ``examples`` and perhaps ``plane``."""
        return load_json(sealed_file(self.workdir / "stages" / f"{stage}_label_space", "label_space.json"))

    def predictions(self, variant: str) -> Instances:
        """What a variant predicts on the evaluation videos."""
        path = sealed_file(self.workdir / "stages" / f"{variant}_evaluation", "predictions.json")
        return read_submission(path, self.split["evaluation"], self.scored_truth.classes).instances

    def curves(self, stage: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Scalars that a training stage logged, name -> (steps [S], values [S]); empty without a log."""
        rows = [row for _, row in whole_lines(self.workdir / "stages" / stage / METRICS)]
        names = [name for name in dict.fromkeys(n for row in rows for n in row) if name != "step"]
        pairs = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
        return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in pairs.items()}


def read_documents(workdir: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The JSON files of these names in the folder of a finished run; ``results`` must be among them.

    Raises :class:`~apl_jax.data.files.DataError` where one is missing, and for a run of version 0.1.
    """
    for name in names:
        if not (workdir / f"{name}.json").is_file():
            remedy = "finish the run, or give the folder of another one as `workdir`"
            raise refusal(f"{workdir / name}.json", "no such file", "the folder of a finished run", remedy)
    documents = {name: load_json(workdir / f"{name}.json") for name in names}
    if "final_variant" not in documents["results"]:
        remedy = "run its command again with this version and another `workdir`, or read it with apl_jax 0.1"
        raise refusal(str(workdir), "a run of apl_jax 0.1", "a run of version 0.2", remedy)
    return list(documents.values())


def open_run(workdir: Path) -> FinishedRun:
    """Opens the folder of a finished run.

    Raises :class:`~apl_jax.data.files.DataError` naming the file when one is missing or broken, or when the data
    set has gone.
    """
    settings, results, split = read_documents(workdir, ("settings", "results", "split"))
    data = from_dict(DataSettings, settings["data"], "data")
    evaluation = from_dict(EvaluationSettings, settings["evaluation"], "evaluation")
    asked = protocol_words(evaluation, data.class_agnostic)
    if results["protocol"] != asked:  # the table would be of one protocol, the predictions beside it of another
        where, found = f"{workdir / 'results.json'}: protocol", f"{results['protocol']!r}"
        raise refusal(where, found, f"{asked!r} as in settings.json", "finish the run, which was begun again")
    truths = open_truths(settings)
    check_truths(workdir, results, split, truths)
    return FinishedRun(workdir, settings, results, split, truths["unlabelled"], truths["evaluation"])
