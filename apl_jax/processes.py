"""Several processes that carry out one run: they are joined, watch one another, and none waits for one that is lost.

Each writes a counter into the key-value store of jax's coordination service, which process 0 hosts, and reads those of
the others. jax's own client ends the process with a stack trace as soon as its connection to process 0 breaks; so
the other processes are connected through a relay of their own (:mod:`apl_jax.relay`), which tells us instead.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax._src import clusters, distributed  # jax has no public way to the key-value store

from apl_jax.interruption import Preempted, end_process
from apl_jax.relay import Relay
from apl_jax.text import Refusal, one_line

LOST = 75  # exit code of a process that ends because another one was lost: "try again" (sysexits.h)
_BEAT_S, _LOOK_S = 2.0, 0.5  # seconds between two signs of life, and between two looks at those of the others
_BEATS = "apl_jax/beats"
_DONE, _STOPPED, _FAILED = "done", "stopped", "failed"  # last words, in place of a counter
_JOIN_S, _LEAVE_S = 300, 20  # seconds that jax waits for the others at the beginning, and at the end


class NotJoinedError(Refusal, RuntimeError):
    """Processes that cannot find one another."""


class Peers:
    """The processes of a run. ``silence_s``: seconds without a sign of life after which a process counts as lost."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._rank, self._count = 0, 1
        self._relay: Relay | None = None
        self._store: Any = None  # jax's client of the key-value store
        self._last_word = ""  # in place of the counter, once this process has finished
        self._over = threading.Event()
        self._words: dict[int, str] = {}  # what each process wrote last
        self._seen: dict[int, float] = {}  # when that was new, by this process's clock
        self._contact = 0.0  # when process 0 last answered

    @contextmanager
    def joined(self, address: str | None = None, count: int | None = None, rank: int | None = None) -> Iterator[None]:
        """Joins the processes, and watches them until all are done; what is not given, jax finds out.

        When one is lost, every other one says so and ends with code :data:`LOST`, whatever it is doing.
        """
        self._join(address, count, rank)
        try:
            yield
        except Preempted:
            self._leave()
            raise
        except Exception:
            self._wait_for_verdict()
            self.say(_FAILED)
            # jax would wait for the others, who will not come. Registered last, this is called before jax's own.
            atexit.register(_end_alone)
            raise
        self._leave()

    def before_end(self, code: int) -> None:
        """Tells the others that this process is being ended: on request (0), or otherwise."""
        self.say(_STOPPED if code == 0 else _FAILED)
        if self._rank == 0 and self._count > 1:
            time.sleep(1.5 * _BEAT_S)  # until they have read it: the store ends with process 0

    def say(self, word: str) -> None:
        """Writes a last word in place of the counter; waits for no store that is not there any more."""
        if self._count == 1:
            return
        self._over.set()
        writer = threading.Thread(target=self._write, args=(word,), daemon=True)
        writer.start()
        writer.join(_BEAT_S)

    def _join(self, address: str | None, count: int | None, rank: int | None) -> None:
        # Our own handlers take the signals, and the processes agree by themselves (interruption.requested).
        jax.config.update("jax_enable_preemption_service", False)
        address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
        try:
            found = clusters.ClusterEnv.auto_detect_unset_distributed_params(address, count, rank, None, None, _JOIN_S)
            address, count, rank, local_devices = found
            if address and rank:
                self._relay = Relay(address, _JOIN_S)
                address = self._relay.address
            jax.distributed.initialize(
                address, count, rank, local_devices, initialization_timeout=_JOIN_S, shutdown_timeout_seconds=_LEAVE_S
            )
        except (ValueError, RuntimeError, OSError) as error:  # no cluster, or one whose process 0 does not answer
            remedy = "start the processes by SLURM, Open MPI or Kubernetes, or set `runtime.distributed=off` for one"
            raise NotJoinedError(
                f"`runtime.distributed`: found no processes to join ({one_line(str(error))[:200]}); "
                f"expected a cluster that jax knows. Try: {remedy}."
            ) from error
        state = distributed.global_state
        self._rank, self._count, self._store = state.process_id, state.num_processes, state.client
        self._contact = time.monotonic()
        self._seen = dict.fromkeys(self._others, self._contact)
        if self._count > 1:
            for work in (self._beat, self._watch):
                threading.Thread(target=work, name=f"processes: {work.__name__}", daemon=True).start()

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self._count) if rank != self._rank]

    def _write(self, word: str) -> None:
        with contextlib.suppress(RuntimeError):  # the watcher notices by the clock
            self._store.key_value_set(f"{_BEATS}/{self._rank}", word, allow_overwrite=True)

    def _beat(self) -> None:
        """Signs of life, and those of the others."""
        number = 0
        while not self._over.is_set():
            number += 1
            self._write(self._last_word or str(number))
            with contextlib.suppress(RuntimeError):
                found = self._store.key_value_dir_get(_BEATS)
                now = self._contact = time.monotonic()
                for key, word in found:
                    rank = int(key.rpartition("/")[2])
                    if self._words.get(rank) != word:
                        self._words[rank], self._seen[rank] = word, now
            self._over.wait(_BEAT_S)

    def _watch(self) -> None:
        """Ends this process when another one is lost."""
        last = time.monotonic()
        while not self._over.wait(_LOOK_S):
            now = time.monotonic()
            if now - last > 4 * _LOOK_S:  # it was this process that stood still: the others get their time anew
                self._contact = now
                self._seen = dict.fromkeys(self._others, now)
            last = now
            self._judge(now)

    def _judge(self, now: float) -> None:
        for rank in self._others:
            word, silent_s = self._words.get(rank), now - self._seen[rank]
            if word == _STOPPED:
                self._end(0, rank, "was stopped on request. The last checkpoint is intact")
            if silent_s > self._silence_s and word != _DONE:
                self._end(LOST, rank, "ended with an error" if word == _FAILED else "was lost")
        if self._rank and (now - self._contact > self._silence_s or (self._relay and self._relay.broken)):
            self._end(LOST, 0, "was lost")

    def _end(self, code: int, rank: int, what: str) -> None:
        start = "start all processes again, and the same command goes on from the last checkpoint"
        end_process(code, f"process {rank} (of {self._count}, counted from 0) {what}: {start}")

    def _wait_for_verdict(self) -> None:
        """Returns when an error is this process's own: when every other process has shown life, or failed, after it.

        The death of another process reaches the main thread first, as an error of the communication between them.
        """
        began = time.monotonic()
        alive = lambda rank: self._words.get(rank) in (_DONE, _FAILED) or self._seen[rank] > began + _BEAT_S
        while not all(alive(rank) for rank in self._others):
            time.sleep(_LOOK_S / 5)

    def _leave(self) -> None:
        """Waits until all are done, for jax ends a process whose coordination service ends before it."""
        self._last_word = _DONE
        while not all(self._words.get(rank) == _DONE for rank in self._others):
            time.sleep(_LOOK_S / 5)
        self.say(_DONE)


def _end_alone() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
