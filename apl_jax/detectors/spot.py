"""SPOT (Nag et al., ECCV 2022), the proposal-free detector of masks, as paper 002 trains it (systems 3, 7.B).

A recording becomes W snippets (or windows of W). Self-attention embeds them; one head gives every snippet a class, or
background; another gives it a foreground mask over all W snippets: the extent of the instance that it belongs to. A
thresholded row of that mask, and a run of a thresholded class sequence, are proposals.

Departures of the public code (systems 3.4 to 3.6) that are settings: the class loss on the mean cross-entropy
(``class_loss="reference"``), dice without its factor 2 (``dice_factor=1``), targets shrunk by a snippet at each end
(``target_shrink=1``), first-to-last extent of a row (``extent="span"``), one class per recording (``label="video"``).

Not reproduced, because they are mistakes or leak labels: no loss on unlabelled videos (row 1), terms computed and not
added, the clip-order head among them (2, 10), contrast gathered over channels (3: here over time), the IoU of its
Soft-NMS and the division by theta, which raises scores (4), only the last annotation, only if it is long, also of
unlabelled and test videos (5 to 7), classes of test videos from a file (8), selection on the test set (11). The random
time mask of the contrast's easy snippets is left out: losses are functions without a key.

Its floor of both ends of an instance (``target_edges="floor"``) is kept; it moves targets half a snippet to the left on
average, and ``"nearest"`` does not.

Where the descriptions are silent: the row of a snippet in several instances shows the shortest, as its class does; the
easy foreground class is an action; a snippet is a hard one by its largest mask cell within the band.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.detectors.base import ClassDistribution, Detector, Losses, Roles
from apl_jax.detectors.spot_proposals import Proposals, class_proposals, mask_proposals, truncated_by_window
from apl_jax.nn.snippets import MaskHead, SnippetAttention, SnippetClassHead, Snippets, to_snippets
from apl_jax.ops import intervals, losses, mask_losses, nms
from apl_jax.settings import SpotSettings
from apl_jax.structs import Array, Batch, Detections, PyTree, Targets, pytree

_EDGE_SLACK = 1e-4  # snippets; rounding must not push an edge that lies on a snippet's edge into the one before


@pytree
class SpotOutputs:
    """Dense predictions of n windows of W snippets per video."""

    class_logits: Array  # [B, n, W, C + 1], background last
    mask_logits: Array  # [B, n, W, W], query x time
    features: Array  # [B, n, W, E], the embedding
    inputs: Array  # [B, n, W, E], what the embedding is to reconstruct; without gradient
    snippet_mask: Array  # [B, n, W]
    start_t: Array  # [B, n]; snippet i stands for grid step start + (i + .5) * scale - .5
    scale_t: Array  # [B]
    lengths: Array  # [B] int32, valid grid steps

    def represent(self, rows: Array) -> Array:
        """The embedding at grid steps ``rows [B, N]``, linear between snippets of the window whose centre is nearest:
        ``[B, N, E]``."""
        batch, windows, width, channels = self.features.shape
        scale = self.scale_t[:, None]
        exists = self.snippet_mask.any(-1)
        center = self.start_t + 0.5 * width * scale - 0.5
        distance = jnp.where(exists[:, None], jnp.abs(rows[..., None] - center[:, None]), jnp.inf)
        window = distance.argmin(-1)
        start = jnp.take_along_axis(self.start_t, window, axis=1)
        last = jnp.maximum(jnp.take_along_axis(self.snippet_mask.sum(-1), window, axis=1) - 1, 0)
        position = jnp.clip((rows + 0.5 - start) / scale - 0.5, 0.0, last)
        left = jnp.floor(position).astype(jnp.int32)
        fraction = (position - left)[..., None].astype(self.features.dtype)
        flat = self.features.reshape(batch, windows * width, channels)
        take = lambda index: jnp.take_along_axis(flat, (window * width + index)[..., None], axis=1)
        return take(left) * (1 - fraction) + take(jnp.minimum(left + 1, last)) * fraction

    def distribution(self) -> ClassDistribution:
        """The softmax of all windows' snippets, S = n * W. Probabilities are clamped before logarithms (C4)."""
        log_p = jax.nn.log_softmax(self.class_logits, axis=-1)
        floor = losses.PROBABILITY_FLOOR
        log_in = jnp.clip(log_p, math.log(floor), math.log1p(-floor))
        # 1 - p of a class with nearly all of the probability is what the others have; the difference would round.
        probability = jnp.exp(log_p)
        likely = probability > 0.5
        others = jnp.where(likely, 0, probability).sum(-1, keepdims=True)
        unlikely = jnp.where(likely, 0, jnp.maximum(probability, floor))
        log_out = jnp.where(likely, jnp.log(jnp.maximum(others, floor)), jnp.log1p(-unlikely))
        width = self.class_logits.shape[2]
        time = self.start_t[..., None] + (jnp.arange(width) + 0.5) * self.scale_t[:, None, None] - 0.5
        flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
        return ClassDistribution(flat(probability), flat(log_in), flat(log_out), flat(time), flat(self.snippet_mask))


