"""SPOT (Nag et al., ECCV 2022), the proposal-free detector of masks, as paper 002 trains it (spec 3, 7.B).

A recording becomes W snippets (or windows of W). Self-attention embeds them; one head gives every snippet a class, or
background; another gives it a foreground mask over all W snippets: the extent of the instance that it belongs to. A
thresholded row of that mask, and a run of a thresholded class sequence, are proposals.

Departures of the public code (spec 3.4 to 3.6) that are settings: the class loss on the mean cross-entropy
(``class_loss="reference"``), dice without its factor 2 (``dice_factor=1``), targets shrunk by a snippet at each end
(``target_shrink=1``), a random time mask on the scores by which the contrast's easy snippets are chosen
(``easy_time_mask=0.3``), first-to-last extent of a row (``decoding.extent="span"``), one class per recording
(``decoding.label="video"``).

Not reproduced, because they are mistakes or leak labels: no loss on unlabelled videos (row 1), terms computed and not
added, the clip-order head among them (2, 10), contrast gathered over channels (3: here over time), the IoU of its
Soft-NMS and the division by theta, which raises scores (4), only the last annotation, only if it is long, also of
unlabelled and test videos (5 to 7), classes of test videos from a file (8), selection on the test set (11).

Its floor of both ends of an instance (``target_edges="floor"``) is kept; it moves targets half a snippet to the left on
average, and ``"nearest"`` does not.

Where the descriptions are silent: the row of a snippet in several instances shows the shortest, as its class does; the
easy foreground class is an action; a snippet is a hard one by its largest mask cell within the band; two outputs on one
view are compared by their class and mask probabilities.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from apl_jax.detectors.base import DetectionLoss, Detector, DetectorFacts, PointTargets, register_detector
from apl_jax.detectors.shared import kept_detections, own_snippets, segments_in_snippets, suppression
from apl_jax.detectors.spot_outputs import SnippetTargets, SpotOutputs, compare_outputs, flip_outputs
from apl_jax.detectors.spot_proposals import Proposals, class_proposals, mask_proposals, truncated_by_window
from apl_jax.detectors.spot_settings import SpotSettings, check_spot
from apl_jax.nn.snippets import MaskHead, SnippetAttention, SnippetClassHead, Snippets, to_snippets, window_stride
from apl_jax.ops import intervals, mask_losses
from apl_jax.ops.coverage import uncovered_by_snippets
from apl_jax.ops.decoding import keep_best
from apl_jax.structs import Array, Batch, DataFacts, Detections, PyTree, Targets

_EDGE_SLACK = 1e-4  # snippets; rounding must not push an edge that lies on a snippet's edge into the one before


class Spot(nn.Module):
    """The network on windows ``x [N, W, D]``, ``mask [N, W]``: class logits, mask logits, embedding, its input."""

    settings: SpotSettings
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, mask: Array, deterministic: bool) -> tuple[Array, Array, Array, Array]:
        s = self.settings
        inputs, embedding = SnippetAttention(
            s.width, s.embedding_convs, s.heads, s.head_width, s.attention_dropout, s.dropout, s.dtype, name="backbone"
        )(x, mask, deterministic)
        class_logits = SnippetClassHead(self.num_classes, name="class_head")(embedding)
        mask_logits = MaskHead(s.mask_head, s.mask_hidden, s.dtype, name="mask_head")(embedding, mask)
        return class_logits, mask_logits, embedding, inputs


def assign_snippets(outputs: SpotOutputs, targets: Targets, settings: SpotSettings) -> SnippetTargets:
    """Annotations on the snippets of each window (spec 3.3), every instance counting, the shortest where several
    lie; an instance within one snippet has that one, unless targets are shrunk."""
    s, width = settings, outputs.snippet_mask.shape[-1]
    background = outputs.class_logits.shape[-1] - 1
    edges = segments_in_snippets(targets.segments_t, outputs.start_t, outputs.scale_t)
    shift = 0.5 if s.target_edges == "nearest" else _EDGE_SLACK
    to_edge = lambda x: jnp.floor(x + shift).astype(jnp.int32)
    first, last = to_edge(edges[..., 0]), to_edge(edges[..., 1])  # [B, n, N]
    if s.target_shrink == 0:
        lone = jnp.floor(edges.mean(-1)).astype(jnp.int32)
        first, last = jnp.where(last > first, first, lone), jnp.where(last > first, last, lone + 1)
    first, last = first + s.target_shrink, last - s.target_shrink

    owner, owned, silent = own_snippets(first, last, targets, outputs.snippet_mask)
    of_owner = lambda x: jnp.take_along_axis(jnp.broadcast_to(x, first.shape), owner, axis=-1)
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
    """Weighted cross-entropy and dice of the mask (spec 3.4); cells of silent snippets are in neither."""
    s, width = settings, outputs.snippet_mask.shape[-1]
    fold = lambda x: x.reshape(-1, width, *x.shape[3:])
    row_weight = fold(jnp.where(outputs.snippet_mask, goal.weight, 0.0))
    weight = row_weight[:, :, None] * fold(outputs.snippet_mask & ~goal.silent_mask)[:, None]
    p, target = jax.nn.sigmoid(fold(outputs.mask_logits)), fold(goal.cells_mask)
    cross_entropy = mask_losses.weighted_cross_entropy(p, target, weight, s.mask_smoothing)
    return s.bce_share * cross_entropy + (1 - s.bce_share) * mask_losses.dice(p, target, weight, s.dice_factor)


def _refinement_loss(outputs: SpotOutputs, key: Array | None, s: SpotSettings) -> Array:
    """Contrast of hard snippets, next to the predicted mask's boundary, with easy ones (spec 3.4, 3.7).

    Averaged over windows; one whose bands are empty takes no part. What is easy and hard is chosen without gradient.
    ``key`` draws the time mask of the easy ones, which foreground and background share; None: no such mask.
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

    drawn = mask
    if s.easy_time_mask > 0 and key is not None:
        drawn = jax.random.bernoulli(key, 1 - s.easy_time_mask, mask.shape)

    def easiest(score: Array) -> Array:
        return intervals.top_mask(jnp.where(mask, score * drawn, -1.0), s.easy_snippets) & mask

    bands = mask_losses.boundary_bands(mask_logits, mask[:, :, None] & mask[:, None], s.band_inner, s.band_outer)
    hard_action, hard_background = (hardest(band) for band in bands)
    easy_action, easy_background = easiest(action), easiest(probability[..., -1])
    t = s.refinement_temperature
    inside, one = mask_losses.contrast(features, hard_action, easy_action, easy_background, t)
    outside, other = mask_losses.contrast(features, hard_background, easy_background, easy_action, t)
    whole = one & other
    return jnp.where(whole, inside + outside, 0).sum() / jnp.maximum(whole.sum(), 1)


