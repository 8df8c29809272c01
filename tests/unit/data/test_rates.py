"""A rate that is wrong for a whole data set is noted; single recordings and short ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from apl_jax.data.annotations import unannotated
from apl_jax.data.files import DataError
from apl_jax.data.grids import build_grid, place_rows
from apl_jax.data.rates import systematic_ratio
from apl_jax.settings import GridSettings

SETTINGS = GridSettings(window=16, stride=4)


def notes(durations_s: np.ndarray, true_fps: float, said_fps: float) -> tuple[str, ...]:
    """What is said of recordings of ``true_fps`` that are annotated as of ``said_fps``."""
    records = [unannotated(str(i), s, said_fps) for i, s in enumerate(durations_s.tolist())]
    grids = [build_grid(said_fps, int(s * true_fps), 16, 4) for s in durations_s]
    return systematic_ratio(records, grids, SETTINGS)


DURATIONS_S = np.random.default_rng(0).uniform(60, 300, 30)


@pytest.mark.parametrize(("true", "said"), [(25, 24), (24, 25), (30, 29)])
def test_point_4_a_systematic_ratio_suggests_the_true_rate(true, said):
    (note,) = notes(DURATIONS_S, true, said)
    assert f"{true / said:.3g} times as long" in note
    suggested = float(note.split("; ")[1].split()[1])
    assert suggested == pytest.approx(true, rel=4e-3) and f"instead of {said}" in note


def test_point_4_no_ratio_where_nothing_is_systematic():
    assert notes(DURATIONS_S, 25, 25) == () and notes(DURATIONS_S, 25, 24.9) == ()
    assert notes(np.full(30, 3.0), 25, 25) == ()  # rows end before short recordings
    assert notes(DURATIONS_S[:2], 25, 24) == ()
    rates = np.random.default_rng(1).uniform(24, 28, 30)
    records = [unannotated(str(i), s, 25.0) for i, s in enumerate(DURATIONS_S.tolist())]
    grids = [build_grid(25.0, int(s * fps), 16, 4) for s, fps in zip(DURATIONS_S, rates, strict=True)]
    assert systematic_ratio(records, grids, SETTINGS) == ()


def test_point_15_the_tolerance_is_a_setting_and_transposed_rows_are_called_so():
    rows = np.zeros((240, 32), np.float32)  # 972 samples, 9.72 s at 100
    settings = GridSettings(window=16, stride=4, length_tolerance=0.2)
    assert place_rows(rows, True, 100.0, 11.0, settings, "v")[0].length == 240
    with pytest.raises(DataError, match=r"within 5 %.*`data.length_tolerance`.*`data.exclude`"):
        place_rows(rows, True, 100.0, 11.0, SETTINGS, "v")
    with pytest.raises(DataError, match=r"within 5 %.* if this array is transposed, \[D, T\], turn it"):
        place_rows(rows.T, True, 100.0, 9.7, SETTINGS, "v")


def test_a_wrong_stride_is_answered_with_the_right_one() -> None:
    rows = np.zeros((240, 32), np.float32)
    with pytest.raises(DataError, match=r"`data.stride=10` would agree"):
        place_rows(rows, True, 100.0, 24.2, SETTINGS, "v")
    with pytest.raises(DataError) as wrong:  # no whole number of samples: something else is wrong
        place_rows(rows, True, 100.0, 3.5, SETTINGS, "v")
    assert "would agree" not in str(wrong.value)
    with pytest.raises(DataError) as signal:  # samples have no stride
        place_rows(rows, False, 100.0, 24.2, SETTINGS, "v")
    assert "would agree" not in str(signal.value)
