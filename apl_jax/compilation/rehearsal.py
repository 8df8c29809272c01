"""Compiling all programs of a run, and what came of it in words."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from apl_jax.compilation import EVALUATION, HOST, KINDS, LABELLING, TRAINING
from apl_jax.compilation.chips import SOURCE, Chip, chip_of
from apl_jax.compilation.estimates import Estimate, estimate, weak_scaling
from apl_jax.compilation.programs import Program, programs_of, surroundings
from apl_jax.compilation.shapes import shapes_of
from apl_jax.data.files import refusal
from apl_jax.devices import DATA_AXIS, build_mesh, device_bytes
from apl_jax.report.tables import aligned
from apl_jax.runs.settings import Settings

_GIB = 2**30
_SCALES = (8, 16, 32, 64, 128, 256)  # devices that weak scaling is told for
_ABOUT_LOOPS = (
    "GFLOP, traffic and what goes between devices are of one turn of a program's loop, as the compiler counts them: "
    "one training step, or one batch of a pass. What operations hand to each other on the chip is in the traffic; what "
    "passes the memory of the chip was counted from the text of the program."
)
_ABOUT_BOUND = (
    "'At least' is of one turn too: the longer of arithmetic and memory traffic at the published peaks of {chip} "
    f"({SOURCE}), and communication after it. It was computed and not measured."
)


@dataclass(frozen=True)
class Compiled:
    """One program and what the compiler says of it."""

    program: Program
    estimate: Estimate
    lowering_s: float  # tracing included
    compiling_s: float

    @property
    def name(self) -> str:
        """The stages that it is compiled for."""
        return ", ".join(self.program.stages)


@dataclass(frozen=True)
class Rehearsal:
    """All of them."""

    topology: str
    devices: int
    chip: Chip | None  # None of this machine's own devices
    memory: int  # bytes of one device
    streamed: bool
    compiled: tuple[Compiled, ...]

    @property
    def fits(self) -> bool:
        """Whether every program has room in a device's memory."""
        return all(c.estimate.peak <= self.memory for c in self.compiled)

    def table(self) -> str:
        """A row for each program; all numbers are of one device."""
        head = ["program", "arguments, GiB", "temporary, GiB", "peak, GiB", "code, MB", "GFLOP", "traffic, GB"]
        head += ["of memory, GB", "lowering, s", "compiling, s"] + (["at least, ms"] if self.chip else [])
        rows = [head]
        for c in self.compiled:
            e = c.estimate
            numbers = [e.arguments / _GIB, e.temporaries / _GIB, e.peak / _GIB]
            row = [c.name, *(f"{x:.3f}" for x in numbers), f"{e.code / 1e6:.1f}", f"{e.flops / 1e9:.1f}"]
            row += [f"{e.traffic / 1e9:.2f}", f"{e.memory_traffic / 1e9:.2f}"]
            row += [f"{c.lowering_s:.1f}", f"{c.compiling_s:.1f}"]
            rows.append(row + ([f"{1e3 * e.seconds(self.chip):.2f}"] if self.chip else []))
        return aligned(rows)

    def notes(self) -> list[str]:
        """What the table leaves open, in sentences."""
        where = "streamed to the devices" if self.streamed else "on the devices from beginning to end"
        notes = [f"{self.devices} devices ({self.topology}), {self.memory / _GIB:.1f} GiB each; features are {where}."]
        for c in self.compiled:
            said = "; ".join(f"{x.count} {x.kind} of {x.dtype}, {x.bytes / 1e6:.2f} MB" for x in c.estimate.collectives)
            notes.append(f"{c.name}: called {c.program.calls}; between devices: {said or 'nothing'}.")
        notes.append(_ABOUT_LOOPS)
        if self.chip:
            notes += [_ABOUT_BOUND.format(chip=self.chip.name), *self._scaling()]
        notes += [_does_not_fit(c, self.memory) for c in self.compiled if c.estimate.peak > self.memory]
        return notes

    def _scaling(self) -> list[str]:
        """The efficiency of more chips, each with the same batch, of the training program that says most."""
        training = [c.estimate for c in self.compiled if c.program.kind == TRAINING]
        chip = self.chip
        if not training or chip is None:
            return []
        most = max(training, key=lambda e: e.communication_s(chip))
        size = sum(c.bytes for c in most.collectives if c.kind == "all-reduce")
        alone = most.seconds(chip) - most.communication_s(chip)
        if not size or not alone:
            return []
        parts = ", ".join(f"{n}: {weak_scaling(alone, size, chip, n):.1%}" for n in _SCALES)
        return [f"Weak scaling by devices, from {size / 1e6:.1f} MB that a step sums over all of them: {parts}."]


