"""Requests to stop, in real processes: what the first, the second and none in time do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from apl_jax.interruption import Preempted, requested, stop_if_requested, stoppable

# A process that works in the way that its first argument says, with a grace of as many seconds as its second.
WORK = """
import hashlib, sys, time
from apl_jax.interruption import requested, stoppable
how, grace_s = sys.argv[1], float(sys.argv[2])
with stoppable(grace_s):
    print("ready", flush=True)
    if how == "looks":
        while not requested():
            time.sleep(0.01)
        time.sleep(0.5)
        print("saved", flush=True)
    else:  # deaf: a long call that lets other threads work, but calls no handler, as compilers do
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


def work(how: str, grace_s: float) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", WORK, how, str(grace_s)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert child.stdout and child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_request_lets_the_work_end(number: signal.Signals) -> None:
    child = work("looks", 30)
    child.send_signal(number)
    time.sleep(0.2)
    child.send_signal(number)  # `timeout` and schedulers signal the process and its group: one request
    assert child.communicate(timeout=20) == ("saved\n", "")
    assert child.returncode == 0


def test_the_grace_ends_work_that_does_not_look() -> None:
    child = work("deaf", 1.5)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=20)[1]
    assert child.returncode == 0 and 1 < time.monotonic() - began < 8
    assert said == (
        "apl-jax: stopped 1.5 s after the request: the last checkpoint is intact, and the same command goes on\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_request_ends_at_once(number: signal.Signals) -> None:
    child = work("deaf", 60)
    child.send_signal(number)
    time.sleep(1.5)
    child.send_signal(number)
    said = child.communicate(timeout=10)[1]
    assert child.returncode == 128 + number
    assert said == "apl-jax: stopped at once. The same command goes on from the last checkpoint\n"


def test_afterwards_signals_mean_what_they_meant() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stoppable(30):
        assert not requested()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted, match=r"before labels: stopped, .* the same command goes on"):
            while True:
                stop_if_requested("before labels")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not requested()


def test_in_a_notebook_a_second_interrupt_is_one_of_pythons() -> None:
    with pytest.raises(KeyboardInterrupt), stoppable():
        os.kill(os.getpid(), signal.SIGINT)
        while not requested():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert not requested()


def test_what_the_caller_ignores_stays_ignored() -> None:
    """As the shell has it for what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable(30):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            assert not requested()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_change_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    found = []

    def elsewhere() -> None:
        with stoppable(30):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [before]
