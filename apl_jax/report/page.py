"""``report.html``: one self-contained page about a finished run.

Reads the files of the run folder only: no parameters, no accelerator. The page needs no network and no JavaScript.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apl_jax.report import figures as plots
from apl_jax.data.annotations import VideoRecord
from apl_jax.data.files import write_text
from apl_jax.declarations import to_dict
from apl_jax.evaluation.average_precision import Instances, instances_from_annotations, without_duplicates
from apl_jax.evaluation.label_quality import quality_per_class
from apl_jax.report.figures import FULL_WIDTH_IN, HALF_WIDTH_IN, REASON_COLOURS, Lane, Panel
from apl_jax.report.elements import (
    chips,
    document,
    escaped,
    figure,
    fold,
    number_table,
    paragraph,
    row,
    text_table,
)
from apl_jax.report.finished_run import FinishedRun, PseudoLabelTable, open_run
from apl_jax.report.label_space import label_space_section
from apl_jax.report.tables import (
    arm_name,
    counts,
    gain,
    headline,
    map_rows,
    mean,
    percents,
    protocol,
    quality_rows,
    stage_name,
)
from apl_jax.settings import Settings
from apl_jax.structs import Reason

TIMELINE_VIDEOS = 6  # of each kind
TIMELINE_LENGTHS = 50  # a timeline shows at most so many median true durations: shorter instances could not be seen
TIMELINE_CONFIDENCE = 0.1  # predictions below are not drawn
OPEN_CLASSES = 30  # a table of more classes is folded
_QUALITY_NOTE = (
    "Against annotations that training never saw. Class accuracy: labels with the class of the instance they overlap "
    "most. Mean tIoU: best overlap with any instance. Positive accuracy: own class at tIoU .5 or more. Precision and "
    "recall: at tIoU .5, one label per instance. EAP drops positives, MPP promotes candidates."
)
_CURVES_NOTE = (
    "Loss terms before weighting, their weighted sum (loss) and the norm of its gradient, on logarithmic axes; the "
    "discriminator's loss and accuracy (icd) on a linear one. A term that is zero throughout is not drawn."
)


def write_report(workdir: Path) -> Path:
    """Writes ``report.html`` of a finished run beside its results and returns its path.

    Sections that the run has nothing for are left out. Raises :class:`~apl_jax.data.annotations.DataError` when the
    folder holds no finished run, ``OSError`` when the page cannot be saved; a former page is then untouched.
    """
    run = open_run(workdir)
    colours = _class_colours(run, "labelled", "unlabelled", "evaluation")
    scored_colours = colours
    if run.scored_truth.classes != run.truth.classes:
        colours, scored_colours = _class_colours(run, "labelled", "unlabelled"), _class_colours(run, "evaluation")
    sections = [
        ("Results", _results(run)),
        ("Average precision per class", _per_class(run)),
        ("Training", _curves(run)),
        ("Pseudo labels", _pseudo_labels(run, colours)),
        ("Non-target classes", label_space_section(run)),
        ("Timelines of unlabelled videos", _unlabelled_timelines(run, colours)),
        ("Timelines of evaluated videos", _evaluation_timelines(run, scored_colours)),
        ("What was run", _provenance(run)),
    ]
    title = f"{run.results['data']['name']}, {100 * run.results['data']['label_ratio']:g} % of labels"
    path = workdir / "report.html"
    write_text(path, document(title, headline(run.results).partition(": ")[2], sections))
    return path


def _class_colours(run: FinishedRun, *roles: str) -> list[str]:
    """A colour for each class of the roles' videos, by how frequent they are."""
    truth = [record for role in roles for record in run.records(role)]
    frequency = np.bincount(instances_from_annotations(truth).label, minlength=len(run.known(roles[-1]).classes))
    return plots.class_colours(frequency)


# Scores


