"""Suppression and voting beside a twin that loops over classes and candidates (spec 1.9); recorded cases of the
reference are in ``golden/test_nms_parity.py``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.ops.suppression import Picks, suppress, vote

M = 60
SETTINGS = {"sigma": 0.4, "iou_threshold": 0.3, "min_score": 0.02}


def candidates(seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Segments, scores, labels and mask of M candidates, a fifth of them absent."""
    draws = np.random.default_rng(seed)
    start = draws.uniform(0, 30, M)
    segments = np.stack([start, start + draws.uniform(0, 12, M)], -1).astype(np.float32)
    scores = draws.uniform(0, 1, M).astype(np.float32) ** 2
    scores = np.round(scores, 1) if ties else scores
    return segments, scores, draws.integers(0, 3, M).astype(np.int32), draws.random(M) < 0.8


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    inner = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return inner / ((a[1] - a[0] + 1e-6) + (b[1] - b[0] + 1e-6) - inner)


def one_class(segments: np.ndarray, scores: np.ndarray, rows: list[int], method: str) -> list[tuple[int, float]]:
    """Picks (row, score) among ``rows``."""
    remaining = {r: float(scores[r]) for r in rows if method == "gaussian" or scores[r] > SETTINGS["min_score"]}
    picks = []
    while remaining:
        best = max(remaining, key=lambda r: (remaining[r], -r))
        picks.append((best, remaining.pop(best)))
        for r in list(remaining):
            tiou = overlap(segments[best], segments[r])
            if method == "hard" and tiou >= SETTINGS["iou_threshold"]:
                del remaining[r]
            elif method == "gaussian":
                remaining[r] *= float(np.exp(-(tiou**2) / SETTINGS["sigma"]))
                if remaining[r] < SETTINGS["min_score"]:
                    del remaining[r]
    return picks


def twin(segments, scores, labels, mask, method: str, class_wise: bool) -> list[tuple[int, float]]:
    """Each class on its own, concatenated and sorted; or all together."""
    groups = [np.flatnonzero(mask & (labels == c)) for c in range(3)] if class_wise else [np.flatnonzero(mask)]
    picks = [pick for rows in groups for pick in one_class(segments, scores, list(rows), method)]
    return sorted(picks, key=lambda pick: -pick[1])


def run(data: tuple, method: str, class_wise: bool, count: int) -> Picks:
    keywords = SETTINGS | {"method": method, "class_wise": class_wise, "max_detections": count}
    return jax.device_get(jax.jit(lambda *arrays: suppress(*arrays, **keywords))(*data))


@pytest.mark.parametrize("method", ["gaussian", "hard"])
@pytest.mark.parametrize("class_wise", [True, False])
def test_twin(method: str, class_wise: bool) -> None:
    for seed in range(5):
        data = candidates(seed)
        expected, picks = twin(*data, method, class_wise), run(data, method, class_wise, M)
        assert picks.mask.sum() == len(expected) >= 5
        assert picks.mask[: len(expected)].all()
        assert picks.row[picks.mask].tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(picks.score[picks.mask], [score for _, score in expected], rtol=1e-4)
        assert not picks.score[~picks.mask].any()
        fewer = run(data, method, class_wise, 4)
        assert fewer.row.tolist() == picks.row[:4].tolist() and fewer.mask.all()


def test_of_equal_scores_the_first_wins() -> None:
    segments, scores, labels, mask = candidates(1, ties=True)
    mask[:] = True
    picks = run((segments, scores, labels, mask), "gaussian", True, M)
    assert picks.row[0] == np.flatnonzero(scores == scores.max())[0]


def test_nothing_and_all_absent() -> None:
    segments, scores, labels, mask = candidates(0)
    for method in ("gaussian", "hard"):
        picks = run((segments, scores, labels, np.zeros_like(mask)), method, True, 7)
        assert not picks.mask.any() and not picks.score.any()


def test_a_weak_only_candidate_survives_soft_suppression() -> None:
    """As in the reference, min_score filters what a pick has decayed, and the hard form only from the start."""
    data = np.float32([[0, 1]]), np.float32([0.001]), np.int32([0]), np.array([True])
    assert run(data, "gaussian", True, 2).mask.tolist() == [True, False]
    assert run(data, "hard", True, 2).mask.tolist() == [False, False]


def test_vote_twin() -> None:
    segments, scores, _, mask = candidates(3)
    picked = np.concatenate([segments[mask][:10], np.float32([[100, 101]])])
    found = jax.jit(vote, static_argnums=4)(picked, segments, scores, mask, 0.5)
    for before, after in zip(picked, found, strict=True):
        near = [(scores[m] * overlap(before, segments[m]), segments[m]) for m in np.flatnonzero(mask)
                if overlap(before, segments[m]) >= 0.5]  # fmt: skip
        total = sum(weight for weight, _ in near)
        expected = sum(weight * segment for weight, segment in near) / total if near else before
        np.testing.assert_allclose(after, expected, rtol=1e-5)
    assert jnp.abs(found[:10] - picked[:10]).max() > 0.1
