"""What ICD can know: its similarity against held-back truth, under several ways to train it.

    python tests/bench/discriminator.py RUN

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

from apl_jax.devices import to_host
from apl_jax.evaluation.detections import predict_batch
from apl_jax.learning.instances import discriminator_loss, mean_similarity
from apl_jax.learning.selection import build_selector
from apl_jax.report.finished_run import open_run
from apl_jax.runs.context import Room
from apl_jax.runs.run import open_room
from apl_jax.runs.training_stage import trained_parameters
from apl_jax.structs import Array, Detections, PyTree

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


def judge(room: Room, detections: Detections) -> Verdicts:
    """Selection, and the truth about it."""
    selector = build_selector(room.settings.learning.selection)
    _, selected = jax.jit(lambda d: selector.select((), d, len(room.dataset.classes)))(detections)
    kept, candidate = np.asarray(selected.positive_mask), np.asarray(selected.candidate_mask)
    right, second = np.zeros_like(kept), np.zeros_like(kept)
    table = room.dataset.evaluation
    for v, (video, grid) in enumerate(zip(table.ids, table.grids, strict=True)):
        segments_s = grid.to_s(np.asarray(detections.segments_t[v]))
        labels, truth = np.asarray(detections.labels[v]), room.truth.videos[video]
        same = labels[:, None] == np.asarray(truth.labels)[None]
        right[v] = ((tiou(segments_s, np.asarray(truth.segments_s)) >= RIGHT_TIOU) & same).any(1)
        twin = (tiou(segments_s, segments_s) > SECOND_TIOU) & (labels[:, None] == labels[None]) & kept[v][None]
        second[v] = (twin & ~np.eye(len(labels), dtype=bool)).any(1)
    return Verdicts(kept, candidate, right, second)


def auc(similarity: np.ndarray, rows: np.ndarray, right: np.ndarray) -> str:
    """How often a right row has the larger similarity; "-" where one kind is missing."""
    return f"{roc_auc_score(right[rows], similarity[rows]):.2f}" if 0 < right[rows].sum() < rows.sum() else "-"


def print_line(name: str, similarity: np.ndarray, v: Verdicts, room: Room) -> None:
    """One discriminator."""
    s = room.settings.learning.selection
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
    room = open_room(open_run(workdir).settings, workdir)
    learning = room.settings.learning
    parts = room.ingredients(room.settings, learning.supervised)
    params = trained_parameters(room, room.settings, "teacher")
    predict = lambda known, videos: predict_batch(parts.detector, known, videos)
    detections: Detections = to_host(room.map_videos("evaluation", predict, params["detector"]))
    verdicts = judge(room, detections)
    for name in ("kept", "candidate"):
        rows = getattr(verdicts, name)
        right, second = (rows & verdicts.right).sum(), (rows & verdicts.second).sum()
        print(f"{name}: {rows.sum()}, right {right} ({100 * right / max(rows.sum(), 1):.1f} %), second {second}")

    bank, table = room.bank, room.evaluation

    @jax.jit
    def similarity(discriminator: PyTree) -> Array:
        return mean_similarity(
            discriminator, bank, room.members, table, detections.segments_t, detections.labels, parts.discriminator,
            learning.selection.discriminator, room.mesh.size,
        )  # fmt: skip

    rows = len(verdicts.kept)
    print_line("as the run trained it", np.asarray(similarity(params["discriminator"]))[:rows], verdicts, room)
    for rate, pairs in RECIPES:
        settings = dataclasses.replace(learning.selection.discriminator, pairs=pairs)
        optimizer = optax.adamw(rate, weight_decay=settings.weight_decay)
        fresh = parts.discriminator.init(jax.random.key(1), room.feature_width)

        @jax.jit
        def train(start: PyTree, key: Array, settings=settings, optimizer=optimizer) -> tuple[PyTree, Array]:
            def step(carry: tuple, key: Array):
                params, state = carry
                loss = lambda p: discriminator_loss(key, p, bank, parts.discriminator, settings)
                (_, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(params)
                updates, state = optimizer.update(gradient, state, params)
                return (optax.apply_updates(params, updates), state), accuracy

            (trained, _), accuracy = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, STEPS))
            return trained, accuracy[-STEPS // 10 :].mean()

        trained, accuracy = train(fresh, jax.random.key(2))
        name = f"learning rate {rate:g}, {pairs} pairs: accuracy {100 * jnp.float32(accuracy):.0f} %"
        print_line(name, np.asarray(similarity(trained))[:rows], verdicts, room)


if __name__ == "__main__":
    main()
