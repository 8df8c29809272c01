"""What a feature file may ask for: refused before any of it is read, by a budget from the machine's memory."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import IO

from apl_jax.data.files import most_array_bytes, open_regular

AGAIN = "copy or extract the file again; it may be incomplete"
_LONGEST_LIST = 1 << 25  # bytes of an archive's list of members: half a million of them
_END = b"PK\x05\x06"  # of an archive: begins the record that says how long that list is


class Unusable(Exception):
    """Why a file gives no features: ``args`` are what was found, what was expected, and what to try."""

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(found, expected, remedy)


def check_size(promised: int, chunk: int = 0) -> None:
    """Raises :class:`Unusable` for an array (or the largest part that is unpacked at once) of more bytes than this
    machine's memory has room for: before any of it is read."""
    most, largest = most_array_bytes(), max(promised, chunk)
    if largest > most:
        found = f"an array of {largest / 2**30:,.1f} GiB"
        expected = f"at most {most / 2**30:,.1f} GiB, as this machine's memory allows"
        raise Unusable(found, expected, "a machine with more memory, or check that this is the file that you mean")


def open_zip(path: Path) -> zipfile.ZipFile:
    """An archive for reading. Raises :class:`~apl_jax.data.files.DataError` for what is no regular file, and whatever
    ``zipfile`` does on damaged bytes."""
    with open_regular(path, "a .npz archive") as file:
        check_members(file)
    return zipfile.ZipFile(path)


def check_members(file: IO[bytes]) -> None:
    """Raises :class:`Unusable` for an archive whose list of members alone would fill the memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    file.seek(0)
    end = tail.rfind(_END)
    listed = struct.unpack_from("<I", tail, end + 12)[0] if 0 <= end <= len(tail) - 16 else 0
    if listed > _LONGEST_LIST:
        raise Unusable(f"a list of members of {listed:,} bytes", f"at most {_LONGEST_LIST:,}", AGAIN)
