"""One feature file as an array, in every published layout (.npy, .npz, .csv, .h5); nothing here can run foreign code.

Readers return what the file holds and raise :class:`Unusable`, which says what was found, expected and to be tried;
decoders of other packages may raise anything else on damaged bytes, and :meth:`FeatureSource.read` words that too.
"""

from __future__ import annotations

import io
import math
import os
import shlex
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import h5py
import h5py.h5l
import numpy as np

from apl_jax.data.features.limits import AGAIN, Unusable, check_size, open_zip
from apl_jax.data.files import check_regular, open_regular, read_lines, refusal
from apl_jax.text import shown, some

PICKLES = (".pkl", ".pickle", ".pt", ".pth")
_KEYS = ("feats", "features")  # what published archives call their array when they hold several
_LONGEST_HEADER = 10_000  # bytes that say shape and type of an array, as numpy allows
_MOST_CHANNELS = 1 << 20  # of a table in CSV
DENSEST = 1100  # no deflate stream holds more bytes per byte (1032); beyond that, a damaged or hostile header
_HEADERS: Mapping[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def check_rows(shape: tuple[int, ...] | None, dtype: np.dtype) -> None:
    """Raises :class:`Unusable` unless an array so described is real numbers ``[samples, channels]``, at least 1 x 1."""
    if dtype.hasobject:
        found = "an array of Python objects, which is never loaded"
        raise Unusable(found, "a complete numeric array", "save it as a float array")
    if shape is None or len(shape) != 2 or min(shape) < 1 or dtype.kind not in "fiu":
        found = f"shape {list(shape or ())}, {dtype}"
        raise Unusable(found, "real numbers [samples, channels], at least 1 x 1", "re-extract this recording")


def read_npy_stream(
    file: IO[bytes], size: int, check: Callable[[tuple[int, ...] | None, np.dtype], None] = check_rows
) -> np.ndarray:
    """The array of a .npy stream of ``size`` bytes, which must hold exactly what its header promises.

    ``check`` raises :class:`Unusable` for shapes and dtypes that are not wanted.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:  # version 3 describes arrays with named columns
        raise Unusable(
            f"an array of format version {version}", "a plain numeric .npy array", "save it as a float array"
        )
    length = file.read(2 if version == (1, 0) else 4)
    if int.from_bytes(length, "little") > _LONGEST_HEADER:
        found = f"a header of {int.from_bytes(length, 'little'):,} bytes"
        raise Unusable(found, f"one of at most {_LONGEST_HEADER:,}", AGAIN)
    header = io.BytesIO(length + file.read(int.from_bytes(length, "little")))
    shape, columns_first, dtype = _HEADERS[version](header)
    check(shape, dtype)
    promised, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if promised != there:
        found = f"an unreadable array ({there} bytes of numbers, {promised} promised by its header)"
        raise Unusable(found, "a complete numeric .npy array", AGAIN)
    check_size(promised)
    values = np.frombuffer(file.read(promised), dtype)
    return values.reshape(shape[::-1]).T if columns_first else values.reshape(shape)


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file."""
    with open_regular(path, "a .npy file") as file:
        return read_npy_stream(file, os.fstat(file.fileno()).st_size)


def read_npz_member(
    archive: zipfile.ZipFile, name: str, check: Callable[[tuple[int, ...] | None, np.dtype], None] = check_rows
) -> np.ndarray:
    """One array of an open archive; ``name`` with its ``.npy``, ``check`` as in :func:`read_npy_stream`."""
    with archive.open(name) as file:
        return read_npy_stream(file, archive.getinfo(name).file_size, check)


def read_npz(path: Path) -> np.ndarray:
    """The only array of a .npz file, or the one named ``feats`` or ``features``."""
    with open_zip(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        return read_npz_member(archive, _pick(names, "array") + ".npy")


def read_csv(path: Path) -> np.ndarray:
    """The rows of a .csv file, float64 ``[T, D]``; a first line of names is skipped, every column is a feature."""
    lines = read_lines(path, "a .csv file")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise Unusable("an empty file", "one line of comma-separated numbers per step", AGAIN)
    if lines[0].count(",") >= _MOST_CHANNELS:
        raise Unusable(f"{lines[0].count(',') + 1:,} cells on line 1", f"at most {_MOST_CHANNELS:,} channels", AGAIN)
    first = [cell.strip() for cell in lines[0].split(",")]
    if len(first) > 2 and first in ([str(i) for i in range(len(first))], [str(i + 1) for i in range(len(first))]):
        found = f"a first line that counts the columns, {first[0]},{first[1]}, ... {first[-1]}"
        expected = "names such as f0, f1, ... or values"
        raise Unusable(found, expected, "save the table with named columns, or without a header")
    header = int(all(map(_is_name, first)))
    if len(lines) == header:
        raise Unusable("a header without rows", "one line of numbers per step", AGAIN)
    for number, line in enumerate(lines, 1):
        if not line.strip():  # numpy would pass over it, and every later row would be a step too early
            raise Unusable(f"an empty line {number}", "one line of numbers per step", "remove the line, or fill it in")
        count = line.count(",") + 1
        if count != len(first):
            raise Unusable(f"{count} cells on line {number}", f"{len(first)} as on line 1", AGAIN)
    try:
        return np.loadtxt(lines[header:], np.float64, delimiter=",", comments=None, ndmin=2)
    except ValueError:
        raise _bad_cell(lines, header) from None


def _is_name(cell: str) -> bool:
    """Whether a cell can only be the name of a column."""
    return cell[:1] not in "+-.0123456789" and any(map(str.isalpha, cell)) and not _is_number(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python's own 1_000


def _bad_cell(lines: Sequence[str], header: int) -> Unusable:
    """The complaint about the first cell that is no number."""
    cells = (
        (i, j, cell) for i, line in enumerate(lines[header:], header + 1) for j, cell in enumerate(line.split(","))
    )
    row, column, cell = next((hit for hit in cells if not _is_number(hit[2])), (header + 1, 0, lines[header]))
    remedy = "one line of names at most, no index column (pandas: index=False), a point for decimals"
    return Unusable(f"{shown(cell, 40)} on line {row}, column {column + 1}", "a number", remedy)


def read_h5(path: Path) -> np.ndarray:
    """The only dataset of an HDF5 file, in whichever group, or the one named ``feats`` or ``features``."""
    with open_h5(path) as file:
        names: list[str] = []

        def note(name: Any, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                names.append(_decoded(name))

        file.visititems(note)  # hard links only: soft and external ones may lead out of the file
        return read_h5_dataset(file[_encoded(_pick(names, "dataset"))])


def open_h5(path: Path) -> h5py.File:
    """An HDF5 file for reading, also from folders where no lock can be taken."""
    check_regular(path, "an HDF5 file")
    return h5py.File(path, "r", locking="best-effort")


def list_h5(group: h5py.Group) -> tuple[str, ...]:
    """The names in a group."""
    return tuple(map(_decoded, cast(Any, group)))


def find_h5_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset ``name`` at the top of a file, or the one of the group of that name (only, feats, features)."""
    item = _linked(file, name)
    if isinstance(item, h5py.Group):
        names = [key for key in list_h5(item) if isinstance(_linked(item, key), h5py.Dataset)]
        item = _linked(item, _pick(names, "dataset in its group"))
    check_h5_dataset(item)
    return item


def read_h5_dataset(dataset: Any) -> np.ndarray:
    """All numbers of a dataset that passes :func:`check_h5_dataset`."""
    check_h5_dataset(dataset)
    return np.asarray(dataset[()])


def check_h5_dataset(dataset: Any) -> None:
    """Raises :class:`Unusable` unless this is rows of numbers that were all written, into this file.

    HDF5 reads what was never written as zeros: an extraction that was interrupted would be trained on.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise Unusable(f"a {type(dataset).__name__.lower()}", "a dataset [T, D], or a group with one", AGAIN)
    if dataset.is_virtual or dataset.external:
        raise Unusable("numbers that lie in other files", "all in this one", "copy them into one file (h5repack)")
    shape, dtype = dataset.shape, dataset.dtype
    check_rows(shape, dtype)
    promised, stored = math.prod(shape) * dtype.itemsize, dataset.id.get_storage_size()
    if dataset.chunks:
        expected = math.prod(-(-length // chunk) for length, chunk in zip(shape, dataset.chunks, strict=True))
        written = dataset.id.get_num_chunks()
        if written != expected or promised > DENSEST * stored:
            found = f"an incomplete dataset ({written} of {expected} chunks, {stored} bytes for {promised})"
            raise Unusable(found, "every row written", AGAIN)
    elif stored != promised:
        raise Unusable(f"an incomplete dataset ({stored} of {promised} bytes written)", "every row written", AGAIN)
    check_size(promised, math.prod(dataset.chunks or ()) * dtype.itemsize)


def _linked(group: h5py.Group, name: str) -> Any:
    """An object of a group, never one of another file or name."""
    if cast(Any, group.id).links.get_info(_encoded(name)).type != h5py.h5l.TYPE_HARD:
        raise Unusable(f"a link at {shown(name)}", "the dataset itself", "copy the features into this file (h5repack)")
    return group[_encoded(name)]


def _decoded(name: str | bytes) -> str:
    """A name of an HDF5 file as Python names files: h5py hands out bytes where it is no UTF-8."""
    return name if isinstance(name, str) else name.decode(errors="surrogateescape")


def _encoded(name: str) -> bytes:
    """The name as it is stored."""
    return name.encode(errors="surrogateescape")


def _pick(names: Sequence[str], what: str) -> str:
    """The array that is meant, of those in a file."""
    named = [name for name in names if name in _KEYS]
    if len(names) == 1 or len(named) == 1:
        return named[0] if named else names[0]
    listed = some(list(map(shown, names)))
    found = f"{len(names)} of them ({listed})" if names else "none"
    raise Unusable(found, f"one {what}, or one named feats or features", "keep one, or name the one that is meant")


READERS: Mapping[str, Callable[[Path], np.ndarray]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".csv": read_csv,
    ".h5": read_h5,
    ".hdf5": read_h5,
}


def list_folder(folder: Path) -> dict[str, Path]:
    """The feature files of a folder by video, all of one suffix; other files (notes, checksums) are passed over.

    Raises :class:`DataError` for pickles, two suffixes, and a folder that cannot be read or holds no feature file.
    """
    try:
        with os.scandir(folder) as entries:
            listed = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    except OSError as error:
        raise refusal(str(folder), f"{error.strerror}", "a folder of feature files", "check the path") from None
    paths = [folder / name for name, is_folder in listed if not is_folder]
    refuse_pickles(paths)
    files = [path for path in paths if path.suffix.lower() in READERS]
    videos: dict[str, Path] = {}
    for path in files:
        first = videos.setdefault(path.stem, path)
        if first is not path:
            where = f"{folder}: video {path.stem!r}"
            raise refusal(where, f"{first.name} and {path.name}", "one file per video", "move one of them away")
    if not files:
        kinds = sorted({path.suffix for path in paths if path.suffix}) + [
            f"{n}/" for n, is_folder in listed if is_folder
        ]
        found = f"no feature files (but {', '.join(kinds[:6])})" if kinds else "no feature files"
        remedy = f"put them there{_nested(folder, [n for n, is_folder in listed if is_folder])}"
        raise refusal(str(folder), found, f"<video>{', '.join(READERS)}", remedy)
    other = next((path for path in files if path.suffix.lower() != files[0].suffix.lower()), None)
    if other:
        found = f"{files[0].name} and {other.name}"
        raise refusal(str(folder), found, "files of one suffix", "convert or move away those of the other")
    return videos


def _nested(folder: Path, folders: Sequence[str]) -> str:
    """The advice for streams that lie inside the folder."""
    streams = tuple(f"{folder.name}/{name}" for name in ("rgb", "flow") if name in folders)
    return f', or declare its streams, `data.streams="{streams}"`' if streams else ""


def refuse_pickles(paths: Sequence[Path]) -> None:
    """Raises :class:`DataError` with the way to convert them when any of the files is a pickle."""
    pickles = [path for path in paths if path.suffix.lower() in PICKLES]
    if not pickles:
        return
    path = pickles[0]
    if path.suffix.lower() in (".pt", ".pth"):
        modules, load = "torch", "torch.load(p, map_location='cpu', weights_only=True).float().numpy()"
    else:
        modules, load = "pickle", "numpy.asarray(pickle.load(p.open('rb')), 'float32')"
    code = (
        f"import sys, pathlib, numpy, {modules}; [numpy.save(p.with_suffix('.npy'), {load}) "
        f"for p in pathlib.Path(sys.argv[1]).glob('*{path.suffix}')]"
    )
    found = f"a pickle, which may run code when opened and is never loaded ({len(pickles)} such files)"
    remedy = (
        f"where you made and trust these files, with one array [T, D] in each, run python -c {shlex.quote(code)} "
        f"{shlex.quote(str(path.parent))} and move the {path.suffix} files away"
    )
    raise refusal(f"{path}: video {path.stem!r}", found, ", ".join(READERS), remedy)


def words_of(error: Exception) -> str:
    """What a decoder said, on one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
