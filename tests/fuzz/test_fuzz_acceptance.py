"""Files that can be read and say what cannot be: each such value is refused, or named; none is taken without a word."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import Outcome, World, carried_out, make_world

pytestmark = pytest.mark.filterwarnings("default")

NOT_NUMBERS = (True, "x", "1_0", "0x1", "", [], {}, [1], float("nan"), float("inf"), 10**400)
NOT_TIMES = (*NOT_NUMBERS, -1e300, 1e300)
NOT_POSITIVE = (0, -1, *NOT_TIMES)
NOT_SEGMENTS = ("12", {"3": 4}, 3, True, None, [], [1], [1, 2, 3], [2, 1], [True, 2], [[1], 2], [1, None], [-5, -4])
NOT_SEGMENTS += tuple([1, value] for value in NOT_TIMES)
FEW = (0, -1, True, "x", float("nan"))  # for `inspect`, which takes a second
NOT_NAMES = (None, 3, 0.5, True, [], {}, "", " ")

ANNOTATIONS = ("evaluate", "--annotations={annotations}", "--predictions={predictions}")
TABLE = ("evaluate", "--annotations={annotations}", "--predictions={table}")
SCORES = (*ANNOTATIONS, "--external_scores={scores}")
THRESHOLDS = ("predict", "--workdir={model}", "--features={root}/features", "--fps=30", "--thresholds={thresholds}")
FEATURES = ("predict", "--workdir={model}", "--features={root}/features", "--fps=30")
INSPECT = ("inspect", "--config.runtime.progress=False", "--config.data.root={root}", "--config.data.stride=3",
           "--config.data.window=4", "--config.data.label_ratio=0.5", "--workdir={root}/new")  # fmt: skip

Change = Callable[[Any, random.Random, Any], None]


def entry(name: str) -> Change:
    """Gives a field of one video of the annotations a value."""

    def change(document: Any, draws: random.Random, value: Any) -> None:
        draws.choice(list(document["database"].values()))[name] = value

    return change


def instance(name: str) -> Change:
    """Gives a field of one instance of the annotations a value."""

    def change(document: Any, draws: random.Random, value: Any) -> None:
        draws.choice(draws.choice(list(document["database"].values()))["annotations"])[name] = value

    return change


def detection(name: str) -> Change:
    """Gives a field of one prediction a value."""

    def change(document: Any, draws: random.Random, value: Any) -> None:
        draws.choice(draws.choice(list(document["results"].values())))[name] = value

    return change


def threshold(document: Any, draws: random.Random, value: Any) -> None:
    document[draws.choice(list(document))] = value


def video_score(document: Any, draws: random.Random, value: Any) -> None:
    scores = draws.choice(list(document["results"].values()))
    scores[draws.randrange(len(scores))] = value


def own(name: str) -> Change:
    """Gives a field of the whole document a value."""
    return lambda document, draws, value: document.__setitem__(name, value)


# What is changed, in which file, by which values, and the command that reads it.
CASES: dict[str, tuple[str, Change, tuple[Any, ...], tuple[str, ...]]] = {
    "segments of annotations": ("annotations.json", instance("segment"), NOT_SEGMENTS, ANNOTATIONS),
    "labels of annotations": ("annotations.json", instance("label"), NOT_NAMES, ANNOTATIONS),
    "durations": ("annotations.json", entry("duration"), NOT_POSITIVE, INSPECT),
    "rates of annotations": ("annotations.json", entry("fps"), NOT_POSITIVE, INSPECT),
    "subsets": ("annotations.json", entry("subset"), ("trainig", "Test ing", 3, True, [], {}), INSPECT),
    "lists of annotations": ("annotations.json", entry("annotations"), ("", 3, True, {}, [3], ["x"]), INSPECT),
    "scores of predictions": ("predictions.json", detection("score"), (None, *NOT_NUMBERS), ANNOTATIONS),
    "segments of predictions": ("predictions.json", detection("segment"), NOT_SEGMENTS, ANNOTATIONS),
    "labels of predictions": ("predictions.json", detection("label"), (*NOT_NAMES, "unheard of"), ANNOTATIONS),
    "thresholds": ("thresholds.json", threshold, (-5, 7, *NOT_TIMES), THRESHOLDS),
    "class scores": ("scores.json", video_score, (None, *NOT_NUMBERS), SCORES),
    "rates of features": ("features.json", own("fps"), FEW, INSPECT),
    "strides of features": ("features.json", own("stride"), (1.5, *FEW), INSPECT),
    "widths of features": ("features.json", own("width"), (1, 1.5, *FEW), INSPECT),
    "deviations of a model": (
        "run/model/model.json", lambda d, r, v: d["std"].__setitem__(r.randrange(len(d["std"])), v),
        (None, *NOT_POSITIVE), FEATURES,
    ),
    "classes of a model": (
        "run/model/model.json", lambda d, r, v: d["classes"].__setitem__(r.randrange(len(d["classes"])), v),
        NOT_NAMES, FEATURES,
    ),
    "rates of a model": ("run/model/model.json", own("fps"), NOT_POSITIVE, FEATURES),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of the program are logged in a folder of the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def words(outcome: Outcome) -> str:
    """The messages of a command: those of ``inspect`` are part of its page."""
    return outcome.err + "".join(re.findall(r"^(?:notes|errors)\n.*?(?=\n\n)", outcome.out, re.DOTALL | re.MULTILINE))


def silent(world: World, path: Path, contents: Iterator[tuple[Any, bytes]], command: tuple[str, ...]) -> list[str]:
    """The changes after which a command says the same, and ends as well, as before."""
    arguments = [argument.format(**world._asdict()) for argument in command]
    fine, before, found = carried_out(arguments), path.read_bytes(), []
    assert fine.code == 0, fine.err
    try:
        for value, content in contents:
            path.write_bytes(content)
            outcome = carried_out(arguments)
            noted = outcome.code == 1 or (outcome.code == 0 and words(outcome) != words(fine))
            if not noted or "Traceback" in outcome.err:
                found.append(f"{str(value)[:60]!r}: code {outcome.code}\n{outcome.out[-300:]}{outcome.err[-1000:]}")
    finally:
        path.write_bytes(before)
    return found


@pytest.mark.parametrize("kind", CASES)
def test_no_value_that_cannot_be_is_taken_without_a_word(kind: str, world: World) -> None:
    name, change, values, command = CASES[kind]
    whole = json.loads((world.root / name).read_text())
    draws = random.Random(kind)

    def contents() -> Iterator[tuple[Any, bytes]]:
        for value in values:
            document = copy.deepcopy(whole)
            change(document, draws, value)
            yield value, json.dumps(document).replace("1" + "0" * 400, "1e400").encode()

    assert silent(world, world.root / name, contents(), command) == []


@pytest.mark.parametrize(
    ("column", "texts"),
    [(3, ("x", "", "nan", "inf", "1_0")), (4, ("x", "", "nan", "1e400")), (5, ("x", "", "nan", "True", "1e400"))],
    ids=["start", "end", "score"],
)
def test_no_cell_of_a_table_that_cannot_be_is_taken_without_a_word(
    column: int, texts: tuple[str, ...], world: World
) -> None:
    lines = world.table.read_text().splitlines()

    def contents() -> Iterator[tuple[Any, bytes]]:
        for text in texts:
            cells = lines[1].split(",")
            cells[column - 1] = text
            yield text, "\n".join([lines[0], ",".join(cells), *lines[2:], ""]).encode()

    assert silent(world, world.table, contents(), TABLE) == []


@pytest.mark.parametrize("command", [FEATURES, INSPECT], ids=["predict", "inspect"])
def test_no_number_in_features_that_cannot_be_is_taken_without_a_word(command: tuple[str, ...], world: World) -> None:
    path = world.root / "features" / "video_1.npy"
    whole, draws = np.load(path), random.Random(0)

    def contents() -> Iterator[tuple[Any, bytes]]:
        for value in (np.nan, np.inf, -np.inf, 65504.0, 1e30, -1e30):
            array = whole.copy()
            array[draws.randrange(len(array)), draws.randrange(array.shape[1])] = value
            np.save(world.root / "changed.npy", array)
            yield value, (world.root / "changed.npy").read_bytes()

    assert silent(world, path, contents(), command) == []
