"""The training feed: a pure function of (seed, step) in which every epoch is a permutation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import random_bank, random_batch

from apl_jax.data.batching import whole_table
from apl_jax.data.dataset import open_dataset
from apl_jax.feeds.resident import device_feed, draw_rows
from apl_jax.settings import DataSettings


def rows_of(steps: int, rows: int, batch: int, seed: int = 0) -> np.ndarray:
    """Rows of the first steps: ``[steps, batch]``."""
    draw = jax.vmap(lambda step: draw_rows(jax.random.key(seed), step, rows, batch))
    return np.asarray(jax.jit(draw)(jnp.arange(steps)))


@pytest.mark.parametrize(("rows", "batch"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_every_epoch_is_a_permutation(rows: int, batch: int) -> None:
    per_epoch, epochs = rows // batch, 6
    found = rows_of(per_epoch * epochs, rows, batch).reshape(epochs, per_epoch * batch)
    for epoch in found:
        assert len(set(epoch)) == per_epoch * batch
        assert set(epoch) <= set(range(rows))
    assert len({tuple(epoch) for epoch in found}) > 1
    # What one epoch leaves over, others bring.
    assert set(found.ravel()) == set(range(rows))


def test_a_table_smaller_than_the_batch_repeats_its_rows() -> None:
    for step in rows_of(5, 3, 8):
        assert sorted(np.bincount(step, minlength=3)) == [2, 3, 3]


def test_order_is_the_seed_s() -> None:
    assert (rows_of(6, 12, 4) == rows_of(6, 12, 4)).all()
    assert (rows_of(6, 12, 4) != rows_of(6, 12, 4, seed=1)).any()


def test_batches_are_rows_of_their_tables() -> None:
    tables = {
        "labelled": random_batch([9, 16, 12, 16, 7], 16, seed=1),
        "unlabelled": random_batch([16, 3, 8, 11, 5, 16, 2, 9], 16, seed=2, instances=2),
    }
    bank = random_bank()
    feed = device_feed(tables, {"labelled": 5, "unlabelled": 8}, {"labelled": 2, "unlabelled": 4}, {"bank": bank})
    assert feed.batch_sizes == {"labelled": 2, "unlabelled": 4}
    draw = jax.jit(feed.batches)
    seen = {"labelled": [], "unlabelled": []}
    for step in range(4):
        batches = draw(feed.arrays, jax.random.key(0), jnp.int32(step))
        assert set(batches) == {"labelled", "unlabelled", "bank"}
        assert (batches["bank"].features == bank.features).all()
        for role, table in tables.items():
            rows = np.asarray(batches[role].video)
            seen[role].extend(rows.tolist())
            for whole, drawn in zip(jax.tree.leaves(table), jax.tree.leaves(batches[role]), strict=True):
                np.testing.assert_array_equal(np.asarray(whole)[rows], drawn)
    # Each role has an order of its own, and a table of its own length.
    assert sorted(seen["unlabelled"][:8]) == list(range(8))
    assert len(set(seen["labelled"][:4])) == 4


def test_rows_that_fill_a_table_are_never_drawn() -> None:
    table = random_batch([4] * 8, 4)
    feed = device_feed({"labelled": table}, {"labelled": 5}, {"labelled": 5}, {})
    for step in range(3):
        batches = feed.batches(feed.arrays, jax.random.key(0), jnp.int32(step))
        assert sorted(batches["labelled"].video.tolist()) == [0, 1, 2, 3, 4]


def test_roles_of_equal_size_are_ordered_independently() -> None:
    table = random_batch([4] * 10, 4)
    tables = {"labelled": table, "unlabelled": table}
    feed = device_feed(tables, dict.fromkeys(tables, 10), dict.fromkeys(tables, 5), {})
    batches = jax.jit(feed.batches)(feed.arrays, jax.random.key(0), jnp.int32(0))
    assert batches["labelled"].video.tolist() != batches["unlabelled"].video.tolist()


def test_whole_table_of_the_embedded_data() -> None:
    table = open_dataset(DataSettings()).labelled
    batch = whole_table(table, 32)
    assert batch.video.tolist() == list(range(len(table.records)))
    assert batch.targets.mask.shape == (len(table.records), 32)
    for row, (record, grid) in enumerate(zip(table.records, table.grids, strict=True)):
        count = len(record.labels)
        assert batch.targets.mask[row].sum() == count > 0
        np.testing.assert_allclose(grid.to_s(batch.targets.segments_t[row, :count]), record.segments_s, atol=1e-4)
