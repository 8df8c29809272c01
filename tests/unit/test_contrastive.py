"""ACP: the frames that it samples and the contrast that it makes of them (APL 3.3, Eq. 11; systems B1 to B8)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, random_batch

from apl_jax.learning.contrastive import contrastive_loss, sample_frames
from apl_jax.ops.losses import info_nce
from apl_jax.ops.segments import frame_labels
from apl_jax.settings import ContrastiveSettings
from apl_jax.structs import Array, Batch

STEPS = 24
SETTINGS = ContrastiveSettings(partitions=8, fine_clusters=3, kmeans_iterations=4)


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


def represent_by(table: Array):
    """A detector's frames, looked up in ``table [B, T, R]``."""
    return lambda rows: jnp.take_along_axis(table, rows[..., None], axis=1)


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
    settings = dataclasses.replace(SETTINGS, fine_clusters=2)
    run = jax.jit(lambda key, table: contrastive_loss(key, represent_by(table), batch, settings))
    for seed in range(3):
        low, terms = run(jax.random.key(seed), jnp.asarray(good, jnp.float32))
        high, _ = run(jax.random.key(seed), jnp.asarray(bad, jnp.float32))
        assert 0 < low < 0.01 and high > 1
        np.testing.assert_allclose(low, terms["contrast_coarse"] + terms["contrast_fine"], rtol=1e-6)


def test_clusters_look_at_the_direction_of_features() -> None:
    """Brighter or darker frames cluster as they did: inputs are normalised first (systems B3)."""
    batch, table = scene()
    gain = np.random.default_rng(2).uniform(0.01, 10, (4, STEPS, 1))
    brighter = dataclasses.replace(batch, features=batch.features * jnp.asarray(gain, jnp.float32))
    run = jax.jit(lambda batch: contrastive_loss(jax.random.key(0), represent_by(table), batch, SETTINGS)[0])
    np.testing.assert_allclose(run(batch), run(brighter), rtol=1e-5)


@pytest.mark.parametrize("group", [0, 2])
def test_annotated_classes_guide_it_later(group: int) -> None:
    """Coarse: action against background in each video. Fine: all classes and background within each group."""
    batch, table = scene()
    settings = dataclasses.replace(SETTINGS, fine_group=group)
    key = jax.random.key(4)
    run = jax.jit(lambda table: contrastive_loss(key, represent_by(table), batch, settings, CLASSES))
    total, terms = run(table)

    drawn = sample_frames(jax.random.split(key, 3)[0], batch.mask, settings.partitions)
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
    np.testing.assert_allclose(terms["contrast_coarse"], coarse, rtol=1e-4)
    np.testing.assert_allclose(terms["contrast_fine"], fine, rtol=1e-4)
    np.testing.assert_allclose(total, coarse + fine, rtol=1e-4)
    assert coarse > 0.1 and fine > 0.1 and not mask.all()


@pytest.mark.parametrize(("coarse", "fine"), [(True, False), (False, True), (False, False)])
def test_either_term_can_be_left_out(coarse: bool, fine: bool) -> None:
    batch, table = scene()
    settings = dataclasses.replace(SETTINGS, coarse=coarse, fine=fine)
    run = jax.jit(lambda table: contrastive_loss(jax.random.key(0), represent_by(table), batch, settings, CLASSES))
    total, terms = run(table)
    assert (terms["contrast_coarse"] > 0) == coarse and (terms["contrast_fine"] > 0) == fine
    assert total == terms["contrast_coarse"] + terms["contrast_fine"]


def test_a_group_that_does_not_divide_the_batch() -> None:
    batch, table = scene()
    with pytest.raises(ValueError, match=r"fine_group: found 3, expected a divisor of the batch \(4 videos\)"):
        contrastive_loss(
            jax.random.key(0), represent_by(table), batch, dataclasses.replace(SETTINGS, fine_group=3), CLASSES
        )
