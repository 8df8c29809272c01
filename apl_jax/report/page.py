"""``report.html``: one self-contained page about a finished run.

Reads the files of the run folder only: no parameters, no accelerator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.data.files import write_text
from apl_jax.declarations import SettingsError, flat, override, to_dict
from apl_jax.evaluation.average_precision import instances_from_annotations
from apl_jax.report import figures as plots
from apl_jax.report.decisions import decision_section
from apl_jax.report.elements import drawn, folded_classes, number_table
from apl_jax.report.figures import FULL_WIDTH_IN
from apl_jax.report.finished_run import FinishedRun, open_run
from apl_jax.report.label_space import label_space_section
from apl_jax.report.pseudo_labels import pseudo_label_section
from apl_jax.report.rendering import Section, render_page
from apl_jax.report.tables import (
    gain,
    headline,
    map_rows,
    mean,
    not_scored,
    percents,
    proposals,
    protocol,
    stage_name,
    variant_name,
)
from apl_jax.report.timelines import evaluation_timelines, unlabelled_timelines
from apl_jax.runs.settings import Settings


def write_report(workdir: Path) -> Path:
    """Writes ``report.html`` of a finished run beside its results and returns its path.

    Sections that the run has nothing for are left out. Raises :class:`~apl_jax.data.files.DataError` when the folder
    holds no finished run, ``OSError`` when the page cannot be saved; a former page is then untouched.
    """
    run = open_run(workdir)
    colours = _class_colours(run, "labelled", "unlabelled", "evaluation")
    scored_colours = colours
    if run.scored_truth.classes != run.truth.classes:
        colours, scored_colours = _class_colours(run, "labelled", "unlabelled"), _class_colours(run, "evaluation")
    sections = [
        Section("Results", "results", _results(run)),
        Section("What was decided, and why", "decisions", decision_section(run)),
        Section("Average precision per class", "per_class", _per_class(run)),
        Section("Training", "training", _training(run)),
        Section("Pseudo labels", "pseudo_labels", pseudo_label_section(run, colours)),
        Section("Non-target classes", "label_space", label_space_section(run)),
        Section("Timelines of unlabelled videos", "timelines", unlabelled_timelines(run, colours)),
        Section("Timelines of evaluated videos", "timelines", evaluation_timelines(run, scored_colours)),
        Section("What was run", "provenance", _provenance(run)),
    ]
    title = f"{run.results['data']['name']}, {100 * run.results['data']['label_ratio']:g} % of labels"
    path = workdir / "report.html"
    write_text(path, render_page("report.html", title, headline(run.results).partition(": ")[2], sections))
    return path


def _class_colours(run: FinishedRun, *roles: str) -> list[str]:
    """A colour for each class of the roles' videos, by how frequent they are."""
    truth = [record for role in roles for record in run.records(role)]
    frequency = np.bincount(instances_from_annotations(truth).label, minlength=len(run.known(roles[-1]).classes))
    return plots.class_colours(frequency)


def _results(run: FinishedRun) -> dict[str, Any] | None:
    variants = run.results["variants"]
    if not variants:
        return None
    recall = [["recall, %", *(f"tIoU {t}" for t in next(iter(variants.values()))["map"])]]
    for variant, score in variants.items():
        recall += [[f"{variant_name(variant)}, @{k}", *percents(v.values())] for k, v in score["recall"].items()]
    return {
        "gain": " ".join(filter(None, (gain(run.results), not_scored(run.results)))),
        "table": number_table(map_rows(run.results), best="column" if len(variants) > 1 else "", plain=2),
        "protocol": " ".join(filter(None, (protocol(run.results), proposals(run.results)))),
        "recall": number_table(recall) if len(recall) > 1 else None,
    }


def _per_class(run: FinishedRun) -> dict[str, Any] | None:
    variants, classes = run.results["variants"], run.scored_truth.classes
    if not variants:
        return None
    rows = [["mean over tIoU, %", *map(variant_name, variants)]]
    rows += [[name, *percents(mean(score["ap"].get(name, {})) for score in variants.values())] for name in classes]
    final = str(run.results["final_variant"])
    by_tiou = None
    if final in variants:
        detail = [[f"{variant_name(final)}, %", *(f"tIoU {t}" for t in variants[final]["map"])]]
        detail += [[name, *percents(values.values())] for name, values in variants[final]["ap"].items()]
        by_tiou = number_table(detail, bars=True)
    return {
        "folded": folded_classes(len(classes)),
        "table": number_table(rows, best="row" if len(variants) > 1 else "", bars=True),
        "by_tiou_title": f"By tIoU, {variant_name(final)}",
        "by_tiou": by_tiou,
    }


def _training(run: FinishedRun) -> dict[str, Any] | None:
    """The curves of every training stage; None where no stage kept a log."""
    figures, terms = [], []
    for name, steps in run.results["steps"].items():
        curves = run.curves(name)
        if not curves:
            continue
        groups = plots.curve_groups(list(curves))
        terms += [term for group in groups.values() for term in group if np.any(curves[term][1])]
        width = FULL_WIDTH_IN / 4 * max(len(groups), 1)
        figures.append(drawn(width, 2.1, f"{stage_name(name)}, {steps:,} steps", plots.training_curves, curves))
    colours = {term.replace("_", " "): colour for term, colour in plots.term_colours(terms).items()}
    return {"colours": colours, "figures": figures} if figures else None


def _provenance(run: FinishedRun) -> dict[str, Any]:
    results, data = run.results, run.results["data"]
    facts = {
        "command": results.get("command") or "a run with the settings of settings.json and this folder as `workdir`",
        "folder": str(run.workdir.absolute()),
        "data set": f"{data['name']}, {len(data['classes'])} classes, digest {data['digest']}",
        "split": f"{data['label_ratio']:g} of the labels, seed {data['split_seed']}, digest {data['split_digest']}",
        "seed": results["seed"], "devices": results["devices"],
        "versions": f"apl_jax {results['version']}, jax {results['jax']}",
        "settings": f"fingerprint {results['settings_fingerprint']}", "protocol": results["protocol"],
    }  # fmt: skip
    return {"facts": facts, "changed": [("setting", "this run", "default"), *_changed_settings(run.document)]}


def _changed_settings(document: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Path, value and default of the settings that differ from their defaults.

    The default of a setting of a detector, a method and so on is that of the chosen one.
    """
    values, usual = flat(document), flat(to_dict(Settings()))
    names = {path: value for path, value in values.items() if path.endswith((".name", ".chain"))}
    with contextlib.suppress(SettingsError):  # a choice that is not registered here: its defaults are not known
        usual = flat(to_dict(override(Settings(), names))) | {path: usual[path] for path in names if path in usual}
    return [(path, v, usual.get(path, "–")) for path, v in values.items() if v != usual.get(path)]
