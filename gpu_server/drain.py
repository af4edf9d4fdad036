"""uvicorn that ends politely: after SIGTERM every accepted request is answered, new ones get 503, the exit code is 0.

uvicorn's own way closes idle connections at once, on which the next request may already be under way, and raises the signal
again at the end, so that the process dies of it (-15). Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn

from gpu_server.asgi import Traffic

log = logging.getLogger(__name__)

QUIET_SECONDS = 0.3  # without a request under way: who has just got an answer may send the next one, and is told 503
LOOK_SECONDS = 0.02
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class DrainingServer(uvicorn.Server):
    """`closing` is called at the first signal; from then on the app refuses new requests. A second signal ends at once.

    On a thread other than the main one there are no signals: `drain` is called instead, on the loop.

    `patience_seconds` is how long requests under way are waited for: a client that reads nothing must not hold up the end.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        traffic: Traffic,
        *,
        patience_seconds: float,
        closing: Callable[[], None],
        listening: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._traffic = traffic
        self._patience_seconds = patience_seconds
        self._closing = closing
        self._listening = listening
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.drain)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def drain(self) -> None:
        """Answer what is under way, refuse what comes, then end; called again, end at once."""
        if self._drain is not None:
            self.should_exit = self.force_exit = True
            return
        log.info("draining: %s requests under way", self._traffic.active)
        self._traffic.closing = True
        self._closing()
        self._drain = asyncio.get_running_loop().create_task(self._end_when_quiet())

    async def _end_when_quiet(self) -> None:
        end = time.monotonic() + self._patience_seconds
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < QUIET_SECONDS and time.monotonic() < end:
            await asyncio.sleep(LOOK_SECONDS)
            if self._traffic.active:
                quiet_since = time.monotonic()
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises OSError: taken, not ours, no such host."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
