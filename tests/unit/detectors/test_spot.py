"""SPOT's way from grid to snippets, its targets, its network (spec 3.2, 3.3)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_batch, random_weights
from snippet_outputs import TINY, WINDOWS, cut, outputs_of, ramp, targets_of

from apl_jax.declarations import SettingsError
from apl_jax.detectors.spot import SnippetTargets, assign_snippets, build_spot, own_targets, snippet_losses
from apl_jax.detectors.spot_settings import SpotDecoding, SpotSettings
from apl_jax.structs import Batch, DataFacts, Targets

BACKGROUND = CLASSES


@pytest.mark.parametrize(
    ("length", "steps", "expected"),
    [
        (5, 8, [0, 0.4375, 1.0625, 1.6875, 2.3125, 2.9375, 3.5625, 4]),
        (8, 5, [0.3, 1.9, 3.5, 5.1, 6.7]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_resizing(length: int, steps: int, expected: list[float]) -> None:
    """The recorded values of spec 1.2, from a padded video."""
    settings = dataclasses.replace(TINY, steps=steps)
    found = cut(*ramp((length, 0), 12), settings)
    np.testing.assert_allclose(found.inputs[0, 0, :, 0], expected, atol=1e-6)
    assert found.mask.sum(-1).tolist() == [[steps], [0]] and not found.inputs[1].any()


@pytest.mark.parametrize("steps", [8, 20, 21, 32])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_windows_cover_every_row_once_and_none_beyond(steps: int, overlap: float) -> None:
    settings = dataclasses.replace(WINDOWS, overlap=overlap)
    lengths = tuple(n for n in (0, 1, 7, 8, 9, 13, 20, 32) if n <= steps)
    found = jax.device_get(cut(*ramp(lengths, steps), settings))
    step = max(round(8 * (1 - overlap)), 1)
    for v, length in enumerate(lengths):
        rows = found.inputs[v, ..., 0][found.mask[v]]
        assert set(rows.tolist()) == set(range(length))
        used = found.mask[v].any(-1)
        assert used.sum() == (length > 0) + max(-(-(length - 8) // step), 0)
        if length >= 8:  # only videos shorter than a window see padding
            assert found.mask[v][used].all() and found.inputs[v][used][-1, -1, 0] == length - 1


@pytest.mark.parametrize("settings", [TINY, WINDOWS], ids=["resize", "windows"])
def test_time_of_snippets_and_representation(settings: SpotSettings) -> None:
    """What the snippets hold is the time that they claim to stand for, there and back."""
    lengths, steps = (24, 17, 1), 24
    snippets = cut(*ramp(lengths, steps), settings)
    blank = outputs_of(settings, lengths, steps)
    outputs = dataclasses.replace(blank, features=snippets.inputs)
    beliefs = outputs.distribution()
    for v, length in enumerate(lengths):
        inside = np.asarray(beliefs.mask[v]) & (beliefs.time_t[v] >= 0) & (beliefs.time_t[v] <= length - 1)
        np.testing.assert_allclose(snippets.inputs[v].reshape(-1)[inside], beliefs.time_t[v][inside], atol=1e-5)
    rows = jnp.broadcast_to(jnp.arange(steps), (len(lengths), steps))
    found = outputs.represent(rows)[..., 0]
    half = 0.5 * float(snippets.scale_t.max())  # beyond the centres of the outermost snippets the value stays
    for v, length in enumerate(lengths):
        np.testing.assert_allclose(found[v, :length], np.arange(length), atol=1e-5 if settings is WINDOWS else half)
        inner = np.arange(2, max(length - 2, 2))
        np.testing.assert_allclose(found[v, inner], inner, atol=1e-5)


def test_representation_sees_each_row_in_its_most_central_window() -> None:
    outputs = outputs_of(WINDOWS, (20,), 20)  # windows 0-7, 4-11, 8-15, 12-19: centres 3.5, 7.5, 11.5, 15.5
    number = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], (1, 4, 8, 1))
    found = dataclasses.replace(outputs, features=number).represent(jnp.arange(20)[None])
    assert found[0, :, 0].tolist() == [0] * 6 + [1] * 4 + [2] * 4 + [3] * 6


def test_distribution_is_exact_where_probabilities_are_extreme() -> None:
    outputs = outputs_of(TINY, (16,), 16, size=6.0)
    beliefs = outputs.distribution()
    logits = np.asarray(outputs.class_logits, np.float64).reshape(1, 16, -1)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(beliefs.probability, p, atol=1e-6)
    clamped = np.clip(p, 1e-6, 1 - 1e-6)
    np.testing.assert_allclose(beliefs.log_in, np.log(clamped), rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(beliefs.log_out, np.log1p(-clamped), rtol=2e-6, atol=2e-7)
    assert clamped.min() < 1e-5 and clamped.max() > 1 - 1e-5


def assigned(settings: SpotSettings, targets: Targets, length: int = 16, steps: int = 16) -> SnippetTargets:
    """Targets of one video, its only window or its first, without batch and window axes."""
    goal = jax.jit(assign_snippets, static_argnums=2)(outputs_of(settings, (length,), steps), targets, settings)
    return SnippetTargets(*(np.asarray(x)[0, 0] for x in goal))


@pytest.mark.parametrize(
    ("edges", "shrink", "expected"),
    [("floor", 0, (2, 6)), ("floor", 1, (3, 5)), ("nearest", 0, (3, 7)), ("nearest", 1, (4, 6))],
)
def test_edges(edges: str, shrink: int, expected: tuple[int, int]) -> None:
    """2.8 and 6.9 snippets from the left: row g covers [g - .5, g + .5]."""
    settings = dataclasses.replace(TINY, target_edges=edges, target_shrink=shrink)
    goal = assigned(settings, targets_of((2.3, 6.4, 1)))
    inside = (np.arange(16) >= expected[0]) & (np.arange(16) < expected[1])
    assert (goal.classes == np.where(inside, 1, BACKGROUND)).all()
    assert (goal.cells_mask == (inside[:, None] & inside)).all()


def test_short_instances_get_one_snippet_unless_shrunk() -> None:
    rows = targets_of((3.6, 3.9, 1), (7.4, 7.6, 2), (12.0, 12.0, 0))
    assert np.flatnonzero(assigned(TINY, rows).classes != BACKGROUND).tolist() == [4, 7, 12]
    shrunk = assigned(dataclasses.replace(TINY, target_shrink=1), rows)
    assert (shrunk.classes == BACKGROUND).all() and not shrunk.cells_mask.any()


def test_the_shortest_instance_owns_a_snippet_and_its_row() -> None:
    goal = assigned(TINY, targets_of((1.5, 11.5, 2), (4.5, 6.5, 0), (13.5, 15.5, 1), weight=(0.5, 0.25)))
    assert goal.classes.tolist() == [3, 3, 2, 2, 2, 0, 0, 2, 2, 2, 2, 2, 3, 3, 1, 1]
    assert goal.weight.tolist() == [1, 1] + [0.5] * 3 + [0.25] * 2 + [0.5] * 5 + [1] * 4
    extents = {2: (2, 12), 3: (2, 12), 5: (5, 7), 9: (2, 12), 14: (14, 16)}
    for query, (first, last) in extents.items():
        assert np.flatnonzero(goal.cells_mask[query]).tolist() == list(range(first, last))
    assert not goal.cells_mask[[0, 1, 12, 13]].any()


def test_ignored_instances_silence_what_no_other_owns() -> None:
    goal = assigned(TINY, targets_of((1.5, 7.5, 2), (5.5, 9.5, 0), ignored=(0,)))
    assert np.flatnonzero(goal.silent_mask).tolist() == [2, 3, 4, 5]
    assert goal.weight.tolist() == [1, 1, 0, 0, 0, 0] + [1] * 10
    assert np.flatnonzero(goal.classes == 0).tolist() == [6, 7, 8, 9]


def test_windows_see_the_part_of_an_instance_that_they_hold() -> None:
    settings = dataclasses.replace(WINDOWS, target_edges="floor")
    goal = assign_snippets(outputs_of(settings, (20,), 20), targets_of((5.5, 13.5, 1)), settings)
    seen = [np.flatnonzero(row == 1).tolist() for row in np.asarray(goal.classes[0])]
    assert seen == [[6, 7], list(range(2, 8)), list(range(6)), [0, 1]]  # rows 6 to 13 of 0-7, 4-11, 8-15, 12-19
    # In a short video only valid snippets have an instance.
    goal = assign_snippets(outputs_of(settings, (5,), 20), targets_of((2.5, 9.0, 1)), settings)
    assert np.argwhere(np.asarray(goal.classes[0]) == 1).tolist() == [[0, 3], [0, 4]]


def test_own_targets() -> None:
    outputs = outputs_of(TINY, (16, 9), 16)
    goal = own_targets(outputs, TINY)
    assert (goal.classes == outputs.class_logits.argmax(-1)).all()
    sure = 1 / (1 + np.exp(-np.asarray(outputs.mask_logits, np.float64))) >= 0.7
    assert (np.asarray(goal.cells_mask) == sure).all()

    @jax.jit
    def examine(outputs, goal):
        loss = lambda o, targets: snippet_losses(o, targets, jnp.float32(0), None, TINY)
        through = jax.grad(lambda o: loss(o, own_targets(o, TINY)).total, allow_int=True)(outputs)
        constant = jax.grad(lambda o: loss(o, goal).total, allow_int=True)(outputs)
        return loss(outputs, goal).points, through, constant

    points, through, constant = examine(outputs, goal)
    action = (outputs.class_logits.argmax(-1) != BACKGROUND).reshape(2, -1)
    assert (points.foreground_mask == action).all() and not points.silent_mask.any()
    assert (points.classes.argmax(-1) == goal.classes.reshape(2, -1)).all()
    # The labels are not a path for gradients: it is as if they had been given.
    assert (through.class_logits == constant.class_logits).all() and through.class_logits.any()
    assert (through.mask_logits == constant.mask_logits).all() and through.mask_logits.any()


def build(settings: SpotSettings) -> tuple[Any, Any]:
    detector = build_spot(settings, DataFacts(FEATURE_WIDTH, CLASSES))
    return detector, jax.eval_shape(detector.init, jax.random.key(0))[0]


def test_only_the_bilinear_mask_head_fits_any_number_of_snippets() -> None:
    shapes = {
        (head, steps): jax.tree.map(np.shape, build(dataclasses.replace(TINY, mask_head=head, steps=steps))[1])
        for head in ("rows", "bilinear")
        for steps in (8, 16)
    }
    assert shapes["bilinear", 8] == shapes["bilinear", 16] and shapes["rows", 8] != shapes["rows", 16]


def test_dropout_needs_a_key_and_bfloat16_stays_near() -> None:
    batch: Batch = random_batch([16, 9], 16)
    detector, shapes = build(TINY)
    params = random_weights(shapes)
    still, again = (detector.apply(params, batch, None).features for _ in range(2))
    moved = detector.apply(params, batch, jax.random.key(0)).features
    assert (still == again).all() and jnp.abs(still - moved).max() > 0.1
    rounded = build(dataclasses.replace(TINY, dtype="bfloat16"))[0].apply(params, batch, None)
    assert rounded.features.dtype == rounded.mask_logits.dtype == jnp.float32
    np.testing.assert_allclose(rounded.features, still, atol=0.1)
    assert jnp.abs(rounded.features - still).max() > 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps`: found 0, expected at least 1"),
        ({"overlap": 1.0}, "`overlap`: found 1.0"),
        ({"band_outer": 2}, "`detector.band_outer`: found 2, expected more than `detector.band_inner` = 2"),
        ({"decoding": SpotDecoding(class_thresholds=())}, "`detector.decoding.class_thresholds`: found ()"),
        (
            {"decoding": SpotDecoding(mask_thresholds=(0.4, 0.2))},
            "`detector.decoding.mask_thresholds`: found (0.4, 0.2)",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        build(dataclasses.replace(TINY, **changes))
