"""The section on non-target classes: where the true class falls, and some whole distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apl_jax import plots
from apl_jax.data.files import load_json
from apl_jax.learning.nontarget import Part
from apl_jax.plots import FULL_WIDTH_IN
from apl_jax.report.elements import figure, fold, number_table, paragraph
from apl_jax.report.finished_run import FinishedRun
from apl_jax.report.tables import percents, stage_name

_NOTE = (
    "The classes of every snippet of the unlabelled videos are divided into target (the surest), positive (nearly as "
    "sure), negative (the least likely, together no likelier than the target) and ambiguous; shown is which of them "
    "the true class is. Where the target is wrong, positive learning is right to the share of positive, and negative "
    "learning wrong to that of negative."
)


def label_space_section(run: FinishedRun) -> str:
    """Shares per network, their numbers, and the example distributions of the last network; empty without any."""
    found: Mapping[str, Any] = run.results.get("label_space", {})
    if not found:
        return ""
    shares = {stage_name(name): value["foreground"] for name, value in found.items()}
    height = 1.1 + 0.32 * len(shares)
    drawing = figure(FULL_WIDTH_IN, height, "", plots.true_class_shares, shares)
    last = list(found)[-1]
    document = load_json(run.workdir / "stages" / f"{last}_label_space" / "label_space.json")
    rows, classes = document["examples"], document["classes"]
    examples = ""
    if rows:
        bars = min(len(classes), plots.MOST_CLASSES)
        tall = 0.5 + -(-len(rows) // 3) * (0.55 + 0.17 * bars)
        caption = f"Class distributions of snippets, {stage_name(last)} (Figure 6 of the paper); ★ is the true class"
        examples = figure(FULL_WIDTH_IN, tall, caption, plots.class_distributions, rows, classes)
    return paragraph(_NOTE) + drawing + fold("Numbers", number_table(_numbers(found))) + examples


def _numbers(found: Mapping[str, Any]) -> list[list[str]]:
    parts = [part.name.lower() for part in Part]
    rows = [["share of snippets, %", *parts]]
    for name, value in found.items():
        for kind, shares in value.items():
            rows.append([f"{stage_name(name)}, {kind}", *percents(shares[p] for p in parts)])
            wrong = shares["when_wrong"]
            rows.append([f"{stage_name(name)}, {kind}, target wrong", *percents(wrong.get(p) for p in parts)])
    return rows
