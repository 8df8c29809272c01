"""What BMN predicts, and how its predictions are compared and reversed in time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from apl_jax.detectors.base import ClassDistribution
from apl_jax.detectors.shared import softmax_distribution
from apl_jax.nn.snippets import reversed_windows, rows_of_snippets, snippet_times
from apl_jax.ops.boundary_matching import valid_cells
from apl_jax.ops.masking import masked_mean
from apl_jax.structs import Array, pytree

_CERTAIN = 30.0  # logit of a probability that is 1 in float32


@pytree
class BmnOutputs:
    """Dense predictions of n windows of W snippets per video; cell (d, s) of the map is the segment of the snippets
    s to s + d."""

    class_logits: Array  # [B, n, W, C + 1], background last; C = 0 without a class head
    map_logits: Array  # [B, n, D, W, M]: tIoU, classification, and tND where there is ALQA
    boundary_logits: Array  # [B, n, W, 2]: that an action starts, or ends, at the snippet
    features: Array  # [B, n, W, E], of the base module
    snippet_mask: Array  # [B, n, W]
    start_t: Array  # [B, n]; snippet i stands for grid step start + (i + .5) * scale - .5
    scale_t: Array  # [B]
    lengths: Array  # [B] int32, valid grid steps

    @property
    def cell_mask(self) -> Array:
        """Which cells ``[B, n, D, W]`` are segments within their window and video."""
        return valid_cells(self.map_logits.shape[-2], self.map_logits.shape[-3], self.snippet_mask.sum(-1))

    def represent(self, rows: Array) -> Array:
        """What the base module puts out at grid steps ``rows [B, N]``, linear between snippets of the window whose
        centre is nearest: ``[B, N, E]`` (spec 2.9)."""
        return rows_of_snippets(self.features, self.snippet_mask, self.start_t, self.scale_t, rows)

    def distribution(self) -> ClassDistribution:
        """The softmax of all windows' snippets, S = n * W.

        Without a class head there is one class, and no snippet has a distribution: all of them are masked.
        """
        flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
        time_t = flat(snippet_times(self.start_t, self.scale_t, self.snippet_mask.shape[2]))
        logits, mask = flat(self.class_logits), flat(self.snippet_mask)
        if logits.shape[-1] == 1:
            return softmax_distribution(jnp.zeros((*mask.shape, 2)), time_t, jnp.zeros_like(mask))
        return softmax_distribution(logits, time_t, mask)


def compare_outputs(student: BmnOutputs, teacher: BmnOutputs, mask: Array) -> dict[str, Array]:
    """How far two outputs on one view are apart, each a mean squared difference of probabilities (spec 4.1).

    ``class``: over the valid snippets of the videos in ``mask [B]``, background among the classes · ``start``, ``end``:
    over the same · ``map``: of all channels, over the whole maps of valid windows; the cells that are no segments count
    as equal, as in the reference. 0 where there is none. No gradient reaches the teacher.
    """
    teacher = jax.lax.stop_gradient(teacher)
    valid = student.snippet_mask & mask[:, None, None]
    square = lambda f, name: jnp.square(f(getattr(student, name)) - f(getattr(teacher, name)))
    classes, boundary = square(jax.nn.softmax, "class_logits"), square(jax.nn.sigmoid, "boundary_logits")
    cells = jnp.where(student.cell_mask, square(jax.nn.sigmoid, "map_logits").mean(-1), 0.0)
    return {
        "class": masked_mean(classes.mean(-1), valid),
        "start": masked_mean(boundary[..., 0], valid),
        "end": masked_mean(boundary[..., 1], valid),
        "map": masked_mean(cells.mean((-1, -2)), valid.any(-1)),
    }


def flip_outputs(outputs: BmnOutputs) -> BmnOutputs:
    """Outputs on a view whose valid grid steps are reversed, padding staying at the end, as outputs on the view.

    The valid windows are reversed, and in each the valid snippets, starts and ends exchanged. Cell (d, s) of v valid
    snippets becomes (d, v - 1 - d - s). Where that is exact, and that ``compare`` may look at snippets up to a stride
    apart, :func:`~apl_jax.nn.snippets.reversed_windows` says. Twice the flip is the identity.
    """
    order = reversed_windows(outputs.snippet_mask, outputs.start_t, outputs.scale_t, outputs.lengths)
    durations, steps = outputs.map_logits.shape[2:4]
    lengths = order.mask.sum(-1)
    start, valid = jnp.arange(steps), valid_cells(steps, durations, lengths)
    turned = lengths[..., None, None] - 1 - jnp.arange(durations)[:, None] - start
    cell = jnp.where(valid, turned, start)[..., None]
    return BmnOutputs(
        order.snippets(outputs.class_logits),
        jnp.take_along_axis(order.windows(outputs.map_logits), cell, axis=3),
        order.snippets(outputs.boundary_logits)[..., ::-1],
        order.snippets(outputs.features),
        order.mask, order.start_t, outputs.scale_t, outputs.lengths,
    )  # fmt: skip


def sharpen_outputs(outputs: BmnOutputs, *, above: float, below: float, least: float) -> tuple[BmnOutputs, Array]:
    """A teacher's outputs as targets on videos without annotations, and which videos count ``[B]`` (spec 4.1).

    Start and end probabilities from ``above`` on become 1, and up to ``below`` 0. A video counts if it has both a start
    and an end of more than ``least``.
    """
    p = jax.nn.sigmoid(outputs.boundary_logits)
    logits = jnp.where(p >= above, _CERTAIN, jnp.where(p <= below, -_CERTAIN, outputs.boundary_logits))
    surest = jnp.where(outputs.snippet_mask[..., None], p, 0).max((1, 2))
    return dataclasses.replace(outputs, boundary_logits=logits), (surest > least).all(-1)
