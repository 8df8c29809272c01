"""What SPOT predicts, what it is taught, and how its predictions are compared and reversed in time."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import ClassDistribution
from apl_jax.ops import losses
from apl_jax.ops.masking import masked_mean, reversed_rows
from apl_jax.structs import Array, pytree


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


def compare_outputs(student: SpotOutputs, teacher: SpotOutputs, mask: Array) -> dict[str, Array]:
    """How far two outputs on one view are apart; our reading, for the specification says it of pyramids only (4.4).

    ``class``: mean squared difference of class probabilities, background among them, over the valid snippets of the
    videos in ``mask [B]`` · ``mask``: the same of mask probabilities over the cells of two valid snippets. Both 0 where
    there is none. No gradient reaches the teacher.
    """
    teacher = jax.lax.stop_gradient(teacher)
    valid = student.snippet_mask & mask[:, None, None]
    of_class = jax.nn.softmax(student.class_logits, axis=-1) - jax.nn.softmax(teacher.class_logits, axis=-1)
    of_mask = jax.nn.sigmoid(student.mask_logits) - jax.nn.sigmoid(teacher.mask_logits)
    return {
        "class": masked_mean(jnp.square(of_class).mean(-1), valid),
        "mask": masked_mean(jnp.square(of_mask), valid[..., None] & valid[..., None, :]),
    }


def flip_outputs(outputs: SpotOutputs) -> SpotOutputs:
    """Outputs on a view whose valid grid steps are reversed, padding staying at the end, as outputs on the view.

    The valid windows are reversed, and in each the valid snippets, queries and times of the mask alike. Exact is a
    resized video. In windows of grid steps every window stands where ``start_t`` says, so what is decoded is exact too;
    approximate is that a window takes the place of another in order: unless the video's length is a whole number of
    window strides beyond one window, the inner windows of the reversed view start up to stride - 1 steps before those
    whose places they take, and ``compare`` looks at snippets as far apart. Twice the flip is the identity.
    """
    exists, snippets = outputs.snippet_mask.any(-1), outputs.snippet_mask.sum(-1)
    window = reversed_rows(exists)
    of_window = lambda x: jnp.take_along_axis(x, window.reshape(window.shape + (1,) * (x.ndim - 2)), axis=1)
    snippet_mask = of_window(outputs.snippet_mask)
    row = reversed_rows(snippet_mask)
    of_snippet = lambda x: jnp.take_along_axis(of_window(x), row[..., None], axis=2)
    # Snippet i of v stands at start + (i + .5) scale - .5; reversed in time it is snippet v - 1 - i.
    end = outputs.start_t + snippets * outputs.scale_t[:, None]
    start = jnp.where(exists, outputs.lengths[:, None] - end, outputs.start_t)
    return SpotOutputs(
        of_snippet(outputs.class_logits),
        jnp.take_along_axis(of_snippet(outputs.mask_logits), row[:, :, None], axis=3),
        of_snippet(outputs.features),
        of_snippet(outputs.inputs),
        snippet_mask, of_window(start), outputs.scale_t, outputs.lengths,
    )  # fmt: skip
