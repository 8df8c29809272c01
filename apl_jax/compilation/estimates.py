"""What a compiled program takes: memory, arithmetic, traffic, and what it says to other devices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax.errors import JaxRuntimeError

from apl_jax.compilation.chips import Chip
from apl_jax.compilation.traffic import ARRAY, array_bytes, memory_traffic
from apl_jax.data.files import refusal

_REMEDY = "the libtpu that this jax asks for: pip install 'jax[tpu]'"
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_CALL = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(_KINDS)})(?P<start>-start)?\(")


@dataclass(frozen=True)
class Collective:
    """All communication of one kind and one type of numbers."""

    kind: str
    dtype: str
    count: int
    bytes: int  # that are handed over, per device


@dataclass(frozen=True)
class Estimate:
    """What a program takes on each device, as the compiler counts it: of a loop one turn, however many there are."""

    arguments: int  # bytes
    outputs: int  # bytes that are not arguments given back
    temporaries: int  # bytes
    code: int  # bytes
    flops: float
    traffic: float  # bytes that operations read and write; what stays on the chip between them is in it
    memory_traffic: int  # bytes of these that pass the chip's memory (traffic.py)
    collectives: tuple[Collective, ...]

    @property
    def peak(self) -> int:
        """Bytes of memory that a call needs at once."""
        return self.arguments + self.outputs + self.temporaries + self.code

    def seconds(self, chip: Chip) -> float:
        """The longer of arithmetic and memory traffic, each at its published peak, and communication after it."""
        return max(self.flops / chip.flops, self.memory_traffic / chip.bandwidth) + self.communication_s(chip)

    def communication_s(self, chip: Chip) -> float:
        """Of a ring: twice the bytes of an all-reduce pass every device, those of other kinds once."""
        return sum(c.bytes * (2 if c.kind == "all-reduce" else 1) for c in self.collectives) / chip.links


def estimate(compiled: Any) -> Estimate:
    """Reads a ``jax.stages.Compiled``.

    Raises :class:`~apl_jax.data.files.DataError` for a program that a newer compiler made than this jaxlib can read.
    """
    memory, cost = compiled.memory_analysis(), counted_cost(compiled)
    try:
        hlo = compiled.as_text()
    except JaxRuntimeError as error:
        found = f"a text that this jaxlib cannot read ({str(error).splitlines()[0]})"
        raise refusal("the compiled program", found, "compiler and jaxlib of one time", _REMEDY) from None
    return Estimate(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        traffic=float(cost.get("bytes accessed", 0.0)),
        memory_traffic=memory_traffic(hlo),
        collectives=collectives_of(hlo),
    )


def counted_cost(compiled: Any) -> Mapping[str, float]:
    """The compiler's counts for a lowered or compiled program, by name."""
    found = compiled.cost_analysis()
    return (found[0] if isinstance(found, list) else found) or {}


def collectives_of(hlo: str) -> tuple[Collective, ...]:
    """The communication in a program's HLO, by kind and type of numbers.

    An instruction within a loop counts once.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for line in hlo.splitlines():
        call = _CALL.search(line)
        if call is None:
            continue
        arrays = ARRAY.findall(call["type"])
        if call["start"] and len(arrays) > 1:  # its type holds what goes in beside what comes out
            arrays = arrays[len(arrays) // 2 :]
        seen = set()
        for dtype, sizes, _ in arrays:
            entry = found.setdefault((call["kind"], dtype), [0, 0])
            entry[0] += dtype not in seen
            entry[1] += array_bytes(dtype, sizes)
            seen.add(dtype)
    return tuple(Collective(kind, dtype, *numbers) for (kind, dtype), numbers in sorted(found.items()))


def weak_scaling(of_one: float, gradient_bytes: int, chip: Chip, devices: int) -> float:
    """The efficiency of ``devices`` chips that share the gradients of a step which takes one chip ``of_one`` seconds:
    in (0, 1], with a ring over all of them and no overlap."""
    passed = 2 * (devices - 1) / devices * gradient_bytes
    return of_one / (of_one + passed / chip.links)
