"""Law 1: padding changes nothing on valid steps, neither outputs nor losses nor detections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import (
    CLASSES,
    FEATURE_WIDTH,
    KINDS,
    build_kind,
    build_method,
    is_usual,
    random_batch,
    random_weights,
    rarely,
    tiny_choice,
    variants,
)
from law_batches import batches_of, weights_of

from apl_jax.detectors import build_detector
from apl_jax.detectors.base import ClassDistribution, DetectionLoss, Detector
from apl_jax.nn.blocks import TransformerBlock
from apl_jax.registry import DETECTORS
from apl_jax.settings import PerturbSettings
from apl_jax.structs import Batch, DataFacts, Detections, PyTree

LENGTHS = (20, 13, 1)
SHORT, LONG = 20, 32
CASES = [(detector, variant) for detector in DETECTORS for variant in variants(detector)]
OFTEN = lambda case: is_usual(case) or case[0] in ("actionformer", "spot") or case == ("tridet", "quality")


def valid_points(outputs: Any, steps: int) -> dict[str, np.ndarray]:
    """ActionFormer's predictions at valid points, level by level, as flat rows in the order of the videos."""
    levels, first = {}, 0
    count = outputs.point_mask.shape[1]
    level = 0
    while first < count:
        size = steps // 2**level
        inside = slice(first, first + size)
        valid = outputs.point_mask[:, inside]
        for name in ("class_logits", "offsets", "quality_logits"):
            levels[f"{name}/{level}"] = getattr(outputs, name)[:, inside][valid]
        first, level = first + size, level + 1
    return levels


def valid_snippets(outputs: Any, steps: int) -> dict[str, np.ndarray]:
    """SPOT's predictions at valid snippets, and at cells of which both snippets are, as flat rows."""
    del steps
    valid = outputs.snippet_mask
    cells = valid[..., None] & valid[..., None, :]
    rows = {name: getattr(outputs, name)[valid] for name in ("class_logits", "features", "inputs")}
    return rows | {"mask_logits": outputs.mask_logits[cells]}


def valid_cells(outputs: Any, steps: int) -> dict[str, np.ndarray]:
    """BMN's predictions at valid snippets, and at cells that are segments of the video, as flat rows."""
    del steps
    rows = {
        name: getattr(outputs, name)[outputs.snippet_mask] for name in ("class_logits", "boundary_logits", "features")
    }
    return rows | {"map_logits": outputs.map_logits[outputs.cell_mask]}


def valid_steps(outputs: Any, steps: int) -> dict[str, np.ndarray]:
    """Predictions of the stranger's detector (examples/plugin.py) at valid steps."""
    del steps
    return {name: getattr(outputs, name)[outputs.mask] for name in ("logits", "offsets", "features")}


# Per detector: what it predicts where the video is, given the padded length. Of a detector that has no line here, all
# that its record gives is looked at.
VALID_OUTPUTS: dict[str, Callable[[Any, int], dict[str, np.ndarray]]] = {
    "actionformer": valid_points,
    "spot": valid_snippets,
    "bmn": valid_cells,
    "conv": valid_steps,
}
ROWS = jnp.broadcast_to(jnp.arange(SHORT), (len(LENGTHS), SHORT))


class Seen(NamedTuple):
    """What a detector's record makes of a batch."""

    outputs: Any
    represented: Any
    beliefs: ClassDistribution
    loss: DetectionLoss
    found: Detections
    online: DetectionLoss  # on its own predictions
    flipped: ClassDistribution
    found_in_flipped: Detections
    distance: dict


def examine(detector: Detector, params: PyTree, state: PyTree, batch: Batch) -> Seen:
    """All of it."""
    outputs = detector.apply(params, batch, None)
    flipped = detector.flip(outputs)
    return Seen(
        outputs,
        outputs.represent(ROWS),
        outputs.distribution(),
        detector.loss(outputs, batch.targets, state, None),
        detector.decode(outputs),
        detector.loss(outputs, detector.annotate(outputs), state, None),
        flipped.distribution(),
        detector.decode(flipped),
        detector.compare(outputs, flipped, jnp.ones(len(LENGTHS), bool)),
    )


