"""A model server that does what a test tells it, wrongly included: a named fake behind a real socket.

It keeps connections open and counts them. A handler gets each request and gives an `Odd` answer, or None to hang up.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE = 30.0


@dataclass(frozen=True)
class Asked:
    """A request as it came; `connection` counts from 1."""

    method: str
    path: str
    body: Any
    headers: Mapping[str, str]
    connection: int


@dataclass(frozen=True)
class Odd:
    """An answer. `content` instead of `data` is sent as it is; `cut` hangs up in the middle; `drip` never ends."""

    data: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    cut: bool = False
    drip: bool = False
    wait: bool = False


Handler = Callable[[Asked], Odd | None]


class OddServer:
    """`address`, and every request so far in `asked`; `end` is set when the test is over, which frees what waits."""

    def __init__(self, handle: Handler) -> None:
        self.handle = handle
        self.asked: list[Asked] = []
        self.connections = 0
        self.end = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def bodies(self, path: str) -> list[Any]:
        return [asked.body for asked in self.asked if asked.path == path]

    def close(self) -> None:
        self.end.set()
        self._server.shutdown()
        self._server.server_close()

    def _connected(self) -> int:
        with self._lock:
            self.connections += 1
            return self.connections

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Connection(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                self.number = owner._connected()

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                body = json.loads(raw) if raw else None
                asked = Asked(self.command, self.path, body, {k.lower(): v for k, v in self.headers.items()}, self.number)
                owner.asked.append(asked)
                odd = owner.handle(asked)
                if odd is None:
                    self.close_connection = True
                    return
                self._send(odd)

            def _send(self, odd: Odd) -> None:
                if odd.wait:
                    owner.end.wait(PATIENCE)
                content = json.dumps(odd.data).encode() if odd.content is None else odd.content
                length = len(content) + (10 if odd.cut else 1_000_000 if odd.drip else 0)
                headers = {"content-type": "application/json", **odd.headers, "content-length": str(length)}
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(f"HTTP/1.1 {odd.status} Odd\r\n{lines}\r\n".encode() + content)
                    while odd.drip and not owner.end.wait(0.02):
                        self.wfile.write(b" ")
                self.close_connection = self.close_connection or odd.cut or odd.drip

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                return

        return Connection


@contextlib.contextmanager
def odd_server(handle: Handler) -> Iterator[OddServer]:
    server = OddServer(handle)
    try:
        yield server
    finally:
        server.close()
