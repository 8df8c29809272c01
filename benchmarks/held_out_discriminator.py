"""ICD on held-out recordings: does its similarity tell right detections from wrong ones, however it is trained?

    python benchmarks/held_out_discriminator.py RUN [RUN ...]

RUN is the folder of a finished run with ``learning.method.name=auto``. The networks of its first cross-fitting detect
in the labelled recordings that they have not seen; a discriminator knows the labelled instances of the others. It is
compared as it was trained beside the network (Eq. 8, the rate of A17), and trained by itself until it knows all its
pairs: on pairs of two instances ("apl"), and of random cuts ("cuts"). Printed is the AUC of similarity for right
against wrong detections above tau_neg; what dropping the least similar tenth, and promoting the most similar tenth
below the label threshold, would do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np
import optax

from apl_jax.detectors import build_detector
from apl_jax.devices import to_host
from apl_jax.evaluation.average_precision import instances_from_annotations
from apl_jax.evaluation.detections import predict_batch, to_instances
from apl_jax.evaluation.held_out import Judged, discrimination, judge
from apl_jax.learning.icd import DISCRIMINATOR, IcdPairSettings, InstanceBank, mean_similarity, pair_loss
from apl_jax.learning.selection import Known
from apl_jax.nn.discriminator import InstanceDiscriminator, build_discriminator
from apl_jax.report import finished_run
from apl_jax.runs.context import LABELLED, TRAINING, StageInputs
from apl_jax.runs.cross_fit_stage import folds_of, known_of_folds
from apl_jax.runs.evidence import TEACHER
from apl_jax.runs.run import open_run
from apl_jax.structs import Array, Batch, Detections, PyTree

TAU_NEG, SHARE = 0.15, 0.1
PAIRS, STEPS, RATE = 64, 2000, 1e-3


def train(
    discriminator: InstanceDiscriminator, bank: InstanceBank, settings: IcdPairSettings, width: int, seed: int
) -> tuple[PyTree, float]:
    """A discriminator by itself, and how many of its last pairs it judged right."""
    optimizer = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)

    @jax.jit
    def run(bank: InstanceBank) -> tuple[PyTree, Array]:
        params = discriminator.init(jax.random.key(seed), width)

        def step(carry: tuple, key: Array) -> tuple[tuple, Array]:
            loss = lambda p: pair_loss(key, p, bank, discriminator, settings)
            (_, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(carry[0])
            updates, state = optimizer.update(gradient, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), accuracy

        keys = jax.random.split(jax.random.key(seed + 1), STEPS)
        (params, _), accuracy = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return params, accuracy[-STEPS // 10 :].mean()

    params, accuracy = run(bank)
    return params, float(accuracy)


def held_out(inputs: StageInputs, known: list[Known], found: list[Detections], discriminators: list[PyTree]) -> Judged:
    """The detections of each network in its own fold, with their similarity, judged."""
    folds, table = folds_of(inputs, len(known)), inputs.table("labelled")
    videos: Batch = jax.tree.map(lambda x: x[: len(folds)], inputs.resident("labelled"))
    similarity = []
    for own, detections, params in zip(known, found, discriminators, strict=True):
        discriminator = build_discriminator(hidden=params["kernel"].shape[1], symmetric=True)
        asked = own._replace(params={DISCRIMINATOR: params})
        similarity.append(np.asarray(mean_similarity(asked, videos, detections, discriminator)))
    of_own_fold = lambda *leaves: np.stack([leaves[k][v] for v, k in enumerate(folds)])
    detections, chosen = jax.tree.map(of_own_fold, *found), of_own_fold(*similarity)
    durations_s = [record.duration_s for record in table.records]
    instances, column = to_instances(detections, table.grids, chosen, durations_s)
    return judge(instances_from_annotations(table.records), instances, column)


def describe(name: str, judged: Judged, threshold: float) -> str:
    """One discriminator in a line."""
    rows = judged.confidence > TAU_NEG
    right, wrong = (rows & judged.right).sum(), (rows & ~judged.right).sum()
    auc = discrimination(judged, TAU_NEG)
    least, most = np.quantile(judged.similarity[rows], [SHARE, 1 - SHARE]) if rows.any() else (0.0, 1.0)
    kept = rows & (judged.confidence >= threshold)
    drop, promote = kept & (judged.similarity <= least), rows & ~kept & (judged.similarity >= most)
    counts = [f"{(part & judged.right).sum()} right, {(part & ~judged.right).sum()} wrong" for part in (drop, promote)]
    known = "-" if auc is None else f"{auc:.2f}"
    return f"{name:<42} AUC {known} ({right} right, {wrong} wrong)  drops {counts[0]}  promotes {counts[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for workdir in parser.parse_args().runs:
        run = finished_run.open_run(workdir)
        decision = run.results["decisions"][TEACHER]
        place = next(iter(decision["tried"]))  # the plain way
        inputs = open_run(run.settings, workdir).inputs((TRAINING, LABELLED))
        folds = folds_of(inputs, run.settings.learning.method.settings.folds)
        known = known_of_folds(inputs, inputs.parameters(place), folds)
        detector = build_detector(run.settings.detector, inputs.facts)
        predict = lambda own, videos, detector=detector: predict_batch(detector, own.params["detector"], videos)
        found = [to_host(inputs.map_videos("labelled", predict, own)) for own in known]
        threshold = (decision["operating_point"] or {"threshold": 0.5})["threshold"]
        print(f"{workdir}: {len(folds)} labelled recordings, label threshold {threshold:.2f}")
        beside = [own.params[DISCRIMINATOR] for own in known]
        print(describe("  beside the network", held_out(inputs, known, found, beside), threshold), flush=True)
        for positives in ("apl", "cuts"):
            settings = IcdPairSettings(pairs=PAIRS, positives=positives, learning_rate=RATE)
            discriminator, width = (
                build_discriminator(hidden=settings.hidden, symmetric=True),
                inputs.facts.feature_width,
            )
            alone = [train(discriminator, own.instances, settings, width, k) for k, own in enumerate(known)]
            accuracy = np.mean([value for _, value in alone])
            name = f"  {positives}, by itself, {accuracy:.0%} of its pairs"
            print(describe(name, held_out(inputs, known, found, [p for p, _ in alone]), threshold), flush=True)


if __name__ == "__main__":
    main()
