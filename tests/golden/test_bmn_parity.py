"""BMN against its public re-implementation (layout J), in float64 and float32, and the worked numbers of spec 2.

All sizes and settings are those of the recorded file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bmn_reference import bmn_parameters
from pyramid_reference import below

from apl_jax.detectors.bmn import build_bmn
from apl_jax.detectors.bmn_outputs import BmnOutputs
from apl_jax.detectors.bmn_settings import BmnSettings, MapQualitySettings, sampling_of, without_quality
from apl_jax.detectors.bmn_targets import assign, balanced_cross_entropy, bmn_losses, weighted_mean
from apl_jax.ops.boundary_matching import Sampling, projected_samples, sampling_taps, squares_of, to_map
from apl_jax.ops.suppression import suppress
from apl_jax.structs import Batch, DataFacts, Targets

GOLDEN = Path(__file__).parent


def reference() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "bmn.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def settings_of(record: dict[str, np.ndarray]) -> tuple[BmnSettings, DataFacts]:
    config = json.loads(str(record["config"]))
    width, feature_width = config["hidden_1d"], config["feat_dim"]
    s = BmnSettings(
        steps=config["temporal_scale"], samples=config["num_sample"], sample_points=config["num_sample_perbin"],
        extension=config["prop_boundary_ratio"], width=width, matching_width=width, map_width=config["hidden_2d"],
        sample_width=config["hidden_3d"], groups=feature_width // record["param/x_1d_b.0.weight"].shape[1],
        classes="none", quality=MapQualitySettings(branches="none"),
    )  # fmt: skip
    return s, DataFacts(feature_width, 1)


def by_duration(x: np.ndarray) -> np.ndarray:
    """The reference's map ``[..., start, end]`` as ours, ``[..., duration, start]``; 0 where a cell is none."""
    steps = x.shape[-1]
    found = np.zeros_like(x)
    for start in range(steps):
        for end in range(start, steps):
            found[..., end - start, start] = x[..., start, end]
    return found


TYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 2e-5)])


@TYPES
def test_boundary_matching_layer(dtype: type, tolerance: float) -> None:
    """Alone: each bin and channel of its own is asked for by a kernel of zeros and ones."""
    record = reference()
    with jax.enable_x64(dtype is np.float64):
        sampling = sampling_of(settings_of(record)[0])
        x = jnp.asarray(record["boundary_matching_in"].transpose(0, 2, 1), dtype)
        channels, bins = x.shape[-1], sampling.samples
        kernel = jnp.eye(bins * channels, dtype=dtype).reshape(bins, channels, bins * channels)
        found = to_map(jnp.swapaxes(projected_samples(x, kernel, sampling), 0, 1), sampling)
        found = np.asarray(found).reshape(*found.shape[:3], bins, channels).transpose(0, 4, 3, 1, 2)
        expected = by_duration(record["boundary_matching_out"])
        # Weights are kept in float32.
        np.testing.assert_allclose(found, expected, atol=max(tolerance, 1e-6), rtol=0)
        mask = record["param/sample_mask"].reshape(sampling.steps, bins, sampling.steps, sampling.steps)
        duration, start = np.indices((sampling.steps, sampling.steps))
        step, weight = sampling_taps(sampling, duration, start)
        dense = np.zeros((*duration.shape, bins, sampling.steps))
        for d, s in zip(*np.nonzero(duration + start < sampling.steps), strict=True):
            for n in range(bins):
                np.add.at(dense[d, s, n], step[d, s, n], weight[d, s, n])
        np.testing.assert_allclose(dense.transpose(3, 2, 0, 1), by_duration(mask), atol=1e-7, rtol=0)


@TYPES
def test_network(dtype: type, tolerance: float) -> None:
    record = reference()
    with jax.enable_x64(dtype is np.float64):
        settings, facts = settings_of(record)
        detector = build_bmn(settings, facts)
        params, shapes = (
            bmn_parameters(below(record, "param/"), dtype),
            jax.eval_shape(detector.init, jax.random.key(0))[0],
        )
        assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
        features = jnp.asarray(record["x"].transpose(0, 2, 1), dtype)
        videos = len(features)
        none = jnp.zeros((videos, 1), bool)
        targets = Targets(
            jnp.zeros((videos, 1, 2)), jnp.zeros((videos, 1), jnp.int32), none, jnp.ones((videos, 1)), none
        )
        batch = Batch(features, jnp.ones(features.shape[:2], bool), targets, jnp.arange(videos))
        outputs = jax.jit(detector.apply, static_argnums=2)(params, batch, None)
        tolerance = max(tolerance, 1e-6)  # the layer's weights are kept in float32
        cells, boundary = jax.nn.sigmoid(outputs.map_logits[:, 0]), jax.nn.sigmoid(outputs.boundary_logits[:, 0])
        assert cells.dtype == boundary.dtype == dtype
        valid = np.asarray(outputs.cell_mask[:, 0])
        for channel in (0, 1):
            expected = by_duration(record["confidence_map"][:, channel])
            np.testing.assert_allclose(np.where(valid, cells[..., channel], 0), expected, atol=tolerance, rtol=0)
        for i, name in enumerate(("start", "end")):
            np.testing.assert_allclose(boundary[..., i], record[name], atol=tolerance, rtol=0, err_msg=name)


