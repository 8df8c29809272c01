"""What a single value of a file may be: numbers, rates, times, cells of a table."""

from __future__ import annotations

import math
import re
from typing import Any, TypeGuard

from apl_jax.settings import FASTEST_RATE, SLOWEST_RATE

LONGEST_S = 1e8  # three years: what is longer is a mistake, and float32 would round its times to seconds
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
# "1:02" could be hours and minutes; with a fraction, as in "1:02.5", its last part must be seconds.
_CLOCK = re.compile(r"(?:([0-9]{1,3}):(?=[0-9]+:)|(?=[^.]*\.))([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]{1,9})?)")


def is_number(value: Any) -> TypeGuard[int | float]:
    """A finite JSON number (JSON's whole numbers may be too large for a float)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_rate(value: Any) -> bool:
    """Whether a value can be a rate: a number from 0.001 to 1,000,000 samples or frames per second."""
    return is_number(value) and SLOWEST_RATE <= value <= FASTEST_RATE


def in_seconds(value: Any) -> Any:
    """A time as a file states it, in seconds where it is text that can only mean that; all else as it is."""
    text = value.strip() if isinstance(value, str) else ""
    if _SECONDS.fullmatch(text):
        return float(text)
    found = _CLOCK.fullmatch(text)
    if found is None:
        return value
    hours, minutes, seconds = found.groups(default="0")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def number_or_text(cell: str) -> float | str:
    """A cell of a table as a number; one that is none stays text, for its reader to refuse."""
    try:
        return cell if "_" in cell else float(cell)  # 1_0 is a number to Python alone
    except ValueError:
        return cell
