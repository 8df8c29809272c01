"""ActionFormer against the public reference implementation: both necks, from features to detections and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyramid_reference import assert_gradients, below, read_batch, read_reference

from apl_jax.detectors.actionformer import ActionFormer, build_actionformer
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.base import DetectionLoss
from apl_jax.detectors.pyramid_outputs import PyramidOutputs
from apl_jax.detectors.quality import QualitySettings
from apl_jax.interop.actionformer_weights import import_parameters
from apl_jax.ops.pyramid import assign, pyramid_points
from apl_jax.structs import Array, Batch, DataFacts, Detections, PyTree, TimeGrid

GOLDEN = Path(__file__).parent

VIDEOS, STEPS, LEVELS, CLASSES, WIDTH = 2, 64, 3, 5, 24


class Case(NamedTuple):
    """One recorded run of the reference, and the same run of this project."""

    reference: dict[str, np.ndarray]
    settings: ActionFormerSettings
    batch: Batch
    params: PyTree
    backbone: tuple[np.ndarray, ...]  # per level [B, T_l, C]
    levels: Any  # per level (features [B, T_l, C], mask [B, T_l]), after the neck
    outputs: PyramidOutputs
    losses: DetectionLoss
    gradients: PyTree
    detections: Detections


@pytest.fixture(scope="module", params=["identity", "fpn"])
def case(request: pytest.FixtureRequest) -> Case:
    """Everything that is compared comes out of one compiled program: losses and gradients, with all else beside."""
    reference = read_reference(GOLDEN / f"actionformer_{request.param}.npz")
    # Stochastic depth was off when the gradients were recorded; the layer scales, which the reference ties to it, on.
    settings = ActionFormerSettings(
        width=32, stem_blocks=2, branch_blocks=2, windows=(5, 5, 5), neck=request.param, drop_path=0.0,
        regression_ranges=((0, 4), (4, 8), (8, 10000)), masking="reference", quality=QualitySettings(branches="none"),
    )  # fmt: skip
    params, batch = import_parameters(below(reference, "param/")), read_batch(reference, STEPS)
    network, detector = ActionFormer(settings, CLASSES), build_actionformer(settings, DataFacts(WIDTH, CLASSES))

    def everything(params: PyTree, batch: Batch) -> tuple[Array, tuple]:
        (levels, outputs), inside = network.apply(
            {"params": params}, batch.features, batch.mask, False,
            capture_intermediates=lambda module, _: module.name == "backbone", mutable=["intermediates"],
        )  # fmt: skip
        backbone = inside["intermediates"]["backbone"]["__call__"][0]
        losses = detector.loss(outputs, batch.targets, jnp.float32(settings.normalizer_init), None)
        return losses.total, (tuple(x for x, _ in backbone), levels, outputs, losses, detector.decode(outputs))

    results = jax.jit(jax.value_and_grad(everything, has_aux=True))(params, batch)
    (_, (backbone, levels, outputs, losses, detections)), gradients = jax.device_get(results)
    return Case(reference, settings, batch, params, backbone, levels, outputs, losses, gradients, detections)


def test_the_imported_weights_are_the_whole_model(case: Case) -> None:
    shapes = jax.eval_shape(build_actionformer(case.settings, DataFacts(WIDTH, CLASSES)).init, jax.random.key(0))[0]
    assert jax.tree.map(np.shape, case.params) == jax.tree.map(np.shape, shapes)


def test_unknown_weight_is_refused() -> None:
    with pytest.raises(KeyError, match=r"reg_head\.extra\.weight"):
        import_parameters({"reg_head.extra.weight": np.zeros(3)})


@pytest.mark.parametrize("level", range(LEVELS))
def test_activations(case: Case, level: int) -> None:
    features, mask = case.levels[level]
    for ours, theirs in ((case.backbone[level], "backbone"), (features, "fpn")):
        np.testing.assert_allclose(ours, case.reference[f"{theirs}/{level}"].transpose(0, 2, 1), atol=2e-5, rtol=0)
    assert (mask == case.reference[f"mask/{level}"][:, 0]).all()


def joined(case: Case, name: str) -> np.ndarray:
    """A recorded array of all levels, along the axis of points."""
    return np.concatenate([case.reference[f"{name}/{level}"] for level in range(LEVELS)], axis=-2)


def test_heads(case: Case) -> None:
    np.testing.assert_allclose(case.outputs.class_logits, joined(case, "logits"), atol=2e-5, rtol=0)
    np.testing.assert_allclose(case.outputs.offsets[:, :, 0], joined(case, "offsets"), atol=2e-5, rtol=0)


def test_points_and_targets_are_exact(case: Case) -> None:
    points = pyramid_points(STEPS, case.settings.regression_ranges)
    assert (points == joined(case, "points")).all()
    goal = jax.vmap(lambda t: assign(jnp.asarray(points), t, num_classes=CLASSES, center_radius=1.5))(
        case.batch.targets
    )
    positive = case.reference["targets/cls"].any(-1)
    assert positive.sum() > 20 and (np.asarray(goal.positive) == positive).all()
    assert (np.asarray(goal.classes) == case.reference["targets/cls"]).all()
    assert (np.asarray(goal.offsets)[positive] == case.reference["targets/offsets"][positive]).all()


def test_losses_and_normalizer(case: Case) -> None:
    parts = case.losses.parts
    for ours, theirs in (
        (parts["class"], "cls_loss"),
        (parts["regression"], "reg_loss"),
        (case.losses.total, "final_loss"),
    ):
        np.testing.assert_allclose(ours, case.reference[f"loss/{theirs}"], rtol=1e-5)
    np.testing.assert_allclose(case.losses.state, case.reference["loss/normalizer_after"], rtol=1e-6)


def test_gradients(case: Case) -> None:
    assert_gradients(case.gradients, import_parameters(below(case.reference, "grad/")), mostly=0.85)


@pytest.mark.parametrize("video", range(VIDEOS))
def test_detections_in_seconds(case: Case, video: int) -> None:
    found = jax.tree.map(lambda x: x[video], case.detections)
    length = int(case.batch.mask[video].sum())
    grid = TimeGrid(fps=30.0, stride=4, window=16, length=length)
    seconds_s = np.clip(grid.to_s(found.segments_t), 0, length * 4 / 30 + 0.5)
    reference = {name: case.reference[f"det/{video}/{name}"] for name in ("segments_sec", "scores", "labels")}
    assert found.mask.all() and len(found.mask) == len(reference["labels"])
    assert (found.labels == reference["labels"]).all()
    np.testing.assert_allclose(found.confidence, reference["scores"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(seconds_s, reference["segments_sec"], atol=1e-4, rtol=0)