@TYPES
def test_losses(dtype: type, tolerance: float) -> None:
    record, settings = reference(), BmnSettings()
    with jax.enable_x64(dtype is np.float64):
        array = lambda x: jnp.asarray(x, dtype)
        cells = record["confidence_map"].shape[-1]
        inside = array(np.broadcast_to(np.triu(np.ones((cells, cells))), record["target/iou_map"].shape))
        loss = lambda p, goal, least, weight: balanced_cross_entropy(array(p), array(goal) > least, weight)
        boundary = sum(
            loss(record[name], record[f"target/{name}"], settings.boundary_positive, jnp.ones_like(array(record[name])))
            for name in ("start", "end")
        )
        of_map = loss(record["confidence_map"][:, 1], record["target/iou_map"], settings.map_positive, inside)
        np.testing.assert_allclose(boundary, record["loss/tem"], rtol=1e-5)
        np.testing.assert_allclose(of_map, record["loss/pem_cls"], rtol=1e-5)


def test_parameter_count() -> None:
    """Layout J on 400 features, without the class head that published BMN has not (spec 2.1)."""
    detector = build_bmn(dataclasses.replace(without_quality(BmnSettings()), classes="none"), DataFacts(400, 1))
    shapes = jax.eval_shape(detector.init, jax.random.key(0))[0]
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == 4_978_564


# ---- Worked numbers of the specification ----


def bins_of(layout: str, duration: int, start: int) -> np.ndarray:
    """Weights ``[32, 100]`` of a cell."""
    sampling = Sampling(100, 100, 32, 3, 0.5, layout)
    step, weight = sampling_taps(sampling, np.array(duration), np.array(start))
    dense = np.zeros((32, 100))
    for n in range(32):
        np.add.at(dense[n], step[n], weight[n])
    return dense


@pytest.mark.parametrize(
    ("layout", "cell", "total", "bins"),
    [
        ("J", (0, 0), 31.6667, {0: {0: 0.6667}, 15: {0: 0.5474, 1: 0.4526}, 31: {1: 0.0316, 2: 0.9684}}),
        ("J", (3, 5), 32, {0: {1: 0.9263, 2: 0.0737}, 15: {4: 0.6105, 5: 0.3895}, 31: {7: 0.0737, 8: 0.9263}}),
        ("J", (20, 50), 32, {
            0: {4: 0.4456, 5: 0.4456, 6: 0.1088}, 15: {33: 0.0526, 34: 0.4456, 35: 0.4456, 36: 0.0561},
            31: {65: 0.1088, 66: 0.4456, 67: 0.4456},
        }),
        ("S", (0, 0), 32, {0: {0: 1}, 15: {0: 1}, 31: {0: 0.5105, 1: 0.4895}}),
        ("S", (3, 5), 32, {0: {3: 0.9263, 4: 0.0737}, 15: {6: 0.6105, 7: 0.3895}, 31: {9: 0.0737, 10: 0.9263}}),
        ("S", (20, 50), 32, {
            0: {39: 0.1895, 40: 0.6895, 41: 0.1211}, 15: {58: 0.0263, 59: 0.5947, 60: 0.3789},
            31: {79: 0.1211, 80: 0.6895, 81: 0.1895},
        }),
    ],
)  # fmt: skip
def test_sampling_of_a_cell(layout: str, cell: tuple[int, int], total: float, bins: dict) -> None:
    """J's cells are (start, end), S's (duration, start)."""
    duration, start = (cell[1] - cell[0], cell[0]) if layout == "J" else cell
    found = bins_of(layout, duration, start)
    np.testing.assert_allclose(found.sum(), total, atol=5e-5)
    for n, entries in bins.items():
        expected = np.zeros(100)
        expected[list(entries)] = list(entries.values())
        np.testing.assert_allclose(found[n], expected, atol=6e-5)


@pytest.mark.parametrize(("layout", "total"), [("J", 144888.6388), ("S", 145904.4142)])
def test_the_whole_mask(layout: str, total: float) -> None:
    """What the squares hold together, of which 1.5 % would not be zero in a dense mask."""
    squares = squares_of(Sampling(100, 100, 32, 3, 0.5, layout))
    np.testing.assert_allclose(squares.weight.sum(dtype=np.float64), total, rtol=1e-6)
    if layout == "J":
        np.testing.assert_allclose((squares.weight != 0).sum() / 32e6, 0.014976, atol=5e-7)


