"""Requests to stop: SIGTERM and SIGINT while a run is at work.

The first one asks. Whoever works in portions looks at :func:`requested` between them, saves, and raises
:class:`Preempted`. The second one ends the process at once. A thread also ends it when the work cannot look in time,
for a compiler may keep the main thread for minutes: everything that a run leaves is whole at any moment.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

from apl_jax.text import Refusal

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ONE_REQUEST_S = 1.0  # `timeout` and schedulers signal a process and then its group: within this time it is one request
_asked = threading.Event()


class Preempted(Refusal, RuntimeError):
    """A run that was asked to stop, and has saved its state; the same command goes on from there."""

    exit_code = 0


def requested() -> bool:
    """Whether a signal has asked to stop, this process or any other; all processes must call it at the same place."""
    asked = _asked.is_set()
    if jax.process_count() == 1:
        return asked
    return bool(multihost_utils.process_allgather(np.array(asked)).any())


def stop_if_requested(what: str) -> None:
    """Raises :class:`Preempted` when :func:`requested`: at a moment when there is nothing to save."""
    if requested():
        raise Preempted(f"{what}: stopped, what was done before is saved: the same command goes on")


@contextmanager
def stoppable(grace_s: float | None = None, before_end: Callable[[int], None] = lambda code: None) -> Iterator[None]:
    """Takes SIGTERM and SIGINT as requests to stop; afterwards they mean what they meant before.

    Only the main thread of a process can do so; elsewhere this changes nothing, and so do signals that the caller has
    chosen to ignore.

    Args:
        grace_s: seconds from the request until the process is ended, with code 0, wherever it is; a second request
            ends it at once, with 128 + the signal's number. None, for processes that are not ours alone (a notebook):
            the process is never ended, and a second request does what the signal did before.
        before_end: called with the exit code before the process is ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    _asked.clear()

    def hand_back() -> None:
        for number in taken:
            signal.signal(number, before[number])

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        if grace_s is None:
            hand_back()
        _asked.set()

    watching = None if grace_s is None else _Watch(grace_s, before_end)
    for number in taken:
        signal.signal(number, ask)
    try:
        yield
    finally:
        hand_back()
        if watching:
            watching.close()
        _asked.clear()


class _Watch:
    """A thread that counts requests, and ends the process after a second one, or after the grace."""

    def __init__(self, grace_s: float, before_end: Callable[[int], None]) -> None:
        self._grace_s, self._before_end = grace_s, before_end
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # what Python asks of it
        # Python writes the number of a signal there as soon as it comes, however long the main thread is busy.
        self._old = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="requests to stop", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops counting."""
        signal.set_wakeup_fd(self._old)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        first = None
        while True:
            left_s = None if first is None else max(first + self._grace_s - time.monotonic(), 0)
            if not select.select([self._read], [], [], left_s)[0]:
                words = "the last checkpoint is intact, and the same command goes on"
                self._end(0, f"stopped {self._grace_s:g} s after the request: {words}")
            numbers = os.read(self._read, 64)
            if not numbers:
                return
            asking = [number for number in numbers if number in SIGNALS]
            if first is None and asking:
                first = time.monotonic()
                _asked.set()
            elif first is not None and asking and time.monotonic() - first > _ONE_REQUEST_S:
                self._end(128 + asking[-1], "stopped at once. The same command goes on from the last checkpoint")

    def _end(self, code: int, message: str) -> None:
        self._before_end(code)
        end_process(code, message)


def end_process(code: int, message: str) -> None:
    """Ends this process from any of its threads, whatever the others do, with one line on the standard error."""
    # Not by print: the main thread may hold the stream's lock.
    os.write(2, f"apl-jax: {message}\n".encode())
    os._exit(code)