def snippet_losses(
    outputs: SpotOutputs, targets: Targets | SnippetTargets, state: PyTree, key: Array | None, settings: SpotSettings
) -> DetectionLoss:
    """Class, mask, reconstruction and refinement losses over the whole batch (paper 002, Eq. 1; spec 3.7)."""
    s, mask = settings, outputs.snippet_mask
    goal = assign_snippets(outputs, targets, s) if isinstance(targets, Targets) else targets
    background = outputs.class_logits.shape[-1] - 1
    foreground = (goal.classes < background) & mask
    weight = jnp.where(mask, goal.weight, 0.0)
    error = jnp.square(outputs.features - outputs.inputs).mean(-1)
    parts = {
        "class": _class_loss(outputs.class_logits, goal, weight, s),
        "mask": mask_loss(outputs, goal, s),
        "reconstruction": jnp.where(mask, error, 0).sum() / jnp.maximum(mask.sum(), 1),
        "refinement": _refinement_loss(outputs, key, s) if s.refinement_weight else jnp.zeros(()),
        "positives": jnp.where(foreground, weight, 0).sum(),
    }
    # Refinement is in neither part: it needs no labels, but a class head that knows something.
    localisation = parts["mask"] + s.reconstruction_weight * parts["reconstruction"]
    total = parts["class"] + localisation + s.refinement_weight * parts["refinement"]
    flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
    classes = jax.nn.one_hot(goal.classes, background + 1)
    taught = PointTargets(flat(classes), flat(foreground), flat(goal.silent_mask & mask))
    return DetectionLoss(total, parts["class"], localisation, parts, state, taught)


