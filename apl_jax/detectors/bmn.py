"""BMN (Lin et al., ICCV 2019), the boundary-matching network, with APL's quality on its map (spec 2, 2.9, 2.10).

A recording becomes W snippets (or windows of W). A base module of convolutions sees them; TEM says of each snippet how
likely an action starts or ends there; PEM says of every segment of whole snippets, as a cell of a map of durations x
starts, how good it is: the tIoU that it has with a true one, and whether that is high. Features of a segment are
sampled along it (ops/boundary_matching.py). A class head over the snippets names the segments; published BMN has none,
and a classifier of recordings names them (``classes="none"`` and the external protocol).

With ALQA the map has a third channel, tND, and cross-entropies on tIoU and tND join the squared error. The joint score
of a segment is max(tIoU - tND, epsilon) times classification, start and end, times the class's mean over the segment.

Layouts are those of the specification: J by default. Ends are read as in O, whatever the layout: an end at snippet
s + d, so that segments may end with their recording (2.10). Not reproduced: NaN without positives (here O's rule), a
sampler that keeps the whole map, and a soft-NMS that loses its last proposal. In windows, those without an instance
teach what no action is, where O drops them.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.detectors.base import Detector, DetectorFacts, register_detector
from apl_jax.detectors.bmn_outputs import BmnOutputs, compare_outputs, flip_outputs, sharpen_outputs
from apl_jax.detectors.bmn_settings import (
    BmnDecoding,
    BmnSettings,
    check_bmn,
    sampling_of,
    without_quality,
)
from apl_jax.detectors.bmn_targets import bmn_losses
from apl_jax.detectors.shared import suppression, targets_from_detections
from apl_jax.detectors.spot_proposals import truncated_by_window
from apl_jax.nn.boundary_maps import BoundaryBase, BoundaryHead, MapHead, SnippetHead
from apl_jax.nn.snippets import Snippets, to_snippets, window_stride
from apl_jax.ops.coverage import uncovered_by_snippets
from apl_jax.ops.decoding import keep_best
from apl_jax.structs import Array, Batch, DataFacts, Detections, PyTree, Targets


class Bmn(nn.Module):
    """The network on windows ``x [N, W, D]``, ``mask [N, W]``: class, map and boundary logits, and base features.

    ``num_classes``: 0 without a class head.
    """

    settings: BmnSettings
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array, Array, Array]:
        s, dtype = self.settings, jnp.dtype(self.settings.dtype)
        # Float64 data, of parity tests, stay what they are.
        dtype = dtype if dtype == jnp.bfloat16 else jnp.promote_types(x.dtype, dtype)
        heads = s.width, s.groups, dtype
        features = BoundaryBase(*heads, name="backbone")(x, mask)
        boundary_logits = BoundaryHead(*heads, name="boundary_head")(features, mask)
        biases = (0.0, 0.0, s.quality.tnd_bias) if s.quality.branches == "tiou_tnd" else (0.0, 0.0)
        map_logits = MapHead(
            sampling_of(s), s.matching_width, s.sample_width, s.map_width, biases, dtype, name="map_head"
        )(features, mask)
        if not self.num_classes:
            class_logits = jnp.zeros((*mask.shape, 1), boundary_logits.dtype)
        else:
            class_logits = SnippetHead(self.num_classes + 1, *heads, name="class_head")(features, mask)
        return class_logits, map_logits, boundary_logits, features.astype(boundary_logits.dtype)


def segment_quality(outputs: BmnOutputs, settings: BmnSettings, decoding: BmnDecoding) -> tuple[Array, Array, Array]:
    """tIoU, tND, and the score without a class, of each cell ``[B, n, D, W]``, in [0, 1]; 0 where it is not valid."""
    cells, boundary = jax.nn.sigmoid(outputs.map_logits), jax.nn.sigmoid(outputs.boundary_logits)
    tiou, has_tnd = cells[..., 0], settings.quality.branches == "tiou_tnd"
    tnd = cells[..., 2] if has_tnd else jnp.zeros_like(tiou)
    reliability = tiou
    if has_tnd and decoding.rank_by_quality:
        reliability = jnp.maximum(tiou - tnd, settings.quality.epsilon)
    score = reliability * cells[..., 1]
    if decoding.boundary_scores:
        durations, steps = score.shape[-2:]
        last = jnp.minimum(jnp.arange(steps) + jnp.arange(durations)[:, None], steps - 1)
        score = score * boundary[..., None, :, 0] * boundary[..., 1][..., last]
    return tiou, tnd, jnp.where(outputs.cell_mask, score, 0.0)


def decode_detections(outputs: BmnOutputs, settings: BmnSettings, decoding: BmnDecoding) -> Detections:
    """The surest cells of all windows, named and pooled, to at most K detections per video (spec 2.7)."""
    s = settings
    durations, steps = outputs.map_logits.shape[2:4]
    tiou, tnd, quality = segment_quality(outputs, s, decoding)
    count = min(decoding.top_k_per_level, durations * steps)
    classes = jax.nn.softmax(outputs.class_logits, axis=-1)[..., :-1] * outputs.snippet_mask[..., None]
    summed = jnp.pad(jnp.cumsum(classes, axis=2), ((0, 0), (0, 0), (1, 0), (0, 0)))  # [B, n, W + 1, C]

    def one_window(quality: Array, tiou: Array, tnd: Array, summed: Array) -> tuple[Array, ...]:
        """First and last edge, quality, tIoU, tND ``[M]`` of the surest cells, and their classes ``[M, C]``."""
        best, cell = jax.lax.top_k(quality.reshape(-1), count)
        duration, first = jnp.divmod(cell, steps)
        last = jnp.minimum(first + duration + 1, steps)
        mean = (summed[last] - summed[first]) / (duration + 1)[:, None]
        return first, last, best, tiou.reshape(-1)[cell], tnd.reshape(-1)[cell], mean

    def one_video(
        quality: Array, tiou: Array, tnd: Array, summed: Array, start: Array, scale: Array, length: Array
    ) -> Detections:
        first, last, best, tiou, tnd, mean = jax.vmap(one_window)(quality, tiou, tnd, summed)  # [n, M]
        exists = best > 0
        if s.window_mode == "windows":
            stride = window_stride(s.steps, s.overlap)
            exists &= ~truncated_by_window(first, last, start, length, width=s.steps, stride=stride)
        edges = start[:, None, None] + jnp.stack([first, last], -1) * scale - 0.5
        if s.classes == "none":
            score, label = jnp.ones((*best.shape, 1)), jnp.zeros((*best.shape, 1), jnp.int32)
        else:
            score, label = jax.lax.top_k(mean, min(decoding.labels_per_segment, mean.shape[-1]))
        # A cell is a candidate once for each of its labels.
        copies = label.shape[-1]
        each = lambda x: jnp.repeat(x.reshape(-1, *x.shape[2:]), copies, axis=0)
        label, score, tiou, tnd = label.reshape(-1), score.reshape(-1), each(tiou), each(tnd)
        kept = keep_best(
            jnp.clip(each(edges), -0.5, length - 0.5), each(best) * score, label, each(exists),
            **suppression(decoding), longest=jnp.maximum(length, 1.0),
            decay_above=(decoding.decay_above_short, decoding.decay_above_long),
        )  # fmt: skip
        row = kept.row
        return Detections(kept.segments_t, label[row], kept.confidence, score[row], tiou[row], tnd[row], kept.mask)

    return jax.vmap(one_video)(quality, tiou, tnd, summed, outputs.start_t, outputs.scale_t, outputs.lengths)


def own_targets(outputs: BmnOutputs, settings: BmnSettings) -> Targets:
    """The detections whose confidence reaches ``online_threshold``, as annotations ``[B, K]`` without gradient (C8)."""
    found = decode_detections(jax.lax.stop_gradient(outputs), settings, settings.online)
    return targets_from_detections(found, settings.online_threshold)


def build_bmn(settings: BmnSettings, facts: DataFacts) -> Detector:
    """The detector record. Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one
    another, or the data."""
    s = settings
    check_bmn(s, facts.feature_width, facts.num_classes)
    module = Bmn(s, facts.num_classes if s.classes == "snippet" else 0)

    def init(key: Array) -> tuple[PyTree, PyTree]:
        shape = jnp.zeros((1, s.steps, facts.feature_width)), jnp.ones((1, s.steps), bool)
        return module.init(key, *shape)["params"], jnp.float32(0)

    def apply(params: PyTree, batch: Batch, key: Array | None) -> BmnOutputs:
        del key  # there is no dropout
        snippets: Snippets = to_snippets(
            batch.features, batch.mask, width=s.steps, window_mode=s.window_mode, overlap=s.overlap
        )
        fold = lambda x: x.reshape(-1, *x.shape[2:])
        seen = snippets.mask
        if s.masking == "reference":
            seen = jnp.broadcast_to(seen.any(-1, keepdims=True), seen.shape)
        found: Any = module.apply({"params": params}, fold(snippets.inputs), fold(seen))
        classes, cells, boundaries, features = (x.reshape(*seen.shape[:2], *x.shape[1:]) for x in found)
        return BmnOutputs(
            classes, cells, boundaries, features,
            snippets.mask, snippets.start_t, snippets.scale_t, snippets.lengths,
        )  # fmt: skip

    return Detector(
        init,
        apply,
        loss=lambda outputs, targets, state, key: bmn_losses(outputs, targets, state, key, s),
        decode=lambda outputs: decode_detections(outputs, s, s.decoding),
        annotate=lambda outputs: own_targets(outputs, s),
        compare=compare_outputs,
        flip=flip_outputs,
        facts=DetectorFacts(
            background_class=True, uncovered=uncovered_by_snippets, class_agnostic=s.classes == "none"
        ),
        sharpen=lambda outputs: sharpen_outputs(
            outputs, above=s.teacher_above, below=s.teacher_below, least=s.teacher_least
        ),
    )  # fmt: skip


register_detector("bmn", BmnSettings, build_bmn, plain=without_quality)
