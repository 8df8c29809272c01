"""P-GCN's kinds, samples, losses and decoding beside twins that visit proposals one by one (spec 5)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, random_batch, random_weights, variants

from apl_jax.declarations import SettingsError, override
from apl_jax.detectors import build_detector
from apl_jax.detectors.pgcn import build_pgcn, find_neighbours, pool_parts, with_annotated
from apl_jax.detectors.pgcn_losses import completeness_loss, initial_state, proposal_losses
from apl_jax.detectors.pgcn_outputs import PgcnOutputs, class_scores, compare_outputs, decode_detections, flip_outputs
from apl_jax.detectors.pgcn_settings import PgcnSettings
from apl_jax.detectors.pgcn_targets import assign_proposals, draw_samples
from apl_jax.registry import DETECTORS
from apl_jax.structs import DataFacts, Targets

TINY: PgcnSettings = variants("pgcn")["nearest"].settings
LITERAL: PgcnSettings = variants("pgcn")["drawn"].settings
LENGTHS, STEPS = (20, 13, 1), 20
BATCH = random_batch(LENGTHS, STEPS, seed=3, instances=6)
PROPOSALS: Any = BATCH.proposals
STATE = initial_state(TINY)


def outputs_of(batch: Any = BATCH, seed: int = 0, quality: int = 2) -> PgcnOutputs:
    """Arbitrary predictions of a batch's proposals."""
    draws = np.random.default_rng(seed)
    videos, count = batch.proposals.mask.shape
    normal = lambda *size: jnp.asarray(draws.normal(size=(videos, count, *size)), jnp.float32)
    return PgcnOutputs(
        normal(CLASSES + 1), normal(CLASSES), normal(CLASSES, 2), normal(quality), batch.proposals.segments_t,
        batch.proposals.mask, jnp.zeros((videos, count), bool), batch.features, batch.mask.sum(-1, dtype=jnp.int32),
    )  # fmt: skip


