"""A table from its runs: stages done once, and the same page however often it is killed and in how many processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures import REPOSITORY

from apl_jax.tables.carry_out import SHARED, carry_out
from apl_jax.tables.changes import changed, without_discriminator
from apl_jax.tables.page import SUFFIXES, write_page
from apl_jax.tables.plan import RUNS, cost_of, distinct_runs, fitted, plan_table
from apl_jax.tables.table import Row, Table

# Rows that have their teacher in common.
LENIENT = changed(without_discriminator, learning__selection__dynamic__deviations=0.0)
STRICT = changed(without_discriminator, learning__selection__dynamic__deviations=1.0)
TABLE = Table("test:1", "Thresholds", (Row("mean", LENIENT), Row("mean and a deviation", STRICT)))
CONFIGURATION = """
from apl_jax.configs import spsw

def get_config():
    config = spsw.get_config("smoke")
    for stage in (config.learning.supervised, config.learning.self_train):
        stage.steps = 20
    config.evaluation.label_space.enabled = False
    return config
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.py"
    path.write_text(CONFIGURATION)
    return path


def make(data: Path, workdir: Path, jobs: int = 1) -> dict[str, bytes]:
    """The table's page in all forms."""
    plans, facts, labelled = fitted([plan_table(TABLE, str(data), (0,), {}, workdir)], workdir)
    runs = list(distinct_runs(plans).values())
    if not (workdir / SHARED).exists():
        cost = cost_of(runs, facts, labelled)
        assert (cost.runs, cost.stages, cost.shared, cost.steps) == (2, 3, 1, 60)
    carry_out(runs, workdir, jobs)
    assert cost_of(runs, facts, labelled).runs == 0
    page = write_page(plans[0], workdir)
    return {suffix: page.with_suffix(f".{suffix}").read_bytes() for suffix in SUFFIXES}


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, make(data, workdir)


def without_place(page: dict[str, bytes], workdir: Path) -> dict[str, bytes]:
    return {form: text.replace(str(workdir).encode(), b"WORKDIR") for form, text in page.items()}


def test_stages_in_common_are_done_once(whole: tuple[Path, dict[str, bytes]]) -> None:
    workdir, page = whole
    found = {}
    for path in sorted((workdir / RUNS).glob("*/stages/teacher/done.json")):
        found[path] = json.loads(path.read_text())["result"]["seconds"]
    assert len(found) == 2 and len(set(found.values())) == 1  # one was copied
    assert page["csv"].count(b"\n") == 3 and b"not done" not in page["md"]


@pytest.mark.exhaustive
def test_several_processes_make_the_same_page(whole: tuple[Path, dict[str, bytes]], data: Path, tmp_path: Path) -> None:
    workdir, page = whole
    assert without_place(make(data, tmp_path, jobs=2), tmp_path) == without_place(page, workdir)


@pytest.mark.exhaustive
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_it_ends_in_the_same_page(
    whole: tuple[Path, dict[str, bytes]], data: Path, tmp_path: Path, jobs: int
) -> None:
    workdir, page = whole
    program = (
        "import sys; sys.path.insert(0, 'tests/end_to_end'); sys.path.insert(0, 'tests'); from pathlib import Path; "
        "import test_tables; test_tables.make(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))"
    )
    command = [sys.executable, "-c", program, str(data), str(tmp_path), str(jobs)]
    draws, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ, start_new_session=True)
        try:
            assert process.wait(timeout=draws.uniform(3, 9) + 2 * kills) == 0  # later and later, so that it ends
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)  # workers have to notice by themselves
            process.wait()
            kills += 1
            time.sleep(0.5)
    assert kills and without_place(make(data, tmp_path), tmp_path) == without_place(page, workdir)
