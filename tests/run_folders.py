"""Comparing the states that two runs left."""

from __future__ import annotations

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
