"""``apl-jax compare``: one table of many finished runs."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.parser import Command, Parser, path
from apl_jax.text import say


def _declare(parser: Parser) -> None:
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=path, help="folder of a finished run")


def _carry_out(arguments: Namespace) -> None:
    from apl_jax.report.compare import comparison

    say(comparison(arguments.folders))


COMMAND = Command(
    "compare",
    "print one table of many finished runs",
    "Prints one table of many finished runs: mean and deviation over those that differ in their seeds alone.",
    ("runs/spsw_0 runs/spsw_1 runs/spsw_2",),
    _declare,
    _carry_out,
)
