"""What a finished run shows: tables for the terminal, and one self-contained page with figures.

Reads the files of a run folder only: no parameters, no accelerator. The page needs no network and no JavaScript.
"""

from __future__ import annotations

import contextlib
import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from apl_jax import plots
from apl_jax.data.annotations import VideoRecord
from apl_jax.evaluation.average_precision import Instances, instances_from_annotations, without_duplicates
from apl_jax.evaluation.finished_run import FinishedRun, PseudoLabelTable, open_run
from apl_jax.evaluation.label_quality import quality_per_class
from apl_jax.plots import FULL_WIDTH_IN, HALF_WIDTH_IN, REASON_COLOURS, SET_NAMES, Lane, Panel
from apl_jax.settings import Settings, to_dict
from apl_jax.structs import Reason

TIMELINE_VIDEOS = 6  # of each kind
TIMELINE_LENGTHS = 80  # a timeline shows at most so many median true durations: shorter instances could not be seen
TIMELINE_CONFIDENCE = 0.1  # predictions below are not drawn
OPEN_CLASSES = 30  # a table of more classes is folded
_MEASURES = ("class_accuracy", "mean_tiou", "positive_accuracy", "precision", "recall")


def arm_name(arm: str) -> str:
    """An arm in words."""
    words = {
        "supervised": "supervised only",
        "supervised_matched": "supervised, matched steps",
        "teacher": "APL teacher (stage 2)",
    }
    return words.get(arm) or arm.replace("self_train_", "APL, round ")


def stage_name(stage: str) -> str:
    """A training or labelling stage in words."""
    if stage.startswith(("self_train_", "pseudo_label_")):
        kind, _, number = stage.rpartition("_")
        return f"{kind.replace('_', '-').capitalize()}, round {number}"
    return {"pretrain": "Pre-training (ACP)", "teacher": "APL teacher (stage 2)"}.get(stage, arm_name(stage).capitalize())


def total_steps(results: Mapping[str, Any], arm: str) -> int | None:
    """Optimiser steps that lead to an arm's parameters, those of the stages it starts from included."""
    steps: dict[str, int] = results["steps"]
    rounds = [name for name in steps if name.startswith("self_train_")]
    before = ["pretrain", *(["teacher", *rounds[: rounds.index(arm)]] if arm in rounds else [])]
    if arm not in steps:
        return None
    return steps[arm] + (sum(steps.get(name, 0) for name in before) if arm in rounds or arm == "teacher" else 0)


# The terminal


def print_table(results: dict[str, Any]) -> None:
    """Prints the end of a run, ``results.json``: mAP of every arm, then the quality of every round's pseudo labels."""
    print(f"\n{_headline(results)}\n")
    print(_aligned(_map_rows(results)))
    if gain := _gain(results):
        print(f"\n{gain}")
    for name, labels in results.get("pseudo_labels", {}).items():
        print(f"\n{stage_name(name)}: {_counts(labels)}\n")
        print(_aligned(_quality_rows(labels["quality"])))


def print_average_precision(result: dict[str, Any]) -> None:
    """Prints the score of one prediction file, as ``AveragePrecision.as_dict`` gives it, in percent."""
    rows = [["%", *(f"tIoU {t}" for t in result["map"]), "average"]]
    rows += [[name, *_percents(values.values()), _percent(_mean(values))] for name, values in result["ap"].items()]
    rows.append(["mAP", *_percents(result["map"].values()), _percent(result["average_map"])])
    for name, values in result["recall"].items():
        rows.append([f"Recall@{name}", *_percents(values.values()), _percent(_mean(values))])
    print(_aligned(rows, rules=(1, 1 + len(result["ap"]))))


def _headline(results: Mapping[str, Any]) -> str:
    data = results["data"]
    return (
        f"{data['name']}, {100 * data['label_ratio']:g} % of labels: {data['labelled']} videos labelled, "
        f"{data['unlabelled']} unlabelled, {data['evaluated']} evaluated ({data['evaluated_on']}); "
        f"split seed {data['split_seed']}, seed {results['seed']}"
    )


