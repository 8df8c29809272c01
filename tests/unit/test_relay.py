"""The relay carries bytes both ways, and keeps this side open when the other side breaks."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from apl_jax.relay import Relay


@contextmanager
def connected() -> Iterator[tuple[Relay, socket.socket, socket.socket]]:
    """A relay to a server, and both ends of a connection through it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(f"127.0.0.1:{server.getsockname()[1]}", 5)
        server.accept()[0].close()  # the relay has looked whether the server is there
        host, port = relay.address.split(":")
        near = socket.create_connection((host, int(port)), timeout=5)
        far = server.accept()[0]
    with near, far:
        yield relay, near, far


def test_bytes_go_both_ways_and_a_broken_connection_is_remembered() -> None:
    with connected() as (relay, near, far):
        near.sendall(b"to")
        far.sendall(b"fro")
        assert far.recv(10) == b"to" and near.recv(10) == b"fro" and not relay.broken
        far.close()
        deadline = time.monotonic() + 5
        while not relay.broken:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        near.sendall(b"more")  # of which nothing arrives
        near.settimeout(0.3)
        with pytest.raises(TimeoutError):  # open, and silent
            near.recv(10)


def test_closed_from_this_side_it_is_not_broken() -> None:
    with connected() as (relay, near, far):
        near.close()
        far.settimeout(5)
        assert far.recv(10) == b""
        far.close()
        time.sleep(0.2)
        assert not relay.broken


def test_a_process_that_is_not_there_is_waited_for_and_then_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(OSError, match="refused"):
        Relay(f"127.0.0.1:{port}", 1)
    assert 0.9 < time.monotonic() - began < 4
