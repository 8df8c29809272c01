"""A detector, a term, a method and a selection rule from outside the package.

python examples/plugin.py                      # trains on the embedded data, all stages, and prints the table
apl-jax run --plugin=examples/plugin.py --config=examples/plugin_config.py --workdir=runs/plugin
"""

from dataclasses import dataclass, field
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

import apl_jax as apl
from apl_jax.detectors import base, shared
from apl_jax.learning import Link, Method, MethodContext, Pass, Term, TermInputs, TermValue, detection_term, selection
from apl_jax.ops import coverage, decoding, losses, masking, pyramid, segments
from apl_jax.settings import NmsSettings
from apl_jax.structs import Array, DataFacts, Detections, Targets, pytree


@dataclass(frozen=True)
class ConvSettings(apl.Checked):
    width: int = apl.number(24, at_least=1, at_most=65_536)
    layers: int = apl.number(3, at_least=1, at_most=64)
    radius: float = apl.number(1.5, above=0, at_most=1e6)  # grid steps around an instance's centre that it teaches
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

    def distribution(self) -> base.ClassDistribution:
        return shared.sigmoid_distribution(self.logits, jnp.arange(self.mask.shape[1], dtype=jnp.float32), self.mask)


class ConvNet(nn.Module):
    width: int
    layers: int
    classes: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> ConvOutputs:
        for _ in range(self.layers):  # what lies behind a video's end stays zero, so that padding changes nothing
            x = nn.relu(nn.Conv(self.width, (5,))(masking.apply_mask(x, mask)))
        x = masking.apply_mask(x, mask)
        return ConvOutputs(nn.Dense(self.classes)(x) - 2.0, nn.softplus(nn.Dense(2)(x) + 2.0), x, mask)


def build_conv(s: ConvSettings, facts: DataFacts) -> base.Detector:
    net = ConvNet(s.width, s.layers, facts.num_classes)

    def loss(out: ConvOutputs, targets: Targets, state: Array, key: Array | None) -> base.DetectionLoss:
        grid = jnp.asarray(pyramid.pyramid_points(out.mask.shape[1], ((0.0, 10000.0),)))  # one level
        assign = partial(pyramid.assign, grid, num_classes=facts.num_classes, center_radius=s.radius)
        goal = jax.vmap(assign)(targets)
        positive = goal.positive & out.mask
        classes, weight = goal.classes * positive[..., None], goal.weight * out.mask
        state = 0.9 * state + 0.1 * jnp.maximum(positive.sum(), 1)
        class_loss = losses.sigmoid_focal(out.logits, classes, alpha=0.25, gamma=2.0).sum(-1)
        class_loss = (class_loss * weight).sum() / state
        safe = lambda x: jnp.where(positive[..., None], x, 1.0)  # offsets of other points mean nothing
        tiou, tnd = segments.offset_quality(safe(out.offsets), safe(goal.offsets))
        regression = (jnp.where(positive, 1 - tiou + tnd, 0.0) * weight).sum() / state
        points = shared.point_targets(classes, positive, goal.silent & out.mask)
        return base.DetectionLoss(class_loss + regression, class_loss, regression, {"class": class_loss}, state, points)

    def decode(out: ConvOutputs) -> Detections:
        def one(score: Array, offsets: Array) -> Detections:
            time, label = decoding.surest_per_level(score, [len(score)], s.decoding.top_k_per_level)
            segment = jnp.stack([time - offsets[time, 0], time + offsets[time, 1]], -1)
            kept = decoding.keep_best(segment, score[time, label], label, time >= 0, **shared.suppression(s.decoding))
            return shared.kept_detections(kept, label, score[time, label])

        return jax.vmap(one)(jax.nn.sigmoid(out.logits) * out.mask[..., None], out.offsets)

    def compare(student: ConvOutputs, teacher: ConvOutputs, mask: Array) -> dict[str, Array]:
        difference = jax.nn.sigmoid(student.logits) - jax.lax.stop_gradient(jax.nn.sigmoid(teacher.logits))
        return {"class": masking.masked_mean((difference**2).mean(-1), student.mask & mask[:, None])}

    def flip(out: ConvOutputs) -> ConvOutputs:
        logits, ends, features = (masking.reverse_time(x, out.mask) for x in (out.logits, out.offsets, out.features))
        return ConvOutputs(logits, ends[..., ::-1], features, out.mask)

    annotate = lambda out: shared.targets_from_detections(decode(jax.lax.stop_gradient(out)), s.online_threshold)
    example = jnp.zeros((1, 8, facts.feature_width)), jnp.ones((1, 8), bool)
    init = lambda key: (net.init(key, *example)["params"], jnp.float32(10))
    apply = lambda params, batch, key: net.apply({"params": params}, batch.features, batch.mask)
    about = base.DetectorFacts(background_class=False, uncovered=coverage.uncovered_by_snippets)
    return base.Detector(init, apply, loss, decode, annotate, compare, flip, about)


