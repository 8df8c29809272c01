"""Text for each sink: what names and values from files may do to a message, a terminal, a table, a file's name."""

from __future__ import annotations

import csv
import io

import pytest

from apl_jax.text import (
    LONGEST_LINE,
    file_names,
    for_csv,
    for_file_name,
    for_message,
    for_terminal,
    from_csv,
    say,
    shown,
)

HOSTILE = "a\x1b[31mred\x1b[0m\rover\x07\x00\u202e\ud800"


def test_a_terminal_is_given_nothing_to_obey() -> None:
    assert for_terminal("größe 走る, two\nlines") == "größe 走る, two\nlines"
    assert for_terminal(HOSTILE) == r"a\x1b[31mred\x1b[0m\rover\x07\x00\u202e\ud800"


def test_what_is_said_reaches_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    say(f"größe {HOSTILE}")
    stream.flush()
    assert stream.buffer.getvalue() == rb"gr\xf6\xdfe a\x1b[31mred\x1b[0m\rover\x07\x00\u202e\ud800" + b"\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("walk\nrun", "'walk\\nrun'"),
        (HOSTILE[:6], r"'a\x1b[31m'"),
        ({"a": [1, 2]}, "{'a': [1, 2]}"),
        (float("nan"), "nan"),
        pytest.param(10**4999, "a whole number of 16,607 bits", id="long"),
        pytest.param([10**4999], "a list", id="long in a list"),
    ],
)
def test_values_are_quoted_on_one_line(value: object, words: str) -> None:
    assert shown(value) == words


def test_large_and_deep_values_are_quoted_in_part() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**7, ["x" * 10**6] * 10**4, {str(i): i for i in range(10**5)}, deep):
        assert len(shown(value)) <= 80 and len(shown(value, 300)) <= 300
    assert shown("x" * 100) == "'" + "x" * 76 + "..."
    while deep:  # taken apart by hand: Python would do it by recursion
        deep = deep.pop()


def test_lines_of_messages_have_an_end() -> None:
    first, second = for_message("a" * 10**6 + "\nb").split("\n")
    assert len(first) == LONGEST_LINE and first.endswith("...") and second == "b"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"), ("-5", "'-5"), ("@x", "'@x"), ("+x", "'+x"), ("'=x", "''=x"), ("''=x", "'''=x"),
        ("", ""), ("'", "'"), ("'walk'", "'walk'"), ("walk, run", "walk, run"),
    ],
)  # fmt: skip
def test_cells_are_no_formulas_and_come_back(text: str, cell: str) -> None:
    assert for_csv(text) == cell and from_csv(cell) == text


def test_a_name_cannot_split_a_row_of_a_table() -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerow([for_csv("a\r\n=b"), "1"])
    assert table.getvalue() == "a\\r\\n=b,1\n"


def test_names_of_files_stay_in_their_folder() -> None:
    assert for_file_name("v_größe-1.2") == "v_größe-1.2"
    for text in ("../../etc/passwd", "/etc", "a\nb", ".hidden", "-rf", "", "..", HOSTILE):
        name = for_file_name(text)
        assert name and not set(name) & set("/\\\0\n\r\x1b") and name[0] not in ".-"
    assert len(for_file_name("走" * 500).encode()) <= 200


def test_names_that_would_be_one_file_are_two() -> None:
    found = file_names(["a/b", "a:b", "a_b_2", "A_b", "c"])
    assert found[0] == "a_b" and found[-1] == "c"
    assert len({name.casefold() for name in found}) == 5
