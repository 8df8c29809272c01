"""A finished run in words and aligned rows: what the terminal prints, and what the page's tables hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from apl_jax.report.figures import MEASURES as _FIGURE_3C
from apl_jax.report.figures import SET_NAMES
from apl_jax.runs.evidence import MODEL, TEACHER
from apl_jax.text import counted, one_line, say

MEASURES = _FIGURE_3C | {"precision": "precision", "recall": "recall"}


def variant_name(variant: str) -> str:
    """A row of the final table in words."""
    words = {
        "supervised": "supervised only",
        "supervised_matched": "supervised, matched steps",
        "teacher": "teacher (stage 2)",
    }
    return words.get(variant) or variant.replace("self_train_", "self-training, round ")


def stage_name(stage: str) -> str:
    """A training or labelling stage in words."""
    words = {"pretrain": "pre-training"}
    name = words.get(stage) or variant_name(stage).replace("pseudo_label_", "pseudo labels, round ")
    return name[0].upper() + name[1:]


def total_steps(results: Mapping[str, Any], variant: str) -> int | None:
    """Optimiser steps that lead to a variant's parameters, those of the stages it starts from included."""
    steps: dict[str, int] = results["steps"]
    chain = [name for name in steps if name in ("pretrain", "teacher") or name.startswith("self_train_")]
    if variant in chain:
        return sum(steps[name] for name in chain[: chain.index(variant) + 1])
    return steps.get(variant)


# The terminal


def print_table(results: dict[str, Any]) -> None:
    """Prints :func:`results_table`."""
    say(f"\n{results_table(results)}")


def results_table(results: Mapping[str, Any]) -> str:
    """The end of a run, ``results.json``, as text: mAP of every variant, then the quality of every round's labels."""
    decided = decisions(results)
    parts = [headline(results), aligned(map_rows(results)), not_scored(results)]
    parts += (
        [
            "\n".join(
                [
                    "* stays, as the run's model. Decided by held-out labelled recordings:",
                    *(f"  {text}" for text in decided),
                ]
            )
        ]
        if decided
        else []
    )
    parts += [protocol(results), proposals(results), gain(results), no_pseudo_labels(results)]
    for name, labels in results["pseudo_labels"].items():
        parts += [f"{stage_name(name)}: {counts(labels)}", aligned(quality_rows(labels["quality"]))]
    return "\n\n".join(part for part in parts if part)


def print_average_precision(result: Mapping[str, Any]) -> None:
    """Prints :func:`average_precision_table`."""
    say(average_precision_table(result))


def average_precision_table(result: Mapping[str, Any]) -> str:
    """The score of one set of predictions, as ``AveragePrecision.as_dict`` gives it, in percent."""
    rows = [["%", *(f"tIoU {t}" for t in result["map"]), "average"]]
    rows += [[name, *percents(values.values()), percent(mean(values))] for name, values in result["ap"].items()]
    rows.append(["mAP", *percents(result["map"].values()), percent(result["average_map"])])
    for name, values in result["recall"].items():
        rows.append([f"Recall@{name}", *percents(values.values()), percent(mean(values))])
    return aligned(rows, rules=(1, 1 + len(result["ap"])))


def print_proposal_recall(result: Mapping[str, Any]) -> None:
    """Prints :func:`proposal_recall_table`."""
    say(proposal_recall_table(result))


def proposal_recall_table(result: Mapping[str, Any]) -> str:
    """The score of proposals, as ``ProposalRecall.as_dict`` gives it, in percent, and how many proposals there are."""
    rows = [["%", *(f"AR@{number}" for number in result["recall"]), "AUC"]]
    for threshold, area in result["area"].items():
        rows.append([f"tIoU {threshold}", *percents(at[threshold] for at in result["recall"].values()), percent(area)])
    rows.append(["average", *percents(result["average_recall"].values()), percent(result["auc"])])
    videos, each = result["videos"], result["proposals"] / result["videos"]
    words = f"{counted(result['instances'], 'instance')} in {counted(videos, 'video')}, {each:.1f} proposals per video"
    return f"{aligned(rows, rules=(1, len(rows) - 1))}\n\n{words}"


def headline(results: Mapping[str, Any]) -> str:
    """The data of a run and its seeds."""
    data = results["data"]
    return (
        f"{data['name']}, {100 * data['label_ratio']:g} % of labels: {data['labelled']} videos labelled, "
        f"{data['unlabelled']} unlabelled, {data['evaluated']} evaluated ({data['evaluated_on']}); "
        f"split seed {data['split_seed']}, seed {results['seed']}"
    )


def not_scored(results: Mapping[str, Any]) -> str:
    """Why there are no scores, or on how few videos; empty where all evaluated ones are scored."""
    reasons = dict.fromkeys(score["not_scored"] for score in results["variants"].values() if "not_scored" in score)
    bare = max((score.get("unannotated", 0) for score in results["variants"].values()), default=0)
    if bare:
        evaluated = results["data"]["evaluated"]
        return f"Scored on {evaluated - bare} of {evaluated} evaluated videos: the others are not annotated."
    return "".join(f"Not scored: {reason}. The predictions are there all the same." for reason in reasons)


def protocol(results: Mapping[str, Any]) -> str:
    """Whose classes the predictions have: what numbers must share to stand in one table."""
    words = results["protocol"]
    if words == "strict":
        return "Protocol: strict. All classes are the model's own."
    return (
        f"Protocol: {words}. Segments are the model's, classes a video-level classifier's, which may have learnt from "
        "labels that the model never saw: compare with numbers of this protocol only."
    )


