"""One whole training step of SSTAP against its public code: views, outputs, targets, all losses, gradients (spec 4).

All sizes and settings are those of the recorded file; dropout comes from its masks, and the cell sampler's numbers too.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bmn_reference import bmn_parameters
from pyramid_reference import below, read_reference

from apl_jax.detectors import bmn_targets
from apl_jax.detectors.base import Detector
from apl_jax.detectors.bmn import build_bmn
from apl_jax.detectors.bmn_outputs import BmnOutputs
from apl_jax.detectors.bmn_settings import BmnSettings, MapQualitySettings
from apl_jax.learning.mean_teacher import ramp, shift_channels
from apl_jax.nn.self_supervision import ClipOrder, Reconstruction
from apl_jax.structs import Array, Batch, DataFacts, PyTree, Targets

RECORD = read_reference(Path(__file__).parent / "sstap.npz")
CONFIG = json.loads(str(RECORD["config"]))
STEPS, KINDS, P = CONFIG["T"], ("labelled", "unlabelled"), CONFIG["p"]

EVERY = jnp.ones(len(CONFIG["boxes"]), bool)  # labelled video


def settings() -> tuple[BmnSettings, DataFacts]:
    weights = below(RECORD, "student/")
    width = CONFIG["hidden_1d"]
    s = BmnSettings(
        steps=STEPS, samples=CONFIG["num_sample"], sample_points=CONFIG["num_sample_perbin"], width=width,
        extension=CONFIG["prop_boundary_ratio"], matching_width=width, map_width=CONFIG["hidden_2d"],
        sample_width=CONFIG["hidden_3d"], groups=width // weights["x_1d_b.2.weight"].shape[1], layout="S", anchors="S",
        classes="none", quality=MapQualitySettings(branches="none"),
    )  # fmt: skip
    return s, DataFacts(CONFIG["feat_dim"], 1, STEPS)


def of_video(x: np.ndarray) -> np.ndarray:
    """``[B, C, T]`` as ``[B, T, C]``, float32."""
    return np.float32(x).transpose(0, 2, 1)


def targets() -> Targets:
    """The recorded boxes, fractions of the video, on the grid: snippet i reaches from i - .5 to i + .5."""
    boxes, most = CONFIG["boxes"], max(map(len, CONFIG["boxes"]))
    segments_t, exists = np.zeros((len(boxes), most, 2), np.float32), np.zeros((len(boxes), most), bool)
    for v, rows in enumerate(boxes):
        segments_t[v, : len(rows)], exists[v, : len(rows)] = np.array(rows) * STEPS - 0.5, True
    zero = jnp.zeros(exists.shape, jnp.int32)
    return Targets(jnp.asarray(segments_t), zero, jnp.asarray(exists), jnp.ones(exists.shape), zero > 0)


def batch_of(features: np.ndarray | Array) -> Batch:
    videos = len(features)
    goal = targets() if videos == len(CONFIG["boxes"]) else jax.tree.map(lambda x: x[:1].repeat(videos, 0), targets())
    return Batch(jnp.asarray(features), jnp.ones((videos, STEPS), bool), goal, jnp.arange(videos))


def kept(name: str, rate: float) -> np.ndarray:
    return np.float32(RECORD[f"keep/{name}"]) / (1 - rate)


def views(kind: str) -> dict[str, np.ndarray]:
    """What each branch sees of one kind of videos ``[B, T, C]``."""
    whole = of_video(RECORD[f"in/{kind}"])
    channels = RECORD[f"shift/{kind}"]
    moved = np.asarray(shift_channels(jnp.asarray(whole), jnp.asarray(channels), len(channels) // 2))
    return {
        "student": moved * kept(f"student_{kind}", P["student"])[:, None],
        "flip": whole[:, ::-1] * kept(f"flip_{kind}", P["flip"])[:, None],
        "teacher": whole * of_video(kept(f"teacher_{kind}", P["teacher"])),
        "reconstruction": whole * kept(f"reconstruction_{kind}", P["reconstruction"])[..., None],
    }


VIEWS = {kind: views(kind) for kind in KINDS}


class Step(NamedTuple):
    """The same step by this project."""

    outputs: dict[str, BmnOutputs]
    heads: dict[str, Array]
    losses: dict[str, Array]
    total: Array
    gradients: PyTree


def networks() -> tuple[Detector, PyTree, PyTree]:
    s, facts = settings()
    student, teacher = (bmn_parameters(below(RECORD, f"{name}/")) for name in ("student", "teacher"))
    return build_bmn(s, facts), student, teacher


def distance(detector: Detector, ours: BmnOutputs, theirs: BmnOutputs, mask: Array) -> Array:
    parts = detector.compare(ours, theirs, mask)
    return parts["map"] + parts["start"] + parts["end"]


def objective(detector: Detector, student: PyTree, teacher: PyTree, exchanged: bool) -> tuple[Array, tuple]:
    """The reference's objective from this project's parts."""
    run = lambda params, features: detector.apply(params, batch_of(features), None)
    weight = CONFIG["consistency"] * ramp(jnp.float32(CONFIG["epoch"]), CONFIG["rampup"])
    outputs: dict[str, BmnOutputs] = {}
    heads: dict[str, Array] = {}
    losses: dict[str, Array] = {"consistency_flip": jnp.zeros(()), "reconstruction": jnp.zeros(())}
    rebuild: Any = Reconstruction(CONFIG["feat_dim"], 4)
    for kind in KINDS:
        for name, features in VIEWS[kind].items():
            if name != "reconstruction":
                outputs[f"{name}_{kind}"] = run(teacher if name == "teacher" else student, features)
        theirs = outputs[f"teacher_{kind}"]
        theirs, mask = (
            detector.sharpen(theirs) if kind == "unlabelled" else (theirs, jnp.ones(len(theirs.lengths), bool))
        )
        losses[f"consistency_{kind}"] = weight * distance(detector, outputs[f"student_{kind}"], theirs, mask)
        turned = detector.flip(outputs[f"flip_{kind}"])
        if not exchanged:  # the reference reverses starts and ends, and a start stays one
            turned = dataclasses.replace(turned, boundary_logits=turned.boundary_logits[..., ::-1])
        losses["consistency_flip"] += 0.1 * weight * distance(detector, turned, theirs, mask)
        base = run(student, VIEWS[kind]["reconstruction"]).features[:, 0]
        rebuilt = rebuild.apply({"params": student["reconstruction"]}, base, jnp.ones(base.shape[:2], bool))
        heads[f"reconstruction_{kind}"] = rebuilt
        losses["reconstruction"] += 0.0005 * jnp.square(rebuilt - of_video(RECORD[f"in/{kind}"])).mean()
    base = run(student, of_video(RECORD["order/input"])).features[:, 0]
    order: Any = ClipOrder(STEPS)
    mask, keep = jnp.ones(base.shape[:2], bool), np.float32(RECORD["order/keep"]) / (1 - P["order"])
    heads["order"] = order.apply({"params": student["clip_order"]}, base, mask, keep)
    goal = jnp.asarray(RECORD["order/target"])
    losses["order"] = optax.softmax_cross_entropy_with_integer_labels(heads["order"], goal).mean()
    found = detector.loss(outputs["student_labelled"], targets(), jnp.zeros(()), jax.random.key(0))
    losses |= {"bmn": found.total, "tem": found.parts["boundary"], "pem_cls": found.parts["map"]}
    losses["pem_reg"] = found.parts["regression"]
    parts = ("bmn", "consistency_labelled", "consistency_unlabelled", "consistency_flip", "reconstruction")
    total = sum((losses[name] for name in parts), 0.01 * losses["order"])
    return total, (outputs, heads, losses)


@pytest.fixture
def recorded_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell sampler draws what the reference drew: for middle cells, then for low ones."""
    draws = iter([RECORD["draws"][i % 2][:, None] for i in range(8)])
    monkeypatch.setattr(bmn_targets.jax.random, "uniform", lambda key, shape: jnp.asarray(next(draws)).reshape(shape))


