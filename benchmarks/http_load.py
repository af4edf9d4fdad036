"""A closed-loop HTTP client that costs little: prepared request bytes over keep-alive connections, one event loop.

It reads answers by their Content-Length and looks at nothing but the status, so that on a shared machine the server measured
gets the cores.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import percentile

READ_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of requests showed; seconds per request, in the order they ended."""

    requests: int
    seconds: float
    latencies: tuple[float, ...]

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def p(self, share: float) -> float:
        return percentile(self.latencies, share)


def post(path: str, body: object, headers: Sequence[str] = ()) -> bytes:
    """A whole POST request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *headers,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


class Connection:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> bytes:
        """The answer's body. Raises RuntimeError for any status but 200."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**26)
        reader, writer = self._streams
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READ_SECONDS)
        lines = head.decode("latin-1").lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        body = await asyncio.wait_for(reader.readexactly(length), READ_SECONDS)
        if " 200 " not in lines[0]:
            raise RuntimeError(f"{lines[0]}: {body[:300]!r}")
        if "connection: close" in lines:
            self.close()
        return body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class BlockingConnection:
    """One keep-alive connection without an event loop: the least that a client can add to one request's time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=READ_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        """The answer's body. Raises RuntimeError for any status but 200."""
        self._socket.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        while len(body) < length:
            body += self._more()
        if " 200 " not in lines[0]:
            raise RuntimeError(f"{lines[0]}: {body[:300]!r}")
        return body

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, count: int) -> Load:
    """`count` requests, taken in turn from `requests`, by `clients` that each wait for their answer before they ask again."""
    turns = itertools.cycle(requests)
    left = count
    latencies: list[float] = []

    async def client() -> None:
        nonlocal left
        connection = Connection(port)
        while left > 0:
            left -= 1
            started = time.perf_counter()
            await connection.ask(next(turns))
            latencies.append(time.perf_counter() - started)
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(count, time.perf_counter() - started, tuple(latencies))
