"""Law 4: one device computes what four do. Law 5: a training step is traced and compiled once.

Run as a program, ``python test_devices.py FOLDER KIND-DETECTOR,... [ADDRESS PROCESSES RANK]``, this file trains each
kind on all devices and saves what came out; the tests start it with four, tests/distributed as one of several
processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import (
    KINDS,
    build_kind,
    build_method,
    method_settings,
    random_bank,
    random_batch,
    rarely,
    stored,
    tiny_choice,
)
from law_batches import tables_of, weights_of

from apl_jax.detectors.ensemble import members_of
from apl_jax.devices import build_mesh, place, replicated, to_host
from apl_jax.feeds.resident import device_feed
from apl_jax.learning.method import INSTANCES
from apl_jax.registry import DETECTORS
from apl_jax.settings import OptimizerSettings, PerturbSettings
from apl_jax.structs import PyTree
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.side_by_side import build_steps
from apl_jax.training.state import TrainState
from apl_jax.training.step import build_dispatch, build_step

# Every kind on one detector, and every detector in the kinds that between them use all of it: compiling takes time.
FIRST, THOROUGH = next(iter(DETECTORS)), ("contrast", "nontarget")
CASES = [(kind, detector) for kind in KINDS for detector in DETECTORS if detector == FIRST or kind in THOROUGH]
OFTEN = [("apl", FIRST)]
CASES.sort(key=lambda case: case not in OFTEN)  # first what is waited for: one process trains them in this order
DEVICES, STEPS, BATCH, VIDEOS = 4, 16, 4, 6
PORTION, PORTIONS = 3, 2
SEED = 1  # of the weights: with these no kink of a loss is so near that rounding decides on which side of it they are
# With Adam's usual epsilon, gradients that are zero but for rounding (of a key projection's bias, say) become steps of
# the full learning rate in a direction that rounding decides.
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, epsilon=1e-4)
PERTURB = PerturbSettings(crop_ratio=0.7, noise=0.1, channel_drop=0.2, scale=0.1)


class Trained(NamedTuple):
    """What training left; how often its objective was traced, and XLA called in the second portion."""

    leaves: dict[str, np.ndarray]
    traces: int
    late_compilations: int


def by_name(tree: PyTree) -> dict[str, np.ndarray]:
    """Leaves on the host by their path."""
    rows = jax.tree_util.tree_leaves_with_path(to_host(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in rows}


def changes_of(kind: str, detector: str) -> dict[str, Any]:
    """What is unlike the method's defaults here."""
    settings, changes = method_settings(kind), {}
    if hasattr(settings, "icd"):  # parameters of terms are to move as far as the detector's
        changes["icd__learning_rate"] = 1e-2
    if hasattr(settings, "pseudo_labels") and detector != "spot":
        # On-line labels of a detector that regresses segments are its own predictions, and there the regression loss
        # has a kink: rounding would decide on which side of it the network is. SPOT's are masks.
        changes["pseudo_labels"] = "teacher"
    return changes


def train(kind: str, detector: str, devices: int) -> Trained:
    """Two portions of three steps on the first ``devices`` devices, as a stage does it."""
    mesh = build_mesh(devices)
    changes = changes_of(kind, detector)
    member, networks = members_of(tiny_choice(detector))  # networks of an ensemble are trained side by side
    description = kind, member, STEPS, PERTURB
    method, objective = build_method(*description, **changes), build_kind(*description, **changes)
    traces, compilations = [], []

    def counted(*arguments: PyTree) -> PyTree:
        traces.append(kind)
        return objective.loss(*arguments)

    optimizer = build_optimizer(OPTIMIZER, objective.groups, PORTION * PORTIONS)
    params, terms = weights_of(objective, SEED)
    initial = optimizer.init
    if networks:
        each = [weights_of(objective, SEED + k) for k in range(networks)]
        params, terms = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        initial = jax.vmap(optimizer.init)
    moments = jax.jit(initial)(params)
    state = place(TrainState(np.int32(0), params, params, moments, terms), replicated(mesh))  # pyright: ignore
    labelled = random_batch([16, 13, 9, 16, 5, 12, 16, 11], STEPS, seed=1)
    labelled = jax.tree.map(lambda x: x[:VIDEOS], labelled)  # the devices do not divide it
    unlabelled = random_batch([7, 16, 16, 10, 14, 16, 8, 15], STEPS, seed=2, instances=3)
    tables = tables_of(method, labelled, unlabelled)
    copies = kind == "nontarget"  # of the rows, on every device; of other kinds each device holds a part
    feed = device_feed(
        {name: stored(table, mesh, copies) for name, table in tables.items()},
        dict.fromkeys(tables, BATCH),
        place({INSTANCES: random_bank()} if method.constants else {}, replicated(mesh)),
    )
    counting = objective._replace(loss=counted)
    step = build_step(counting, optimizer, OPTIMIZER)
    if networks:
        step = build_steps(counting, optimizer, OPTIMIZER, at_once=False, shared=True)
    dispatch = build_dispatch(step, feed, mesh, PORTION)
    key = jax.jit(lambda: jax.random.key(5), out_shardings=replicated(mesh))()

    def listener(event: str, *_: object, **__: object) -> None:
        if "backend_compile" in event:
            compilations.append(event)

    state, _ = dispatch(state, key, feed.arrays)
    jax.monitoring.register_event_duration_secs_listener(listener)
    with jax.transfer_guard("disallow"):
        for _ in range(1, PORTIONS):
            state, metrics = dispatch(state, key, feed.arrays)
    jax.monitoring.unregister_event_duration_listener(listener)
    means = {name: average.compute() for name, average in to_host(metrics).items()}
    return Trained(by_name({"state": state, "metrics": means}), len(traces), len(compilations))


