"""What a chip of a TPU generation can do, as its maker publishes it."""

from __future__ import annotations

from dataclasses import dataclass

from apl_jax.data.files import refusal

SOURCE = "docs.cloud.google.com/tpu/docs, the pages of v4, v5e, v5p and v6e, November 2026"


@dataclass(frozen=True)
class Chip:
    """Published figures of one chip."""

    name: str
    flops: float  # bfloat16 operations a second
    memory: float  # bytes
    bandwidth: float  # of its memory, bytes a second
    links: float  # of all its links to other chips, bytes a second in each direction
    device: str = ""  # libtpu's name of the way in which the cores of a chip are one device, where it is not the usual


# By the first part of a topology's name. Of the links, half of the bidirectional figure; of v4, for which none is
# published, the all-reduce bandwidth of a pod, 1.1 PB a second, over its 4,096 chips.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1200e9, 1.1e15 / 4096, "megacore"),
    "v5e": Chip("TPU v5e", 197e12, 16e9, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 918e12, 32e9, 1638e9, 400e9),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as ``v5e:4x4``. Raises :class:`~apl_jax.data.files.DataError` for one that is not
    known."""
    chip = CHIPS.get(topology.partition(":")[0])
    if chip is None:
        expected = f"one of {', '.join(CHIPS)}, with the shape of the slice behind a colon"
        raise refusal("`topology`", repr(topology), expected, "v5e:2x4, eight chips")
    return chip