def decode_detections(outputs: SpotOutputs, settings: SpotSettings) -> Detections:
    """Proposals of all windows, pooled, to at most K detections per video (spec 3.5)."""
    s, decoding = settings, settings.decoding
    probability = jax.nn.softmax(outputs.class_logits, axis=-1)[..., :-1]
    action = jnp.where(outputs.snippet_mask[..., None], probability, 0)

    def one_video(
        action: Array, mask_logits: Array, valid: Array, start: Array, scale: Array, length: Array, mean: Array
    ):
        label = mean.argmax() if decoding.label == "video" else None
        candidates = min(decoding.class_candidates, action.shape[-1])
        classes = jax.lax.top_k(action.max((0, 1)), candidates)[1] if label is None else label[None]

        def one_window(action: Array, mask_logits: Array, valid: Array) -> tuple[Proposals, Proposals]:
            window = action, mask_logits, valid
            return mask_proposals(*window, label, decoding), class_proposals(*window, classes, decoding)

        def placed(found: Proposals) -> tuple[Array, ...]:
            """Segments in grid steps, confidence, label, mask and score of the proposals of all windows."""
            edges = start[:, None, None] + jnp.stack([found.first, found.last], -1) * scale - 0.5
            kept = found.mask
            if s.window_mode == "windows":
                stride = window_stride(s.steps, s.overlap)
                kept &= ~truncated_by_window(found.first, found.last, start, length, width=s.steps, stride=stride)
            rows = found.score * found.location, found.label, kept, found.score
            return jnp.clip(edges, -0.5, length - 0.5).reshape(-1, 2), *(x.reshape(-1) for x in rows)

        # Of equally sure proposals the first wins: those of the mask, which know instances from one another.
        parts = [placed(found) for found in jax.vmap(one_window)(action, mask_logits, valid)]
        *candidate, score = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        kept, labels = keep_best(*candidate, **suppression(decoding)), candidate[2]
        return kept_detections(kept, labels, score)

    mean = jnp.where(outputs.snippet_mask[..., None], outputs.class_logits, 0).sum((1, 2))[:, :-1]
    return jax.vmap(one_video)(
        action, outputs.mask_logits, outputs.snippet_mask, outputs.start_t, outputs.scale_t, outputs.lengths, mean
    )


def build_spot(settings: SpotSettings, facts: DataFacts) -> Detector:
    """The detector record. Raises :class:`~apl_jax.declarations.SettingsError` for settings that contradict one
    another."""
    check_spot(settings)
    module = Spot(settings, facts.num_classes)

    def init(key: Array) -> tuple[PyTree, PyTree]:
        shape = jnp.zeros((1, settings.steps, facts.feature_width)), jnp.ones((1, settings.steps), bool)
        return module.init(key, *shape, deterministic=True)["params"], jnp.float32(0)

    def apply(params: PyTree, batch: Batch, key: Array | None) -> SpotOutputs:
        rngs = None if key is None else {"dropout": key}
        snippets: Snippets = to_snippets(
            batch.features, batch.mask,
            width=settings.steps, window_mode=settings.window_mode, overlap=settings.overlap,
        )  # fmt: skip
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
        loss=lambda outputs, targets, state, key: snippet_losses(outputs, targets, state, key, settings),
        decode=lambda outputs: decode_detections(outputs, settings),
        annotate=lambda outputs: own_targets(outputs, settings),
        compare=compare_outputs,
        flip=flip_outputs,
        facts=DetectorFacts(background_class=True, uncovered=uncovered_by_snippets),
    )


register_detector("spot", SpotSettings, build_spot)
