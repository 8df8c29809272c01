"""Network weights from PyTorch's zip format, .safetensors and .npz: read without PyTorch, and without running code.

A PyTorch checkpoint is an archive of raw storages, ``<folder>/data/<key>``, and of a pickle, ``<folder>/data.pkl``,
that says which tensors lie in them. A pickle is a program, and loading one runs it. Here :func:`pickletools.genops`
takes it apart, and what state dicts need of the language is interpreted: containers, numbers, text, and four calls
that make tensors and dicts. Anything else is refused by its name; nothing is ever imported or called for the file.

Arrays are views of the bytes read, so that a file cannot ask for more memory than it has.
"""

from __future__ import annotations

import io
import itertools
import math
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from apl_jax.data.files import refusal
from apl_jax.data.features.layouts import AGAIN, DENSEST, Unusable, read_npz_member, words_of
from apl_jax.interop.safetensors import read_safetensors

_STORAGES: Mapping[str, np.dtype] = {
    f"torch {name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Float": np.float32, "Double": np.float64, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_,
    }.items()
}  # fmt: skip
_ORDERED_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_GLOBALS = (*_STORAGES, _ORDERED_DICT, _TENSOR, _PARAMETER)
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that files of torch < 1.6 begin with
_LARGEST_PICKLE = 1 << 26  # bytes; names and shapes of 100,000 tensors take a quarter of it
_MOST_NODES = 200_000  # dicts, lists and what is in them; a pickle can name one part of itself over and over
_DEEPEST = 32
_LONGEST_NAME = 500
_MOST_AXES = 16
_WEIGHTS_ONLY = (
    "where you trust it, with torch: c = torch.load(F, weights_only=False); "
    "torch.save({k: c[k] for k in c if 'state_dict' in k}, G), and give G"
)


class _Global(NamedTuple):
    """A name that a pickle mentions, on the list of those that are understood."""

    name: str


class _Storage(NamedTuple):
    values: np.ndarray  # [elements], read only


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name, as read-only arrays of their own dtype; what is no tensor is left out.

    Keys of nested dicts and numbers of list entries are joined by "/": ``state_dict_ema/module.backbone...``. The
    format is told from the content, not from the suffix: published checkpoints are called ``.pth.tar`` and are zip
    archives. Raises :class:`~apl_jax.data.files.DataError` for a file that is missing, damaged, of PyTorch's format
    before 1.6, or that contains more than tensors, numbers, text and containers.
    """
    path = Path(path).expanduser()
    try:
        return _read(path)
    except Unusable as problem:
        raise refusal(str(path), *problem.args) from None
    except FileNotFoundError:
        raise refusal(str(path), "no such file", "a checkpoint", "check the path") from None
    except Exception as error:  # on damaged bytes zipfile, struct, json and pickletools raise whatever they meet
        found = f"an unreadable file ({words_of(error)})"
        raise refusal(str(path), found, "a complete checkpoint", AGAIN) from None


def _read(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
        if start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                return _read_archive(archive, path.stat().st_size)
        if start[8:9] == b"{":
            return read_safetensors(path.read_bytes())
    if start == _LEGACY:
        remedy = "with torch: torch.save(torch.load(F, weights_only=True), G), and give G"
        raise Unusable("PyTorch's file format before version 1.6", "its zip format (torch.save since 1.6)", remedy)
    expected = "a PyTorch checkpoint (zip format), .safetensors or .npz"
    raise Unusable(f"a file that begins with {start[:8]!r}", expected, "torch.save(model.state_dict(), F)")


def _read_archive(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    """A PyTorch checkpoint or an .npz; ``size`` of the file, bytes."""
    members = archive.namelist()
    pickles = [name for name in members if name.count("/") <= 1 and name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) == 1:
        return _tensors_of(_Checkpoint(archive, pickles[0].removesuffix("data.pkl"), size).load())
    if pickles or not members or not all(name.endswith(".npy") for name in members):
        found = f"an archive of {', '.join(members[:4])[:200] or 'nothing'}"
        raise Unusable(found, "data.pkl and data/ as torch.save writes them, or .npy arrays", "check the path")
    if sum(archive.getinfo(name).file_size for name in members) > DENSEST * size:
        raise Unusable("an archive that promises more than it can hold", "a complete .npz file", AGAIN)
    return {name.removesuffix(".npy"): read_npz_member(archive, name, _check_weights) for name in members}


def _check_weights(shape: tuple[int, ...] | None, dtype: np.dtype) -> None:
    if shape is None or dtype.kind not in "fiub":
        raise Unusable(f"an array of {dtype}", "plain numbers", "save it as a float array")


class _Checkpoint:
    """The archive that torch.save wrote: its pickle interpreted, its storages read once each."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int) -> None:
        self._archive, self._folder = archive, folder
        self._unread = size  # bytes of the file; members that overlap would be read more often than they are there
        self._storages: dict[str, _Storage] = {}
        order = self._member("byteorder") if f"{folder}byteorder" in archive.namelist() else b"little"
        if order not in (b"little", b"big"):
            raise Unusable(f"byteorder {order[:20]!r}", "little or big", AGAIN)
        self._swapped = order.decode() != sys.byteorder

    def _member(self, name: str) -> bytes:
        """A stored member's bytes; its size is believed only as far as the file reaches."""
        info = self._archive.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED or not info.file_size == info.compress_size <= self._unread:
            found = f"{info.filename[:100]!r} compressed, or longer than the file"
            raise Unusable(found, "members stored as they are, as torch.save does", AGAIN)
        self._unread -= info.file_size
        return self._archive.read(info)

    def load(self) -> Any:
        """What the pickle describes, as dicts, lists, tuples, text, numbers and read-only arrays."""
        program = self._member("data.pkl")
        if len(program) > _LARGEST_PICKLE:
            raise Unusable(f"a data.pkl of {len(program):,} bytes", f"at most {_LARGEST_PICKLE:,}", _WEIGHTS_ONLY)
        return interpret(program, self._storage)

    def _storage(self, persistent: Any) -> _Storage:
        """The storage that a pickle's persistent id ``("storage", type, key, location, elements)`` names."""
        match persistent:
            case ("storage", _Global(name), str(key), str(), int(count)) if name in _STORAGES:
                dtype = _STORAGES[name]
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


