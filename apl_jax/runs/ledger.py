"""Which stages of a run are done, which one was broken off; nothing is ever half-written."""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from apl_jax.data.files import DataError, load_json, move, refusal, write_json
from apl_jax.runs.artefacts import CHECKPOINTS, DONE, ON_PURPOSE, RESUMED_FROM, STARTED, check_files, read_seal, seal
from apl_jax.text import Refusal, address_scheme

log = logging.getLogger(__name__)


class LedgerError(Refusal, RuntimeError):
    """A run folder that cannot be used now."""


class Ledger:
    """The stages of one run folder: the other object that remembers things between calls.

    ``stages/<name>/`` holds a stage's files, ``started.json`` with its fingerprint, and, once all else is written,
    ``done.json`` with its result and a digest of each file. A stage whose fingerprint has changed moves to
    ``superseded/``: nothing is deleted. Only the first process writes; the others wait for it.

    With ``shared``, a folder of finished stages by fingerprint, runs that have a stage in common do it once: what one
    has finished is copied there, and copied from there by the others.
    """

    def __init__(self, workdir: Path, shared: Path | None = None) -> None:
        self.workdir = workdir
        self.shared = shared
        self.first_process = jax.process_index() == 0

    def folder(self, name: str) -> Path:
        """Where a stage keeps its files."""
        return self.workdir / "stages" / name

    def result(self, name: str, mark: str) -> dict[str, Any] | None:
        """What the stage returned when it was done under the fingerprint ``mark``; None where it has to be done.

        All that it left is compared with its seal first. What is damaged, edited or lost is said, and the stage set
        aside: it is done again, where it has checkpoints from the newest of these.
        """
        return self._agreed(self._sealed_result(name, mark) if self.first_process else None)

    def _sealed_result(self, name: str, mark: str) -> dict[str, Any] | None:
        folder = self.folder(name)
        if not os.path.lexists(folder / DONE) and not self._adopt(name, mark):
            return None
        try:
            record = read_seal(folder)
            if record["fingerprint"] != mark:
                return None
            check_files(folder, record)
        except DataError as error:
            found, where = str(error).partition(" Try: ")[0], self._set_aside(folder)
            log.info(
                "note: %s The stage %s is done again. What was there is in %s; %s.", found, name, where, ON_PURPOSE
            )
            return None
        return record["result"]

    def begin(self, name: str, mark: str) -> Path:
        """The stage's folder: as it was broken off under the same fingerprint, otherwise empty."""
        folder = self.folder(name)
        if self.first_process:
            if os.path.lexists(folder) and _started(folder) != mark:
                self._supersede(folder)
            if not (folder / STARTED).exists():
                write_json(folder / STARTED, {"fingerprint": mark})
        self._wait(f"begin {name}")
        return folder

    def finish(self, name: str, mark: str, result: dict[str, Any]) -> None:
        """Declares the stage done; everything it wrote must be on disk by now."""
        if self.first_process:
            seal(self.folder(name), mark, result)
            self._offer(name, mark)
        self._wait(f"finish {name}")

    @contextmanager
    def claimed(self, mark: str) -> Iterator[None]:
        """Waits while another run does the stage of this fingerprint; without ``shared`` nobody is waited for."""
        if self.shared is None or not self.first_process:
            yield
            return
        self.shared.mkdir(parents=True, exist_ok=True)
        with (self.shared / f"{mark}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _adopt(self, name: str, mark: str) -> bool:
        """Copies a stage that another run has finished; False where there is none, or this run has begun it itself."""
        source, folder = self.shared and self.shared / mark, self.folder(name)
        if source is None or not (source / DONE).exists():
            return False
        if os.path.lexists(folder):
            if _started(folder) == mark:
                return False
            self._supersede(folder)
        _copy_whole(source, folder)
        return True

    def _offer(self, name: str, mark: str) -> None:
        """Copies a finished stage for other runs, without its checkpoints."""
        if self.shared and not (self.shared / mark).exists():
            _copy_whole(self.folder(name), self.shared / mark)

    def write(self, path: Path, document: dict[str, Any]) -> None:
        """Writes a JSON file whole, from the first process only."""
        if self.first_process:
            write_json(path, document)
        self._wait(f"write {path.name}")

    def _set_aside(self, folder: Path) -> Path:
        """Moves what a stage left out of the way, and says where to; not its checkpoints, from which it can go on."""
        if not (folder / CHECKPOINTS).is_dir():
            return self._supersede(folder)
        shelf = self._shelf(folder.name)
        shelf.mkdir(parents=True)
        for path in [path for path in folder.iterdir() if path.name not in RESUMED_FROM]:
            move(path, shelf / path.name)
        return shelf

    def _supersede(self, folder: Path) -> Path:
        shelf = self._shelf(folder.name)
        shelf.parent.mkdir(parents=True, exist_ok=True)
        move(folder, shelf)
        return shelf

    def _shelf(self, name: str) -> Path:
        """A place of its own for what a stage of this name leaves behind."""
        shelf = self.workdir / "superseded"
        return next(place for n in itertools.count() if not os.path.lexists(place := shelf / f"{name}-{n}"))

    @staticmethod
    def _agreed(document: dict[str, Any] | None) -> dict[str, Any] | None:
        """The first process's document, on all of them: they must not decide apart."""
        if jax.process_count() == 1:
            return document
        text = np.frombuffer(json.dumps(document).encode(), np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
        padded = np.resize(text, length)
        return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())

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
            except BlockingIOError:
                raise LedgerError(
                    f"{self.workdir}: another run is at work in this folder. Wait for it, or choose another `workdir`."
                ) from None
            yield


def check_workdir(workdir: Path) -> None:
    """Refuses an address, such as ``gs://bucket/run``: it would be taken for the name of a folder here, and nothing
    could be renamed whole in a bucket."""
    scheme = address_scheme(str(workdir))
    if scheme:
        found, expected = f"{str(workdir)!r}, an address of {scheme}", "a folder of a mounted file system"
        remedy = "mount it and give that folder, or run in a local folder and copy it afterwards"
        raise refusal("`workdir`", found, expected, remedy)


def _copy_whole(source: Path, target: Path) -> None:
    """A copy of a stage's folder that is there whole or not at all; what it was resumed from stays behind. A half one,
    which a killed process leaves, stands beside the folder of all stages and not in it."""
    half = target.parent.with_name(f".{target.name}.{uuid.uuid4().hex}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, half, ignore=shutil.ignore_patterns(CHECKPOINTS, "tensorboard", "*.tmp"))
    try:
        half.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(half)
        if not (target / DONE).exists():
            raise


def _started(folder: Path) -> str | None:
    """The fingerprint under which a stage was begun; None where its file is missing or damaged."""
    try:
        return str(load_json(folder / STARTED).get("fingerprint"))
    except DataError:
        return None
