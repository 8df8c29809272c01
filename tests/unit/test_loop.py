"""The training loop stops at the first number that is no number, and leaves the last good state on disk."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apl_jax.feeds.resident import Feed
from apl_jax.learning.objective import Method
from apl_jax.settings import RuntimeSettings
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.training.loop import NotFiniteError, Plan, fit
from apl_jax.devices import build_mesh, place, replicated
from apl_jax.training.state import initial_state
from apl_jax.training.step import build_dispatch
from apl_jax.training.writers import open_writers

RUNTIME = RuntimeSettings(steps_per_dispatch=2, checkpoint_every=2, log_every=2, progress=False)


def parabola(poison: float) -> Method:
    """Minimises x^2; after the fifth step one term of the loss is multiplied by ``poison``."""

    def loss(params: dict, averaged: dict, state: jax.Array, batches: dict, key: jax.Array):
        del averaged, batches, key
        term = jnp.where(state >= 5, poison, 1.0) * params["x"] ** 2
        return term, (state + 1, {"role/class": term, "role/regression": jnp.zeros(())})

    return Method(lambda key: ({"x": jnp.ones(())}, jnp.int32(0)), loss, lambda averaged, params, step: params)


def train(poison: float, folder: Path) -> tuple[Checkpoints, dict]:
    mesh, method, optimizer = build_mesh(1), parabola(poison), optax.sgd(0.1)
    like = place(initial_state(jax.random.key(0), method, optimizer), replicated(mesh))
    feed = Feed({}, lambda arrays, key, step: {}, {})
    store = Checkpoints(folder / "checkpoints", RUNTIME.checkpoint_every)
    inputs = place(jax.random.key_data(jax.random.key(0)), replicated(mesh))
    key = jax.jit(jax.random.wrap_key_data, out_shardings=replicated(mesh))(inputs)
    dispatch = lambda count: build_dispatch(method, optimizer, feed, mesh, count)
    fit(like, dispatch, key, feed, Plan("lesson", 8, RUNTIME), store, open_writers(folder, 0, True))
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
    assert float(store.restore(like).params["x"]) == pytest.approx(0.8**8, rel=1e-5)
    store.close()
