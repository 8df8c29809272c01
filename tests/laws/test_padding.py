"""Law 1: padding changes nothing on valid steps, neither outputs nor losses nor detections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import (
    CLASSES,
    FEATURE_WIDTH,
    KINDS,
    build_kind,
    random_bank,
    random_batch,
    random_weights,
    tiny_settings,
    variants,
)

from apl_jax.detectors import DETECTORS, build_detector
from apl_jax.nn.blocks import TransformerBlock
from apl_jax.settings import PerturbSettings
from apl_jax.structs import Batch

LENGTHS = (20, 13, 1)
SHORT, LONG = 20, 32
CASES = [(detector, variant) for detector in DETECTORS for variant in variants(detector)]


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


# Per detector: what it predicts where the video is, given the padded length.
VALID_OUTPUTS: dict[str, Callable[[Any, int], dict[str, np.ndarray]]] = {
    "actionformer": valid_points,
    "spot": valid_snippets,
}


@pytest.mark.parametrize(("detector_name", "variant"), CASES)
def test_detector(detector_name: str, variant: str) -> None:
    """Twelve more steps, of numbers that must not be looked at: NaN."""
    detector = build_detector(variants(detector_name)[variant], FEATURE_WIDTH, CLASSES)
    params, state = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))
    rows = jnp.broadcast_to(jnp.arange(SHORT), (len(LENGTHS), SHORT))

    @jax.jit
    def examine(batch: Batch) -> tuple:
        outputs = detector.apply(params, batch, None)
        return (
            (outputs, outputs.represent(rows), outputs.distribution()),
            detector.loss(outputs, batch.targets, state),
            detector.decode(outputs),
        )

    short, long = random_batch(LENGTHS, SHORT), random_batch(LENGTHS, LONG, padding=np.nan)
    (seen_a, losses_a, found_a), (seen_b, losses_b, found_b) = jax.device_get((examine(short), examine(long)))
    (outputs_a, represented_a, beliefs_a), (outputs_b, represented_b, beliefs_b) = seen_a, seen_b

    valid = np.asarray(short.mask)
    np.testing.assert_allclose(represented_a[valid], represented_b[valid], atol=2e-5)
    rows_a = VALID_OUTPUTS[detector_name](outputs_a, SHORT)
    rows_b = VALID_OUTPUTS[detector_name](outputs_b, LONG)
    assert len(rows_a) == len(rows_b) >= 3
    for name, values in rows_a.items():
        np.testing.assert_allclose(values, rows_b[name], atol=2e-5, err_msg=name)

    for part_a, part_b in ((beliefs_a, beliefs_b), (losses_a.roles, losses_b.roles)):
        for name, ours, theirs in zip(part_a._fields, part_a, part_b, strict=True):
            np.testing.assert_allclose(ours[beliefs_a.mask], theirs[beliefs_b.mask], atol=2e-5, err_msg=name)

    assert losses_a.terms["positives"] > 3
    scalars_a, scalars_b = (jax.tree.leaves(losses._replace(roles=None)) for losses in (losses_a, losses_b))
    for ours, theirs in zip(scalars_a, scalars_b, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)

    assert found_a.mask.sum(-1)[:2].min() >= 3  # the video of one step may have none
    assert (found_a.mask == found_b.mask).all()
    for name in ("segments_t", "labels", "confidence", "score", "tiou", "tnd"):
        ours, theirs = getattr(found_a, name)[found_a.mask], getattr(found_b, name)[found_a.mask]
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)


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


@pytest.mark.parametrize("kind", KINDS)
def test_training_objective(kind: str) -> None:
    """The whole objective, with its random crops and sampled frames: same key, same value."""
    settings = tiny_settings(next(iter(DETECTORS)))
    values = {}
    for steps in (SHORT, LONG):
        # Noise is not among the perturbations: it is drawn for padded steps too, so other steps get other numbers.
        method = build_kind(kind, settings, steps, PerturbSettings(crop_ratio=0.7))
        params, state = random_weights(jax.eval_shape(method.init, jax.random.key(0)))
        batches = {
            "labelled": random_batch(LENGTHS, steps),
            "unlabelled": random_batch(LENGTHS, steps, seed=1, instances=3),
            "bank": random_bank(),
        }
        values[steps] = jax.device_get(jax.jit(method.loss)(params, params, state, batches, jax.random.key(3)))
    flat = [jax.tree_util.tree_leaves_with_path(values[steps]) for steps in (SHORT, LONG)]
    assert abs(float(values[SHORT][0])) > 0.01
    for (path, ours), (_, theirs) in zip(*flat, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_reference_masking_does_leak() -> None:
    """The law is a choice: ActionFormer's own masking, kept for parity, lets padding reach the last valid steps."""
    plain = variants("actionformer")["identity"]
    leaky = dataclasses.replace(plain, actionformer=dataclasses.replace(plain.actionformer, masking="reference"))
    detector = build_detector(leaky, FEATURE_WIDTH, CLASSES)
    params, _ = random_weights(jax.eval_shape(detector.init, jax.random.key(0)))
    run = jax.jit(lambda batch: detector.apply(params, batch, None).class_logits)
    difference = jnp.abs(run(random_batch((20,), SHORT))[:, :SHORT] - run(random_batch((20,), LONG))[:, :SHORT])
    assert difference.max() > 1e-3
