"""The training feed: a pure function of (seed, step) in which every epoch is a permutation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import random_bank, random_batch, stored

from apl_jax.data.batching import whole_table
from apl_jax.data.dataset import open_dataset
from apl_jax.devices import build_mesh
from apl_jax.feeds.resident import device_feed, draw_rows, place_rows, rows_between, stored_videos
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
    sizes = {"labelled": 2, "unlabelled": 4}
    feed = device_feed({name: stored(table) for name, table in tables.items()}, sizes, {"bank": bank})
    assert feed.batch_sizes == {"labelled": 2, "unlabelled": 4}
    draw = jax.jit(feed.batches)
    seen = {"labelled": [], "unlabelled": []}
    for step in range(4):
        batches = draw(feed.arrays, jax.random.key(0), jnp.int32(step))
        assert set(batches) == {"labelled", "unlabelled", "bank"}
        assert (batches["bank"].features == bank.features).all()
        for role, table in tables.items():
            batch = batches[role].whole()
            rows = np.asarray(batch.video)
            seen[role].extend(rows.tolist())
            for whole, drawn in zip(jax.tree.leaves(table), jax.tree.leaves(batch), strict=True):
                np.testing.assert_array_equal(np.asarray(whole)[rows], drawn)
    # Each role has an order of its own, and a table of its own length.
    assert sorted(seen["unlabelled"][:8]) == list(range(8))
    assert len(set(seen["labelled"][:4])) == 4


def test_any_part_of_the_rows_of_a_table() -> None:
    """As devices ask for it that hold a part each; videos without any of it are not read."""
    table = open_dataset(DataSettings()).labelled
    whole = np.concatenate([table.read(v) for v in range(len(table.ids))])
    read: list[int] = []
    watched = dataclasses.replace(table, read=lambda v: (read.append(v), table.read(v))[1])
    for low, high in ((0, len(whole)), (50, 51), (100, 777), (len(whole) - 3, len(whole) + 5)):
        found = rows_between(watched, low, high)
        np.testing.assert_array_equal(found[: len(whole) - low], whole[low:high])
        assert found.shape == (high - low, table.width) and (found[len(whole) - low :] == 0).all()
    first = len(table.ids)
    assert read[first] == 0 and read[-1] == first - 1  # the one row is of the first video, the last three of the last
    mesh = build_mesh(1)
    stored_table = stored_videos(table, place_rows(table, mesh, copies=False), 0, mesh)
    np.testing.assert_array_equal(stored_table.whole().features, table.features)
    np.testing.assert_array_equal(stored_table.whole().mask, table.mask)


def test_tables_on_the_same_rows_are_one_array_of_a_program() -> None:
    whole = stored(random_batch([4, 3, 2, 4], 4))
    part = jax.tree.map(lambda x: x[2:], whole.without_rows())
    tables = {"training": whole, "unlabelled": dataclasses.replace(part, rows=whole.rows)}
    feed = device_feed(tables, {"training": 4, "unlabelled": 2}, {})
    assert [rows is whole.rows for rows in feed.arrays["rows"]] == [True]
    batches = feed.batches(feed.arrays, jax.random.key(0), jnp.int32(0))
    expected = whole.whole()
    for batch in (batches[role].whole() for role in tables):
        np.testing.assert_array_equal(batch.features, expected.features[batch.video])


def test_roles_of_equal_size_are_ordered_independently() -> None:
    table = random_batch([4] * 10, 4)
    tables = {"labelled": table, "unlabelled": table}
    feed = device_feed({name: stored(table) for name, table in tables.items()}, dict.fromkeys(tables, 5), {})
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
