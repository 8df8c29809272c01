"""Comparing the states that two runs left."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from orbax import checkpoint as ocp


def final_state(workdir: Path, stage: str) -> dict[str, np.ndarray]:
    folder = workdir / "stages" / stage / "checkpoints"
    step = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    tree = ocp.StandardCheckpointer().restore(folder / str(step) / "state")
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_state(one: Path, other: Path, stage: str) -> None:
    a, b = final_state(one, stage), final_state(other, stage)
    assert a.keys() == b.keys() and len(a) > 100
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=f"{stage}: {name}")


def assert_same_files(one: Path, other: Path) -> None:
    """Models, pseudo labels and predictions of all stages byte for byte; results but for seconds and the command."""
    names = ("params.safetensors", "pseudo_labels.json", "predictions.json", "label_space.json", "metrics.jsonl")
    files = [
        {path.relative_to(folder): path.read_bytes() for name in names for path in folder.glob(f"stages/*/**/{name}")}
        for folder in (one, other)
    ]
    assert files[0].keys() == files[1].keys() and files[0]
    for path in files[0]:
        assert files[0][path] == files[1][path], path
    results = [_without_times(json.loads((folder / "results.json").read_text())) for folder in (one, other)]
    assert results[0] == results[1]


def _without_times(found: object) -> object:
    if isinstance(found, dict):
        return {key: _without_times(value) for key, value in found.items() if key not in ("seconds", "command")}
    return found
