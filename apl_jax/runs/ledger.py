"""Which stages of a run are done, which one was broken off; nothing is ever half-written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from apl_jax.data.files import load_json, write_json

_DONE, _STARTED = "done.json", "started.json"


class LedgerError(RuntimeError):
    """A run folder that cannot be used now."""


class Ledger:
    """The stages of one run folder: the other object that remembers things between calls.

    ``stages/<name>/`` holds a stage's files, ``started.json`` with its fingerprint, and, once all else is written,
    ``done.json`` with its result. A stage whose fingerprint has changed moves to ``superseded/``: nothing is deleted.
    Only the first process writes; the others wait for it.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.first_process = jax.process_index() == 0

    def folder(self, name: str) -> Path:
        """Where a stage keeps its files."""
        return self.workdir / "stages" / name

    def result(self, name: str, fingerprint: str) -> dict[str, Any] | None:
        """What the stage returned when it was done under this fingerprint, or None."""
        path = self.folder(name) / _DONE
        if not path.exists():
            return None
        record = load_json(path)
        return record["result"] if record["fingerprint"] == fingerprint else None

    def begin(self, name: str, fingerprint: str) -> Path:
        """The stage's folder: as it was broken off under the same fingerprint, otherwise empty."""
        folder = self.folder(name)
        if self.first_process:
            started = folder / _STARTED
            if folder.exists() and (not started.exists() or load_json(started)["fingerprint"] != fingerprint):
                self._supersede(folder)
            if not started.exists():
                write_json(started, {"fingerprint": fingerprint})
        self._wait(f"begin {name}")
        return folder

    def finish(self, name: str, fingerprint: str, result: dict[str, Any]) -> None:
        """Declares the stage done; everything it wrote must be on disk by now."""
        if self.first_process:
            write_json(self.folder(name) / _DONE, {"fingerprint": fingerprint, "result": result})
        self._wait(f"finish {name}")

    def write(self, path: Path, document: dict[str, Any]) -> None:
        """Writes a JSON file whole, from the first process only."""
        if self.first_process:
            write_json(path, document)
        self._wait(f"write {path.name}")

    def _supersede(self, folder: Path) -> None:
        shelf = self.workdir / "superseded"
        shelf.mkdir(parents=True, exist_ok=True)
        count = sum(1 for _ in shelf.glob(f"{folder.name}-*"))
        os.replace(folder, shelf / f"{folder.name}-{count}")

    @staticmethod
    def _wait(what: str) -> None:
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(what)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out of the folder; the operating system lets go if this process dies.

        Raises :class:`LedgerError` when another run is at work in it.
        """
        if not self.first_process:
            yield
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        with (self.workdir / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LedgerError(
                    f"{self.workdir}: another run is at work in this folder. Wait for it, or choose another `workdir`."
                ) from None
            yield
