"""What every request passes before its endpoint: the key, the count of requests under way, and the body with its limit.

Plain ASGI, because a middleware that wraps requests and answers in objects costs more than a whole short query's network time.
Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_server.dialects import ClientGone, WrongMediaType, dialect_of, error_response, refusal
from gpu_server.errors import AuthenticationFailed, TooLarge

STARTED = "gpu_server.started"  # key of the scope: `time.perf_counter()` when the request's head was read
WATCH_SECONDS = 0.02
OPEN_PATHS = frozenset({"/health"})

T = TypeVar("T")


@dataclass(slots=True)
class Traffic:
    """Requests under way, and whether connections are to be closed after their answers."""

    active: int = 0
    closing: bool = False


class Gate:
    """Refuses whoever lacks the key; counts; says `connection: close` while the server drains."""

    def __init__(self, app: ASGIApp, traffic: Traffic, api_key: str | None) -> None:
        self._app = app
        self._traffic = traffic
        self._wanted = f"Bearer {api_key}".encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[STARTED] = time.perf_counter()
        self._traffic.active += 1
        try:
            if self._wanted is None or scope["path"] in OPEN_PATHS or self._has_key(scope):
                await self._app(scope, receive, self._closing(send))
            else:
                await self._refuse(scope, receive, send)
        finally:
            self._traffic.active -= 1

    def _has_key(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return self._wanted is not None and hmac.compare_digest(given, self._wanted)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = AuthenticationFailed(
            "the key is missing or wrong", next_step="Send `Authorization: Bearer <key>` with the server's --api-key."
        )
        dialect = dialect_of(scope["path"])
        await error_response(refusal(problem, dialect), dialect)(scope, receive, send)

    def _closing(self, send: Send) -> Callable[[Message], Awaitable[None]]:
        async def closing(message: Message) -> None:
            if self._traffic.closing and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return closing


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body; one that is too large is refused from its announced length, or as soon as it has grown over the limit.

    Raises TooLarge, WrongMediaType, ClientGone.
    """
    media_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise WrongMediaType(f"the body is said to be {media_type!r}", next_step="Send `Content-Type: application/json`.")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"the body is over {limit_bytes:,} bytes", next_step="Send fewer or shorter texts a request.")


async def answer_of(future: Future[T], request: Request) -> T:
    """The result, awaited; when the client goes or the time limit passes, the work is cancelled, so that a queue can skip it.

    To be called after the body was read. Raises what the work raised, and ClientGone.
    """
    answer = asyncio.wrap_future(future)
    watch = _Watch(request, answer)
    try:
        return await answer
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # it was we, not the work, who were cancelled: a time limit
            raise
        raise ClientGone from None
    finally:
        watch.end()


class _Watch:
    """Cancels the work when the client goes; begins after WATCH_SECONDS, because most answers are out before."""

    def __init__(self, request: Request, answer: asyncio.Future[T]) -> None:
        self._request = request
        self._answer: asyncio.Future[Any] = answer
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_SECONDS, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._cancel_when_gone())

    async def _cancel_when_gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            continue
        self._answer.cancel()

    def end(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
