"""Paired differences and tests against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import t

from apl_jax.tables.statistics import difference


def test_difference_is_paired_by_seed() -> None:
    ours, above = {0: 5.0, 1: 7.0, 2: 9.5, 9: 100.0}, {2: 9.0, 1: 4.0, 0: 3.0, 7: 0.0}
    found = difference(ours, above)
    assert found is not None and len(found.values) == 3
    values = np.array([2.0, 3.0, 0.5])
    assert found.values == pytest.approx(values)
    statistic = values.mean() / (values.std(ddof=1) / np.sqrt(3))
    assert found.t_test == pytest.approx(2 * t.sf(statistic, 2))
    # Of the eight ways to give three ranks their signs, two are as one-sided as this.
    ways = list(itertools.product((-1, 1), repeat=3))
    assert found.wilcoxon == pytest.approx(sum(abs(sum(signs)) == 3 for signs in ways) / len(ways))


def test_what_cannot_be_tested_has_no_p_value() -> None:
    assert difference({0: 1.0}, {1: 1.0}) is None
    one = difference({0: 2.0}, {0: 1.0})
    assert one is not None and (one.t_test, one.wilcoxon) == (None, None)
    equal = difference({0: 2.0, 1: 3.0}, {0: 2.0, 1: 3.0})
    assert equal is not None and (equal.t_test, equal.wilcoxon) == (None, None)
    alike = difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert alike is not None and alike.t_test is None and alike.wilcoxon == pytest.approx(0.5)