def _results(run: FinishedRun) -> str:
    arms = run.results["arms"]
    if not arms:
        return ""
    scores = number_table(map_rows(run.results), best="column" if len(arms) > 1 else "", plain=2)
    recall = [["recall, %", *(f"tIoU {t}" for t in next(iter(arms.values()))["map"])]]
    for arm, score in arms.items():
        recall += [[f"{arm_name(arm)}, @{k}", *percents(v.values())] for k, v in score["recall"].items()]
    note = "Steps are all that lead to the row's parameters, those of pre-training and of the teacher included."
    folded = fold("Recall", number_table(recall)) if len(recall) > 1 else ""
    return paragraph(gain(run.results), "lead") + scores + paragraph(f"{protocol(run.results)} {note}") + folded


def _per_class(run: FinishedRun) -> str:
    arms, classes = run.results["arms"], run.scored_truth.classes
    if not arms:
        return ""
    rows = [["mean over tIoU, %", *(arm_name(arm) for arm in arms)]]
    rows += [[name, *percents(mean(score["ap"].get(name, {})) for score in arms.values())] for name in classes]
    content = number_table(rows, best="row" if len(arms) > 1 else "", bars=True)
    final = str(run.results.get("final_arm"))
    if final in arms:
        detail = [[f"{arm_name(final)}, %", *(f"tIoU {t}" for t in arms[final]["map"])]]
        detail += [[name, *percents(values.values())] for name, values in arms[final]["ap"].items()]
        content += fold(f"By tIoU, {arm_name(final)}", number_table(detail, bars=True))
    return content if len(classes) <= OPEN_CLASSES else fold(f"{len(classes)} classes", content)


def _curves(run: FinishedRun) -> str:
    stages = {name: curves for name in run.results["steps"] if (curves := run.curves(name))}
    figures, drawn = [], []
    for name, curves in stages.items():
        groups = plots.curve_groups(list(curves))
        drawn += [term for terms in groups.values() for term in terms if np.any(curves[term][1])]
        width = FULL_WIDTH_IN / 4 * max(len(groups), 1)
        title = f"{stage_name(name)}, {run.results['steps'][name]:,} steps"
        figures.append(figure(width, 2.1, title, plots.training_curves, curves))
    legend = chips({term.replace("_", " "): colour for term, colour in plots.term_colours(drawn).items()})
    return paragraph(_CURVES_NOTE) + legend + row(figures) if figures else ""


# Pseudo labels


def _pseudo_labels(run: FinishedRun, colours: Sequence[str]) -> str:
    rounds = list(run.results.get("pseudo_labels", {}).items())
    blocks = []
    for i, (name, labels) in enumerate(rounds):
        scores = number_table(quality_rows(labels["quality"]), plain=2)
        block = paragraph(counts(labels)) + scores + _round_figures(run, name, labels, colours)
        last = i == len(rounds) - 1
        blocks.append(f"<h3>{escaped(stage_name(name))}</h3>{block}" if last else fold(stage_name(name), block))
    return "".join(blocks) + (paragraph(_QUALITY_NOTE) if blocks else "")


