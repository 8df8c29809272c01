"""SPOT's losses beside twins that visit snippets and cells one by one (spec 3.4, 3.7)."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, random_batch
from snippet_outputs import TINY, WINDOWS, outputs_of, targets_of

from apl_jax.detectors.base import DetectionLoss
from apl_jax.detectors.spot import SpotOutputs, assign_snippets, decode_detections, own_targets, snippet_losses
from apl_jax.detectors.spot_settings import SpotSettings
from apl_jax.ops import mask_losses
from apl_jax.structs import Targets

BACKGROUND = CLASSES


def losses_of(outputs: SpotOutputs, targets, settings: SpotSettings, key: jax.Array | None = None) -> DetectionLoss:
    return snippet_losses(outputs, targets, jnp.float32(0), key, settings)


@pytest.mark.parametrize("settings", [TINY, WINDOWS], ids=["resize", "windows"])
def test_losses_beside_a_twin(settings: SpotSettings) -> None:
    batch = random_batch([20, 11], 20, seed=3, instances=6)
    outputs = outputs_of(settings, (20, 11), 20)
    run = jax.jit(lambda o, t: (losses_of(o, t, settings), assign_snippets(o, t, settings)))
    o, (result, goal) = jax.device_get((outputs, run(outputs, batch.targets)))
    weights, entropies, errors, positives = [], [], [], 0.0
    part = {True: [0.0, 10.0], False: [0.0, 10.0]}  # sum of -log p, and count
    overlaps = []
    for v, w in np.ndindex(o.snippet_mask.shape[:2]):
        product, area_p, area_t, cells = 0.0, 0.0, 0.0, 0.0
        for i in np.flatnonzero(o.snippet_mask[v, w]):
            logits, weight = o.class_logits[v, w, i].astype(np.float64), float(goal.weight[v, w, i])
            entropies.append(weight * (np.log(np.exp(logits).sum()) - logits[goal.classes[v, w, i]]))
            weights.append(weight)
            errors.append(((o.features[v, w, i] - o.inputs[v, w, i]) ** 2).mean())
            positives += weight * (goal.classes[v, w, i] != BACKGROUND)
            for j in np.flatnonzero(o.snippet_mask[v, w] & ~goal.silent_mask[v, w]):
                p, t = 1 / (1 + np.exp(-float(o.mask_logits[v, w, i, j]))), bool(goal.cells_mask[v, w, i, j])
                part[t][0] -= weight * np.log((p if t else 1 - p) + 1e-6)
                part[t][1] += weight
                product, area_p, area_t = product + weight * p * t, area_p + weight * p * p, area_t + weight * t
                cells += weight
        if cells:
            overlaps.append(1 - (2 * product + 1) / (area_p + area_t + 1))
    n_positive, n = part[True][1], part[True][1] + part[False][1]
    ratio = n / n_positive  # as published: c1 = r / 2, c0 = r / (2 (r - 1)), sum / n
    entropy = (0.5 * ratio * part[True][0] + 0.5 * ratio / (ratio - 1) * part[False][0]) / n
    mean = np.sum(entropies) / np.sum(weights)
    reference = 0.5 * (1 - np.exp(-mean)) ** 2 * mean
    expected = {
        "class": mean if settings.class_loss == "cross_entropy" else reference,
        "mask": 0.4 * entropy + 0.6 * np.mean(overlaps),
        "reconstruction": np.mean(errors),
        "positives": positives,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(result.parts[name], value, rtol=2e-5, err_msg=name)
    assert positives > 3 and goal.silent_mask.any() and result.parts["refinement"] > 0
    whole = expected["class"] + expected["mask"] + expected["reconstruction"] + 0.5 * result.parts["refinement"]
    np.testing.assert_allclose(result.total, whole, rtol=2e-5)
    parts = result.class_loss + result.localisation_loss + 0.5 * result.parts["refinement"]
    np.testing.assert_allclose(parts, whole, rtol=2e-5)
    assert (result.points.silent_mask == goal.silent_mask.reshape(2, -1)).all()


def test_silent_snippets_teach_neither_head() -> None:
    outputs, targets = outputs_of(TINY, (16,), 16), targets_of((1.5, 7.5, 2), (9.5, 12.5, 0), ignored=(0,))
    settings = dataclasses.replace(TINY, refinement_weight=0.0)
    loss = lambda o: losses_of(o, targets, settings).total
    gradient = jax.jit(jax.grad(loss, allow_int=True))(outputs)
    silent = np.arange(16) // 6 == 0  # rows 0 to 5 but for the first two
    silent[:2] = False
    silent[6:8] = True
    touched = np.asarray(gradient.mask_logits)[0, 0] != 0
    assert (touched == (~silent[:, None] & ~silent)).all()
    assert (np.abs(gradient.class_logits[0, 0]).max(-1) > 0).tolist() == (~silent).tolist()


def test_median_and_bands() -> None:
    draws = np.random.default_rng(0)
    score = draws.normal(size=(4, 12, 12)).astype(np.float32)
    score[1] = np.round(score[1])  # many equal values
    score[2] = 1.0
    valid = np.ones((4, 12, 12), bool)
    valid[0, 7:], valid[0, :, 7:] = False, False
    valid[3] = False
    score[0][~valid[0]] = np.nan
    inner, outer = jax.device_get(mask_losses.boundary_bands(jnp.asarray(score), jnp.asarray(valid), 2, 4))
    for n in range(3):
        values = np.sort(score[n][valid[n]])
        median = values[(len(values) - 1) // 2]
        assert mask_losses.lower_median(jnp.asarray(score[n]).reshape(1, -1), jnp.asarray(valid[n]).reshape(1, -1)) == (
            median
        )
        for i, j in itertools.product(range(12), repeat=2):

            def near(size: int, i: int = i, j: int = j, n: int = n) -> np.ndarray:
                rows = slice(max(i - size // 2, 0), i + (size - 1) // 2 + 1)
                columns = slice(max(j - size // 2, 0), j + (size - 1) // 2 + 1)
                return score[n, rows, columns][valid[n, rows, columns]] > median

            eroded, grown = [near(size).all() for size in (2, 4)], [near(size).any() for size in (2, 4)]
            assert inner[n, i, j] == (valid[n, i, j] and eroded[0] and not eroded[1])
            assert outer[n, i, j] == (valid[n, i, j] and grown[1] and not grown[0])
    assert not inner[2:].any() and not outer[2:].any() and outer[0].any() and inner[1].any()


def test_contrast_beside_a_twin() -> None:
    draws = np.random.default_rng(0)
    features = draws.normal(size=(3, 8, 4)).astype(np.float32)
    sets = [draws.random((3, 8)) < 0.5 for _ in range(3)]
    sets[2][1] = False
    loss, exists = mask_losses.contrast(jnp.asarray(features), *(jnp.asarray(x) for x in sets), 0.07)
    assert exists.tolist() == [True, False, True] and loss[1] == 0
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    for n in (0, 2):
        one = unit(features[n])
        query, positive = (unit(one[members[n]].mean(0)) for members in sets[:2])
        like, unlike = np.exp(query @ positive / 0.07), np.exp(one[sets[2][n]] @ query / 0.07).sum()
        np.testing.assert_allclose(loss[n], -np.log(like / (like + unlike)), rtol=1e-4)


def test_refinement_teaches_the_embedding_only() -> None:
    outputs = outputs_of(TINY, (16, 16), 16)
    alone = dataclasses.replace(TINY, reconstruction_weight=0.0)
    settings = dataclasses.replace(alone, refinement_weight=1.0)
    loss = lambda o: losses_of(o, targets_of((2.0, 6.0, 0)), settings).parts["refinement"]
    outputs = jax.tree.map(lambda x: x[:1], outputs)
    run = jax.jit(jax.value_and_grad(loss, allow_int=True))
    _, gradient = run(outputs)
    assert jnp.abs(gradient.features).max() > 1e-3
    assert not gradient.class_logits.any() and not gradient.mask_logits.any()
    flat = dataclasses.replace(outputs, mask_logits=jnp.zeros_like(outputs.mask_logits))
    value, gradient = run(flat)
    assert value == 0 and not gradient.features.any()


def test_the_time_mask_of_easy_snippets() -> None:
    """It is drawn from the key of the loss, changes nothing but the refinement, and only where it is asked for."""
    outputs, targets = outputs_of(TINY, (16, 16), 16), targets_of((2.0, 6.0, 0))
    outputs = jax.tree.map(lambda x: x[:1], outputs)
    masked = dataclasses.replace(TINY, easy_time_mask=0.6)
    run = jax.jit(losses_of, static_argnums=2)
    plain = run(outputs, targets, TINY, jax.random.key(0)).parts
    assert run(outputs, targets, TINY, None).parts == plain == run(outputs, targets, masked, None).parts
    drawn = [run(outputs, targets, masked, jax.random.key(seed)).parts for seed in range(8)]
    refinements = {float(parts["refinement"]) for parts in drawn}
    assert len(refinements) > 3 and np.isfinite(list(refinements)).all()
    for parts in drawn:
        assert {**parts, "refinement": 0} == {**plain, "refinement": 0}


@pytest.mark.parametrize("window_mode", ["resize", "windows"])
def test_no_prediction_breaks_losses(window_mode: str) -> None:
    """Flat and one-hot softmax, saturated masks; nothing annotated, everything, one step, none (issue 3, point 5)."""
    settings = dataclasses.replace(TINY, steps=8, window_mode=window_mode)
    scenes = {
        "none": targets_of((9.0, 5.0, 0), ignored=(0,)),
        "everything": targets_of((-5.0, 40.0, 1)),
        "ignored": targets_of((-5.0, 40.0, 1), ignored=(0,)),
        "point": targets_of((3.0, 3.0, 2)),
    }

    @jax.jit
    def examine(outputs: SpotOutputs, targets: Targets) -> tuple:
        found = jax.value_and_grad(lambda o: losses_of(o, targets, settings).total, allow_int=True)(outputs)
        own = losses_of(outputs, own_targets(outputs, settings), settings).total
        believed = jax.grad(lambda o: sum(x.sum() for x in o.distribution()[:3]), allow_int=True)(outputs)
        return *found, own, believed, decode_detections(outputs, settings)

    for length, height, targets in itertools.product((0, 1, 16), (0.0, 60.0, 1e4), scenes.values()):
        blank = outputs_of(settings, (length,), 16)
        signs = lambda x: height * jnp.sign(x)
        outputs = dataclasses.replace(
            blank, class_logits=signs(blank.class_logits), mask_logits=signs(blank.mask_logits),
            features=signs(blank.features),
        )  # fmt: skip
        leaves = jax.tree_util.tree_leaves_with_path(examine(outputs, targets))
        for path, leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                assert jnp.isfinite(leaf).all(), (jax.tree_util.keystr(path), length, height)
    assert len(leaves) > 20