def steadiness(seen: str, weight: float) -> Term:
    """Neighbouring steps of a video should have similar classes; the running mean of the term is its unit."""

    def loss(inputs: TermInputs) -> TermValue:
        found = inputs.passes[seen].outputs.distribution()
        follows = found.mask[:, 1:] & found.mask[:, :-1] & (jnp.diff(found.time_t) > 0)  # not a coarser level
        value = masking.masked_mean(jnp.abs(jnp.diff(found.probability, axis=1)).sum(-1), follows)
        unit = 0.9 * inputs.state + 0.1 * jax.lax.stop_gradient(value)
        return TermValue(value / jnp.maximum(unit, 1e-3), {f"{seen}/steadiness": value}, unit)

    return Term(loss, (seen,), lambda key: ({}, jnp.float32(1)), weight)


@dataclass(frozen=True)
class SteadySettings(apl.Checked):
    beta: float = apl.number(1.0, at_least=0, at_most=1e6)  # of the loss on pseudo labels
    steadiness: float = apl.number(0.01, at_least=0, at_most=1e6)


def build_steady(s: SteadySettings, context: MethodContext) -> Method:
    passes = {"labelled": Pass("labelled"), "unlabelled": Pass("pseudo_labelled")}
    known, guessed = detection_term(context, "labelled"), detection_term(context, "unlabelled", weight=s.beta)
    terms = {"known": known, "guessed": guessed, "steadiness": steadiness("unlabelled", s.steadiness)}
    return Method(passes, terms)


@dataclass(frozen=True)
class SurestShareSettings(apl.Checked):
    share: float = apl.number(0.2, above=0, at_most=1)  # of the detections above tau_neg
    tau_neg: float = apl.number(0.1, at_least=0, at_most=1)
    memory: float = apl.number(0.5, at_least=0, below=1)  # weight of the last round's threshold


def build_surest_share(s: SurestShareSettings, facts: DataFacts) -> Link:
    def select(state, labels, observed):
        sure = labels.detections.mask & (labels.detections.confidence > s.tau_neg)
        tau = jnp.nanquantile(jnp.where(sure, labels.detections.confidence, jnp.nan), 1 - s.share)
        tau = jnp.where(state < 0, tau, s.memory * state + (1 - s.memory) * tau)
        tau = jnp.nan_to_num(tau, nan=1.0)  # nothing to choose from: nothing is chosen
        return tau, selection.divide(labels, tau, s.tau_neg)

    return Link(lambda: jnp.float32(-1), selection.observe_nothing, select)


apl.register_detector("conv", ConvSettings, build_conv)
apl.register_method("steady", SteadySettings, build_steady)
apl.register_selection("surest_share", SurestShareSettings, build_surest_share)

if __name__ == "__main__":
    print(apl.train(__file__.replace("plugin.py", "plugin_config.py"), workdir="runs/plugin").table())
