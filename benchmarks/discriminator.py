"""What ICD can know: its similarity against held-back truth, under several ways to train it.

    python benchmarks/discriminator.py RUN

RUN is the folder of a finished run with ICD. Its teacher labels the evaluated videos, which a run with
``--config.data.validation_subjects`` takes from the training set. "Right" is a detection with an instance of its class
at tIoU .5 or more; "second" is a candidate that overlaps a kept label of its class by more than ``SECOND_TIOU``. For
each discriminator: the AUC with which similarity ranks right above wrong among kept labels, candidates, and candidates
that are not second detections; what EAP would drop; what MPP would promote.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import roc_auc_score

from apl_jax.declarations import Chain
from apl_jax.detectors import build_detector
from apl_jax.devices import shard_batch, to_host
from apl_jax.evaluation.detections import predict_batch
from apl_jax.learning.icd import IcdSettings, mean_similarity, pair_loss
from apl_jax.learning.selection import Known, unselected
from apl_jax.nn.discriminator import build_discriminator
from apl_jax.report import finished_run
from apl_jax.runs.context import EVALUATION, LABELLED, TRAINING, RunContext
from apl_jax.runs.labelling_stage import build_selection
from apl_jax.runs.run import open_run
from apl_jax.runs.settings import Settings
from apl_jax.structs import Array, Batch, Detections, PseudoLabels, PyTree, Reason

RIGHT_TIOU, SECOND_TIOU = 0.5, 0.1
STEPS = 500
RECIPES = [(rate, pairs) for rate in (1e-4, 3e-4, 1e-3, 3e-3) for pairs in (10, 64)]


class Verdicts(NamedTuple):
    """Detections of all videos ``[V, K]``: what selection made of them, and what they deserve."""

    kept: np.ndarray
    candidate: np.ndarray
    right: np.ndarray
    second: np.ndarray


def tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``[N, 2]``, ``[M, 2]`` -> ``[N, M]``."""
    shared = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
    shared = np.maximum(shared, 0)
    return shared / np.maximum((a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None] - shared, 1e-9)


def select(settings: Settings, context: RunContext, known: Known) -> PseudoLabels:
    """What the teacher detects in the evaluated videos, and what the links before ICD decide about it; as numpy."""
    selection = settings.learning.selection
    before = Chain(tuple(link for link in selection.links if link.name != "icd"))
    detector, link = build_detector(settings.detector, context.facts), build_selection(before, context.facts)

    def predict_and_observe(known: Known, videos: Batch) -> tuple[Detections, PyTree]:
        detections = predict_batch(detector, known.params["detector"], videos)
        return detections, link.observe(known, videos, detections)

    detections, observed = context.map_videos("evaluation", predict_and_observe, known)
    decide = jax.jit(lambda detections, observed: link.select(link.init(), unselected(detections), observed)[1])
    return to_host(decide(detections, observed))


def judge(context: RunContext, labels: PseudoLabels) -> Verdicts:
    """What selection decided, and the truth about it."""
    kept, candidate = labels.reason == Reason.KEPT, labels.reason == Reason.CANDIDATE
    right, second = np.zeros_like(kept), np.zeros_like(kept)
    table, detections = context.dataset.evaluation, labels.detections
    for v, (video, grid) in enumerate(zip(table.ids, table.grids, strict=True)):
        segments_s = grid.to_s(np.asarray(detections.segments_t[v]))
        classes, truth = np.asarray(detections.labels[v]), context.truth.videos[video]
        same = classes[:, None] == np.asarray(truth.labels)[None]
        right[v] = ((tiou(segments_s, np.asarray(truth.segments_s)) >= RIGHT_TIOU) & same).any(1)
        twin = (tiou(segments_s, segments_s) > SECOND_TIOU) & (classes[:, None] == classes[None]) & kept[v][None]
        second[v] = (twin & ~np.eye(len(classes), dtype=bool)).any(1)
    return Verdicts(kept, candidate, right, second)


def auc(similarity: np.ndarray, rows: np.ndarray, right: np.ndarray) -> str:
    """How often a right row has the larger similarity; "-" where one kind is missing."""
    return f"{roc_auc_score(right[rows], similarity[rows]):.2f}" if 0 < right[rows].sum() < rows.sum() else "-"


def print_line(name: str, similarity: np.ndarray, v: Verdicts, s: IcdSettings) -> None:
    """One discriminator."""
    drop, promote = v.kept & (similarity < s.eliminate_below), v.candidate & (similarity > s.promote_above)
    groups = v.kept, v.candidate, v.candidate & ~v.second
    ranks = " / ".join(auc(similarity, rows, v.right) for rows in groups)
    new = promote & ~v.second
    print(
        f"{name:44s} AUC {ranks:20s} drops {(drop & v.right).sum():4d} right {(drop & ~v.right).sum():3d} wrong; "
        f"promotes {(promote & v.right).sum():3d} right {(promote & ~v.right).sum():3d} wrong, of them "
        f"{(new & v.right).sum():3d} and {(new & ~v.right).sum():3d} not second",
        flush=True,
    )


def main() -> None:
    """Prints the counts, then a line per discriminator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    workdir = parser.parse_args().run
    settings = finished_run.open_run(workdir).settings
    icd, pairing = settings.learning.selection.settings_of("icd"), settings.learning.teacher.settings.icd
    if icd is None:
        parser.error(f"{workdir}: found the selection {settings.learning.selection.names}, expected one with icd")
    context = open_run(settings, workdir)
    inputs = context.inputs((TRAINING, LABELLED, EVALUATION))
    params, bank = inputs.parameters("teacher"), inputs.bank
    labels = select(settings, context, Known(params, bank, inputs.members))
    verdicts = judge(context, labels)
    for name in ("kept", "candidate"):
        rows = getattr(verdicts, name)
        right, second = (rows & verdicts.right).sum(), (rows & verdicts.second).sum()
        print(f"{name}: {rows.sum()}, right {right} ({100 * right / max(rows.sum(), 1):.1f} %), second {second}")

    table, found = inputs.resident("evaluation"), shard_batch(labels.detections, inputs.mesh)
    discriminator = build_discriminator(hidden=pairing.hidden, symmetric=icd.symmetric)

    @jax.jit
    def ask(params: PyTree) -> Array:
        return mean_similarity(Known({"discriminator": params}, bank, inputs.members), table, found, discriminator)

    def show(name: str, params: PyTree) -> None:
        print_line(name, np.asarray(ask(params))[: len(verdicts.kept)], verdicts, icd)

    show("as the run trained it", params["discriminator"])
    for rate, pairs in RECIPES:
        optimizer = optax.adamw(rate, weight_decay=pairing.weight_decay)
        fresh = discriminator.init(jax.random.key(1), inputs.facts.feature_width)

        @jax.jit
        def train(start: PyTree, key: Array, pairs: int = pairs, optimizer=optimizer) -> tuple[PyTree, Array]:
            def step(carry: tuple, key: Array):
                params, state = carry
                loss = lambda p: pair_loss(key, p, bank, discriminator, dataclasses.replace(pairing, pairs=pairs))
                (_, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(params)
                updates, state = optimizer.update(gradient, state, params)
                return (optax.apply_updates(params, updates), state), accuracy

            (trained, _), accuracy = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, STEPS))
            return trained, accuracy[-STEPS // 10 :].mean()

        trained, accuracy = train(fresh, jax.random.key(2))
        name = f"learning rate {rate:g}, {pairs} pairs: accuracy {100 * jnp.float32(accuracy):.0f} %"
        show(name, trained)


if __name__ == "__main__":
    main()
