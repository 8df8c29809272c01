"""``apl-jax prepare-hapt``: HAPT as UCI distributes it, made a data folder."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.parser import OVERRIDE, PROGRAM, Command, Parser, path
from apl_jax.text import say


def _declare(parser: Parser) -> None:
    parser.flag("source", "FOLDER", 'the folder "HAPT Data Set" as UCI distributes it', path, required=True)
    parser.flag("out", "FOLDER", "data folder to write", path, required=True)


def _carry_out(arguments: Namespace) -> None:
    from apl_jax.interop.hapt import prepare_hapt

    recordings = prepare_hapt(arguments.source, arguments.out)
    say(f"prepared  {arguments.out}  ({recordings} recordings)")
    say(f"next      {PROGRAM} run --config=hapt {OVERRIDE}data.root={arguments.out} --workdir=runs/hapt")


COMMAND = Command(
    "prepare-hapt",
    "make a data folder of UCI's HAPT",
    'Makes the folder that UCI distributes as "HAPT Data Set" a data folder for the configuration hapt.',
    ('--source="HAPT Data Set" --out=data/hapt',),
    _declare,
    _carry_out,
)