def rehearse(
    settings: Settings, topology: str, batch_per_device: int | None, width: int | None, only: Collection[str],
    tell: Callable[[str], Any],
) -> Rehearsal:  # fmt: skip
    """Compiles the programs of some kinds or stages, ``only``; ``tell`` is told what is compiled: it takes minutes.

    Raises :class:`~apl_jax.data.files.DataError` for an unknown topology, where libtpu is missing, and for a name in
    ``only`` that is neither a kind nor a stage of the run.
    """
    mesh, memory, chip = _devices(topology)
    if batch_per_device:
        settings = _with_batches(settings, batch_per_device * mesh.size)
    shapes = shapes_of(settings.data, width)
    around = surroundings(settings, shapes, mesh, memory * mesh.size)
    found = []
    programs = programs_of(around)
    known = {*KINDS, *(name for program in programs for name in program.stages)}
    if unknown := [name for name in only if name not in known]:
        raise refusal("`--only`", repr(unknown[0]), f"some of {', '.join(sorted(known))}", TRAINING)
    for program in programs:
        if not {program.kind, *program.stages} & set(only):
            continue
        tell(f"compiling {', '.join(program.stages)} ...")
        started = time.perf_counter()
        lowered = program.lower()
        lowering_s = time.perf_counter() - started
        compiled = lowered.compile()
        compiling_s = time.perf_counter() - started - lowering_s
        found.append(Compiled(program, estimate(compiled), lowering_s, compiling_s))
    return Rehearsal(topology, mesh.size, chip, memory, around.streamed, tuple(found))


def _devices(topology: str) -> tuple[Mesh, int, Chip | None]:
    """The mesh of a topology, the memory of one of its devices, and what is published about it."""
    if topology == HOST:
        mesh = build_mesh()
        return mesh, device_bytes(mesh) // mesh.size, None
    chip = chip_of(topology)
    try:
        chosen = {"chip_config_name": chip.device} if chip.device else {}
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **chosen)
    except Exception as error:  # a missing libtpu and a shape that there is not raise anything
        found = f"{topology!r}, which cannot be described here ({type(error).__name__}: {str(error).splitlines()[0]})"
        expected = "a shape that this chip has, and libtpu: pip install 'apl_jax[tpu]'"
        raise refusal("`topology`", found, expected, "v5e:2x4") from None
    devices = np.array(described.devices)
    mesh = Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))
    return mesh, int(chip.memory), chip


def _with_batches(settings: Settings, batch: int) -> Settings:
    """Every stage with ``batch`` recordings of each kind that it sees."""

    def changed(stage: Any) -> Any:
        names = [name for name in ("labelled_batch", "unlabelled_batch") if getattr(stage, name)]
        return dataclasses.replace(stage, **dict.fromkeys(names, batch))

    learning = settings.learning
    stages = {name: changed(getattr(learning, name)) for name in ("pretrain", "supervised", "self_train")}
    return dataclasses.replace(settings, learning=dataclasses.replace(learning, **stages))


def _does_not_fit(c: Compiled, memory: int) -> str:
    """Which setting to change for a program that is too large."""
    passes = "a smaller `runtime.prediction_batch`, or `runtime.feed=stream`"
    advice = {
        LABELLING: passes,
        EVALUATION: passes,
        TRAINING: "a smaller `learning.supervised.labelled_batch`, `unlabelled_batch` or `data.max_length_t`, or "
        "`runtime.feed=stream`",
    }
    peak = f"{c.estimate.peak / _GIB:.2f} GiB of {memory / _GIB:.2f} GiB"
    return f"{c.name} does not fit: {peak}. Try: {advice[c.program.kind]}."