@pytest.fixture
def step(recorded_draws: None) -> Step:
    detector, student, teacher = networks()
    loss = lambda student: objective(detector, student, teacher, exchanged=False)
    (total, (outputs, heads, losses)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    return jax.device_get(Step(outputs, heads, losses, total, gradients))


def test_views() -> None:
    for kind in KINDS:
        np.testing.assert_allclose(VIEWS[kind]["student"], of_video(RECORD[f"view/student_{kind}"]), rtol=3e-7)
    channels, rows = RECORD["shift_case/channels"], RECORD["shift_case/x"].transpose(0, 2, 1)
    found = shift_channels(jnp.asarray(rows), jnp.asarray(channels), len(channels) // 2)
    np.testing.assert_array_equal(found, RECORD["shift_case/y"].transpose(0, 2, 1))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.float64(x)))


def test_step(step: Step) -> None:
    """Outputs, targets, every loss and the gradient of the literal objective."""
    triangle = RECORD["mask"] > 0
    for name, outputs in step.outputs.items():
        cells = sigmoid(outputs.map_logits[:, 0]).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(cells[..., triangle], RECORD[f"out/{name}/map"][..., triangle], atol=1e-5, rtol=0)
        assert (outputs.cell_mask[:, 0] == triangle).all()
        for i, end in enumerate(("start", "end")):
            found = sigmoid(outputs.boundary_logits[:, 0, :, i])
            np.testing.assert_allclose(found, RECORD[f"out/{name}/{end}"], atol=1e-5, rtol=0, err_msg=f"{name} {end}")
    for kind in KINDS:
        rebuilt = step.heads[f"reconstruction_{kind}"]
        np.testing.assert_allclose(rebuilt, of_video(RECORD[f"out/reconstruction_{kind}"]), atol=1e-5, rtol=0)
    np.testing.assert_allclose(step.heads["order"], RECORD["out/order"], atol=1e-5, rtol=0)
    for name, value in step.losses.items():
        recorded = RECORD[f"loss/{name}_literal" if name == "consistency_flip" else f"loss/{name}"]
        np.testing.assert_allclose(value, recorded, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(step.total, RECORD["loss/total_literal"], rtol=1e-5)
    theirs = bmn_parameters(below(RECORD, "grad/"))
    assert jax.tree.structure(theirs) == jax.tree.structure(step.gradients)
    for (path, found), expected in zip(jax.tree.leaves_with_path(step.gradients), jax.tree.leaves(theirs), strict=True):
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0, err_msg=jax.tree_util.keystr(path))


