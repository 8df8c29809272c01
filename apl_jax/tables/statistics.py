"""Mean, deviation and paired differences of rows that were run with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_rel, wilcoxon

_EQUAL = 1e-9  # percentage points within which differences are the same number


@dataclass(frozen=True)
class Spread:
    """Values of several seeds."""

    mean: float
    deviation: float | None  # of the sample; None of a single value
    count: int

    def words(self, sign: str = "", decimals: int = 1) -> str:
        """As text; ``sign`` "+" shows that of a positive mean too."""
        deviation = "" if self.deviation is None else f" ± {self.deviation:.{decimals}f}"
        return f"{self.mean:{sign}.{decimals}f}{deviation}"


@dataclass(frozen=True)
class Difference:
    """A row minus the row above it, seed by seed."""

    spread: Spread
    t_test: float | None  # p-value of the paired t-test; None of fewer than two seeds, or where all differences agree
    wilcoxon: float | None  # p-value of Wilcoxon's signed-rank test; None as above, and where all differences are 0


def spread(values: Mapping[int, float]) -> Spread | None:
    """Of values by seed; None of none."""
    found = np.array(list(values.values()), np.float64)
    if not len(found):
        return None
    return Spread(float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else None, len(found))


def difference(ours: Mapping[int, float], above: Mapping[int, float]) -> Difference | None:
    """Over the seeds that both rows have; None of none."""
    seeds = [seed for seed in ours if seed in above]
    by_seed = {seed: ours[seed] - above[seed] for seed in seeds}
    summary, values = spread(by_seed), np.array(list(by_seed.values()))
    if summary is None:
        return None
    t_test = wilcoxon_test = None
    if len(seeds) > 1 and np.ptp(values) > _EQUAL:
        t_test = float(ttest_rel([ours[s] for s in seeds], [above[s] for s in seeds]).pvalue)
    if len(seeds) > 1 and values.any():
        wilcoxon_test = float(np.asarray(wilcoxon(values))[1])
    return Difference(summary, t_test, wilcoxon_test)
