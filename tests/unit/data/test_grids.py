"""Windows and clocks: law 9 on every grid of every data set at hand, the layout of a feature row, fixed lengths."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import tiny_choice

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.batching import Standardizer, read_rows
from apl_jax.data.dataset import open_dataset, open_truth
from apl_jax.data.features.folder import open_features
from apl_jax.data.features.loose_files import open_loose
from apl_jax.data.files import DataError
from apl_jax.data.grids import build_grid, extracted_rows, place_rows, pool_rows, resize_rows, window_signal
from apl_jax.declarations import SettingsError
from apl_jax.inference.model import Model, ModelCard
from apl_jax.inference.prediction import read_video
from apl_jax.learning.perturb import clip_segments, random_truncation
from apl_jax.nn.snippets import to_snippets
from apl_jax.settings import DataSettings, PerturbSettings
from apl_jax.structs import Batch, Targets

HAPT = Path(__file__).parents[3] / ".." / "shared" / "data" / "hapt"
SETTINGS = {"spsw": DataSettings(), "hapt": DataSettings(root=str(HAPT), window=50, stride=25)}


@pytest.mark.parametrize("name", ["spsw", "hapt"])
def test_seconds_to_grid_and_back(name):
    """Law 9, on every recording's grid, annotations included."""
    settings = SETTINGS[name]
    if name == "hapt" and not HAPT.is_dir():
        pytest.skip(f"the shared data folder {HAPT} is absent")
    source = open_features(settings)
    for record in open_truth(settings).videos.values():
        samples = len(source.read(record.id))
        grid = build_grid(record.fps, samples, settings.window, settings.stride, duration_s=record.duration_s)
        times_s = np.concatenate([record.segments_s.ravel(), np.linspace(0, record.duration_s, 7)])
        np.testing.assert_allclose(grid.to_s(grid.to_t(times_s)), times_s, rtol=0, atol=1e-6)
        steps_t = np.arange(grid.length)
        np.testing.assert_allclose(grid.to_t(grid.to_s(steps_t)), steps_t, rtol=0, atol=1e-6)
        assert grid.to_s(0) > 0 and grid.to_s(grid.length - 1) < record.duration_s


def test_known_times():
    """THUMOS14: window 16, stride 4 at 30 fps has an offset of 2 steps (spec 1.2)."""
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


# Fixed lengths

TSP = DataSettings(window=16, stride=16, grid="resize")
TSN = DataSettings(window=16, stride=16, grid="pool", fixed_length_t=100)


def ramp(count):
    return np.arange(count, dtype=np.float32)[:, None]


def test_resize_by_hand():
    """The goldens of spec 1.2; nothing is smoothed when rows become fewer."""
    golden = [0, 0.4375, 1.0625, 1.6875, 2.3125, 2.9375, 3.5625, 4]
    np.testing.assert_allclose(resize_rows(ramp(5), 8)[:, 0], golden, atol=1e-6)
    np.testing.assert_allclose(resize_rows(ramp(8), 5)[:, 0], [0.3, 1.9, 3.5, 5.1, 6.7], atol=1e-6)
    rows = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_rows(rows, 7), rows)
    assert resize_rows(rows, 192).dtype == np.float32 and resize_rows(rows, 192).shape == (192, 3)
    np.testing.assert_array_equal(resize_rows(rows[:1], 4), np.repeat(rows[:1], 4, 0))


@pytest.mark.parametrize(("count", "length"), [(2, 9), (5, 8), (433, 192), (192, 433), (3000, 192)])
def test_resize_is_that_of_jax(count, length):
    """An independent implementation, as SPOT and the position table use it."""
    rows = np.random.default_rng(count).normal(size=(count, 4)).astype(np.float32)
    expected = jax.image.resize(rows, (length, 4), "linear", antialias=False)
    np.testing.assert_allclose(resize_rows(rows, length), expected, atol=2e-4)  # its weights are float32


def test_pool_by_hand():
    """Two snippets of 2 s lie at 1 and 3 s of 4, the bins are of 1 s: [0, 1] has but its end, [3, 4] but its start.

    The others: values 0, .25, .5 and .5, .75, 1. With ten bins, the two of either end that do not reach a snippet's
    centre are zero.
    """
    rows = ramp(2) + 10
    np.testing.assert_allclose(pool_rows(rows, 4)[:, 0], [10, 10.25, 10.75, 11], atol=1e-6)
    pooled = pool_rows(rows, 10)[:, 0]
    assert pooled[[0, 1, 8, 9]].tolist() == [0, 0, 0, 0]
    # Bin 2 is [.8, 1.2] s, of which [1, 1.2] is covered: 10, 10.05, 10.1. Bin 3 is whole: 10.1, 10.2, 10.3.
    np.testing.assert_allclose(pooled[2:5], [10.05, 10.2, 10.4], atol=1e-5)
    np.testing.assert_array_equal(pool_rows(rows[:1], 3), np.full((3, 1), 10))


