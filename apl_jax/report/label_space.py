"""The section on non-target classes: where the true class falls, and some whole distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apl_jax.report import figures as plots
from apl_jax.learning.nontarget import ClassRelation
from apl_jax.report.figures import FULL_WIDTH_IN
from apl_jax.report.elements import figure, fold, number_table, paragraph
from apl_jax.report.finished_run import FinishedRun
from apl_jax.report.tables import percents, stage_name

_NOTE = (
    "The classes of every snippet of the unlabelled videos are divided into target (the surest), positive (nearly as "
    "sure), negative (the least likely, together no likelier than the target) and ambiguous; shown is which of them "
    "the true class is. Where the target is wrong, positive learning is right to the share of positive, and negative "
    "learning wrong to that of negative."
)


HARDEST = 5  # classes in one plane
Group = tuple[str, np.ndarray, str]  # name, rows [M] bool, colour


def label_space_section(run: FinishedRun) -> str:
    """Shares per network, their numbers, and the example distributions of the last network; empty without any."""
    found: Mapping[str, Any] = run.results.get("label_space", {})
    if not found:
        return ""
    shares = {stage_name(name): value["foreground"] for name, value in found.items()}
    height = 1.1 + 0.32 * len(shares)
    drawing = figure(FULL_WIDTH_IN, height, "", plots.true_class_shares, shares)
    last = list(found)[-1]
    document = run.label_space(last)
    rows, classes = document["examples"], document["classes"]
    examples = ""
    if rows:
        bars = min(len(classes), plots.MOST_CLASSES)
        tall = 0.5 + -(-len(rows) // 3) * (0.55 + 0.17 * bars)
        caption = f"Class distributions of snippets, {stage_name(last)} (Figure 6 of the paper); ★ is the true class"
        examples = figure(FULL_WIDTH_IN, tall, caption, plots.class_distributions, rows, classes)
    numbers = fold("Numbers", number_table(_numbers(found)))
    return paragraph(_NOTE) + drawing + numbers + examples + _learnt_frames(run, list(found), classes)


def _learnt_frames(run: FinishedRun, stages: Sequence[str], classes: Sequence[str]) -> str:
    """Frames of unlabelled videos as each network represents them: foreground and background, then hard classes."""
    planes = {stage_name(stage): plane for stage in stages if (plane := run.label_space(stage).get("plane"))}
    if not planes:
        return ""
    points = {name: np.asarray(plane["points"]) for name, plane in planes.items()}
    truth = np.asarray(next(iter(planes.values()))["truth"])
    height = 3.4
    one = figure(
        FULL_WIDTH_IN, height, "Learnt frames of unlabelled videos, t-SNE: foreground and background (Figure 3)",
        plots.embeddings, points, foreground_groups(truth, len(classes) - 1),
    )  # fmt: skip
    groups = hardest_groups(truth, classes[:-1], run.results)
    if not groups:
        return one
    caption = "The same frames: the classes of lowest average precision (Figure 4)"
    return one + figure(FULL_WIDTH_IN, height, caption, plots.embeddings, points, groups)


def foreground_groups(truth: np.ndarray, background: int) -> list[Group]:
    """Frames by whether an action is there."""
    return [("background", truth == background, "#B0B0B0"), ("foreground", truth != background, "#CC6677")]


def hardest_groups(truth: np.ndarray, classes: Sequence[str], results: Mapping[str, Any]) -> list[Group]:
    """Frames of the ``HARDEST`` classes with the lowest average precision of the run's last network."""
    scores = results["arms"].get(results["final_arm"], {"ap": {}})["ap"]
    precision = {name: np.mean(list(ap.values())) for name, ap in scores.items() if None not in ap.values()}
    known = [name for name in sorted(precision, key=precision.__getitem__) if (truth == classes.index(name)).any()]
    colours = plots.class_colours(np.bincount(truth, minlength=len(classes))[: len(classes)])
    rows = [(name, classes.index(name)) for name in known[:HARDEST]]
    return [(name, truth == c, colours[c]) for name, c in rows]


def _numbers(found: Mapping[str, Any]) -> list[list[str]]:
    parts = [part.name.lower() for part in ClassRelation]
    rows = [["share of snippets, %", *parts]]
    for name, value in found.items():
        for kind, shares in value.items():
            rows.append([f"{stage_name(name)}, {kind}", *percents(shares[p] for p in parts)])
            wrong = shares["when_wrong"]
            rows.append([f"{stage_name(name)}, {kind}, target wrong", *percents(wrong.get(p) for p in parts)])
    return rows
