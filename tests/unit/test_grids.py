"""Windows and clocks: law 9 on every grid of every data set at hand, and the layout of a feature row."""

from pathlib import Path

import numpy as np
import pytest

from apl_jax.data.dataset import open_truth
from apl_jax.data.features import open_features
from apl_jax.data.files import DataError
from apl_jax.data.grids import build_grid, window_signal
from apl_jax.settings import DataSettings

HAPT = Path(__file__).parents[2] / ".." / "shared" / "data" / "hapt"
SETTINGS = {"spsw": DataSettings(), "hapt": DataSettings(root=str(HAPT), window=50, stride=25)}


@pytest.mark.parametrize("name", ["spsw", "hapt"])
def test_seconds_to_grid_and_back(name):
    """Law 9, on every recording's grid, annotations included."""
    settings = SETTINGS[name]
    if name == "hapt" and not HAPT.is_dir():
        pytest.skip(f"the shared data folder {HAPT} is absent")
    source = open_features(None, settings)
    for record in open_truth(settings).videos.values():
        samples = len(source.read(record.id))
        grid = build_grid(record.fps, samples, settings.window, settings.stride, duration_s=record.duration_s)
        times_s = np.concatenate([record.segments_s.ravel(), np.linspace(0, record.duration_s, 7)])
        np.testing.assert_allclose(grid.to_s(grid.to_t(times_s)), times_s, rtol=0, atol=1e-6)
        steps_t = np.arange(grid.length)
        np.testing.assert_allclose(grid.to_t(grid.to_s(steps_t)), steps_t, rtol=0, atol=1e-6)
        assert grid.to_s(0) > 0 and grid.to_s(grid.length - 1) < record.duration_s


def test_known_times():
    """THUMOS14: window 16, stride 4 at 30 fps has an offset of 2 steps (systems.md 1.2)."""
    grid = build_grid(30.0, 1000, 16, 4)
    assert grid.offset == 2.0 and grid.length == 247
    np.testing.assert_allclose(grid.to_t(np.array([0.0, 16 / 60, 10.0])), [-2.0, 0.0, 73.0])


@pytest.mark.parametrize(("samples", "length"), [(20, 1), (29, 1), (30, 2), (1351, 134)])
def test_rows_end_inside_the_signal(samples, length):
    assert build_grid(100.0, samples, 20, 10).length == length
    assert window_signal(np.zeros((samples, 6), np.float32), 20, 10).shape == (length, 120)


def test_a_row_is_its_window_sample_by_sample():
    signal = np.arange(25 * 3, dtype=np.float32).reshape(25, 3)
    rows = window_signal(signal, 6, 4)
    assert rows.dtype == np.float32
    for g, row in enumerate(rows):
        np.testing.assert_array_equal(row, signal[4 * g : 4 * g + 6].ravel())


def test_window_and_stride_of_one_change_nothing():
    signal = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    np.testing.assert_array_equal(window_signal(signal, 1, 1), signal)
    assert build_grid(10.0, 9, 1, 1).length == 9


def test_row_stands_for_the_centre_of_its_window():
    """A signal that is its own time: the mean of row g is the second the grid gives it, but for half a sample."""
    seconds_s = np.arange(300)[:, None] / 50.0
    grid = build_grid(50.0, 300, 20, 10)
    centres_s = window_signal(seconds_s, 20, 10).mean(1) + 0.5 / 50.0
    np.testing.assert_allclose(grid.to_s(np.arange(grid.length)), centres_s, atol=1e-5)


def test_refusals():
    with pytest.raises(
        DataError, match=r"video 'short': found 19 samples \(0.19 s\); expected at least one window of 20"
    ):
        build_grid(100.0, 19, 20, 10, video="short")
    with pytest.raises(DataError, match=r"'v': found 1000 samples at 100 per second = 10.00 s .* 10.60 s, within 5 %"):
        build_grid(100.0, 1000, 20, 10, video="v", duration_s=10.6)
    assert build_grid(100.0, 1000, 20, 10, video="v", duration_s=10.5).length == 99
    # Four whole rows of 16 frames are all that 3.1 s at 25 per second give: 17 % less, but not a row too few.
    assert build_grid(25.0, 64, 16, 16, video="v", duration_s=3.1).length == 4
    with pytest.raises(DataError, match="within 5 %"):
        build_grid(25.0, 48, 16, 16, video="v", duration_s=3.1)
    with pytest.raises(DataError, match="video 'v', fps: found 0"):
        build_grid(0.0, 1000, 20, 10, video="v")
    with pytest.raises(DataError, match="window 0, stride 10"):
        build_grid(100.0, 1000, 0, 10)
