"""P-GCN against the public reference implementation, from labels and graph to detections and gradients (spec 5).

All sizes and settings are those of the recorded file. The reference counts frames: a segment's last frame belongs to it
in the graph and in regression, which is met by adding 1 to every end, and not in labels and in suppression. Which
feature rows are under a segment is its own convention too (:func:`reference_rows`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyramid_reference import Reference, assert_gradients, below, read_reference

from apl_jax.detectors.base import DetectionLoss
from apl_jax.detectors.pgcn import Pgcn
from apl_jax.detectors.pgcn_losses import completeness_loss, initial_state, sampled_losses
from apl_jax.detectors.pgcn_outputs import PgcnOutputs, decode_detections
from apl_jax.detectors.pgcn_settings import PgcnDecoding, PgcnSettings
from apl_jax.detectors.pgcn_targets import ProposalTargets, Samples, assign_proposals
from apl_jax.detectors.quality import QualitySettings
from apl_jax.ops import proposal_graph
from apl_jax.ops.segments import pool_max, relative_segment
from apl_jax.structs import PyTree, Targets

FILE = Path(__file__).parent / "pgcn.npz"


class Case(NamedTuple):
    """The recorded run, and the same of this project."""

    reference: Reference
    config: dict[str, Any]
    settings: PgcnSettings
    params: PyTree
    neighbours: dict[str, jax.Array]  # [K, n] by name: literal | ours


@pytest.fixture(scope="module")
def case() -> Case:
    reference = read_reference(FILE)
    config = json.loads(str(reference["config"]))
    limits, graph = config["thresholds"], config["graph"]
    mean, deviation = reference["label/reg_stats"].tolist()
    s = PgcnSettings(
        width=config["hidden"], dropout=config["dropout"], head_dropout=config["dropout"],
        contextual_tiou=limits["iou_threshold"], contextual_neighbours=graph["child_num"] - 1,
        pool_contextual=graph["iou_num"], pool_surrounding=graph["dis_num"],
        foreground_tiou=limits["fg_iou_thresh"], incomplete_tiou=limits["incomplete_iou_thresh"],
        incomplete_overlap=limits["incomplete_overlap_thresh"], background_tiou=limits["bg_iou_thresh"],
        background_coverage=limits["bg_coverage_thresh"], incomplete_samples=reference["train/slots"].shape[1] - 2,
        missing="literal", hard_share=config["ohem_ratio"], completeness_weight=config["comp_loss_weight"],
        regression_weight=config["reg_loss_weight"], regression_mean=tuple(mean),
        regression_deviation=tuple(deviation), regression_scale="fixed", quality=QualitySettings(branches="none"),
        decoding=PgcnDecoding(
            score_threshold=0.0, min_score=0.0, duration_threshold_t=0.0, top_k_per_level=config["top_k"],
            iou_threshold=config["nms_threshold"], completeness="maximum",
        ),
    )  # fmt: skip
    segments = with_last_frame(reference["in/proposals"])
    exists = jnp.ones(len(segments), bool)
    neighbours = {
        "ours": proposal_graph.nearest_neighbours(
            segments, exists, contextual=s.contextual_neighbours, surrounding=s.surrounding_neighbours,
            least_tiou=s.contextual_tiou,
        ),
        "literal": proposal_graph.pooled_neighbours(
            segments, exists, None, neighbours=graph["child_num"], contextual=s.pool_contextual,
            surrounding=s.pool_surrounding, least_tiou=s.contextual_tiou,
        ),
    }  # fmt: skip
    return Case(reference, config, s, parameters(below(reference, "param/")), neighbours)


def with_last_frame(segments: np.ndarray) -> jax.Array:
    """Segments whose last frame belongs to them, with exclusive ends."""
    return jnp.asarray(segments + [0, 1], jnp.float32)


def parameters(reference: Reference) -> PyTree:
    """Parameters, or gradients, under the reference's names in this package's tree; background is its class 0."""
    moved = lambda x: np.roll(x, -1, axis=0)
    tree: dict = {}
    for ours, theirs in (("act_graph", "Act_GCN"), ("comp_graph", "Comp_GCN")):
        layer = lambda i, theirs=theirs: {
            "kernel": reference[f"{theirs}.gc{i}.weight"], "bias": reference[f"{theirs}.gc{i}.bias"]
        }  # fmt: skip
        tree[ours] = {"layer_0": layer(1), "layer_1": layer(2)}
    heads = [("class_head", "activity_fc", moved), ("completeness_head", "completeness_fc", np.asarray)]
    for ours, theirs, order in (*heads, ("regression_head", "regressor_fc", np.asarray)):
        weight, bias = order(reference[f"{theirs}.weight"]), order(reference[f"{theirs}.bias"])
        tree[ours] = {"kernel": weight.T, "bias": bias}
    return tree


def targets_of(case: Case, videos: int = 1) -> Targets:
    label, *segment = case.reference["in/gt"].T
    repeated = lambda x, dtype: jnp.asarray(np.broadcast_to(x, (videos, *np.shape(x))), dtype)
    one = np.ones(len(label))
    return Targets(
        repeated(np.stack(segment, -1), jnp.float32), repeated(label - 1, jnp.int32), repeated(one, bool),
        repeated(one, jnp.float32), repeated(0 * one, bool),
    )  # fmt: skip


def outputs_of(case: Case, found: tuple, segments: np.ndarray | jax.Array) -> PgcnOutputs:
    """Predictions ``[B, K, ...]`` with the recorded proposals."""
    activity, completeness, regression, *quality = found
    videos, count = activity.shape[:2]
    real = jnp.ones((videos, count), bool)
    return PgcnOutputs(
        activity, completeness, regression, quality[0] if quality else jnp.zeros((videos, count, 0)),
        jnp.broadcast_to(jnp.asarray(segments, jnp.float32), (videos, count, 2)), real, ~real,
        jnp.zeros((videos, 1, 1)), jnp.full(videos, case.reference["in/frames"], jnp.int32),
    )  # fmt: skip


def goal_of(case: Case, videos: int = 1) -> ProposalTargets:
    classes, proposals = case.config["num_class"], case.reference["in/proposals"]
    empty = tuple(jnp.zeros((videos, len(proposals), *size)) for size in ((classes + 1,), (classes,), (classes, 2)))
    return assign_proposals(outputs_of(case, empty, proposals), targets_of(case, videos), case.settings)


def test_labels_and_kinds(case: Case) -> None:
    goal, reference = goal_of(case), case.reference
    for ours, theirs in zip(goal[:3], ("foreground", "incomplete", "background"), strict=True):
        assert np.flatnonzero(ours[0]).tolist() == reference[f"pool/{theirs}"].tolist(), theirs
    known = reference["label/class"] > 0
    assert (np.asarray(goal.label[0]) == reference["label/class"] - 1)[known].all()
    foreground = reference["pool/foreground"]
    base = with_last_frame(reference["in/proposals"])[foreground]
    relative = relative_segment(base, goal.segment_t[0, foreground] + jnp.array([0, 1]))
    np.testing.assert_allclose(relative, reference["label/reg_raw"], atol=1e-6)


def test_graph_is_exact(case: Case) -> None:
    reference, s = case.reference, case.settings
    segments = with_last_frame(reference["in/proposals"])
    exists = jnp.ones(len(segments), bool)
    near = proposal_graph.contextual_candidates(segments, exists, count=s.pool_contextual, least_tiou=s.contextual_tiou)
    apart = proposal_graph.surrounding_candidates(segments, exists, count=s.pool_surrounding)
    assert (near == reference["graph/contextual"]).all() and (apart == reference["graph/surrounding"]).all()
    for name, neighbours in case.neighbours.items():
        assert (proposal_graph.graph_nodes(neighbours) == reference[f"graph/nodes_{name}"]).all(), name


def reference_rows(start: np.ndarray, end: np.ndarray, stride: int, window: int, rows: int) -> np.ndarray:
    """First and last feature row of frames: those wholly inside, never the last row of all, but at least one."""
    first = np.minimum(start // stride, rows - 1)
    last = np.minimum(-(-(end - window) // stride), rows - 2)
    return np.stack([first, np.maximum(last, first)], -1)


@pytest.mark.parametrize("ticks", ["test", "train"])
def test_pooled_features_are_exact(case: Case, ticks: str) -> None:
    units, (start, end, before, after) = case.reference["feat/units"], case.reference[f"feat/ticks_{ticks}"].T
    suffix = "" if ticks == "test" else "_train"
    pooled = []
    for first, last in ((before, start), (start, end), (end, after)):
        rows = reference_rows(first, last, case.config["unit_stride"], case.config["unit_length"], len(units))
        pooled.append(pool_max(jnp.asarray(units), jnp.asarray(rows, jnp.float32), len(units)))
    assert (pooled[1] == case.reference[f"feat/act{suffix}"]).all()
    assert (jnp.concatenate(pooled, -1) == case.reference[f"feat/comp{suffix}"]).all()


def test_adjacency(case: Case) -> None:
    """The rows of the centre and of its children, of which the network computes each once for all graphs."""
    children = np.asarray(case.neighbours["literal"])
    nodes, n = case.reference["graph/nodes_literal"], children.shape[1]
    for part in ("act", "comp"):
        features = jnp.asarray(case.reference[f"feat/{part}"])[None]
        own, link = (
            np.asarray(x[0]) for x in proposal_graph.neighbour_weights(features, case.neighbours["literal"][None])
        )
        adjacency = np.zeros((len(nodes), n + 1, nodes.shape[1]), np.float32)
        for row in range(n + 1):
            first = 1 + n * row
            adjacency[:, row, row] = own[nodes[:, row]]
            adjacency[:, row, first : first + n] = link[nodes[:, row]]
        np.testing.assert_allclose(adjacency, case.reference[f"literal/adj_{part}"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["literal", "ours"])
def test_outputs(case: Case, name: str) -> None:
    act, comp = (jnp.asarray(case.reference[f"feat/{part}"])[None] for part in ("act", "comp"))
    network = Pgcn(case.settings, case.config["num_class"])
    found: Any
    found: Any
    inside: Any
    found, inside = network.apply(
        {"params": case.params}, act, comp, case.neighbours[name][None], True, capture_intermediates=True,
        mutable=["intermediates"],
    )  # fmt: skip
    reference = below(case.reference, f"{name}/")
    activity, completeness, regression, _ = found
    heads = {"activity": jnp.roll(activity, 1, axis=-1), "completeness": completeness, "regression": regression}
    for theirs, ours in heads.items():
        np.testing.assert_allclose(ours[0], reference[theirs], atol=3e-5, rtol=0, err_msg=theirs)
    for part in ("act", "comp"):
        layers = inside["intermediates"][f"{part}_graph"]
        hidden, centre = (layers[f"layer_{i}"]["__call__"][0][0] for i in range(2))
        np.testing.assert_allclose(centre, reference[f"centre_{part}"], atol=3e-5, rtol=0)
        if f"hidden_{part}" in reference:  # of graph nodes, the last of them one whose row is zero
            recorded, nodes = reference[f"hidden_{part}"], case.reference[f"graph/nodes_{name}"]
            rows = nodes[: len(recorded), : recorded.shape[1] - 1]
            np.testing.assert_allclose(jax.nn.relu(hidden[rows]), recorded[:, :-1], atol=3e-5, rtol=0)


def recorded_samples(case: Case, *, literal: bool) -> Samples:
    """The recorded slots as weights ``[2, K]``; by position where ``literal``, otherwise by what is in them."""
    slots, types = case.reference["train/slots"], case.reference["train/types"]
    place = np.arange(slots.shape[1])
    count = len(case.reference["in/proposals"])

    def weights(chosen: np.ndarray) -> jax.Array:
        return jnp.asarray(((slots[..., None] == np.arange(count)) & chosen[..., None]).sum(1), jnp.float32)

    between = (place > 0) & (place < len(place) - 1)
    incomplete = weights(types == 1)
    return Samples(
        weights((types == 0) & (place == 0)), incomplete, weights(types == 2),
        weights((types == 0) & between), weights(between & (types >= 0)) if literal else incomplete,
    )  # fmt: skip


def test_losses_and_gradients(case: Case) -> None:
    reference, s = case.reference, case.settings
    videos = len(reference["train/slots"])
    twice = lambda x: jnp.asarray(np.broadcast_to(x, (videos, *x.shape)))
    act, comp = (twice(reference[f"feat/{part}_train"]) for part in ("act", "comp"))
    neighbours = jnp.broadcast_to(case.neighbours["ours"], (videos, *case.neighbours["ours"].shape))
    network, goal = Pgcn(s, case.config["num_class"]), goal_of(case, videos)
    goal = goal._replace(segment_t=goal.segment_t + jnp.array([0.0, 1.0]))
    segments, samples = with_last_frame(reference["in/proposals"]), recorded_samples(case, literal=True)

    @jax.jit
    def run(params: PyTree) -> tuple[PyTree, tuple]:
        def objective(params: PyTree) -> tuple[jax.Array, DetectionLoss]:
            found: Any = network.apply({"params": params}, act, comp, neighbours, True)
            outputs = outputs_of(case, found, segments)
            losses = sampled_losses(outputs, goal, samples, initial_state(s), s)
            return losses.total, losses

        return jax.grad(objective, has_aux=True)(params)

    gradients, losses = jax.device_get(run(case.params))
    for ours, theirs in (("class", "activity"), ("completeness", "completeness"), ("regression", "regression")):
        np.testing.assert_allclose(losses.parts[ours], reference[f"loss/{theirs}"], rtol=1e-5, err_msg=theirs)
    np.testing.assert_allclose(losses.total, reference["loss/total"], rtol=1e-5)
    assert_gradients(gradients, parameters(below(reference, "grad/")), mostly=0.9)


def test_completeness_by_position_and_by_content(case: Case) -> None:
    reference, goal = case.reference, goal_of(case, len(case.reference["train/slots"]))
    slots = reference["train/slots"]
    scores = np.zeros((*goal.label.shape, case.config["num_class"]), np.float32)
    rows = reference["train/completeness"]
    np.put_along_axis(scores, slots[:, : rows.shape[1], None], rows, axis=1)
    for missing in ("literal", "masked"):
        s = dataclasses.replace(case.settings, missing=missing)
        samples = recorded_samples(case, literal=missing == "literal")
        loss = completeness_loss(
            jnp.asarray(scores), goal.label, goal.weight, samples.foreground, samples.hard, s
        )  # fmt: skip
        np.testing.assert_allclose(loss, reference[f"hinge/{missing}"], rtol=1e-6)


def test_completeness_of_many_videos(case: Case) -> None:
    per_video = case.settings.incomplete_samples + 1
    fold = lambda x: jnp.asarray(x).reshape(-1, per_video, *x.shape[1:])
    scores, labels = fold(case.reference["hinge/big_scores"]), fold(case.reference["hinge/big_labels"])
    positive = jnp.broadcast_to(jnp.arange(per_video) == 0, labels.shape).astype(jnp.float32)
    one = jnp.ones_like(positive)
    loss = lambda scores: completeness_loss(scores, labels - 1, one, positive, 1 - positive, case.settings)
    value, gradient = jax.value_and_grad(loss)(scores)
    np.testing.assert_allclose(value, case.reference["hinge/big_loss"], rtol=1e-6)
    np.testing.assert_allclose(fold(case.reference["hinge/big_grad"]), gradient, atol=1e-7)


def test_detections(case: Case) -> None:
    """Pairs are suppressed first and regressed second; the other order keeps one more."""
    reference = case.reference
    fused = below(reference, "fused/")
    found = jnp.roll(fused["activity"], -1, axis=-1), fused["completeness"], fused["regression"]
    outputs = outputs_of(case, tuple(jnp.asarray(x)[None] for x in found), reference["in/proposals"])
    s = dataclasses.replace(case.settings, regression_mean=(0.0, 0.0), regression_deviation=(1.0, 1.0))
    detections = jax.device_get(jax.tree.map(lambda x: x[0], decode_detections(outputs, s, s.decoding)))
    label, start, end, score = reference["det/final"].T
    order = np.argsort(-score, kind="stable")
    assert detections.mask.sum() == len(order) != len(reference["det/regress_then_nms"])
    kept = jax.tree.map(lambda x: x[detections.mask], detections)
    assert (kept.labels == label[order]).all()
    np.testing.assert_allclose(kept.confidence * fused["score"].max(), score[order], rtol=1e-5)
    times = kept.segments_t / reference["in/frames"]
    np.testing.assert_allclose(times, np.stack([start, end], -1)[order], atol=1e-4, rtol=0)