def test_targets_and_what_is_exchanged(recorded_draws: None) -> None:
    detector, student, teacher = networks()

    @jax.jit
    def examine(student: PyTree) -> tuple:
        total, (outputs, _, losses) = objective(detector, student, teacher, exchanged=True)
        return total, losses, detector.sharpen(outputs["teacher_unlabelled"]), outputs

    total, losses, (sharp, mask), outputs = jax.device_get(examine(student))
    np.testing.assert_allclose(losses["consistency_flip"], RECORD["loss/consistency_flip_exchanged"], rtol=1e-5)
    np.testing.assert_allclose(total, RECORD["loss/total_exchanged"], rtol=1e-5)
    assert mask.tolist() == RECORD["selected"].tolist()
    certain: set[float] = set()
    for i, end in enumerate(("start", "end")):
        found = sigmoid(sharp.boundary_logits[:, 0, :, i])
        expected = RECORD[f"sharpened/{end}"]
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        certain |= {0.0, 1.0} & set(expected.reshape(-1).tolist())
    assert certain
    for kind in KINDS:
        mask = jnp.asarray(RECORD["selected"]) if kind == "unlabelled" else EVERY
        theirs = sharp if kind == "unlabelled" else outputs["teacher_labelled"]
        parts = detector.compare(outputs[f"student_{kind}"], theirs, mask)
        np.testing.assert_allclose([parts[n] for n in ("map", "start", "end")], RECORD[f"mse/{kind}"], rtol=1e-5)


def test_no_video_that_the_teacher_is_sure_of(recorded_draws: None) -> None:
    """Its plain term is 0 in the reference, its flipped one NaN; here both are 0."""
    detector, student, teacher = networks()
    start = teacher["boundary_head"]["start"]["predictor"]
    start["bias"] = start["bias"] - 50.0
    run = jax.jit(lambda student: objective(detector, student, teacher, exchanged=True)[1])
    outputs, _, losses = jax.device_get(run(student))
    assert not RECORD["empty/selected"].any() and losses["consistency_unlabelled"] == 0
    weight = RECORD["weight"]
    labelled = distance(
        detector,
        detector.flip(outputs["flip_labelled"]),
        outputs["teacher_labelled"],
        EVERY,
    )
    np.testing.assert_allclose(losses["consistency_flip"], 0.1 * weight * labelled, rtol=1e-5)


def test_ramp() -> None:
    found = CONFIG["consistency"] * ramp(jnp.arange(len(RECORD["table/ramp"])), CONFIG["rampup"])
    np.testing.assert_allclose(found, RECORD["table/ramp"], rtol=1e-6)
    np.testing.assert_allclose(found[CONFIG["epoch"]], RECORD["weight"], rtol=1e-6)
