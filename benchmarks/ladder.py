"""Rungs of self-training on several data sets, each configured by ``apl-jax configure``: runs what is not done, then
prints what is.

    python benchmarks/ladder.py --data=spsw,../shared/data/sfinge --seeds=0,1,2 --rungs=apl,cuts --out=runs/ladder
    python benchmarks/ladder.py --out=runs/ladder --only_table

Interrupted, the same command goes on. A rung is a set of flags of ``apl-jax run`` (see RUNGS); all but the first one of
a data set and a seed train the semi-supervised variant only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

BASELINES = "('supervised','supervised_matched','semi_supervised')"
NO_PRETEXT = ("--config.learning.pretrain.steps=0",)
ONE_DEVIATION = ("--config.learning.selection.dynamic.deviations=1.0",)
MEAN = ("--config.learning.selection.dynamic.deviations=0.0",)
CUTS = (
    "--config.learning.teacher.icd.positives=cuts", "--config.learning.method.icd.positives=cuts",
    "--config.learning.selection.icd.promote_overlap=0.1",
)  # fmt: skip
NO_ICD = ("--config.learning.selection.chain=('dynamic',)",)
RUNGS: dict[str, tuple[str, ...]] = {
    "apl": (*MEAN, f"--config.variants={BASELINES}"),
    "one_deviation": ONE_DEVIATION,
    "cuts": (*ONE_DEVIATION, *CUTS),
    "no_icd": (*ONE_DEVIATION, *NO_ICD),
    "no_pretext": (*ONE_DEVIATION, *CUTS, *NO_PRETEXT),
    "no_pretext_no_icd": (*ONE_DEVIATION, *NO_ICD, *NO_PRETEXT),
    "foreground": (*ONE_DEVIATION, *CUTS, "--config.learning.pretext.name=foreground"),
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "apl_jax.cli", *arguments]


def carry_out(data: str, seed: int, rung: str, ratio: float, out: Path, further: list[str]) -> None:
    """One run, unless it is done."""
    name = Path(data).name
    workdir = out / f"{name}_{ratio:g}_{seed}_{rung}"
    if (workdir / "results.json").exists():
        return
    config = out / f"{name}_{ratio:g}_{seed}.py"
    known = [f"--config.data.label_ratio={ratio}", f"--config.data.split_seed={seed}", f"--config.seed={seed}"]
    if not config.exists():
        root = [] if name == "spsw" else [f"--root={data}"]
        subprocess.run(command("configure", *root, f"--out={config}", *known), check=True, capture_output=True)
    first = out / f"{name}_{ratio:g}_{seed}_apl"
    if not workdir.exists() and (first / "results.json").exists():  # stages that are the same are not done again
        shutil.copytree(first, workdir)
        (workdir / "results.json").unlink()
    variants = [] if rung == "apl" else ["--config.variants=('semi_supervised',)"]
    method = "--config.learning.method.name=apl"
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.runtime.progress=False", method]
    flags += [*variants, *RUNGS[rung]]
    done = subprocess.run(command("run", *flags, *further), capture_output=True, text=True)
    print(workdir.name, "done" if done.returncode == 0 else done.stderr[-500:], flush=True)


def table(out: Path) -> None:
    """Average mAP by data set and seed: baselines, teachers, students, and what pseudo labels were worth."""
    for path in sorted(out.glob("*/results.json")):
        results = json.loads(path.read_text())
        scores = {name: 100 * value["average_map"] for name, value in results["variants"].items()}
        text = " ".join(f"{name} {score:5.1f}" for name, score in scores.items())
        for name, labels in results["pseudo_labels"].items():
            quality = labels["quality"]
            sets = (
                f"{s} {quality[s]['precision'] or 0:.2f}/{quality[s]['recall'] or 0:.2f}"
                for s in ("before_icd", "final")
            )
            text += f" | {name} tau {labels['tau_pos']:.2f} " + " ".join(sets)
        print(f"{path.parent.name:<34}{text}")
    _means(out)


def _means(out: Path) -> None:
    rows: dict[tuple[str, str], list[float]] = {}
    for path in sorted(out.glob("*/results.json")):
        name, ratio, _, rung = path.parent.name.split("_", 3)
        for variant, value in json.loads(path.read_text())["variants"].items():
            rows.setdefault((f"{name} {ratio}", f"{rung}: {variant}"), []).append(100 * value["average_map"])
    for (name, what), scores in sorted(rows.items()):
        deviation = np.std(scores, ddof=1) if len(scores) > 1 else 0.0
        print(f"{name:<16}{what:<40}{np.mean(scores):6.1f} ± {deviation:4.1f}  ({len(scores)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="spsw")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rungs", default=",".join(RUNGS))
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only_table", action="store_true")
    chosen, further = parser.parse_known_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    if not chosen.only_table:
        for seed in map(int, chosen.seeds.split(",")):
            for rung in chosen.rungs.split(","):
                for data in chosen.data.split(","):
                    carry_out(data, seed, rung, chosen.ratio, chosen.out, further)
    table(chosen.out)


if __name__ == "__main__":
    main()
