"""Checkpoints of the train state: asynchronous, atomic, and loud when they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from apl_jax.structs import PyTree
from apl_jax.training.state import TrainState

_KEPT = 2  # newest checkpoints; the previous one stays until the next is whole


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or does not fit; the message says which leaves and what to do."""


class Checkpoints:
    """The checkpoints of one stage, in one folder: one of the two objects that remember things between calls."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={"state": ocp.StandardCheckpointHandler()},
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
        if self._manager.latest_step() == step:
            return
        try:
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), force=force)
        except (OSError, ValueError) as error:
            raise self._failed_write(step, error) from error

    def finish(self) -> None:
        """Waits for pending writes."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed_write(self.latest(), error) from error

    def _failed_write(self, step: int | None, error: Exception) -> CheckpointError:
        reason = str(error).partition(" [")[0][:200]  # what follows is the storage library's own trace
        return CheckpointError(
            f"{self.folder}: could not write the checkpoint of step {step} ({reason}). Earlier checkpoints are intact. "
            "Free some disk space or choose another `workdir`, then run the same command again: it resumes."
        )

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The newest (or given) state, in the shapes, dtypes and shardings of ``like``.

        Raises :class:`CheckpointError` listing the leaves that differ when the checkpoint is of another model.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise CheckpointError(f"{self.folder}: found no checkpoint. Run the stage that writes it first.")
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        self._refuse_mismatch(target, step)
        restored: Any = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
        return restored.state

    def _refuse_mismatch(self, target: TrainState, step: int) -> None:
        saved: Any = self._manager.item_metadata(step)
        saved = saved.state
        saved = getattr(saved, "tree", saved)
        found, expected = _shapes(saved), _shapes(target)
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


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    def name(path: tuple) -> str:
        return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)

    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}
