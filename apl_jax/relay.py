"""A relay of connections to another process: when the other side breaks, this side stays open, and it is remembered."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

_TRY_S = 0.5  # between two attempts to connect
_MOST = 1 << 16  # bytes carried at once


class Relay:
    """Forwards connections to ``address`` (``host:port``), which it waits for at most ``wait_s`` seconds."""

    def __init__(self, address: str, wait_s: float) -> None:
        host, _, port = address.rpartition(":")
        self._target = host.strip("[]"), int(port)
        self._wait_for_target(time.monotonic() + wait_s)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.broken = False  # whether the other side has closed a connection that this side still wanted
        _start(self._accept)

    def _wait_for_target(self, deadline: float) -> None:
        while True:
            try:
                return socket.create_connection(self._target, timeout=_TRY_S * 10).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_TRY_S)

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            try:
                far = socket.create_connection(self._target)
            except OSError:
                self.broken = True
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _start(self._to_target, near, far)
            _start(self._from_target, far, near)

    def _to_target(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(_MOST):
                with contextlib.suppress(OSError):  # the other side is gone; this side is to see a silent one
                    far.sendall(data)
        near.close()
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it

    def _from_target(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(_MOST):
                near.sendall(data)
        far.close()
        if near.fileno() != -1:  # not closed by this side, and left open
            self.broken = True


def _start(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, name="relay", daemon=True).start()