class SnippetTargets(NamedTuple):
    """What a batch is taught, dense; made of annotations, or by the detector itself."""

    classes: Array  # [B, n, W] int32 in [0, C], C being background
    cells_mask: Array  # [B, n, W, W] foreground of each query's instance
    weight: Array  # [B, n, W] of the snippet's instance; 1 for background, 0 where silent
    silent_mask: Array  # [B, n, W] under an ignored instance and in no other


class Spot(nn.Module):
    """The network on windows ``x [N, W, D]``, ``mask [N, W]``: class logits, mask logits, embedding, its input."""

    settings: SpotSettings
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> tuple[Array, Array, Array, Array]:
        inputs, embedding = SnippetAttention(self.settings, name="backbone")(x, mask, deterministic)
        class_logits = SnippetClassHead(self.num_classes, name="class_head")(embedding)
        return class_logits, MaskHead(self.settings, name="mask_head")(embedding, mask), embedding, inputs


def assign_snippets(outputs: SpotOutputs, targets: Targets, settings: SpotSettings) -> SnippetTargets:
    """Annotations on the snippets of each window (systems 3.3), every instance counting, the shortest where several
    lie; an instance within one snippet has that one, unless targets are shrunk."""
    s, width = settings, outputs.snippet_mask.shape[-1]
    background = outputs.class_logits.shape[-1] - 1
    edges = (targets.segments_t[:, None] + 0.5 - outputs.start_t[..., None, None]) / outputs.scale_t[
        :, None, None, None
    ]
    shift = 0.5 if s.target_edges == "nearest" else _EDGE_SLACK
    to_edge = lambda x: jnp.floor(x + shift).astype(jnp.int32)
    first, last = to_edge(edges[..., 0]), to_edge(edges[..., 1])  # [B, n, N]
    if s.target_shrink == 0:
        lone = jnp.floor(edges.mean(-1)).astype(jnp.int32)
        first, last = jnp.where(last > first, first, lone), jnp.where(last > first, last, lone + 1)
    first, last = first + s.target_shrink, last - s.target_shrink

    covered = jnp.swapaxes(intervals.within(first, last, width), -1, -2)  # [B, n, W, N]
    length = (targets.segments_t[..., 1] - targets.segments_t[..., 0])[:, None, None]
    teaches = (targets.mask & ~targets.ignore_mask)[:, None, None] & covered
    owner = jnp.where(teaches, length, jnp.inf).argmin(-1)
    owned = teaches.any(-1) & outputs.snippet_mask
    of_owner = lambda x: jnp.take_along_axis(jnp.broadcast_to(x, first.shape), owner, axis=-1)
    silent = ((targets.mask & targets.ignore_mask)[:, None, None] & covered).any(-1) & ~owned & outputs.snippet_mask
    cells = intervals.within(of_owner(first), of_owner(last), width) & owned[..., None]
    weight = jnp.where(owned, of_owner(targets.weight[:, None]), jnp.where(silent, 0.0, 1.0))
    classes = jnp.where(owned, of_owner(targets.labels[:, None]), background)
    return SnippetTargets(classes, cells, weight, silent)


def own_targets(outputs: SpotOutputs, settings: SpotSettings) -> SnippetTargets:
    """Strongest class of every snippet and the mask cells that reach ``mask_threshold``: no gradient (C8, C12)."""
    class_logits, mask_logits = jax.lax.stop_gradient((outputs.class_logits, outputs.mask_logits))
    cells = jax.nn.sigmoid(mask_logits) >= settings.mask_threshold
    nowhere = jnp.zeros_like(outputs.snippet_mask)
    weight = jnp.ones(nowhere.shape, class_logits.dtype)
    return SnippetTargets(class_logits.argmax(-1).astype(jnp.int32), cells, weight, nowhere)


