"""What the numbers of a table are, how they are made and where they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from apl_jax.compilation.estimates import counted_cost
from apl_jax.compilation.programs import batch_shape
from apl_jax.compilation.shapes import shapes_of
from apl_jax.data.files import load_json, write_json
from apl_jax.declarations import Checked, number
from apl_jax.detectors import build_detector
from apl_jax.learning.icd import DISCRIMINATOR
from apl_jax.learning.method import DETECTOR, build_objective
from apl_jax.report.tables import MEASURES as LABEL_MEASURES
from apl_jax.runs.context import TRAINING, UNLABELLED_TRUTH
from apl_jax.runs.frames import representations, sample_frames
from apl_jax.runs.plans import plan_stages
from apl_jax.runs.run import carry_out, open_run, run
from apl_jax.runs.settings import Settings
from apl_jax.runs.stages import stage_fingerprint
from apl_jax.runs.training_stage import build_method
from apl_jax.structs import PyTree
from apl_jax.tables.table import Number

_PRETRAIN = "pretrain"
RESULTS, MEASURED = "results.json", "measured.json"


@dataclass(frozen=True)
class Measure:
    """A kind of numbers.

    ``carry_out(settings, folder, shared)`` makes everything that they are read from and writes the file ``done`` last;
    ``numbers(document, read)`` are those of a row, by column, of that file.
    """

    unit: str
    done: str
    carry_out: Callable[[Settings, Path, Path], Any]
    numbers: Callable[[Mapping[str, Any], str], dict[str, Number]]
    factor: float = 1.0  # from the file's numbers to the unit
    decimals: int = 1
    by_hand: bool = True  # whether `apl-jax run` makes all of it


def _whole_run(settings: Settings, folder: Path, shared: Path) -> None:
    run(settings, folder, shared=shared)


def _average_precision(results: Mapping[str, Any], read: str) -> dict[str, Number]:
    variant = results["final_variant"] if read == "final" else read
    score = results["variants"].get(variant, {"map": {}, "average_map": None})
    return {**score["map"], "average": score["average_map"]}


def _label_quality(results: Mapping[str, Any], read: str) -> dict[str, Number]:
    """Figure 3(c), of the last round."""
    rounds = list(results["pseudo_labels"].values())
    quality = rounds[-1]["quality"][read] if rounds else {}
    return {words: quality.get(name) for name, words in LABEL_MEASURES.items()}


def _measured(document: Mapping[str, Any], read: str) -> dict[str, Number]:
    return document[read]


# Table S2, S5: a linear classifier on frames


@dataclass(frozen=True)
class FrameSettings(Checked):
    """What the linear classifier sees. It is a part of what the number is: no row changes it."""

    videos: int = number(200, at_least=2, at_most=1_000_000)  # unlabelled recordings, from half of which it learns
    frames: int = number(10_000, at_least=2, at_most=10_000_000)  # of these, equally many of each class
    iterations: int = number(1000, at_least=1, at_most=1_000_000)  # of its solver, at most


def _frame_accuracy(settings: Settings, folder: Path, shared: Path) -> None:
    """Pre-trains and asks a linear classifier; the true classes of frames are read for that alone."""
    context = open_run(settings, folder, shared)
    with context.ledger.locked():
        stage = next((s for s in plan_stages(settings, context.facts) if s.name == _PRETRAIN), None)
        stages = {}
        if stage is not None:
            carry_out(stage, stage_fingerprint(stage, context.digest, {}), context, "1/1")
            stages = {_PRETRAIN: _PRETRAIN}
        inputs = context.inputs((TRAINING, UNLABELLED_TRUTH))
        sample = FrameSettings()
        frames = sample_frames(inputs, sample.videos, sample.frames, settings.seed)
        seen = representations(settings.detector, inputs, stages, frames, settings.seed)
        write_json(
            folder / MEASURED, {name: frame_scores(rows, frames.kind, frames.row) for name, rows in seen.items()}
        )


def frame_scores(rows: np.ndarray, kinds: np.ndarray, videos: np.ndarray) -> dict[str, Number]:
    """Accuracy and mean recall over classes of logistic regression on frames ``rows [M, E]``: it learns from the frames
    of every second video and is asked about those of the others (APL, Tables S2 and S5). None where a half is empty."""
    taught = videos % 2 == 0
    if not taught.any() or taught.all() or len(np.unique(kinds[taught])) < 2:
        return {"accuracy": None, "recall": None}
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=FrameSettings().iterations))
    found = classifier.fit(rows[taught], kinds[taught]).predict(rows[~taught])
    asked = kinds[~taught]
    recall = [float((found[asked == kind] == kind).mean()) for kind in np.unique(asked)]
    return {"accuracy": float((found == asked).mean()), "recall": float(np.mean(recall))}


# Table S6: parameters and operations


def _size(settings: Settings, folder: Path, shared: Path) -> None:
    """Parameters, in millions, and operations of a forward pass, in 10^9, as XLA counts them; nothing is trained."""
    del shared
    facts, learning = shapes_of(settings.data).facts, settings.learning
    detector = build_detector(settings.detector, facts)
    method, method_context = build_method(learning.teacher, settings.detector, learning.supervised, facts)
    objective = build_objective(method, method_context)
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])
    videos = batch_shape((1,), settings.data.max_length_t, facts.feature_width)
    forward = jax.jit(lambda params, videos: jax.tree.leaves(detector.apply(params, videos, None)))
    flops = float(counted_cost(forward.lower(params[DETECTOR], videos))["flops"])
    one = {"parameters, M": _millions(params[DETECTOR]), "GFLOP": flops / 1e9}
    asked = params.get(DISCRIMINATOR, {})
    pairs = learning.teacher.settings.icd.pairs if asked else 0
    more = sum(2 * x.size * pairs for x in jax.tree.leaves(asked) if x.ndim == 2)
    everything = {"parameters, M": _millions([params[DETECTOR], asked]), "GFLOP": (flops + more) / 1e9}
    write_json(folder / MEASURED, {"detector": one, "everything": everything})


def _millions(params: PyTree) -> float:
    return sum(x.size for x in jax.tree.leaves(params)) / 1e6


MEASURES = {
    "map": Measure("mAP, %", RESULTS, _whole_run, _average_precision, 100),
    "labels": Measure("%", RESULTS, _whole_run, _label_quality, 100),
    "frames": Measure("%", MEASURED, _frame_accuracy, _measured, 100, by_hand=False),
    "size": Measure("", MEASURED, _size, _measured, decimals=3, by_hand=False),
}


def read_numbers(measure: str, folder: Path, read: str) -> dict[str, Number] | None:
    """The numbers of one run in the measure's unit, by column; None where the run is not done."""
    kind = MEASURES[measure]
    if not (folder / kind.done).exists():
        return None
    found = kind.numbers(load_json(folder / kind.done), read)
    return {name: None if value is None else kind.factor * value for name, value in found.items()}
