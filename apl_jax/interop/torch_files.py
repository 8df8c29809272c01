"""Network weights from PyTorch's zip format, .safetensors and .npz: read without PyTorch, and without running code.

A PyTorch checkpoint is an archive of raw storages, ``<folder>/data/<key>``, and of a pickle, ``<folder>/data.pkl``,
that says which tensors lie in them (torch/serialization.py). The pickle is read by an unpickler that knows the few
names and operations that state dicts need (https://docs.python.org/3/library/pickle.html#restricting-globals); nothing
else is imported or called. Its arrays are views of the bytes read, so a file cannot ask for more memory than it has.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import safe_open

from apl_jax.data.features.layouts import read_npz_member, words_of
from apl_jax.data.features.limits import AGAIN, Unusable, check_members, check_size
from apl_jax.data.files import DataError, expanded, most_array_bytes, open_regular, refusal
from apl_jax.text import shown

_STORAGES: Mapping[str, np.dtype] = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Float": np.float32, "Double": np.float64, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_,
    }.items()
}  # fmt: skip
_SAFETENSORS = ("F32", "F64", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_OPERATIONS = {
    "PROTO", "FRAME", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    "MARK", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD",
}  # fmt: skip
_NAMES = {ord(operation.code): operation.name for operation in pickletools.opcodes}
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that files of torch < 1.6 begin with
_LARGEST_PICKLE = 1 << 23  # bytes; names and shapes of 50,000 tensors, and in any case some seconds of reading
_MOST_NODES = 200_000  # dicts, lists and what is in them; a pickle can name one part of itself over and over
_DEEPEST = 32
_LONGEST_NAME = 500
_MOST_AXES = 16
_WEIGHTS_ONLY = (
    "where you trust it, with torch: c = torch.load(F, weights_only=False); "
    "torch.save({k: c[k] for k in c if 'state_dict' in k}, G), and give G"
)


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name, as arrays of their own dtype; what is no tensor is left out.

    Keys of nested dicts and numbers of list entries are joined by "/": ``state_dict_ema/module.backbone...``. The
    format is told from the content, not from the suffix: published checkpoints are called ``.pth.tar`` and are zip
    archives. Raises :class:`~apl_jax.data.files.DataError` for a file that is missing, damaged, of PyTorch's format
    before 1.6, or that contains more than tensors, numbers, text and containers.
    """
    path = expanded(path)
    try:
        return _read(path)
    except Unusable as problem:
        raise refusal(str(path), *problem.args) from None
    except DataError:
        raise
    except Exception as error:  # on damaged bytes zipfile, struct, pickle and safetensors raise whatever they meet
        found = f"an unreadable file ({words_of(error)})"
        raise refusal(str(path), found, "a complete checkpoint", AGAIN) from None


def _read(path: Path) -> dict[str, np.ndarray]:
    with open_regular(path, "a checkpoint", most_array_bytes()) as file:
        start = file.read(len(_LEGACY))
        if start.startswith(b"PK"):
            check_members(file)
            with zipfile.ZipFile(file) as archive:
                return _read_archive(archive, path.stat().st_size)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start == _LEGACY:
        remedy = "with torch: torch.save(torch.load(F, weights_only=True), G), and give G"
        raise Unusable("PyTorch's file format before version 1.6", "its zip format (torch.save since 1.6)", remedy)
    expected = "a PyTorch checkpoint (zip format), .safetensors or .npz"
    raise Unusable(f"a file that begins with {start[:8]!r}", expected, "torch.save(model.state_dict(), F)")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, of the dtypes that PyTorch's format has too."""
    found = {}
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  # it is no dict, and cannot be iterated
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _SAFETENSORS:
                raise Unusable(f"{shown(name)} of dtype {dtype}", ", ".join(_SAFETENSORS), "another dtype")
            found[name] = file.get_tensor(name)
            found[name].flags.writeable = False
    return found


