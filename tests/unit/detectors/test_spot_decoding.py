"""SPOT's decoding beside a twin that looks for proposals one by one (spec 3.5)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES
from snippet_outputs import TINY, WINDOWS, outputs_of, targets_of

from apl_jax.detectors.spot import SpotOutputs, assign_snippets, decode_detections
from apl_jax.detectors.spot_settings import SpotSettings


def twin_proposals(o: SpotOutputs, v: int, s: SpotSettings) -> dict[tuple, float]:
    """All proposals of video v, as (window, first, last, class) with their confidence."""
    d = s.decoding
    p = np.exp(np.asarray(o.class_logits[v], np.float64))
    p /= p.sum(-1, keepdims=True)
    valid, action = np.asarray(o.snippet_mask[v]), p[..., :-1] * np.asarray(o.snippet_mask[v])[..., None]
    m = 1 / (1 + np.exp(-np.asarray(o.mask_logits[v], np.float64)))
    strongest = np.argsort(-action.max((0, 1)), kind="stable")[: d.class_candidates].tolist()
    video = int(np.asarray(o.class_logits[v])[valid].sum(0)[:-1].argmax())
    found: dict[tuple, float] = {}

    def extents(active: np.ndarray) -> list[tuple[int, int]]:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(int), [0]])))
        return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))

    for w in range(len(valid)):
        for query in np.argsort(-action[w].max(-1), kind="stable")[: d.top_snippets]:
            label = video if d.label == "video" else int(action[w, query].argmax())
            for threshold in d.mask_thresholds:
                pieces = extents((m[w, query] > threshold) & valid[w])
                if pieces and valid[w, query]:
                    first, last = min(pieces, key=lambda e: max(e[0] - query, query - e[1] + 1, 0))
                    if d.extent == "span":
                        first, last = pieces[0][0], pieces[-1][1]
                    where = slice(first, last)
                    if last - first > d.shortest_share * s.steps:
                        value = m[w, query, where].mean() * action[w, where, label].max()
                        key = w, first, last, label
                        found[key] = max(found.get(key, 0), value)
        for label in [video] if d.label == "video" else strongest:
            for threshold in d.class_thresholds:
                for first, last in extents((action[w, :, label] > threshold) & valid[w]):
                    best = first + int(action[w, first:last, label].argmax())
                    if last - first > d.shortest_share * s.steps:
                        value = m[w, best, first:last].max() * action[w, best, label]
                        key = w, first, last, label
                        found[key] = max(found.get(key, 0), value)
    return found


DECODINGS: dict[str, dict[str, Any]] = {
    "component": {},
    "span": {"extent": "span", "class_candidates": 2},
    "video": {"label": "video", "shortest_share": 0.2},
    "windows": {},
}


@pytest.mark.parametrize("name", DECODINGS)
def test_decoding_beside_a_twin(name: str) -> None:
    """Every proposal is found, whatever its place; suppression is made to remove exact duplicates only."""
    every = {"method": "hard", "iou_threshold": 0.9999, "max_detections": 400, "top_k_per_level": 400}
    windows = {"window_mode": "windows", "steps": 8} if name == "windows" else {}
    decoding = dataclasses.replace(TINY.decoding, **every, **DECODINGS[name])
    settings = dataclasses.replace(TINY, decoding=decoding, **windows)
    lengths = (20, 13, 1)
    outputs = outputs_of(settings, lengths, 20, seed=5)
    detections = jax.device_get(jax.jit(decode_detections, static_argnums=1)(outputs, settings))
    o = jax.device_get(outputs)
    for v, length in enumerate(lengths):
        expected: dict[tuple, float] = {}
        for (w, first, last, label), value in twin_proposals(o, v, settings).items():
            start, scale = float(o.start_t[v, w]), float(o.scale_t[v])
            cut_before = start > 0 and first == 0 and last - first < 4
            cut_after = start + settings.steps < length and last == settings.steps and last - first <= 4
            if name == "windows" and (cut_before or cut_after):
                continue
            key = round(start + first * scale - 0.5, 3), round(start + last * scale - 0.5, 3), label
            expected[key] = max(expected.get(key, 0), value)
        expected = {key: value for key, value in expected.items() if value > 0.001}
        rows = np.flatnonzero(detections.mask[v])
        found = {
            (*np.round(detections.segments_t[v, k].astype(float), 3).tolist(), int(detections.labels[v, k])): float(
                detections.confidence[v, k]
            )
            for k in rows
        }
        assert found.keys() == expected.keys() and len(rows) == len(found) > (4 if length > 1 else 0)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-4, err_msg=str(key))
        confidence = detections.confidence[v][rows]
        assert (np.diff(confidence) <= 0).all() and (detections.score[v][rows] >= confidence - 1e-6).all()
        assert (detections.tiou[v][rows] == 1).all() and (detections.tnd[v][rows] == 0).all()


def test_fragments_at_a_windows_end_are_left_to_the_neighbour() -> None:
    """Of windows 0-7, 4-11, 8-15 and 12-19 two see all of rows 9 or 10 to 11, and others a part of rows 10 to 12."""
    settings = dataclasses.replace(WINDOWS, decoding=dataclasses.replace(WINDOWS.decoding, sigma=0.1))
    blank = outputs_of(settings, (20,), 20)
    run = jax.jit(decode_detections, static_argnums=1)
    for segment in ((8.5, 11.5), (9.5, 12.5), (3.5, 7.5), (-0.5, 1.5), (17.5, 19.5)):
        goal = assign_snippets(blank, targets_of((*segment, 1)), settings)
        outputs = dataclasses.replace(
            blank,
            class_logits=12.0 * (2 * jax.nn.one_hot(goal.classes, CLASSES + 1) - 1),
            mask_logits=jnp.where(goal.cells_mask, 12.0, -12.0),
        )
        found = run(outputs, settings)
        sure = found.segments_t[0][found.mask[0] & (found.confidence[0] > 0.9)]
        assert sure.tolist() == [list(segment)]
