"""``apl-jax run``: a whole run, from the data to the report."""

from __future__ import annotations

from argparse import Namespace

from apl_jax.cli.configuration import declare_configuration, read_settings
from apl_jax.cli.parser import Command, Parser, path
from apl_jax.text import say


def _declare(parser: Parser) -> None:
    declare_configuration(parser)
    parser.flag("workdir", "FOLDER", "folder of the run, made if there is none", path, required=True)


def _carry_out(arguments: Namespace) -> None:
    import contextlib

    import jax

    from apl_jax.interruption import stoppable
    from apl_jax.processes import Peers
    from apl_jax.report import print_table, write_report
    from apl_jax.runs.run import run

    settings, workdir = read_settings(arguments), arguments.workdir
    peers = Peers(settings.runtime.silence_seconds)
    together = peers.joined() if settings.runtime.distributed == "auto" else contextlib.nullcontext()
    with stoppable(settings.runtime.grace_seconds, peers.before_end), together:
        results = run(settings, workdir, arguments.command_line)
        if jax.process_index() == 0:
            print_table(results)
            page = write_report(workdir)
            say(f"\nresults   {workdir / 'results.json'}\nreport    {page}")


COMMAND = Command(
    "run",
    "train, label, train again, evaluate",
    "Trains, labels, trains again and evaluates. The same command goes on after an interruption. Ends with a table, "
    "results.json and report.html.",
    (
        "--config=spsw:apl --workdir=runs/spsw",
        "--config=spsw:apl --workdir=runs/spsw_1 --config.seed=1 --config.data.split_seed=1",
    ),
    _declare,
    _carry_out,
    configured=True,
)
