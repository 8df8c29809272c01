"""Checkpoints in PyTorch's zip format, written without PyTorch: arrays stand for tensors, pickle writes the rest.

The layout is that of torch.save of 2.x, which was compared member by member: ``<name>/data.pkl`` of protocol 2 with
persistent ids for storages, ``<name>/byteorder``, ``<name>/data/<key>``, ``<name>/version``.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    np.dtype(dtype): name
    for name, dtype in {
        "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "LongStorage": np.int64,
        "IntStorage": np.int32, "ByteStorage": np.uint8, "BoolStorage": np.bool_, "BFloat16Storage": ml_dtypes.bfloat16,
    }.items()
}  # fmt: skip


class _Reference:
    """A storage that a tensor names by its persistent id."""

    def __init__(self, identity: tuple) -> None:
        self.identity = identity


class _Tensor:
    """Reduces to the call that makes a tensor."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple:
        return _torch()["_rebuild_tensor_v2"], self.arguments


def _torch() -> dict[str, Any]:
    """Names that pickle can find in a module of PyTorch's name; they exist while a checkpoint is written."""
    return vars(sys.modules["torch._utils"]) | vars(sys.modules["torch"])


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> tuple | None:
        return obj.identity if isinstance(obj, _Reference) else None


def write_checkpoint(
    path: Path, document: Any, *, protocol: int = 2, byteorder: str = "little", name: str = "archive"
) -> None:
    """Writes nested dicts, lists and numbers with arrays in them; an array's strides are kept."""
    present = {module: sys.modules.get(module) for module in ("torch", "torch._utils")}
    sys.modules["torch"], sys.modules["torch._utils"] = types.ModuleType("torch"), types.ModuleType("torch._utils")
    try:
        for storage in _STORAGES.values():
            setattr(sys.modules["torch"], storage, type(storage, (), {"__module__": "torch"}))

        def rebuild() -> None: ...

        rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
        sys.modules["torch._utils"]._rebuild_tensor_v2 = rebuild  # pyright: ignore[reportAttributeAccessIssue]
        data: list[bytes] = []
        program = io.BytesIO()
        _Pickler(program, protocol).dump(_prepared(document, data, byteorder))
    finally:
        for module, former in present.items():
            if former is None:
                del sys.modules[module]
            else:
                sys.modules[module] = former
    members = {"data.pkl": program.getvalue(), "byteorder": byteorder.encode(), "version": b"3\n"}
    write_archive(path, members | {f"data/{i}": content for i, content in enumerate(data)}, name)


def write_archive(path: Path, members: dict[str, bytes], name: str = "archive") -> None:
    """The members, stored as they are, in a folder of the archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, content in members.items():
            archive.writestr(f"{name}/{member}", content)


def _prepared(value: Any, data: list[bytes], byteorder: str) -> Any:
    """The document with tensors in place of arrays, whose storages are appended to ``data``."""
    if isinstance(value, dict):
        return type(value)((key, _prepared(entry, data, byteorder)) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_prepared(entry, data, byteorder) for entry in value)
    if not isinstance(value, np.ndarray):
        return value
    whole = value
    while isinstance(whole.base, np.ndarray) and whole.base.dtype == value.dtype:
        whole = whole.base
    assert whole.flags.c_contiguous
    offset = (value.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // value.itemsize
    raw = whole.ravel().view(f"u{whole.itemsize}")
    data.append((raw if byteorder == sys.byteorder else raw.byteswap()).tobytes())
    storage = getattr(sys.modules["torch"], _STORAGES[value.dtype])
    reference = _Reference(("storage", storage, str(len(data) - 1), "cpu", whole.size))
    strides = tuple(step // value.itemsize for step in value.strides)
    return _Tensor(reference, offset, value.shape, strides, False, OrderedDict())
