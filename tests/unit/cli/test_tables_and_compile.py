"""What `apl-jax tables` and `apl-jax compile` say before they do anything that takes long."""

from __future__ import annotations

from pathlib import Path

import pytest

from apl_jax.cli.dispatch import COMMANDS, main
from apl_jax.cli.parser import UsageError, parse
from apl_jax.tables.catalogue import TABLES


def test_all_tables_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{table.name} " in listed and table.title in listed for table in TABLES.values())
    assert main(["tables"]) == 0 and capsys.readouterr().out == listed


@pytest.mark.parametrize(("text", "seeds"), [("0", (0,)), ("0,2,5", (0, 2, 5)), ("1..4", (1, 2, 3, 4)), ("7..7", (7,))])
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse(COMMANDS, ["tables", "apl:2", f"--seeds={text}"]).seeds == seeds


@pytest.mark.parametrize("text", ["", "a", "0,0", "-1", "4..1", "0..", "0,,1", "1.5"])
def test_impossible_seeds(text: str) -> None:
    with pytest.raises(UsageError, match="seeds"):
        parse(COMMANDS, ["tables", "apl:2", f"--seeds={text}"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tables", "apl:2"], "--workdir"),
        (["tables", "apl:9", "--workdir=w"], "there are apl:1, apl:2"),
    ],
)
def test_misused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["tables", "apl:s7", f"--workdir={tmp_path}"]) == 1
    assert "about epic" in capsys.readouterr().err
    assert main(["compile", "--config=spsw:smoke", "--only=training,nothing"]) == 1
    assert "--only`" in (said := capsys.readouterr().err) and "'nothing'" in said and "teacher" in said
    assert main(["compile", "--config=spsw:smoke", "--topology=v9:2x2"]) == 1
    assert "--topology" in (said := capsys.readouterr().err) and "v5e" in said
