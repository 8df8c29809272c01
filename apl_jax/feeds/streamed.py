"""StreamFeed: batches read from memory or from files while the devices compute, for data that does not fit on them.

Beside :func:`~apl_jax.feeds.resident.device_feed`, which keeps whole tables on the devices, and with the same order of
videos: where no video is longer than the window below, both train on the same numbers. A *portion* is what one dispatch
works through: some steps, stacked. Portions are the elements of a Grain ``MapDataset``, each a pure function of its
number, so that resuming needs no iterator state; Grain's threads read a few ahead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apl_jax.data.batching import VideoTable, aligned_zeros, build_targets
from apl_jax.devices import DATA_AXIS, place, replicated, to_host
from apl_jax.feeds.resident import Feed, draw_all_rows, role_key
from apl_jax.settings import RuntimeSettings
from apl_jax.structs import Array, Batch, PyTree, Targets

_MIB = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Role:
    """One role's videos, and which of them each step shows."""

    table: VideoTable
    targets: Targets  # [V, N, ...] numpy
    order: np.ndarray  # [steps, B] rows of the table
    steps_t: int  # T of its batches
    local: slice  # videos of a batch that this process's devices hold

    @property
    def step_bytes(self) -> int:
        """Memory of one step's features."""
        return 4 * self.order.shape[1] * self.steps_t * self.table.width


