"""Rules: what they say of data sets whose published, or hand-made, configuration is known (docs/configure.md)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apl_jax.configuration.facts import Facts
from apl_jax.configuration.rules import levels_of, propose
from apl_jax.declarations import override
from apl_jax.detectors import build_detector
from apl_jax.runs.settings import default_config, to_settings
from apl_jax.structs import DataFacts

TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
# SFINGE3D's five labelled recordings (specification: configure): facts about it, not its data.
SFINGE = Facts(
    name="sfinge", root=Path("sfinge"), classes=13, labelled=5, training=48,
    samples=np.linspace(116, 688, 72).astype(int), fps=20.0, rates=1, windowed=True,
    stride=1, window=1, columns=66, constant=3, neighbours=0.97, lengths_s=np.repeat([1.64, 2.15, 3.28], [2, 16, 2]),
    class_counts=np.r_[np.ones(8), np.full(4, 2), 4].astype(int), most_instances=5, covered=0.4, concurrent=0.0,
    digest="",
)  # fmt: skip


def changed(**changes: Any) -> Facts:
    return dataclasses.replace(SFINGE, **changes)


def test_rows_finer_than_the_actions_are_windowed() -> None:
    found = propose(SFINGE, TIOU)
    expected = {
        "data.features": "signal", "data.fps": 20.0, "data.stride": 4, "data.window": 8, "data.max_length_t": 176,
        "detector.branch_blocks": 3, "detector.windows": (9, 9, 9, 9), "detector.width": 64,
        "detector.decoding.sigma": 0.5, "detector.decoding.class_wise": True, "detector.decoding.max_detections": 100,
        "detector.decoding.top_k_per_level": 1000, "learning.supervised.labelled_batch": 4,
        "learning.supervised.steps": 500, "learning.supervised.optimizer.learning_rate": 1e-3,
        "learning.supervised.optimizer.ema_decay": 0.994,
    }  # fmt: skip
    assert {path: found.value(path) for path in expected} == expected
    assert [w for w in found.warnings if "one labelled instance" in w] == [
        "8 of 13 classes have one labelled instance: none to hold out while it is learnt"
    ]


def test_wide_rows_stay_and_the_lower_ranges_go() -> None:
    found = propose(changed(columns=2048), TIOU)
    assert (found.value("data.stride"), found.value("data.window")) == (1, 1)
    assert found.value("detector.regression_ranges")[0][1] > 4.0


@pytest.mark.parametrize("windowed", [True, False])
def test_a_stride_that_nobody_knows_is_that_of_the_rule(windowed: bool) -> None:
    facts = changed(windowed=windowed)
    same = "detector.branch_blocks", "detector.regression_ranges"
    ruled, found = (propose(facts, TIOU, given) for given in ({"data.features": "stored"}, {"data.stride": 0}))
    assert [found.value(path) for path in same] == [ruled.value(path) for path in same]


@pytest.mark.parametrize(("samples", "stride"), [(2000, 3), (8000, 3), (12000, 4), (20000, 6), (90000, 6)])
def test_rows_are_fine_unless_recordings_get_long(samples: int, stride: int) -> None:
    """Instances of 1.6 s and more at 20 samples per second, scored up to .75: 5.2 rows of them are needed."""
    facts = changed(windowed=False, samples=np.full(9, samples // 5), lengths_s=np.full(50, 1.6))
    found = propose(facts, (0.5, 0.75))
    assert found.value("data.stride") == stride
    needed, rows = 1.3 / 0.25, 1.6 * 20 / found.value("data.stride")
    assert needed <= rows and (rows <= 2 * needed + 2 or samples < 8000)


@pytest.mark.parametrize("windowed", [True, False])
def test_what_a_person_has_given_is_what_the_other_rules_follow(windowed: bool) -> None:
    """Found with `configure --config.data.stride=10`: recordings were said to have half as many rows as they had then,
    and were cut to that."""
    facts = changed(windowed=windowed)
    ruled, found = propose(facts, TIOU), propose(facts, TIOU, {"data.stride": 2})
    assert found.value("data.stride") == ruled.value("data.stride") != 2  # what the rule says, for whoever asks
    assert found.value("data.window") == 4
    crops = ruled.value("data.max_length_t"), found.value("data.max_length_t")
    assert crops[0] < (facts.samples.max() - 4) // 2 + 1 <= crops[1]
    assert found.value("detector.branch_blocks") > ruled.value("detector.branch_blocks") - 1
    long = 3.28 / 0.1  # rows of the longest instances
    assert f"up to {long:.1f} rows" in next(x.reason for x in found.lines if x.path == "detector.branch_blocks")
    short = propose(facts, TIOU, {"data.max_length_t": 40})
    assert short.value("learning.supervised.labelled_batch") >= ruled.value("learning.supervised.labelled_batch")
    assert "crops of 40 rows" in next(x.reason for x in short.lines if x.path == "learning.pretext.partitions")


@pytest.mark.parametrize(("rows", "level"), [(1, 0), (8, 0), (8.1, 1), (16, 1), (22, 2), (93, 4), (249, 5), (0, 0)])
def test_level_of_an_instance(rows: float, level: int) -> None:
    assert levels_of(np.array([float(rows)]))[0] == level


def test_levels_of_published_data_sets() -> None:
    """THUMOS14 has 6, and ActivityNet's 192 rows 6, without a spare one: its longest fill the recording."""
    rows = np.full(100, 1129)
    thumos = changed(
        stride=4, window=16, fps=30.0, samples=rows, columns=2048,
        lengths_s=np.quantile([4.5, 5.3, 22, 93, 120], np.linspace(0, 1, 101)) * 4 / 30,
    )  # fmt: skip
    assert propose(thumos, TIOU).value("detector.branch_blocks") == 5
    lengths = np.r_[np.linspace(3.6, 62, 50), np.linspace(62, 192, 50)]
    activitynet = changed(samples=np.full(100, 192), columns=2048, lengths_s=lengths / 20)
    found = propose(activitynet, (0.5, 0.95))
    assert found.value("detector.branch_blocks") == 5 and found.value("detector.windows")[-1] == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_data_set_gets_a_configuration_that_builds(seed: int) -> None:
    """Rates, widths, lengths and classes at random: the settings are legal, and the detector can be built."""
    draws = np.random.default_rng(seed)
    fps = float(10 ** draws.uniform(-0.3, 3))
    windowed, classes, labelled = bool(draws.integers(2)), int(draws.integers(1, 40)), int(draws.integers(1, 300))
    durations = 10 ** draws.uniform(0.5, 3.5) * draws.uniform(0.5, 2, 50)
    lengths = durations.min() * 10 ** draws.uniform(-2.5, -0.1, int(draws.integers(1, 2000)))
    facts = changed(
        fps=fps, windowed=windowed, classes=classes, labelled=labelled,
        samples=np.maximum(durations * fps, 2).astype(int), columns=int(10 ** draws.uniform(0, 3.5)), lengths_s=lengths,
        class_counts=np.ones(classes, int), covered=float(draws.uniform(0, 1)), concurrent=float(draws.uniform(0, 0.5)),
    )  # fmt: skip
    found = propose(facts, TIOU)
    settings = override(to_settings(default_config()), {line.path: line.value for line in found.lines})
    assert all(line.reason for line in found.lines)
    width = facts.columns * (settings.data.window if not windowed or settings.data.features == "signal" else 1)
    build_detector(settings.detector, DataFacts(width, classes, settings.data.max_length_t))
    assert settings.data.max_length_t % settings.data.length_multiple == 0
    levels = settings.detector.settings.branch_blocks + 1
    assert settings.data.length_multiple % 2 ** (levels - 1) == 0