def _read_archive(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    """A PyTorch checkpoint or an .npz; ``size`` of the file, bytes."""
    members = archive.namelist()
    pickles = [name for name in members if name.count("/") <= 1 and name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) == 1:
        return _tensors_of(_Checkpoint(archive, pickles[0].removesuffix("data.pkl"), size).load())
    if pickles or not members or not all(name.endswith(".npy") for name in members):
        found = f"an archive of {', '.join(members[:4])[:200] or 'nothing'}"
        raise Unusable(found, "data.pkl and data/ as torch.save writes them, or .npy arrays", "check the path")
    check_size(sum(archive.getinfo(name).file_size for name in members))
    return {name.removesuffix(".npy"): read_npz_member(archive, name, _check_weights) for name in members}


def _check_weights(shape: tuple[int, ...] | None, dtype: np.dtype) -> None:
    if shape is None or dtype.kind not in "fiub":
        raise Unusable(f"an array of {dtype}", "plain numbers", "save it as a float array")


class _Storage(NamedTuple):
    """What tensors lie in; not an array, so that nothing takes it for a tensor."""

    values: np.ndarray  # [elements], read only


class _Dict(dict):
    """A dict of the file; other keys are refused before they are hashed, which for deep tuples would end Python."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, (str, int)) or (isinstance(key, int) and abs(key) >= 1 << 63):
            raise Unusable(f"a dict key of type {type(key).__name__}", "text or a number", _WEIGHTS_ONLY)
        super().__setitem__(key, value)


def _new_dict() -> _Dict:
    """``collections.OrderedDict()``, which torch.save writes without arguments."""
    return _Dict()


def _rebuild_tensor(*arguments: Any) -> np.ndarray:
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``."""
    match arguments:
        case (_Storage(values), int(offset), tuple(shape), tuple(strides), *_):
            return _view(values, offset, shape, strides)
    raise Unusable("a tensor of unusual arguments", "a storage, offset, shape and strides", AGAIN)


def _rebuild_parameter(*arguments: Any) -> np.ndarray:
    """``torch._utils._rebuild_parameter(data, requires_grad, hooks)``."""
    match arguments:
        case (np.ndarray() as tensor, *_):
            return tensor
    raise Unusable("a parameter of unusual arguments", "a tensor", AGAIN)


_GLOBALS: Mapping[str, Any] = {
    "collections.OrderedDict": _new_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    **_STORAGES,
}


def _view(values: np.ndarray, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    """The tensor in a storage, without a copy; refused where any element of it would lie outside."""
    numbers = (offset, *shape, *strides)
    fine = len(shape) == len(strides) <= _MOST_AXES and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
    count = math.prod(shape) if fine else 0
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=False)) if count else offset
    if not fine or count > len(values) or (count and last >= len(values)):
        # What stands there may be anything: only a shape that is one is shown.
        found = f"a tensor {list(shape)} from {offset} with strides {list(strides)}" if fine else "a damaged tensor"
        raise Unusable(found, f"one inside its storage of {len(values)} values", AGAIN)
    if not count:
        return np.zeros([min(n, 1) for n in shape], values.dtype).reshape(shape)
    steps = [step * values.itemsize if n > 1 else 0 for n, step in zip(shape, strides, strict=True)]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)


