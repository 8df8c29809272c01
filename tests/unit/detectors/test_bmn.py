"""BMN beside twins that look at cells, snippets and instances one by one (spec 2.3, 2.4, 2.7)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_batch, random_weights, variants
from snippet_outputs import ramp

from apl_jax.declarations import SettingsError
from apl_jax.detectors import build
from apl_jax.detectors.bmn import build_bmn, decode_detections
from apl_jax.detectors.bmn_outputs import BmnOutputs
from apl_jax.detectors.bmn_settings import BmnSettings, MapQualitySettings, without_quality
from apl_jax.detectors.bmn_targets import assign, balanced_cells, bmn_losses
from apl_jax.nn.snippets import to_snippets
from apl_jax.structs import DataFacts, Targets

TINY = {name: choice.settings for name, choice in variants("bmn").items()}
RESIZE, WINDOWS = TINY["quality"], TINY["windows"]
LENGTHS, STEPS = (20, 13, 5), 20


def outputs_of(s: BmnSettings, lengths: tuple[int, ...] = LENGTHS, steps: int = STEPS, seed: int = 0) -> BmnOutputs:
    """Arbitrary predictions on the snippets of videos of these lengths."""
    draws = np.random.default_rng(seed)
    cut = to_snippets(*ramp(lengths, steps), width=s.steps, window_mode=s.window_mode, overlap=s.overlap)
    number = lambda *size: jnp.asarray(1.5 * draws.normal(size=(*cut.mask.shape[:2], *size)), jnp.float32)
    channels = 3 if s.quality.branches == "tiou_tnd" else 2
    classes = CLASSES + 1 if s.classes == "snippet" else 1
    return BmnOutputs(
        number(s.steps, classes), number(s.durations or s.steps, s.steps, channels), number(s.steps, 2),
        number(s.steps, 5), cut.mask, cut.start_t, cut.scale_t, cut.lengths,
    )  # fmt: skip


def overlap_of(a: tuple[float, float], b: tuple[float, float]) -> float:
    inner = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    return inner / (a[1] - a[0] + b[1] - b[0] - inner)


assigned = jax.jit(assign, static_argnums=2)
losses_of = jax.jit(bmn_losses, static_argnums=4)

ANCHORS = {"J": (-0.5, 0.5), "S": (-0.5, 1.5), "O": (0.0, 1.0)}


def twin_targets(o: BmnOutputs, targets: Targets, s: BmnSettings, video: int, window: int) -> dict[str, np.ndarray]:
    """The map, the boundaries and their weights in one window."""
    length = int(o.snippet_mask[video, window].sum())
    instances = []  # (start, end, weight, taught)
    for n in np.flatnonzero(targets.mask[video]):
        ends = (np.asarray(targets.segments_t[video, n]) + 0.5 - float(o.start_t[video, window])) / float(
            o.scale_t[video]
        )
        inner = np.clip(ends, 0, length)
        enough = s.window_mode == "resize" or inner[1] - inner[0] >= s.least_inside * (ends[1] - ends[0])
        taught = enough and not targets.ignore_mask[video, n]
        instances.append((inner[0], inner[1], float(targets.weight[video, n]), taught))

    def best(fits: list[float]) -> tuple[float, float, int]:
        ours = [fit if row[3] else 0.0 for fit, row in zip(fits, instances, strict=True)]
        others = [fit for fit, row in zip(fits, instances, strict=True) if not row[3]]
        owner = int(np.argmax(ours))
        if others and max(others) > ours[owner]:
            return ours[owner], 0.0, owner
        return ours[owner], instances[owner][2] if ours[owner] > 0 else 1.0, owner

    durations = s.durations or s.steps
    shape = durations, s.steps
    found = {name: np.zeros(shape) for name in ("tiou", "tnd", "cell_weight")}
    for d in range(durations):
        for start in range(length - d):
            cell = start, start + d + 1
            value, weight, owner = best([overlap_of(cell, row[:2]) for row in instances])
            first, last = instances[owner][:2]
            cover = max(cell[1], last) - min(cell[0], first)
            found["tiou"][d, start], found["cell_weight"][d, start] = value, weight
            found["tnd"][d, start] = ((sum(cell) - first - last) / 2 / cover) ** 2
    low, high = ANCHORS[s.anchors]
    found |= {"boundary": np.zeros((s.steps, 2)), "boundary_weight": np.zeros((s.steps, 2))}
    for i in range(length):
        for side in (0, 1):
            region = [(row[side] - s.boundary_width / 2, row[side] + s.boundary_width / 2) for row in instances]
            inner = [max(min(i + high, b) - max(i + low, a), 0.0) / (high - low) for a, b in region]
            fits = [fit if row[1] > row[0] else 0.0 for fit, row in zip(inner, instances, strict=True)]
            found["boundary"][i, side], found["boundary_weight"][i, side], _ = best(fits)
    return found


@pytest.mark.parametrize(("name", "anchors"), [("quality", "J"), ("quality", "S"), ("windows", "O")])
def test_labels_beside_a_twin(name: str, anchors: str) -> None:
    """Several instances, one of low weight, one ignored; of windows also those that hold a part of an instance."""
    s = dataclasses.replace(TINY[name], anchors=anchors)
    outputs, targets = outputs_of(s), random_batch(LENGTHS, STEPS).targets
    goal = jax.device_get(assigned(outputs, targets, s))
    quiet = 0
    for video in range(len(LENGTHS)):
        for window in range(outputs.snippet_mask.shape[1]):
            length = int(outputs.snippet_mask[video, window].sum())
            if length == 0:
                assert not goal.cell_weight[video, window].any() and not goal.boundary_weight[video, window].any()
                continue
            twin = twin_targets(outputs, targets, s, video, window)
            valid = np.asarray(outputs.cell_mask[video, window])
            np.testing.assert_allclose(goal.cell_weight[video, window], twin["cell_weight"], atol=1e-5)
            np.testing.assert_allclose(goal.tiou[video, window][valid], twin["tiou"][valid], atol=1e-5)
            taught = valid & (twin["tiou"] > 0)
            np.testing.assert_allclose(goal.tnd[video, window][taught], twin["tnd"][taught], atol=1e-5)
            for part in ("boundary", "boundary_weight"):
                np.testing.assert_allclose(getattr(goal, part)[video, window][:length], twin[part][:length], atol=1e-5)
            quiet += int((valid & (twin["cell_weight"] == 0)).sum())
    assert quiet > 0


def test_classes_of_snippets() -> None:
    """The shortest instance names the snippets whose middle it holds; one within a snippet has it; else background."""
    segments_t = jnp.array([[[0.5, 8.5], [2.5, 4.5], [11.6, 11.9], [13.5, 14.5]]]) * 20 / 16 + 0.125
    exists, ignored = jnp.ones((1, 4), bool), jnp.array([[False, False, False, True]])
    targets = Targets(segments_t, jnp.array([[0, 1, 2, 0]]), exists, jnp.array([[1.0, 0.5, 1.0, 1.0]]), ignored)
    goal = assigned(outputs_of(RESIZE, (20,)), targets, RESIZE)
    assert goal.classes[0, 0].tolist() == [3, 0, 0, 1, 1, 0, 0, 0, 0, 3, 3, 3, 2, 3, 3, 3]
    assert goal.silent_mask[0, 0].tolist() == [i == 14 for i in range(16)]
    assert goal.snippet_weight[0, 0].tolist() == [1, 1, 1, 0.5, 0.5, *[1] * 9, 0, 1]


def twin_losses(o: BmnOutputs, targets: Targets, s: BmnSettings) -> dict[str, float]:
    goal = jax.device_get(assigned(o, targets, s))
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x, np.float64)))
    cells, boundary = sigmoid(o.map_logits), sigmoid(o.boundary_logits)

    def balanced(p: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
        count, plus = weight.sum(), weight[positive].sum()
        ratio = count / plus
        each = np.where(positive, 0.5 * ratio * np.log(p + 1e-6), 0.5 * ratio / (ratio - 1) * np.log(1 - p + 1e-6))
        return -(each * weight).sum() / count

    found = {
        "boundary": sum(
            balanced(boundary[..., i], goal.boundary[..., i] > 0.5, goal.boundary_weight[..., i]) for i in (0, 1)
        ),
        "map": balanced(cells[..., 1], goal.tiou > s.map_positive, goal.cell_weight),
    }
    high = goal.tiou > s.high_tiou
    middle = (goal.tiou > s.middle_tiou) & ~high
    low = ~high & ~middle & ((goal.tiou > 0) | (s.low_cells == "all"))
    count = lambda group: goal.cell_weight[group].sum()
    chance = high + sum(min(count(high) / count(group), 1) * group for group in (middle, low))
    kept = chance * goal.cell_weight
    found["regression"] = 0.5 * (kept * (cells[..., 0] - goal.tiou) ** 2).sum() / kept.sum()
    if s.quality.branches == "tiou_tnd":
        truth, said = (goal.tiou, goal.tnd), (cells[..., 0], cells[..., 2])
        each = sum(-y * np.log(p) - (1 - y) * np.log(1 - p) for y, p in zip(truth, said, strict=True))
        over = kept * (goal.tiou > 0)
        found["quality"] = (over * each).sum() / over.sum()
    logits = np.asarray(o.class_logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, goal.classes[..., None], -1)[..., 0]
    found["class"] = -(picked * goal.snippet_weight).sum() / goal.snippet_weight.sum()
    return found


@pytest.mark.parametrize("name", TINY)
def test_losses_beside_a_twin(name: str) -> None:
    s = dataclasses.replace(TINY[name], map_positive=0.7)
    outputs, targets = outputs_of(s), random_batch(LENGTHS, STEPS).targets
    loss = losses_of(outputs, targets, jnp.zeros(()), None, s)
    twin = twin_losses(outputs, targets, s)
    assert loss.parts.keys() == twin.keys()
    for part, value in twin.items():
        np.testing.assert_allclose(loss.parts[part], value, rtol=2e-5, err_msg=part)
    total = twin["boundary"] + 10 * twin["regression"] + twin["map"] + 0.1 * twin.get("quality", 0.0)
    np.testing.assert_allclose(loss.localisation_loss, total, rtol=2e-5)
    np.testing.assert_allclose(loss.total, total + twin["class"], rtol=2e-5)


def test_cells_are_drawn_for_the_regression() -> None:
    """All of high tIoU, about as many of middle and of low; never a cell without overlap, or without weight."""
    tiou = jnp.asarray(np.repeat([0.8, 0.5, 0.1, 0.0], [40, 400, 400, 400]), jnp.float32)
    weight = jnp.ones_like(tiou).at[-1].set(0)
    run = jax.jit(balanced_cells, static_argnums=3)
    kept = np.stack([run(tiou, weight, jax.random.key(k), RESIZE) for k in range(30)])
    assert (kept[:, :40] == 1).all() and not kept[:, 840:].any() and set(np.unique(kept)) == {0.0, 1.0}
    for group in (slice(40, 440), slice(440, 840)):
        assert abs(kept[:, group].sum(1).mean() - 40) < 4
        np.testing.assert_allclose(run(tiou, weight, None, RESIZE)[group], 0.1, rtol=1e-5)
    everywhere = run(tiou, weight, None, dataclasses.replace(RESIZE, low_cells="all"))
    np.testing.assert_allclose(everywhere[440:-1], 40 / 799, rtol=1e-5)
    more_high = run(jnp.array([0.8, 0.9, 0.5, 0.0]), jnp.ones(4), jax.random.key(0), RESIZE)
    assert more_high.tolist() == [1, 1, 1, 0]  # the reference would keep the last one too


def test_without_a_cell_of_high_overlap() -> None:
    """The plain mean of the squared error, without the factor (O's rule), and the plain cross-entropies."""
    s = dataclasses.replace(RESIZE, quality=MapQualitySettings(branches="none"))
    outputs, targets = outputs_of(s), random_batch(LENGTHS, STEPS).targets
    nothing = dataclasses.replace(targets, mask=jnp.zeros_like(targets.mask))
    loss = losses_of(outputs, nothing, jnp.zeros(()), jax.random.key(0), s)
    p, valid = np.asarray(jax.nn.sigmoid(outputs.map_logits)), np.asarray(outputs.cell_mask)
    squared = (p[..., 0][valid] ** 2).mean()
    of_map = -np.log(1 - p[..., 1][valid]).mean()
    steps = np.asarray(outputs.snippet_mask)
    boundary = -np.log(1 - np.asarray(jax.nn.sigmoid(outputs.boundary_logits))[steps]).mean(0).sum()
    np.testing.assert_allclose(loss.localisation_loss, squared + of_map + boundary, rtol=1e-4)


HARD = {
    "no instance": ((20, 13), 0), "one instance": ((20, 13), 1), "one step": ((1, 1), 4),
    "shorter than a window": ((5, 3), 4),
}  # fmt: skip


def test_hard_batches_have_finite_gradients() -> None:
    """In windows, with cells drawn at random; padding is NaN."""
    detector = build_bmn(WINDOWS, DataFacts(FEATURE_WIDTH, CLASSES))
    params, state = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))

    @jax.jit
    def run(batch: Any) -> Any:
        loss = lambda p: detector.loss(detector.apply(p, batch, None), batch.targets, state, jax.random.key(2)).total
        return jax.value_and_grad(loss)(params)

    for name, (lengths, instances) in HARD.items():
        batch = random_batch(lengths, STEPS, padding=np.nan)
        rows = jnp.arange(batch.targets.mask.shape[1]) < instances
        batch = dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, mask=batch.targets.mask & rows))
        for path, leaf in jax.tree_util.tree_leaves_with_path(run(batch)):
            assert jnp.isfinite(leaf).all(), (name, jax.tree_util.keystr(path))


