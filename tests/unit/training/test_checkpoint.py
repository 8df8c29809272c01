"""A checkpoint is what was saved, or it is not used: names of folders, flipped bits, numbers that are not finite."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from apl_jax.devices import build_mesh, place, replicated
from apl_jax.training.checkpoint import DAMAGED, CheckpointError, Checkpoints, state_digest
from apl_jax.training.state import TrainState

# After a failed read, the storage library leaves tasks to an event loop that it has closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(step: int, value: float = 1.0) -> Any:
    # Noise is kept as it stands, for it cannot be compressed: a flipped bit of it is another number, and no damage that
    # the storage library could see.
    noise = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    leaves = {"w": jnp.asarray(noise) * value, "b": jnp.full(3, value, jnp.bfloat16)}
    tree = TrainState(jnp.int32(step), {"d": leaves}, {"d": leaves}, ({"m": leaves},), {"icd": jnp.uint32(7)})
    return place(tree, replicated(build_mesh(1)))


def saved(folder: Path, *steps: int, value: float = 1.0) -> Path:
    store = Checkpoints(folder / "checkpoints", 1)
    for step in steps:
        store.save(state(step, value), step, force=True)
    store.close()
    return folder / "checkpoints"


@pytest.mark.parametrize("name", ["a[1]", "with space", "ü~ʒ", "a?*b", "x{1}%20#"])
def test_point_16_any_name_of_a_folder_is_restored_from(name: str, tmp_path: Path) -> None:
    store = Checkpoints(saved(tmp_path / name, 1, 2), 1)
    found = store.resume(state(0))
    assert found is not None and state_digest(found) == state_digest(state(2))
    store.close()


def test_point_10_flipped_bits_never_load(tmp_path: Path) -> None:
    """Every other file of the newest is flipped in the middle: what is restored is what was saved, then or before."""
    pristine = saved(tmp_path / "pristine", 1, 2)
    files = [path.relative_to(pristine) for path in (pristine / "2" / "state").rglob("*") if path.is_file()]
    fell_back = 0
    for number, name in enumerate(sorted(files)[::2]):
        folder = Path(shutil.copytree(pristine, tmp_path / str(number) / "checkpoints"))
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 4
        (folder / name).write_bytes(content)
        store = Checkpoints(folder, 1)
        found = store.resume(state(0))
        assert found is not None and state_digest(found) == state_digest(state(int(found.step))), name
        if int(found.step) == 1:
            assert (folder.parent / DAMAGED / "2-0").is_dir()
            store.save(state(2), 2, force=True)
            fell_back += 1
        store.close()
    assert fell_back >= 3


def test_a_renamed_or_infinite_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    (folder / "1").rename(folder / "3")
    store = Checkpoints(folder, 1)
    with pytest.raises(CheckpointError, match="step 3 does not hold the state that was saved there"):
        store.restore(state(0))
    store.close()
    store = Checkpoints(saved(tmp_path / "other", 1, value=np.inf), 1)
    with pytest.raises(CheckpointError, match=r"not finite, in \.params"):
        store.restore(state(0))
    store.close()


def test_point_14_nothing_whole_is_no_state(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    (folder / "1" / "state" / "_METADATA").write_text("")
    store = Checkpoints(folder, 1)
    assert store.resume(state(0)) is None and store.latest() is None
    store.close()


def test_a_digest_is_of_names_types_shapes_and_bytes() -> None:
    a = jnp.zeros((2, 3), jnp.float32)
    others = [{"b": a}, {"a": a.reshape(3, 2)}, {"a": a.astype(jnp.int32)}, {"a": a.at[1, 2].set(-0.0)}]
    assert len({state_digest(tree) for tree in ({"a": a}, *others)}) == 5
    assert state_digest({"a": a}) == state_digest({"a": a + 0})
