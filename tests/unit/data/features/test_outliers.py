"""Values that cannot be are refused, values that are improbable are told with recording and row."""

from __future__ import annotations

import numpy as np
import pytest

from apl_jax.data.features.folder import open_folder
from apl_jax.data.features.outliers import Outliers
from apl_jax.data.files import DataError
from apl_jax.settings import GridSettings


def recordings(count: int, spread: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    scales = np.array([1e-3, 1.0, 1.0, 1e4])
    return {f"v{i}": (scales * rng.normal(3, spread, (40, 4))).astype(np.float32) for i in range(count)}


def found(arrays: dict[str, np.ndarray]) -> list[str]:
    outliers = Outliers()
    for name, array in arrays.items():
        outliers.add(name, array)
        outliers.add(name, array)
    return outliers.found()


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_point_7_usual_values_are_not_noted(count):
    rng = np.random.default_rng(1)
    sparse = {name: array * (rng.random(array.shape) < 0.02) for name, array in recordings(count).items()}
    assert found(recordings(count)) == [] and found(sparse) == []


@pytest.mark.parametrize("count", [1, 2, 3, 100])
@pytest.mark.parametrize(("row", "value"), [(slice(7, 8), 65504.0), (slice(0, 40), 1e7), (slice(39, 40), -1e9)])
def test_point_7_improbable_values_are_noted_with_recording_and_row(count, row, value):
    arrays = recordings(count)
    arrays["v0"][row, 1:3] = value
    if count <= 2 and row == slice(0, 40):  # nothing tells which recording is unusual
        return
    (words,) = found(arrays)
    assert words.startswith(f"recording 'v0', row {row.start}, channel") and f": {value:g} (usual: " in words


@pytest.mark.parametrize("value", [1e30, -2e15, np.nan, np.inf])
def test_point_7_impossible_values_are_refused(tmp_path, value):
    (tmp_path / "features").mkdir()
    array = np.ones((9, 4), np.float32)
    array[5, 2] = value
    np.save(tmp_path / "features" / "walk.npy", array)
    with pytest.raises(DataError, match=r"video 'walk': found .* at row 5, channel 2 .*finite numbers"):
        open_folder(tmp_path, GridSettings()).read("walk")
