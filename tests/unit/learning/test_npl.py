"""NPL-style ranking and filtering, beside a twin that visits detections one by one (spec 6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.learning.npl import NplStyleSettings, border_agreement, build_npl_style
from apl_jax.learning.selection import unselected
from apl_jax.structs import DataFacts, Detections, Reason

SETTINGS = NplStyleSettings(threshold=0.4, tau_neg=0.1, gamma=0.5, least_threshold=0.15)
CLASSES = 3


def detections(seed: int = 0, videos: int = 3, count: int = 24) -> Detections:
    draws = np.random.default_rng(seed)
    start = draws.integers(0, 4, (videos, count)) * 10 + 1.5 * draws.normal(size=(videos, count))
    segments_t = np.stack([start, start + 6 + draws.normal(size=start.shape)], -1)
    labels = draws.choice(CLASSES, (videos, count), p=(0.6, 0.3, 0.1))
    score = draws.uniform(0.05, 1, start.shape)
    confidence = score * draws.uniform(0.3, 1, start.shape)
    one, mask = np.ones_like(start), np.arange(count) < count - np.arange(videos)[:, None]
    numbers = (jnp.asarray(x, jnp.float32) for x in (confidence, score, one, 0 * one))
    return Detections(jnp.asarray(segments_t, jnp.float32), jnp.asarray(labels, jnp.int32), *numbers, jnp.asarray(mask))


def twin(found: Detections, v: int, k: int, overlap: float) -> float:
    """The agreement about the borders of one detection."""
    segments_t, labels, score, mask = (
        np.asarray(x[v]) for x in (found.segments_t, found.labels, found.score, found.mask)
    )
    a, b = segments_t[k]
    near = []
    for j in range(len(mask)):
        inner = min(b, segments_t[j, 1]) - max(a, segments_t[j, 0])
        union = (b - a) + (segments_t[j, 1] - segments_t[j, 0]) - max(inner, 0)
        if mask[j] and labels[j] == labels[k] and inner / union > overlap:
            near.append(j)
    weight = score[near] / score[near].sum()
    mean = weight @ segments_t[near]
    variance = (weight[:, None] * (segments_t[near] - mean) ** 2).sum()
    return float(np.exp(-variance / (b - a) ** 2))


def test_agreement() -> None:
    found = detections()
    agreement = np.asarray(jax.jit(jax.vmap(lambda one: border_agreement(one, 0.5)))(found))
    rows = np.argwhere(np.asarray(found.mask))
    expected = [twin(found, v, k, 0.5) for v, k in rows]
    np.testing.assert_allclose(agreement[tuple(rows.T)], expected, rtol=1e-4)
    assert min(expected) < 0.9 and max(expected) == 1  # some are alone


def test_thresholds_by_class_and_weights() -> None:
    found, link = detections(), build_npl_style(SETTINGS, DataFacts(4, CLASSES))

    @jax.jit
    def run(found: Detections) -> tuple:
        observed = link.observe(None, None, found)  # type: ignore[arg-type]
        return observed, link.select(link.init(), unselected(found), observed)[1]

    agreement, labels = jax.device_get(run(found))
    score, mask = np.asarray(found.confidence) * agreement, np.asarray(found.mask)
    counts = [int((mask & (np.asarray(found.labels) == c) & (score >= 0.4)).sum()) for c in range(CLASSES)]
    assert counts[0] > counts[1] > counts[2]
    for v, k in np.argwhere(mask):
        tau = max(0.4 * (counts[found.labels[v, k]] / counts[0]) ** 0.5, 0.15)
        expected = Reason.BELOW_THRESHOLD
        if score[v, k] > 0.1:
            expected = Reason.KEPT if score[v, k] >= tau else Reason.CANDIDATE
        assert labels.reason[v, k] == expected
        weight = agreement[v, k] if expected == Reason.KEPT else 0
        np.testing.assert_allclose(labels.weight[v, k], weight, rtol=1e-6)
    assert {int(r) for r in labels.reason[mask]} == {Reason.KEPT, Reason.CANDIDATE, Reason.BELOW_THRESHOLD}
    assert not labels.weight[~mask].any()
