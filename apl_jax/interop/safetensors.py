"""Tensors of Hugging Face's .safetensors: a length, a JSON header, and the bytes that it describes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from apl_jax.data.features.layouts import AGAIN, Unusable

_SAFETENSORS: Mapping[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F32": np.float32, "F64": np.float64, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
        "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
    }.items()
}  # fmt: skip


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors by name, as read-only views of ``data``, the whole file.

    Raises :class:`~apl_jax.data.features.layouts.Unusable` for tensors outside the file and for dtypes that numpy lacks, and
    whatever json and struct meet on damaged bytes.
    """
    (length,) = struct.unpack_from("<Q", data)
    header, body = data[8 : 8 + length], memoryview(data)[8 + min(length, len(data)) :]
    found = {}
    for name, entry in json.loads(header).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        if entry["dtype"] not in _SAFETENSORS:
            raise Unusable(f"{name!r} of dtype {str(entry['dtype'])[:20]}", ", ".join(_SAFETENSORS), "another dtype")
        dtype = _SAFETENSORS[entry["dtype"]]
        shape = entry["shape"]
        fine = all(type(n) is int and n >= 0 for n in shape) and 0 <= first <= last <= len(body)
        if not fine or math.prod(shape) * dtype.itemsize != last - first:
            raise Unusable(f"{name!r} outside the file, or of another shape", "a complete file", AGAIN)
        found[name] = np.frombuffer(body[first:last], f"<u{dtype.itemsize}").view(dtype).reshape(shape)
    return found
