"""``apl-jax compile``: the programs of a run, compiled for devices that are not here."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.configuration import declare_configuration, read_settings
from apl_jax.cli.parser import Command, Parser, count
from apl_jax.compilation import ENVIRONMENT, HOST, KINDS
from apl_jax.text import say


def _declare(parser: Parser) -> None:
    declare_configuration(parser)
    words = f"TPU slice, such as v5e:4x4, v4:2x2x2, v5p:2x2x4; {HOST}: the devices of this machine"
    parser.flag("topology", "NAME", words, default=HOST)
    parser.flag("precision", "float32|bfloat16", "of the network (detector.dtype)", shown="the configuration's")
    words = "recordings of each kind that a device sees in a training step"
    parser.flag("batch_per_device", "N", words, count, shown="the configuration's batches, over all devices")
    words = "channels of a feature row, where there are no features yet"
    parser.flag("feature_width", "N", words, count, shown="that of the features, else data.synthetic.width")
    words = f"{', '.join(KINDS)}, or stages such as teacher, with commas between them"
    parser.flag("only", "WHAT", words, default="", shown="all")


def _carry_out(arguments: Namespace) -> int:
    import os

    for name, value in ENVIRONMENT.items() if arguments.topology != HOST else ():
        os.environ.setdefault(name, value)
    from apl_jax.compilation.rehearsal import rehearse
    from apl_jax.declarations import override

    settings = read_settings(arguments)
    if arguments.precision:
        settings = override(settings, {"detector.dtype": arguments.precision})
    chosen = tuple(filter(None, arguments.only.split(","))) or KINDS
    found = rehearse(settings, arguments.topology, arguments.batch_per_device, arguments.feature_width, chosen, say)
    say("\n".join(["", found.table(), "", *found.notes()]))
    return 0 if found.fits else 1


COMMAND = Command(
    "compile",
    "compile a run's programs for devices that are not here",
    "Compiles the programs of a run for a TPU slice or for this machine, from the annotations alone. Prints memory, "
    "arithmetic, communication and a bound for the time of each. For TPUs it needs the extra 'tpu' (libtpu), and no "
    "TPU. The exit code is 1 where a program does not fit into a device's memory.",
    (
        "--config=thumos14:apl --config.data.root=annotations --topology=v5e:4x4 --precision=bfloat16",
        "--config=spsw:apl --only=training",
    ),
    _declare,
    _carry_out,
    configured=True,
)
