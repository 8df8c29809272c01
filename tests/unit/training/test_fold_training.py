"""Networks trained side by side: each is the one that it would have become alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import build_kind, random_bank, random_batch, rarely, stored, tiny_choice

from apl_jax.devices import build_mesh, place, replicated, to_host
from apl_jax.feeds.resident import device_feed
from apl_jax.learning.method import INSTANCES, LABELLED
from apl_jax.settings import OptimizerSettings, PerturbSettings
from apl_jax.structs import Array, PyTree, leaves_by_name
from apl_jax.training.fold_training import FoldTable, fold_feed
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.side_by_side import build_steps, inherited_by_each, initial_states
from apl_jax.training.state import initial_state
from apl_jax.training.step import build_dispatch, build_step

STEPS, BATCH, LENGTH = 4, 2, 16
FOLDS = np.array([0, 0, 0, 1, 1, 1])
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, epsilon=1e-4)
PERTURB = PerturbSettings(crop_ratio=0.7, noise=0.1)


def assert_network(found: PyTree, k: int, alone: PyTree) -> None:
    """That network k of those side by side is this one."""
    own, expected = (leaves_by_name(tree) for tree in (jax.tree.map(lambda x: x[k], found), alone))
    assert own.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(own[name], leaf, atol=2e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("at_once", rarely((True, False), lambda at_once: not at_once))
def test_each_network_is_that_of_its_recordings_alone(at_once: bool) -> None:
    mesh = build_mesh(1)
    objective = build_kind("supervised", tiny_choice("conv"), LENGTH, PERTURB)
    optimizer = build_optimizer(OPTIMIZER, objective.groups, STEPS)
    videos, bank = random_batch([16, 13, 9, 16, 5, 12], LENGTH), random_bank(12)
    seen = np.arange(2)[:, None] != FOLDS

    def constants(bank: PyTree, mask: Array) -> dict[str, PyTree]:
        return {INSTANCES: dataclasses.replace(bank, mask=bank.mask & mask.repeat(2))}

    feed = fold_feed({LABELLED: FoldTable(stored(videos), seen, BATCH)}, constants, bank, seen)
    feed = feed._replace(arrays=place(to_host(feed.arrays), replicated(mesh)))
    key = jax.random.key(3)
    state = jax.jit(lambda k: initial_states(jnp.stack([k, k]), objective, optimizer, {}))(key)
    steps = build_steps(objective, optimizer, OPTIMIZER, at_once, shared=False)
    state, _ = build_dispatch(steps, feed, mesh, STEPS)(state, key, feed.arrays)
    assert int(state.step) == STEPS

    order_key, step_key = jax.random.split(key)
    step = jax.jit(build_step(objective, optimizer, OPTIMIZER))
    for k in range(2):
        rows = np.flatnonzero(seen[k])
        own = dataclasses.replace(bank, mask=bank.mask & jnp.asarray(seen[k]).repeat(2))
        table = {LABELLED: stored(jax.tree.map(lambda x: x[rows], videos))}
        alone_feed = device_feed(table, {LABELLED: BATCH}, {INSTANCES: own})
        alone = initial_state(key, objective, optimizer)
        for i in range(STEPS):
            batches = alone_feed.batches(alone_feed.arrays, jax.random.fold_in(order_key, k), jnp.int32(i))
            alone, _ = step(alone, jax.random.fold_in(step_key, k), batches)
        assert_network(state.params, k, alone.params)
    # The two have seen different recordings.
    kernel = state.params["discriminator"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-4


def test_networks_of_an_ensemble_share_batches_and_nothing_else() -> None:
    """Other beginnings, other views of the same batches, gradients clipped for each alone."""
    objective = build_kind("supervised", tiny_choice("conv"), LENGTH, PERTURB)
    clipped = dataclasses.replace(OPTIMIZER, clip_norm=0.05)
    optimizer = build_optimizer(clipped, objective.groups, STEPS)
    batches = {LABELLED: random_batch([16, 13], LENGTH), INSTANCES: random_bank(12)}
    keys, key = jax.random.split(jax.random.key(5), 2), jax.random.key(3)
    steps = jax.jit(build_steps(objective, optimizer, clipped, at_once=False, shared=True))
    step = jax.jit(build_step(objective, optimizer, clipped))
    state = initial_states(keys, objective, optimizer, {})
    alone = [initial_state(k, objective, optimizer) for k in keys]
    for _ in range(STEPS):
        state, _ = steps(state, key, batches)
        alone = [step(one, jax.random.fold_in(key, k), batches)[0] for k, one in enumerate(alone)]
    for k, one in enumerate(alone):
        assert_network(state.params, k, one.params)
        assert_network(state.ema_params, k, one.ema_params)


def test_networks_begin_with_what_each_or_all_inherit() -> None:
    objective = build_kind("supervised", tiny_choice("conv"), LENGTH, PERTURB)
    optimizer = build_optimizer(OPTIMIZER, objective.groups, STEPS)
    keys = jax.random.split(jax.random.key(5), 2)
    fresh = leaves_by_name(initial_states(keys, objective, optimizer, {}).params)
    one, other = [name for name in fresh if name.endswith("kernel") and name.startswith("detector")][:2]
    each, all_of_them = fresh[one] + 1, fresh[other][0] + 2
    inherited = {one: each, other: all_of_them, "unknown": all_of_them}
    state = leaves_by_name(initial_states(keys, objective, optimizer, inherited).params)
    np.testing.assert_array_equal(state[one], each)
    np.testing.assert_array_equal(state[other], jnp.stack([all_of_them] * 2))
    assert all((state[name] == fresh[name]).all() for name in fresh if name not in inherited)
    assert inherited_by_each(fresh[one], each) and inherited_by_each(fresh[other], all_of_them)
    assert not inherited_by_each(fresh[one], each[:, :1]) and not inherited_by_each(fresh[one], None)
