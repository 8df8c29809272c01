"""Random views of a batch for training: truncation of the video, and noise on its features."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from apl_jax.settings import PerturbSettings
from apl_jax.stored_videos import StoredVideos, whole
from apl_jax.structs import Array, Batch, Detections, Targets

Segments = TypeVar("Segments", Targets, Detections)


def perturb(
    key: Array, batch: Batch | StoredVideos, settings: PerturbSettings, steps: int, edge_t: float = 0.0
) -> Batch:
    """A random view of every video of ``batch``, cut to at most ``steps`` grid steps; ``edge_t`` as in
    :func:`random_truncation`."""
    crop_key, noise_key = jax.random.split(key)
    return add_noise(noise_key, random_truncation(crop_key, batch, settings, steps, edge_t), settings)


def random_truncation(
    key: Array, batch: Batch | StoredVideos, settings: PerturbSettings, steps: int, edge_t: float = 0.0
) -> Batch:
    """Random truncation (spec 1.2), for labelled, pseudo-labelled and unlabelled videos alike (A15).

    A video that fits is cut to a uniform length in [crop_ratio, 1] of itself, a longer one to ``steps``. Several starts
    are drawn at once and the first one that keeps an instance is used; if none does, or the video has no instance, the
    first start stands. An instance is clipped to what the crop's windows see and survives if at least ``keep_ratio`` of
    it is inside.

    ``edge_t`` is half a window, in grid steps: rows stand for window centres, so a crop sees that much beyond them.

    Returns a batch of ``[B, min(steps, T)]`` grid steps; of stored videos nothing else is read.
    """
    stored = isinstance(batch, StoredVideos)
    length_t = batch.steps if stored else batch.features.shape[1]
    lengths = batch.length if stored else batch.mask.sum(-1)
    steps = min(steps, length_t)
    if settings.crop_ratio >= 1 and steps == length_t:
        return whole(batch)

    def one_video(key: Array, length: Array, targets: Targets, proposals: Detections | None) -> tuple:
        length_key, start_key = jax.random.split(key)
        shortest = jnp.maximum(jnp.round(settings.crop_ratio * length).astype(jnp.int32), 1)
        drawn = jax.random.randint(length_key, (), shortest, jnp.maximum(length, shortest) + 1)
        crop = jnp.where(length <= steps, drawn, steps)
        starts = jax.random.randint(start_key, (settings.crop_attempts,), 0, jnp.maximum(length - crop, 0) + 1)
        crops = jax.vmap(lambda start: clip_segments(targets, start, crop, settings.keep_ratio, edge_t))(starts)
        usable = (crops.mask & ~crops.ignore_mask).any(-1)
        chosen = jnp.argmax(usable)
        start, valid = starts[chosen], jnp.arange(steps) < jnp.minimum(crop, length)
        kept = jax.tree.map(lambda x: x[chosen], crops)
        return start, valid, kept, proposals and clip_segments(proposals, start, crop, settings.keep_ratio, edge_t)

    keys = jax.random.split(key, len(lengths))
    start, valid, targets, proposals = jax.vmap(one_video)(keys, lengths, batch.targets, batch.proposals)
    seen = start[:, None] + jnp.arange(steps)
    if stored:
        features = batch.read(seen)
    else:
        features = jax.vmap(lambda x, row: x[jnp.minimum(row, length_t - 1)])(batch.features, seen)
    return Batch(jnp.where(valid[..., None], features, 0), valid, targets, batch.video, proposals)


def clip_segments(found: Segments, start: Array, length: Array, keep_ratio: float, edge_t: float = 0.0) -> Segments:
    """Instances, or proposals, ``[N, ...]`` of one video as seen from the crop [start, start + length), widened by
    ``edge_t``."""
    low, high = start.astype(jnp.float32), (start + length).astype(jnp.float32)
    clipped = jnp.clip(found.segments_t, low - edge_t, high + edge_t)
    inside = clipped[:, 1] - clipped[:, 0]
    whole = jnp.maximum(found.segments_t[:, 1] - found.segments_t[:, 0], 1e-6)
    kept = found.mask & (inside / whole >= keep_ratio)
    return dataclasses.replace(found, segments_t=clipped - low, mask=kept)


def add_noise(key: Array, batch: Batch, settings: PerturbSettings) -> Batch:
    """Gaussian noise, channel dropout over the whole video, and a log-normal gain, each where its setting is > 0."""
    noise_key, channel_key, gain_key = jax.random.split(key, 3)
    features = batch.features
    videos, _, width = features.shape
    if settings.scale > 0:
        features = features * jnp.exp(settings.scale * jax.random.normal(gain_key, (videos, 1, 1)))
    if settings.noise > 0:
        features = features + settings.noise * jax.random.normal(noise_key, features.shape)
    if settings.channel_drop > 0:
        keep = jax.random.bernoulli(channel_key, 1 - settings.channel_drop, (videos, 1, width))
        features = jnp.where(keep, features / (1 - settings.channel_drop), 0)
    return dataclasses.replace(batch, features=jnp.where(batch.mask[..., None], features, 0))
