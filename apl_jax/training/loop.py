"""The one training loop. It names no model, no loss and no data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from tqdm import tqdm

from apl_jax.devices import to_host
from apl_jax.feeds.resident import Feed
from apl_jax.interruption import Preempted, requested
from apl_jax.settings import RuntimeSettings
from apl_jax.structs import Array
from apl_jax.text import Refusal
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.training.state import TrainState
from apl_jax.training.step import Dispatch
from apl_jax.training.writers import MetricWriter


class NotFiniteError(Refusal, RuntimeError):
    """A loss that became NaN or infinite."""


class Plan(NamedTuple):
    """How long, and in which portions, ``fit`` runs."""

    name: str
    steps: int
    steps_per_dispatch: int
    runtime: RuntimeSettings


def fit(
    state: TrainState, dispatch: Callable[[int], Dispatch], key: Array, feed: Feed, plan: Plan,
    store: Checkpoints, writer: MetricWriter,
) -> TrainState:  # fmt: skip
    """Trains from ``state.step`` to ``plan.steps``, checkpointing on the way; returns the final state.

    Args:
        state: fresh, or restored; the portions begin at multiples of ``steps_per_dispatch``, or of the divisor of it
            that the feed can bring at once, so that a resumed run executes the very programs of an uninterrupted one.
        dispatch: compiled step by number of steps.
        key: of the stage, on the devices.
        feed: where the batches of any steps come from.

    Raises:
        NotFiniteError: naming the steps and the terms that are not finite.
        Preempted: after a request to stop, once the state is saved.
    """
    portion = feed.most_steps or plan.steps_per_dispatch
    done = int(to_host(state.step))
    progress = tqdm(total=plan.steps, initial=done, desc=plan.name, unit="step", disable=not plan.runtime.progress)
    progress.set_postfix_str("compiling, for up to a minute")
    while done < plan.steps:
        count = min(portion - done % portion, plan.steps - done)
        inputs = feed.inputs(done, count)
        with jax.transfer_guard("disallow"):
            state, metrics = dispatch(count)(state, key, inputs)
        values = {name: float(average.compute()) for name, average in to_host(metrics).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            store.finish()
            raise NotFiniteError(
                f"{plan.name}: {', '.join(bad)} not finite in steps {done} to {done + count}. The last checkpoint is "
                "intact. Try a lower `learning_rate`, or look at the features of the videos in these steps."
            )
        done += count
        progress.update(count)
        progress.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        if done % plan.runtime.log_every == 0 or done == plan.steps:
            writer.scalars(done, values)
        stop = done < plan.steps and requested()
        every = plan.runtime.checkpoint_every
        due = done // every > (done - count) // every  # dispatches need not end at multiples of it
        store.save(state, done, force=due or stop or done == plan.steps)
        if stop:
            store.finish()
            progress.close()
            raise Preempted(
                f"{plan.name}: stopped at step {done} of {plan.steps}, state saved: the same command goes on"
            )
    progress.close()
    store.finish()
    return state
