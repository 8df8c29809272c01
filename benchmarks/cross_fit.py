"""Held-out evidence about the pretexts: teachers of folds, pre-trained in each way, on recordings they have not seen.

    python benchmarks/cross_fit.py --config=spsw:apl --workdir=runs/cross_fit [--config.data.split_seed=1 ...]

For each pretext (none, contrast, foreground) one network for each fold of the labelled recordings, all trained at once;
what they find in the recordings held out is scored. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from apl_jax.declarations import Choice, override
from apl_jax.registry import METHODS
from apl_jax.runs import context as reads
from apl_jax.runs.cross_fit_stage import CrossFitPart, cross_fit
from apl_jax.runs.plans import training_stage
from apl_jax.runs.run import carry_out, open_run
from apl_jax.runs.settings import Settings, read_config
from apl_jax.runs.stages import Stage, stage_fingerprint

NONE = "none"
PRETEXTS = (NONE, "contrast", "foreground")


def stages_of(settings: Settings, folds: int) -> list[Stage]:
    """Pre-training by each pretext, and cross-fitting from what it left."""
    learning, data = settings.learning, settings.data
    steps, found = learning.supervised.steps, []
    for pretext in PRETEXTS:
        start = "" if pretext == NONE else f"pretrain_{pretext}"
        if start:
            own = pretext == learning.pretext.name
            chosen = learning.pretext if own else Choice(pretext, METHODS[pretext].settings())
            found.append(training_stage(settings, start, chosen, learning.pretrain))
        part = CrossFitPart(
            f"cross_fit_{pretext}", settings.seed, settings.detector, learning.teacher, learning.supervised,
            (steps // 2, steps), folds, settings.evaluation.tiou, data.max_length_t,
            settings.runtime.steps_per_dispatch, start,
        )  # fmt: skip
        needs = (start,) if start else ()
        found.append(Stage(part.name, needs, (reads.TRAINING, reads.LABELLED), part, cross_fit))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    chosen, further = parser.parse_known_args()
    changes = dict(flag.removeprefix("--config.").split("=", 1) for flag in further)
    settings = override(read_config(chosen.config), changes, text=True)
    context, fingerprints = open_run(settings, chosen.workdir), {}
    with context.ledger.locked():
        for stage in stages_of(settings, chosen.folds):
            fingerprints[stage.name] = stage_fingerprint(stage, context, fingerprints)
            result = carry_out(stage, fingerprints[stage.name], context, "")
            if "held_out" in result:
                scores = {steps: f"{100 * s['average_map']:.1f}" for steps, s in result["held_out"].items()}
                words = ", ".join(f"{score} after {steps} steps" for steps, score in scores.items())
                print(
                    f"{stage.name}: {result['folds']} folds, {result['seconds']:.0f} s, held-out mAP {words}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
