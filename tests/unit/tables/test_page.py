"""What a page shows of runs whose files are written by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from apl_jax.data.files import write_json
from apl_jax.declarations import SettingsError
from apl_jax.runs.settings import Settings
from apl_jax.tables.measures import frame_scores, read_numbers
from apl_jax.tables.page import as_csv, as_markdown, build_page, write_page
from apl_jax.tables.plan import Plan, plan_table
from apl_jax.tables.table import Row, Table


def steps(count: int):
    def change(settings: Settings) -> dict[str, int]:
        del settings
        return {"learning.self_train.steps": count}

    return change


TABLE = Table(
    "test:1",
    "A table",
    (
        Row("10%: first", steps(1), label_ratio=0.1, published={"thumos14": (1.5, 2.0)}),
        Row("10%: second", steps(2), label_ratio=0.1, published={"thumos14": (2.5, None)}),
        Row("10%: elsewhere", steps(3), bases=("{data}:no_such",)),
        Row("20%: third | fourth", steps(4), "supervised", label_ratio=0.2),
    ),
    ("0.5", "average"),
    note="A note.",
)


def results(final: float, supervised: float) -> dict:
    scores = lambda value: {"map": {"0.5": value, "0.7": value / 2}, "average_map": 0.75 * value}
    return {
        "final_variant": "self_train_1",
        "variants": {"supervised": scores(supervised), "self_train_1": scores(final)},
        "pseudo_labels": {},
    }


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    plan = plan_table(TABLE, "spsw", (0, 1, 2), {}, tmp_path)
    values = {0: 0.4, 1: 0.6, 3: 0.8}
    for run in plan.runs:
        if (run.row, run.seed) != (1, 2):
            write_json(run.folder / "results.json", results(values[run.row] + 0.02 * run.seed, 0.1))
    return plan


def test_rows_columns_and_differences(plan: Plan) -> None:
    page = build_page(plan)
    assert page.head[:5] == ("row", "seeds", "0.5, mAP, %", "0.7, mAP, %", "average, mAP, %")
    assert page.head[-2:] == ("paper, thumos14: 0.5", "paper, thumos14: average")
    first, second, elsewhere, third = page.rows
    assert first[:5] == ("10%: first", "3", "42.0 ± 2.0", "21.0 ± 1.0", "31.5 ± 1.5")
    assert first[5:8] == ("–", "–", "–") and first[8:] == ("1.5", "2")
    # Of the two seeds that both rows have; equal differences have no t-test.
    assert second[1] == "2" and second[5] == "+15.0 ± 0.0" and second[8:] == ("2.5", "–")
    assert elsewhere[1:6] == ("0", "–", "–", "–", "–")
    assert third[:3] == ("20%: third | fourth", "3", "10.0 ± 0.0")
    assert third[5] == "–"  # another share of labels: not compared
    assert "1 of 9 runs are not done yet" in page.about[-1]
    assert page.left_out == (("10%: elsewhere", "There is no configuration spsw:no_such."),)
    assert all("apl-jax run --config=spsw:apl" in command for _, command in page.commands)


def test_three_forms_of_the_same_numbers(plan: Plan, tmp_path: Path) -> None:
    page = build_page(plan)
    assert write_page(plan, tmp_path) == tmp_path / "test_1-spsw.md"
    markdown = (tmp_path / "test_1-spsw.md").read_text()
    assert markdown == as_markdown(page) and "| 20%: third \\| fourth | 3 |" in markdown and "A note." in markdown
    rows = list(csv.reader((tmp_path / "test_1-spsw.csv").read_text().splitlines()))
    assert rows == [list(page.head), *map(list, page.rows)] and (tmp_path / "test_1-spsw.csv").read_text() == as_csv(
        page
    )
    html = (tmp_path / "test_1-spsw.html").read_text()
    assert "31.5 ± 1.5" in html and "There is no configuration" in html and "20%: third | fourth" in html


def test_a_table_without_any_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no row can be made on 'no_such'.*no configuration no_such:apl"):
        plan_table(TABLE, "no_such", (0,), {}, tmp_path)


def test_numbers_of_label_sets_and_of_runs_without_them(tmp_path: Path) -> None:
    assert read_numbers("map", tmp_path, "final") is None
    quality = {
        "final": {"class_accuracy": 0.5, "mean_tiou": None, "positive_accuracy": 1.0, "precision": 0.25, "recall": 0}
    }
    write_json(
        tmp_path / "results.json", results(0.4, 0.2) | {"pseudo_labels": {"pseudo_label_1": {"quality": quality}}}
    )
    found = read_numbers("labels", tmp_path, "final")
    assert found == {
        "class accuracy": 50, "mean tIoU": None, "positive accuracy": 100, "precision": 25, "recall": 0,
    }  # fmt: skip
    write_json(tmp_path / "results.json", results(0.4, 0.2))
    assert set((read_numbers("labels", tmp_path, "final") or {}).values()) == {None}


def test_linear_classifier_learns_from_every_second_video() -> None:
    import numpy as np

    draws = np.random.default_rng(0)
    kinds, videos = draws.integers(0, 3, 600), draws.integers(0, 10, 600)
    rows = np.eye(3)[kinds] + 0.01 * draws.normal(size=(600, 3))
    assert frame_scores(rows, kinds, videos) == {"accuracy": 1.0, "recall": 1.0}
    # What holds in the first half alone is not believed of the other.
    misleading = np.where((videos % 2 == 0)[:, None], rows, np.roll(rows, 1, axis=1))
    assert frame_scores(misleading, kinds, videos) == {"accuracy": 0.0, "recall": 0.0}
    # Mean over classes, not over frames: a rare class that is always missed costs as much as a frequent one.
    rare = np.where(kinds == 2, np.where(draws.random(600) < 0.2, 2, 0), kinds)
    blind = np.eye(3)[np.where(rare == 2, 0, rare)]
    found = frame_scores(blind, rare, videos)
    assert found["accuracy"] > 0.9 and found["recall"] == pytest.approx(2 / 3)
    assert frame_scores(rows, kinds, 2 * videos) == {"accuracy": None, "recall": None}