def interpret(program: bytes, storage: Callable[[Any], Any]) -> Any:
    """The value that a pickle builds, out of the allowed operations only; ``storage`` resolves persistent ids.

    Raises :class:`~apl_jax.data.features.layouts.Unusable` naming the first operation or name that is not allowed, and whatever
    the stack machine meets on a damaged program (``IndexError``, ``TypeError``, ``ValueError`` ...).
    """
    machine = _Machine(storage)
    for opcode, argument, _ in pickletools.genops(io.BytesIO(program)):
        if opcode.name == "STOP":
            return machine.stack.pop()
        operation = _OPERATIONS.get(opcode.name)
        if operation is None:
            raise Unusable(f"the pickle operation {opcode.name}", "those of a state dict", _WEIGHTS_ONLY)
        operation(machine, argument)
    raise Unusable("a pickle without an end", "a complete file", AGAIN)


class _Machine:
    """The stack, the marks in it and the memo of a pickle under interpretation."""

    def __init__(self, storage: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # stacks set aside by MARK
        self.memo: dict[int, Any] = {}
        self._storage = storage

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def popped_to_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def popped(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise Unusable("a pickle that takes more than it has made", "a complete file", AGAIN)
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values

    def put(self, number: int | None) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        _kind(self.stack[-1], list).extend(values)

    def update(self, values: list[Any]) -> None:
        target = _kind(self.stack[-1], dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, int)) or (isinstance(key, int) and abs(key) >= 1 << 63):
                raise Unusable(f"a dict key of type {type(key).__name__}", "text or a number", _WEIGHTS_ONLY)
            target[key] = value

    def name(self, words: str) -> None:
        """A global ``module name``, which is only ever compared with the list."""
        if words not in _GLOBALS:
            found = f"{words.replace(' ', '.')[:200]!r} in the file, which might run code"
            raise Unusable(found, "tensors, numbers, text and containers only", _WEIGHTS_ONLY)
        self.push(_Global(words))

    def name_from_stack(self, _: Any) -> None:
        module, name = self.popped(2)
        self.name(f"{_kind(module, str)} {_kind(name, str)}")

    def persistent(self, _: Any) -> None:
        self.push(self._storage(self.stack.pop()))

    def call(self, _: Any) -> None:
        """REDUCE: the calls that state dicts contain, each done here."""
        function, arguments = self.popped(2)
        match function, arguments:
            case _Global(name), () if name == _ORDERED_DICT:
                self.push({})
            case _Global(name), (_Storage(values), int(offset), tuple(shape), tuple(strides), *_) if name == _TENSOR:
                self.push(_view(values, offset, shape, strides))
            case _Global(name), (np.ndarray() as tensor, *_) if name == _PARAMETER:
                self.push(tensor)
            case _:
                name = function.name if isinstance(function, _Global) else type(function).__name__
                raise Unusable(f"a call of {name!r} that is unusual", "those of a state dict", _WEIGHTS_ONLY)

    def build(self, _: Any) -> None:
        """BUILD: attributes of an OrderedDict (a state dict's ``_metadata``), which say nothing about weights."""
        target, _ = self.popped(2)
        self.push(_kind(target, dict))


def _kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Unusable(f"a {type(value).__name__} in place of a {kind.__name__}", "a state dict", AGAIN)
    return value


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


_Operation = Callable[[_Machine, Any], None]
_IGNORED: _Operation = lambda machine, argument: None
_ARGUMENT: _Operation = lambda machine, argument: machine.push(argument)
_PUT: _Operation = lambda machine, argument: machine.put(argument)
_GET: _Operation = lambda machine, argument: machine.push(machine.memo[argument])
_OPERATIONS: Mapping[str, _Operation] = {
    **dict.fromkeys(("PROTO", "FRAME"), _IGNORED),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _ARGUMENT),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _ARGUMENT),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _PUT),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _GET),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.popped_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.popped(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.popped(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.popped(3)),
    "APPEND": lambda machine, _: machine.extend(list(machine.popped(1))),
    "APPENDS": lambda machine, _: machine.extend(machine.popped_to_mark()),
    "SETITEM": lambda machine, _: machine.update(list(machine.popped(2))),
    "SETITEMS": lambda machine, _: machine.update(machine.popped_to_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}


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
                raise Unusable(f"two tensors named {name!r}", "each name once", _WEIGHTS_ONLY)
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
