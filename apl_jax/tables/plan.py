"""Which runs a table needs, what they have in common, and what they will cost."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apl_jax.declarations import SettingsError, fingerprint, override, to_dict
from apl_jax.runs.evidence import foreseen_stages, known_stages
from apl_jax.runs.forecast import steps_of, work_of
from apl_jax.runs.run import open_run
from apl_jax.runs.settings import Settings, read_config
from apl_jax.runs.stages import Stage, stage_fingerprint
from apl_jax.structs import DataFacts
from apl_jax.tables.measures import MEASURES
from apl_jax.tables.table import Row, Table

RUNS = "runs"  # folder of all runs, below that of the tables


@dataclass(frozen=True)
class PlannedRun:
    """One row with one seed."""

    row: int  # its place in the table
    seed: int
    settings: Settings
    folder: Path
    command: str  # that makes this run by hand


@dataclass(frozen=True)
class Plan:
    """A table with the runs of its rows."""

    table: Table
    data: str
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]
    left_out: Mapping[int, str]  # row -> why it means nothing on these data, or cannot be made


def plan_table(table: Table, data: str, seeds: Sequence[int], overrides: Mapping[str, str], workdir: Path) -> Plan:
    """The runs of a table. ``overrides`` are settings for all of them, as text; they come last.

    Raises :class:`~apl_jax.declarations.SettingsError` where no configuration of the data set exists at all, and for
    settings that no row has.
    """
    runs, left_out = [], {}
    for place, row in enumerate(table.rows):
        try:
            base, settings = _base(row, data)
            changes = {**row.changes(settings), **_ratio(row)}
            chosen = override(override(settings, changes), overrides, text=True)
            known_stages(chosen, DataFacts(1, 1, chosen.data.max_length_t), {})  # refuses what does not go together
        except SettingsError as error:
            left_out[place] = str(error)
            continue
        for seed in seeds:
            seeded = override(chosen, {"seed": seed, "data.split_seed": seed, "runtime.progress": False})
            folder = workdir / RUNS / _folder_name(table, base, seeded)
            shown = {**changes, **overrides, "seed": seed, "data.split_seed": seed}
            runs.append(PlannedRun(place, seed, seeded, folder, _command(base, shown, folder)))
    if not runs:
        raise SettingsError(f"{table.name}: no row can be made on {data!r}. The first says: {left_out[0]}")
    return Plan(table, data, tuple(seeds), tuple(runs), left_out)


def _base(row: Row, data: str) -> tuple[str, Settings]:
    """The first of a row's configurations that the data set has."""
    if row.only_on and data not in row.only_on:
        raise SettingsError(f"The row is about {', '.join(row.only_on)}.")
    for name in (pattern.format(data=data) for pattern in row.bases):
        with contextlib.suppress(SettingsError):
            return name, read_config(name)
    names = " or ".join(pattern.format(data=data) for pattern in row.bases)
    raise SettingsError(f"There is no configuration {names}.")


def _ratio(row: Row) -> dict[str, float]:
    return {} if row.label_ratio is None else {"data.label_ratio": row.label_ratio}


def _folder_name(table: Table, base: str, settings: Settings) -> str:
    """Equal for equal runs, whatever table they are in."""
    name = Path(base.partition(":")[0]).stem
    return f"{name}-{fingerprint(MEASURES[table.measure].done, settings)}"


def _command(base: str, changes: Mapping[str, Any], folder: Path) -> str:
    flags = [f"--config.{path}={value}" for path, value in changes.items()]
    return shlex.join(["apl-jax", "run", f"--config={base}", *flags, f"--workdir={folder}"])


def fitted(plans: Sequence[Plan], workdir: Path) -> tuple[list[Plan], DataFacts, int]:
    """The plans without rows that mean nothing on the data, which are opened for that, with the facts about these and
    the number of labelled recordings of the first run."""
    context = open_run(plans[0].runs[0].settings, workdir)
    facts = context.facts
    return [_for_classes(plan, facts.num_classes) for plan in plans], facts, len(context.dataset.labelled.ids)


def _for_classes(plan: Plan, classes: int) -> Plan:
    poor = {place: row.least_classes for place, row in enumerate(plan.table.rows) if row.least_classes > classes}
    why = {place: f"The row needs {least} classes; these data have {classes}." for place, least in poor.items()}
    kept = tuple(run for run in plan.runs if run.row not in poor)
    return dataclasses.replace(plan, runs=kept, left_out={**plan.left_out, **why})


def distinct_runs(plans: Iterable[Plan]) -> dict[Path, tuple[PlannedRun, str]]:
    """The runs of several tables, each once, with the measure that carries it out."""
    return {run.folder: (run, plan.table.measure) for plan in plans for run in plan.runs}


@dataclass(frozen=True)
class Cost:
    """What runs come to."""

    runs: int  # that are not done
    stages: int  # of training, distinct ones
    shared: int  # further uses of these stages
    steps: int
    work: int  # recordings, or crops of them, that networks see in training

    def words(self, runs: int) -> str:
        """In a sentence; ``runs``: of how many."""
        shared = f" (and {self.shared:,} times one that another run has done)" if self.shared else ""
        todo = f"{self.runs} of {runs} runs are to be made" if self.runs else f"all {runs} runs are done"
        return f"{todo}: {self.stages:,} training stages{shared}, {self.steps:,} steps" if self.runs else todo


def cost_of(runs: Iterable[tuple[PlannedRun, str]], facts: DataFacts, labelled: int) -> Cost:
    """The training of the runs that are not done; a stage that runs have in common counts once."""
    count = uses = steps = work = 0
    seen: set[str] = set()
    for run, measure in runs:
        kind = MEASURES[measure]
        if (run.folder / kind.done).exists() or measure == "size":
            continue
        count += 1
        for stage, mark in _marked(run.settings, facts):
            if not steps_of(stage, labelled) or (measure == "frames" and stage.name != "pretrain"):
                continue
            uses += 1
            if mark not in seen:
                seen.add(mark)
                steps += steps_of(stage, labelled)
                work += work_of(stage, facts, labelled)
    return Cost(count, len(seen), uses - len(seen), steps, work)


def _marked(settings: Settings, facts: DataFacts) -> list[tuple[Stage, str]]:
    """The stages of a run with what tells equal ones, before any data is read."""
    marks: dict[str, str] = {}
    data = fingerprint(to_dict(settings.data))
    stages = foreseen_stages(settings, facts, {})
    for stage in stages:
        marks[stage.name] = stage_fingerprint(stage, lambda read: f"{data} {read}", marks)
    return [(stage, marks[stage.name]) for stage in stages]