def overlaps(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """tIoU, and the share of ``a`` in ``b``."""
    inner = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return inner / ((a[1] - a[0]) + (b[1] - b[0]) - inner), inner / max(a[1] - a[0], 1e-6)


def twin_kind(segment: np.ndarray, targets: Targets, v: int, length: int, s: PgcnSettings) -> tuple[str, int]:
    """Kind of a proposal, and the instance that it overlaps most."""
    best, owner, inside, hidden, share = 0.0, 0, 0.0, 0.0, 0.0
    for n in np.flatnonzero(targets.mask[v]):
        tiou, part = overlaps(segment, np.asarray(targets.segments_t[v, n], np.float64))
        if targets.ignore_mask[v, n]:
            hidden, share = max(hidden, tiou), max(share, part)
        elif tiou > best:
            best, owner = tiou, int(n)
        inside = inside if targets.ignore_mask[v, n] else max(inside, part)
    if best > s.foreground_tiou:
        return "foreground", owner
    if share > s.incomplete_overlap and hidden >= best:
        return "none", owner
    if best < s.incomplete_tiou and inside > s.incomplete_overlap:
        return "incomplete", owner
    covered = (segment[1] - segment[0]) / length > s.background_coverage
    return ("background" if best < s.background_tiou and covered else "none"), owner


def test_kinds_beside_a_twin() -> None:
    many = random_batch((60, 33, 1), 64, seed=1, instances=6)
    outputs = outputs_of(many)
    goal = jax.device_get(assign_proposals(outputs, many.targets, TINY))
    kinds = {name: getattr(goal, f"{name}_mask") for name in ("foreground", "incomplete", "background")}
    seen = set()
    for v, k in np.ndindex(outputs.proposal_mask.shape):
        segment = np.asarray(outputs.segments_t[v, k], np.float64)
        kind, owner = twin_kind(segment, many.targets, v, (60, 33, 1)[v], TINY)
        found = [name for name, mask in kinds.items() if mask[v, k]]
        assert found == ([kind] if kind != "none" and outputs.proposal_mask[v, k] else []), (v, k)
        seen.add(kind)
        if kind in ("foreground", "incomplete") and outputs.proposal_mask[v, k]:
            assert goal.label[v, k] == many.targets.labels[v, owner]
            assert goal.weight[v, k] == many.targets.weight[v, owner]
    assert seen == {"foreground", "incomplete", "background", "none"}


def test_under_an_ignored_instance_nothing_is_background() -> None:
    ignored = dataclasses.replace(BATCH.targets, ignore_mask=jnp.ones_like(BATCH.targets.mask))
    outputs = outputs_of()
    goal = assign_proposals(outputs, ignored, TINY)
    assert not goal.foreground_mask.any() and not goal.incomplete_mask.any()
    for v, k in np.argwhere(np.asarray(goal.background_mask)):
        segment = np.asarray(outputs.segments_t[v, k], np.float64)
        rows = np.flatnonzero(ignored.mask[v])
        assert max(overlaps(segment, np.asarray(ignored.segments_t[v, n]))[1] for n in rows) <= TINY.incomplete_overlap
    silent = proposal_losses(outputs, ignored, STATE, None, TINY).points.silent_mask
    assert (silent | goal.background_mask)[outputs.proposal_mask].all() and silent.any()


def test_samples_and_their_expectation() -> None:
    """Each kind has its number of samples; without a key every proposal of a kind counts as it is drawn on average."""
    goal = assign_proposals(outputs_of(), BATCH.targets, TINY)
    expected = draw_samples(goal, None, TINY)
    draws = jax.jit(jax.vmap(lambda key: draw_samples(goal, key, TINY)))(jax.random.split(jax.random.key(0), 600))
    kinds = (("foreground", 1), ("incomplete", 3), ("background", 1))
    for name, count in kinds:
        mask, each = np.asarray(getattr(goal, f"{name}_mask")), np.asarray(getattr(draws, name))
        assert not each[:, ~mask].any()
        totals = np.where(mask.any(-1), count, 0)
        np.testing.assert_allclose(each.sum(-1), np.broadcast_to(totals, each.shape[:2]), rtol=1e-5)
        np.testing.assert_allclose(each.mean(0), getattr(expected, name), atol=0.15)
    literal = draw_samples(goal._replace(incomplete_mask=jnp.zeros_like(goal.incomplete_mask)), None, LITERAL)
    some = np.asarray(goal.foreground_mask.any(-1))
    lacking = 3 + ~np.asarray(goal.background_mask.any(-1))
    np.testing.assert_allclose(np.asarray(literal.filled.sum(-1))[some], lacking[some], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(literal.hard.sum(-1))[some], 3, rtol=1e-5)


@pytest.mark.parametrize("key", [None, 5])
def test_losses_beside_a_twin(key: int | None) -> None:
    s, outputs = dataclasses.replace(TINY, regression_scale="fixed"), outputs_of()
    drawn_by = None if key is None else jax.random.key(key)
    goal = jax.device_get(assign_proposals(outputs, BATCH.targets, s))
    samples = jax.device_get(draw_samples(goal, drawn_by, s))
    run = jax.jit(lambda o: proposal_losses(o, BATCH.targets, STATE, drawn_by, s))
    o, losses = jax.device_get((outputs, run(outputs)))
    sigmoid = lambda x: 1 / (1 + np.exp(-np.float64(x)))
    entropy = taught = places = hinge = hardest = regression = quality = 0.0
    for v, k in np.ndindex(goal.label.shape):
        label, weight = goal.label[v, k], float(goal.weight[v, k])
        logits, fore = o.activity_logits[v, k].astype(np.float64), samples.foreground[v, k]
        log_p = logits - np.log(np.exp(logits).sum())
        entropy -= fore * weight * log_p[label] + samples.background[v, k] * log_p[-1]
        places += fore * weight + samples.background[v, k]
        hinge += fore * weight * max(1 - o.completeness[v, k, label], 0)
        if not fore:
            continue
        (start, end), (low, high) = o.segments_t[v, k].astype(np.float64), goal.segment_t[v, k].astype(np.float64)
        length, raw = end - start, o.regression[v, k, label] * np.array(s.regression_deviation) + s.regression_mean
        target = np.array([((low + high) - (start + end)) / 2 / length, np.log((high - low) / length)])
        difference = np.abs((raw - target) / s.regression_deviation)
        smooth = np.where(difference < 1, difference**2 / 2, difference - 0.5)
        regression += 2 * fore * weight * smooth.mean()
        centre, half = (start + end) / 2 + raw[0] * length, length * np.exp(raw[1]) / 2
        tiou, _ = overlaps(np.array([centre - half, centre + half]), np.array([low, high]))
        cover = max(centre + half, high) - min(centre - half, low)
        for truth, logit in zip(
            (tiou, ((centre - (low + high) / 2) / cover) ** 2), o.quality_logits[v, k], strict=True
        ):
            p = sigmoid(logit)
            quality -= fore * weight * (truth * np.log(p) + (1 - truth) * np.log(1 - p))
        taught += fore * weight
    for v in range(len(goal.label)):
        rows = np.flatnonzero(samples.incomplete[v])
        below = [max(1 + o.completeness[v, k, goal.label[v, k]], 0) for k in rows]
        left = 1.0  # int(3 x .17) is 0; at least one counts
        for i in np.argsort(below)[::-1]:
            share = min(left, samples.incomplete[v, rows[i]])
            hardest += share * goal.weight[v, rows[i]] * below[i]
            left -= share
    divisor = samples.foreground.sum() + max(int(0.17 * samples.incomplete.sum()), 1)
    expected = {
        "class": entropy / max(places, 1),
        "completeness": (hinge + hardest) / divisor,
        "regression": regression / max(taught, 1),
        "quality": quality / max(taught, 1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(losses.parts[name], value, rtol=2e-5, err_msg=name)
        assert value > 0.05, name
    total = (
        expected["class"] + 0.5 * expected["completeness"] + 0.5 * expected["regression"] + 0.1 * expected["quality"]
    )
    np.testing.assert_allclose(losses.total, total, rtol=2e-5)
    np.testing.assert_allclose(losses.class_loss + losses.localisation_loss, losses.total, rtol=1e-6)


def test_hardest_negatives_take_the_gradient() -> None:
    score = jnp.array([[[0.5], [0.9], [-2.0], [0.1]]])
    label, one = jnp.zeros((1, 4), int), jnp.ones((1, 4))
    positive, negative = jnp.array([[1.0, 0, 0, 0]]), jnp.array([[0, 1.0, 1.0, 1.0]])
    gradient = jax.grad(lambda x: completeness_loss(x, label, one, positive, negative, TINY))(score)
    np.testing.assert_allclose(gradient[0, :, 0], [-0.5, 0.5, 0, 0])  # over one positive and one negative


def test_the_scale_of_regression_follows_the_targets() -> None:
    """By the proposals that are foreground, not by annotated instances that stand among them (spec 5.3, 7)."""
    outputs = outputs_of()
    foreground = np.asarray(assign_proposals(outputs, BATCH.targets, TINY).foreground_mask)
    quick = dataclasses.replace(TINY, regression_momentum=0.0)
    state = proposal_losses(outputs, BATCH.targets, STATE, None, quick).state
    assert foreground.sum() > 3 and not np.allclose(state, STATE, atol=1e-3)
    deviation = np.sqrt(np.asarray(state[1] - state[0] ** 2))
    assert (deviation > 0.01).all() and (deviation < 0.5).all()
    annotated = dataclasses.replace(outputs, annotated_mask=jnp.asarray(foreground))
    assert (proposal_losses(annotated, BATCH.targets, STATE, None, quick).state == STATE).all()
    # A state that no targets can have, and one of targets that are all alike, leave the loss finite.
    for state in (jnp.zeros((2, 2)), jnp.full((2, 2), -1.0)):
        assert jnp.isfinite(proposal_losses(outputs, BATCH.targets, state, None, quick).total)


def twin_detections(o: PgcnOutputs, v: int, s: PgcnSettings) -> list[tuple]:
    """(score, class, start, end) of one video: suppressed among proposals, then regressed."""
    d, q = s.decoding, 1 / (1 + np.exp(-np.asarray(o.quality_logits[v], np.float64)))
    reliability = np.maximum(q[:, 0] - q[:, 1], s.quality.epsilon) if q.shape[-1] else np.ones(len(q))
    logits = np.asarray(o.activity_logits[v], np.float64)
    activity = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    completeness = np.asarray(o.completeness[v], np.float64)
    exists = np.asarray(o.proposal_mask[v] & ~o.annotated_mask[v])
    if d.completeness == "sigmoid":
        score = activity[:, :-1] / (1 + np.exp(-completeness))
    else:
        score = activity[:, :-1] * np.exp(completeness)
        score = score / score[exists].max()
    pairs = sorted(
        ((score[k, c] * reliability[k], c, k) for k, c in np.ndindex(score.shape) if exists[k]), reverse=True
    )
    kept: list[tuple] = []
    for value, c, k in pairs[: d.top_k_per_level]:
        segment = np.asarray(o.segments_t[v, k], np.float64)
        if value <= d.score_threshold or segment[1] - segment[0] <= d.duration_threshold_t:
            continue
        same = [np.asarray(o.segments_t[v, other], np.float64) for _, label, other in kept if label == c]
        if all(overlaps(segment, other)[0] < d.iou_threshold for other in same):
            kept.append((value, c, k))
    found = []
    for value, c, k in kept[: d.max_detections]:
        (start, end), (shift, ratio) = o.segments_t[v, k], o.regression[v, k, c] * np.array(s.regression_deviation)
        centre, half = (start + end) / 2 + shift * (end - start), (end - start) / 2 * np.exp(ratio)
        found.append((value, c, centre - half, centre + half))
    return found


@pytest.mark.parametrize("settings", [TINY, LITERAL], ids=["sigmoid", "maximum"])
def test_detections_beside_a_twin(settings: PgcnSettings) -> None:
    outputs = outputs_of(quality=0 if settings.quality.branches == "none" else 2)
    outputs = dataclasses.replace(outputs, annotated_mask=outputs.annotated_mask.at[:, 4].set(True))
    found = jax.device_get(jax.jit(lambda o: decode_detections(o, settings, settings.decoding))(outputs))
    for v in range(len(LENGTHS)):
        expected, mask = twin_detections(outputs, v, settings), found.mask[v]
        rows = np.c_[found.confidence[v], found.labels[v], found.segments_t[v]][mask]
        np.testing.assert_allclose(rows, np.array(expected), rtol=1e-4, atol=1e-4)
        assert len(expected) >= 3 and found.confidence.max() <= 1


def test_scores_lie_between_0_and_1() -> None:
    outputs = outputs_of()
    for scale in (1.0, 1e3):
        loud = dataclasses.replace(outputs, completeness=scale * outputs.completeness)
        for name in ("sigmoid", "maximum"):
            score = class_scores(loud, name)
            assert jnp.isfinite(score).all() and score.min() >= 0 and score.max() <= 1
            assert not score[~outputs.proposal_mask].any()
        np.testing.assert_allclose(class_scores(loud, "maximum").max((1, 2)), 1)
    nothing = dataclasses.replace(outputs, proposal_mask=jnp.zeros_like(outputs.proposal_mask))
    assert not class_scores(nothing, "maximum").any()


def test_annotated_instances_take_the_last_places() -> None:
    proposals, annotated = with_annotated(PROPOSALS, BATCH.targets)
    taught = BATCH.targets.mask & ~BATCH.targets.ignore_mask
    places = taught.shape[1]
    assert (annotated[:, -places:] == taught).all() and not annotated[:, :-places].any()
    assert (proposals.segments_t[annotated] == BATCH.targets.segments_t[taught]).all()
    assert (proposals.segments_t[~annotated] == PROPOSALS.segments_t[~annotated]).all()
    assert (proposals.mask == (PROPOSALS.mask | annotated)).all()
    few = jax.tree.map(lambda x: x[:, :2], BATCH.proposals)  # fewer proposals than instances
    assert with_annotated(few, BATCH.targets)[0].segments_t.shape == (3, 2, 2)


def test_in_training_only() -> None:
    """Evaluation never sees an annotation; nor does decoding in training."""
    detector = build_detector(variants("pgcn")["nearest"], DataFacts(FEATURE_WIDTH, CLASSES))
    params, _ = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))
    assert not detector.apply(params, BATCH, None).annotated_mask.any()
    seen = detector.apply(params, BATCH, jax.random.key(0))
    assert seen.annotated_mask.any() and not class_scores(seen, "sigmoid")[seen.annotated_mask].any()
    with pytest.raises(ValueError, match="has none"):
        detector.apply(params, dataclasses.replace(BATCH, proposals=None), None)


def test_parts_of_short_recordings() -> None:
    """What lies before the first row and after the last is read from these; padding is never read."""
    rows = np.where(np.arange(8)[:, None] < 5, np.arange(8)[:, None] + [0.0, 10.0], np.nan)[None]
    segments = jnp.array([[[0.0, 4.0], [-3.0, 9.0], [4.0, 4.5], [1.0, 3.0]]])
    act, comp = pool_parts(jnp.asarray(rows, jnp.float32), segments, jnp.array([5]), 0.5)
    assert act[0, :, 0].tolist() == [4, 4, 4, 3]
    assert comp[0, :, ::2].tolist() == [[0, 4, 4], [0, 4, 4], [4, 4, 4], [1, 3, 4]]


def test_every_video_draws_alike() -> None:
    key = jax.random.key(2)
    twice = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), BATCH.proposals)
    one, other = find_neighbours(twice, key, LITERAL)
    assert (one == other).all() and (find_neighbours(twice, jax.random.key(3), LITERAL)[0] != one).any()
    assert (find_neighbours(twice, None, LITERAL) == find_neighbours(twice, None, LITERAL)).all()


