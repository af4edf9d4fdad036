"""HTTP to a model server: pooled connections, a time limit on every call, retries, and what of the time was the network's.

Knows nothing of models and dialects. Whatever goes wrong leaves as an EngineError made by `remote_errors.py`.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import orjson

from gpu_server import remote_errors
from gpu_server.endpoint import Endpoint
from gpu_server.errors import BadAnswer, EngineError, Overloaded
from gpu_server.remote_errors import Failure

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 60.0  # shorter than firewalls and NAT keep an idle connection; a server that closes earlier is noticed
CONNECTIONS = 64
FIRST_WAIT_SECONDS = 0.25
LONGEST_SECONDS = 3600.0  # our server takes no longer time limits
ROUND_TRIP_SECONDS = 2.0
ROUND_TRIP_AGE_SECONDS = 60.0
MAX_ANSWER_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: `seconds` from the first byte sent to the last received, `connect_seconds` of it to connect.

    `headers` by their names in lower case. `failures` are what attempts before this one met; they and the pauses after them took
    `waited_seconds`, which are not in `seconds`.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    seconds: float
    connect_seconds: float = 0.0
    failures: tuple[str, ...] = ()
    waited_seconds: float = 0.0

    def json(self) -> Any:
        """The body. Raises BadAnswer that says what came instead."""
        try:
            return orjson.loads(self.content)
        except orjson.JSONDecodeError:
            pass
        try:
            return json.loads(self.content)  # takes NaN, which Python servers send: a reader can then say whose it is
        except ValueError:
            raise BadAnswer(f"the answer is {remote_errors.described(self.content)}, not JSON") from None

    def object(self) -> dict[str, Any]:
        """The body where it is a JSON object, else {}: for questions that a server may answer in any way."""
        try:
            data = orjson.loads(self.content)
        except orjson.JSONDecodeError:
            return {}
        return data if isinstance(data, dict) else {}

    def milliseconds(self, name: str) -> float | None:
        """The header's fractional milliseconds as seconds; None where it is absent or no number."""
        try:
            return float(self.headers[name]) / 1000
        except (KeyError, ValueError):
            return None

    def number(self, name: str) -> int | None:
        """The header as a whole number; None where it is absent or none."""
        try:
            return int(self.headers[name])
        except (KeyError, ValueError):
            return None


@dataclass(slots=True)
class _Exchange:
    """How far a request came: `opened` and `connected` are the clock's when a new connection was begun and made."""

    opened: float | None = None
    connected: float = 0.0
    answered: bool = False

    def trace(self, name: str, _: Any) -> None:
        if name.startswith(("connection.connect", "connection.start_tls")):
            self.connected = time.perf_counter()
            self.opened = self.opened or self.connected


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    url: str
    content: bytes | None
    headers: Mapping[str, str]
    accept: Collection[int]
    deadline: float | None