def pool_one_by_one(rows, length, st, window):
    """BSN's pooling as its public code goes about it, in seconds, bin by bin and point by point."""
    centres = [window / 2 + i * st for i in range(len(rows))]
    duration = centres[-1] + window / 2
    pooled = []
    for b in range(length):
        start, end = max(centres[0], b * duration / length), min(centres[-1], (b + 1) * duration / length)
        total = np.zeros(rows.shape[1])
        for k in range(3):
            time = start + k * (end - start) / 2
            i = min(max(math.floor((time - centres[0]) / st), 0), len(rows) - 2)
            share = (time - centres[i]) / st
            total += ((1 - share) * rows[i] + share * rows[i + 1]) / 3 if start <= end else 0
        pooled.append(total)
    return np.array(pooled)


@pytest.mark.parametrize("window", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("count", "length"), [(2, 100), (7, 100), (101, 100), (437, 100), (2000, 100), (13, 2)])
def test_pool_is_that_of_one_point_after_another(count, length, window):
    rows = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    expected = pool_one_by_one(rows, length, 0.64, 0.64 * window)
    pooled = pool_rows(rows, length, window)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, expected, atol=1e-4)


def test_a_fixed_grid_by_hand():
    """433 rows of 16 frames at 15 per second are 461.87 s: 192 rows of 36.08 frames, half a row of offset."""
    grid, rows = place_rows(np.zeros((433, 2), np.float32), True, 15.0, 462.0, TSP, "v")
    assert rows.shape == (192, 2) and grid.length == 192 and grid.offset == 0.5
    assert grid.stride == grid.window == 433 * 16 / 192
    np.testing.assert_allclose(grid.to_s(np.array([-0.5, 95.5, 191.5])), [0, 230.93333, 461.86667], atol=1e-4)
    assert extracted_rows(grid, TSP) == 433
    wide = dataclasses.replace(TSP, window=64)
    for settings, count in ((TSP, 1), (TSN, 2), (wide, 77), (dataclasses.replace(TSP, grid="rows"), 9)):
        grid, _ = place_rows(np.zeros((count, 2), np.float32), True, 29.97, None, settings, "v")
        assert extracted_rows(grid, settings) == count