STEPS = 10


def scene(start: np.ndarray, end: np.ndarray, cells: np.ndarray) -> tuple[BmnOutputs, Targets]:
    """Ten snippets with the instance (.23, .71), predictions being logits; ``cells [2, 10, 10]``, starts x ends."""
    turned = jnp.asarray(np.stack([by_duration(x) for x in cells], -1), jnp.float32)
    outputs = BmnOutputs(
        jnp.zeros((1, 1, STEPS, 1)), turned[None, None],
        jnp.asarray(np.stack([start, end], -1), jnp.float32)[None, None], jnp.zeros((1, 1, STEPS, 4)),
        jnp.ones((1, 1, STEPS), bool), jnp.zeros((1, 1)), jnp.ones(1), jnp.array([STEPS]),
    )  # fmt: skip
    segments_t = jnp.array([[[2.3 - 0.5, 7.1 - 0.5]]])
    one = jnp.ones((1, 1), bool)
    return outputs, Targets(segments_t, jnp.zeros((1, 1), jnp.int32), one, jnp.ones((1, 1)), ~one)


def test_labels_and_losses_of_the_worked_example() -> None:
    time, index = np.arange(STEPS), np.arange(2 * STEPS * STEPS).reshape(2, STEPS, STEPS)
    outputs, targets = scene(np.sin(time), np.cos(time), np.sin(index))
    settings = BmnSettings(steps=STEPS, classes="none", quality=MapQualitySettings(branches="none"))
    goal = jax.jit(assign, static_argnums=2)(outputs, targets, settings)
    expected = [[0, 0.7, 1, 1, 0.3, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0.9, 1, 1, 0.1]]
    np.testing.assert_allclose(goal.boundary[0, 0].T, expected, atol=1e-6)
    valid = np.asarray(outputs.cell_mask)
    cells = np.asarray(goal.tiou)[valid]
    counts = [(cells > low).sum() - (cells > high).sum() for low, high in [(0.9, 1), (0.7, 1), (0.3, 0.7), (0, 0.3)]]
    assert counts == [1, 6, 27, 16]
    np.testing.assert_allclose(cells.max(), 0.921569, atol=1e-6)

    parts = jax.jit(bmn_losses, static_argnums=4)(outputs, targets, jnp.zeros(()), None, settings).parts
    np.testing.assert_allclose(parts["boundary"], 1.181195, rtol=1e-5)
    p = jax.nn.sigmoid(outputs.map_logits)
    # The specification's map has .95 at its cell (2, 6), the only one above .9.
    changed = goal.tiou.at[0, 0, 4, 2].set(0.95)
    regression = 0.5 * weighted_mean(jnp.square(p[..., 0] - changed), jnp.where(valid & (changed > 0), 1.0, 0.0))
    np.testing.assert_allclose(regression, 0.044620, atol=1e-6)
    of_map = balanced_cross_entropy(p[..., 1], changed > settings.map_positive, goal.cell_weight)
    np.testing.assert_allclose(of_map, 0.645997, rtol=1e-5)


def test_soft_nms_by_width() -> None:
    """Decay above t1 + (t2 - t1) w only (spec 2.7); and the last proposal is not lost, as the reference loses it."""
    segments = jnp.array([[0.0, 10.0], [0.0, 9.0], [0.0, 6.0], [0.0, 5.0], [20.0, 30.0]])
    scores = jnp.array([0.9, 0.8, 0.7, 0.6, 0.5])
    picks = suppress(
        segments, scores, jnp.zeros(5, int), jnp.ones(5, bool), method="gaussian", sigma=0.4, iou_threshold=0.0,
        min_score=0.0, max_detections=6, class_wise=False, decay_above=(0.5, 0.9), longest=100.0,
    )  # fmt: skip
    assert picks.mask.tolist() == [True] * 5 + [False]
    # (0, 10) decays above .54, (0, 6) above .524: .9 and .6 are above, .5 not; then 9 / 10, 6 / 9, 5 / 6, 5 / 9.
    remaining, order = dict(enumerate(scores.tolist())), []
    while remaining:
        best = max(remaining, key=remaining.__getitem__)
        order.append((best, remaining.pop(best)))
        width = float(segments[best, 1] - segments[best, 0])
        for other in remaining:
            inner = max(
                0.0, float(min(segments[best, 1], segments[other, 1]) - max(segments[best, 0], segments[other, 0]))
            )
            overlap = inner / (width + float(segments[other, 1] - segments[other, 0]) - inner)
            if overlap > 0.5 + 0.4 * width / 100:
                remaining[other] *= np.exp(-(overlap**2) / 0.4)
    assert picks.row[:5].tolist() == [row for row, _ in order]
    np.testing.assert_allclose(picks.score[:5], [score for _, score in order], rtol=1e-4)
