"""Videos where they are stored: the rows of all one after the other, without padding, and batches gathered from them.

Padded to the longest, the videos of a data set take several times the memory of their rows (THUMOS14: seven times). A
training step reads a crop of a video and no more, so that neither the padding nor the rest of the video is ever made.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from apl_jax.structs import Array, Batch, Detections, PyTree, Targets, pytree


@pytree
class StoredVideos:
    """V videos, of which :meth:`whole` makes a :class:`~apl_jax.structs.Batch`. Rows may be those of more videos."""

    rows: Array  # [R, D] float
    first: Array  # [V] int32, row of each video's first step
    length: Array  # [V] int32, its steps; 0 of a video that fills the batch
    video: Array  # [V] int32, as in Batch
    targets: Targets  # [V, N]
    proposals: Detections | None = None  # [V, K]
    steps: int = dataclasses.field(default=0, metadata={"static": True})  # T of the batch, at least the longest

    def draw(self, videos: Array, steps: int | None = None) -> StoredVideos:
        """Some of the videos, by their places ``[B]``; a negative one draws an empty video. ``steps``: another T."""
        real = videos >= 0
        drawn = jax.tree.map(lambda x: x[jnp.maximum(videos, 0)], self.without_rows())
        number, length = jnp.where(real, drawn.video, -1), jnp.where(real, drawn.length, 0)
        targets = dataclasses.replace(drawn.targets, mask=drawn.targets.mask & real[:, None])
        return dataclasses.replace(
            drawn, rows=self.rows, video=number, length=length, targets=targets, steps=steps or self.steps
        )

    def read(self, steps: Array) -> Array:
        """Rows ``[V, S, D]`` of some steps ``[V, S]``, counted from each video's first; zeros beyond its last."""
        last = jnp.maximum(self.length - 1, 0)[:, None]
        rows = self.rows[self.first[:, None] + jnp.minimum(steps, last)]
        return jnp.where((steps <= last)[..., None] & (self.length > 0)[:, None, None], rows, 0)

    def whole(self) -> Batch:
        """The videos with all their steps, padded with zeros to T."""
        steps = jnp.broadcast_to(jnp.arange(self.steps), (len(self.first), self.steps))
        return Batch(self.read(steps), steps < self.length[:, None], self.targets, self.video, self.proposals)

    def without_rows(self) -> StoredVideos:
        """All but the rows, which are whole on each device or split over them, whatever becomes of the videos."""
        return dataclasses.replace(self, rows=None)


def constrained(videos: PyTree, sharding: NamedSharding) -> PyTree:
    """A batch, stored or not, with its videos placed so; stored rows stay where they are."""
    if not isinstance(videos, StoredVideos):
        return jax.lax.with_sharding_constraint(videos, sharding)
    placed = jax.lax.with_sharding_constraint(videos.without_rows(), sharding)
    return dataclasses.replace(placed, rows=videos.rows)


def whole(videos: Batch | StoredVideos) -> Batch:
    """A batch, stored or not, as arrays."""
    return videos.whole() if isinstance(videos, StoredVideos) else videos
