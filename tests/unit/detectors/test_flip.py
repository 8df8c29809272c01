"""Outputs on the time-reversed view as outputs on the view, and how far two outputs are apart (spec 4.4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_batch, random_weights
from snippet_outputs import TINY as SPOT
from snippet_outputs import WINDOWS, outputs_of

from apl_jax.detectors.actionformer import build_actionformer
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.base import Detector
from apl_jax.detectors.pyramid_outputs import PyramidOutputs
from apl_jax.detectors.pyramid_settings import PyramidDecoding
from apl_jax.detectors.quality import QualitySettings
from apl_jax.detectors.spot import SpotOutputs, build_spot
from apl_jax.detectors.tridet import build_tridet
from apl_jax.detectors.tridet_settings import TriDetSettings
from apl_jax.ops import pyramid
from apl_jax.ops.masking import reverse_time
from apl_jax.ops.segments import offset_quality
from apl_jax.structs import Batch, DataFacts, PyTree, Targets

FACTS = DataFacts(FEATURE_WIDTH, CLASSES)
LEVELS, STEPS, LENGTHS = 3, 32, (32, 27, 5, 1, 0)
PYRAMID = ActionFormerSettings(
    width=8, heads=2, stem_blocks=1, branch_blocks=LEVELS - 1, windows=(3, 0, 5), expansion=2, layer_scale_init=0.5,
    regression_ranges=((0, 4), (4, 8), (8, 10000)),
)  # fmt: skip
TRIDENT = TriDetSettings(
    width=8, norm_groups=4, stem_blocks=1, branch_blocks=LEVELS - 1, windows=(1, 3, 5), kernel_factor=1.5, mlp_width=12,
    head_width=8, bins=3, layer_scale_init=0.5, regression_ranges=((0, 4), (4, 8), (8, 10000)),
)  # fmt: skip
DETECTORS: dict[str, Detector] = {
    "actionformer": build_actionformer(PYRAMID, FACTS),
    "tridet": build_tridet(TRIDENT, FACTS),
    "spot": build_spot(SPOT, FACTS),
    "spot windows": build_spot(WINDOWS, FACTS),
}


def pyramid_outputs(lengths: tuple[int, ...], steps: int = STEPS, seed: int = 0, segments: int = 1) -> PyramidOutputs:
    """Arbitrary predictions, of so many segments for each point."""
    draws = np.random.default_rng(seed)
    mask = jnp.arange(steps) < jnp.asarray(lengths)[:, None]
    masks = [mask[:, :: 2**level] for level in range(LEVELS)]
    number = lambda shape, width: jnp.asarray(draws.normal(size=(*shape, width)), jnp.float32)
    points = sum(m.shape[1] for m in masks)
    shape = len(lengths), points
    levels = tuple((number(m.shape, 4), m) for m in masks)
    point_mask = jnp.concatenate(masks, axis=1)
    offsets = 3 * jnp.abs(number((*shape, segments), 2))
    return PyramidOutputs(number(shape, CLASSES), offsets, number(shape, 2), point_mask, levels)


def arbitrary(name: str, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Any:
    if name in ("actionformer", "tridet"):
        return pyramid_outputs(lengths, seed=seed, segments=CLASSES if name == "tridet" else 1)
    return outputs_of(WINDOWS if "windows" in name else SPOT, lengths, STEPS, seed=seed)


@pytest.mark.parametrize("name", list(DETECTORS))
def test_twice_the_flip_is_the_identity(name: str) -> None:
    outputs, flip = arbitrary(name), jax.jit(DETECTORS[name].flip)
    once = flip(outputs)
    assert jax.tree.map(jnp.shape, once) == jax.tree.map(jnp.shape, outputs)
    assert not np.allclose(once.class_logits, outputs.class_logits)
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(outputs), jax.tree.leaves(flip(once)), strict=True
    ):
        np.testing.assert_allclose(after, before, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def symmetric(params: PyTree) -> PyTree:
    """Weights under which the network does not know the direction of time: every convolution is its own mirror image,
    and that of the offsets the mirror image of itself with left and right exchanged."""

    def one(path: tuple, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "predictor" in name and ("regression_head" in name or "trident_head']['predictor" in name):
            return (leaf + leaf[::-1, :, ::-1]) / 2 if "kernel" in name else jnp.full_like(leaf, leaf.mean())
        depthwise = any(f"{part}']['kernel" in name for part in ("gate", "narrow", "wide"))
        convolution = leaf.ndim == 3 or "_conv'" in name or ("neck" in name and "conv_" in name) or depthwise
        return (leaf + leaf[::-1]) / 2 if convolution else leaf

    return jax.tree_util.tree_map_with_path(one, params)


@pytest.mark.parametrize(
    ("name", "changes", "steps", "lengths"),
    [
        # Of these lengths every level ends with a point: all is exact. (The fpn neck knows the direction of time: a
        # coarse step is repeated on its own step and the next.)
        ("actionformer", {}, 20, (17, 9, 1)),
        ("tridet", {}, 20, (17, 9, 1)),
        ("spot", {"mask_head": "bilinear"}, 20, (20, 17, 9)),
        # 8 and whole strides of 4 beyond it, and videos shorter than a window.
        ("spot windows", {}, 20, (20, 16, 8, 5)),
    ],
)
def test_a_network_without_a_direction_of_time(
    name: str, changes: dict[str, Any], steps: int, lengths: tuple[int, ...]
) -> None:
    if name in ("actionformer", "tridet"):
        detector = DETECTORS[name]
    else:
        detector = build_spot(dataclasses.replace(WINDOWS if "windows" in name else SPOT, **changes), FACTS)
    params = symmetric(random_weights(jax.eval_shape(detector.init, jax.random.key(0))[0]))
    if name == "tridet":  # a start is then what an end is in the other direction
        params["trident_head"]["end_head"] = params["trident_head"]["start_head"]
    batch: Batch = random_batch(list(lengths), steps, seed=1)
    turned = dataclasses.replace(batch, features=reverse_time(batch.features, batch.mask))

    @jax.jit
    def both(params: PyTree) -> tuple:
        return detector.apply(params, batch, None), detector.flip(detector.apply(params, turned, None))

    outputs, flipped = both(params)
    for name, mask in valid_parts(outputs).items():
        found, expected = np.asarray(getattr(flipped, name))[mask], np.asarray(getattr(outputs, name))[mask]
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-3, err_msg=name)
        assert np.abs(expected).max() > 0.01


def valid_parts(outputs: Any) -> dict[str, np.ndarray]:
    """The fields of outputs that hold numbers, and where these are valid."""
    if isinstance(outputs, PyramidOutputs):
        return dict.fromkeys(("class_logits", "offsets", "quality_logits"), np.asarray(outputs.point_mask))
    valid = np.asarray(outputs.snippet_mask)
    parts = dict.fromkeys(("class_logits", "features", "inputs"), valid)
    return parts | {"mask_logits": valid[..., None] & valid[..., None, :]}


def test_segments_of_all_levels_are_exact() -> None:
    """Perfect outputs on reversed views, of lengths at which points of coarse levels do not meet their counterparts."""
    lengths, steps = (32, 27, 22), 32
    segments_t = np.float32([[(3.2, 5.9), (8, 21)], [(0.5, 3.5), (10.25, 17)], [(15, 21.5), (2, 9)]])
    last = np.float32(lengths)[:, None, None] - 1
    everywhere = jnp.ones((3, 2))
    targets = Targets(
        jnp.asarray(last - segments_t[..., ::-1]), jnp.tile(jnp.arange(2), (3, 1)), everywhere > 0, everywhere,
        everywhere < 0,
    )  # fmt: skip
    points = jnp.asarray(pyramid.pyramid_points(steps, PYRAMID.regression_ranges))
    goal = jax.vmap(lambda t: pyramid.assign(points, t, num_classes=CLASSES, center_radius=1.5))(targets)
    blank = pyramid_outputs(lengths)
    outputs = dataclasses.replace(
        blank, class_logits=jnp.where(goal.classes > 0, 12.0, -12.0), offsets=jnp.maximum(goal.offsets, 0.0)[:, :, None]
    )
    settings = dataclasses.replace(
        PYRAMID, quality=QualitySettings(branches="none"), decoding=PyramidDecoding(method="hard")
    )
    detector = build_actionformer(settings, FACTS)
    flipped = detector.flip(outputs)
    strides = np.asarray(points[:, 3])
    used = {int(s) for s in strides[np.asarray(goal.positive & blank.point_mask).any(0)]}
    assert used == {1, 2, 4}
    found = jax.device_get(jax.jit(detector.decode)(flipped))
    for v in range(len(lengths)):
        sure = found.mask[v] & (found.score[v] > 0.9)
        rows = sorted(zip(found.labels[v][sure].tolist(), found.segments_t[v][sure].round(4).tolist(), strict=True))
        expected = [(n, segments_t[v, n].astype(float).round(4).tolist()) for n in range(2)]
        assert [label for label, _ in rows] == [0, 1]
        np.testing.assert_allclose([row for _, row in rows], [row for _, row in expected], atol=1e-4)
    # What moves the offsets is less than a stride.
    row, later = jax.device_get(pyramid.reversed_points(blank.point_mask, LEVELS))
    assert (later >= 0).all() and 0 < later.max() < 1 and (later[:, :steps] == 0).all()
    assert (np.take_along_axis(row, row, axis=1) == np.arange(len(points))).all()


def test_windows_stand_where_they_say() -> None:
    """Of a length that is no whole number of strides beyond a window, what is decoded is exact nevertheless."""
    lengths, steps = (18, 20, 5), 20
    detector = DETECTORS["spot windows"]
    outputs = outputs_of(WINDOWS, lengths, steps, seed=3)
    once, twice = detector.flip(outputs), detector.flip(detector.flip(outputs))
    assert once.start_t[0].tolist() == [0, 2, 6, 10] and outputs.start_t[0].tolist() == [0, 4, 8, 10]
    decode = jax.jit(detector.decode)
    here, there, back = (jax.device_get(decode(o)) for o in (outputs, once, twice))
    for v in range(len(lengths)):
        listed = lambda segments, found, v=v: {
            (*(round(float(x), 3) for x in segment), int(label))
            for segment, label, exists in zip(segments, found.labels[v], found.mask[v], strict=True)
            if exists
        }
        assert listed(here.segments_t[v], here) == listed(back.segments_t[v], back)
        surest = here.mask[v] & (here.confidence[v] > 0.5)
        expected = {
            (round(float(lengths[v] - 1 - b), 3), round(float(lengths[v] - 1 - a), 3), int(label))
            for (a, b), label in zip(here.segments_t[v][surest], here.labels[v][surest], strict=True)
        }
        assert expected <= listed(there.segments_t[v], there) and expected


def twin_distances(name: str, student: Any, teacher: Any, videos: list[bool]) -> dict[str, float]:
    """Point by point, or snippet by snippet."""
    soft = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x, np.float64)))
    classes, other = [], []
    if isinstance(student, PyramidOutputs):
        p, q = sigmoid(student.class_logits), sigmoid(teacher.class_logits)
        for b, point in zip(*np.nonzero(np.asarray(student.point_mask)), strict=True):
            if videos[b]:
                classes.append(((p[b, point] - q[b, point]) ** 2).mean())
                if q[b, point].max() > 0.3:
                    best = min(int(q[b, point].argmax()), student.offsets.shape[2] - 1)
                    tiou, tnd = offset_quality(student.offsets[b, point, best], teacher.offsets[b, point, best])
                    other.append(1 - float(tiou) + float(tnd))
        return {"class": np.mean(classes), "segment": np.mean(other)}
    p, q = soft(np.float64(student.class_logits)), soft(np.float64(teacher.class_logits))
    m, k = sigmoid(student.mask_logits), sigmoid(teacher.mask_logits)
    for b, w, i in zip(*np.nonzero(np.asarray(student.snippet_mask)), strict=True):
        if videos[b]:
            classes.append(((p[b, w, i] - q[b, w, i]) ** 2).mean())
            other += ((m[b, w, i] - k[b, w, i]) ** 2)[np.asarray(student.snippet_mask[b, w])].tolist()
    return {"class": np.mean(classes), "mask": np.mean(other)}


@pytest.mark.parametrize("name", list(DETECTORS))
def test_distances(name: str) -> None:
    student, teacher = arbitrary(name, seed=1), arbitrary(name, seed=2)
    compare = DETECTORS[name].compare
    videos = [True, False, True, True, True]

    @jax.jit
    def examine(student: Any, teacher: Any, mask: jax.Array) -> tuple:
        total = lambda s, t: sum(compare(s, t, mask).values(), jnp.zeros(()))
        return compare(student, teacher, mask), jax.grad(total, (0, 1), allow_int=True)(student, teacher)

    found, (for_student, for_teacher) = examine(student, teacher, jnp.asarray(videos))
    expected = twin_distances(name, student, teacher, videos)
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        np.testing.assert_allclose(found[part], value, rtol=1e-5, err_msg=part)
        assert value > 0.001
    floats = lambda tree: [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert not any(x.any() for x in floats(for_teacher))
    assert for_student.class_logits[0].any() and not for_student.class_logits[1].any()
    localisation = for_student.offsets if isinstance(student, PyramidOutputs) else for_student.mask_logits
    assert localisation[0].any() and not localisation[1].any()


@pytest.mark.parametrize("name", list(DETECTORS))
def test_distances_of_nothing_and_of_equals(name: str) -> None:
    """Zero for no video, for videos without a valid step and for equal outputs; finite, with its gradient, always."""
    outputs, other = arbitrary(name), arbitrary(name, seed=4)
    every, none = jnp.ones(len(LENGTHS), bool), jnp.zeros(len(LENGTHS), bool)
    nothing = [
        (outputs, other, none),
        (outputs, other, jnp.asarray([length == 0 for length in LENGTHS])),
        (outputs, outputs, every),
    ]
    compare = jax.jit(DETECTORS[name].compare)
    for arguments in nothing:
        assert all(abs(float(value)) <= 1e-6 for value in compare(*arguments).values())
    unsure = dataclasses.replace(other, class_logits=jnp.full_like(other.class_logits, -50.0))
    assert compare(outputs, unsure, every).get("segment", 0) == 0
    hard = [(outputs, unsure, every)]
    if isinstance(outputs, PyramidOutputs):  # empty segments, and the offsets below zero of flipped outputs
        empty = dataclasses.replace(outputs, offsets=jnp.zeros_like(outputs.offsets))
        moved = dataclasses.replace(other, offsets=jnp.zeros_like(other.offsets) + jnp.asarray([-0.9, 0.9]))
        hard += [(empty, empty, every), (empty, moved, every), (outputs, moved, every)]

    total = lambda s, t, m: sum(DETECTORS[name].compare(s, t, m).values(), jnp.zeros(()))
    gradient = jax.jit(jax.value_and_grad(total, allow_int=True))
    for arguments in nothing + hard:
        for leaf in jax.tree.leaves(gradient(*arguments)):
            assert not jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.isfinite(leaf).all()


def test_types() -> None:
    """What flips is of the type that it was, so that it may be compared with the student's own."""
    assert isinstance(DETECTORS["actionformer"].flip(arbitrary("actionformer")), PyramidOutputs)
    assert isinstance(DETECTORS["spot"].flip(arbitrary("spot")), SpotOutputs)
