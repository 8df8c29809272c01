"""What a command says when it fails: refusals, what the system refuses, and faults of the program (point 21)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apl_jax.cli import dispatch
from apl_jax.cli.dispatch import COMMANDS, main
from apl_jax.data.files import DataError
from apl_jax.text import say

COMMAND = "report"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], None]:
    """Lets the command end with an exception."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def let(error: BaseException) -> None:
        def carry_out(arguments: Namespace) -> Any:
            raise error

        monkeypatch.setitem(dispatch.COMMANDS, COMMAND, COMMANDS[COMMAND]._replace(carry_out=carry_out))

    return let


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError("x"), RuntimeError("x"), MemoryError(), RecursionError("x"), OSError("no errno"),
     AssertionError("two\nlines"), TypeError("\x1b[31m" + "long " * 10**6)],
)  # fmt: skip
def test_point_21_faults_end_with_one_message_and_code_70(
    error: Exception, failing: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error)
    workdir = tmp_path / "run"
    for kept in (tmp_path / "state" / "apl_jax" / "apl-jax.log", workdir / "apl-jax.log"):
        assert main([COMMAND, f"--workdir={workdir}"]) == 70
        said = capsys.readouterr().err
        assert said.startswith(f"apl-jax: an unexpected error, a fault of the program: {type(error).__name__}: ")
        assert said.count("\n") == 1 and len(said) < 1000 and "\x1b" not in said and str(kept) in said
        assert "Traceback" not in said and "--debug" in said
        log = kept.read_text()
        assert "Traceback (most recent call last)" in log and type(error).__name__ in log and COMMAND in log
        workdir.mkdir(exist_ok=True)  # the second time the folder is there: the log file is in it
    assert main([COMMAND, f"--workdir={workdir}", "--debug"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert (workdir / "apl-jax.log").read_text().count("Traceback (most") == 2  # appended


def test_a_log_file_that_is_none_does_not_keep_the_program(failing: Callable, tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "apl-jax.log")
    failing(ValueError("x"))
    assert main([COMMAND, f"--workdir={tmp_path}"]) == 70
    assert (tmp_path / "state" / "apl_jax" / "apl-jax.log").is_file()


def test_refusals_and_what_the_system_refuses_end_with_code_1(
    failing: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(DataError("x.json: found \x1b[2J; expected y. Try: z."))
    assert main([COMMAND, f"--workdir={tmp_path}"]) == 1
    assert capsys.readouterr().err == "apl-jax: x.json: found \\x1b[2J; expected y. Try: z.\n"
    failing(PermissionError(13, "Permission denied", "/root/x"))
    assert main([COMMAND, f"--workdir={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert "/root/x: permission denied. Try: " in said
    assert main([COMMAND, f"--workdir={tmp_path}", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert not (tmp_path / "apl-jax.log").exists() and not (tmp_path / "state").exists()


def test_every_command_knows_debug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert "--debug" in capsys.readouterr().out, name


def test_point_20_escape_sequences_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def carry_out(arguments: Namespace) -> None:
        import logging

        say("\x1b]0;title\x07")
        logging.getLogger("apl_jax.x").info("video %s", "\x1b[31m")

    monkeypatch.setitem(dispatch.COMMANDS, COMMAND, COMMANDS[COMMAND]._replace(carry_out=carry_out))
    assert main([COMMAND, f"--workdir={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert said.out == "\\x1b]0;title\\x07\n" and said.err == "video \\x1b[31m\n"
    assert main(["rep\x1b[31m"]) == 2
    assert "\x1b" not in capsys.readouterr().err
