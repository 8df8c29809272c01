"""A detector that wants proposals: it names the class of each, from the largest features under it. For tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from apl_jax.declarations import Checked, Choice, choice, number
from apl_jax.detectors import base, shared
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.detectors.pyramid_settings import PyramidDecoding
from apl_jax.ops import coverage, losses, segments
from apl_jax.ops.decoding import keep_best
from apl_jax.registry import DETECTORS
from apl_jax.settings import NmsSettings
from apl_jax.structs import Array, Batch, DataFacts, Detections, Targets, pytree

SMALL = ActionFormerSettings(
    width=16, heads=2, embedding_convs=1, stem_blocks=1, branch_blocks=1, windows=(5, 5), head_layers=2,
    regression_ranges=((0, 12), (12, 10000)), decoding=PyramidDecoding(max_detections=20),
)  # fmt: skip


@dataclass(frozen=True)
class NamingSettings(Checked):
    positive_tiou: float = number(0.5, above=0, at_most=1)
    generator: Choice = choice(DETECTORS, "actionformer")
    decoding: NmsSettings = field(default_factory=lambda: NmsSettings(max_detections=20))


@pytree
class NamedProposals:
    logits: Array  # [B, K, C]
    proposals: Detections  # [B, K]
    features: Array  # [B, T, D]

    def represent(self, rows: Array) -> Array:
        return jnp.take_along_axis(self.features, rows[..., None], axis=1)

    def distribution(self) -> base.ClassDistribution:
        return shared.sigmoid_distribution(self.logits, self.proposals.segments_t.mean(-1), self.proposals.mask)


def build_naming(s: NamingSettings, facts: DataFacts) -> base.Detector:
    def apply(params: dict, batch: Batch, key: Array | None) -> NamedProposals:
        assert batch.proposals is not None, "a detector that wants proposals was given none"
        pooled = jax.vmap(segments.pool_max)(batch.features, batch.proposals.segments_t, batch.mask.sum(-1))
        return NamedProposals(pooled @ params["kernel"] + params["bias"], batch.proposals, batch.features)

    def loss(out: NamedProposals, targets: Targets, state: Array, key: Array | None) -> base.DetectionLoss:
        overlap = segments.tiou(out.proposals.segments_t[:, :, None], targets.segments_t[:, None])
        taught = targets.mask & ~targets.ignore_mask
        overlap = jnp.where(taught[:, None], overlap, 0)
        positive = (overlap.max(-1) >= s.positive_tiou) & out.proposals.mask
        label = jnp.take_along_axis(targets.labels, overlap.argmax(-1), axis=1)
        classes = jax.nn.one_hot(label, facts.num_classes) * positive[..., None]
        each = losses.sigmoid_focal(out.logits, classes, alpha=0.5, gamma=1.0).sum(-1)
        total = jnp.where(out.proposals.mask, each, 0).sum() / jnp.maximum(out.proposals.mask.sum(), 1)
        points = shared.point_targets(classes, positive, jnp.zeros_like(positive))
        return base.DetectionLoss(total, total, jnp.zeros(()), {"class": total}, state, points)

    def decode(out: NamedProposals) -> Detections:
        score = jax.nn.sigmoid(out.logits)

        def one(segments_t: Array, score: Array, mask: Array) -> Detections:
            label, best = score.argmax(-1), score.max(-1)
            return shared.kept_detections(
                keep_best(segments_t, best, label, mask, **shared.suppression(s.decoding)), label, best
            )

        return jax.vmap(one)(out.proposals.segments_t, score, out.proposals.mask)

    def init(key: Array) -> tuple[dict, Array]:
        kernel = 0.1 * jax.random.normal(key, (facts.feature_width, facts.num_classes))
        return {"kernel": kernel, "bias": jnp.zeros(facts.num_classes)}, jnp.float32(1)

    about = base.DetectorFacts(False, coverage.uncovered_by_snippets, wants_proposals=True)
    annotate = lambda out: shared.targets_from_detections(decode(jax.lax.stop_gradient(out)), 0.3)
    compare = lambda student, teacher, mask: {"class": jnp.zeros(())}
    return base.Detector(init, apply, loss, decode, annotate, compare, lambda out: out, about)


def register() -> None:
    """Makes it known; called within tests, since the laws run over whatever is registered when they are collected."""
    base.register_detector("naming", NamingSettings, build_naming)
