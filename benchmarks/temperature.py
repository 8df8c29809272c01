"""Where the true class of held-out snippets falls when classes are divided, with and without a fitted temperature.

    python benchmarks/temperature.py --config=CONFIG --workdir=FOLDER [--config.name=value ...]

CONFIG is one of ``apl-jax run`` with a detector of any kind. One network for each fold of the labelled recordings is
trained on the others (the first stage of ``learning.method.name=auto``, which a run with the same settings in FOLDER
then finds done), and its class distributions of the recordings that it has not seen are divided. Printed are the
temperature with the least log loss, and, of the snippets whose target is wrong, the shares whose true class is
positive, negative and ambiguous.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.declarations import override
from apl_jax.evaluation.held_out import fit_temperature
from apl_jax.learning.class_division import ClassRelation, DivisionSettings, divide_classes, sharpened
from apl_jax.runs.cross_fit_stage import read_distributions
from apl_jax.runs.evidence import known_stages
from apl_jax.runs.run import carry_out, open_run
from apl_jax.runs.settings import read_config
from apl_jax.runs.stages import stage_fingerprint

STUDENT = {"learning.method.name": "auto", "learning.method.student.name": "apl_nontarget"}


def shares(probability: np.ndarray, truth: np.ndarray, temperature: float) -> tuple[float, list[float]]:
    """How often the target is wrong, and what the true class is to those snippets: positive, negative, ambiguous."""
    divided = sharpened(jnp.asarray(probability), temperature) if temperature != 1 else jnp.asarray(probability)
    relation = np.asarray(jax.jit(lambda p: divide_classes(p, DivisionSettings()))(divided))
    own = relation[np.arange(len(truth)), truth]
    wrong = own[own != ClassRelation.TARGET]
    kinds = (ClassRelation.POSITIVE, ClassRelation.NEGATIVE, ClassRelation.AMBIGUOUS)
    return len(wrong) / max(len(own), 1), [float((wrong == kind).mean()) if len(wrong) else 0.0 for kind in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    chosen, further = parser.parse_known_args()
    changes = dict(flag.removeprefix("--config.").split("=", 1) for flag in further)
    settings = override(override(read_config(chosen.config), changes, text=True), STUDENT)
    context = open_run(settings, chosen.workdir)
    stage = next(s for s in known_stages(settings, context.facts, {}) if s.name == "cross_fit_none")
    with context.ledger.locked():
        carry_out(stage, stage_fingerprint(stage, context.digest, {}), context, "1/1")
    steps = stage.handed.milestones[-1]
    probability, truth = read_distributions(context.ledger.folder(stage.name) / str(steps))
    found = fit_temperature(probability, truth)
    if found is None:
        sys.exit("no snippet of an action: more steps, or more labelled recordings")
    print(f"{chosen.workdir}: {found.snippets:,} held-out snippets, temperature {found.value:.2f}, log loss "
          f"{found.log_loss_before:.2f} -> {found.log_loss:.2f}")  # fmt: skip
    for temperature in (1.0, found.value):
        wrong, (positive, negative, ambiguous) = shares(probability, truth, temperature)
        print(f"  temperature {temperature:.2f}: target wrong {wrong:.0%}; there the true class is positive "
              f"{positive:.0%}, negative {negative:.0%}, ambiguous {ambiguous:.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