@dataclass(slots=True)
class _RoundTrips:
    """The last round trips measured, seconds, and when; the least of them is the network without other people's load."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    measured_at: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)


class Transport:
    """One server's connections. Thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        headers = httpx.Headers({"authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {})
        headers.update(endpoint.headers)
        limits = httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=IDLE_SECONDS)
        self._client = httpx.Client(headers=headers, limits=limits)
        self._trips = _RoundTrips()

    def close(self) -> None:
        self._client.close()

    def get(self, url: str, *, deadline: float | None = None, accept: Collection[int] = ()) -> Reply:
        """GET; a status of 400 and above raises unless it is in `accept`."""
        return self._call(_Request("GET", url, None, {}, accept, deadline))

    def post(
        self,
        url: str,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
        accept: Collection[int] = (),
    ) -> Reply:
        """POST as JSON. Raises EngineError: with every attempt's failure, once no attempt is left or the deadline is near."""
        try:
            content = orjson.dumps(body)
        except TypeError as problem:
            raise remote_errors.unsendable(self.endpoint, problem) from None
        sent = {"content-type": "application/json", **(headers or {})}
        return self._call(_Request("POST", url, content, sent, accept, deadline))

    # 1) attempts

    def _call(self, request: _Request) -> Reply:
        failures: list[EngineError] = []
        started = time.perf_counter()
        while True:
            tried = time.perf_counter()
            outcome = self._attempt(request)
            if isinstance(outcome, Reply):
                errors = tuple(failure.message[:200] for failure in failures)
                return replace(outcome, failures=errors, waited_seconds=tried - started) if failures else outcome
            failures.append(outcome.error)
            wait = self._wait(len(failures), outcome, request.deadline)
            if wait is None:
                raise remote_errors.combined(failures)
            log.debug("%s: %s; again in %.2f s", self.endpoint.shown, outcome.error.message, wait)
            time.sleep(wait)

    def _wait(self, failed: int, outcome: Failure, deadline: float | None) -> float | None:
        """Seconds until the next attempt: exponential with jitter, or what the server asks for; None where there is none."""
        endpoint = self.endpoint
        if not outcome.again or failed > endpoint.retries:
            return None
        wait = FIRST_WAIT_SECONDS * endpoint.backoff_factor ** (failed - 1) * random.uniform(0.75, 1.25)
        if isinstance(outcome.error, Overloaded) and outcome.error.retry_after is not None:
            wait = max(wait, outcome.error.retry_after)
        too_late = deadline is not None and time.monotonic() + wait >= deadline
        return None if too_late or wait > endpoint.timeout else wait

    def _attempt(self, request: _Request) -> Reply | Failure:
        # A pooled connection that the server closed while it was idle is no failure of the server's: it does not count.
        while (outcome := self._once(request)) is None:
            continue
        return outcome

    def _once(self, request: _Request) -> Reply | Failure | None:
        """The reply, what failed, or None where a pooled connection broke before any answer."""
        limit = self.endpoint.timeout
        if request.deadline is not None:
            limit = min(limit, request.deadline - time.monotonic())
        if limit <= 0:
            return remote_errors.too_late(self.endpoint)
        exchange = _Exchange()
        try:
            reply = self._send(request, limit, exchange)
        except (httpx.TransportError, httpx.DecodingError, httpx.InvalidURL, UnicodeError) as problem:
            broken = isinstance(problem, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError))
            if broken and exchange.opened is None and not exchange.answered:
                return None
            return remote_errors.from_exception(problem, self.endpoint, limit, exchange.answered)
        if reply.status < 300 or reply.status in request.accept:
            return reply
        if reply.status == 404:
            return remote_errors.not_found(reply.content, request.url, self.endpoint, self.served(request.deadline))
        return remote_errors.from_status(reply.status, reply.headers, reply.content, self.endpoint)

    def _send(self, request: _Request, limit: float, exchange: _Exchange) -> Reply:
        timeout = httpx.Timeout(limit, connect=min(CONNECT_SECONDS, limit))
        extensions = {"trace": exchange.trace}
        chunks: list[bytes] = []
        started = time.perf_counter()
        with self._client.stream(
            request.method,
            request.url,
            content=request.content,
            headers={**request.headers, "x-request-timeout-seconds": f"{min(limit, LONGEST_SECONDS):.3f}"},
            timeout=timeout,
            extensions=extensions,
        ) as response:
            exchange.answered = True
            size = 0
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                size += len(chunk)
                if time.perf_counter() - started > limit:  # httpx limits each read, not their sum
                    raise httpx.ReadTimeout("the answer came too slowly", request=response.request)
                if size > MAX_ANSWER_BYTES:
                    raise httpx.DecodingError("the answer does not end", request=response.request)
        seconds = time.perf_counter() - started
        connecting = exchange.connected - exchange.opened if exchange.opened is not None else 0.0
        # a plain dict: httpx's own decodes and searches its list at each look
        headers = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in response.headers.raw}
        return Reply(response.status_code, headers, b"".join(chunks), seconds, connecting)

    # 2) what the server lists, and how far away it is

    def served(self, deadline: float | None = None) -> list[str]:
        """Names that `/v1/models` lists; empty where the server has no such list or it cannot be read now."""
        request = _Request("GET", self.endpoint.versioned("/models"), None, {}, range(400, 600), deadline)
        reply = self._attempt(request)
        listed = reply.object().get("data") if isinstance(reply, Reply) and reply.status < 300 else None
        names = [item.get("id") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        return [name for name in names if isinstance(name, str)]

    def round_trip(self, deadline: float | None = None) -> float | None:
        """Seconds of a cheap GET on an open connection, measured at most once a minute; None where none succeeded.

        It is the way through tunnels and proxies as well, which the kernel's own figure (TCP_INFO) would miss, and an upper
        estimate: the server's work for that GET is in it. Any status counts, because any is an answer.
        """
        trips = self._trips
        if time.monotonic() - trips.measured_at > ROUND_TRIP_AGE_SECONDS and trips.lock.acquire(blocking=False):
            try:
                soon = time.monotonic() + ROUND_TRIP_SECONDS
                reply = self._attempt(
                    _Request("GET", self.endpoint.versioned("/models"), None, {}, range(300, 600), min(soon, deadline or soon))
                )
                if isinstance(reply, Reply):
                    trips.seconds.append(reply.seconds - reply.connect_seconds)
                trips.measured_at = time.monotonic()
            finally:
                trips.lock.release()
        return min(trips.seconds, default=None)
