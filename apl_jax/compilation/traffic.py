"""What a program moves between the memory of a chip and the chip, from its text in HLO.

The compiler's own count of bytes ("bytes accessed") holds what operations hand to each other on the chip. On a TPU the
text says which arrays lie there: those in a memory space, ``S(1)`` in their layout. Here only the others count. What is
read by ``gather`` or a slice counts as much as is taken, in a fusion too; what a fusion changes in place counts whole.
Where the text knows no memory spaces (CPUs,
GPUs), everything counts that is not inside a fusion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(?:, |$)")
ARRAY = re.compile(r"\b([a-z]+[0-9]+(?:e[0-9]m[0-9][a-z]*)?|pred)\[([0-9,]*)\](\{[^}]*\})?")  # type, sizes, layout
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|true_computation|false_computation)=(%[\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BITS = re.compile(r"[0-9]+")
_ELSEWHERE = "S("  # in the layout of an array that lies on the chip, or with the host
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota", "after-all", "partition-id", "replica-id",
}  # fmt: skip
_TAKES = {"gather", "dynamic-slice", "slice"}  # reads of its first operand what it gives
_CONTROL = {"while", "call", "conditional"}


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # with layouts
    kind: str
    operands: tuple[str, ...]
    line: str


Computations = Mapping[str, Mapping[str, Instruction]]


def memory_traffic(hlo: str) -> int:
    """Bytes that pass a chip's memory in the busiest computation of a program: one turn of its largest loop, where it
    has one, with all that is called from there, and the larger branch of a choice."""
    computations = read_computations(hlo)
    fused = {
        name for body in computations.values() for i in body.values() if i.kind not in _CONTROL for name in called(i)
    }
    known: dict[str, int] = {}

    def total(name: str) -> int:
        if name not in known:
            known[name] = 0  # until it is known; computations do not call themselves
            body = computations.get(name, {})
            known[name] = sum(_of_instruction(i, body, computations, total) for i in body.values())
        return known[name]

    bodies = {n for body in computations.values() for i in body.values() if i.kind == "while" for n in called(i)}
    chosen = bodies or {name for name in computations if name not in fused}
    return max((total(name) for name in chosen), default=0)


def read_computations(hlo: str) -> Computations:
    """The instructions of each computation, by name."""
    found: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    for line in hlo.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = found.setdefault(head[1], {})
            continue
        match = _INSTRUCTION.match(line)
        if match:
            name, shape, kind, operands = match.groups()
            names = tuple(part.split()[-1] for part in operands.split(",") if part.strip())
            current[name] = Instruction(name, shape, kind, names, line)
    return found


def called(instruction: Instruction) -> list[str]:
    """The computations that an instruction names."""
    branches = _BRANCHES.search(instruction.line)
    return _CALLED.findall(instruction.line) + re.findall(r"%[\w.\-]+", branches[1] if branches else "")


def _of_instruction(
    instruction: Instruction, body: Mapping[str, Instruction], computations: Computations, total: Callable[[str], int]
) -> int:
    """Bytes of one instruction of ``body``; ``total`` counts a computation that it calls."""
    kind, names = instruction.kind, called(instruction)
    if kind in _FREE or kind.endswith(("-done", "-update")):  # what goes on meanwhile counts where it starts
        return 0
    if kind == "conditional":
        return max(map(total, names), default=0)
    if kind in _CONTROL:
        return sum(map(total, names))
    operands = [body[name].shape if name in body else "" for name in instruction.operands]
    if kind == "slice-start":  # both sides stand in the type, the source whole
        arrays = ARRAY.findall(instruction.shape)[:2]
        least = min((array_bytes(*array[:2]) for array in arrays), default=0)
        return sum(least for array in arrays if _ELSEWHERE not in array[2])
    if kind.endswith("-start"):
        return memory_bytes(instruction.shape)
    given = memory_bytes(instruction.shape)
    if kind in _TAKES:
        return given + (_bytes_if_in_memory(operands[0], _all_bytes(instruction.shape)) if operands else 0)
    if kind == "dynamic-update-slice":
        return 2 * memory_bytes(operands[1])
    inside = computations.get(names[0], {}) if kind == "fusion" and names else {}
    return given + sum(_read_by(inside, i, shape) for i, shape in enumerate(operands))


def _read_by(inside: Mapping[str, Instruction], place: int, shape: str) -> int:
    """What a fusion reads of an operand."""
    whole = memory_bytes(shape)
    parameter = next((i for i in inside.values() if i.kind == "parameter" and i.operands == (str(place),)), None)
    if not whole or parameter is None:
        return whole
    users = list(_users(inside, parameter.name))
    if not users or any(user.kind not in _TAKES or user.operands[0] != source for user, source in users):
        return whole
    return min(whole, sum(_all_bytes(user.shape) for user, _ in users))


def _users(inside: Mapping[str, Instruction], name: str) -> Iterator[tuple[Instruction, str]]:
    """Who reads a value, and by which name; through bitcasts."""
    for user in inside.values():
        if name in user.operands:
            if user.kind == "bitcast":
                yield from _users(inside, user.name)
            else:
                yield user, name


def memory_bytes(shape: str) -> int:
    """Bytes of the arrays of a type that lie in the chip's memory, not on the chip."""
    return sum(array_bytes(dtype, sizes) for dtype, sizes, layout in ARRAY.findall(shape) if _ELSEWHERE not in layout)


def _all_bytes(shape: str) -> int:
    return sum(array_bytes(dtype, sizes) for dtype, sizes, _ in ARRAY.findall(shape))


def _bytes_if_in_memory(shape: str, size: int) -> int:
    return size if memory_bytes(shape) else 0


def array_bytes(dtype: str, sizes: str) -> int:
    """Bytes of an array of a type and sizes such as "f32", "64,8"."""
    count = 1
    for size in filter(None, sizes.split(",")):
        count *= int(size)
    bits = _BITS.search(dtype)
    return count * max(int(bits[0]) // 8, 1) if bits else count
