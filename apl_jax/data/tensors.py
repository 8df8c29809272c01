"""Files of tensors (.safetensors) that this package has written itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load

from apl_jax.data.files import most_array_bytes, read_bytes, refusal

_WHAT = "a complete safetensors file"


def read_tensors(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of a file by name. Raises :class:`~apl_jax.data.files.DataError` for one that is missing, damaged, or
    too large for this machine."""
    return parse_tensors(path, read_bytes(path, _WHAT, most_array_bytes()), remedy)


def parse_tensors(path: Path, content: bytes, remedy: str) -> dict[str, np.ndarray]:
    """The arrays in the bytes of a file, which ``path`` is only the name of. Raises as :func:`read_tensors`."""
    try:
        return load(content)
    except Exception as error:  # the library raises its own error, and what numpy does on damaged headers
        words = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise refusal(str(path), f"an unreadable file ({words})", _WHAT, remedy) from None
