"""What all endpoints share: the way of a request from its body to the engine and back, whatever the dialect.

Everything that can go wrong is raised, and becomes an answer in one place. Knows nothing of the dialects' fields.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from starlette.requests import Request
from starlette.responses import Response

from gpu_server.asgi import STARTED, answer_of, read_body
from gpu_server.dialects import NotServed, Unready, dialect_of, dumps, error_response, refusal, time_headers
from gpu_server.engine import Engine, names_of
from gpu_server.errors import TooLarge
from gpu_server.interfaces import CacheMode, Embeddings, ModelInfo, Scores, TextKind, VectorKind
from gpu_server.metrics import Done, Metrics
from gpu_server.readiness import Readiness
from gpu_server.schemas import NotReadable, parse

log = logging.getLogger(__name__)

MAX_TIMEOUT_SECONDS = 3600.0
INLINE_CHARACTERS = 20_000  # tokenised in about as many microseconds
TIMEOUT_HEADER = "x-request-timeout-seconds"
CACHES_HEADER = "x-ragdeck-caches"

R = TypeVar("R", Embeddings, Scores)
Handle = Callable[["Call"], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 4 * 2**20
    texts: int = 2048
    timeout_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose body was read; `deadline` is `time.monotonic()`."""

    request: Request
    body: Mapping[str, Any]
    deadline: float
    caches: CacheMode


class Service:
    """The engine behind limits, counts and readiness."""

    def __init__(self, engine: Engine, limits: Limits, readiness: Readiness, metrics: Metrics) -> None:
        self.engine = engine
        self.limits = limits
        self.readiness = readiness
        self.metrics = metrics
        self._known: dict[str, tuple[ModelInfo, frozenset[str]]] = {}

    def endpoint(self, handle: Handle) -> Endpoint:
        """`handle` as an endpoint: whatever it raises is told in the dialect of the path."""

        async def endpoint(request: Request) -> Response:
            path: str = request.scope["path"]
            try:
                response = await self._handled(request, handle)
            except Exception as problem:
                response = self._refused(problem, path)
            self.metrics.answer(path, response.status_code)
            return response

        return endpoint

    async def _handled(self, request: Request, handle: Handle) -> Response:
        if not self.readiness.takes_requests:
            self.readiness.retry()
            raise Unready(f"not ready: {self.readiness.reason}", next_step="/health says when it is.")
        seconds = _timeout(request, self.limits.timeout_seconds)
        deadline = time.monotonic() + seconds
        async with asyncio.timeout(seconds):
            body = parse(await read_body(request, self.limits.body_bytes))
            return await handle(Call(request, body, deadline, _caches(request)))

    def _refused(self, problem: Exception, path: str) -> Response:
        dialect = dialect_of(path)
        told = refusal(problem, dialect)
        self.metrics.failed(told.code)
        if told.tei_type == "Backend" and told.status != 499:
            log.error("%s failed with %s: %s", path, told.status, told.message, exc_info=problem if told.status == 500 else None)
            self.readiness.doubt(problem)
        return error_response(told, dialect)

    async def embed(self, call: Call, texts: Sequence[str], kind: TextKind, vectors: frozenset[VectorKind]) -> Embeddings:
        """Raises NotServed, TooLarge and what the engine raises."""
        self.info("embedder")
        self._count(texts)
        return await self._run(
            call, texts, lambda: self.engine.embed(texts, kind, vectors, deadline=call.deadline, caches=call.caches)
        )

    async def score(self, call: Call, query: str, texts: Sequence[str]) -> Scores:
        """Raw scores in the texts' order. Raises as `embed` does."""
        self.info("reranker")
        self._count(texts)
        return await self._run(call, texts, lambda: self.engine.score(query, texts, deadline=call.deadline, caches=call.caches))

    async def _run(self, call: Call, texts: Sequence[str], begin: Callable[[], Future[R]]) -> R:
        """Tokenising many texts takes a thread of its own, lest everybody else's requests wait for it."""
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return await answer_of(begin(), call.request)
        return await answer_of(await asyncio.to_thread(begin), call.request)

    def _count(self, texts: Sequence[str]) -> None:
        if len(texts) > self.limits.texts:
            raise TooLarge(f"{len(texts)} texts in one request, at most {self.limits.texts} are taken")
        self.metrics.asked(len(texts))

    def info(self, kind: str, asked: str | None = None) -> ModelInfo:
        """Of the served model of this kind. Raises NotServed: none is, or `asked` is another one's name."""
        info, names = self._known.get(kind) or self._look_up(kind)
        if asked is not None and asked.casefold() not in names:
            raise NotServed(f"the model {asked!r} is not served here; served: {info.name}")
        return info

    def _look_up(self, kind: str) -> tuple[ModelInfo, frozenset[str]]:
        """Kept, because a server's models stay the same until it ends."""
        status = self.engine.status(kind)
        if status is None or status.info is None:
            served = ", ".join(f"{info.kind} {info.name}" for info in self.engine.infos())
            raise NotServed(f"no {kind} is served here; served: {served}", next_step=f"Start the server with --{kind}.")
        self._known[kind] = found = status.info, names_of(status)
        return found

    def answer(self, call: Call, data: Any, result: Embeddings | Scores, texts: int, info: ModelInfo) -> Response:
        """`data` as the answer, with the headers that say what it cost."""
        body = dumps(data)
        seconds = time.perf_counter() - call.request.scope[STARTED]
        headers = {
            **time_headers(result.timing, seconds),
            "x-compute-tokens": str(result.tokens),
            "x-truncated": str(result.truncated),
            "x-cached": str(result.cached),
            "x-model-identity": info.identity.encode("ascii", "backslashreplace").decode("ascii"),
        }
        done = Done(texts, result.tokens, result.truncated, result.cached, result.timing, seconds)
        asyncio.get_running_loop().call_soon(self.metrics.done, done)  # when the answer is out
        return Response(body, headers=headers, media_type="application/json")


def _timeout(request: Request, default: float) -> float:
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise NotReadable(f"{TIMEOUT_HEADER} is {given!r}, not a number of seconds up to {MAX_TIMEOUT_SECONDS:.0f}")
    return seconds


def _caches(request: Request) -> CacheMode:
    given: Any = request.headers.get(CACHES_HEADER, "use")
    if given not in get_args(CacheMode):
        raise NotReadable(f"{CACHES_HEADER} is {given!r}; it takes {', '.join(get_args(CacheMode))}")
    mode: CacheMode = given
    return mode
