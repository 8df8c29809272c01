"""Keys of JSON objects that were perhaps meant to be others: ``Annotations``, ``segmnet``."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Any

from apl_jax.data.files import refusal
from apl_jax.text import shown

_NEAR = 0.8  # of difflib's ratio: "segmnet" is near "segment", "segment(frames)" of THUMOS14's file is not


def misspelt_keys(entry: Mapping[str, Any], known: Iterable[str], where: str) -> list[tuple[str, str]]:
    """The unknown keys of an object that resemble a known one, each with that one.

    Raises :class:`~apl_jax.data.files.DataError` where the known key itself is missing: the value would be lost.
    """
    known, found = tuple(known), []
    for key in entry:
        near = None if key in known else _near(key, known)
        if near is None:
            continue
        if near not in entry:
            raise refusal(where, f"an unknown key {shown(key)}", f"the key {near!r}", f"rename it to {near!r}")
        found.append((key, near))
    return found


@functools.lru_cache(maxsize=1024)  # the same keys are in every row of a file
def _near(key: str, known: tuple[str, ...]) -> str | None:
    return next(iter(difflib.get_close_matches(key.strip().casefold(), known, 1, _NEAR)), None)