def proposals(results: Mapping[str, Any]) -> str:
    """Where proposals come from that the run did not make; empty for all other runs."""
    source = results.get("proposals")
    if not source:
        return ""
    return (
        f"Proposals: from {one_line(source['file'])} (digest {source['digest']}). Whatever made them may have "
        "learnt from labels that this run never saw."
    )


def gain(results: Mapping[str, Any]) -> str:
    """What the final variant gains over the fairest baseline; empty where one of them is missing."""
    variants, final = results["variants"], str(results["final_variant"])
    base = next((name for name in ("supervised_matched", "supervised") if name in variants), None)
    if final not in variants or base is None or final == base or final == "supervised":
        return ""
    if None in (variants[final]["average_map"], variants[base]["average_map"]):
        return ""
    points = 100 * (variants[final]["average_map"] - variants[base]["average_map"])
    return f"{variant_name(final)}: {points:+.1f} points of average mAP against {variant_name(base)}."


def no_pseudo_labels(results: Mapping[str, Any]) -> str:
    """Why a run that trained with unlabelled videos has no pseudo labels to show; empty for all other runs."""
    self_trained = any(name.startswith("self_train_") for name in results["steps"])
    if not self_trained or results["pseudo_labels"]:
        return ""
    return (
        "No pseudo labels were written: this method has no labelling stage. At every training step it uses the "
        "network's own predictions on the unlabelled videos."
    )


def counts(labels: Mapping[str, Any]) -> str:
    """The threshold of a round of pseudo labels, or the file they are from, and how many detections it concerned."""
    number, quality, source = labels["counts"], labels["quality"], labels.get("source")
    if source:
        share = f"{source['recordings']:,} of {source['of']:,} recordings"
        origin = f"labels from {one_line(source['file'])} (digest {source['digest']}; {share})"
    else:
        origin = f"tau_pos {labels['tau_pos']:.3f}"
    bare = quality.get("unannotated", 0)
    return (
        f"{origin}; {number['kept']:,} kept, {number['promoted']:,} promoted, "
        f"{number['dropped']:,} dropped, {number['candidate']:,} candidates; {quality['truth']:,} true instances"
        + (f"; measured without {bare:,} videos that nobody annotated" if bare else "")
        + "".join(f"; {warning}" for warning in labels.get("warnings", ()))
    )


def map_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Steps and mAP of every variant, the head first."""
    variants = results["variants"]
    thresholds = list(next(iter(variants.values()), {"map": {}})["map"])
    rows = [["mAP, %", "steps", *(f"tIoU {t}" for t in thresholds), "average"]]
    for variant, score in variants.items():
        steps = total_steps(results, variant)
        values = [score["map"].get(t) for t in thresholds]
        percent_cells = percents([*values, score["average_map"]])
        stays = " *" if variant == results["final_variant"] and results.get("decisions") else ""
        rows.append([variant_name(variant) + stays, "–" if steps is None else f"{steps:,}", *percent_cells])
    return rows


def decisions(results: Mapping[str, Any]) -> list[str]:
    """The decisions of a run, a sentence each, with their evidence; what to beware of; what became of the promised
    precision. Empty for a run that decided nothing."""
    made = results.get("decisions", {})
    if TEACHER not in made:
        return []
    words = [*made[TEACHER]["because"], *made.get(MODEL, {}).get("because", ())]
    words += [f"warning: {text}" for text in made[TEACHER]["warnings"]]
    return words + _promised(results, made[TEACHER])


def _promised(results: Mapping[str, Any], decision: Mapping[str, Any]) -> list[str]:
    """The precision that held-out recordings promised for the first round's labels, against the true one."""
    point, labels = decision["operating_point"], next(iter(results["pseudo_labels"].values()), None)
    found = labels["quality"]["before_icd"]["precision"] if labels else None
    if not point or found is None:
        return []
    promised = f"precision of pseudo labels at the threshold: {point['precision']:.2f} promised, {found:.2f} true"
    return [f"{promised} (annotations of the unlabelled recordings, where there are any, are read for this line only)"]


def quality_rows(quality: Mapping[str, Any]) -> list[list[str]]:
    """The quality of a round's pseudo labels before and after ICD, the head first."""
    rows = [["%", "labels", *MEASURES.values()]]
    for name, words in SET_NAMES.items():
        rows.append([words, f"{quality[name]['count']:,}", *percents(quality[name][m] for m in MEASURES)])
    return rows


def mean_and_deviation(values: Sequence[float], sign: str = "", decimals: int = 1) -> str:
    """Mean ± sample standard deviation; without deviation for a single value; ``sign`` "+" shows that of the mean."""
    if not len(values):
        return "–"
    found = np.asarray(values)
    deviation = f" ± {found.std(ddof=1):.{decimals}f}" if len(found) > 1 else ""
    return f"{found.mean():{sign}.{decimals}f}{deviation}"


def percents(values: Iterable[float | None]) -> list[str]:
    return [percent(value) for value in values]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None


def aligned(rows: Sequence[Sequence[str]], rules: Sequence[int] = (1,)) -> str:
    """Rows as lines: the first column flush left, the others flush right; a rule before the rows in ``rules``."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for i, row in enumerate(rows):
        if i in rules:
            lines.append("─" * (sum(widths) + 2 * len(widths) - 2))
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)
