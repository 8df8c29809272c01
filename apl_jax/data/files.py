"""Files read and written so that a person knows what is wrong, and nothing is ever left half-written."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from apl_jax.devices import host_bytes
from apl_jax.text import Refusal, shown

_JSON_SHARE = 1 / 16  # of the machine's memory that a text may fill: parsed, it takes ten times as much
_ARRAY_SHARE = 1 / 2  # of it that one array may fill
_LONGEST_LINE = 1 << 24  # characters of a line of a table: parsed, each of its cells takes sixty bytes


class DataError(Refusal, ValueError):
    """Data that cannot be used; the message names file, video and field, what was found, expected, and what to try."""

    expected: str = ""  # that part of the message: what refusals of one kind have in common


def refusal(where: str, found: str, expected: str, remedy: str) -> DataError:
    """The package's one form of complaint, as an exception to raise."""
    error = DataError(f"{where}: found {found}; expected {expected}. Try: {remedy}.")
    error.expected = expected
    return error


def most_text_bytes() -> int:
    """The size of a text file from which on it is not read: it would not fit in this machine's memory once parsed."""
    return int(_JSON_SHARE * host_bytes())


def most_array_bytes() -> int:
    """The size of one array from which on it is not read."""
    return int(_ARRAY_SHARE * host_bytes())


def open_regular(path: Path, what: str, most: int | None = None) -> BinaryIO:
    """Opens a regular file for reading; of FIFOs, devices and sockets nothing is read, for that may never end.

    ``what`` says what the file should be ("a JSON file"), ``most`` how many bytes at most. Raises :class:`DataError`.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for whoever writes to it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise refusal(f"{path}", "no such file", what, "check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        found = getattr(error, "strerror", None) or str(error)
        raise refusal(f"{path}", found, f"{what} that can be read", "check path and permissions") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or (most is not None and status.st_size > most):
        os.close(handle)
        if not stat.S_ISREG(status.st_mode):
            raise refusal(f"{path}", _kind(status.st_mode), f"{what}, a regular file", "check the path")
        found = f"{status.st_size / 2**20:,.0f} MiB"
        expected = f"{what} of at most {(most or 0) / 2**20:,.0f} MiB, as this machine's memory allows"
        raise refusal(f"{path}", found, expected, "check that this is the file that you mean")
    return os.fdopen(handle, "rb")


def expanded(path: str | Path) -> Path:
    """A path, ``~`` and ``~name`` being home folders. Raises :class:`DataError` where there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise refusal(shown(str(path)), "a home folder that nobody has", "a path", "write the path out") from None


def check_regular(path: Path, what: str, most: int | None = None) -> None:
    """Raises as :func:`open_regular`: before a library that takes paths opens a file by itself."""
    open_regular(path, what, most).close()


def read_bytes(path: Path, what: str, most: int | None = None) -> bytes:
    """All bytes of a regular file. Raises as :func:`open_regular`."""
    try:
        with open_regular(path, what, most) as file:
            return file.read()
    except OSError as error:
        raise refusal(f"{path}", f"{error.strerror}", f"{what} that can be read", "check the disk") from None


def file_digest(path: Path, what: str) -> str:
    """The SHA-256 of all bytes of a regular file. Raises as :func:`open_regular`."""
    try:
        with open_regular(path, what) as file:
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()  # typeshed asks for more than it calls
    except OSError as error:
        raise refusal(f"{path}", f"{error.strerror}", f"{what} that can be read", "check the disk") from None