class _Dispatch(dict[int, Callable[[Any], None]]):
    """The unpickler's methods by opcode; what is missing is refused by its name."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        found = f"the pickle operation {_NAMES.get(code, hex(code))}"
        raise Unusable(found, "those of a state dict", _WEIGHTS_ONLY)


class _Checkpoint(pickle._Unpickler):
    """The archive that torch.save wrote: its pickle, to be read by ``load()``, and its storages, read once each.

    The base class is the standard library's unpickler in Python, whose operations are methods that can be left out or
    replaced. The one in C, :class:`pickle.Unpickler`, allocates gigabytes where a five-byte operation asks for them,
    hashes every dict key, and lets BUILD change any object.
    """

    stack: list[Any]
    dispatch = _Dispatch((code, pickle._Unpickler.dispatch[code]) for code in _NAMES if _NAMES[code] in _OPERATIONS)

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int) -> None:
        self._archive, self._folder = archive, folder
        self._unread = size  # bytes of the file; members that overlap would be read more often than they are there
        self._storages: dict[str, _Storage] = {}
        order = self._member("byteorder") if f"{folder}byteorder" in archive.namelist() else b"little"
        if order not in (b"little", b"big"):
            raise Unusable(f"byteorder {order[:20]!r}", "little or big", AGAIN)
        self._swapped = order.decode() != sys.byteorder
        length = archive.getinfo(f"{folder}data.pkl").file_size
        if length > _LARGEST_PICKLE:
            raise Unusable(f"a data.pkl of {length:,} bytes", f"at most {_LARGEST_PICKLE:,}", _WEIGHTS_ONLY)
        super().__init__(io.BytesIO(self._member("data.pkl")))

    def _member(self, name: str) -> bytes:
        """A stored member's bytes; its size is believed only as far as the file reaches."""
        info = self._archive.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED or not info.file_size == info.compress_size <= self._unread:
            found = f"{shown(info.filename)} compressed, or longer than the file"
            raise Unusable(found, "members stored as they are, as torch.save does", AGAIN)
        self._unread -= info.file_size
        return self._archive.read(info)

    def find_class(self, module: str, name: str) -> Any:
        """One of the functions above, or a dtype in place of a storage's type; nothing is ever imported."""
        known = _GLOBALS.get(f"{module}.{name}")
        if known is None:
            found = f"{shown(f'{module}.{name}', 200)} in the file, which might run code"
            raise Unusable(found, "tensors, numbers, text and containers only", _WEIGHTS_ONLY)
        return known

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a persistent id ``("storage", type, key, location, elements)`` names."""
        match pid:
            case ("storage", np.dtype() as dtype, str(key), str(), int(count)):
                pass
            case _:
                raise Unusable("a reference to something unknown", "the storage of a tensor", _WEIGHTS_ONLY)
        if key not in self._storages:
            data = self._member(f"data/{key}")
            raw = np.frombuffer(data, f"u{dtype.itemsize}") if len(data) % dtype.itemsize == 0 else None
            if raw is None or len(raw) != count:
                found = f"{len(data)} bytes in storage {key[:20]!r}"
                raise Unusable(found, f"{count} values of {dtype}", AGAIN)
            self._storages[key] = _Storage((raw.byteswap() if self._swapped else raw).view(dtype))
        storage = self._storages[key]
        if (storage.values.dtype, len(storage.values)) != (dtype, count):
            raise Unusable(f"storage {key[:20]!r} described twice, differently", "one description", AGAIN)
        return storage

    def load_empty_dict(self) -> None:
        """EMPTY_DICT: a dict that checks its keys."""
        self.stack.append(_Dict())

    def load_build(self) -> None:
        """BUILD: attributes of an OrderedDict (a state dict's ``_metadata``), which say nothing about weights."""
        self.stack.pop()
        if not isinstance(self.stack[-1], _Dict):
            found = f"attributes of a {type(self.stack[-1]).__name__}"
            raise Unusable(found, "attributes of state dicts only", _WEIGHTS_ONLY)

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dict
    dispatch[pickle.BUILD[0]] = load_build


def _tensors_of(value: Any) -> dict[str, np.ndarray]:
    """The arrays in nested dicts, lists and tuples by their joined keys."""
    found: dict[str, np.ndarray] = {}
    nodes = itertools.count(1)

    def visit(value: Any, name: str, depth: int) -> None:
        if next(nodes) > _MOST_NODES or depth > _DEEPEST or len(name) > _LONGEST_NAME:
            expected = f"at most {_MOST_NODES:,} entries, {_DEEPEST} levels, names of {_LONGEST_NAME} characters"
            raise Unusable("containers without end", expected, _WEIGHTS_ONLY)
        if isinstance(value, np.ndarray):
            if name in found:
                raise Unusable(f"two tensors named {shown(name)}", "each name once", _WEIGHTS_ONLY)
            found[name] = value
        for key, entry in _entries(value):
            visit(entry, f"{name}/{key}" if name else str(key), depth + 1)

    visit(value, "", 0)
    return found


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif type(value) in (list, tuple):
        yield from enumerate(value)
