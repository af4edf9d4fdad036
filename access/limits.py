"""Limits on what one caller may take: requests a minute, requests at once, time for a request's head and body.

All of it in bounded memory, by clocks that are arguments. Knows no HTTP framework but the ASGI messages, and no tokens.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive

KEYS_REMEMBERED = 4096
HEAD_SECONDS = 10.0  # for a request's head, from its first byte, and for the first byte of a connection
API_BYTES = 1 << 20
OTLP_BYTES = 16 << 20  # latency.otlp.wire has its own, smaller one; this is where we stop to read for it


@dataclass(frozen=True, slots=True)
class Limits:
    """`upload_bytes` bounds every body that is none of the API's."""

    requests_per_minute: int = 600
    requests_at_once: int = 64
    body_seconds: float = 30.0
    upload_seconds: float = 600.0
    upload_bytes: int = 52 << 20

    def body_bytes(self, path: str) -> int:
        if path.startswith("/api/"):
            return API_BYTES
        return OTLP_BYTES if path == "/v1/traces" else self.upload_bytes

    def seconds(self, path: str) -> float:
        return self.upload_seconds if path.startswith("/_stcore/upload_file") else self.body_seconds


def address_key(address: str | None) -> str:
    """What stands for one caller: an IPv4 address, or the /64 of an IPv6 one, of which a caller has 2^64 to choose from."""
    try:
        parsed = ipaddress.ip_address((address or "").split("%")[0])
    except ValueError:
        return address or ""
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False).network_address)
    return str(parsed)


class Buckets:
    """A token bucket a key: `per_minute` requests at once, refilled evenly. The keys unused for longest are forgotten, full."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic, most: int = KEYS_REMEMBERED) -> None:
        self._full, self._per_second, self._clock, self._most = float(per_minute), per_minute / 60.0, clock, most
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one. Returns 0, or in how many seconds there is one again (then none is taken)."""
        now = self._clock()
        left, at = self._known.pop(key, (self._full, now))
        left = min(self._full, left + (now - at) * self._per_second)
        wait = 0.0 if left >= 1.0 else (1.0 - left) / self._per_second
        self._known[key] = (left - 1.0 if not wait else left, now)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return wait

    def __len__(self) -> int:
        return len(self._known)


class AtOnce:
    """Counts what runs, a key: nothing is kept of a key of which nothing runs."""

    def __init__(self, most: int) -> None:
        self._most, self._running = most, dict[str, int]()

    @contextmanager
    def running(self, key: str) -> Iterator[bool]:
        """Whether there is room for one more; if so, it is counted until the block ends."""
        count = self._running.get(key, 0)
        if count >= self._most:
            yield False
            return
        self._running[key] = count + 1
        try:
            yield True
        finally:
            left = self._running[key] - 1
            if left:
                self._running[key] = left
            else:
                del self._running[key]

    def __len__(self) -> int:
        return len(self._running)


def retry_after(seconds: float) -> str:
    return str(max(1, math.ceil(seconds)))


class BodyTooLarge(Exception):
    """A body without a length grew past the limit."""


class BodyTooSlow(Exception):
    """A body did not come in its time."""


def limited(receive: Receive, most_bytes: int, seconds: float) -> Receive:
    """The body, counted and timed. Raises BodyTooLarge, BodyTooSlow. What comes after the body (that the client goes) waits
    for as long as it takes."""
    seen, ended, end = 0, False, 0.0

    async def counted() -> Message:
        nonlocal seen, ended, end
        if ended:
            return await receive()
        now = asyncio.get_running_loop().time()
        end = end or now + seconds
        try:
            async with asyncio.timeout(max(0.0, end - now)):
                message = await receive()
        except TimeoutError:
            raise BodyTooSlow from None
        seen += len(message.get("body", b""))
        if seen > most_bytes:
            raise BodyTooLarge
        ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return counted


# ------------------------------------------------------------------------------------- heads that never end


def hurry(protocol: type[Any], seconds: float = HEAD_SECONDS) -> None:
    """Give a uvicorn HTTP protocol class a time limit for heads: uvicorn (0.54) has none, and a connection that sends a byte
    a minute is held for ever. Works on the class, because Streamlit starts uvicorn itself and takes no class of ours. Once.
    """
    if getattr(protocol, "_head_seconds", None) is not None:
        protocol._head_seconds = seconds
        return
    made, received, lost = protocol.connection_made, protocol.data_received, protocol.connection_lost

    def connection_made(self: Any, transport: Any) -> None:
        self._head_timer = self.loop.call_later(protocol._head_seconds, _close, transport)
        made(self, transport)

    def data_received(self: Any, data: bytes) -> None:
        received(self, data)
        _look(self, protocol._head_seconds)

    def connection_lost(self: Any, exc: Exception | None) -> None:
        _stop(self)
        lost(self, exc)

    protocol._head_seconds = seconds
    protocol.connection_made, protocol.data_received, protocol.connection_lost = connection_made, data_received, connection_lost


def _look(protocol: Any, seconds: float) -> None:
    """The timer runs while a head is awaited, and not while a request is answered or once a WebSocket took over."""
    transport, cycle = protocol.transport, protocol.cycle
    if transport.get_protocol() is not protocol or (cycle is not None and not cycle.response_complete):
        _stop(protocol)
    elif protocol._head_timer is None:
        protocol._head_timer = protocol.loop.call_later(seconds, _close, transport)


def _stop(protocol: Any) -> None:
    timer, protocol._head_timer = getattr(protocol, "_head_timer", None), None
    if timer is not None:
        timer.cancel()


def _close(transport: Any) -> None:
    if not transport.is_closing():
        transport.close()


def hurry_all(seconds: float = HEAD_SECONDS) -> None:
    """`hurry` for the protocols that uvicorn may use here."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    hurry(H11Protocol, seconds)
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:  # an optional part of uvicorn
        return
    hurry(HttpToolsProtocol, seconds)
