"""What SPOT predicts, what it is taught, and how its predictions are compared and reversed in time."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import ClassDistribution
from apl_jax.detectors.shared import softmax_distribution
from apl_jax.nn.snippets import reversed_windows, rows_of_snippets, snippet_times
from apl_jax.ops.masking import masked_mean
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
        return rows_of_snippets(self.features, self.snippet_mask, self.start_t, self.scale_t, rows)

    def distribution(self) -> ClassDistribution:
        """The softmax of all windows' snippets, S = n * W."""
        time_t = snippet_times(self.start_t, self.scale_t, self.class_logits.shape[2])
        flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
        return softmax_distribution(flat(self.class_logits), flat(time_t), flat(self.snippet_mask))


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

    The valid windows are reversed, and in each the valid snippets, queries and times of the mask alike. Where that is
    exact, and that ``compare`` may look at snippets up to a stride apart, :func:`~apl_jax.nn.snippets.reversed_windows`
    says. Twice the flip is the identity.
    """
    order = reversed_windows(outputs.snippet_mask, outputs.start_t, outputs.scale_t, outputs.lengths)
    return SpotOutputs(
        order.snippets(outputs.class_logits),
        jnp.take_along_axis(order.snippets(outputs.mask_logits), order.row[:, :, None], axis=3),
        order.snippets(outputs.features),
        order.snippets(outputs.inputs),
        order.mask, order.start_t, outputs.scale_t, outputs.lengths,
    )  # fmt: skip