def read_text(path: Path, what: str) -> str:
    """All of a UTF-8 text file, a byte order mark left out. Raises as :func:`open_regular`, also for bytes that are no
    UTF-8."""
    try:
        return read_bytes(path, what, most_text_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal(str(path), f"bytes that are no UTF-8 ({error.reason})", what, "check the path") from None


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 text file, without their ends. Raises as :func:`read_text`, also for a line without end."""
    lines = read_text(path, what).splitlines()
    longest = max(map(len, lines), default=0)
    if longest > _LONGEST_LINE:
        found = f"a line of {longest:,} characters"
        raise refusal(str(path), found, f"{what}, of lines of at most {_LONGEST_LINE:,}", "check the path")
    return lines


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
        stat.S_ISSOCK: "a socket",
    }  # fmt: skip
    return next((words for test, words in kinds.items() if test(mode)), "no regular file")


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; :class:`DataError` with line and column where it is not one, or names a key twice."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            key = next(k for k, _ in pairs if k in seen or seen.add(k))
            found = f"the key {shown(key)} twice in one object"
            raise refusal(str(path), found, "each key once", "remove or rename one")
        return result

    try:
        text = read_text(path, "a JSON file")
        document = json.loads(text, object_pairs_hook=without_duplicates)
        if "\\ud" in text.lower():  # json lets an escaped half of a character pass, but nothing could write it again
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise refusal(str(path), "JSON nested too deeply", "an annotation file", "check the path") from None
    except ValueError as error:
        raise _unreadable_json(path, error) from None
    if not isinstance(document, dict):
        raise refusal(str(path), f"a JSON {type(document).__name__}", "a JSON object", "check the path")
    return document


def _unreadable_json(path: Path, error: ValueError) -> DataError:
    """Why a text is no JSON document, for people."""
    if isinstance(error, DataError):
        return error
    if isinstance(error, json.JSONDecodeError):
        where = f"{path}: line {error.lineno}, column {error.colno}"
        return refusal(where, f"broken JSON ({error.msg})", "valid JSON", "copy the file again, or repair it")
    if isinstance(error, (UnicodeDecodeError, UnicodeEncodeError)):
        return refusal(str(path), f"bytes that are no UTF-8 ({error.reason})", "a JSON text", "check the path")
    return refusal(str(path), f"a number too long to read ({error})", "times in seconds", "correct the number")


def load_csv(path: Path, columns: Sequence[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file below its header, each as (line it ends on, text by column name), stripped of spaces.

    :class:`DataError` for a file that is missing, no UTF-8, no CSV or without rows, for a header that lacks one of
    ``columns`` or has a name twice, for a row with more or fewer fields than the header, and for an
    empty line before the last row.
    """
    again = "copy the file again, or repair it"
    line = empty = 0  # the first empty line: several may end a file, and none be in the middle
    try:
        text = read_text(path, "a CSV file")
        if max(map(len, io.StringIO(text)), default=0) > _LONGEST_LINE:
            raise refusal(str(path), f"a line of more than {_LONGEST_LINE:,} characters", "a CSV file", again)
        with io.StringIO(text, newline="") as file:
            table = csv.reader(file, strict=True)
            header = [name.strip() for name in next(table, [])]
            if len(set(header)) < len(header) or not set(columns) <= set(header):
                found = f"columns {shown(header, 300)[1:-1] or 'none'}"
                expected = f"each once, with {', '.join(columns) or 'a name for each'}"
                raise refusal(f"{path}: header", found, expected, again)
            rows = []
            for fields in table:
                if fields and empty:
                    raise refusal(f"{path}: line {empty}", "an empty line", "a row in each line", "remove the line")
                line = table.line_num
                empty = empty or (0 if fields else line)
                if fields and len(fields) != len(header):
                    found, expected = f"{len(fields)} fields", f"{len(header)} as in the header"
                    raise refusal(f"{path}: line {line}", found, expected, again)
                if fields:
                    rows.append((line, dict(zip(header, (text.strip() for text in fields), strict=True))))
    except csv.Error as error:
        raise refusal(f"{path}: after line {line}", f"broken CSV ({error})", "valid CSV", again) from None
    if not rows:
        raise refusal(str(path), "no rows", "a header and at least one row", again)
    return rows


def write_json(path: str | Path, document: dict[str, Any]) -> None:
    """Writes a JSON document as :func:`write_text` does. Raises :class:`DataError` for NaN or infinite numbers."""
    try:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        found = f"a value that JSON cannot hold ({error})"
        raise refusal(str(path), found, "finite numbers and text", "correct the value") from None
    write_text(path, text)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text as UTF-8, as :func:`write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file beside ``path`` and renames it: readers see the old file or the new one, never a part.

    Raises ``OSError`` (same ``errno``) with a message for people when the disk is full or the folder not writable; the
    old file is then untouched and nothing is left behind.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a delayed "disk full" must surface before the rename
        move(beside, path)
    except OSError as error:
        remedy = "the former file, if any, is untouched. Try: free some space, or another folder"
        raise OSError(error.errno, f"could not save ({error.strerror}); {remedy}", str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # after the rename, or in a folder that could not be made, there is none
            beside.unlink()


def move(source: Path, target: Path) -> None:
    """Renames a file or a folder, in place of an old file, so that the new name outlasts a power failure."""
    os.replace(source, target)
    for folder in {source.parent, target.parent}:
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Has the names in a folder written to the disk: without it, a rename may be lost with the power."""
    with contextlib.suppress(OSError):  # some file systems have no such thing, and keep their order by themselves
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
