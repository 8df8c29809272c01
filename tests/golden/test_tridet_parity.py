"""TriDet against the public reference implementation, from features to detections and gradients (spec 1.12).

All sizes and settings are those of the recorded file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyramid_reference import (
    Reference,
    assert_gradients,
    below,
    read_batch,
    read_reference,
    tridet_config,
    tridet_parameters,
    tridet_settings,
)

from apl_jax.detectors.pyramid_outputs import PyramidOutputs, points_of
from apl_jax.detectors.tridet import TriDet, build_tridet
from apl_jax.detectors.tridet_settings import TriDetSettings
from apl_jax.nn.trident import SgpBlock, wide_kernel
from apl_jax.ops.decoding import surest_per_level
from apl_jax.ops.pyramid import assign
from apl_jax.structs import Batch, DataFacts, Detections, PyTree, TimeGrid

FILE = Path(__file__).parent / "tridet.npz"


class Case(NamedTuple):
    """The recorded run, and the same run of this project."""

    reference: Reference
    settings: TriDetSettings
    batch: Batch
    params: PyTree
    inside: dict[str, Any]  # outputs of the parts of the backbone
    levels: Any  # per level (features [B, T_l, C], mask [B, T_l]), after the neck
    outputs: PyramidOutputs
    losses: Any
    gradients: PyTree
    detections: Detections
    long: tuple[PyramidOutputs, Detections, int]  # of the long video, and its length


@pytest.fixture(scope="module")
def case() -> Case:
    reference = read_reference(FILE)
    config = tridet_config(reference)
    settings, facts = tridet_settings(config), DataFacts(config["input_dim"], config["num_classes"])
    params, batch = tridet_parameters(below(reference, "param/")), read_batch(reference, config["max_seq_len"])
    network, detector = TriDet(settings, facts.num_classes), build_tridet(settings, facts)

    def everything(params: PyTree, batch: Batch) -> tuple[jax.Array, tuple]:
        (levels, outputs), inside = network.apply(
            {"params": params}, batch.features, batch.mask, False, capture_intermediates=True, mutable=["intermediates"]
        )
        losses = detector.loss(outputs, batch.targets, jnp.float32(settings.normalizer_init), None)
        backbone = inside["intermediates"]["backbone"]
        return losses.total, (backbone, levels, outputs, losses, detector.decode(outputs))

    results = jax.jit(jax.value_and_grad(everything, has_aux=True))(params, batch)
    (_, (inside, levels, outputs, losses, detections)), gradients = jax.device_get(results)
    video = reference["long/feats"].T
    features = np.zeros((1, int(reference["long/padded_length"]), video.shape[1]), np.float32)
    features[0, : len(video)] = video
    alone = Batch(jnp.asarray(features), jnp.arange(features.shape[1])[None] < len(video), batch.targets, jnp.zeros(1))
    found = jax.jit(lambda params: (outputs := detector.apply(params, alone, None), detector.decode(outputs)))(params)
    long = jax.device_get(found)
    return Case(
        reference, settings, batch, params, inside, levels, outputs, losses, gradients, detections,
        (*long, len(video)),
    )  # fmt: skip


def level_arrays(case: Case, name: str) -> list[np.ndarray]:
    """A recorded array of every level, time before channels."""
    return [case.reference[f"{name}/{level}"] for level in range(len(case.levels))]


def joined(case: Case, name: str) -> np.ndarray:
    return np.concatenate(level_arrays(case, name), axis=1)


def test_the_weights_are_the_whole_model(case: Case) -> None:
    facts = DataFacts(case.batch.features.shape[-1], case.outputs.class_logits.shape[-1])
    shapes = jax.eval_shape(build_tridet(case.settings, facts).init, jax.random.key(0))[0]
    assert jax.tree.map(np.shape, case.params) == jax.tree.map(np.shape, shapes)


def test_backbone(case: Case) -> None:
    """Padded steps too, where the reference computes something that spreads."""
    last = case.settings.embedding_convs - 1
    embedded = case.inside[f"embedding_{last}"]["__call__"][0]
    np.testing.assert_allclose(embedded, case.reference["embd"].transpose(0, 2, 1), atol=5e-6, rtol=0)
    named = [(f"stem_{i}", f"stem/{i}") for i in range(case.settings.stem_blocks)]
    named += [(f"branch_{i}", f"backbone/{i + 1}") for i in range(case.settings.branch_blocks)]
    for ours, theirs in named:
        found, expected = case.inside[ours]["__call__"][0][0], case.reference[theirs].transpose(0, 2, 1)
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0, err_msg=theirs)
    assert np.abs(case.reference["stem/0"]).transpose(0, 2, 1)[~np.asarray(case.batch.mask)].max() > 0.01


def test_levels(case: Case) -> None:
    for (features, mask), fpn, theirs in zip(
        case.levels, level_arrays(case, "fpn"), level_arrays(case, "mask"), strict=True
    ):
        np.testing.assert_allclose(features, fpn.transpose(0, 2, 1), atol=2e-5, rtol=0)
        assert (mask == theirs[:, 0]).all()


def test_heads(case: Case) -> None:
    np.testing.assert_allclose(case.outputs.class_logits, joined(case, "logits"), atol=2e-5, rtol=0)
    np.testing.assert_allclose(case.outputs.offsets, joined(case, "decoded"), atol=5e-5, rtol=0)


def test_targets_are_exact(case: Case) -> None:
    points, _ = points_of(case.outputs, case.settings)
    assert (np.asarray(points) == np.concatenate(level_arrays(case, "points"))).all()
    classes, radius = case.outputs.class_logits.shape[-1], case.settings.center_radius
    goal = jax.vmap(lambda t: assign(points, t, num_classes=classes, center_radius=radius))(case.batch.targets)
    positive = case.reference["targets/cls"].any(-1)
    assert positive.sum() > 20 and (np.asarray(goal.positive) == positive).all()
    assert (np.asarray(goal.classes) == case.reference["targets/cls"]).all()
    assert (np.asarray(goal.offsets)[positive] == case.reference["targets/offsets"][positive]).all()
    index = case.reference["pairs/index"]
    assert (np.argwhere(np.asarray(goal.classes) * positive[..., None] > 0) == index).all()
    np.testing.assert_allclose(case.outputs.offsets[tuple(index.T)], case.reference["pairs/pred"], atol=5e-5, rtol=0)


def test_losses_and_normalizer(case: Case) -> None:
    for ours, theirs in (
        (case.losses.parts["class"], "cls_loss"),
        (case.losses.parts["regression"], "reg_loss"),
        (case.losses.total, "final_loss"),
    ):
        np.testing.assert_allclose(ours, case.reference[f"loss/{theirs}"], rtol=1e-5, err_msg=theirs)
    np.testing.assert_allclose(case.losses.state, case.reference["loss/normalizer_after"], rtol=1e-6)
    assert case.losses.parts["positives"] == case.reference["loss/num_pos"]


def test_gradients(case: Case) -> None:
    assert_gradients(case.gradients, tridet_parameters(below(case.reference, "grad/")), mostly=0.6)


def candidates(outputs: PyramidOutputs, settings: TriDetSettings, video: int) -> tuple[np.ndarray, ...]:
    """Segments, scores and labels before suppression, level after level."""
    points, sizes = points_of(outputs, settings)
    score = np.asarray(jax.nn.sigmoid(outputs.class_logits[video])) * outputs.point_mask[video][:, None]
    point, label = map(np.asarray, surest_per_level(jnp.asarray(score), sizes, settings.decoding.top_k_per_level))
    time, stride = np.asarray(points)[point, 0, None], np.asarray(points)[point, 3, None]
    segments_t = time + outputs.offsets[video, point, label] * stride * [-1.0, 1.0]
    kept = score[point, label] > settings.decoding.score_threshold
    kept &= segments_t[:, 1] - segments_t[:, 0] > settings.decoding.duration_threshold_t
    return segments_t[kept], score[point, label][kept], label[kept]


def test_detections(case: Case) -> None:
    long_outputs, long_detections, long_length = case.long
    runs = [("long", long_outputs, long_detections, 0, long_length)]
    lengths = np.asarray(case.batch.mask).sum(1).tolist()
    runs += [(f"det/{i}", case.outputs, case.detections, i, n) for i, n in enumerate(lengths)]
    for name, outputs, detections, video, length in runs:
        recorded = below(case.reference, f"{name}/")
        segments_t, scores, labels = candidates(outputs, case.settings, video)
        assert (labels == recorded["pre_nms/labels"]).all()
        np.testing.assert_allclose(scores, recorded["pre_nms/scores"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(segments_t, recorded["pre_nms/segments"], atol=3e-4, rtol=0)
        found = jax.tree.map(lambda x, v=video: x[v], detections)
        exists = found.mask
        assert exists.sum() == len(recorded["labels"]) and (found.labels[exists] == recorded["labels"]).all()
        grid = TimeGrid(fps=30.0, stride=4, window=16, length=length)
        seconds_s = np.clip(grid.to_s(found.segments_t[exists]), 0, length * 4 / 30 + 0.5)
        np.testing.assert_allclose(found.confidence[exists], recorded["scores"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(seconds_s, recorded["segments_sec"], atol=1e-4, rtol=0)


def test_convolutions_that_start_at_zero_never_train() -> None:
    """As in the reference on THUMOS14 and EPIC (spec 1.12); from a small deviation on they do."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 4)), jnp.float32)
    mask = jnp.arange(12) < jnp.array([[12], [9]])
    trained = {}
    for deviation in (0.0, 0.1):
        block = SgpBlock(3, 1.5, 8, 2, 1, deviation, 0.0, True, 1.0, True)
        params = jax.jit(lambda key, block=block: block.init(key, x, mask, True))(jax.random.key(0))
        loss = lambda p, block=block: jnp.square(block.apply(p, x, mask, True)[0]).sum()
        gradients = jax.jit(jax.grad(loss))(params)
        names = ("instant", "gate", "narrow", "wide", "global")
        trained[deviation] = [float(jnp.abs(gradients["params"][name]["kernel"]).max()) for name in names]
    assert max(trained[0.0]) == 0 < min(trained[0.1])


@pytest.mark.parametrize(
    ("window", "factor", "width"), [(1, 5, 11), (1, 1.3, 3), (15, 1.3, 21), (5, 2, 13), (15, 1.2, 19)]
)
def test_widths_of_published_kernels(window: int, factor: float, width: int) -> None:
    assert wide_kernel(window, factor) == width
