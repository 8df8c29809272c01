"""What a command says when it fails, and where the details are."""

from __future__ import annotations

import contextlib
import os
import stat
import time
import traceback
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from apl_jax import __version__
from apl_jax.cli.parser import PROGRAM
from apl_jax.cli.words import in_flags, in_words
from apl_jax.text import Refusal, for_message, for_terminal, say, shown

FAULT = 70  # exit code
LOG = "apl-jax.log"


def end_with(error: Exception, chosen: Namespace) -> int:
    """Says what went wrong, and returns the exit code: of a refusal its own, of what the operating system refuses 1, of
    anything else 70, for it is a fault of the program, and its traceback is kept in a file."""
    if chosen.debug:
        say(_traceback(error), end="", error=True)
    if isinstance(error, Refusal) or (isinstance(error, OSError) and error.errno is not None):
        say(for_message(f"{PROGRAM}: {in_flags(in_words(error), chosen.flags)}"), error=True)
        return error.exit_code if isinstance(error, Refusal) else Refusal.exit_code
    what = f"{type(error).__name__}: {shown(str(error).partition(chr(10))[0], 300)[1:-1]}"
    kept = _keep(error, chosen)
    place = f"The details are in {kept}" if kept else "The details could not be saved"
    advice = f"{place}; --debug prints them" if not chosen.debug else place
    say(for_message(f"{PROGRAM}: an unexpected error, a fault of the program: {what}. {advice}."), error=True)
    return FAULT


def _traceback(error: Exception) -> str:
    with contextlib.suppress(MemoryError, RecursionError):
        return "".join(traceback.format_exception(error))
    return f"{type(error).__name__}, of which no traceback can be made\n"


def _keep(error: Exception, chosen: Namespace) -> Path | None:
    """Appends the traceback to the log file, and returns the file; None where nothing can be written."""
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    entry = f"{when}  apl_jax {__version__}  {chosen.command_line}\n{_traceback(error)}\n"
    for folder in _folders(chosen):
        try:
            _append(folder / LOG, for_terminal(entry).encode(errors="backslashreplace"))
        except OSError:
            continue
        return folder / LOG
    return None


def _folders(chosen: Namespace) -> Iterator[Path]:
    """Where the log file may be: the folder of the run, else that of the user for states of programs."""
    workdir = getattr(chosen, "workdir", None)
    with contextlib.suppress(OSError, ValueError):  # names that no file can have
        if workdir is not None and Path(workdir).is_dir():
            yield Path(workdir)
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a user without a home folder
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(home) / "apl_jax"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _append(path: Path, content: bytes) -> None:
    """Appends to a regular file; a FIFO of that name would keep the process waiting."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o644)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is no regular file")
        os.write(handle, content)
    finally:
        os.close(handle)