def twin_candidates(o: BmnOutputs, s: BmnSettings, video: int) -> dict[tuple[float, float, int], float]:
    """Every segment of every window with its classes, before suppression: the best score of equal ones."""
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x, np.float64)))
    decoding, found = s.decoding, {}
    cells, boundary = sigmoid(o.map_logits[video]), sigmoid(o.boundary_logits[video])
    logits = np.exp(np.asarray(o.class_logits[video], np.float64))
    classes = (logits / logits.sum(-1, keepdims=True))[..., :-1]
    length, scale = int(o.lengths[video]), float(o.scale_t[video])
    for w in range(len(cells)):
        first_step = float(o.start_t[video, w])
        for d, i in zip(*np.nonzero(np.asarray(o.cell_mask[video, w])), strict=True):
            if s.window_mode == "windows":
                shared, size = s.steps // 2, d + 1
                if i == 0 and first_step > 0 and size < shared:
                    continue
                if i + size == s.steps and first_step + s.steps < length and size <= shared:
                    continue
            score = cells[w, d, i, 0]
            if s.quality.branches == "tiou_tnd":
                score = max(score - cells[w, d, i, 2], s.quality.epsilon)
            score *= cells[w, d, i, 1]
            if decoding.boundary_scores:
                score *= boundary[w, i, 0] * boundary[w, i + d, 1]
            mean = classes[w, i : i + d + 1].mean(0)
            for label in np.argsort(-mean)[: decoding.labels_per_segment]:
                ends = first_step + np.array([i, i + d + 1]) * scale - 0.5
                key = (round(float(ends[0]), 3), round(float(ends[1]), 3), int(label))
                found[key] = max(found.get(key, 0.0), score * mean[label])
    return found


