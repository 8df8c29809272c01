"""Networks of folds, trained at once: each is the one that its recordings alone would have made."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import build_kind, random_bank, random_batch, rarely, tiny_choice

from apl_jax.devices import build_mesh, place, replicated, to_host
from apl_jax.feeds.resident import device_feed
from apl_jax.learning.method import INSTANCES, LABELLED
from apl_jax.settings import OptimizerSettings, PerturbSettings
from apl_jax.structs import Array, PyTree
from apl_jax.training.fold_training import FoldTable, build_fold_step, fold_feed, fold_states
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.state import initial_state
from apl_jax.training.step import build_dispatch, build_step

STEPS, BATCH, LENGTH = 4, 2, 16
FOLDS = np.array([0, 0, 0, 1, 1, 1])
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, epsilon=1e-4)
PERTURB = PerturbSettings(crop_ratio=0.7, noise=0.1)


@pytest.mark.parametrize("at_once", rarely((True, False), lambda at_once: not at_once))
def test_each_network_is_that_of_its_recordings_alone(at_once: bool) -> None:
    mesh = build_mesh(1)
    objective = build_kind("supervised", tiny_choice("conv"), LENGTH, PERTURB)
    optimizer = build_optimizer(OPTIMIZER, objective.groups, STEPS)
    videos, bank = random_batch([16, 13, 9, 16, 5, 12], LENGTH), random_bank(12)
    seen = np.arange(2)[:, None] != FOLDS

    def constants(bank: PyTree, mask: Array) -> dict[str, PyTree]:
        return {INSTANCES: dataclasses.replace(bank, mask=bank.mask & mask.repeat(2))}

    feed = fold_feed({LABELLED: FoldTable(videos, seen, BATCH)}, constants, bank, seen)
    feed = feed._replace(arrays=place(to_host(feed.arrays), replicated(mesh)))
    key = jax.random.key(3)
    state = jax.jit(lambda k: fold_states(k, 2, objective, optimizer))(key)
    state, _ = build_dispatch(build_fold_step(objective, optimizer, OPTIMIZER, at_once), feed, mesh, STEPS)(
        state, key, feed.arrays
    )
    assert int(state.step) == STEPS

    order_key, step_key = jax.random.split(key)
    step = jax.jit(build_step(objective, optimizer, OPTIMIZER))
    for k in range(2):
        rows = np.flatnonzero(seen[k])
        own = dataclasses.replace(bank, mask=bank.mask & jnp.asarray(seen[k]).repeat(2))
        table = {LABELLED: jax.tree.map(lambda x: x[rows], videos)}
        alone_feed = device_feed(table, {LABELLED: len(rows)}, {LABELLED: BATCH}, {INSTANCES: own})
        alone = initial_state(key, objective, optimizer)
        for i in range(STEPS):
            batches = alone_feed.batches(alone_feed.arrays, jax.random.fold_in(order_key, k), jnp.int32(i))
            alone, _ = step(alone, step_key, batches)
        found = jax.tree.map(lambda x: x[k], state.params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(alone.params):
            other = found
            for part in path:
                other = other[part.key]
            np.testing.assert_allclose(other, leaf, atol=2e-5, rtol=1e-4, err_msg=jax.tree_util.keystr(path))
    # The two have seen different recordings.
    kernel = state.params["discriminator"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-4
