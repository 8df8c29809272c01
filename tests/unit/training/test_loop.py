"""The training loop stops at the first number that is no number, and leaves the last good state on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apl_jax.devices import build_mesh, place, replicated
from apl_jax.feeds.resident import Feed
from apl_jax.interruption import Preempted, stoppable
from apl_jax.learning.method import Objective
from apl_jax.settings import OptimizerSettings, RuntimeSettings
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.training.loop import NotFiniteError, Plan, fit
from apl_jax.training.state import TrainState, initial_state
from apl_jax.training.step import build_dispatch, build_step
from apl_jax.training.writers import open_writers

RUNTIME = RuntimeSettings(steps_per_dispatch=2, checkpoint_every=2, log_every=2, progress=False)
AVERAGING = OptimizerSettings(ema_decay=0.5, ema_ramp=False)


def parabola(poison: float) -> Objective:
    """Minimises x^2; after the fifth step one term of the loss is multiplied by ``poison``."""

    def loss(params: dict, ema_params: dict, state: jax.Array, batches: dict, key: jax.Array):
        del ema_params, batches, key
        term = jnp.where(state >= 5, poison, 1.0) * params["x"] ** 2
        return term, (state + 1, {"role/class": term, "role/regression": jnp.zeros(())})

    return Objective(lambda key: ({"x": jnp.ones(())}, jnp.int32(0)), loss, {"x": None})  # pyright: ignore


def train(poison: float, folder: Path, runtime: RuntimeSettings = RUNTIME) -> tuple[Checkpoints, dict]:
    mesh, objective, optimizer = build_mesh(1), parabola(poison), optax.sgd(0.1)
    like = place(initial_state(jax.random.key(0), objective, optimizer), replicated(mesh))
    feed = Feed({}, lambda arrays, key, step: {}, {})
    store = Checkpoints(folder / "checkpoints", runtime.checkpoint_every)
    inputs = place(jax.random.key_data(jax.random.key(0)), replicated(mesh))
    key = jax.jit(jax.random.wrap_key_data, out_shardings=replicated(mesh))(inputs)
    step = build_step(objective, optimizer, AVERAGING)
    dispatch = lambda count: build_dispatch(step, feed, mesh, count)
    plan = Plan("lesson", 8, runtime.steps_per_dispatch, runtime)
    with contextlib.closing(open_writers(folder, 0, True)) as writer:
        fit(like, dispatch, key, feed, plan, store, writer)
    return store, like


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_term_that_is_not_finite_is_named(poison: float, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"lesson: .*role/class.* not finite in steps 4 to 6") as caught:
        train(poison, tmp_path)
    assert "role/regression" not in str(caught.value)
    store = Checkpoints(tmp_path / "checkpoints", RUNTIME.checkpoint_every)
    assert store.latest() == 4  # the last good state; the bad one was not saved
    store.close()


def test_without_poison_it_ends(tmp_path: Path) -> None:
    store, like = train(1.0, tmp_path)
    assert store.latest() == 8
    state = store.restore(like)
    assert float(state.params["x"]) == pytest.approx(0.8**8, rel=1e-5) and int(state.step) == 8
    average = 1.0
    for step in range(1, 9):
        average = 0.5 * average + 0.5 * 0.8**step
    assert float(state.ema_params["x"]) == pytest.approx(average, rel=1e-5)
    store.close()


def test_portions_go_on_at_their_own_multiples(tmp_path: Path) -> None:
    """A run that was broken off within a portion catches up first, so that it then executes the very same programs."""
    mesh, objective, optimizer = build_mesh(1), parabola(1.0), optax.sgd(0.1)
    state = initial_state(jax.random.key(0), objective, optimizer)
    state = dataclasses.replace(state, step=jnp.int32(3))
    counts: list[int] = []

    def dispatch(count: int):
        counts.append(count)
        return build_dispatch(build_step(objective, optimizer, AVERAGING), feed, mesh, count)

    feed = Feed({}, lambda arrays, key, step: {}, {})
    store = Checkpoints(tmp_path / "checkpoints", RUNTIME.checkpoint_every)
    key = jax.jit(lambda: jax.random.key(0), out_shardings=replicated(mesh))()
    plan, writer = Plan("lesson", 14, 4, RUNTIME), open_writers(tmp_path, 3, True)
    final = fit(place(state, replicated(mesh)), dispatch, key, feed, plan, store, writer)
    assert counts == [1, 4, 4, 2] and int(final.step) == 14
    writer.close()
    store.close()


def test_asked_to_stop_it_saves_at_the_end_of_a_portion(tmp_path: Path) -> None:
    """Between two checkpoints of the interval too, and the same call then goes on."""
    mesh, objective, optimizer = build_mesh(1), parabola(1.0), optax.sgd(0.1)
    feed = Feed({}, lambda arrays, key, step: {}, {})
    key = jax.jit(lambda: jax.random.key(0), out_shardings=replicated(mesh))()

    def dispatch(count: int):
        os.kill(os.getpid(), signal.SIGTERM)
        return build_dispatch(build_step(objective, optimizer, AVERAGING), feed, mesh, count)

    store = Checkpoints(tmp_path / "checkpoints", every=1000)
    state = place(initial_state(jax.random.key(0), objective, optimizer), replicated(mesh))
    plan = Plan("lesson", 8, 4, RUNTIME)
    stopped = pytest.raises(Preempted, match="lesson: stopped at step 4 of 8, state saved: the same command goes on")
    with contextlib.closing(open_writers(tmp_path, 0, True)) as writer, stoppable(grace_s=60), stopped:
        fit(state, dispatch, key, feed, plan, store, writer)
    assert store.latest() == 4
    store.close()


def test_point_11_checkpoints_are_written_where_dispatches_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    save = Checkpoints.save

    def noted(self: Checkpoints, state: TrainState, step: int, *, force: bool = False) -> None:
        written.extend([step] if force else [])
        save(self, state, step, force=force)

    monkeypatch.setattr(Checkpoints, "save", noted)
    train(1.0, tmp_path, dataclasses.replace(RUNTIME, checkpoint_every=3))
    assert written == [4, 6, 8]  # after steps 3 and 6, and at the end