def _class_loss(logits: Array, goal: SnippetTargets, weight: Array, s: SpotSettings) -> Array:
    """Cross-entropy, averaged over the snippets of the batch (paper 002, Eq. 2 and 3)."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_p, goal.classes[..., None], axis=-1)[..., 0]
    mean = -(picked * weight).sum() / jnp.maximum(weight.sum(), 1.0)
    return mean if s.class_loss == "cross_entropy" else 0.5 * (1 - jnp.exp(-mean)) ** 2 * mean


def mask_loss(outputs: SpotOutputs, goal: SnippetTargets, settings: SpotSettings) -> Array:
    """Weighted cross-entropy and dice of the mask (systems 3.4); cells of silent snippets are in neither."""
    s, width = settings, outputs.snippet_mask.shape[-1]
    fold = lambda x: x.reshape(-1, width, *x.shape[3:])
    row_weight = fold(jnp.where(outputs.snippet_mask, goal.weight, 0.0))
    weight = row_weight[:, :, None] * fold(outputs.snippet_mask & ~goal.silent_mask)[:, None]
    p, target = jax.nn.sigmoid(fold(outputs.mask_logits)), fold(goal.cells_mask)
    cross_entropy = mask_losses.weighted_cross_entropy(p, target, weight, s.mask_smoothing)
    return s.bce_share * cross_entropy + (1 - s.bce_share) * mask_losses.dice(p, target, weight, s.dice_factor)


def _refinement_loss(outputs: SpotOutputs, s: SpotSettings) -> Array:
    """Contrast of hard snippets, next to the predicted mask's boundary, with easy ones (systems 3.4, 3.7).

    Averaged over windows; one whose bands are empty takes no part. What is easy and hard is chosen without gradient.
    """
    fold = lambda x: x.reshape(-1, *x.shape[2:])
    mask, features = fold(outputs.snippet_mask), fold(outputs.features)
    class_logits, mask_logits = jax.lax.stop_gradient((fold(outputs.class_logits), fold(outputs.mask_logits)))
    probability = jax.nn.softmax(class_logits, axis=-1) * mask[..., None]
    # The most frequent strongest class; a share of probability, below 1, decides between equally frequent ones.
    votes = (class_logits.argmax(-1)[..., None] == jnp.arange(class_logits.shape[-1])) & mask[..., None]
    favour = (votes.sum(1) + probability.mean(1))[:, :-1].argmax(-1)
    action = jnp.take_along_axis(probability, favour[:, None, None], axis=-1)[..., 0]

    def hardest(band: Array) -> Array:
        score = jnp.where(band, jax.nn.sigmoid(mask_logits), 0).max(1)  # of each time, over queries
        return intervals.top_mask(score, s.hard_snippets) & (score > 0)

    def easiest(score: Array) -> Array:
        return intervals.top_mask(jnp.where(mask, score, -1.0), s.easy_snippets) & mask

    bands = mask_losses.boundary_bands(mask_logits, mask[:, :, None] & mask[:, None], s.band_inner, s.band_outer)
    hard_action, hard_background = (hardest(band) for band in bands)
    easy_action, easy_background = easiest(action), easiest(probability[..., -1])
    t = s.refinement_temperature
    inside, one = mask_losses.contrast(features, hard_action, easy_action, easy_background, t)
    outside, other = mask_losses.contrast(features, hard_background, easy_background, easy_action, t)
    whole = one & other
    return jnp.where(whole, inside + outside, 0).sum() / jnp.maximum(whole.sum(), 1)


def snippet_losses(
    outputs: SpotOutputs, targets: Targets | SnippetTargets, state: PyTree, settings: SpotSettings
) -> Losses:
    """Class, mask, reconstruction and refinement losses over the whole batch (paper 002, Eq. 1; systems 3.7)."""
    s, mask = settings, outputs.snippet_mask
    goal = assign_snippets(outputs, targets, s) if isinstance(targets, Targets) else targets
    background = outputs.class_logits.shape[-1] - 1
    foreground = (goal.classes < background) & mask
    weight = jnp.where(mask, goal.weight, 0.0)
    error = jnp.square(outputs.features - outputs.inputs).mean(-1)
    terms = {
        "class": _class_loss(outputs.class_logits, goal, weight, s),
        "mask": mask_loss(outputs, goal, s),
        "reconstruction": jnp.where(mask, error, 0).sum() / jnp.maximum(mask.sum(), 1),
        "refinement": _refinement_loss(outputs, s) if s.refinement_weight else jnp.zeros(()),
        "positives": jnp.where(foreground, weight, 0).sum(),
    }
    # Refinement is in neither part: it needs no labels, but a class head that knows something.
    localisation = terms["mask"] + s.reconstruction_weight * terms["reconstruction"]
    total = terms["class"] + localisation + s.refinement_weight * terms["refinement"]
    flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
    classes = jax.nn.one_hot(goal.classes, background + 1)
    roles = Roles(flat(classes), flat(foreground), flat(goal.silent_mask & mask))
    return Losses(total, terms["class"], localisation, terms, state, roles)


def decode_detections(outputs: SpotOutputs, settings: SpotSettings) -> Detections:
    """Proposals of all windows, pooled, to at most K detections per video (systems 3.5)."""
    s, n = settings, settings.nms
    probability = jax.nn.softmax(outputs.class_logits, axis=-1)[..., :-1]
    action = jnp.where(outputs.snippet_mask[..., None], probability, 0)

    def one_video(
        action: Array, mask_logits: Array, valid: Array, start: Array, scale: Array, length: Array, mean: Array
    ):
        label = mean.argmax() if s.label == "video" else None
        candidates = min(s.class_candidates, action.shape[-1])
        classes = jax.lax.top_k(action.max((0, 1)), candidates)[1] if label is None else label[None]

        def one_window(action: Array, mask_logits: Array, valid: Array) -> tuple[Proposals, Proposals]:
            window = action, mask_logits, valid
            return mask_proposals(*window, label, s), class_proposals(*window, classes, s)

        def placed(found: Proposals) -> tuple[Array, ...]:
            """Segments in grid steps, confidence, score, label and mask of the proposals of all windows."""
            edges = start[:, None, None] + jnp.stack([found.first, found.last], -1) * scale - 0.5
            kept = found.mask & ~truncated_by_window(found, start, length, s)
            rows = found.score * found.location, found.score, found.label, kept
            return jnp.clip(edges, -0.5, length - 0.5).reshape(-1, 2), *(x.reshape(-1) for x in rows)

        # Of equally sure proposals the first wins: those of the mask, which know instances from one another.
        parts = [placed(found) for found in jax.vmap(one_window)(action, mask_logits, valid)]
        segments, confidence, score, labels, kept = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        valid = kept & (confidence > n.score_threshold)
        valid &= segments[:, 1] - segments[:, 0] > n.duration_threshold_t
        picks = nms.suppress(
            segments, confidence, labels, valid,
            method=n.method, sigma=n.sigma, iou_threshold=n.iou_threshold, min_score=n.min_score,
            max_detections=n.max_detections, class_wise=n.class_wise,
        )  # fmt: skip
        chosen = segments[picks.row]
        if not n.class_wise and n.voting_threshold > 0:
            chosen = nms.vote(chosen, segments, confidence, valid, n.voting_threshold)
        one = jnp.ones_like(picks.score)
        return Detections(chosen, labels[picks.row], picks.score, score[picks.row], one, 0 * one, picks.mask)

    mean = jnp.where(outputs.snippet_mask[..., None], outputs.class_logits, 0).sum((1, 2))[:, :-1]
    return jax.vmap(one_video)(
        action, outputs.mask_logits, outputs.snippet_mask, outputs.start_t, outputs.scale_t, outputs.lengths, mean
    )


def build_spot(settings: SpotSettings, feature_width: int, num_classes: int) -> Detector:
    """The detector record. Raises ``ValueError`` for settings that contradict one another."""
    _check(settings)
    module = Spot(settings, num_classes)

    def init(key: Array) -> tuple[PyTree, PyTree]:
        shape = jnp.zeros((1, settings.steps, feature_width)), jnp.ones((1, settings.steps), bool)
        return module.init(key, *shape, deterministic=True)["params"], jnp.float32(0)

    def apply(params: PyTree, batch: Batch, key: Array | None) -> SpotOutputs:
        rngs = None if key is None else {"dropout": key}
        snippets: Snippets = to_snippets(batch.features, batch.mask, settings)
        fold = lambda x: x.reshape(-1, *x.shape[2:])
        inputs, mask = fold(snippets.inputs), fold(snippets.mask)
        found: Any = module.apply({"params": params}, inputs, mask, key is None, rngs=rngs)
        class_logits, mask_logits, embedding, goal = (x.reshape(*snippets.mask.shape[:2], *x.shape[1:]) for x in found)
        return SpotOutputs(
            class_logits, mask_logits, embedding, jax.lax.stop_gradient(goal),
            snippets.mask, snippets.start_t, snippets.scale_t, snippets.lengths,
        )  # fmt: skip

    return Detector(
        init,
        apply,
        lambda outputs, targets, state: snippet_losses(outputs, targets, state, settings),
        lambda outputs: decode_detections(outputs, settings),
        lambda outputs: own_targets(outputs, settings),
        background=True,
    )


def _check(s: SpotSettings) -> None:
    problems = [
        (s.steps < 1, f"steps: found {s.steps}, expected at least 1"),
        (not 0 <= s.overlap < 1, f"overlap: found {s.overlap}, expected 0 <= overlap < 1"),
        (not s.mask_thresholds, "mask_thresholds: found none, expected at least one"),
        (not s.class_thresholds, "class_thresholds: found none, expected at least one"),
        (list(s.class_thresholds) != sorted(s.class_thresholds), "class_thresholds: expected a rising sequence"),
        (list(s.mask_thresholds) != sorted(s.mask_thresholds), "mask_thresholds: expected a rising sequence"),
        (not 0 < s.band_inner < s.band_outer,
         f"band_outer: found {s.band_outer}, expected more than band_inner ({s.band_inner})"),
    ]  # fmt: skip
    for wrong, message in problems:
        if wrong:
            raise ValueError(f"config.spot.{message}")
