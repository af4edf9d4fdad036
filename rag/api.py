"""Routes of /api: ask, stored queries, health. Under the dashboard and headless alike; receives the runtime, imports it not."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Protocol, get_args

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from rag.errors import RagError
from rag.trace_store import QueryFilter, TraceStore
from rag.types import Answer, Options, Outcome

log = logging.getLogger(__name__)

STATUS = {
    "bad_input": 400,
    "not_found": 404,
    "held": 409,
    "overloaded": 429,
    "internal": 500,
    "connection": 502,
    "authentication": 502,
    "model": 502,
    "bad_answer": 502,
    "timeout": 504,
}
OWNER = "ragdeck.owner"  # of the ASGI scope, left there by the guard: whose a job is that the request starts (`Job.started_by`)
ORIGIN_HEADER = "x-ragdeck-origin"  # `measure`: asked to measure, so it does not count as usual
JOB_HEADER = (
    "x-ragdeck-job"  # of answers: the job's id, which the page Ask follows (`/?job=`) and on which its owner may cancel it
)
MAX_PAGE = 1000
MAX_OFFSET = 10**12
MAX_FILTER_CHARS = 20_000  # SQLite takes patterns of 50,000 bytes, and some characters are escaped
BEAT_SECONDS = 5.0  # a comment in a silent event stream, so that proxies keep it open
LOOK_SECONDS = 0.5  # how often we look whether the client is still there
FILTERS = ("text", "since", "until", "cold", "outcome", "slower_than", "model", "origin")


class QueryJob(Protocol):
    """The part of a job that the API follows."""

    id: str
    result: Answer | None
    started_by: str | None

    def cancel(self) -> None: ...
    def follow(self, after: int = 0, beat: float | None = None) -> Any: ...


class AskRuntime(Protocol):
    """The part of the runtime that the API needs."""

    traces: TraceStore

    def submit_query(
        self, question: str, options: Options | None = None, *, remote_parent: str | None = None, origin: str = "ask"
    ) -> Any: ...
    def default_options(self) -> Options: ...
    def status(self) -> Any: ...


def routes(runtime: Callable[[], AskRuntime]) -> list[Route]:
    """The routes; `runtime` is asked at each request, so that importing and mounting build nothing."""
    api = _Api(runtime)
    return [
        Route("/api/v1/ask", _mapped(api.ask), methods=["POST"]),
        Route("/api/v1/queries", _mapped(api.queries), methods=["GET"]),
        Route("/api/v1/queries/{id}", _mapped(api.query), methods=["GET"]),
        Route("/api/health", api.health, methods=["GET"]),
    ]


Endpoint = Callable[[Request], Awaitable[Response]]


def _mapped(endpoint: Endpoint) -> Endpoint:
    """The endpoint with every RagError as the JSON error and status of its kind."""

    async def mapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RagError as problem:
            return refused(problem)

    return mapped


class _Api:
    def __init__(self, runtime: Callable[[], AskRuntime]) -> None:
        self._get = runtime

    async def _runtime(self) -> AskRuntime:
        """The runtime; building it reads files, which must not hold up other requests. Raises RagError."""
        try:
            return await run_in_threadpool(self._get)
        except RagError:
            raise
        except Exception as problem:
            log.error("the runtime could not be built: %s", problem)
            step = "The server's log and its first page say what to correct."
            raise RagError("the server cannot start with its settings", next_step=step) from None

    async def ask(self, request: Request) -> Response:
        """`{"query": …}` with any option; answers an Answer, or server-sent events for `Accept: text/event-stream`."""
        runtime = await self._runtime()
        body = await _json_body(request)
        question, options = _asked(body, runtime.default_options())
        parent = request.headers.get("traceparent")
        origin = "measure" if request.headers.get(ORIGIN_HEADER) == "measure" else "api"
        job: QueryJob = await run_in_threadpool(
            lambda: runtime.submit_query(question, options, remote_parent=parent, origin=origin)
        )
        job.started_by = request.scope.get(OWNER)
        if "text/event-stream" in request.headers.get("accept", "") or body.get("stream") is True:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no", JOB_HEADER: job.id}
            return StreamingResponse(_events(job, request), media_type="text/event-stream", headers=headers)
        async for _ in _followed(job, request):
            continue
        if job.result is None:
            raise RagError("the query ended without an answer", next_step="Look at the server's log.")
        answer: Answer = job.result
        status = STATUS[answer.error.kind] if answer.outcome == "failed" and answer.error else 200
        response = _json(answer.to_json(), status)
        response.headers[JOB_HEADER] = job.id
        return response

    async def queries(self, request: Request) -> Response:
        """Stored queries, newest first; `limit` (100), `offset`, and the filters of the page Queries. Says the whole count."""
        where, limit, offset = query_filter(request.query_params)
        traces = (await self._runtime()).traces
        rows = await run_in_threadpool(lambda: traces.search(where, limit=limit, offset=offset))
        total = await run_in_threadpool(lambda: traces.count(where))
        return _json({"total": total, "limit": limit, "offset": offset, "queries": [asdict(row) for row in rows]})

    async def query(self, request: Request) -> Response:
        """One stored query: the Answer, with its spans for `?spans=1`."""
        traces, key = (await self._runtime()).traces, request.path_params["id"]
        answer = await run_in_threadpool(lambda: traces.get(key))
        if answer is None:
            raise RagError(f"no stored query has the id {key!r}", kind="not_found", next_step="List them at /api/v1/queries.")
        data = answer.to_json()
        if request.query_params.get("spans") == "1":
            data["spans"] = [span.to_json() for span in await run_in_threadpool(lambda: traces.spans(key))]
        return _json(data)

    async def health(self, request: Request) -> Response:
        """200 once the models are warm and the store is open, else 503 with what is missing. Open without a token."""
        try:
            status = (await self._runtime()).status()
        except RagError:
            return _json({"status": "broken"}, 503)  # what is wrong is not for callers without a token
        failed = [model.name for model in status.models if model.state == "failed"]
        ready = not status.warming and status.store is None and not failed
        state = "ok" if ready else "warming" if status.warming else "degraded"
        body = {"status": state, "version": status.version, "models": {m.kind: m.state for m in status.models}, "store": None}
        if status.store is not None:
            body["store"] = status.store.kind
        return _json(body, 200 if ready else 503)


async def _json_body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ClientDisconnect:
        raise RagError("the client went away", kind="bad_input") from None
    except (ValueError, RecursionError) as problem:
        raise RagError(f"the body is no JSON: {problem}", kind="bad_input", next_step='Send {"query": "…"}.') from None
    if not isinstance(body, dict):
        raise RagError("the body is no JSON object", kind="bad_input", next_step='Send {"query": "…"}.')
    return body


def _asked(body: Mapping[str, Any], defaults: Options) -> tuple[str, Options]:
    """The question and its options; every key is checked, so that a misspelt one is not silently ignored."""
    question = body.get("query", body.get("question"))
    if not isinstance(question, str):
        raise RagError("`query` is missing or no text", kind="bad_input", next_step='Send {"query": "…"}.')
    if not isinstance(body.get("stream", False), bool):
        raise RagError(f"stream is {body['stream']!r}", kind="bad_input", next_step="It takes true or false.")
    if any("\ud800" <= character <= "\udfff" for value in body.values() if isinstance(value, str) for character in value):
        raise RagError("a text has half a character (a lone surrogate)", kind="bad_input", next_step="Send valid Unicode.")
    kinds = {"hyde": str, "candidates": int, "keep": int, "rerank": bool, "caches": str, "model": str, "collection": str}
    known = {field.name for field in fields(Options)}
    changes: dict[str, Any] = {}
    for key, value in body.items():
        if key in ("query", "question", "stream"):
            continue
        if key not in known:
            raise RagError(
                f"unknown key {key!r}", kind="bad_input", next_step=f"Known: query, stream, {', '.join(sorted(known))}."
            )
        if value is None and key in ("model", "collection"):  # as the options of an Answer have them
            continue
        wanted = kinds[key]
        if not isinstance(value, wanted) or wanted is int and isinstance(value, bool):
            raise RagError(f"{key} is {value!r}", kind="bad_input", next_step=f"It takes a value of type {wanted.__name__}.")
        changes[key] = value
    return question, replace(defaults, **changes)


def query_filter(given: Mapping[str, str]) -> tuple[QueryFilter, int, int]:
    """The filter, limit and offset. What is misspelt is refused: ignoring it would show the wrong queries."""
    if unknown := sorted(given.keys() - {*FILTERS, "limit", "offset"}):
        raise _bad(f"unknown parameter {unknown[0]!r}", f"Known: limit, offset, {', '.join(FILTERS)}.")
    try:
        limit, offset = int(given.get("limit", "100")), int(given.get("offset", "0"))
        since, until, slower = (float(given[key]) if key in given else None for key in ("since", "until", "slower_than"))
    except ValueError as problem:
        raise _bad(str(problem), "limit, offset, since, until, slower_than are numbers.") from None
    if not 1 <= limit <= MAX_PAGE or not 0 <= offset <= MAX_OFFSET:
        raise _bad(f"limit {limit}, offset {offset}", f"limit is 1 to {MAX_PAGE}, offset from 0.")
    text, cold, outcome = given.get("text"), given.get("cold"), given.get("outcome")
    if text is not None and (len(text) > MAX_FILTER_CHARS or "\0" in text):
        raise _bad("text cannot be searched for", f"It has at most {MAX_FILTER_CHARS:,} characters, none of them NUL.")
    if cold not in (None, "0", "1"):
        raise _bad(f"cold is {cold!r}", "It is 1 or 0.")
    if outcome is not None and outcome not in get_args(Outcome):
        raise _bad(f"outcome is {outcome!r}", f"It is one of {', '.join(get_args(Outcome))}.")
    kind: Any = outcome
    is_cold = None if cold is None else cold == "1"
    where = QueryFilter(text, since, until, is_cold, kind, slower, given.get("model"), given.get("origin"))
    return where, limit, offset


def _bad(message: str, next_step: str) -> RagError:
    return RagError(message, kind="bad_input", next_step=next_step)


async def _followed(job: QueryJob, request: Request) -> AsyncIterator[dict[str, Any] | None]:
    """The job's events, and None after each silence of LOOK_SECONDS; a client that went away cancels the job.

    The wait for an event cannot be broken off, so it is short: the end of a request waits for it.
    """
    looked = time.monotonic()
    async for event in iterate_in_threadpool(job.follow(beat=LOOK_SECONDS)):
        yield event
        if event is None or time.monotonic() - looked > LOOK_SECONDS:
            looked = time.monotonic()
            if await request.is_disconnected():
                job.cancel()


async def _events(job: QueryJob, request: Request) -> AsyncIterator[bytes]:
    finished = False
    sent = time.monotonic()
    try:
        async for event in _followed(job, request):
            if event is not None:
                yield f"id: {event['seq']}\nevent: {event['type']}\ndata: ".encode() + _bytes(event) + b"\n\n"
            elif time.monotonic() - sent > BEAT_SECONDS:
                yield b": still running\n\n"
            else:
                continue
            sent = time.monotonic()
        finished = True
    finally:
        if not finished:
            job.cancel()


def _bytes(data: Any) -> bytes:
    """JSON in UTF-8. A model or document may hold half a character; that is no reason to lose the answer."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def _json(data: Any, status: int = 200) -> Response:
    return Response(_bytes(data), status, media_type="application/json")


def refused(problem: RagError, status: int | None = None) -> Response:
    """The JSON error of the problem, with the status of its kind unless another is given."""
    error = {"kind": problem.kind, "message": problem.message, "address": problem.address, "next_step": problem.next_step}
    return _json({"error": error}, status or STATUS[problem.kind])
