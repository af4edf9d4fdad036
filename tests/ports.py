"""Ports for servers that tests start."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

_BELOW_CONNECTIONS = (10_000, 32_000)  # Linux gives connections, and servers that ask for port 0, ports from 32,768 on


def free_port() -> int:
    """Of those that the system gives to nobody by itself: one that it gives might be a connection's before the server binds it,
    and a client that looks whether the server is up could be connected to itself."""
    while True:
        port = random.SystemRandom().randrange(*_BELOW_CONNECTIONS)  # Hypothesis gives every process the same `random`
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that is nobody else's meanwhile. Connections are refused until a server binds it, as it may."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # with a server's own: both may bind, one listens
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
