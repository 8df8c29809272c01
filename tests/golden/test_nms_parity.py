"""Non-maximum suppression against the reference's C++: 12 recorded settings, and the specification's example (1.9)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.ops import suppression

GOLDEN = Path(__file__).parent
CASES = 12


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    """600 segments of 6 classes, and what the reference keeps of them."""
    with np.load(GOLDEN / "nms.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def suppressed(
    segments: np.ndarray, scores: np.ndarray, labels: np.ndarray, settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kept segments, scores and labels under settings in the reference's names."""
    voting = 0.0 if settings["multiclass"] else settings["voting_threshold"]

    @jax.jit
    def run(segments: jax.Array, scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, suppression.Picks]:
        mask = jnp.ones(len(scores), bool)
        picks = suppression.suppress(
            segments, scores, labels, mask,
            method="gaussian" if settings["soft"] else "hard", sigma=settings["sigma"],
            iou_threshold=settings["iou_threshold"], min_score=settings["min_score"],
            max_detections=min(settings["max_segments"], len(scores)), class_wise=settings["multiclass"],
        )  # fmt: skip
        kept = segments[picks.row]
        return suppression.vote(kept, segments, scores, mask, voting) if voting > 0 else kept, picks

    kept, picks = jax.device_get(run(jnp.asarray(segments), jnp.asarray(scores), jnp.asarray(labels, jnp.int32)))
    count = int(picks.mask.sum())
    assert picks.mask[:count].all()
    return kept[:count], picks.score[:count], labels[picks.row[:count]]


@pytest.mark.parametrize("number", range(CASES))
def test_recorded_case(recorded: dict[str, np.ndarray], number: int) -> None:
    settings = json.loads(str(recorded["cases"]))
    assert len(settings) == CASES
    segments, scores, labels = suppressed(
        recorded["segments"], recorded["scores"], recorded["labels"], settings[str(number)]
    )
    expected = {name: recorded[f"out/{number}/{name}"] for name in ("segments", "scores", "labels")}
    assert (labels == expected["labels"]).all() and len(labels) == len(expected["labels"]) > 40
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(segments, expected["segments"], atol=1e-5, rtol=1e-5)


SEGMENTS = np.float32([(0, 10), (1, 11), (2, 8), (20, 30), (21, 29), (0, 30), (50, 51)])
SCORES = np.float32([0.9, 0.8, 0.7, 0.85, 0.6, 0.5, 0.0005])
LABELS = np.array([0, 0, 1, 0, 1, 0, 0])
# Setting: what is kept as (segment, score, label).
EXAMPLE = {
    "class_wise": (
        {"multiclass": True, "sigma": 0.5, "voting_threshold": 0.0},
        [((0, 10), 0.9, 0), ((20, 30), 0.85, 0), ((2, 8), 0.7, 1), ((21, 29), 0.6, 1), ((0, 30), 0.32059, 0),
         ((1, 11), 0.16793, 0)],
    ),
    "agnostic": (
        {"multiclass": False, "sigma": 0.75, "voting_threshold": 0.9},
        [((0, 10), 0.9, 0), ((20, 30), 0.85, 0), ((2, 8), 0.433148, 1), ((0, 30), 0.352475, 0),
         ((21, 29), 0.232475, 1), ((1, 11), 0.174845, 0)],
    ),
    "agnostic_voting": (
        {"multiclass": False, "sigma": 0.5, "voting_threshold": 0.7},
        [((0.42105, 10.42105), 0.9, 0), ((20.3609, 29.6391), 0.85, 0), ((2, 8), 0.340727, 1), ((0, 30), 0.295942, 0),
         ((20.46875, 29.53125), 0.144707, 1), ((0.52071, 10.52071), 0.08174, 0)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLE)
def test_worked_example(name: str) -> None:
    changes, expected = EXAMPLE[name]
    settings = {"soft": True, "iou_threshold": 0.1, "min_score": 0.001, "max_segments": 200} | changes
    segments, scores, labels = suppressed(SEGMENTS, SCORES, LABELS, settings)
    # The last candidate is below min_score. Class-agnostic or not, it is never picked first, so it is discarded.
    assert labels.tolist() == [label for _, _, label in expected]
    np.testing.assert_allclose(scores, [score for _, score, _ in expected], atol=5e-6, rtol=0)
    np.testing.assert_allclose(segments, [segment for segment, _, _ in expected], atol=1e-4, rtol=0)
