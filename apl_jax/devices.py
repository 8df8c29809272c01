"""Devices: one mesh with a ``data`` axis, where arrays live on it, and the compile cache."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from apl_jax.structs import PyTree

DATA_AXIS = "data"


def build_mesh(devices: int | None = None) -> Mesh:
    """All devices of all processes (or the first ``devices``) along one ``data`` axis.

    Auto axes: on the Explicit axes that ``jax.make_mesh`` now makes by default, dropout and ``x[indices]`` fail.
    """
    chosen = jax.devices()[:devices]
    return jax.make_mesh((len(chosen),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(mesh, PartitionSpec())


def filled(rows: int, mesh: Mesh) -> int:
    """So many rows, and those of zeros that let the devices divide them."""
    return -(-rows // mesh.size) * mesh.size


def shard_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Host arrays, equal on every process, with their leading axis split over the devices; rows of zeros (videos
    without a valid step) fill it up to a multiple of their number."""
    missing = lambda x: filled(len(x), mesh) - len(x)
    fill = lambda x: np.pad(x, [(0, missing(x))] + [(0, 0)] * (x.ndim - 1)) if missing(x) else x
    return place(jax.tree.map(lambda x: fill(np.asarray(x)), tree), NamedSharding(mesh, PartitionSpec(DATA_AXIS)))


def batch_sharding(mesh: Mesh, batch: int) -> NamedSharding:
    """Leading axis over the devices where they divide it; otherwise whole on each, which computes the same numbers."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS)) if batch % mesh.size == 0 else replicated(mesh)


def place(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host arrays, equal on every process, as global arrays of this sharding."""
    return jax.tree.map(lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda i: np.asarray(x)[i]), tree)


def to_host(tree: PyTree) -> PyTree:
    """Global arrays as numpy, whole, on every process; what is numpy already stays as it is."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def fetch(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array):
            return np.asarray(x)
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(fetch, tree)


def first_rows(tree: PyTree, count: int) -> PyTree:
    """The rows that are videos, without those that let the devices divide the table."""
    return jax.tree.map(lambda x: x[:count], tree)


def device_bytes(mesh: Mesh) -> int:
    """Memory of all devices of a mesh together; of CPUs, that of the machines they are in. Equal on every process."""
    stats = mesh.local_devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(multihost_utils.broadcast_one_to_all(np.int64(stats["bytes_limit"]))) * mesh.size
    return int(multihost_utils.broadcast_one_to_all(np.int64(host_bytes()))) * jax.process_count()


@functools.cache
def host_bytes() -> int:
    """Memory of this machine, or what its control group (a container, a batch job) may use, where that is less."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *memory_limits()])


def memory_limits(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """The limits in bytes of the control groups that this process is in, of both versions; none where none is set."""
    try:
        lines = [line.split(":", 2) for line in own.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    found = []
    for fields in lines:
        controllers, inside = fields[1:] if len(fields) == 3 else ("", "")
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (cgroups / "memory", "memory.limit_in_bytes") if controllers else (cgroups, "memory.max")
        group = Path(inside.lstrip("/"))
        # Within a container the group's path is often that of the machine outside: then the root is the own group.
        for folder in (root / parent for parent in (group, *group.parents, Path())):
            try:
                found.append(int((folder / name).read_text("utf-8")))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return [limit for limit in found if limit > 0]


def enable_compile_cache() -> None:
    """Keeps compiled programs in ``$JAX_COMPILATION_CACHE_DIR``, or else in the user's cache folder."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(home / "apl_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
