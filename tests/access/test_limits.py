"""Limits by a clock that is an argument, and a real server that does not wait for heads that never end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from websockets.sync.client import connect

from access.limits import AtOnce, BodyTooLarge, BodyTooSlow, Buckets, Limits, address_key, hurry, limited, retry_after


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_fills_evenly() -> None:
    clock = Clock()
    buckets = Buckets(60, clock)
    assert [buckets.take("a") for _ in range(60)] == [0.0] * 60
    assert buckets.take("a") == pytest.approx(1.0) and buckets.take("b") == 0.0
    clock.now = 0.5
    assert buckets.take("a") == pytest.approx(0.5)
    clock.now = 2.0
    assert [buckets.take("a") for _ in range(3)] == [0.0, 0.0, pytest.approx(1.0)]
    clock.now = 1e6
    assert [buckets.take("a") for _ in range(61)][:60] == [0.0] * 60


def test_a_million_addresses_take_no_more_memory_than_a_few() -> None:
    buckets = Buckets(10, Clock(), most=100)
    for n in range(10_000):
        buckets.take(str(n))
    assert len(buckets) == 100
    at_once = AtOnce(2)
    for n in range(1000):
        with at_once.running(str(n)) as room:
            assert room
    assert len(at_once) == 0


def test_at_once_counts_what_runs_also_when_it_fails() -> None:
    at_once = AtOnce(1)
    with pytest.raises(ValueError), at_once.running("a") as first:
        assert first
        with at_once.running("a") as second, at_once.running("b") as other:
            assert not second and other
        raise ValueError
    with at_once.running("a") as again:
        assert again


def test_an_ipv6_caller_is_its_network() -> None:
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff:2") != address_key("2001:db8:0:1::1")
    assert address_key("::ffff:10.0.0.1") == address_key("10.0.0.1") == "10.0.0.1"
    assert address_key(None) == "" and address_key("unix") == "unix" and address_key("fe80::1%eth0") == "fe80::"
    assert (retry_after(0.01), retry_after(1.2)) == ("1", "2")
    assert Limits().body_bytes("/api/v1/ask") < Limits().body_bytes("/v1/traces") < Limits().body_bytes("/_stcore/upload_file/x")


def test_a_body_is_counted_and_timed_and_what_follows_it_is_not() -> None:
    async def run() -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": b"ab", "more_body": True},
            {"type": "http.request", "body": b"c"},
            {"type": "http.disconnect"},
        ]
        waits = [0.0, 0.0, 1.5]

        async def receive() -> Message:
            await asyncio.sleep(waits.pop(0))
            return messages.pop(0)

        read = limited(receive, 3, 1.0)
        assert [(await read())["type"] for _ in range(3)] == ["http.request", "http.request", "http.disconnect"]

        async def much() -> Message:
            return {"type": "http.request", "body": b"xx", "more_body": True}

        read = limited(much, 3, 60)
        await read()
        with pytest.raises(BodyTooLarge):
            await read()

        async def never() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        with pytest.raises(BodyTooSlow):
            await limited(never, 3, 0.01)()

    asyncio.run(run())


# heads that never end


class Hasty11(H11Protocol):
    pass


class HastyTools(HttpToolsProtocol):
    pass


async def slow(request: Request) -> Response:
    await asyncio.sleep(4.0)
    return PlainTextResponse("late, and complete")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


@contextlib.contextmanager
def serve(protocol: Any) -> Iterator[int]:
    app = Starlette(routes=[Route("/", slow), WebSocketRoute("/ws", echo)])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="critical", lifespan="off", http=protocol, ws="websockets-sansio")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        end = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.mark.parametrize("protocol", [Hasty11, HastyTools])
def test_slow_heads_are_cut_off_and_slow_answers_are_not(protocol: Any) -> None:
    hurry(protocol, 2.0)  # a loaded machine must have sent a whole head by then, and the answer takes longer
    with serve(protocol) as port:
        whole_head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        lines = [begun(port, sent) for sent in (b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", whole_head, whole_head)]
        silent, dripping, asking, second = lines
        assert silent.recv(100) == b"" and dripping.recv(100) == b""
        assert b"late, and complete" in whole(asking)
        assert b"late, and complete" in whole(second)
        second.sendall(b"GET / HT")  # kept alive, and then a head that never ends
        assert second.recv(100) == b""
        for line in lines:
            line.close()


@pytest.mark.parametrize("protocol", [Hasty11, HastyTools])
def test_a_web_socket_lives_longer_than_a_head(protocol: Any) -> None:
    hurry(protocol, 2.0)
    with serve(protocol) as port, connect(f"ws://127.0.0.1:{port}/ws", proxy=None, open_timeout=20) as client:
        time.sleep(2.5)  # longer than a head may take
        client.send("still here")
        assert client.recv(timeout=20) == "still here"


def begun(port: int, sent: bytes) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), timeout=20)
    line.sendall(sent)
    return line


def whole(line: socket.socket) -> bytes:
    found = b""
    while b"complete" not in found:
        part = line.recv(1000)
        if not part:
            break
        found += part
    return found