def assert_same_detections(a: Detections, b: Detections) -> None:
    assert a.mask.sum(-1)[:2].min() >= 3  # the video of one step may have none
    assert (a.mask == b.mask).all()
    for name in ("segments_t", "labels", "confidence", "score", "tiou", "tnd"):
        ours, theirs = getattr(a, name)[a.mask], getattr(b, name)[a.mask]
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("case", rarely(CASES, OFTEN), ids="-".join)
def test_detector(case: tuple[str, str]) -> None:
    """Twelve more steps, of numbers that must not be looked at: NaN."""
    detector_name, variant = case
    detector = build_detector(variants(detector_name)[variant], DataFacts(FEATURE_WIDTH, CLASSES))
    params, state = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))
    run = jax.jit(lambda batch: examine(detector, params, state, batch))
    short, long = random_batch(LENGTHS, SHORT), random_batch(LENGTHS, LONG, padding=np.nan)
    a, b = jax.device_get((run(short), run(long)))

    valid = np.asarray(short.mask)
    np.testing.assert_allclose(a.represented[valid], b.represented[valid], atol=2e-5)
    if detector_name in VALID_OUTPUTS:
        rows_a = VALID_OUTPUTS[detector_name](a.outputs, SHORT)
        rows_b = VALID_OUTPUTS[detector_name](b.outputs, LONG)
        assert len(rows_a) == len(rows_b) >= 3
        for name, values in rows_a.items():
            np.testing.assert_allclose(values, rows_b[name], atol=2e-5, err_msg=name)

    for part in ("beliefs", "flipped"):
        ours, theirs = getattr(a, part), getattr(b, part)
        for name in ours._fields:
            of_valid = getattr(ours, name)[ours.mask], getattr(theirs, name)[theirs.mask]
            np.testing.assert_allclose(*of_valid, atol=2e-5, err_msg=f"{part}.{name}")
    for part in ("loss", "online"):
        ours, theirs = getattr(a, part).points, getattr(b, part).points
        for name in ours._fields:
            of_valid = getattr(ours, name)[a.beliefs.mask], getattr(theirs, name)[b.beliefs.mask]
            np.testing.assert_allclose(*of_valid, atol=2e-5, err_msg=f"{part}.points.{name}")

    assert a.loss.parts.get("positives", a.loss.points.foreground_mask.sum()) > 3
    scalars = [(seen.loss._replace(points=None), seen.online._replace(points=None), seen.distance) for seen in (a, b)]
    rows = zip(jax.tree_util.tree_leaves_with_path(scalars[0]), jax.tree.leaves(scalars[1]), strict=True)
    for (path, ours), theirs in rows:
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, err_msg=jax.tree_util.keystr(path))

    assert_same_detections(a.found, b.found)
    assert_same_detections(a.found_in_flipped, b.found_in_flipped)


@pytest.mark.parametrize("stride", [1, 2])
def test_transformer_block(stride: int) -> None:
    """By itself, it looks at valid steps only, although the backbone hands it zeros beyond them."""
    block = TransformerBlock(
        heads=2, window=3, stride=stride, expansion=2, dropout=0.0, drop_path=0.0, layer_scale=True,
        layer_scale_init=1.0, strict=True,
    )  # fmt: skip
    mask = jnp.arange(8) < jnp.array([[8], [5]])
    x = np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32)
    params = random_weights(jax.eval_shape(lambda: block.init(jax.random.key(0), x, mask, True)))
    run = jax.jit(lambda padding: block.apply(params, jnp.where(mask[..., None], x, padding), mask, True))
    (quiet, out_mask), (loud, _) = run(0.0), run(100.0)
    assert out_mask.sum(-1).tolist() == ([8, 5] if stride == 1 else [4, 3])
    np.testing.assert_allclose(quiet, loud, atol=1e-6)
    assert not quiet[~np.asarray(out_mask)].any()


@pytest.mark.parametrize("kind", rarely(KINDS, ("apl_nontarget",).__contains__))
def test_training_objective(kind: str) -> None:
    """The whole objective, with its random crops and sampled frames: same key, same value. Under some of the keys a
    video is cropped, under some it is seen whole and fills the shorter batch to its end."""
    detector = tiny_choice(next(iter(DETECTORS)))
    # Noise is not among the perturbations: it is drawn for padded steps too, so other steps get other numbers.
    perturb = PerturbSettings(crop_ratio=0.7)
    values = {}
    for steps in (SHORT, LONG):
        objective = build_kind(kind, detector, steps, perturb)
        params, state = weights_of(objective)
        batches = batches_of(
            build_method(kind, detector, steps, perturb),
            random_batch(LENGTHS, steps),
            random_batch(LENGTHS, steps, seed=1, instances=3),
        )
        run = jax.jit(objective.loss)
        values[steps] = jax.device_get([run(params, params, state, batches, jax.random.key(k)) for k in range(24)])
    flat = [jax.tree_util.tree_leaves_with_path(values[steps]) for steps in (SHORT, LONG)]
    assert all(abs(float(loss)) > 0.01 for loss, _ in values[SHORT])
    for (path, ours), (_, theirs) in zip(*flat, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_reference_masking_does_leak() -> None:
    """The law is a choice: ActionFormer's own masking, kept for parity, lets padding reach the last valid steps."""
    plain = variants("actionformer")["identity"]
    leaky = dataclasses.replace(plain, settings=dataclasses.replace(plain.settings, masking="reference"))
    detector = build_detector(leaky, DataFacts(FEATURE_WIDTH, CLASSES))
    params, _ = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))
    run = jax.jit(lambda batch: detector.apply(params, batch, None).class_logits)
    difference = jnp.abs(run(random_batch((20,), SHORT))[:, :SHORT] - run(random_batch((20,), LONG))[:, :SHORT])
    assert difference.max() > 1e-3
