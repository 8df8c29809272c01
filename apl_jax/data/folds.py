"""Labelled recordings divided into folds: each is held out once, with all recordings of its subject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apl_jax.data.annotations import VideoRecord


def make_folds(records: Sequence[VideoRecord], most: int, classes: int) -> np.ndarray:
    """The fold ``[V]`` of each recording, 0 to K - 1: at most ``most``, and no more than there are groups.

    A group is a subject's recordings, or a recording whose subject is not known. Folds are filled so that each holds
    about as many instances of every class: the largest groups first, each into the fold that has the fewest instances
    of the group's classes. The same records give the same folds. Recordings of one subject alone are divided all the
    same; one recording gives one fold, which nothing can be held out from.
    """
    groups: dict[object, list[int]] = {}
    alone = one_subject(records)
    for v, record in enumerate(records):
        unknown = record.subject is None or alone
        groups.setdefault(("recording", record.id) if unknown else record.subject, []).append(v)
    counts = np.stack([_counts([records[v] for v in rows], classes) for rows in groups.values()])
    folds = min(most, len(groups))
    filled, members = np.zeros((folds, classes)), np.zeros(folds)
    result = np.zeros(len(records), np.int64)
    rows_of = list(groups.values())
    for g in sorted(range(len(rows_of)), key=lambda g: (-counts[g].sum(), rows_of[g][0])):
        crowded = (filled * counts[g]).sum(1)
        fold = min(range(folds), key=lambda k: (crowded[k], filled[k].sum(), members[k], k))
        filled[fold] += counts[g]
        members[fold] += 1
        result[rows_of[g]] = fold
    return _without_empty(result, folds)


def one_subject(records: Sequence[VideoRecord]) -> bool:
    """Whether several recordings are known to be of one subject."""
    subjects = {record.subject for record in records}
    return len(records) > 1 and len(subjects) == 1 and None not in subjects


def _counts(records: Sequence[VideoRecord], classes: int) -> np.ndarray:
    labels = np.concatenate([record.labels[~record.ignore] for record in records])
    return np.bincount(labels.astype(np.int64), minlength=classes)


def _without_empty(folds: np.ndarray, count: int) -> np.ndarray:
    """The same folds, numbered without gaps."""
    used = np.unique(folds)
    return np.searchsorted(used, folds) if len(used) < count else folds
