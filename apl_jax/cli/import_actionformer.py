"""``apl-jax import-actionformer``: the reference implementation's published weights, made a model."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.configuration import declare_configuration, read_settings
from apl_jax.cli.parser import PROGRAM, Command, Parser, path
from apl_jax.text import say


def _declare(parser: Parser) -> None:
    parser.flag("checkpoint", "FILE", "checkpoint of the reference implementation", path, required=True)
    declare_configuration(parser, ", with the settings of the checkpoint's network")
    parser.flag("workdir", "FOLDER", "new folder for the model", path, required=True)
    words = "text file with the classes of the checkpoint, one per line, in their order"
    parser.flag("classes", "FILE", words, path, shown="those of the data set, by label_id")


def _carry_out(arguments: Namespace) -> None:
    from apl_jax.inference.model import describe
    from apl_jax.interop.import_actionformer import import_actionformer

    settings, workdir = read_settings(arguments), arguments.workdir
    batch = settings.runtime.prediction_batch
    card = import_actionformer(
        arguments.checkpoint, settings.detector, settings.data, workdir, arguments.classes, batch
    )
    say(f"model     {workdir}  ({describe(card)})")
    say(f"next      {PROGRAM} predict --workdir={workdir} --features=<file or folder>")


COMMAND = Command(
    "import-actionformer",
    "make a model of published ActionFormer weights",
    "Writes a checkpoint of ActionFormer's reference implementation as a model, for predict and export.",
    ("--checkpoint=F.pth.tar --config=thumos14 --config.data.root=thumos14 --workdir=runs/af",),
    _declare,
    _carry_out,
    configured=True,
)
