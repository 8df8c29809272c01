"""Which instances a detector is taught, against its own assignment, and why not the others."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.detectors import build
from apl_jax.detectors.actionformer_settings import ActionFormerSettings
from apl_jax.ops.coverage import HIDDEN, OUTSIDE, RANGE, SHORT, uncovered_by_pyramid
from apl_jax.ops.pyramid import assign, pyramid_points
from apl_jax.structs import Targets

RANGES, RADIUS = ActionFormerSettings().regression_ranges, ActionFormerSettings().center_radius
UNCOVERED = build("actionformer", feature_width=8, num_classes=2).facts.uncovered


@pytest.mark.parametrize("seed", range(4))
def test_covered_is_what_the_detector_is_taught(seed: int) -> None:
    """Instances of classes of their own, so that a class that no point is taught is an instance that is not."""
    draws = np.random.default_rng(seed)
    count, length = 40, 150  # the last points of the grid of 192 are padding
    start = draws.integers(-40, 330, count) / 2 + draws.choice([0, 0, 0.13], count)
    segments_t = np.stack([start, start + draws.choice([0.1, 0.5, 2, 2, 3.5, 5, 9.25, 16, 40, 70], count)], -1)
    segments_t[1] = segments_t[0] + [-0.0625, 0.0625]  # one that a shorter one hides, at least in part
    segments_t[2] = segments_t[3]
    targets = Targets(
        jnp.asarray(segments_t, jnp.float32), jnp.arange(count), jnp.ones(count, bool), jnp.ones(count),
        jnp.zeros(count, bool),
    )  # fmt: skip
    points = pyramid_points(192, RANGES)
    goal = assign(jnp.asarray(points), targets, num_classes=count, center_radius=RADIUS)
    taught = np.asarray(goal.classes)[points[:, 0] < length].any(0)
    causes = UNCOVERED(segments_t, length)
    assert [cause is None for cause in causes] == taught.tolist()
    assert {OUTSIDE, SHORT, HIDDEN} <= set(causes) and 5 < taught.sum() < count


def test_causes() -> None:
    cause = lambda *segments, length=100: UNCOVERED(np.array(segments), length)
    assert cause((4.1, 4.3), (3.3, 4.7)) == [SHORT, None]  # spec 1.6
    assert cause((200.0, 210.0), (-9.0, -2.0), (95.0, 300.0)) == [OUTSIDE] * 3
    assert cause((10.5, 13.5), (10.4, 13.6)) == [None, HIDDEN]
    gap = uncovered_by_pyramid(
        np.array([(10.0, 20.0)]), 100, regression_ranges=((0.0, 4.0), (8.0, 16.0)), center_radius=1.5
    )
    assert gap == [RANGE]
    assert UNCOVERED(np.zeros((0, 2)), 5) == []
    assert cause((0.0, 2.0), length=0) == [OUTSIDE]


def test_snippets_cover_whatever_has_its_middle_on_the_features() -> None:
    segments_t = np.array([(4.1, 4.3), (95.0, 140.0), (-0.4, -0.2), (99.0, 99.9)])
    facts = build("spot", feature_width=8, num_classes=2).facts
    assert facts.uncovered(segments_t, 100) == [None, OUTSIDE, None, None]
