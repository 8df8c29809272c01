"""The command line ``apl-jax <command>``, and the only place that speaks of flags: one file for each command."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main", "program"]


def main(arguments: list[str] | None = None) -> int:
    """As :func:`apl_jax.cli.dispatch.main`, which is imported when it is needed."""
    from apl_jax.cli.dispatch import main as carry_out

    return carry_out(arguments)


def program() -> None:
    """What ``apl-jax`` is as a process. An interruption ends it with one line, while it is imported and at its end too,
    where an exception would not be caught; a run has its own way (:mod:`apl_jax.interruption`)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us ignores it
        signal.signal(signal.SIGINT, _end)
    sys.exit(main())


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"apl-jax: interrupted.\n")
    os._exit(128 + number)
