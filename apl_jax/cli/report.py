"""``apl-jax report``: the page of a finished run, written again."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.parser import Command, Parser, path
from apl_jax.text import say


def _declare(parser: Parser) -> None:
    parser.flag("workdir", "FOLDER", "folder of a finished run", path, required=True)


def _carry_out(arguments: Namespace) -> None:
    from apl_jax.report import write_report

    say(f"{write_report(arguments.workdir)}")


COMMAND = Command(
    "report",
    "write report.html of a finished run again",
    "Writes report.html of a finished run again.",
    ("--workdir=runs/spsw",),
    _declare,
    _carry_out,
)