def _round_figures(run: FinishedRun, name: str, labels: Mapping[str, Any], colours: Sequence[str]) -> str:
    table, selection, classes = run.pseudo_labels(name), run.settings.learning.selection, run.truth.classes
    icd, number = selection.discriminator, "confidence = score × quality"
    marks = {number: [(selection.tau_neg, "τ neg"), (labels["tau_pos"], "τ pos")]}
    values = {number: table.instances.score}
    figures = [
        figure(HALF_WIDTH_IN, 2.6, "Confidence", plots.reason_histograms, values, table.reason, marks),
        figure(HALF_WIDTH_IN, 2.6, "Quality (Figure 3(c) of the paper)", plots.quality_bars, labels["quality"]),
    ]
    if icd.enabled:
        number = "similarity to labelled instances of the class"
        marks = {number: [(selection.eliminate_below, "EAP below"), (selection.promote_above, "MPP above")]}
        values = {number: table.similarity}
        figures.append(
            figure(HALF_WIDTH_IN, 2.6, "Similarity (ICD)", plots.reason_histograms, values, table.reason, marks)
        )
    truth = instances_from_annotations(run.records("unlabelled"))
    per_class = quality_per_class(table.instances, table.reason, truth, classes, "final").values()
    true = np.bincount(without_duplicates(truth).label, minlength=len(classes))
    selected = np.array([entry["count"] for entry in per_class])
    correct = np.array([round(entry["count"] * (entry["precision"] or 0)) for entry in per_class])
    shown = min(len(classes), plots.MOST_BARS)
    caption = "Classes" if shown == len(classes) else f"The {shown} most frequent of {len(classes)} classes"
    height = max(2.6, 0.8 + 0.34 * shown)
    arrays = classes, true, selected, correct, colours
    figures.append(figure(HALF_WIDTH_IN, height, caption, plots.class_counts, *arrays))
    return row(figures)


# Timelines


