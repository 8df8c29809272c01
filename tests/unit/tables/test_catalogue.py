"""Every row of every table is a run that can be planned, and the ladder is the one of the configurations."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from fixtures import rarely

from apl_jax.declarations import SettingsError, override
from apl_jax.runs.evidence import foreseen_stages
from apl_jax.runs.settings import read_config
from apl_jax.structs import DataFacts
from apl_jax.tables.catalogue import TABLES
from apl_jax.tables.plan import cost_of, distinct_runs, plan_table

FACTS = {"spsw": DataFacts(120, 4, 512), "hapt": DataFacts(300, 12, 640), "thumos14": DataFacts(2048, 20, 2304)}
# All tables and figures of both papers that have numbers or curves; one of our own.
EXPECTED = [
    *(f"apl:{n}" for n in (1, 2, 3, 4, 5, "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "3a", "3b", "3c")),
    *(f"ntc:{n}" for n in range(1, 8)), "ours:1",
]  # fmt: skip


def test_every_table_of_both_papers_is_there() -> None:
    assert list(TABLES) == EXPECTED
    assert all(name == table.name for name, table in TABLES.items())


# thumos14 has P-GCN with every label only, and only EPIC-KITCHENS has verbs and nouns.
WITHOUT = [("apl:s8", "thumos14"), *(("apl:s7", data) for data in FACTS)]


PLANNED = [case for case in itertools.product(EXPECTED, FACTS) if case not in WITHOUT]


@pytest.mark.parametrize("case", rarely(PLANNED, lambda case: case[1] == "spsw"), ids="-".join)
def test_rows_can_be_planned(case: tuple[str, str], tmp_path: Path) -> None:
    name, data = case
    table = TABLES[name]
    plan = plan_table(table, data, (0,), {}, tmp_path)
    assert {run.row for run in plan.runs} | set(plan.left_out) == set(range(len(table.rows)))
    for run in plan.runs:
        stages = [stage.name for stage in foreseen_stages(run.settings, FACTS[data], {})]
        read = table.rows[run.row].read
        if table.measure == "map" and read != "final":
            assert f"{read}_evaluation" in stages
        if table.measure == "labels":
            assert any(stage.startswith("pseudo_label") for stage in stages)
        assert (run.settings.seed, run.settings.data.split_seed) == (0, 0)
    # Only what a data set has no configuration for is left out, and auto of a detector that wants proposals.
    reasons = ("There is no configuration", "which wants proposals")
    assert all(any(reason in why for reason in reasons) for why in plan.left_out.values()), plan.left_out


def test_a_table_about_one_data_set_says_so_on_another(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="about epic"):
        plan_table(TABLES["apl:s7"], "spsw", (0,), {}, tmp_path)
    assert len(plan_table(TABLES["apl:s7"], "epic", (0,), {}, tmp_path).runs) == 4


@pytest.mark.parametrize(("place", "rung"), [(0, "fixed"), (1, "alqa"), (2, "icd"), (3, "apl")])
@pytest.mark.parametrize("data", ["spsw", "hapt"])
def test_the_ladder_is_that_of_the_configurations(data: str, place: int, rung: str) -> None:
    row = TABLES["apl:2"].rows[place]
    base = read_config(f"{data}:apl")
    made = override(base, row.changes(base))
    known = override(read_config(f"{data}:{rung}"), {"variants": ("semi_supervised",)})
    assert made == known


def test_numbers_of_the_papers_fill_their_columns() -> None:
    for table in TABLES.values():
        for row in table.rows:
            for numbers in row.published.values():
                assert len(numbers) in (0, len(table.published_columns)), (table.name, row.name)
                # An average of .3, .5 and .7 alone would be another number, but lies between the extremes.
                if table.published_columns[-1:] == ("average",) and len(numbers) > 1:
                    assert min(numbers[:-1]) <= numbers[-1] <= max(numbers[:-1]), (table.name, row.name)


def test_equal_rows_are_one_run_and_stages_in_common_count_once(tmp_path: Path) -> None:
    plans = [plan_table(TABLES[name], "spsw", (0, 1), {}, tmp_path) for name in ("apl:2", "apl:5")]
    runs = distinct_runs(plans)
    # "+ ICD" and "no ACP", "+ ACP" and "coarse and fine": four rows of each table and ratio, two of which are equal.
    assert len(runs) == 2 * 2 * (4 + 4 - 2)
    cost = cost_of(runs.values(), FACTS["spsw"], 15)
    assert cost.runs == len(runs) and cost.steps == 500 * cost.stages and cost.shared == 0
    # A curve over a threshold of ICD trains its teacher once.
    curve = distinct_runs([plan_table(TABLES["apl:3a"], "spsw", (0,), {}, tmp_path)])
    cost = cost_of(curve.values(), FACTS["spsw"], 15)
    assert (cost.stages, cost.shared) == (2 + 6, 2 * 5)  # pre-training and teacher; a student for each threshold


def test_overrides_are_for_all_rows_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    plan = plan_table(TABLES["apl:4"], "spsw", (3,), {"learning.self_train.steps": "7"}, tmp_path)
    assert {run.settings.learning.self_train.steps for run in plan.runs} == {7}
    assert all("--config.learning.self_train.steps=7" in run.command for run in plan.runs)
    with pytest.raises(SettingsError, match="no_such"):
        plan_table(TABLES["apl:4"], "spsw", (0,), {"learning.no_such": "7"}, tmp_path)
