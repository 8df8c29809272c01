"""From a command line to its command: the log, the errors and the exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from apl_jax.cli import (
    compare,
    evaluate,
    export,
    import_actionformer,
    inspect,
    predict,
    prepare_hapt,
    report,
    run,
    synthesize,
    thresholds,
)
from apl_jax.cli.parser import PROGRAM, Command, UsageError, parse
from apl_jax.cli.words import in_flags, in_words

_FILES = (
    inspect, run, evaluate, predict, thresholds, report, compare, export, import_actionformer, synthesize, prepare_hapt,
)  # fmt: skip
COMMANDS: dict[str, Command] = {file.COMMAND.name: file.COMMAND for file in _FILES}
FAILED, MISUSED, INTERRUPTED = 1, 2, 130  # exit codes


def main(arguments: Sequence[str] | None = None) -> int:
    """Carries out a command line, by default that of the process, and returns its exit code.

    0 is success, also of a run that was asked to stop and has saved its state; 1 a refusal, with one message on the
    standard error; 2 a command line that cannot be understood; 130 an interruption. Raises ``SystemExit`` after a help.
    """
    try:
        chosen = parse(COMMANDS, list(sys.argv[1:] if arguments is None else arguments))
        _set_up_log(chosen.flags)
    except UsageError as error:
        print(error, file=sys.stderr)
        return MISUSED
    try:
        return COMMANDS[chosen.command].carry_out(chosen) or 0
    except UsageError as error:
        print(error, file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        goes_on = " The same command goes on from the last checkpoint." if chosen.command == run.COMMAND.name else ""
        print(f"{PROGRAM}: interrupted.{goes_on}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:  # DataError and SettingsError are ValueErrors
        print(f"{PROGRAM}: {in_flags(in_words(error), chosen.flags)}", file=sys.stderr)
        return 0 if _is_preemption(error) else FAILED


def _is_preemption(error: Exception) -> bool:
    """Whether training was asked to stop, and has saved its state."""
    if not isinstance(error, RuntimeError):
        return False
    from apl_jax.interruption import Preempted

    return isinstance(error, Preempted)


class _InFlags(logging.Formatter):
    """Plain messages, in the words of a command that has these flags."""

    def __init__(self, flags: Sequence[str]) -> None:
        super().__init__("%(message)s")
        self._flags = flags

    def format(self, record: logging.LogRecord) -> str:
        """The message alone."""
        return in_flags(super().format(record), self._flags)


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
