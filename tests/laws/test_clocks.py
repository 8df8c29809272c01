"""Law 9 on the grids of the data sets that the detectors were published on (those at hand: ``unit/test_grids.py``)."""

from __future__ import annotations

import numpy as np
import pytest

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


@pytest.mark.parametrize(("name", "offset"), [("thumos14", 2.0), ("epic_kitchens", 1.0), ("activitynet_tsp", 0.5)])
def test_offset(name: str, offset: float) -> None:
    assert GRIDS[name].offset == offset
    np.testing.assert_allclose(GRIDS[name].to_t(0.0), -offset)
