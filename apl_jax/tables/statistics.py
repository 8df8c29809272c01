"""Paired differences of rows that were run with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_rel, wilcoxon

_EQUAL = 1e-9  # percentage points within which differences are the same number


@dataclass(frozen=True)
class Difference:
    """One row minus another, seed by seed."""

    values: tuple[float, ...]
    t_test: float | None  # p-value of the paired t-test; None of fewer than two seeds, or where all differences agree
    wilcoxon: float | None  # p-value of Wilcoxon's signed-rank test; None as above, and where all differences are 0


def difference(ours: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Over the seeds that both rows have; None of none."""
    seeds = [seed for seed in ours if seed in others]
    if not seeds:
        return None
    pair = np.array([[row[seed] for seed in seeds] for row in (ours, others)])
    values = pair[0] - pair[1]
    t_test = wilcoxon_test = None
    if len(seeds) > 1 and np.ptp(values) > _EQUAL:
        t_test = float(ttest_rel(*pair).pvalue)
    if len(seeds) > 1 and values.any():
        wilcoxon_test = float(np.asarray(wilcoxon(values))[1])
    return Difference(tuple(values.tolist()), t_test, wilcoxon_test)
