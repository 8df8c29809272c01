"""P-GCN (Zeng et al., ICCV 2019) with APL's quality heads, as specified in spec 5.

It does not find segments. It takes the proposals of another detector (`generator`, trained on the labelled videos
alone), links proposals of one video in a graph, and classifies and corrects each. *act* features, the maximum over the
rows inside, say which action; *comp* features, the maxima before, inside and after, say whether the proposal is the
whole of it, and where it really begins and ends.

Departures of the public code that are settings: neighbours drawn at random (``neighbours="drawn"``), in evaluation too,
there by one draw for all videos, so that predictions do not change; foreground in the places of missing kinds, which
then counts as incomplete (``missing="literal"``); the published score over the largest of the video
(``decoding.completeness="maximum"``); targets standardised by given numbers (``regression_scale="fixed"``).

Not reproduced: a graph that has other proposals in training than in evaluation (spec 5.3, 3), the last feature row that
no maximum reads, frames that are lost by truncation (7), checkpoints chosen on test proposals (7). Instances that are
annotated can be proposals in training, as in the public code; they take the places of the least sure ones, so that K
stays what it is.

Where the specification is silent: how sure the generator was of a proposal has no part in its score; a regressed
segment is at most e^4 times as long as its proposal.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from apl_jax.detectors.base import Detector, DetectorFacts, register_detector
from apl_jax.detectors.pgcn_losses import initial_state, proposal_losses
from apl_jax.detectors.pgcn_outputs import (
    PgcnOutputs,
    compare_outputs,
    decode_detections,
    flip_outputs,
    own_targets,
)
from apl_jax.detectors.pgcn_settings import PgcnSettings, check_pgcn, without_quality
from apl_jax.nn.blocks import Linear
from apl_jax.nn.quality import QUALITY_BRANCHES
from apl_jax.ops import proposal_graph, sequence
from apl_jax.ops.coverage import uncovered_by_snippets
from apl_jax.ops.masking import apply_mask
from apl_jax.ops.segments import pool_max
from apl_jax.structs import Array, Batch, DataFacts, Detections, PyTree, Targets


class GraphConvolution(nn.Module):
    """One layer, adjacency · (X W) + b, of ``x [B, K, C]``; initial values uniform in ± 1/√out (spec 5.3, 5)."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, neighbours: Array, own: Array, link: Array) -> Array:
        limit = self.features**-0.5
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)
        kernel = self.param("kernel", uniform, (x.shape[-1], self.features))
        bias = self.param("bias", uniform, (self.features,))
        # A (X W) = (A X) W: neighbours are gathered where rows are shorter.
        gather = lambda h: proposal_graph.gather_neighbours(h, neighbours, own, link).astype(self.dtype)
        x = x.astype(self.dtype)
        narrower = self.features <= x.shape[-1]
        y = gather(sequence.linear(x, kernel)) if narrower else sequence.linear(gather(x), kernel)
        return y.astype(jnp.float32) + bias


class ProposalGraph(nn.Module):
    """Two graph convolutions over features ``[B, K, D]``; the result ``[B, K, 2 D]`` stands next to them."""

    width: int
    dropout: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Array, neighbours: Array, deterministic: bool) -> Array:
        graph = neighbours, *proposal_graph.neighbour_weights(features, neighbours)
        hidden = nn.relu(GraphConvolution(self.width, self.dtype, name="layer_0")(features, *graph))
        hidden = nn.Dropout(self.dropout, deterministic=deterministic)(hidden)
        around = GraphConvolution(features.shape[-1], self.dtype, name="layer_1")(hidden, *graph)
        return jnp.concatenate([around, features], axis=-1)


class Head(nn.Module):
    """A linear head of the graph's features, small at initialisation, with a given bias."""

    features: int
    deviation: float
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.normal(self.deviation), (x.shape[-1], self.features))
        return sequence.linear(x, kernel) + self.param("bias", nn.initializers.constant(self.bias), (self.features,))


class Pgcn(nn.Module):
    """The network on pooled features *act* ``[B, K, D]`` and *comp* ``[B, K, 3 D]`` and neighbours ``[B, K, n]``:
    activity ``[B, K, C + 1]``, completeness ``[B, K, C]``, regression ``[B, K, C, 2]``, quality ``[B, K, Q]``."""

    settings: PgcnSettings
    num_classes: int

    @nn.compact
    def __call__(
        self, act: Array, comp: Array, neighbours: Array, deterministic: bool
    ) -> tuple[Array, Array, Array, Array]:
        s = self.settings
        graph = lambda name: ProposalGraph(s.width, s.dropout, jnp.dtype(s.dtype), name=name)
        act = graph("act_graph")(act, neighbours, deterministic)
        comp = graph("comp_graph")(comp, neighbours, deterministic)

        head = lambda size, name, bias=0.0: Head(size, s.head_deviation, bias, name=name)
        act = nn.Dropout(s.head_dropout, deterministic=deterministic)(act)
        regression = head(2 * self.num_classes, "regression_head")(comp)
        biases = {"tiou": s.quality.tiou_bias, "diou": s.quality.tiou_bias, "tnd": s.quality.tnd_bias}
        quality = [head(1, f"{b}_head", biases[b])(comp) for b in QUALITY_BRANCHES[s.quality.branches]]
        return (
            head(self.num_classes + 1, "class_head")(act),
            head(self.num_classes, "completeness_head")(comp),
            regression.reshape(*regression.shape[:2], self.num_classes, 2),
            jnp.concatenate([*quality, jnp.zeros((*act.shape[:2], 0))], axis=-1),
        )


