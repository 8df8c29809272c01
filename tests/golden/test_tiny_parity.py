"""A second oracle: an ActionFormer whose weights are a formula, with position encoding, around one AdamW step.

``actionformer_tiny.json`` says in its ``rules`` how weights and features follow from their indices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apl_jax.detectors.actionformer import ActionFormer, build_actionformer
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.pyramid_outputs import PyramidOutputs
from apl_jax.detectors.quality import QualitySettings
from apl_jax.interop.actionformer_weights import import_parameters
from apl_jax.settings import OptimizerSettings
from apl_jax.structs import Array, Batch, DataFacts, PyTree, Targets
from apl_jax.training.optimizer import build_optimizer

ORACLE: dict[str, Any] = json.loads((Path(__file__).parent / "actionformer_tiny.json").read_text())
SETTINGS = ActionFormerSettings(
    width=8, heads=2, stem_blocks=1, branch_blocks=2, windows=(5, 5, 5), absolute_position=True, position_length_t=32,
    regression_ranges=((0, 4), (4, 8), (8, 10000)), drop_path=0.0, label_smoothing=0.1, regression_weight=2.0,
    masking="reference", quality=QualitySettings(branches="none"),
)  # fmt: skip
OPTIMIZER = OptimizerSettings(learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0, warmup_fraction=0.0)
WIDTH, CLASSES = 6, 3
# The recorded figures are rounded to five or six decimals.
LOGITS = {"atol": 2e-5, "rtol": 0}
SUMS = {"atol": 1e-4, "rtol": 1e-6}


def formula_weights() -> PyTree:
    """base + 0.2 sin(0.7 j + 0.37 k) for entry j of parameter k."""
    weights = {}
    for k, name, shape, base in ORACLE["params"]:
        index = np.arange(np.prod(shape, dtype=int))
        weights[name] = (base + 0.2 * np.sin(0.7 * index + 0.37 * k)).astype(np.float32).reshape(shape)
    return import_parameters(weights)


def formula_video(length: int, steps: int, phase: float) -> tuple[np.ndarray, np.ndarray]:
    """Features ``[steps, 6]`` sin(0.9 i + 0.31 t + phase) of a video of ``length`` steps, and its mask."""
    i, t = np.arange(WIDTH), np.arange(length)[:, None]
    features = np.zeros((steps, WIDTH), np.float32)
    features[:length] = np.sin(0.9 * i + 0.31 * t + phase)
    return features, np.arange(steps) < length


class Evaluation(NamedTuple):
    """Activations of one video, without its batch axis; levels along the first axis of the tuples."""

    backbone: tuple[np.ndarray, ...]
    neck: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    outputs: PyramidOutputs

    def by_level(self, x: np.ndarray) -> list[np.ndarray]:
        """Outputs ``[P, ...]`` per level."""
        return np.split(x, np.cumsum([len(m) for m in self.masks])[:-1])


def evaluate(length: int, steps: int) -> Evaluation:
    """The network in evaluation mode."""
    features, mask = formula_video(length, steps, 0.0)

    def network(params: PyTree, features: Array, mask: Array) -> tuple:
        (levels, outputs), inside = ActionFormer(SETTINGS, CLASSES).apply(
            {"params": params}, features[None], mask[None], True,
            capture_intermediates=lambda module, _: module.name == "backbone", mutable=["intermediates"],
        )  # fmt: skip
        return inside["intermediates"]["backbone"]["__call__"][0], levels, outputs

    results = jax.device_get(jax.jit(network)(formula_weights(), features, mask))
    backbone, levels, outputs = jax.tree.map(lambda x: x[0], results)
    return Evaluation(tuple(x for x, _ in backbone), tuple(x for x, _ in levels), tuple(m for _, m in levels), outputs)


def valid_sums(run: Evaluation, x: np.ndarray) -> list[float]:
    """Sums of ``x [P, ...]`` over the valid points of each level."""
    return [level[mask].sum(dtype=np.float64) for level, mask in zip(run.by_level(x), run.masks, strict=True)]


@pytest.fixture(scope="module")
def short() -> Evaluation:
    """21 steps padded to 32, the length of the position table."""
    return evaluate(ORACLE["eval"]["T"], ORACLE["eval"]["padded"])


def test_pyramid_sums(short: Evaluation) -> None:
    expected = ORACLE["eval"]
    assert [int(m.sum()) for m in short.masks] == expected["mask_counts"]
    for levels, name in ((short.backbone, "backbone_level_sums"), (short.neck, "neck_level_sums")):
        np.testing.assert_allclose([x.sum(dtype=np.float64) for x in levels], expected[name], **SUMS)


def test_head_sums_and_single_outputs(short: Evaluation) -> None:
    expected, outputs = ORACLE["eval"], short.outputs
    np.testing.assert_allclose(valid_sums(short, outputs.class_logits), expected["cls_logits_valid_sum"], **SUMS)
    # In float64 the second of these is 38.05116; the reference's float32 says 38.05106, ours 38.05135. Some LayerNorms
    # see nearly equal channels with these weights and enlarge rounding errors.
    np.testing.assert_allclose(valid_sums(short, outputs.offsets[:, 0]), expected["reg_valid_sum"], atol=5e-4, rtol=0)
    logits, offsets = short.by_level(outputs.class_logits), short.by_level(outputs.offsets[:, 0])
    for values, name, level, step in (
        (logits, "cls_l0_t0", 0, 0), (logits, "cls_l0_t20", 0, 20), (logits, "cls_l2_t5", 2, 5),
        (offsets, "reg_l0_t10", 0, 10), (offsets, "reg_l2_t3", 2, 3),
    ):  # fmt: skip
        np.testing.assert_allclose(values[level][step], expected[name], **LOGITS, err_msg=name)


def test_video_longer_than_the_position_table() -> None:
    """50 steps padded to 64, for which the reference stretches its table of 32 positions."""
    expected = ORACLE["eval_long"]
    run = evaluate(expected["T"], expected["padded"])
    np.testing.assert_allclose(valid_sums(run, run.outputs.class_logits), expected["cls_valid_sum"], **SUMS)


def train_batch() -> Batch:
    """The two recorded training videos of 21 and 32 steps."""
    rows = [formula_video(video["T"], 32, video["phase"]) for video in ORACLE["train_batch"]]
    count = max(len(video["labels"]) for video in ORACLE["train_batch"])
    segments_t, labels = np.zeros((2, count, 2), np.float32), np.zeros((2, count), np.int32)
    exists = np.zeros((2, count), bool)
    for b, video in enumerate(ORACLE["train_batch"]):
        n = len(video["labels"])
        segments_t[b, :n], labels[b, :n], exists[b, :n] = video["segments_grid"], video["labels"], True
    targets = Targets(
        jnp.asarray(segments_t), jnp.asarray(labels), jnp.asarray(exists),
        jnp.ones((2, count)), jnp.zeros((2, count), bool),
    )  # fmt: skip
    features, mask = (jnp.asarray(np.stack(x)) for x in zip(*rows, strict=True))
    return Batch(features, mask, targets, jnp.arange(2))


def test_losses_before_and_after_one_adamw_step() -> None:
    expected, batch = ORACLE["train"], train_batch()
    detector = build_actionformer(SETTINGS, DataFacts(WIDTH, CLASSES))
    # A schedule so long that its first step has the whole learning rate: the recorded one is constant.
    optimizer = build_optimizer(OPTIMIZER, {"detector": None}, steps=10**9)

    @jax.jit
    def step(params: PyTree, state: PyTree, normalizer: Array) -> tuple:
        def loss(params: PyTree) -> tuple[Array, Any]:
            outputs = detector.apply(params["detector"], batch, jax.random.key(0))
            found = detector.loss(outputs, batch.targets, normalizer, None)
            return found.total, found

        (_, found), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
        return optax.apply_updates(params, updates), state, found, norm

    params = {"detector": formula_weights()}
    updated, state, before, norm = step(params, optimizer.init(params), jnp.float32(100))
    _, _, after, _ = step(updated, state, before.state)
    for found, values, tolerance in ((before, expected, 1e-5), (after, expected["after_one_step"], 1e-4)):
        np.testing.assert_allclose(found.parts["class"], values["cls_loss"], rtol=tolerance)
        np.testing.assert_allclose(found.parts["regression"], values["reg_loss"], rtol=tolerance)
        np.testing.assert_allclose(found.total, values["final_loss"], rtol=tolerance)
    np.testing.assert_allclose(norm, expected["grad_norm"], rtol=1e-4)  # as any gradient
    np.testing.assert_allclose(before.state, expected["loss_normalizer_after"], rtol=1e-6)
    np.testing.assert_allclose(after.state, expected["loss_normalizer_after2"], rtol=1e-6)
