"""What a finished stage has sealed: a digest of every file that it left for others, and of its own result.

``done.json`` holds them. So what was damaged, edited by hand or lost is noticed by whoever uses it: by the run that
would skip the stage, by the report, in notebooks. Checkpoints have digests of their own
(:mod:`apl_jax.training.checkpoint`), a model's card the digest of its parameters (:mod:`apl_jax.inference.model`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apl_jax.data.files import DataError, file_digest, load_json, refusal, write_json
from apl_jax.declarations import fingerprint
from apl_jax.training.checkpoint import DAMAGED
from apl_jax.training.writers import METRICS

DONE, STARTED, CHECKPOINTS = "done.json", "started.json", "checkpoints"
# From these a stage goes on; no later stage and no prediction depends on them.
RESUMED_FROM = (CHECKPOINTS, DAMAGED, "tensorboard", METRICS, STARTED)
_UNSEALED = (*RESUMED_FROM, DONE, "model.json")  # every run writes the card of a model anew
_WHAT = "the file that a finished stage left"
ON_PURPOSE = "labels that were corrected on purpose come in by `learning.labels=<file>`"
_AGAIN = f"the command of the run again, which makes the file anew; {ON_PURPOSE}"


def artefacts(folder: Path) -> Iterator[Path]:
    """The files of a stage's folder that its seal covers, in order."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_file() and not path.name.endswith(".tmp") and not {inside[0], inside[-1]} & set(_UNSEALED):
            yield path


def seal(folder: Path, mark: str, result: dict[str, Any]) -> None:
    """Writes ``done.json``: the stage is over under the fingerprint ``mark``, and these are its files and result."""
    record = {"fingerprint": mark, "result": result}
    files = {path.relative_to(folder).as_posix(): file_digest(path, _WHAT) for path in artefacts(folder)}
    write_json(folder / DONE, {**record, "files": files, "digest": fingerprint(record, files)})


def read_seal(folder: Path) -> dict[str, Any]:
    """``done.json`` of a stage. Raises :class:`~apl_jax.data.files.DataError` where it is missing, damaged or
    edited."""
    record = load_json(folder / DONE)
    named = {name: record.get(name) for name in ("fingerprint", "result")}
    if fingerprint(named, record.get("files")) != record.get("digest"):
        raise refusal(str(folder / DONE), "another content than the stage wrote", "the file as it was", _AGAIN)
    return record


def check_files(folder: Path, record: dict[str, Any], *names: str) -> None:
    """Compares files with what ``record``, a stage's seal, says of them; without ``names`` all.

    Raises :class:`~apl_jax.data.files.DataError` naming the first that is damaged, edited or lost.
    """
    for name in names or record["files"]:
        path = folder / name
        try:
            found = file_digest(path, _WHAT)
        except DataError as error:
            raise DataError(f"{str(error).partition(' Try: ')[0]} Try: {_AGAIN}.") from None
        if found != record["files"].get(name):
            raise refusal(str(path), "another content than the stage wrote", "the file as it was", _AGAIN)


def sealed_file(folder: Path, name: str) -> Path:
    """A file that a finished stage left, once it is sure that nobody has changed it since. Raises as
    :func:`check_files`."""
    check_files(folder, read_seal(folder), name)
    return folder / name
