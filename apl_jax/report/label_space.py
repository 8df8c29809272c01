"""The section on non-target classes: where the true class falls, and some whole distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apl_jax.learning.class_division import ClassRelation
from apl_jax.report import figures as plots
from apl_jax.report.elements import Drawing, drawn, number_table
from apl_jax.report.figures import FULL_WIDTH_IN
from apl_jax.report.finished_run import FinishedRun
from apl_jax.report.tables import percents, stage_name

HARDEST = 5  # classes in one plane
_PLANE_IN = 3.4
Group = tuple[str, np.ndarray, str]  # name, rows [M] bool, colour


def label_space_section(run: FinishedRun) -> dict[str, Any] | None:
    """Shares per network, their numbers, and the example distributions of the last network; None without any."""
    found: Mapping[str, Any] = run.results.get("label_space", {})
    if not found:
        return None
    shares = {stage_name(name): value["foreground"] for name, value in found.items()}
    last = list(found)[-1]
    document = run.label_space(last)
    return {
        "shares": drawn(FULL_WIDTH_IN, 1.1 + 0.32 * len(shares), "", plots.true_class_shares, shares),
        "numbers": number_table(_numbers(found)),
        "figures": [*_examples(document, stage_name(last)), *_learnt_frames(run, list(found), document["classes"])],
    }


def _examples(document: Mapping[str, Any], network: str) -> list[Drawing]:
    rows, classes = document["examples"], document["classes"]
    if not rows:
        return []
    bars = min(len(classes), plots.MOST_CLASSES)
    height = 0.5 + -(-len(rows) // 3) * (0.55 + 0.17 * bars)
    caption = f"Class distributions of snippets, {network} (Figure 6 of the paper); ★ is the true class"
    return [drawn(FULL_WIDTH_IN, height, caption, plots.class_distributions, rows, classes)]


def _learnt_frames(run: FinishedRun, stages: Sequence[str], classes: Sequence[str]) -> list[Drawing]:
    """Frames of unlabelled videos as each network represents them: foreground and background, then hard classes."""
    planes = {stage_name(stage): plane for stage in stages if (plane := run.label_space(stage).get("plane"))}
    if not planes:
        return []
    points = {name: np.asarray(plane["points"]) for name, plane in planes.items()}
    truth = np.asarray(next(iter(planes.values()))["truth"])
    coloured = {
        "Learnt frames of unlabelled videos, t-SNE: foreground and background (Figure 3)":
            foreground_groups(truth, len(classes) - 1),
        "The same frames: the classes of lowest average precision (Figure 4)":
            hardest_groups(truth, classes[:-1], run.results),
    }  # fmt: skip
    return [
        drawn(FULL_WIDTH_IN, _PLANE_IN, caption, plots.embeddings, points, groups)
        for caption, groups in coloured.items() if groups
    ]  # fmt: skip


def foreground_groups(truth: np.ndarray, background: int) -> list[Group]:
    """Frames by whether an action is there."""
    return [("background", truth == background, "#B0B0B0"), ("foreground", truth != background, "#CC6677")]


def hardest_groups(truth: np.ndarray, classes: Sequence[str], results: Mapping[str, Any]) -> list[Group]:
    """Frames of the ``HARDEST`` classes with the lowest average precision of the run's final variant."""
    scores = results["variants"].get(results["final_variant"], {"ap": {}})["ap"]
    precision = {name: np.mean(list(ap.values())) for name, ap in scores.items() if None not in ap.values()}
    known = [name for name in sorted(precision, key=precision.__getitem__) if (truth == classes.index(name)).any()]
    colours = plots.class_colours(np.bincount(truth, minlength=len(classes))[: len(classes)])
    rows = [(name, classes.index(name)) for name in known[:HARDEST]]
    return [(name, truth == c, colours[c]) for name, c in rows]


def _numbers(found: Mapping[str, Any]) -> list[list[str]]:
    relations = [relation.name.lower() for relation in ClassRelation]
    rows = [["share of snippets, %", *relations]]
    for name, value in found.items():
        for kind, shares in value.items():
            rows.append([f"{stage_name(name)}, {kind}", *percents(shares[r] for r in relations)])
            wrong = shares["when_wrong"]
            rows.append([f"{stage_name(name)}, {kind}, target wrong", *percents(wrong.get(r) for r in relations)])
    return rows
