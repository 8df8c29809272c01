"""Checkpoints of the train state: asynchronous, atomic, and loud when they do not fit or are not what was saved."""

from __future__ import annotations

import gc
import hashlib
import itertools
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from apl_jax.data.files import move, sync_folder
from apl_jax.devices import to_host
from apl_jax.structs import PyTree
from apl_jax.text import Refusal
from apl_jax.training.state import TrainState

DAMAGED = "damaged_checkpoints"  # where those go that cannot be read
_KEPT = 2  # newest checkpoints; the previous one stays until the next is whole
log = logging.getLogger(__name__)


class CheckpointError(Refusal, RuntimeError):
    """A checkpoint that cannot be written or does not fit; the message says which leaves and what to do."""


class Checkpoints:
    """The checkpoints of one stage, in one folder: one of the two objects that remember things between calls."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder.absolute()
        self._alias = _plain_alias(self.folder)
        self._manager = ocp.CheckpointManager(
            self._alias or self.folder,
            item_handlers={"state": ocp.StandardCheckpointHandler(), "digest": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=policies.FixedIntervalPolicy(every),
                preservation_policy=policies.LatestN(_KEPT),
                enable_async_checkpointing=True,
                create=True,
            ),
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, *, force: bool = False) -> None:
        """Starts writing if the interval or ``force`` asks for it; a failed write surfaces here or in
        :meth:`finish` as :class:`CheckpointError`, and leaves the earlier checkpoints as they were."""
        if self._manager.latest_step() == step or not (force or self._manager.should_save(step)):
            return
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state), digest=ocp.args.JsonSave({"sha256": state_digest(state)})
        )
        try:
            self._manager.save(step, args=content, force=True)
        except (OSError, ValueError) as error:
            raise self._failed_write(step, error) from error
        sync_folder(self.folder)  # the checkpoint before is complete by now: may its name outlast a power failure

    def finish(self) -> None:
        """Waits for pending writes."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed_write(self.latest(), error) from error
        sync_folder(self.folder)

    def _failed_write(self, step: int | None, error: Exception) -> CheckpointError:
        reason = str(error).partition(" [")[0][:200]  # what follows is the storage library's own trace
        return CheckpointError(
            f"{self.folder}: could not write the checkpoint of step {step} ({reason}). Earlier checkpoints are intact. "
            "Free some disk space or choose another `workdir`, then run the same command again: it resumes."
        )

    def resume(self, like: TrainState) -> TrainState | None:
        """The newest state that is whole, as :meth:`restore`; None where there is none.

        Those that are not are moved to ``damaged_checkpoints`` beside this folder, and named in the log.
        """
        damaged = False
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, reason = None, f"{self.folder / str(step)}: another process cannot read it."
            try:
                state = self.restore(like, step)
            except CheckpointError as error:
                reason = str(error)
            if state is None:
                _forget_failed_read()
            if _on_all_processes(state is not None):
                if damaged:
                    log.info("note: going on from the checkpoint of step %d instead", step)
                return state
            damaged = True
            log.info("note: %s\nIt was moved to %s.", reason, self._move_aside(step))
        if damaged:
            log.info("note: %s: no checkpoint is whole; the stage begins anew", self.folder)
        return None

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The newest (or given) state, in the shapes, dtypes and shardings of ``like``.

        Raises :class:`CheckpointError` when there is none, when it is of another model (with the leaves that differ),
        and when it cannot be read, is not what was saved, or holds numbers that are not finite.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise CheckpointError(f"{self.folder}: found no checkpoint. Run the stage that writes it first.")
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(target), digest=ocp.args.JsonRestore())
        try:
            self._refuse_mismatch(target, step)
            restored: Any = self._manager.restore(step, args=wanted)
            found, expected = state_digest(restored.state), restored.digest["sha256"]
        except (CheckpointError, MemoryError, PermissionError):
            raise
        except Exception as error:  # of any kind: the library trips over damaged files in many places
            if "RESOURCE_EXHAUSTED" in str(error):  # memory, not the file
                raise
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            words = words.partition(" [")[0].partition(". See full")[0][:200]  # what follows is the library's own trace
            raise self._not_whole(step, f"cannot be read ({words})") from error
        if found != expected or int(to_host(restored.state.step)) != step:
            raise self._not_whole(step, "does not hold the state that was saved there")
        if broken := _not_finite(restored.state):
            raise self._not_whole(step, f"holds numbers that are not finite, in {broken}")
        return restored.state

    def _not_whole(self, step: int, what: str) -> CheckpointError:
        return CheckpointError(f"{self.folder / str(step)}: the checkpoint of step {step} {what}.")

    def _move_aside(self, step: int) -> Path:
        """Moves a checkpoint out of the way and returns where to."""
        shelf = self.folder.parent / DAMAGED
        place = next(p for n in itertools.count() if not os.path.lexists(p := shelf / f"{step}-{n}"))
        if jax.process_count() > 1:  # all have looked at the shelf before anything is put there
            multihost_utils.sync_global_devices("damaged checkpoint found")
        if jax.process_index() == 0:
            shelf.mkdir(exist_ok=True)
            move(self.folder / str(step), place)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint moved")
        self._manager.reload()
        return place

    def _refuse_mismatch(self, target: TrainState, step: int) -> None:
        saved: Any = self._manager.item_metadata(step)
        saved = saved.state
        saved = getattr(saved, "tree", saved)
        found, expected = _shapes(saved), _shapes(target)
        if not found:
            raise self._not_whole(step, "does not say what it holds: its _METADATA is not there or empty")
        wrong = [
            f"  {name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
            for name in sorted(set(found) | set(expected))
            if found.get(name) != expected.get(name)
        ]
        if wrong:
            # The optimiser's moments and the average repeat what is wrong with the parameters.
            wrong = [line for line in wrong if line.startswith("  params/")] or wrong
            more = f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} is of another model:\n" + "\n".join(wrong[:8]) + more +
                "\nRun with the settings it was made with (settings.json beside it), or choose another `workdir`."
            )  # fmt: skip

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self.finish()
        self._manager.close()
        if self._alias is not None:
            self._alias.unlink(missing_ok=True)
            self._alias.parent.rmdir()