@dataclasses.dataclass(frozen=True, eq=False)
class Portions:
    """Portion ``p``: the batches of the steps [p * size, (p + 1) * size), stacked, as numpy."""

    roles: Mapping[str, Role]
    size: int  # steps
    steps: int  # of the stage
    seed: int

    def __len__(self) -> int:
        return -(-self.steps // self.size)

    def __getitem__(self, index: int) -> dict[str, Batch]:
        first = int(index) * self.size
        steps = range(first, min(first + self.size, self.steps))
        return {name: self._read(role, steps, i) for i, (name, role) in enumerate(self.roles.items())}

    def _read(self, role: Role, steps: range, number: int) -> Batch:
        """The role's batches ``[steps, B, ...]``; other processes' videos stay zeros, which take no memory."""
        rows = role.order[steps.start : steps.stop]
        features = aligned_zeros((*rows.shape, role.steps_t, role.table.width))
        mask = np.zeros((*rows.shape, role.steps_t), bool)
        targets, proposals = jax.tree.map(lambda x: x[rows], (role.targets, role.table.proposals))
        for i, step in enumerate(steps):
            for b in range(*role.local.indices(rows.shape[1])):
                v = rows[i, b]
                values = role.table.read(v)
                if len(values) > role.steps_t:
                    draws = np.random.default_rng([self.seed, number, step, b])
                    start = window_start(draws, len(values), role.steps_t, targets.segments_t[i, b], targets.mask[i, b])
                    values = values[start : start + role.steps_t]
                    targets.segments_t[i, b] -= start
                    if proposals is not None:
                        proposals.segments_t[i, b] -= start
                features[i, b, : len(values)] = values
                mask[i, b, : len(values)] = True
        return Batch(features, mask, targets, rows.astype(np.int32), proposals)  # pyright: ignore[reportArgumentType]  # numpy


def window_start(draws: np.random.Generator, length: int, window: int, segments_t: np.ndarray, mask: np.ndarray) -> int:
    """Where a window of a long video begins: anywhere, but so that it holds the middle of a random instance if there
    is one. Instances ``[N, 2]`` in grid steps; ``mask [N]`` says which are real."""
    low, high = 0, length - window
    real = np.flatnonzero(mask)
    if len(real):
        middle = int(segments_t[draws.choice(real)].mean())
        low, high = max(low, min(middle - window + 1, high)), min(high, max(middle, 0))
    return int(draws.integers(low, high + 1))


def stream_feed(
    tables: Mapping[str, VideoTable], batch_sizes: Mapping[str, int], constants: Mapping[str, PyTree], key: Array,
    steps: int, window_t: int, runtime: RuntimeSettings, mesh: Mesh, max_instances: Mapping[str, int | None],
) -> Feed:  # fmt: skip
    """A feed that brings portions of at most ``runtime.portion_mib``, ``runtime.read_threads`` of them being read.

    Args:
        tables: per role its videos; their annotations become targets, padded to ``max_instances``.
        batch_sizes: videos per step and role.
        constants: further arrays on the devices, that every step sees whole.
        key: of the stage, as the dispatch is given it.
        steps: of the stage.
        window_t: of longer videos a random window of so many grid steps is read, in which the training view is then cut
            as on whole videos (learning/perturb.py).
    """
    order_key = jax.random.split(key)[0]  # as build_dispatch splits it
    roles: dict[str, Role] = {}
    for i, name in enumerate(sorted(tables)):
        table, batch = tables[name], batch_sizes[name]
        order = jax.jit(draw_all_rows, static_argnums=(1, 2, 3))(role_key(order_key, i), steps, len(table.ids), batch)
        steps_t = min(table.length_t, window_t)
        targets = build_targets(table.records, table.grids, max_instances.get(name))
        roles[name] = Role(table, targets, to_host(order), steps_t, _local_videos(mesh, batch))
    size = portion_steps(sum(role.step_bytes for role in roles.values()), runtime)
    seed = int(np.asarray(to_host(jax.random.key_data(key))).ravel()[-1])
    reader = _Reader(Portions(roles, size, steps, seed), runtime.read_threads)

    def bring(first: int, count: int) -> PyTree:
        portion = reader.portion(first, count)
        placed = {name: place(batch, spread(mesh, batch.video.shape[1])) for name, batch in portion.items()}
        return {"first": place(np.int32(first), replicated(mesh)), "portion": placed, "constants": dict(constants)}

    return Feed({}, portion_batches, dict(batch_sizes), bring, size)


def portion_batches(arrays: PyTree, _: Array, step: Array) -> dict:
    """``Feed.batches`` of a stream: a step's part of a portion, whose arrays ``bring`` returns."""
    within = step - arrays["first"]
    return jax.tree.map(lambda x: x[within], arrays["portion"]) | arrays["constants"]


def portion_steps(step_bytes: int, runtime: RuntimeSettings) -> int:
    """How many steps a portion has whose steps take so much memory: a divisor of ``runtime.steps_per_dispatch``."""
    fitting = max(int(runtime.portion_mib * _MIB / max(step_bytes, 1)), 1)
    whole = range(1, runtime.steps_per_dispatch + 1)
    return max(n for n in whole if runtime.steps_per_dispatch % n == 0 and n <= fitting)


def spread(mesh: Mesh, batch: int) -> NamedSharding:
    """Stacked batches ``[steps, B, ...]``: videos over the devices where they divide B, as devices.py has it."""
    spec = PartitionSpec(None, DATA_AXIS) if batch % mesh.size == 0 else PartitionSpec()
    return NamedSharding(mesh, spec)


class _Reader:
    """Portions one after the other, some being read ahead; begins anew when asked for another than the next."""

    def __init__(self, portions: Portions, threads: int) -> None:
        self._portions, self._threads = portions, threads
        self._ahead: Iterator[dict[str, Batch]] = iter(())
        self._next = -1

    def portion(self, first: int, count: int) -> dict[str, Batch]:
        """The steps [first, first + count), which are one portion."""
        number, rest = divmod(first, self._portions.size)
        expected = min(self._portions.size, self._portions.steps - first)
        if rest or count != expected:
            raise ValueError(f"steps {first} to {first + count} are no portion of {self._portions.size} steps")
        if number != self._next:
            dataset = grain.MapDataset.source(self._portions)[number:]
            options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._threads)
            self._ahead = iter(dataset.to_iter_dataset(options))
        self._next = number + 1
        return next(self._ahead)


def _local_videos(mesh: Mesh, batch: int) -> slice:
    """The videos of a batch that the devices of this process hold."""
    held = [index[1] for index in spread(mesh, batch).addressable_devices_indices_map((1, batch)).values() if index]
    bounds = [part.indices(batch)[:2] for part in held]
    return slice(min(low for low, _ in bounds), max(high for _, high in bounds))
