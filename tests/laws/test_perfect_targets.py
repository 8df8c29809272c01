"""Law 8: decoding perfect targets gives mAP 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, is_usual, random_weights, rarely, variants

from apl_jax.declarations import Choice
from apl_jax.detectors import Detector, build_detector
from apl_jax.detectors.bmn_outputs import BmnOutputs
from apl_jax.detectors.bmn_settings import BmnSettings
from apl_jax.detectors.bmn_targets import assign as assign_map
from apl_jax.detectors.pyramid_outputs import PyramidOutputs
from apl_jax.detectors.pyramid_settings import PyramidSettings
from apl_jax.detectors.spot import SpotOutputs, assign_snippets
from apl_jax.detectors.spot_settings import SpotSettings
from apl_jax.detectors.tridet_settings import TriDetSettings
from apl_jax.evaluation.average_precision import Instances, average_precision
from apl_jax.evaluation.detections import to_instances
from apl_jax.nn.quality import QUALITY_BRANCHES
from apl_jax.nn.snippets import to_snippets
from apl_jax.ops.pyramid import assign, pyramid_points
from apl_jax.registry import DETECTORS
from apl_jax.structs import Batch, DataFacts, Detections, Targets, TimeGrid

STEPS, LENGTHS = 64, (64, 50, 41)
GRID = TimeGrid(fps=30.0, stride=4, window=16, length=STEPS)
TIOU = (0.3, 0.5, 0.7, 0.95)
SURE = 12.0  # a logit


def perfect_pyramid(s: PyramidSettings, targets: Targets, mask: jax.Array) -> PyramidOutputs:
    """What a detector of a pyramid would say if its losses were zero: its own label assignment, with certainty."""
    points = jnp.asarray(pyramid_points(STEPS, s.regression_ranges))
    goal = jax.vmap(lambda t: assign(points, t, num_classes=CLASSES, center_radius=s.center_radius))(targets)
    known = {"tiou": SURE, "diou": SURE, "tnd": -SURE}
    quality = [known[name] for name in QUALITY_BRANCHES[s.quality.branches]]
    point_mask = jnp.concatenate([mask[:, :: 2**level] for level in range(s.branch_blocks + 1)], axis=1)
    segments = CLASSES if isinstance(s, TriDetSettings) else 1
    return PyramidOutputs(
        jnp.where(goal.classes > 0, SURE, -SURE),
        jnp.broadcast_to(jnp.maximum(goal.offsets, 0)[:, :, None], (*point_mask.shape, segments, 2)),
        jnp.broadcast_to(jnp.asarray(quality), (*point_mask.shape, len(quality))),
        point_mask,
        (),
    )


def perfect_spot(s: SpotSettings, targets: Targets, mask: jax.Array) -> SpotOutputs:
    """What SPOT would say if its class and mask losses were zero."""
    features = jnp.zeros((*mask.shape, FEATURE_WIDTH))
    cut = to_snippets(features, mask, width=s.steps, window_mode=s.window_mode, overlap=s.overlap)
    logits, cells = (jnp.zeros((*cut.mask.shape, size)) for size in (CLASSES + 1, s.steps))
    geometry = cut.mask, cut.start_t, cut.scale_t, cut.lengths
    goal = assign_snippets(SpotOutputs(logits, cells, cut.inputs, cut.inputs, *geometry), targets, s)
    logits = SURE * (2 * jax.nn.one_hot(goal.classes, CLASSES + 1) - 1)
    return SpotOutputs(logits, jnp.where(goal.cells_mask, SURE, -SURE), cut.inputs, cut.inputs, *geometry)


def perfect_bmn(s: BmnSettings, targets: Targets, mask: jax.Array) -> BmnOutputs:
    """What BMN would say if its losses were zero."""
    features = jnp.zeros((*mask.shape, FEATURE_WIDTH))
    cut = to_snippets(features, mask, width=s.steps, window_mode=s.window_mode, overlap=s.overlap)
    logits = lambda *size: jnp.zeros((*cut.mask.shape[:2], *size))
    geometry = cut.inputs, cut.mask, cut.start_t, cut.scale_t, cut.lengths
    classes, cells = logits(s.steps, CLASSES + 1), logits(s.durations or s.steps, s.steps, 3)
    goal = assign_map(BmnOutputs(classes, cells, logits(s.steps, 2), *geometry), targets, s)
    sure = lambda yes: jnp.where(yes, SURE, -SURE)
    logit = lambda p: jnp.clip(jnp.log(p) - jnp.log1p(-p), -SURE, SURE)
    channels = logit(goal.tiou), sure(goal.tiou > s.map_positive), logit(goal.tnd)
    classes = sure(jax.nn.one_hot(goal.classes, CLASSES + 1) > 0)
    return BmnOutputs(classes, jnp.stack(channels, -1), sure(goal.boundary > s.boundary_positive), *geometry)


# Per detector: outputs of a network that has learnt its targets (settings, targets, mask) perfectly.
PERFECT: dict[str, Callable[[Any, Targets, jax.Array], Any]] = {
    "actionformer": perfect_pyramid,
    "tridet": perfect_pyramid,
    "spot": perfect_spot,
    "bmn": perfect_bmn,
}


def learnt_outputs(detector: Detector, targets: Targets, mask: jax.Array, steps: int = 1500) -> Any:
    """Outputs of any detector at which its own loss is about zero, found by descent on the outputs themselves.

    The network is asked only for outputs to begin with: what it could learn does not matter, what its loss asks for
    does. Numbers that the loss has no gradient for, such as where windows stand, stay as they are.
    """
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(*mask.shape, FEATURE_WIDTH)), jnp.float32)
    proposals = around_instances(targets)
    batch = Batch(jnp.where(mask[..., None], rows, 0), mask, targets, jnp.arange(len(mask)), proposals)
    params, state = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))

    @jax.jit
    def descend() -> Any:
        leaves, structure = jax.tree.flatten(detector.apply(params, batch, None))
        real = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
        free = [leaf for leaf, yes in zip(leaves, real, strict=True) if yes]
        optimizer = optax.adam(optax.cosine_decay_schedule(0.3, steps))

        def joined(free: list) -> Any:
            parts = iter(free)
            chosen = [next(parts) if yes else leaf for leaf, yes in zip(leaves, real, strict=True)]
            return jax.tree.unflatten(structure, chosen)

        def step(carry: tuple, _: None) -> tuple:
            free, moments = carry
            gradient = jax.grad(lambda free: detector.loss(joined(free), targets, state, None).total)(free)
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(free, updates), moments), None

        (free, _), _ = jax.lax.scan(step, (free, optimizer.init(free)), length=steps)
        return joined(free)

    return descend()


def around_instances(targets: Targets) -> Detections:
    """Proposals, for detectors that want them: of each instance one that is too early, one too long, a small part."""
    start, end = targets.segments_t[..., 0], targets.segments_t[..., 1]
    extent = end - start
    early, long = jnp.stack([start - 0.1 * extent, end - 0.1 * extent], -1), jnp.stack([start, end + 0.2 * extent], -1)
    segments_t = jnp.concatenate([early, long, jnp.stack([start, start + 0.15 * extent], -1)], axis=1)
    mask, label, one = (jnp.tile(x, 3) for x in (targets.mask, targets.labels, jnp.ones(targets.mask.shape)))
    return Detections(segments_t, label, one, one, one, 0 * one, mask)


Annotated = Sequence[list[tuple[float, float, int]]]  # per video (start, end, class) on the grid


def annotated_snippets(s: SpotSettings | BmnSettings) -> Annotated:
    """On the edges of snippets, one class at a time: short, long, at the ends, touching; resized, one within another.

    In windows of 8 snippets that overlap by 4, an instance is seen whole if it is not longer than 4, or well placed.
    """
    if s.window_mode == "windows":
        scales = [1.0, 1.0, 1.0]
        videos = (
            [(0, 1, 0), (1, 4, 1), (33, 39, 2), (60, 64, 0)],
            [(13, 18, 2), (22, 25, 0), (26, 30, 0)],
            [(38, 41, 2)],
        )
    else:
        scales = [length / s.steps for length in LENGTHS]
        videos = (
            [(0, 1, 0), (1, 2, 1), (4, 10, 2), (6, 7, 0), (15, 16, 1)],
            [(0, 6, 2), (7, 9, 0), (10, 12, 0)],
            [(1, 3, 0), (8, 15, 2)],
        )
    return tuple(
        [(i * scale - 0.5, j * scale - 0.5, label) for i, j, label in rows]
        for scale, rows in zip(scales, videos, strict=True)
    )


def annotated(detector: Choice) -> Annotated:
    """What the detector can represent: short, long, at the ends, touching, overlapping, two of one place."""
    if detector.name in ("spot", "bmn"):
        return annotated_snippets(detector.settings)
    if detector.name == "pgcn":  # a proposal is of one class
        return (
            [(0.4, 3.1, 0), (3.1, 7.6, 1), (12.0, 40.0, 2), (20.0, 26.0, 0), (58.5, 63.0, 1)],
            [(-0.8, 6.0, 2), (10.0, 18.5, 0), (30.2, 49.5, 2)],
            [(5.0, 33.0, 0), (35.0, 37.5, 2)],
        )
    return (
        [(0.4, 3.1, 0), (3.1, 7.6, 1), (12.0, 40.0, 2), (20.0, 26.0, 0), (58.5, 63.0, 1)],
        [(-0.8, 6.0, 2), (10.0, 18.5, 0), (10.0, 18.5, 1), (30.2, 49.5, 2)],
        [(5.0, 33.0, 0), (35.0, 37.5, 2)],
    )


def as_targets(videos: Annotated) -> Targets:
    """Padded."""
    count = max(len(rows) for rows in videos) + 1
    segments_t, labels = np.zeros((len(videos), count, 2), np.float32), np.zeros((len(videos), count), np.int32)
    exists = np.zeros((len(videos), count), bool)
    for v, rows in enumerate(videos):
        for n, (start, end, label) in enumerate(rows):
            segments_t[v, n], labels[v, n], exists[v, n] = (start, end), label, True
    return Targets(
        jnp.asarray(segments_t), jnp.asarray(labels), jnp.asarray(exists),
        jnp.ones(exists.shape), jnp.zeros(exists.shape, bool),
    )  # fmt: skip


def wide_decoding(choice: Choice) -> Choice:
    """The detector with room for all instances. Two classes in one place are two only if suppression knows classes."""
    if isinstance(within := getattr(choice.settings, "of", None), Choice):
        return dataclasses.replace(choice, settings=dataclasses.replace(choice.settings, of=wide_decoding(within)))
    nms = dataclasses.replace(choice.settings.decoding, class_wise=True, max_detections=64, top_k_per_level=200)
    return dataclasses.replace(choice, settings=dataclasses.replace(choice.settings, decoding=nms))


def assert_score_one(detector: Detector, outputs: Any, videos: Annotated) -> None:
    predictions, _ = to_instances(jax.device_get(jax.jit(detector.decode)(outputs)), [GRID] * len(videos))
    rows = [(v, label, start, end) for v, video in enumerate(videos) for start, end, label in video]
    video, label, start, end = (np.array(column) for column in zip(*rows, strict=True))
    truth = Instances(video, label, GRID.to_s(np.stack([start, end], -1)), np.zeros(len(rows)))
    result = average_precision(truth, predictions, TIOU, CLASSES)
    np.testing.assert_allclose(result.ap, 1.0, atol=1e-9)
    assert len(predictions) > len(truth)  # the decayed duplicates come after all of them


CASES = [(detector, variant) for detector in DETECTORS for variant in variants(detector)]
MASK = jnp.arange(STEPS) < jnp.asarray(LENGTHS)[:, None]


@pytest.mark.parametrize(("detector_name", "variant"), [case for case in CASES if case[0] in PERFECT])
def test_perfect_predictions_score_one(detector_name: str, variant: str) -> None:
    choice = wide_decoding(variants(detector_name)[variant])
    detector, videos = build_detector(choice, DataFacts(FEATURE_WIDTH, CLASSES)), annotated(choice)
    outputs = PERFECT[detector_name](choice.settings, as_targets(videos), MASK)
    assert_score_one(detector, outputs, videos)


@pytest.mark.parametrize("case", rarely(CASES, is_usual), ids="-".join)
def test_what_the_loss_asks_for_scores_one(case: tuple[str, str]) -> None:
    """Of whatever is registered, with nothing known of it but its record: the loss teaches what decoding reads."""
    detector_name, variant = case
    choice = wide_decoding(variants(detector_name)[variant])
    detector, videos = build_detector(choice, DataFacts(FEATURE_WIDTH, CLASSES)), annotated(choice)
    assert_score_one(detector, learnt_outputs(detector, as_targets(videos), MASK), videos)
