"""benchmarks/accelerator.py runs anywhere, in small sizes, so that it can be trusted where there is an accelerator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import REPOSITORY


def measured(out: Path, *flags: str) -> list[list[str]]:
    """The rows of the table that it writes, without their head."""
    command = [sys.executable, REPOSITORY / "benchmarks" / "accelerator.py", "--small", f"--out={out}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in out.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_table_of_a_step_and_of_kernels(tmp_path: Path) -> None:
    rows = measured(tmp_path / "a.md", "--only=activitynet, spot.*float32|k-means")
    assert [row[0] for row in rows] == [
        *["product of two matrices of 256"] * 2,
        "k-means",
        "activitynet, spot, training step",
    ]
    assert all(len(row) == 7 and row[2].endswith("s") for row in rows)
    assert rows[-1][4].endswith("%") and rows[-1][5].endswith("GiB")


def test_what_there_was_no_time_for_is_named(tmp_path: Path) -> None:
    rows = measured(tmp_path / "a.md", "--only=spot.*float32|soft", "--minutes=0")
    assert [row[0] for row in rows] == ["product of two matrices of 256"] * 2
    text = (tmp_path / "a.md").read_text("utf-8")
    assert "Not measured" in text and "thumos14, spot, training step, float32" in text and "soft-NMS" in text


@pytest.mark.exhaustive  # it compiles 17 programs
def test_everything_is_measured(tmp_path: Path) -> None:
    rows = measured(tmp_path / "a.md", "--minutes=60")
    assert len(rows) == 2 + 2 + 2 + 16
    assert "Not measured" not in (tmp_path / "a.md").read_text("utf-8")
