"""Where scalars go: JSON lines, the source of truth that plots read, and TensorBoard when it is installed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


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
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= resume_step]
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(kept))
        os.replace(beside, path)
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and hands it to the operating system."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


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
    writers: list[MetricWriter] = [JsonLines(folder / "metrics.jsonl", resume_step)]
    with contextlib.suppress(ImportError):
        writers.append(TensorBoard(folder / "tensorboard"))
    return Writers(writers)