def _unlabelled_timelines(run: FinishedRun, colours: Sequence[str]) -> str:
    name = next(reversed(run.results.get("pseudo_labels", {})), None)
    if name is None:
        return ""
    records, table, classes = run.records("unlabelled"), run.pseudo_labels(name), run.truth.classes
    moved = np.isin(table.reason, (Reason.PROMOTED, Reason.DROPPED))
    moves = np.bincount(table.instances.video[moved], minlength=len(records))
    most = [int(v) for v in np.argsort(-moves, kind="stable")[: TIMELINE_VIDEOS // 2] if moves[v]]
    rest = [v for v in range(len(records)) if v not in most]
    chosen = sorted([*most, *(rest[i] for i in _spread(TIMELINE_VIDEOS - len(most), len(rest)))])
    panels = [_panel(records[v], classes, _reason_lanes(table, v, classes)) for v in chosen]
    note = (
        f"{stage_name(name)}. {len(chosen)} of {len(records)} videos"
        + (f": {len(most)} in which ICD changed most, the others" if most else ",")
        + " at equal distances in the list. The more confident, the more opaque; point at an instance to read it."
    )
    return _timelines(classes, panels, colours, note)


def _reason_lanes(table: PseudoLabelTable, video: int, classes: Sequence[str]) -> list[Lane]:
    lanes = []
    for reason, colour in REASON_COLOURS.items():
        rows = np.flatnonzero((table.instances.video == video) & (table.reason == reason))
        numbers = zip(table.score[rows], table.tiou[rows], table.tnd[rows], table.similarity[rows], strict=True)
        tips = [f", score {p:.2f}, tIoU {u:.2f}, tND {d:.3f}, similarity {s:.2f}" for p, u, d, s in numbers]
        lanes.append(_lane(reason.name.lower(), table.instances.select(rows), classes, tips, colour))
    return lanes


def _evaluation_timelines(run: FinishedRun, colours: Sequence[str]) -> str:
    arms = run.results["arms"]
    wanted = (str(run.results.get("final_arm")), "supervised_matched", "supervised")
    shown = [arm for arm in dict.fromkeys(wanted) if arm in arms][:2]
    records, predictions = run.records("evaluation"), {arm: run.predictions(arm) for arm in shown}
    panels, classes = [], run.scored_truth.classes
    for v in _spread(TIMELINE_VIDEOS, len(records)) if shown else ():
        lanes = []
        for arm, found in predictions.items():
            rows = (found.video == v) & (found.score >= TIMELINE_CONFIDENCE)
            lanes.append(_lane(arm_name(arm), found.select(rows), classes))
        panels.append(_panel(records[v], classes, lanes))
    note = (
        f"{len(panels)} of {len(records)} videos, at equal distances in the list, not chosen by result. The more "
        f"confident, the more opaque; predictions below {TIMELINE_CONFIDENCE:g} are not drawn. Point at an instance to "
        "read it."
    )
    return _timelines(classes, panels, colours, note)


def _timelines(classes: Sequence[str], panels: Sequence[Panel], colours: Sequence[str], note: str) -> str:
    if not panels:
        return ""
    numbered = len(colours) >= plots.NUMBERED_FROM
    present = sorted({int(c) for panel in panels for lane in panel.lanes for c in lane.labels})
    legend = chips({(f"{c} {classes[c]}" if numbered else classes[c]): colours[c] for c in present})
    drawing = figure(FULL_WIDTH_IN, plots.timeline_height(panels), "", plots.timelines, panels, colours)
    return paragraph(note) + legend + drawing


def _panel(record: VideoRecord, classes: Sequence[str], lanes: Sequence[Lane]) -> Panel:
    low, high = _stretch(record)
    whole = high - low >= record.duration_s
    part = f"{record.duration_s:,.0f} s" if whole else f"{low:,.0f} to {high:,.0f} of {record.duration_s:,.0f} s"
    truth = _lane("truth", instances_from_annotations([record]), classes, predicted=False)
    return Panel(f"{record.id}, {part}", (low, high), [truth, *lanes])


def _stretch(record: VideoRecord) -> tuple[float, float]:
    """The part of a video that is drawn: all, or as much as can be seen where most true instances are."""
    starts, ends = record.segments_s.T
    span = TIMELINE_LENGTHS * float(np.median(ends - starts)) if len(starts) else record.duration_s
    if span >= record.duration_s:
        return 0.0, record.duration_s
    lows = np.clip(starts - 0.02 * span, 0, record.duration_s - span)
    held = [((starts >= low) & (ends <= low + span)).sum() for low in lows]
    low = float(lows[int(np.argmax(held))])
    return low, low + span


def _lane(
    name: str, instances: Instances, classes: Sequence[str], extra: Sequence[str] = (), colour: str = "",
    predicted: bool = True,
) -> Lane:  # fmt: skip
    tips = []
    for i, (label, (start, end), score) in enumerate(
        zip(instances.label, instances.segments_s, instances.score, strict=True)
    ):
        tip = f"{classes[label]}, {start:.1f} to {end:.1f} s" + (f", confidence {score:.2f}" if predicted else "")
        tips.append(tip + (extra[i] if extra else ""))
    return Lane(name, instances.segments_s, instances.label, instances.score if predicted else None, tips, colour)


def _spread(count: int, total: int) -> list[int]:
    """``count`` places of a list at equal distances."""
    return sorted({int(x) for x in np.linspace(0, total - 1, min(count, total)).round()})


# Provenance


def _provenance(run: FinishedRun) -> str:
    results, data = run.results, run.results["data"]
    command = results.get("command") or "apl-jax run, with the settings of settings.json and this folder as --workdir"
    facts = {
        "command": command, "folder": str(run.workdir.absolute()),
        "data set": f"{data['name']}, {len(data['classes'])} classes, digest {data['digest']}",
        "split": f"{data['label_ratio']:g} of the labels, seed {data['split_seed']}, digest {data['split_digest']}",
        "seed": results["seed"], "devices": results["devices"],
        "versions": f"apl_jax {results['version']}, jax {results['jax']}",
        "settings": f"fingerprint {results['settings_fingerprint']}", "protocol": results["protocol"],
    }  # fmt: skip
    listed = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(fact)}</dd>" for name, fact in facts.items())
    usual = dict(_flat(to_dict(Settings())))
    changed = [[name, value, usual[name]] for name, value in _flat(to_dict(run.settings)) if value != usual[name]]
    rows = text_table([["setting", "this run", "default"], *changed])
    return f"<dl>{listed}</dl>" + (fold(f"{len(changed)} settings differ from their defaults", rows) if changed else "")


def _flat(values: Mapping[str, Any], where: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as (dotted name, value)."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", str(value)