def _gain(results: Mapping[str, Any]) -> str:
    arms, final = results["arms"], results.get("final_arm")
    base = next((arm for arm in ("supervised_matched", "supervised") if arm in arms), None)
    if final not in arms or base is None or final == base or final == "supervised":
        return ""
    points = 100 * (arms[final]["average_map"] - arms[base]["average_map"])
    return f"{arm_name(final)}: {points:+.1f} points of average mAP against {arm_name(base)}."


def _counts(labels: Mapping[str, Any]) -> str:
    counts = labels["counts"]
    return (
        f"tau_pos {labels['tau_pos']:.3f}; {counts['kept']:,} kept, {counts['promoted']:,} promoted, "
        f"{counts['dropped']:,} dropped, {counts['candidate']:,} candidates; {labels['quality']['truth']:,} true instances"
    )


def _map_rows(results: Mapping[str, Any]) -> list[list[str]]:
    arms = results["arms"]
    thresholds = list(next(iter(arms.values()), {"map": {}})["map"])
    rows = [["mAP, %", "steps", *(f"tIoU {t}" for t in thresholds), "average"]]
    for arm, score in arms.items():
        steps = total_steps(results, arm)
        values = [score["map"].get(t) for t in thresholds]
        rows.append([arm_name(arm), "–" if steps is None else f"{steps:,}", *_percents([*values, score["average_map"]])])
    return rows


def _quality_rows(quality: Mapping[str, Any]) -> list[list[str]]:
    rows = [["%", "labels", *(name.replace("_", " ").replace("tiou", "tIoU") for name in _MEASURES)]]
    for name, words in SET_NAMES.items():
        rows.append([words, f"{quality[name]['count']:,}", *_percents(quality[name][m] for m in _MEASURES)])
    return rows


def _percents(values: Iterable[float | None]) -> list[str]:
    return [_percent(value) for value in values]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None


