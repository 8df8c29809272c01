"""Law 13: every number among the settings, of whatever is registered, has bounds on both sides, and keeps to them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import fixtures  # noqa: F401  # registers the plug-in's entries
import pytest

from apl_jax.declarations import Chain, Choice, SettingsError, override
from apl_jax.registry import DETECTORS, METHODS, SELECTION
from apl_jax.runs.settings import Settings

REGISTERED = {
    f"{registry.kind} {name}": registry[name].settings
    for registry in (DETECTORS, METHODS, SELECTION)
    for name in registry
}
OWNERS = {"a run": Settings, **REGISTERED}


def numeric_fields(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value, metadata) of every field that holds numbers."""
    for f in dataclasses.fields(settings):
        value, path = getattr(settings, f.name), f"{prefix}{f.name}"
        if isinstance(value, (Choice, Chain)):
            continue  # those of an entry are looked at where it is registered
        if dataclasses.is_dataclass(value):
            yield from numeric_fields(value, f"{path}.")
        elif type(value) in (int, float) or (isinstance(value, tuple) and ("int" in f.type or "float" in f.type)):
            yield path, value, f.metadata


def nested(default: Any, number: Any) -> Any:
    """A number in place of every number of a nested tuple."""
    if not isinstance(default, tuple):
        return number
    return tuple(nested(entry, number) for entry in default) or (number,)


@pytest.mark.parametrize("owner", OWNERS)
def test_point_11_every_number_has_bounds(owner: str) -> None:
    settings = OWNERS[owner]()
    for path, value, metadata in numeric_fields(settings):
        bounds = metadata.get("bounds")
        assert bounds, f"{path} has no bounds"
        at_least, at_most, above, below = bounds
        assert math.isfinite(max(at_least, above)) and math.isfinite(min(at_most, below)), f"{path}: {bounds}"
        wrong = [
            math.nan,
            math.inf,
            -math.inf,
            1e300,
            -1e300,
            *(edge for edge in (above, below) if math.isfinite(edge)),
        ]
        if at_least > 0:
            wrong.append(0)
        for number in wrong:
            whole = not isinstance(value, float) and not (
                isinstance(value, tuple) and "float" in str(value_type(value))
            )
            given = int(number) if whole and math.isfinite(number) else number
            with pytest.raises(SettingsError, match=path.replace(".", r"\.")):
                override(settings, {path: nested(value, given)})
        for edge in (at_least, at_most):
            if math.isfinite(edge) and not isinstance(value, tuple):
                try:
                    override(settings, {path: type(value)(edge)})
                except SettingsError as error:  # rules between fields may be narrower, and name both
                    assert "expected" in str(error)


def value_type(value: Any) -> Any:
    """The type of the first number of a nested tuple."""
    while isinstance(value, tuple) and value:
        value = value[0]
    return type(value)
