"""Many finished runs in one table: runs that differ in their seeds alone are one row, mean and deviation.

Runs of other features, recordings or classes (the identity of their data), and runs that were scored against another
truth, are rows of their own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apl_jax.data.files import refusal
from apl_jax.declarations import fingerprint
from apl_jax.report.finished_run import read_documents
from apl_jax.report.tables import aligned, mean_and_deviation, total_steps, variant_name
from apl_jax.report.truth import check_present_truths

_NO_DIFFERENCE = "data.split_seed", "data.root", "runtime."  # settings in which the runs of one row may differ
_LONGEST_NAME = 60  # characters of a row's name; a longer one stands below the table
_REFERENCE = "supervised_matched"  # variant whose scores the others' gains are counted from; without it the first row
_MARK = " (*)"  # behind the name of that row


@dataclass(frozen=True)
class Group:
    """Runs of the same settings, data and truth but for their seeds."""

    name: str
    setting: str  # data, label ratio and evaluated videos: what must agree for rows to stand in one table
    results: dict[tuple[int, int], Mapping[str, Any]]  # (seed, split seed) -> results.json


def comparison(folders: Sequence[Path]) -> str:
    """The table as text: average mAP in percent, mean ± sample standard deviation over the seeds; then seed by seed.

    Raises :class:`~apl_jax.data.files.DataError` for a folder that holds no finished run, for two runs of the same
    settings and seeds, and for runs of different protocols: those must not stand in one column.
    """
    groups, notes = _with_short_names(gather(folders))
    tables = []
    for setting in dict.fromkeys(group.setting for group in groups):
        rows, seeds = _rows([group for group in groups if group.setting == setting])
        tables.append("\n\n".join([setting, aligned(rows), aligned(seeds)]))
    return "\n\n\n".join(tables) + ("\n\n" + "\n".join(notes) if notes else "")


def _with_short_names(groups: list[Group]) -> tuple[list[Group], list[str]]:
    """The groups with names that fit a table, and what was left out of them: changes that all rows have in common, and
    whole names that are too long."""
    words = [group.name.split(" ") for group in groups]
    common = [w for w in words[0] if "=" in w and all(w in other for other in words)] if len(groups) > 1 else []
    notes = [f"all rows: {' '.join(common)}"] if common else []
    short = []
    for group, own in zip(groups, words, strict=True):
        name = " ".join(w for w in own if w not in common) or group.name
        if len(name) > _LONGEST_NAME:
            letter = f"[{len(short) + 1}]"
            notes.append(f"{letter}: {name}")
            name = f"{own[0][: _LONGEST_NAME - len(letter) - 1]} {letter}"
        short.append(replace(group, name=name))
    return short, notes


def gather(folders: Sequence[Path]) -> list[Group]:
    """The runs in these folders by their settings, in the order in which they were named."""
    groups: dict[str, Group] = {}
    features: dict[str, dict[str, str]] = {}  # settings -> group -> its feature folder
    protocols: dict[tuple[str, str], Path] = {}
    for folder in folders:
        settings, results = read_documents(folder, ("settings", "results"))
        check_present_truths(folder, settings, results)
        protocols.setdefault((results["protocol"], results.get("external_digest", "")), folder)
        if len(protocols) > 1:
            ((one, digest), first), ((other, other_digest), second) = protocols.items()
            files = f", of another file (digest {other_digest}, there {digest})" if one == other else ""
            found = f"protocol {other!r}, but {one!r} in {first}{files}"
            remedy = "compare them apart, or run one again under the other's protocol: that repeats the scoring only"
            raise refusal(f"{second / 'results.json'}: protocol", found, "one protocol in a table", remedy)
        data = settings["data"]
        alike = {**settings, "seed": None, "runtime": None, "data": {**data, "split_seed": None, "root": None}}
        identity = results["data"].get("identity")  # runs of earlier versions have none
        truth = results["data"].get("truth", {}).get("evaluation")
        key = fingerprint(alike, identity, truth)
        root = f"{data['root'] or 'embedded'}, identity {identity or 'not known'}"
        others = features.setdefault(fingerprint(alike), {})
        if key not in others:  # the same recordings with other annotations need a word more
            others[key] = f"{root}, truth {truth}" if root in others.values() else root
        group = groups.setdefault(key, Group(_name(folder, results), _setting(results), {}))
        seeds = results["seed"], data["split_seed"]
        if seeds in group.results:
            found = f"seed {seeds[0]}, split seed {seeds[1]}, which another of these runs has too"
            raise refusal(str(folder), found, "runs that differ in their seeds or settings", "leave one of them out")
        group.results[seeds] = results
    for alike in features.values():
        for key, root in alike.items() if len(alike) > 1 else ():
            groups[key] = replace(groups[key], name=f"{groups[key].name} [{root}]")
    return list(groups.values())


def _name(folder: Path, results: Mapping[str, Any]) -> str:
    """The configuration and its changes, as the command named them; without a command the folder, less its number."""
    named = _arguments(results.get("command", ""))
    chosen = re.sub(r"^(configs/)?(.*?)(\.py)?(:|$)", r"\2\4", named.pop("config", ""))
    settings = {name: value for name, value in named.items() if "." in name or name == "variants"}
    changed = [f"{name}={value}" for name, value in settings.items() if not name.startswith(_NO_DIFFERENCE)]
    return " ".join(filter(None, [chosen, *changed])) or re.sub(r"_?\d+$", "", folder.name)


def _arguments(command: str) -> dict[str, str]:
    """The arguments of a command by name, however they are written; one without a name is the configuration."""
    found: dict[str, str] = {}
    expected = "config"
    for word in shlex.split(command)[2:]:  # after "apl-jax run"
        name, equals, value = word.lstrip("-").partition("=")
        if equals:
            found[name.removeprefix("config.")] = value
        elif word.startswith("-"):
            expected = name
        else:
            found.setdefault(expected, word)
    return found


def _setting(results: Mapping[str, Any]) -> str:
    data = results["data"]
    ratio = f"{100 * data['label_ratio']:g} % of labels, {data['labelled']} videos"
    return f"{data['name']}, {ratio}; {data['evaluated']} evaluated ({data['evaluated_on']}); {results['protocol']}"


def _rows(groups: Sequence[Group]) -> tuple[list[list[str]], list[list[str]]]:
    """mAP per threshold, and average mAP per seed, of every variant of every group; a variant that ended in the very
    numbers of an earlier one is that one."""
    scores = [score for g in groups for results in g.results.values() for score in results["variants"].values()]
    thresholds = list(dict.fromkeys(t for score in scores for t in score["map"]))
    all_seeds = sorted({seeds for group in groups for seeds in group.results})
    rows = [["mAP, %", "runs", "steps", *(f"tIoU {t}" for t in thresholds), "average"]]
    by_seed = [["average mAP, %", *(_seed_name(seeds) for seeds in all_seeds), f"gain over{_MARK}"]]
    seen: set[tuple[Any, ...]] = set()
    reference, first = _reference(groups)
    for group in groups:
        scores_of = {seeds: _scores(results) for seeds, results in group.results.items()}
        variants = dict.fromkeys(variant for scores in scores_of.values() for variant in scores)
        for variant in variants:
            runs = {seeds: scores[variant] for seeds, scores in scores_of.items() if variant in scores}
            scored = {seeds: run for seeds, run in runs.items() if run["average_map"] is not None}
            averages = {seeds: run["average_map"] for seeds, run in scored.items()}
            told = (variant, *sorted(averages.items()))
            if averages and told in seen:
                continue
            seen.add(told)
            steps = total_steps(next(iter(group.results.values())), variant)
            mark = _MARK if (group.name, variant) == reference else ""
            name = f"{group.name}, {variant_name(variant)}{mark}"
            cells = [_spread([run["map"][t] for run in scored.values() if t in run["map"]]) for t in thresholds]
            rows.append([name, str(len(runs)), f"{steps or 0:,}", *cells, _spread(list(averages.values()))])
            gains = [averages[seeds] - first[seeds] for seeds in averages if seeds in first]
            values = (f"{100 * averages[s]:.1f}" if s in averages else "–" for s in all_seeds)
            by_seed.append([name, *values, _spread(gains, "+")])
    return rows, by_seed


def _reference(groups: Sequence[Group]) -> tuple[tuple[str, str], dict[tuple[int, int], float]]:
    """The row that gains are counted from, by group and variant, and its averages: the plain detector with as many
    steps, else the first row that is scored."""
    rows = {}
    for group in groups:
        for seeds, results in group.results.items():
            for variant, scores in results["variants"].items():
                if scores["average_map"] is not None:
                    rows.setdefault((group.name, variant), {})[seeds] = scores["average_map"]
    chosen = next((row for row in rows if row[1] == _REFERENCE), next(iter(rows), ("", "")))
    return chosen, rows.get(chosen, {})


def _scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a run by variant; where the run decided which model stays, those of that one as well."""
    variants, final = results["variants"], results["final_variant"]
    stays = {"model that stays": variants[final]} if results.get("decisions") and final in variants else {}
    return {**variants, **stays}


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and deviation of shares, in percent."""
    return mean_and_deviation([100 * value for value in values], sign)


def _seed_name(seeds: tuple[int, int]) -> str:
    return f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seed {seeds[0]}, split {seeds[1]}"