def _aligned(rows: Sequence[Sequence[str]], rules: Sequence[int] = (1,)) -> str:
    """Rows as lines: the first column flush left, the others flush right; a rule before the rows in ``rules``."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for i, row in enumerate(rows):
        if i in rules:
            lines.append("─" * (sum(widths) + 2 * len(widths) - 2))
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)


# The page


def write_report(workdir: Path) -> Path:
    """Writes ``report.html`` of a finished run beside its results and returns its path.

    Sections that the run has nothing for are left out. Raises :class:`~apl_jax.data.annotations.DataError` when the
    folder holds no finished run, ``OSError`` when the page cannot be saved; a former page is then untouched.
    """
    run = open_run(workdir)
    truth = [record for role in ("labelled", "unlabelled", "evaluation") for record in run.records(role)]
    counts = np.bincount(instances_from_annotations(truth).label, minlength=len(run.truth.classes))
    colours = plots.class_colours(counts)
    sections = [
        ("Results", _results(run)),
        ("Average precision per class", _per_class(run)),
        ("Training", _curves(run)),
        ("Pseudo labels", _pseudo_labels(run, colours)),
        ("Timelines of unlabelled videos", _unlabelled_timelines(run, colours)),
        ("Timelines of evaluated videos", _evaluation_timelines(run, colours)),
        ("What was run", _provenance(run)),
    ]
    sections = [(title, content) for title, content in sections if content]
    links = "".join(f'<a href="#s{i}">{_e(title)}</a>' for i, (title, _) in enumerate(sections))
    body = "".join(f'<section id="s{i}"><h2>{_e(t)}</h2>{c}</section>' for i, (t, c) in enumerate(sections))
    title = f"{run.results['data']['name']}, {100 * run.results['data']['label_ratio']:g} % of labels"
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{_e(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head><body><header>'
        f"<h1>{_e(title)}</h1><p>{_e(_headline(run.results))}.</p><nav>{links}</nav></header>{body}</body></html>\n"
    )
    path = workdir / "report.html"
    _write_whole(path, page)
    return path


def _write_whole(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, "utf-8")
        os.replace(beside, path)
    except OSError as error:
        remedy = "a former page is untouched. Try: free some space, then apl-jax report"
        raise OSError(error.errno, f"could not save ({error.strerror}); {remedy}", str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # after the rename there is none
            beside.unlink()


def _results(run: FinishedRun) -> str:
    gain = _gain(run.results)
    note = "Steps are all that lead to the row, pre-training and teacher included."
    lead = f'<p class="lead">{_e(gain)}</p>' if gain else ""
    recall = [["recall, %", *(f"tIoU {t}" for t in run.results["arms"][arm]["map"])] for arm in run.results["arms"]][:1]
    for arm, score in run.results["arms"].items():
        for k, values in score["recall"].items():
            recall.append([f"{arm_name(arm)}, @{k}", *_percents(values.values())])
    return lead + _table(_map_rows(run.results), best=True) + f"<p>{_e(note)}</p>" + _fold("Recall", _table(recall))


def _per_class(run: FinishedRun) -> str:
    arms = run.results["arms"]
    rows = [["average of all tIoU, %", *(arm_name(arm) for arm in arms)]]
    for name in run.truth.classes:
        rows.append([name, *_percents(_mean(score["ap"].get(name, {})) for score in arms.values())])
    content = _table(rows, best=True, bars=True)
    final = run.results.get("final_arm")
    if final in arms:
        detail = [[arm_name(final) + ", %", *(f"tIoU {t}" for t in arms[final]["map"])]]
        detail += [[name, *_percents(values.values())] for name, values in arms[final]["ap"].items()]
        content += _fold("By tIoU", _table(detail, bars=True))
    return content if len(rows) <= OPEN_CLASSES else _fold(f"{len(rows) - 1} classes", content)


def _curves(run: FinishedRun) -> str:
    stages = {name: run.curves(name) for name in run.results["steps"]}
    stages = {name: curves for name, curves in stages.items() if curves}
    figures = []
    for name, curves in stages.items():
        width = FULL_WIDTH_IN / 4 * len(plots.curve_groups(list(curves)))
        title = f"{stage_name(name)}, {run.results['steps'][name]:,} steps"
        figures.append(_figure(width, 2.1, title, plots.training_curves, curves))
    drawn = [n for curves in stages.values() for names in plots.curve_groups(list(curves)).values() for n in names]
    chips = _chips({term.replace("_", " "): colour for term, colour in plots.term_colours(drawn).items()})
    note = "Loss terms before weighting, their weighted sum (loss) and the norm of its gradient, on logarithmic axes."
    return f'<p>{note}</p>{chips}<div class="row">{"".join(figures)}</div>' if figures else ""


def _pseudo_labels(run: FinishedRun, colours: Sequence[str]) -> str:
    rounds = list(run.results.get("pseudo_labels", {}).items())
    blocks = []
    for i, (name, labels) in enumerate(rounds):
        table = _table(_quality_rows(labels["quality"]))
        block = f"<p>{_e(_counts(labels))}.</p>{table}{_round_figures(run, name, labels, colours)}"
        last = i == len(rounds) - 1
        blocks.append(f"<h3>{_e(stage_name(name))}</h3>{block}" if last else _fold(stage_name(name), block))
    return "".join(blocks) + (f"<p>{_e(_QUALITY_NOTE)}</p>" if blocks else "")


def _round_figures(run: FinishedRun, name: str, labels: Mapping[str, Any], colours: Sequence[str]) -> str:
    table, selection = run.pseudo_labels(name), run.settings.learning.selection
    classes, truth = run.truth.classes, instances_from_annotations(run.records("unlabelled"))
    per_class = quality_per_class(table.instances, table.reason, truth, classes, "final").values()
    true = np.bincount(without_duplicates(truth).label, minlength=len(classes))
    count = np.array([entry["count"] for entry in per_class])
    correct = np.array([round(entry["count"] * (entry["precision"] or 0)) for entry in per_class])
    left_out = max(0, len(classes) - plots.MOST_BARS)
    rare = f"; the {left_out} rarest classes are left out" if left_out else ""
    height = max(2.6, 0.8 + 0.34 * min(len(classes), plots.MOST_BARS))
    confidence = table.instances.score
    icd, tau_neg = selection.discriminator, selection.tau_neg
    figures = [
        _figure(HALF_WIDTH_IN, 2.6, "Confidence", plots.confidence_histogram, confidence, table.reason,
                labels["tau_pos"], tau_neg),
        _figure(HALF_WIDTH_IN, 2.6, "Similarity (ICD)", plots.similarity_histogram, table.similarity, table.reason,
                icd.eliminate_below, icd.promote_above) if icd.enabled else "",
        _figure(HALF_WIDTH_IN, 2.6, "Quality against the held-back truth", plots.quality_bars, labels["quality"]),
        _figure(HALF_WIDTH_IN, height, f"Classes{rare}", plots.class_counts, classes, true, count, correct, colours),
    ]  # fmt: skip
    return f'<div class="row">{"".join(figures)}</div>'


def _unlabelled_timelines(run: FinishedRun, colours: Sequence[str]) -> str:
    name = next(reversed(run.results.get("pseudo_labels", {})), None)
    if name is None:
        return ""
    records, table = run.records("unlabelled"), run.pseudo_labels(name)
    moved = np.isin(table.reason, (Reason.PROMOTED, Reason.DROPPED))
    moves = np.bincount(table.instances.video[moved], minlength=len(records))
    first = [v for v in np.argsort(-moves, kind="stable")[: TIMELINE_VIDEOS // 2] if moves[v]]
    chosen = sorted({*first, *_spread(TIMELINE_VIDEOS - len(first), len(records))})
    panels = [_panel(records[v], run.truth.classes, _reason_lanes(table, v, run.truth.classes)) for v in chosen]
    note = (
        f"Pseudo labels of {stage_name(name).partition(', ')[2]}: {len(first)} videos in which ICD changed most, the others "
        f"at equal distances in the list of {len(records)}. The more confident, the more opaque; point at an instance."
    )
    return _timelines(run, panels, colours, note)


def _reason_lanes(table: PseudoLabelTable, video: int, classes: Sequence[str]) -> list[Lane]:
    lanes = []
    for reason, colour in REASON_COLOURS.items():
        rows = np.flatnonzero((table.instances.video == video) & (table.reason == reason))
        extra = [f", quality {max(table.tiou[m] - table.tnd[m], 0):.2f}, similarity {table.similarity[m]:.2f}" for m in rows]
        lanes.append(_lane(reason.name.lower(), table.instances.select(rows), classes, extra, colour))
    return lanes


def _evaluation_timelines(run: FinishedRun, colours: Sequence[str]) -> str:
    arms = run.results["arms"]
    wanted = [run.results.get("final_arm"), *(arm for arm in ("supervised_matched", "supervised") if arm in arms)]
    shown = [arm for arm in dict.fromkeys(wanted) if arm in arms][:2]
    records, predictions = run.records("evaluation"), {arm: run.predictions(arm) for arm in shown}
    panels = []
    for v in _spread(TIMELINE_VIDEOS, len(records)):
        lanes = []
        for arm, instances in predictions.items():
            rows = (instances.video == v) & (instances.score >= TIMELINE_CONFIDENCE)
            lanes.append(_lane(arm_name(arm), instances.select(rows), run.truth.classes))
        panels.append(_panel(records[v], run.truth.classes, lanes))
    note = (
        f"{len(panels)} of {len(records)} videos, at equal distances in their list, not chosen by result. The more "
        f"confident, the more opaque; predictions below {TIMELINE_CONFIDENCE:g} are not drawn. Point at an instance."
    )
    return _timelines(run, panels, colours, note) if shown else ""


def _timelines(run: FinishedRun, panels: Sequence[Panel], colours: Sequence[str], note: str) -> str:
    numbered = len(colours) >= plots.NUMBERED_FROM
    present = sorted({int(c) for panel in panels for lane in panel.lanes for c in lane.labels})
    names = {(f"{c} {run.truth.classes[c]}" if numbered else run.truth.classes[c]): colours[c] for c in present}
    figure = _figure(FULL_WIDTH_IN, plots.timeline_height(panels), "", plots.timelines, panels, colours)
    return f"<p>{_e(note)}</p>{_chips(names)}{figure}" if panels else ""


def _panel(record: VideoRecord, classes: Sequence[str], lanes: Sequence[Lane]) -> Panel:
    low, high = _stretch(record)
    whole = high - low >= record.duration_s
    part = f"{record.duration_s:,.0f} s" if whole else f"{low:,.0f} to {high:,.0f} of {record.duration_s:,.0f} s"
    truth = _lane("truth", instances_from_annotations([record]), classes, confident=False)
    return Panel(f"{record.id}, {part}", (low, high), [truth, *lanes])


def _stretch(record: VideoRecord) -> tuple[float, float]:
    """The part of a video that is drawn: all, or the stretch that holds the most true instances."""
    starts, ends = record.segments_s.T
    span = TIMELINE_LENGTHS * float(np.median(ends - starts)) if len(starts) else record.duration_s
    if span >= record.duration_s:
        return 0.0, record.duration_s
    lows = np.clip(starts - 0.02 * span, 0, record.duration_s - span)
    held = [(starts >= low).sum() - (ends > low + span).sum() for low in lows]
    low = float(lows[int(np.argmax(held))])
    return low, low + span


def _lane(
    name: str, instances: Instances, classes: Sequence[str], extra: Sequence[str] = (), colour: str = "",
    confident: bool = True,
) -> Lane:  # fmt: skip
    tips = []
    for i, (label, (start, end), score) in enumerate(zip(instances.label, instances.segments_s, instances.score, strict=True)):
        tip = f"{classes[label]}, {start:.1f} to {end:.1f} s" + (f", confidence {score:.2f}" if confident else "")
        tips.append(tip + (extra[i] if extra else ""))
    return Lane(name, instances.segments_s, instances.label, instances.score if confident else None, tips, colour)


def _spread(count: int, total: int) -> list[int]:
    """``count`` places of a list at equal distances."""
    return sorted({int(x) for x in np.linspace(0, total - 1, min(count, total)).round()})


def _provenance(run: FinishedRun) -> str:
    results, data = run.results, run.results["data"]
    command = results.get("command")
    facts = {
        "command": command or "apl-jax run with the settings below (settings.json) and this folder as --workdir",
        "folder": str(run.workdir.absolute()), "data set": f"{data['name']}, digest {data['digest']}",
        "split": f"{data['label_ratio']:g} of labels, seed {data['split_seed']}, digest {data['split_digest']}",
        "seed": str(results["seed"]), "devices": results["devices"], "settings fingerprint": results["settings_fingerprint"],
        "versions": f"apl_jax {results['version']}, jax {results['jax']}", "protocol": results["protocol"],
    }  # fmt: skip
    listed = "".join(f"<dt>{_e(k)}</dt><dd>{_e(v)}</dd>" for k, v in facts.items())
    usual = dict(_flat(to_dict(Settings())))
    rows = [[name, value, usual[name]] for name, value in _flat(to_dict(run.settings)) if value != usual[name]]
    changed = _table([["setting", "this run", "default"], *rows]) if rows else "<p>none</p>"
    return f"<dl>{listed}</dl>" + _fold(f"{len(rows)} settings that differ from their defaults", changed)


def _flat(values: Mapping[str, Any], where: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", str(value)


# Elements of the page


def _e(text: object) -> str:
    return html.escape(str(text))


def _fold(title: str, content: str) -> str:
    return f"<details><summary>{_e(title)}</summary>{content}</details>"


def _chips(colours: Mapping[str, str]) -> str:
    chips = "".join(f'<span><i style="background:{colour}"></i>{_e(name)}</span>' for name, colour in colours.items())
    return f'<p class="chips">{chips}</p>'


def _table(rows: Sequence[Sequence[str]], best: bool = False, bars: bool = False) -> str:
    """Rows as a table whose first row is its head; ``best``: in percent, bold where largest; ``bars``: behind them."""
    head, *body = rows
    lines = ["".join(f"<th>{_e(cell)}</th>" for cell in head)]
    ...


def _figure(width_in: float, height_in: float, caption: str, draw: Callable[..., Any], *arrays: Any) -> str:
    figure = Figure(figsize=(width_in, height_in))
    draw(figure, *arrays)
    title = f"<figcaption>{_e(caption)}</figcaption>" if caption else ""
    return f"<figure>{title}{plots.to_svg(figure)}</figure>"
