"""Where scalars go: JSON lines, the source of truth that plots read, and TensorBoard when it is installed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from apl_jax.data.files import most_text_bytes, read_bytes, write_text

METRICS = "metrics.jsonl"


class MetricWriter(Protocol):
    """Takes scalars by step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records the values of one step."""
        ...

    def close(self) -> None:
        """Flushes."""
        ...


class JsonLines:
    """One JSON object per line, ``{"step": ..., name: value}``; resuming drops the lines after ``resume_step``."""

    def __init__(self, path: Path, resume_step: int) -> None:
        write_text(path, "".join(line for line, row in whole_lines(path) if row["step"] <= resume_step))
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and hands it to the operating system."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def whole_lines(path: Path) -> list[tuple[str, dict[str, float]]]:
    """The lines of a log and what they hold; none where there is no log.

    Blank, damaged and half-written lines, which a broken disk or a killed process leaves, are passed over. Raises
    :class:`~apl_jax.data.files.DataError` where the log cannot be read at all.
    """
    if not os.path.lexists(path):
        return []
    text = read_bytes(path, "the scalars of a stage", most_text_bytes()).decode(errors="replace")
    found = ((line, _row(line)) for line in text.split("\n")[:-1])  # the last may be half-written
    return [(f"{line}\n", row) for line, row in found if row is not None]


def _row(line: str) -> dict[str, float] | None:
    """A line's step and scalars; None where it is not whole."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and type(row.get("step")) is int
    return row if whole and all(type(value) in (int, float) for value in row.values()) else None


class TensorBoard:
    """Event files through tensorboardX, which needs no TensorFlow (clu's own writer does)."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]  # an extra

        self._writer: Any = SummaryWriter(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.close()


class Writers:
    """Several writers as one; on processes other than the first, none."""

    def __init__(self, writers: list[MetricWriter]) -> None:
        self._writers = writers

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Passes the values on."""
        for writer in self._writers:
            writer.scalars(step, values)

    def close(self) -> None:
        """Closes all."""
        for writer in self._writers:
            writer.close()


def open_writers(folder: Path, resume_step: int, first_process: bool) -> Writers:
    """JSON lines in ``folder/metrics.jsonl``, and TensorBoard beside it where tensorboardX is installed."""
    if not first_process:
        return Writers([])
    writers: list[MetricWriter] = [JsonLines(folder / METRICS, resume_step)]
    with contextlib.suppress(ImportError):
        writers.append(TensorBoard(folder / "tensorboard"))
    return Writers(writers)
