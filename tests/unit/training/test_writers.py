"""The log of a stage, with what broken disks and killed processes leave in it."""

from __future__ import annotations

from pathlib import Path

from apl_jax.training.writers import open_writers, whole_lines

WHOLE = b'{"step": 1, "loss": 2.0}\n', b'{"step": 2, "loss": 1.5}\n'
BROKEN = b"\n", b"\0\0\0\n", b'{"step": 1, "lo\n', b"[1]\n", b'{"loss": 1.0}\n', b'{"step": "2"}\n', b"\xff\n"


def test_lines_that_are_not_whole_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE[0] + b"".join(BROKEN) + WHOLE[1] + b'{"step": 3, "loss": 1')
    assert [row["step"] for _, row in whole_lines(path)] == [1, 2]
    open_writers(tmp_path, 2, True).close()
    assert path.read_bytes() == b"".join(WHOLE)
    open_writers(tmp_path, 1, True).close()
    assert path.read_bytes() == WHOLE[0]