@pytest.mark.parametrize("name", TINY)
def test_decoding_beside_a_twin(name: str) -> None:
    """Suppression is another test's: here nothing decays, and all candidates have room."""
    s = TINY[name]
    decoding = dataclasses.replace(
        s.decoding, top_k_per_level=1000, max_detections=700, sigma=1e6, duration_threshold_t=0.0
    )
    s = dataclasses.replace(s, decoding=decoding)
    outputs = outputs_of(s)
    found = jax.device_get(jax.jit(lambda o: decode_detections(o, s, decoding))(outputs))
    for video in range(len(LENGTHS)):
        expected, seen = twin_candidates(outputs, s, video), {}
        rows = np.flatnonzero(found.mask[video])
        for n in rows:
            start, end = found.segments_t[video, n]
            key = (round(float(start), 3), round(float(end), 3), int(found.labels[video, n]))
            seen[key] = max(seen.get(key, 0.0), float(found.confidence[video, n]))
        assert seen.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(seen[key], value, rtol=1e-3, err_msg=str(key))


def test_flip_moves_cells() -> None:
    """(d, s) becomes (d, v - 1 - d - s); segments are mirrored; starts become ends."""
    detector, outputs = build_bmn(RESIZE, DataFacts(FEATURE_WIDTH, CLASSES)), outputs_of(RESIZE)
    decode = jax.jit(detector.decode)
    found, mirrored = (jax.device_get(decode(o)) for o in (outputs, detector.flip(outputs)))
    for video, length in enumerate(LENGTHS):
        rows = found.mask[video]
        np.testing.assert_allclose(mirrored.confidence[video], found.confidence[video], atol=1e-5)
        expected = length - 1 - found.segments_t[video][rows][:, ::-1]
        np.testing.assert_allclose(mirrored.segments_t[video][rows], expected, atol=1e-4)
    v, d, start = 5, 2, 1
    outputs = outputs_of(WINDOWS, (v,), v)
    turned = build_bmn(WINDOWS, DataFacts(FEATURE_WIDTH, CLASSES)).flip(outputs)
    np.testing.assert_array_equal(turned.map_logits[0, 0, d, v - 1 - d - start], outputs.map_logits[0, 0, d, start])
    np.testing.assert_array_equal(turned.boundary_logits[0, 0, 1], outputs.boundary_logits[0, 0, v - 2, ::-1])


