"""Fake servers for answers that a healthy server never gives: raw bytes over a socket, each request kept."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

SILENCE = b""  # say nothing (more) and keep the connection until the client goes


def reply(status: int, body: str, kind: str = "application/json") -> bytes:
    data = body.encode()
    return (
        f"HTTP/1.1 {status} Status\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n"
    ).encode() + data


def error(status: int, message: str) -> bytes:
    return reply(status, json.dumps({"error": {"message": message, "type": "t", "code": status}}))


def events(*chunks: Any) -> bytes:
    """The beginning of a stream: server-sent events without an end; add `+ DONE` for one that ends as it should."""
    lines = "".join(f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n" for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + lines.encode()


DONE = b"data: [DONE]\n\n"


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake", "choices": [choice]}


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class FakeServer:
    """Answers the n-th request with the n-th of `replies`, later ones with the last.

    A tuple of bytes is sent piece by piece; after a piece SILENCE the connection stays open until the client closes it,
    which sets `left`. `asked` is set when the first request has come in whole.
    """

    replies: list[bytes | tuple[bytes, ...]]
    requests: list[Request] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FakeServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self.requests.append(_read(connection))
            except ConnectionError:
                return
            self.asked.set()
            answer = self.replies[min(len(self.requests), len(self.replies)) - 1]
            for piece in answer if isinstance(answer, tuple) else (answer,):
                if piece == SILENCE:
                    _until_gone(connection)
                    self.left.set()
                    return
                connection.sendall(piece)


def _until_gone(connection: socket.socket) -> None:
    try:
        while connection.recv(4096):
            continue
    except OSError:
        return


def _read(connection: socket.socket) -> Request:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += _more(connection)
    return Request(first.split()[1], headers, json.loads(body) if body else None)


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the client left in the middle of its request")
    return data
