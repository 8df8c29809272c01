"""Losses of pyramid points with ALQA, beside a twin that visits points one by one (spec 1.7, 1.12, A3 to A7)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, random_batch, rarely

from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.pyramid_outputs import PyramidOutputs, detection_losses
from apl_jax.detectors.quality import QualitySettings
from apl_jax.nn.quality import QUALITY_BRANCHES
from apl_jax.ops import losses
from apl_jax.ops.pyramid import Assignment, assign, pyramid_points
from apl_jax.ops.segments import offset_quality
from apl_jax.structs import Batch

TINY = ActionFormerSettings(branch_blocks=1, windows=(3, 0), regression_ranges=((0, 4), (4, 10000)))
STEPS = 16
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"quality": QualitySettings(branches="none"), "label_smoothing": 0.1},
    "balanced": {"quality": QualitySettings(branches="none"), "regression_weight": -1.0},
    "two_branches": {"quality": QualitySettings(branches="tiou_tnd", weight=0.7)},
    "literal_focal": {"quality": QualitySettings(branches="tiou_tnd", soft_focal="af", loss="kl")},
    "diou": {"quality": QualitySettings(branches="diou")},
    "tiou": {"quality": QualitySettings(branches="tiou")},
    "weighed_by_tiou": {"quality": QualitySettings(branches="none"), "tiou_power": 0.5},
}
# A segment for each class, as TriDet has, and one for all.
CASES = [(form, segments) for form in FORMS for segments in (1, CLASSES)]
FEW = [(form, 1) for form in FORMS] + [("weighed_by_tiou", CLASSES), ("two_branches", CLASSES)]


def scene(settings: ActionFormerSettings, segments: int = 1) -> tuple[Batch, PyramidOutputs]:
    """Two videos of 16 and 11 steps, and arbitrary predictions; one instance is of low weight, one is ignored, and two
    of different classes share their segment."""
    batch, draws = random_batch([16, 11], STEPS, seed=6, instances=6), np.random.default_rng(0)
    targets = batch.targets
    targets = dataclasses.replace(
        targets, segments_t=targets.segments_t.at[:, 3].set(targets.segments_t[:, 0]),
        labels=targets.labels.at[:, 3].set((targets.labels[:, 0] + 1) % CLASSES),
    )  # fmt: skip
    batch = dataclasses.replace(batch, targets=targets)
    point_mask = jnp.concatenate([batch.mask[:, :: 2**level] for level in range(settings.branch_blocks + 1)], axis=1)
    number = lambda width: jnp.asarray(draws.normal(size=(*point_mask.shape, width)), jnp.float32)
    quality_logits = number(2)[..., : len(QUALITY_BRANCHES[settings.quality.branches])]
    offsets = 3 * jnp.abs(number(2 * segments)).reshape(*point_mask.shape, segments, 2)
    return batch, PyramidOutputs(number(CLASSES), offsets, quality_logits, point_mask, ())


def sigmoid(x: jax.Array) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x)))


def assigned(settings: ActionFormerSettings, batch: Batch) -> Assignment:
    points = jnp.asarray(pyramid_points(STEPS, settings.regression_ranges))
    radius = settings.center_radius
    one = lambda targets: assign(points, targets, num_classes=CLASSES, center_radius=radius)
    return jax.device_get(jax.vmap(one)(batch.targets))


def twin(settings: ActionFormerSettings, batch: Batch, outputs: PyramidOutputs) -> dict[str, float]:
    """Sums over points, before division by the normaliser, and the weighted count of positives."""
    q, goal = settings.quality, assigned(settings, batch)
    target = jnp.broadcast_to(jnp.maximum(goal.offsets, 0)[:, :, None], outputs.offsets.shape)
    tiou, tnd = (np.asarray(x) for x in offset_quality(outputs.offsets, target))  # [B, P, S]
    truth = {"tiou": tiou, "tnd": tnd, "diou": np.maximum(tiou - tnd, q.epsilon)}
    said = dict(zip(QUALITY_BRANCHES[q.branches], np.moveaxis(sigmoid(outputs.quality_logits), -1, 0), strict=True))
    if q.branches == "none":
        smoothed = goal.classes * (1 - settings.label_smoothing) + settings.label_smoothing / (CLASSES + 1)
        class_loss = np.array(losses.sigmoid_focal(outputs.class_logits, smoothed, alpha=0.25, gamma=2.0))
        for b, p in zip(*np.nonzero(goal.positive), strict=True):
            taught = goal.classes[b, p] > 0 if tiou.shape[-1] > 1 else slice(None)
            class_loss[b, p, taught] *= (
                tiou[b, p, taught] if tiou.shape[-1] > 1 else tiou[b, p]
            ) ** settings.tiou_power
    else:
        reliability = np.maximum(said["diou"] if q.branches == "diou" else said["tiou"] - said.get("tnd", 0), q.epsilon)
        joint = reliability[..., None] * sigmoid(outputs.class_logits)
        label = np.float32(goal.classes * truth["tiou" if q.branches == "tiou" else "diou"])
        literal = losses.soft_focal(joint, label, alpha=0.25, gamma=2.0)
        class_loss = literal if q.soft_focal == "af" else losses.quality_focal(joint, label)
    element = losses.binary_cross_entropy if q.loss == "bce" else losses.pointwise_kl
    each = lambda name: np.asarray(element(np.broadcast_to(said[name][..., None], tiou.shape), truth[name]))
    quality = sum((each(name) for name in said), np.zeros_like(tiou))

    sums, several = dict.fromkeys(("class", "regression", "quality", "positives"), 0.0), 0
    for point in zip(*np.nonzero(np.asarray(outputs.point_mask)), strict=True):
        weight = float(goal.weight[point])
        sums["class"] += weight * float(np.asarray(class_loss)[point].sum())
        if goal.positive[point]:
            taught = np.flatnonzero(goal.classes[point]) if tiou.shape[-1] > 1 else [0]
            several += len(taught) > 1
            sums["positives"] += weight
            sums["regression"] += weight * float((1 - tiou[point] + tnd[point])[taught].sum())
            sums["quality"] += weight * float(quality[point][taught].mean())
    weights = goal.weight[np.asarray(outputs.point_mask)]
    assert sums["positives"] > 4 and {0.0, 0.5, 1.0} == set(weights.tolist())
    assert several > 0 or tiou.shape[-1] == 1
    return sums


@pytest.mark.parametrize("case", rarely(CASES, FEW.__contains__), ids=str)
def test_twin(case: tuple[str, int]) -> None:
    form, segments = case
    settings = dataclasses.replace(TINY, **FORMS[form])
    batch, outputs = scene(settings, segments)
    found = jax.jit(lambda o, t: detection_losses(o, t, jnp.float32(20), settings))(outputs, batch.targets)
    sums = twin(settings, batch, outputs)
    normalizer = 0.9 * 20 + 0.1 * sums["positives"]
    np.testing.assert_allclose(found.state, normalizer, rtol=1e-6)
    for name in ("class", "regression", "quality"):
        np.testing.assert_allclose(found.parts[name], sums[name] / normalizer, rtol=1e-4, atol=1e-7, err_msg=name)
    balance = settings.regression_weight
    if balance <= 0:
        balance = sums["class"] / normalizer / max(sums["regression"] / normalizer, 0.01)
    total = sums["class"] + balance * sums["regression"] + settings.quality.weight * sums["quality"]
    np.testing.assert_allclose(found.total, total / normalizer, rtol=1e-4)


def test_what_is_not_taught_by_what() -> None:
    """The truth that quality is compared with is no way to move offsets; nor need background move quality (A6, A6b)."""
    silent = dataclasses.replace(TINY, regression_weight=1e-30)
    quiet = dataclasses.replace(silent, quality=dataclasses.replace(TINY.quality, background_gradient=False))
    batch, outputs = scene(TINY)

    @jax.jit
    def gradients(outputs: PyramidOutputs) -> list[PyramidOutputs]:
        loss = lambda o, s: detection_losses(o, batch.targets, jnp.float32(20), s).total
        return [jax.grad(loss, allow_int=True)(outputs, s) for s in (TINY, silent, quiet)]

    usual, without_regression, without_background = gradients(outputs)
    positive = assigned(TINY, batch).positive & np.asarray(outputs.point_mask)
    background = ~positive & np.asarray(outputs.point_mask)
    assert jnp.abs(usual.offsets[positive]).max() > 1e-3
    assert jnp.abs(usual.offsets[~positive]).max() == 0
    assert jnp.abs(without_regression.offsets).max() < 1e-20
    assert jnp.abs(without_regression.quality_logits[background]).max() > 1e-4
    assert jnp.abs(without_background.quality_logits[background]).max() == 0
    np.testing.assert_allclose(
        without_background.quality_logits[positive], without_regression.quality_logits[positive], rtol=1e-5
    )
    for found in (usual, without_regression, without_background):
        assert not found.class_logits[~np.asarray(outputs.point_mask)].any()
