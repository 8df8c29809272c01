"""Detects in one recording with the exported model beside this file; needs numpy, jax and flatbuffers, nothing else.

    python example.py RECORDING.npy [FPS [DURATION [LEAST]]]

RECORDING.npy holds an array [time, channels] of the kind that model.json calls "features": ready-made feature "rows",
or a raw "signal". FPS (0 = unknown) is needed where model.json has none, DURATION (seconds, 0 = unknown) where its
stride is 0. Detections below the confidence LEAST, 0.1, are not shown.
"""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export

FOLDER = Path(__file__).parent


def place(values: np.ndarray, card: dict, fps: float, duration_s: float) -> tuple[np.ndarray, list[float]]:
    """The rows of the model's grid, and three clocks: centre of the first row, from row to row, length of all."""
    window, stride, fixed = card["window"], card["stride"], card["fixed_length"]
    rows, samples = values, (len(values) - 1) * stride + window
    if card["features"] == "signal":  # row g is samples g * stride to g * stride + window, one after the other
        rows = np.stack([values[i : i + window].ravel() for i in range(0, len(values) - window + 1, stride)])
        samples = len(values)
    duration_s = duration_s or samples / fps
    if card["grid"] == "rows" and stride:
        return rows, [0.5 * window / fps, stride / fps, duration_s]
    # Otherwise the rows, made as many as the model wants, divide the time that they cover in equal parts.
    last, wide = len(rows) - 1, window / stride if stride else 1.0
    covered_s = (last * stride + window) / fps if stride else duration_s
    take = lambda places: np.stack([np.interp(places, np.arange(last + 1), column) for column in rows.T], -1)
    if card["grid"] == "resize":
        rows = take((np.arange(fixed) + 0.5) * (last + 1) / fixed - 0.5)
    elif card["grid"] == "pool":  # the mean of both ends and the middle of each part
        edges = (last + wide) * np.arange(fixed + 1) / fixed - 0.5 * wide
        start, end = (np.maximum(edges[:-1], 0), np.minimum(edges[1:], last)) if last else (np.zeros(fixed),) * 2
        rows = take(np.linspace(start, end, 3)).mean(0) * (start <= end)[:, None]
    return rows, [0.5 * covered_s / len(rows), covered_s / len(rows), duration_s]


def main(recording: str, fps: str = "0", duration_s: str = "0", least: str = "0.1") -> None:
    card = json.loads((FOLDER / "model.json").read_text("utf-8"))
    program = export.deserialize(bytearray((FOLDER / "model.stablehlo").read_bytes()))
    rows, clocks = place(np.load(recording), card, float(fps) or card["fps"] or 0.0, float(duration_s))
    if len(rows) > card["length"]:
        sys.exit(f"{recording}: {len(rows)} rows, the model takes {card['length']}: export with --length={len(rows)}")
    features = np.zeros((1, card["length"], card["feature_width"]), np.float32)
    features[0, : len(rows)] = rows
    length, clocks = np.array([len(rows)], np.int32), np.array(clocks, np.float32)[:, None]
    results: dict = program.call(features, length, *clocks)  # pyright: ignore[reportAssignmentType]
    found = {name: np.asarray(array)[0] for name, array in results.items()}
    for k in np.flatnonzero(found["mask"] & (found["confidence"] >= float(least))):
        start_s, end_s = found["segments_s"][k]
        print(f"{start_s:.6f},{end_s:.6f},{card['classes'][found['labels'][k]]},{found['confidence'][k]:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
