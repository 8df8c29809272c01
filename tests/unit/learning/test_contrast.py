"""ACP: the frames that it samples and the contrast that it makes of them (APL 3.3, Eq. 11; spec B1 to B8)."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, random_batch

from apl_jax.declarations import SettingsError
from apl_jax.learning.contrast import (
    ClassContrastSettings,
    ClusterContrastSettings,
    class_contrast_loss,
    cluster_contrast_loss,
    sample_frames,
)
from apl_jax.learning.method import PassResult
from apl_jax.ops.losses import info_nce
from apl_jax.ops.segments import frame_labels
from apl_jax.structs import Array, Batch

STEPS = 24
CLUSTERS = ClusterContrastSettings(partitions=8, fine_clusters=3, kmeans_iterations=4)
CLASSWISE = ClassContrastSettings(partitions=8)


def test_every_segment_gives_one_of_its_valid_steps() -> None:
    lengths, partitions = [24, 17, 5, 1, 0], 8
    mask = jnp.arange(STEPS) < jnp.array(lengths)[:, None]
    draw = jax.jit(jax.vmap(lambda key: sample_frames(key, mask, partitions)))
    rows, exists = jax.device_get(draw(jax.random.split(jax.random.key(0), 400)))
    assert rows.shape == (400, len(lengths), partitions)
    assert (exists == exists[0]).all()
    for video, length in enumerate(lengths):
        covered = set()
        for segment in range(partitions):
            inside = range(segment * length // partitions, (segment + 1) * length // partitions)
            assert exists[0, video, segment] == (len(inside) > 0)
            if inside:
                # Every step of the segment is drawn sometimes, and no other ever.
                assert set(rows[:, video, segment]) == set(inside)
                covered |= set(inside)
        assert covered == set(range(length))
    assert exists[0].sum(-1).tolist() == [8, 8, 5, 1, 0]
    assert rows.min() >= 0 and rows.max() < STEPS


def seen(batch: Batch, table: Array) -> PassResult:
    """A pass of a detector whose frames are looked up in ``table [B, T, R]``."""
    represent = lambda rows: jnp.take_along_axis(table, rows[..., None], axis=1)
    return PassResult(batch, SimpleNamespace(represent=represent))


def scene() -> tuple[Batch, Array]:
    """Four videos with annotations, and what some detector makes of their frames."""
    batch = random_batch([24, 20, 24, 9], STEPS, seed=3)
    table = np.random.default_rng(1).normal(size=(4, STEPS, 5)).astype(np.float32)
    return batch, jnp.asarray(table)


def test_clusters_guide_it_without_labels() -> None:
    """Frames that look alike and are represented alike contrast little; turned around they contrast much."""
    draws = np.random.default_rng(0)
    kind = np.arange(STEPS) // 3 % 2
    appearance = np.where(kind[:, None] == 1, 5.0, -5.0) + 0.1 * draws.normal(size=(2, STEPS, 6))
    batch = dataclasses.replace(random_batch([24, 24], STEPS), features=jnp.asarray(appearance, jnp.float32))
    good = np.stack([np.where(kind, 1.0, 0.0), np.where(kind, 0.0, 1.0)], -1) + np.zeros((2, 1, 1))
    bad = draws.normal(size=(2, STEPS, 2))
    settings = dataclasses.replace(CLUSTERS, fine_clusters=2)
    run = jax.jit(lambda key, table: cluster_contrast_loss(key, seen(batch, table), settings))
    for seed in range(3):
        low = sum(run(jax.random.key(seed), jnp.asarray(good, jnp.float32)))
        high = sum(run(jax.random.key(seed), jnp.asarray(bad, jnp.float32)))
        assert 0 < low < 0.01 and high > 1


def test_clusters_look_at_the_direction_of_features() -> None:
    """Brighter or darker frames cluster as they did: inputs are normalised first (spec B3)."""
    batch, table = scene()
    gain = np.random.default_rng(2).uniform(0.01, 10, (4, STEPS, 1))
    brighter = dataclasses.replace(batch, features=batch.features * jnp.asarray(gain, jnp.float32))
    run = jax.jit(lambda batch: sum(cluster_contrast_loss(jax.random.key(0), seen(batch, table), CLUSTERS)))
    np.testing.assert_allclose(run(batch), run(brighter), rtol=1e-5)


@pytest.mark.parametrize("group", [0, 2])
def test_annotated_classes_guide_it_later(group: int) -> None:
    """Coarse: action against background in each video. Fine: all classes and background within each group."""
    batch, table = scene()
    settings = dataclasses.replace(CLASSWISE, fine_group=group)
    key = jax.random.key(4)
    run = jax.jit(lambda table: class_contrast_loss(key, seen(batch, table), settings, CLASSES))
    found_coarse, found_fine = run(table)

    drawn = sample_frames(jax.random.split(key)[0], batch.mask, settings.partitions)
    rows, mask = (np.array(x) for x in drawn)
    targets, labels, vectors = batch.targets, [], []
    for v in range(4):
        exists, ignored = np.asarray(targets.mask[v]), np.asarray(targets.ignore_mask[v])
        frames = frame_labels(targets.segments_t[v], targets.labels[v], exists & ~ignored, STEPS, CLASSES)
        start, end = np.asarray(targets.segments_t[v]).T
        under_ignored = ((rows[v][:, None] >= start) & (rows[v][:, None] <= end) & exists & ignored).any(-1)
        labels.append(np.asarray(frames)[rows[v]])
        mask[v] &= ~(under_ignored & (labels[v] == CLASSES))
        vectors.append(np.asarray(table)[v, rows[v]])
    labels, vectors = np.stack(labels), np.stack(vectors)
    contrast = jax.jit(lambda x, y, m: info_nce(x, y, m, temperature=settings.temperature, exclude_self=True))
    coarse = np.mean([contrast(vectors[v], np.int32(labels[v] < CLASSES), mask[v]) for v in range(4)])
    size = group or 4
    fine = np.mean([
        contrast(vectors[g : g + size].reshape(-1, 5), labels[g : g + size].ravel(), mask[g : g + size].ravel())
        for g in range(0, 4, size)
    ])  # fmt: skip
    np.testing.assert_allclose(found_coarse, coarse, rtol=1e-4)
    np.testing.assert_allclose(found_fine, fine, rtol=1e-4)
    assert coarse > 0.1 and fine > 0.1 and not mask.all()


@pytest.mark.parametrize(("coarse", "fine"), [(True, False), (False, True), (False, False)])
def test_either_term_can_be_left_out(coarse: bool, fine: bool) -> None:
    batch, table = scene()
    by_class = dataclasses.replace(CLASSWISE, coarse=coarse, fine=fine)
    by_cluster = dataclasses.replace(CLUSTERS, coarse=coarse, fine=fine)
    run = jax.jit(
        lambda pass_key: (
            class_contrast_loss(pass_key, seen(batch, table), by_class, CLASSES),
            cluster_contrast_loss(pass_key, seen(batch, table), by_cluster),
        )
    )
    for found_coarse, found_fine in run(jax.random.key(0)):
        assert (found_coarse > 0) == coarse and (found_fine > 0) == fine


def test_a_group_that_does_not_divide_the_batch() -> None:
    batch, table = scene()
    settings = dataclasses.replace(CLASSWISE, fine_group=3)
    with pytest.raises(SettingsError, match=r"`fine_group` of the contrast: found 3, expected a divisor .*\(4\)"):
        class_contrast_loss(jax.random.key(0), seen(batch, table), settings, CLASSES)
