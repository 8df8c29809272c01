"""``apl-jax export``: a model as a program that needs not this package."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.configuration import declare_plugin, load_plugins
from apl_jax.cli.parser import Command, Parser, path, whole_number
from apl_jax.text import say


def _declare(parser: Parser) -> None:
    parser.flag("workdir", "FOLDER", "folder of a finished run, or of a model", path, required=True)
    parser.flag("out", "FOLDER", "folder to write", path, required=True)
    words = "feature rows that the program takes"
    parser.flag("length", "ROWS", words, whole_number, shown="as many as the longest video of the run has")
    words = "training stage whose model is exported, in the folder of a run"
    parser.flag("stage", "NAME", words, default="", shown="that of the final variant")
    declare_plugin(parser)


def _carry_out(arguments: Namespace) -> None:
    from apl_jax.inference.export import EXAMPLE, export_model

    load_plugins(arguments)
    out = arguments.out
    card = export_model(arguments.workdir, out, arguments.length, arguments.stage)
    say(f"exported  {out}  ({card['stage']}, up to {card['length']} feature rows, {', '.join(card['platforms'])})")
    say(f"next      python {out / EXAMPLE} <recording.npy> <frames per second>")


COMMAND = Command(
    "export",
    "write a model as StableHLO",
    "Writes a model as StableHLO, with NMS inside, and an example that runs it without this package.",
    ("--workdir=runs/spsw --out=spsw_export", "--workdir=runs/spsw/model --out=spsw_export --length=1024"),
    _declare,
    _carry_out,
)
