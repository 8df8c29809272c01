"""Single values of files: numbers, rates, times, cells."""

from __future__ import annotations

import math

import pytest

from apl_jax.data.values import in_seconds, is_number, is_rate, number_or_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("62.5", 62.5), (" 00:01:02.5 ", 62.5), ("1:00:02", 3602.0), ("01:02.5", 62.5), (62.5, 62.5)],
)  # fmt: skip
def test_point_13_times_as_text(text: object, seconds: float) -> None:
    assert in_seconds(text) == seconds


@pytest.mark.parametrize("text", ["1:02", "0:90:00", "1:00:75", "99:9999", "1:75.5", "1e3", "-5", "", "٣", "1:2:3:4"])
def test_point_13_times_that_can_mean_two_things_are_not_read(text: str) -> None:
    """ "1:02" is hours and minutes to some; a minute has no 75 seconds."""
    assert in_seconds(text) == text


@pytest.mark.parametrize("value", [0, -1.5, 1e308])
def test_numbers(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, 10**400, [1]])
def test_what_is_no_number(value: object) -> None:
    assert not is_number(value) and not is_rate(value)


@pytest.mark.parametrize(
    ("value", "fine"), [(1e-3, True), (25, True), (1e6, True), (0, False), (-25, False), (2e6, False)]
)
def test_rates(value: float, fine: bool) -> None:
    assert is_rate(value) == fine


@pytest.mark.parametrize(("cell", "found"), [("0.5", 0.5), ("1e3", 1e3), ("1_0", "1_0"), ("walk", "walk"), ("", "")])
def test_cells(cell: str, found: float | str) -> None:
    assert number_or_text(cell) == found