def test_distance_and_flip() -> None:
    student, teacher = outputs_of(seed=1), outputs_of(seed=2)
    videos = jnp.array([True, False, True])
    eager = dataclasses.replace(TINY, compare_threshold=0.1)
    found = jax.jit(lambda a, b: compare_outputs(a, b, videos, eager))(student, teacher)
    again = compare_outputs(flip_outputs(student), flip_outputs(teacher), videos, eager)
    for name, value in found.items():
        assert value > 0.001
        np.testing.assert_allclose(again[name], value, rtol=1e-4)
        assert abs(compare_outputs(student, student, videos, eager)[name]) < 1e-6
    turned = flip_outputs(student)
    assert (turned.segments_t == (jnp.array(LENGTHS)[:, None, None] - 1) - student.segments_t[..., ::-1]).all()
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    p, q = (softmax(np.asarray(o.activity_logits, np.float64)) for o in (student, teacher))
    valid = np.asarray(student.proposal_mask & videos[:, None])
    np.testing.assert_allclose(found["class"], ((p - q) ** 2).mean(-1)[valid].mean(), rtol=1e-5)


def hard(kind: str) -> tuple[Any, Any]:
    """Batches that most easily break a loss, all of the same shape."""
    targets, proposals = BATCH.targets, PROPOSALS
    first = jnp.arange(targets.mask.shape[1]) < 1
    if kind == "no instance":
        targets = dataclasses.replace(targets, mask=jnp.zeros_like(targets.mask))
    elif kind == "one instance":
        targets = dataclasses.replace(targets, mask=targets.mask & first)
    elif kind == "no proposals":
        proposals = dataclasses.replace(proposals, mask=jnp.zeros_like(proposals.mask))
    elif kind == "empty proposals":
        proposals = dataclasses.replace(proposals, segments_t=jnp.full_like(proposals.segments_t, 3.0))
    elif kind == "one step":
        return dataclasses.replace(BATCH, mask=BATCH.mask & (jnp.arange(STEPS) < 1)), targets
    return dataclasses.replace(BATCH, targets=targets, proposals=proposals), targets