def pool_parts(rows: Array, segments_t: Array, lengths: Array, extension: float) -> tuple[Array, Array]:
    """*act* ``[B, K, D]`` and *comp* ``[B, K, 3 D]``: maxima over the rows ``[B, T, D]`` inside each proposal, and
    before, inside and after it, ``extension`` of its length; each has at least one row, the recording's first or
    last."""
    start, end = segments_t[..., 0], segments_t[..., 1]
    beside = extension * (end - start)
    parts = [(start - beside, start), (start, end), (end, end + beside)]
    bounds = jnp.concatenate([jnp.stack(part, -1) for part in parts], axis=1)  # [B, 3 K, 2]
    before, inside, after = jnp.split(jax.vmap(pool_max)(rows, bounds, lengths), 3, axis=1)
    return inside, jnp.concatenate([before, inside, after], axis=-1)


def find_neighbours(proposals: Detections, key: Array | None, settings: PgcnSettings) -> Array:
    """The n neighbours ``[B, K, n]`` of each proposal, as the setting ``neighbours`` says.

    They are found anew in every step: a crop cuts proposals, and what they are is found in milliseconds.
    """
    s, count = settings, settings.contextual_neighbours + settings.surrounding_neighbours
    if s.neighbours == "nearest":
        find = lambda segments_t, mask: proposal_graph.nearest_neighbours(
            segments_t, mask,
            contextual=s.contextual_neighbours, surrounding=s.surrounding_neighbours, least_tiou=s.contextual_tiou,
        )  # fmt: skip
    else:
        # One draw for all videos of a batch: what a video gets does not depend on where it stands.
        own = (jax.random.key(0) if key is None else key) if s.neighbours == "drawn" else None
        find = lambda segments_t, mask: proposal_graph.pooled_neighbours(
            segments_t, mask, own, neighbours=count,
            contextual=s.pool_contextual, surrounding=s.pool_surrounding, least_tiou=s.contextual_tiou,
        )  # fmt: skip
    return jax.vmap(find)(proposals.segments_t, proposals.mask)


def with_annotated(proposals: Detections, targets: Targets) -> tuple[Detections, Array]:
    """The proposals ``[B, K]`` with the instances that teach in place of the last, and which they are: ``[B, K]``."""
    count = min(proposals.mask.shape[1], targets.mask.shape[1])
    taught = (targets.mask & ~targets.ignore_mask)[:, :count]
    annotated = jnp.zeros_like(proposals.mask).at[:, -count:].set(taught)
    segments_t = proposals.segments_t.at[:, -count:].set(targets.segments_t[:, :count])
    segments_t = jnp.where(annotated[..., None], segments_t, proposals.segments_t)
    return dataclasses.replace(proposals, segments_t=segments_t, mask=proposals.mask | annotated), annotated


def build_pgcn(settings: PgcnSettings, facts: DataFacts) -> Detector:
    """The detector record. Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one
    another."""
    s = settings
    check_pgcn(s)
    projection, network = Linear(s.projection_width), Pgcn(s, facts.num_classes)
    width = s.projection_width if s.rows == "projection" else facts.feature_width

    def init(key: Array) -> tuple[PyTree, PyTree]:
        first, second = jax.random.split(key)
        act = jnp.zeros((1, 1, width))
        neighbours = jnp.zeros((1, 1, s.contextual_neighbours + s.surrounding_neighbours), int)
        params = {
            "projection": projection.init(first, jnp.zeros((1, 1, facts.feature_width)))["params"],
            "proposals": network.init(second, act, jnp.tile(act, 3), neighbours, True)["params"],
        }
        return params, initial_state(s)

    def apply(params: PyTree, batch: Batch, key: Array | None) -> PgcnOutputs:
        proposals, lengths = batch.proposals, batch.mask.sum(-1, dtype=jnp.int32)
        if proposals is None:
            raise ValueError("P-GCN refines proposals, and the batch has none: `batch.proposals` is None")
        annotated, draw, rngs = jnp.zeros_like(proposals.mask), None, None
        if key is not None:
            draw, dropout = jax.random.split(key)
            rngs = {"dropout": dropout}
            if s.annotated_proposals:
                proposals, annotated = with_annotated(proposals, batch.targets)
        inputs = apply_mask(batch.features, batch.mask)
        projected: Any = projection.apply({"params": params["projection"]}, inputs)
        rows = apply_mask(projected, batch.mask)
        pooled = pool_parts(rows if s.rows == "projection" else inputs, proposals.segments_t, lengths, s.extension)
        neighbours = find_neighbours(proposals, draw, s)
        found: Any = network.apply({"params": params["proposals"]}, *pooled, neighbours, key is None, rngs=rngs)
        activity, completeness, regression, quality = found
        return PgcnOutputs(
            activity, completeness, regression, quality, proposals.segments_t, proposals.mask, annotated, rows, lengths
        )

    return Detector(
        init,
        apply,
        loss=lambda outputs, targets, state, key: proposal_losses(outputs, targets, state, key, s),
        decode=lambda outputs: decode_detections(outputs, s, s.decoding),
        annotate=lambda outputs: own_targets(outputs, s),
        compare=lambda student, teacher, mask: compare_outputs(student, teacher, mask, s),
        flip=flip_outputs,
        # An annotated instance is a proposal of its own, so each that lies on the features is taught.
        facts=DetectorFacts(background_class=True, uncovered=uncovered_by_snippets, wants_proposals=True),
    )


register_detector("pgcn", PgcnSettings, build_pgcn, plain=without_quality)
