"""Folds of labelled recordings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from apl_jax.data.annotations import VideoRecord
from apl_jax.data.folds import make_folds, one_subject


def record(name: str, labels: Sequence[int], subject: int | None = None) -> VideoRecord:
    rows = np.arange(len(labels), dtype=np.float64)
    return VideoRecord(
        id=name, subset="training", duration_s=100.0, fps=10.0, segments_s=np.stack([rows, rows + 0.5], -1),
        labels=np.array(labels, np.int64), weight=np.ones(len(labels)), ignore=np.zeros(len(labels), bool),
        subject=subject,
    )  # fmt: skip


def test_folds_hold_about_as_much_of_every_class() -> None:
    draws = np.random.default_rng(0)
    records = [record(f"r{i}", draws.integers(0, 3, 8).tolist()) for i in range(20)]
    folds = make_folds(records, 4, 3)
    counts = [
        np.bincount(np.concatenate([r.labels for r, f in zip(records, folds, strict=True) if f == k])) for k in range(4)
    ]
    assert np.ptp(counts, axis=0).max() <= 6 and set(folds.tolist()) == {0, 1, 2, 3}


def test_a_subject_is_in_one_fold() -> None:
    records = [record(f"r{i}", [i % 2], subject=i // 3) for i in range(12)]
    folds = make_folds(records, 3, 2)
    for subject in range(4):
        assert len({int(f) for r, f in zip(records, folds, strict=True) if r.subject == subject}) == 1


@pytest.mark.parametrize(("count", "most", "expected"), [(1, 5, 1), (2, 5, 2), (5, 3, 3), (4, 4, 4)])
def test_no_more_folds_than_recordings(count: int, most: int, expected: int) -> None:
    folds = make_folds([record(f"r{i}", [0]) for i in range(count)], most, 1)
    assert sorted(set(folds.tolist())) == list(range(expected))


def test_recordings_without_instances_are_spread_too() -> None:
    folds = make_folds([record(f"r{i}", []) for i in range(6)], 3, 2)
    assert np.bincount(folds).tolist() == [2, 2, 2]


def test_the_same_records_give_the_same_folds() -> None:
    records = [record(f"r{i}", [i % 3, 1]) for i in range(9)]
    np.testing.assert_array_equal(make_folds(records, 3, 3), make_folds(records, 3, 3))


def test_recordings_of_one_subject_are_divided_all_the_same() -> None:
    records = [record(f"r{i}", [0], subject=7) for i in range(3)]
    assert sorted(make_folds(records, 4, 1).tolist()) == [0, 1, 2] and one_subject(records)
    assert not one_subject(records[:1]) and not one_subject([record("a", [0]), record("b", [0])])
