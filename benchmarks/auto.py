"""``configure`` and ``run`` with method=auto on several data sets, against the plain detector trained in four ways.

    python benchmarks/auto.py --data=spsw,../shared/data/sfinge --seeds=0,1,2 --out=runs/auto [--same_time] [--average]
    python benchmarks/auto.py --out=runs/auto --only_table

The plain detector is trained for as many steps as auto's model, for the number of steps that cross-fitting chose for
it, with ``--same_time`` for as long as auto took by the clock, cross-fitting included, and with ``--average`` as often
as auto has networks, whose outputs are averaged: that row says what self-training adds to averaging. Interrupted, the
same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from apl_jax.declarations import Choice
from apl_jax.detectors.ensemble import EnsembleSettings
from apl_jax.report.tables import mean_and_deviation
from apl_jax.runs.run import run
from apl_jax.runs.settings import read_config
from apl_jax.tables.statistics import difference

ENTRY = (sys.executable, "-m", "apl_jax.cli")
BASELINES = {"supervised": "chosen steps", "supervised_matched": "as many steps", "same_time": "as much time"}
AVERAGE = "average"  # the plain detector's; a part of the method rather than a baseline of the issue
BESIDE = ("same_time", AVERAGE)  # in folders of their own


def carry_out(data: str, seed: int, ratio: float, out: Path, further: list[str]) -> Path:
    """One run of auto, unless it is done."""
    name = f"{Path(data).name}_{ratio:g}_{seed}"
    config, workdir = out / f"{name}.py", out / name
    if (workdir / "results.json").exists():
        return workdir
    if not config.exists():
        root = [] if data == "spsw" else [f"--root={data}"]
        known = [f"--config.data.label_ratio={ratio}", f"--config.data.split_seed={seed}", f"--config.seed={seed}"]
        subprocess.run([*ENTRY, "configure", *root, f"--out={config}", *known], check=True, capture_output=True)
    flags = [f"--config={config}", f"--workdir={workdir}", "--config.runtime.progress=False"]
    done = subprocess.run([*ENTRY, "run", *flags, *further], capture_output=True, text=True)
    (out / f"{name}.log").write_text(done.stdout + done.stderr)
    print(name, "done" if done.returncode == 0 else done.stderr[-500:], flush=True)
    return workdir


def seconds(workdir: Path, *stages: str) -> float:
    """How long stages took altogether; all but those of baselines and of scoring where none are named."""
    total = 0.0
    for path in (workdir / "stages").glob("*/done.json"):
        name = path.parent.name
        measured = name.endswith(("_evaluation", "_quality", "_label_space")) or name.startswith("supervised")
        if name in stages if stages else not measured:
            total += json.loads(path.read_text())["result"]["seconds"]
    return total


def same_time(workdir: Path, out: Path) -> None:
    """The plain detector for as long as auto took, at the speed of the baseline with as many steps."""
    target = out / f"{workdir.name}_same_time"
    if (target / "results.json").exists() or not (workdir / "results.json").exists():
        return
    steps = json.loads((workdir / "results.json").read_text())["steps"]["supervised_matched"]
    longer = round(steps * seconds(workdir) / seconds(workdir, "supervised_matched"))
    flags = [f"--config={out / workdir.name}.py", f"--workdir={target}", "--config.runtime.progress=False"]
    flags += ["--config.variants=('supervised',)", f"--config.learning.supervised.steps={longer}"]
    subprocess.run([*ENTRY, "run", *flags], check=True, capture_output=True)


def average(workdir: Path, out: Path) -> None:
    """As many plain networks as auto has, for the number of steps that cross-fitting chose."""
    target = out / f"{workdir.name}_{AVERAGE}"
    if (target / "results.json").exists() or not (workdir / "results.json").exists():
        return
    settings = read_config(str(out / f"{workdir.name}.py"))
    steps = json.loads((workdir / "results.json").read_text())["steps"]["supervised"]
    networks, learning = settings.learning.method.settings.networks, settings.learning
    longer = dataclasses.replace(learning.supervised, steps=steps)
    plain = dataclasses.replace(
        settings, variants=("supervised",), detector=Choice("ensemble", EnsembleSettings(settings.detector, networks)),
        learning=dataclasses.replace(learning, supervised=longer),
        runtime=dataclasses.replace(settings.runtime, progress=False),
    )  # fmt: skip
    run(plain, target)


def row(workdir: Path, out: Path) -> dict[str, float]:
    """Average mAP of all rows of a run, in %."""
    results = json.loads((workdir / "results.json").read_text())
    found = {name: 100 * value["average_map"] for name, value in results["variants"].items()}
    found["final"] = 100 * results["average_map"]
    for name in BESIDE:
        other = out / f"{workdir.name}_{name}" / "results.json"
        if other.exists():
            found[name] = 100 * json.loads(other.read_text())["average_map"]
    return found


def table(out: Path) -> None:
    """Every run, then each data set: mean, deviation, differences to the baselines with their p-values."""
    by_data: dict[str, list[dict[str, float]]] = {}
    for path in sorted(out.glob("*/results.json")):
        if path.parent.name.endswith(BESIDE):
            continue
        results, found = json.loads(path.read_text()), row(path.parent, out)
        decisions = results["decisions"]
        model = decisions.get("decide_model", {}).get("model", "-")
        text = "  ".join(f"{name} {score:.1f}" for name, score in found.items())
        print(f"{path.parent.name:<18}{model:<8}{text}  ({seconds(path.parent):.0f} s)")
        for decision in ("decide_teacher", "decide_model"):
            for sentence in decisions.get(decision, {}).get("because", ()):
                print(f"    {sentence}")
        by_data.setdefault(path.parent.name.rpartition("_")[0], []).append(found)
    every = [one for rows in by_data.values() for one in rows]
    for name, rows in [*by_data.items(), ("all", every)] if every else []:
        _summary(name, rows)


def _summary(name: str, rows: list[dict[str, float]]) -> None:
    final = [one["final"] for one in rows]
    print(f"\n{name}: auto {mean_and_deviation(final)}, {len(rows)} runs")
    for variant, words in (BASELINES | {AVERAGE: "their average"}).items():
        pairs = [(one["final"], one[variant]) for one in rows if variant in one]
        if not pairs:
            continue
        ours, theirs = zip(*pairs, strict=True)
        gain = difference(dict(enumerate(ours)), dict(enumerate(theirs)))
        assert gain is not None
        tests = {"t-test": gain.t_test, "Wilcoxon": gain.wilcoxon}
        test = "".join(f", {name} p {p:.3f}" for name, p in tests.items() if p is not None)
        ahead = f"ahead by {mean_and_deviation(gain.values)}, worst {min(gain.values):+.1f}"
        print(f"  {words:<14}{mean_and_deviation(theirs)}, {ahead}{test}")
    best = [one["final"] - max(one[v] for v in BASELINES if v in one) for one in rows]
    print(f"  best of them in each run: ahead by {mean_and_deviation(best)}, worst {min(best):+.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="spsw")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--same_time", action="store_true")
    parser.add_argument("--average", action="store_true")
    parser.add_argument("--only_table", action="store_true")
    chosen, further = parser.parse_known_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for seed in [] if chosen.only_table else map(int, chosen.seeds.split(",")):
        for data in chosen.data.split(","):
            workdir = carry_out(data, seed, chosen.ratio, chosen.out, further)
            if chosen.same_time:
                same_time(workdir, chosen.out)
            if chosen.average:
                average(workdir, chosen.out)
    table(chosen.out)


if __name__ == "__main__":
    main()
