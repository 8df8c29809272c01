"""From a command line to its command: the log, the errors and the exit codes."""

from __future__ import annotations

import logging
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from apl_jax.cli import (
    compare,
    compile,
    configure,
    evaluate,
    export,
    import_actionformer,
    inspect,
    predict,
    prepare_hapt,
    report,
    run,
    synthesize,
    tables,
    thresholds,
)
from apl_jax.cli.faults import end_with
from apl_jax.cli.parser import PROGRAM, Command, UsageError, parse
from apl_jax.cli.words import in_flags
from apl_jax.text import for_message, say

_FILES = (
    inspect, configure, run, evaluate, predict, thresholds, report, compare, tables, compile, export,
    import_actionformer, synthesize, prepare_hapt,
)  # fmt: skip
COMMANDS: dict[str, Command] = {file.COMMAND.name: file.COMMAND for file in _FILES}
MISUSED, INTERRUPTED = 2, 130  # exit codes, beside those of faults.py
_GOES_ON = (run.COMMAND.name, tables.COMMAND.name)  # commands that keep checkpoints


def main(arguments: Sequence[str] | None = None) -> int:
    """Carries out a command line, by default that of the process, and returns its exit code.

    0 is success, also of a run that was asked to stop and has saved its state; 1 a refusal, with one message on the
    standard error; 2 a command line that cannot be understood; 70 a fault of the program, whose details are in a log
    file; 130 an interruption. Raises ``SystemExit`` after a help.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = Namespace(command="", flags=(), debug="--debug" in given, command_line=shlex.join([PROGRAM, *given]))
    try:
        chosen = parse(COMMANDS, given)
        _set_up_log(chosen.flags)
        return COMMANDS[chosen.command].carry_out(chosen) or 0
    except UsageError as error:
        say(for_message(str(error)), error=True)
        return MISUSED
    except KeyboardInterrupt:
        goes_on = " The same command goes on from the last checkpoint." if chosen.command in _GOES_ON else ""
        say(f"{PROGRAM}: interrupted.{goes_on}", error=True)
        return INTERRUPTED
    except Exception as error:
        return end_with(error, chosen)


class _InFlags(logging.Formatter):
    """Plain messages, in the words of a command that has these flags."""

    def __init__(self, flags: Sequence[str]) -> None:
        super().__init__("%(message)s")
        self._flags = flags

    def format(self, record: logging.LogRecord) -> str:
        """The message alone."""
        return for_message(in_flags(super().format(record), self._flags))


def _set_up_log(flags: Sequence[str]) -> None:
    """Our own lines plain, those of libraries only when something is wrong: orbax logs every step that it takes."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    # A failed write surfaces once, as CheckpointError; asyncio and orbax's storage would repeat it for every array.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _quiet_closed_loop
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_InFlags(flags))
    ours = logging.getLogger("apl_jax")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def _quiet_closed_loop(problem: Any) -> None:
    if "Event loop is closed" not in str(problem.exc_value):
        sys.__unraisablehook__(problem)
