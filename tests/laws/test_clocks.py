"""Law 9 on the grids of the data sets that the detectors were published on; on those at hand:
``unit/data/test_grids.py``."""

from __future__ import annotations

import numpy as np
import pytest

from apl_jax.data.grids import place_rows
from apl_jax.settings import DataSettings
from apl_jax.structs import TimeGrid

# fps, stride, window in frames, feature rows (systems 1.1, 1.2). ActivityNet's grid is resized to 192 rows: its stride
# is a fraction of its length, and its window one stride.
ACTIVITYNET_STRIDE = ((433 - 1) * 16 + 16) / 192
GRIDS = {
    "thumos14": TimeGrid(30.0, 4, 16, 2304),
    "thumos14_25fps": TimeGrid(25.0, 4, 16, 47000),
    "epic_kitchens": TimeGrid(59.94, 16, 32, 9000),
    "activitynet_tsp": TimeGrid(15.0, ACTIVITYNET_STRIDE, ACTIVITYNET_STRIDE, 192),
    "ego4d": TimeGrid(30.0, 16, 16, 928),
}


@pytest.mark.parametrize("name", GRIDS)
def test_there_and_back(name: str) -> None:
    grid = GRIDS[name]
    duration_s = ((grid.length - 1) * grid.stride + grid.window) / grid.fps
    times_s = np.random.default_rng(0).uniform(0, duration_s, 1000)
    np.testing.assert_allclose(grid.to_s(grid.to_t(times_s)), times_s, atol=1e-6, rtol=0)
    # Row g stands for the centre of the frames that it sees.
    rows = np.arange(grid.length)
    np.testing.assert_allclose(grid.to_s(rows), (rows * grid.stride + grid.window / 2) / grid.fps, rtol=1e-12)


# What a data set's settings make of videos of any length: fps, settings (systems 1.1, 2.6).
DATA_SETS = {
    "thumos14": (30000 / 1001, DataSettings(window=16, stride=4)),
    "activitynet_tsp": (15.0, DataSettings(window=16, stride=16, grid="resize")),
    "activitynet_i3d": (25.0, DataSettings(window=16, stride=16, grid="resize")),
    "epic_kitchens": (30.0, DataSettings(window=32, stride=16)),
    "activitynet_tsn_100": (0.0, DataSettings(stride=0, grid="resize", fixed_length_t=100)),
    "activitynet_tsn": (23.976, DataSettings(window=16, stride=16, grid="pool", fixed_length_t=100)),
}


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("duration_s", [2.5, 117.43, 755.11])
def test_there_and_back_on_the_grid_of_a_data_set(name: str, duration_s: float) -> None:
    """Rows as an extractor leaves them of a video: the grid covers it, and brings every time in it back."""
    fps, data = DATA_SETS[name]
    count = 100 if data.stride == 0 else 1 + (int(duration_s * fps) - data.window) // data.stride
    rows = np.zeros((count, 1), np.float32)
    grid, placed = place_rows(rows, True, fps, duration_s, data, "v")
    assert grid.length == len(placed) == (count if data.grid == "rows" else data.fixed_length_t)
    times_s = np.append(np.random.default_rng(0).uniform(0, duration_s, 1000), [0, duration_s])
    np.testing.assert_allclose(grid.to_s(grid.to_t(times_s)), times_s, atol=1e-6, rtol=0)
    first_s, last_s = grid.to_s(np.array([-grid.offset, grid.length - 1 + grid.offset]))
    assert abs(first_s) < 1e-9
    # Frames that fill no whole row are left out at the end.
    assert duration_s - (data.stride + 1) / (fps or 1) - 1e-9 <= last_s <= duration_s + 1e-9
    if data.grid != "rows":
        assert grid.offset == 0.5
        np.testing.assert_allclose(grid.to_t(np.array([0.0, last_s])), [-0.5, grid.length - 0.5], atol=1e-9)


@pytest.mark.parametrize(("name", "offset"), [("thumos14", 2.0), ("epic_kitchens", 1.0), ("activitynet_tsp", 0.5)])
def test_offset(name: str, offset: float) -> None:
    assert GRIDS[name].offset == offset
    np.testing.assert_allclose(GRIDS[name].to_t(0.0), -offset)