def test_what_a_teacher_is_sure_of() -> None:
    """Sure boundaries become certain; a video needs a sure start and a sure end (spec 4.1)."""
    p = np.full((3, 1, 16, 2), 0.3, np.float32)
    p[0, 0, 2], p[0, 0, 3], p[1, 0, 2, 0] = (0.95, 0.05), (0.85, 0.65), 0.95
    p[2, 0, 4] = 0.61
    blank = outputs_of(RESIZE)
    outputs = dataclasses.replace(blank, boundary_logits=jnp.asarray(np.log(p / (1 - p))))
    found, mask = build_bmn(RESIZE, DataFacts(FEATURE_WIDTH, CLASSES)).sharpen(outputs)
    assert mask.tolist() == [True, False, True]
    p[0, 0, 2], p[1, 0, 2, 0] = (1, 0), 1
    np.testing.assert_allclose(jax.nn.sigmoid(found.boundary_logits), p, atol=1e-6)
    np.testing.assert_array_equal(found.map_logits, blank.map_logits)


def test_without_a_class_head() -> None:
    """One class: all detections are of it, no snippet has a distribution; more classes are refused."""
    s = dataclasses.replace(RESIZE, classes="none")
    detector = build_bmn(s, DataFacts(FEATURE_WIDTH, 1))
    params, state = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))
    batch = random_batch(LENGTHS, STEPS)
    batch = dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, labels=0 * batch.targets.labels))

    @jax.jit
    def examine(batch: Any) -> tuple:
        outputs = detector.apply(params, batch, None)
        apart = detector.compare(outputs, outputs, jnp.ones(3, bool))
        loss = detector.loss(outputs, batch.targets, state, None)
        return loss, detector.decode(outputs), outputs.distribution(), apart

    loss, found, classes, apart = examine(batch)
    assert loss.class_loss == 0 and "class" not in loss.parts and jnp.isfinite(loss.total)
    assert found.mask.any() and not found.labels.any() and (found.score[found.mask] == 1).all()
    assert not classes.mask.any() and classes.probability.shape == loss.points.classes.shape == (3, 16, 2)
    assert "class_head" not in params and detector.facts.class_agnostic
    assert apart["class"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"durations": 200}, "`detector.durations`: found 200, expected at most `detector.steps` = 100"),
        ({"width": 6}, "`detector.groups`: found 4, expected a divisor of `detector.width` = 6"),
        ({"groups": 16}, "`detector.groups`: found 16, expected a divisor of the feature width 40"),
        ({"middle_tiou": 0.8}, "`detector.middle_tiou`: found 0.8, expected at most `detector.high_tiou` = 0.7"),
        ({"classes": "none"}, "`detector.classes`: found none, which tells no classes apart; the data have 3"),
    ],
)
def test_settings_that_contradict(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        build("bmn", feature_width=40, num_classes=3, **changes)


def test_the_published_detector() -> None:
    assert without_quality(BmnSettings()).quality.branches == "none"
    assert dataclasses.replace(without_quality(BmnSettings()), quality=MapQualitySettings()) == BmnSettings()
