"""The table of many runs: means and deviations by hand, and what is refused."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from fake_runs import make_run

from apl_jax.data.files import DataError, load_json, write_json
from apl_jax.report.compare import comparison

AVERAGES = {"plain": [0.5, 0.6, 0.9], "better": [0.7, 0.65, 1.0]}


def put(folder: Path, seed: int, average: float, command: str, weight: float, protocol: str = "strict") -> Path:
    """One of the made runs with another seed, score and setting."""
    results, settings = (load_json(folder / f"{name}.json") for name in ("results", "settings"))
    settings["seed"] = settings["data"]["split_seed"] = results["seed"] = results["data"]["split_seed"] = seed
    settings["learning"]["method"]["unlabelled_weight"] = weight
    score = results["variants"]["self_train_1"]
    score["average_map"], score["map"] = average, dict.fromkeys(score["map"], average)
    results |= {"variants": {"self_train_1": score}, "command": command, "protocol": protocol}
    out = folder.parent / f"{weight:g}_{seed}_{protocol}"
    write_json(out / "results.json", results)
    write_json(out / "settings.json", settings)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("compare"), ["walk", "run"], 40.0, 2.0)


@pytest.fixture(scope="module")
def runs(made: Path) -> list[Path]:
    command = "apl-jax run --config=configs/spsw.py:{} --config.seed=3 --config.learning.rounds=2 --workdir=x"
    return [
        put(made, seed, average, command.format(name), weight)
        for weight, (name, averages) in enumerate(AVERAGES.items())
        for seed, average in enumerate(averages)
    ]


def test_rows_are_settings_and_columns_seeds(runs: list[Path]) -> None:
    lines = comparison(runs).split("\n")
    for name, averages in AVERAGES.items():
        percent = [100 * a for a in averages]
        spread = f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f}"
        over_seeds, by_seed = (line for line in lines if line.startswith(f"spsw:{name}, "))
        assert over_seeds.count(spread) == 4 and over_seeds.split()[-1] == spread.split()[-1]  # 3 thresholds, average
        assert [f"{p:.1f}" in by_seed for p in percent] == [True] * 3
        gains = [100 * (a - b) for a, b in zip(averages, AVERAGES["plain"], strict=True)]
        assert by_seed.endswith(f"{statistics.mean(gains):+.1f} ± {statistics.stdev(gains):.1f}")
    assert sum(line.startswith("made & <up>, 10 % of labels, 2 videos; 3 evaluated") for line in lines) == 1
    assert lines[-1] == "all rows: learning.rounds=2"  # what does not tell rows apart is said once


def test_long_names_stand_below_the_table(made: Path) -> None:
    changes = [f"detector.width=6{n} learning.self_train.optimizer.learning_rate=0.000{n}{5 * '1'}" for n in (1, 2)]
    command = "apl-jax run --config=spsw:apl --config.{} --config.{}"
    folders = [
        put(made, 0, 0.5 + n / 10, command.format(*change.split()), 30.0 + n) for n, change in enumerate(changes)
    ]
    lines = comparison(folders).split("\n")
    assert all(len(line) < 120 for line in lines)
    assert [line for line in lines if line.startswith("[")] == [
        f"[{n + 1}]: spsw:apl {change}" for n, change in enumerate(changes)
    ]
    assert sum(line.startswith("spsw:apl [2], ") for line in lines) == 2


def test_gains_are_counted_from_the_baseline_with_as_many_steps(made: Path) -> None:
    out = put(made, 0, 0.6, "apl-jax run --config=mine.py", 40.0)
    results = load_json(out / "results.json")
    student = results["variants"]["self_train_1"]
    scores = {"supervised": 0.3, "supervised_matched": 0.5, "self_train_1": 0.6}
    variants = {name: {**student, "average_map": score} for name, score in scores.items()}
    write_json(out / "results.json", results | {"variants": variants})
    gains = {line.split(", ", 1)[1]: line.split()[-1] for line in comparison([out]).split("\n")[-3:]}
    assert [gain for gain in gains.values()] == ["-20.0", "+0.0", "+10.0"]
    assert [" (*) " in name for name in gains] == [False, True, False]


def test_single_run_has_no_deviation(runs: list[Path]) -> None:
    assert "±" not in comparison(runs[:1])


def test_missing_seeds_are_dashes(runs: list[Path]) -> None:
    line = comparison([runs[0], runs[1], runs[5]]).split("\n\n")[-2].split("\n")[-1]
    assert line.split()[-4:] == ["–", "–", "100.0", "–"]  # its seeds 0, 1, 2, and no gain over what has other seeds


def test_equal_rows_are_shown_once(made: Path, runs: list[Path]) -> None:
    twin = put(made, 0, AVERAGES["plain"][0], "", 7.0)
    assert comparison([runs[0], twin]).count("self-training, round 1") == 2  # one row in each of the two tables


def test_point_12_runs_without_scores_keep_their_rows(made: Path) -> None:
    """Two settings, each run on a test set without labels: two rows of dashes, not one."""
    folders = []
    for weight in (21.0, 22.0):
        folder = put(made, 0, 0.5, f"apl-jax run --config=spsw:{weight:g}", weight)
        results = load_json(folder / "results.json")
        results["variants"]["self_train_1"] |= {"average_map": None, "map": {}, "ap": {}, "recall": {}}
        write_json(folder / "results.json", results)
        folders.append(folder)
    table = comparison(folders)
    for weight in ("spsw:21", "spsw:22"):
        rows = [line.split() for line in table.split("\n") if line.startswith(weight)]
        assert len(rows) == 2 and all(row[-1] == "–" for row in rows)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("apl-jax run --config=configs/hapt.py:apl --config.seed=3 --workdir=runs/x", "hapt:apl"),
        ("apl-jax run spsw:apl --workdir 'a b' learning.rounds=2 seed=1 runtime.feed=x", "spsw:apl learning.rounds=2"),
        ("apl-jax run --config spsw --set data.label_ratio=0.2 --set data.root=x", "spsw data.label_ratio=0.2"),
        ("", "given"),
    ],
)  # fmt: skip
def test_rows_are_named_by_the_command(made: Path, tmp_path: Path, command: str, name: str) -> None:
    folder = tmp_path / "given_7"
    write_json(folder / "settings.json", load_json(made / "settings.json"))
    write_json(folder / "results.json", load_json(made / "results.json") | {"command": command})
    assert f"\n{name}, supervised only " in comparison([folder])


def test_refusals(made: Path, runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"settings\.json: found no such file"):
        comparison([runs[0], tmp_path])
    with pytest.raises(DataError, match="seed 0, split seed 0, which another of these runs has too"):
        comparison([runs[0], runs[1], runs[0]])
    other = put(made, 4, 0.5, "", 0.0, "external")
    with pytest.raises(DataError, match="protocol: found protocol 'external', but 'strict'"):
        comparison([runs[0], other])


def test_point_5_runs_of_other_features_are_rows_of_their_own(runs: list[Path], tmp_path: Path) -> None:
    folders = []
    for number, (folder, root, identity) in enumerate(
        [(runs[0], "old", "1a"), (runs[1], "old", "1a"), (runs[2], "new", "2b"), (runs[2], "", None)]
    ):
        results, settings = (load_json(folder / f"{name}.json") for name in ("results", "settings"))
        settings["data"]["root"] = root
        results["data"] |= {} if identity is None else {"identity": identity}
        folders.append(tmp_path / str(number))
        write_json(folders[-1] / "results.json", results)
        write_json(folders[-1] / "settings.json", settings)
    rows = [line for line in comparison(folders[:3]).split("\n") if line.startswith("spsw:plain") and "±" in line]
    assert "[old, identity 1a]" in rows[0] and "55.0 ± 7.1" in rows[0] and "90.0" not in rows[0]
    lines = comparison(folders[:3]).split("\n")
    assert any("[new, identity 2b]" in line and "90.0" in line for line in lines)
    assert "[embedded, identity not known]" in comparison([folders[0], folders[3]])
    # Found by a newcomer: the same recordings, scored against other annotations.
    results, settings = (load_json(folders[1] / f"{name}.json") for name in ("results", "settings"))
    results["data"]["truth"] = {**results["data"].get("truth", {}), "evaluation": "3c"}
    write_json(tmp_path / "corrected" / "results.json", results)
    write_json(tmp_path / "corrected" / "settings.json", settings)
    table = comparison([folders[0], tmp_path / "corrected"])
    assert "[old, identity 1a]" in table and "[old, identity 1a, truth 3c]" in table and "±" not in table
    assert "identity" not in comparison(folders[:2]) and "identity" not in comparison(folders[3:])


def test_runs_that_decide_have_a_row_of_the_models_that_stay(made: Path) -> None:
    """One run keeps its teacher, another its student: neither row of the two is what the method is worth."""
    folders = []
    for seed, final in enumerate(("teacher", "self_train_1")):
        out = put(made, seed, 0.6, "apl-jax run --config=mine.py --workdir=x", 7.0)
        results = load_json(out / "results.json")
        student = results["variants"]["self_train_1"]
        teacher = {**student, "average_map": 0.8, "map": dict.fromkeys(student["map"], 0.8)}
        variants = {"teacher": teacher, "self_train_1": student}
        write_json(
            out / "results.json", results | {"variants": variants, "final_variant": final, "decisions": {"a": 1}}
        )
        folders.append(out)
    rows = [line for line in comparison(folders).split("\n") if line.startswith("mine, model that stays")]
    assert len(rows) == 2 and all("80.0" in rows[1] and "60.0" in row for row in rows[1:])
    assert rows[0].split()[-3:] == ["70.0", "±", "14.1"]


def test_mean_and_deviation() -> None:
    from apl_jax.report.tables import mean_and_deviation

    assert mean_and_deviation([1.0, 2.0, 6.0], "+") == "+3.0 ± 2.6"  # the root of (4 + 1 + 9) / 2
    assert mean_and_deviation([4.25], decimals=2) == "4.25" and mean_and_deviation([]) == "–"
