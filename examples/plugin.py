"""A detector, a term, a method and a selection rule from outside the package.

    python examples/plugin.py                      # trains on the embedded data, all stages, and prints the table
    apl-jax run --plugin=examples/plugin.py --config=examples/plugin_config.py --workdir=runs/plugin
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

import apl_jax as apl
from apl_jax.detectors.base import ClassDistribution, DetectionLoss, Detector, DetectorFacts, PointTargets
from apl_jax.learning.detection import detection
from apl_jax.learning.method import LABELLED, PSEUDO_LABELLED, Method, MethodContext, Pass, Term, TermInputs, TermValue
from apl_jax.learning.selection import Link, divide, observe_nothing
from apl_jax.ops import decoding, losses, pyramid, segments
from apl_jax.settings import NmsSettings
from apl_jax.structs import Array, DataFacts, Detections, Targets, pytree

RANGES = ((0.0, 10000.0),)  # one level, which takes instances of every length


@dataclass(frozen=True)
class ConvSettings(apl.Checked):
    width: int = apl.number(24, at_least=1)
    layers: int = apl.number(3, at_least=1)
    radius: float = apl.number(1.5, above=0)  # around an instance's centre, in grid steps: which steps it teaches
    online_threshold: float = apl.number(0.3, at_least=0, at_most=1)
    decoding: NmsSettings = field(default_factory=lambda: NmsSettings(max_detections=50, top_k_per_level=300))


@pytree
class ConvOutputs:
    logits: Array  # [B, T, C]
    offsets: Array  # [B, T, 2] to start and end, grid steps
    features: Array  # [B, T, W]
    mask: Array  # [B, T]

    def represent(self, rows: Array) -> Array:
        return jnp.take_along_axis(self.features, rows[..., None], axis=1)

    def distribution(self) -> ClassDistribution:
        score, floor = jax.nn.sigmoid(self.logits), math.log(losses.PROBABILITY_FLOOR)
        p = jnp.concatenate([score, 1 - score.max(-1, keepdims=True)], -1)
        log = lambda x: jnp.pad(jnp.maximum(jax.nn.log_sigmoid(x), floor), ((0, 0), (0, 0), (0, 1)))
        time = jnp.broadcast_to(jnp.arange(self.mask.shape[1], dtype=jnp.float32), self.mask.shape)
        return ClassDistribution(p / p.sum(-1, keepdims=True), log(self.logits), log(-self.logits), time, self.mask)


class ConvNet(nn.Module):
    width: int
    layers: int
    classes: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> ConvOutputs:
        keep = mask[..., None]
        for _ in range(self.layers):  # what lies behind a video's end stays zero, so that padding changes nothing
            x = nn.relu(nn.Conv(self.width, (5,))(jnp.where(keep, x, 0)))
        x = jnp.where(keep, x, 0)
        return ConvOutputs(nn.Dense(self.classes)(x) - 2.0, nn.softplus(nn.Dense(2)(x) + 2.0), x, mask)


def build_conv(s: ConvSettings, facts: DataFacts) -> Detector:
    net = ConvNet(s.width, s.layers, facts.num_classes)

    def loss(out: ConvOutputs, targets: Targets, state: Array, key: Array | None) -> DetectionLoss:
        points = jnp.asarray(pyramid.pyramid_points(out.mask.shape[1], RANGES))
        one = lambda t: pyramid.assign(points, t, num_classes=facts.num_classes, center_radius=s.radius)
        goal = jax.vmap(one)(targets)
        positive = goal.positive & out.mask
        classes, weight = goal.classes * positive[..., None], goal.weight * out.mask
        state = 0.9 * state + 0.1 * jnp.maximum(positive.sum(), 1)
        class_loss = losses.sigmoid_focal(out.logits, classes, alpha=0.25, gamma=2.0).sum(-1)
        safe = lambda x: jnp.where(positive[..., None], x, 1.0)
        tiou, tnd = segments.offset_quality(safe(out.offsets), safe(goal.offsets))
        regression = (jnp.where(positive, 1 - tiou + tnd, 0.0) * weight).sum() / state
        class_loss = (class_loss * weight).sum() / state
        with_background = jnp.concatenate([classes, 1 - classes.max(-1, keepdims=True)], -1)
        seen = PointTargets(with_background, positive, goal.silent & out.mask)
        parts = {"class": class_loss, "regression": regression}
        return DetectionLoss(class_loss + regression, class_loss, regression, parts, state, seen)

    def decode(out: ConvOutputs) -> Detections:
        def one(score: Array, offsets: Array) -> Detections:
            time, label = decoding.surest_per_level(score, [len(score)], s.decoding.top_k_per_level)
            segment = jnp.stack([time - offsets[time, 0], time + offsets[time, 1]], -1)
            n = {k: v for k, v in vars(s.decoding).items() if k != "top_k_per_level"}
            kept = decoding.keep_best(segment, score[time, label], label, jnp.ones(time.shape, bool), **n)
            picked, ones = score[time, label][kept.row], jnp.ones_like(kept.confidence)
            return Detections(kept.segments_t, label[kept.row], kept.confidence, picked, ones, 0 * ones, kept.mask)

        return jax.vmap(one)(jax.nn.sigmoid(out.logits) * out.mask[..., None], out.offsets)

    def annotate(out: ConvOutputs) -> Targets:
        found = decode(jax.lax.stop_gradient(out))
        mask = found.mask & (found.confidence >= s.online_threshold)
        return Targets(found.segments_t, found.labels, mask, jnp.ones_like(found.confidence), jnp.zeros_like(mask))

    def compare(student: ConvOutputs, teacher: ConvOutputs, mask: Array) -> dict[str, Array]:
        near = jax.nn.sigmoid(student.logits) - jax.lax.stop_gradient(jax.nn.sigmoid(teacher.logits))
        counts = (student.mask & mask[:, None])[..., None]
        return {"class": jnp.where(counts, near**2, 0).sum() / jnp.maximum(counts.sum() * facts.num_classes, 1)}

    def flip(out: ConvOutputs) -> ConvOutputs:
        last = out.mask.sum(-1, keepdims=True) - 1
        rows = jnp.where(out.mask, last - jnp.arange(out.mask.shape[1]), jnp.arange(out.mask.shape[1]))[..., None]
        back = lambda x: jnp.take_along_axis(x, rows, axis=1)
        return ConvOutputs(back(out.logits), back(out.offsets)[..., ::-1], back(out.features), out.mask)

    shape = jnp.zeros((1, 8, facts.feature_width)), jnp.ones((1, 8), bool)
    uncovered = lambda spans, length: [None if 0 <= m < length else "outside" for m in spans.mean(-1) + 0.5]
    return Detector(
        lambda key: (net.init(key, *shape)["params"], jnp.float32(10)),
        lambda params, batch, key: net.apply({"params": params}, batch.features, batch.mask),
        loss, decode, annotate, compare, flip, DetectorFacts(background_class=False, uncovered=uncovered),
    )  # fmt: skip


def steadiness(seen: str, weight: float) -> Term:
    """Neighbouring steps of a video should have similar classes; the running mean of the term is its unit."""

    def loss(inputs: TermInputs) -> TermValue:
        found = inputs.passes[seen].outputs.distribution()
        step = jnp.abs(jnp.diff(found.probability, axis=1)).sum(-1)
        value = jnp.where(found.mask[:, 1:], step, 0).sum() / jnp.maximum(found.mask.sum(), 1)
        mean = 0.9 * inputs.state + 0.1 * jax.lax.stop_gradient(value)
        return TermValue(value / jnp.maximum(mean, 1e-3), {f"{seen}/steadiness": value}, mean)

    return Term(loss, (seen,), lambda key: ({}, jnp.float32(1)), weight)


@dataclass(frozen=True)
class SteadySettings(apl.Checked):
    unlabelled_weight: float = apl.number(1.0, at_least=0)
    steadiness: float = apl.number(0.01, at_least=0)


def build_steady(s: SteadySettings, context: MethodContext) -> Method:
    terms = {"detection_labelled": detection(context, "labelled"), "steadiness": steadiness("unlabelled", s.steadiness)}
    terms["detection_unlabelled"] = detection(context, "unlabelled", weight=s.unlabelled_weight)
    return Method({"labelled": Pass(LABELLED), "unlabelled": Pass(PSEUDO_LABELLED)}, terms)


@dataclass(frozen=True)
class SurestShareSettings(apl.Checked):
    share: float = apl.number(0.2, above=0, at_most=1)  # of the detections above tau_neg
    tau_neg: float = apl.number(0.1, at_least=0, at_most=1)
    memory: float = apl.number(0.5, at_least=0, below=1)  # weight of the last round's threshold


def build_surest_share(s: SurestShareSettings, facts: DataFacts) -> Link:
    def select(state, labels, observed):
        detections = labels.detections
        above = jnp.where(detections.mask & (detections.confidence > s.tau_neg), detections.confidence, jnp.nan)
        tau = jnp.nan_to_num(jnp.nanquantile(above, 1 - s.share), nan=1.0)
        tau = jnp.where(state < 0, tau, s.memory * state + (1 - s.memory) * tau)
        return tau, divide(labels, tau, s.tau_neg)

    return Link(lambda: jnp.float32(-1), observe_nothing, select)


apl.register_detector("conv", ConvSettings, build_conv)
apl.register_method("steady", SteadySettings, build_steady)
apl.register_selection("surest_share", SurestShareSettings, build_surest_share)

if __name__ == "__main__":
    print(apl.train(str(Path(__file__).with_name("plugin_config.py")), workdir="runs/plugin").table())