def state_digest(state: PyTree) -> str:
    """The SHA-256 of the names, types, shapes and bytes of all leaves; of the same state, the same on any devices."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_host(state)):
        array = np.asarray(leaf, order="C")
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _not_finite(state: TrainState) -> str:
    """The first leaf with a number that is not finite; "" where there is none."""
    leaves = jax.tree_util.tree_leaves_with_path(to_host(state))
    floats = ((path, np.asarray(leaf)) for path, leaf in leaves if jax.numpy.issubdtype(leaf.dtype, np.floating))
    return next((jax.tree_util.keystr(path) for path, array in floats if not np.isfinite(array).all()), "")


def _forget_failed_read() -> None:
    """Clears away what the storage library leaves of a failed read: coroutines, of which each would complain on the
    terminal at some later moment."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    finally:
        sys.unraisablehook = hook


def _on_all_processes(fine: bool) -> bool:
    """Whether all processes say so: they must take the same decision."""
    if jax.process_count() == 1:
        return fine
    return bool(multihost_utils.process_allgather(np.array(fine)).all())


def _plain_alias(folder: Path) -> Path | None:
    """Another name for a folder whose own holds what tensorstore takes for a pattern, such as ``a[1]``: it would look
    for the parts of a checkpoint in other places than it has written them to. None where the own name will do."""
    if "[" not in str(folder):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    alias = Path(tempfile.mkdtemp(prefix="apl_jax_")) / "checkpoints"
    alias.symlink_to(folder, target_is_directory=True)
    return alias


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    def name(path: tuple) -> str:
        return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)

    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}