class Pair(NamedTuple):
    """The same training on one device, and on four."""

    one: Trained
    four: Trained


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A process that trains all cases on four devices, and where it saves them. The number of devices is fixed when a
    process first uses JAX, so they need another; one for all, for starting it takes seconds."""
    folder = tmp_path_factory.mktemp("four")
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent)])
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(DEVICES), "PYTHONPATH": path}
    command = [sys.executable, __file__, str(folder), ",".join("-".join(case) for case in CASES)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    yield process, folder
    process.kill()
    process.communicate()


@pytest.fixture(scope="module", params=rarely(CASES, OFTEN.__contains__), ids="-".join)
def pair(request: pytest.FixtureRequest, four_devices: tuple[subprocess.Popen, Path]) -> Pair:
    """Both, at the same time."""
    process, folder = four_devices
    file = folder / f"{'-'.join(request.param)}.npz"
    one = train(*request.param, 1)
    deadline = time.monotonic() + 600
    while not file.exists():
        assert process.poll() is None or file.exists(), process.communicate()[1]
        assert time.monotonic() < deadline, f"{file.name} is not there after ten minutes"
        time.sleep(0.05)
    with np.load(file, allow_pickle=False) as saved:
        leaves = {name: saved[name] for name in saved.files}
    assert leaves.pop("devices") == DEVICES
    return Pair(one, Trained(leaves, int(leaves.pop("traces")), int(leaves.pop("late_compilations"))))


def test_one_device_equals_four(pair: Pair, request: pytest.FixtureRequest) -> None:
    assert pair.four.leaves.keys() == pair.one.leaves.keys()
    for name, leaf in pair.one.leaves.items():
        np.testing.assert_allclose(pair.four.leaves[name], leaf, atol=1e-5, rtol=1e-5, err_msg=name)
    # Two trainings that do nothing would agree, too.
    kind, detector = request.node.callspec.params["pair"]
    objective = build_kind(kind, tiny_choice(detector), STEPS, PERTURB, **changes_of(kind, detector))
    params, _ = weights_of(objective, SEED)
    moved = [np.abs(pair.one.leaves[f"['state'].params{name}"] - x).max() for name, x in by_name(params).items()]
    # Contrast trains what `represent` reads: of P-GCN one projection, of the others nearly all.
    typical = np.max if (kind, detector) == ("contrast", "pgcn") else np.median
    assert typical(moved) > 1e-3


def test_one_trace_and_no_late_compilation(pair: Pair) -> None:
    for trained in pair:
        assert (trained.traces, trained.late_compilations) == (1, 0)
        assert trained.leaves["['state'].step"] == PORTION * PORTIONS


if __name__ == "__main__":
    if len(sys.argv) > 3:
        jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    for case in sys.argv[2].split(","):
        result = train(*case.split("-"), len(jax.devices()))
        counts = {"traces": result.traces, "late_compilations": result.late_compilations}
        beside = Path(sys.argv[1], f"{case}.part.npz")
        np.savez(beside, devices=len(jax.devices()), **counts, **result.leaves)
        beside.rename(beside.with_name(f"{case}.npz"))