@pytest.mark.parametrize("grid_kind", ["rows", "resize", "pool"])
@pytest.mark.parametrize(("count", "fps"), [(2, 25.0), (433, 15.0), (60, 23.976)])
def test_rows_stand_for_their_seconds(grid_kind, count, fps):
    """Features that are their own time: the second that the grid gives a row is the one that is in it."""
    centres_s = ((np.arange(count) + 0.5) * 16 / fps).astype(np.float32)[:, None]
    settings = dataclasses.replace(TSN, grid=grid_kind)
    grid, rows = place_rows(centres_s, True, fps, None, settings, "v")
    times_s = grid.to_s(np.arange(grid.length))
    whole = (times_s - grid.window / fps / 2 >= centres_s[0]) & (times_s + grid.window / fps / 2 <= centres_s[-1])
    assert whole.sum() >= 0.4 * grid.length or (count == 2 and grid_kind == "rows")
    np.testing.assert_allclose(rows[whole, 0], times_s[whole], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fps", [0.0, 25.0])
@pytest.mark.parametrize("grid_kind", ["rows", "resize", "pool"])
def test_rows_that_span_their_video(fps, grid_kind):
    """Stride 0: the duration alone says where rows are, and any rate gives the same seconds."""
    centres_s = ((np.arange(100) + 0.5) * 0.6).astype(np.float32)[:, None]
    settings = DataSettings(stride=0, grid=grid_kind, fixed_length_t=80)
    grid, rows = place_rows(centres_s, True, fps, 60.0, settings, "v")
    assert grid.length == len(rows) == (100 if grid_kind == "rows" else 80) and grid.offset == 0.5
    np.testing.assert_allclose(grid.to_s(np.array([-0.5, grid.length - 0.5])), [0, 60], atol=1e-9)
    np.testing.assert_allclose(rows[1:-1, 0], grid.to_s(np.arange(grid.length))[1:-1], atol=1e-4)
    assert extracted_rows(grid, settings) == (100 if grid_kind == "rows" else None)


def test_raw_signals_have_fixed_grids_too():
    signal = np.random.default_rng(0).normal(size=(205, 3)).astype(np.float32)
    settings = DataSettings(window=20, stride=10, grid="resize", fixed_length_t=32)
    grid, rows = place_rows(signal, False, 50.0, 4.1, settings, "v")
    np.testing.assert_array_equal(rows, resize_rows(window_signal(signal, 20, 10), 32))
    np.testing.assert_allclose(grid.to_s(31.5), 4.0)  # 19 windows end at sample 200


@pytest.mark.parametrize("settings", [TSP, TSN])
def test_refusals_of_fixed_grids(settings):
    rows = np.zeros((50, 2), np.float32)
    place = lambda fps=16.0, duration_s=50.0, windowed=True, **changes: place_rows(
        rows, windowed, fps, duration_s, dataclasses.replace(settings, **changes), "v"
    )
    assert len(place()[1]) == settings.fixed_length_t
    with pytest.raises(DataError, match="within 5 %"):  # as variable grids do
        place(duration_s=60.0)
    with pytest.raises(DataError, match="within 5 %"):
        place(duration_s=40.0)
    with pytest.raises(DataError, match="fps: found 0; expected samples per second"):
        place(fps=0.0)
    for length in (1, 0, -3):
        with pytest.raises(SettingsError, match=f"`fixed_length_t`: found {length}, expected at least 2"):
            place(fixed_length_t=length)
    with pytest.raises(SettingsError, match="`stride`: found -1, expected at least 0"):
        place(stride=-1)
    with pytest.raises(DataError, match=r"`data.stride`: found 0, and raw signals"):
        place(stride=0, windowed=False)
    with pytest.raises(DataError, match="'v': found no duration; expected seconds"):
        place(stride=0, duration_s=None)


@pytest.mark.parametrize("grid_kind", ["resize", "pool"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows_fill_a_fixed_grid(grid_kind, count):
    rows = 1 + np.random.default_rng(count).random((count, 4)).astype(np.float32)
    grid, placed = place_rows(rows, True, 16.0, None, dataclasses.replace(TSP, grid=grid_kind), "v")
    assert placed.shape == (192, 4) and np.isfinite(placed).all() and grid.length == 192
    assert placed.max() <= rows.max() + 1e-6
    inner = placed[96 // count : -96 // count] if count > 1 else placed
    assert (inner >= rows.min() - 1e-6).all()


def test_spot_sees_the_rows_of_a_fixed_grid_as_they_are():
    """100 rows are padded to 112; 100 snippets of them are these rows."""
    rows = np.random.default_rng(0).normal(size=(1, 112, 3)).astype(np.float32)
    snippets = to_snippets(jnp.asarray(rows), jnp.arange(112)[None] < 100, width=100, window_mode="resize", overlap=0.5)
    np.testing.assert_allclose(snippets.inputs[0, 0], rows[0, :100], atol=1e-5)
    assert snippets.mask.all() and snippets.scale_t.tolist() == [1.0]


# The reference's training rule on fixed grids (spec 1.2): V = 192 + o; segments that start at V or beyond are left
# out, and those with less than keep_ratio before V; the others end at V at the latest. Targets keep them all:
# random_truncation, which training draws, does the same as soon as it crops.


def as_targets(segments_t):
    count = len(segments_t)
    return Targets(
        jnp.asarray(segments_t, jnp.float32), jnp.zeros(count, jnp.int32), jnp.ones(count, bool), jnp.ones(count),
        jnp.zeros(count, bool),
    )  # fmt: skip


def test_a_crop_of_the_whole_video_is_the_reference_rule():
    draws = np.random.default_rng(0)
    start = draws.uniform(-0.5, 200, 500)
    segments_t = np.stack([start, start + draws.uniform(0.01, 60, 500)], 1)
    edge = 192.5
    kept = (start < edge) & ((np.minimum(segments_t[:, 1], edge) - start) / (segments_t[:, 1] - start) >= 0.5)
    found = clip_segments(as_targets(segments_t), jnp.array(0), jnp.array(192), 0.5, 0.5)
    assert 0.1 < kept.mean() < 0.95 and np.array_equal(found.mask, kept)
    np.testing.assert_allclose(found.segments_t[kept], np.minimum(segments_t, edge)[kept], atol=1e-4)


def test_crops_of_a_fixed_grid():
    """Crops are of 173 to 192 rows, and however long one is, what lies beyond the features teaches nothing."""
    targets = as_targets([[10.0, 30.0], [192.6, 260.0], [180.0, 260.0]])
    batch = Batch(
        jnp.ones((1, 192, 2)), jnp.ones((1, 192), bool), jax.tree.map(lambda x: x[None], targets), jnp.zeros(1, int)
    )
    draw = lambda key: random_truncation(key, batch, PerturbSettings(), 192, 0.5)
    views = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 400))
    lengths = views.mask[:, 0].sum(-1)
    assert views.features.shape[2] == 192 and set(lengths.tolist()) == set(range(173, 193))
    assert views.targets.mask[:, 0, 0].mean() > 0.9 and not views.targets.mask[:, 0, 1:].any()


# Prediction on loose files


def record_of(fps, duration_s):
    """A video without annotations; a duration of nan is not known."""
    blank = np.zeros((0, 2)), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, bool)
    return VideoRecord("walk", "", duration_s, fps, None, *blank)


def model_of(data):
    """What reading a video for prediction looks at: the grid and the width of training."""
    standardizer = Standardizer(np.zeros(2, np.float32), np.ones(2, np.float32))
    card = ModelCard("s", tiny_choice("actionformer"), ("a",), 2, "rows", data, 20, None, standardizer)
    return Model(card, None, None)  # pyright: ignore


@pytest.mark.parametrize("data", [TSP, TSN], ids=["resize", "pool"])
@pytest.mark.parametrize("duration_s", [math.nan, 110.0])
def test_loose_files_on_a_fixed_grid(data, duration_s, tmp_path):
    """171 rows of 16 frames at 25 per second are 109.44 s, whatever the annotations round it to."""
    centres_s = (np.arange(171) + 0.5) * 0.64
    np.save(tmp_path / "walk.npy", np.stack([centres_s, centres_s], 1).astype(np.float32))
    source = open_loose(tmp_path / "walk.npy", data, windowed=True)
    known, grid, rows = read_video(model_of(data), source, record_of(25.0, duration_s))
    assert known.duration_s == pytest.approx(109.44 if math.isnan(duration_s) else 110.0)
    assert len(rows) == grid.length == data.fixed_length_t
    np.testing.assert_allclose(grid.to_s(np.arange(grid.length))[2:-2], rows[2:-2, 0], atol=1e-3)
    # What training reads is the same.
    trained_grid, trained = read_rows(record_of(25.0, known.duration_s), source, data)
    assert trained_grid == grid and np.array_equal(trained, rows)
    with pytest.raises(DataError, match="no frame rate"):
        read_video(model_of(data), source, record_of(0.0, duration_s))
    with pytest.raises(DataError, match="within 5 %"):
        read_video(model_of(data), source, record_of(25.0, 120.0))


def test_loose_files_that_span_their_video(tmp_path):
    """The 400 x 100 tables: any rate or none, but a duration."""
    data = DataSettings(stride=0, grid="resize", fixed_length_t=100)
    np.savetxt(tmp_path / "walk.csv", np.tile((np.arange(100) + 0.5) * 1.3, (2, 1)).T, delimiter=",")
    source = open_loose(tmp_path / "walk.csv", data, windowed=True)
    for fps in (0.0, 25.0):
        known, grid, rows = read_video(model_of(data), source, record_of(fps, 130.0))
        assert known.duration_s == 130.0
        np.testing.assert_allclose(grid.to_s(np.arange(100)), rows[:, 0], atol=1e-4)
        with pytest.raises(DataError, match=r"'walk': found no duration; .* Try: `duration=<seconds>`"):
            read_video(model_of(data), source, record_of(fps, math.nan))


# Data sets


@pytest.mark.parametrize(("fixed_length_t", "length_t"), [(192, 192), (100, 112)])
def test_a_data_set_on_a_fixed_grid(fixed_length_t, length_t):
    """The embedded signals: one length for all, padded where the multiple asks for it, and another digest."""
    settings = DataSettings(grid="resize", fixed_length_t=fixed_length_t)
    found, plain = open_dataset(settings), open_dataset(DataSettings())
    for table in (found.labelled, found.unlabelled, found.evaluation):
        assert set(table.lengths.tolist()) == {fixed_length_t}
        assert table.features.shape[1] == length_t and not table.features[:, fixed_length_t:].any()
    pooled = open_dataset(dataclasses.replace(settings, grid="pool"))
    longer = open_dataset(dataclasses.replace(settings, fixed_length_t=fixed_length_t + 1))
    assert len({found.digest, plain.digest, pooled.digest, longer.digest}) == 4