@pytest.mark.parametrize("form", ["projection", pytest.param("literal", marks=pytest.mark.exhaustive)])
def test_finite_on_hard_batches(form: str) -> None:
    """With and without a key, from rows that are projected, so that gradients pass through pooling and cosines."""
    settings = dataclasses.replace(TINY, rows="projection") if form == "projection" else LITERAL
    detector = build_pgcn(settings, DataFacts(FEATURE_WIDTH, CLASSES))
    params, _ = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))

    @jax.jit
    def run(batch: Any, key: jax.Array) -> list:
        def objective(params: Any, draw: Any) -> Any:
            outputs = detector.apply(params, batch, draw)
            loss = detector.loss(outputs, batch.targets, STATE, draw)
            return loss.total, (loss, detector.decode(outputs))

        return [jax.value_and_grad(objective, has_aux=True)(params, draw) for draw in (None, key)]

    for kind in ("none", "no instance", "one instance", "no proposals", "empty proposals", "one step"):
        found = run(hard(kind)[0], jax.random.key(1))
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            assert jnp.isfinite(leaf).all(), (kind, jax.tree_util.keystr(path))


def test_settings_that_contradict_one_another() -> None:
    facts = DataFacts(FEATURE_WIDTH, CLASSES)
    for changes, words in (
        ({"contextual_neighbours": 0, "surrounding_neighbours": 0}, "at least 1"),
        ({"neighbours": "drawn", "pool_contextual": 1, "pool_surrounding": 1}, "as many candidates"),
        ({"regression_mean": (0.0,)}, "expected 2"),
    ):
        with pytest.raises(SettingsError, match=words):
            build_pgcn(override(TINY, changes), facts)
    assert DETECTORS["pgcn"].plain(TINY).quality.branches == "none"
