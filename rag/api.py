"""Routes of /api: ask, stored queries, health. The same under the dashboard and headless; receives the runtime, imports it not."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Protocol

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rag.errors import RagError
from rag.trace_store import QueryFilter, TraceStore
from rag.types import Answer, Options

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
MAX_PAGE = 1000
BEAT_SECONDS = 5.0


class QueryJob(Protocol):
    """The part of a job that the API follows."""

    result: Answer | None

    def cancel(self) -> None: ...
    def follow(self, after: int = 0, beat: float | None = None) -> Any: ...


class AskRuntime(Protocol):
    """The part of the runtime that the API needs."""

    traces: TraceStore

    def submit_query(self, question: str, options: Options | None = None, *, remote_parent: str | None = None) -> Any: ...
    def default_options(self) -> Options: ...
    def status(self) -> Any: ...


def routes(runtime: Callable[[], AskRuntime]) -> list[Route]:
    """The routes; `runtime` is asked at each request, so that importing and mounting build nothing."""
    api = _Api(runtime)
    return [
        Route("/api/v1/ask", api.ask, methods=["POST"]),
        Route("/api/v1/queries", api.queries, methods=["GET"]),
        Route("/api/v1/queries/{id}", api.query, methods=["GET"]),
        Route("/api/health", api.health, methods=["GET"]),
    ]


class _Api:
    def __init__(self, runtime: Callable[[], AskRuntime]) -> None:
        self._runtime = runtime

    async def ask(self, request: Request) -> Response:
        """`{"query": …}` with any option; answers an Answer, or server-sent events for `Accept: text/event-stream`."""
        runtime = self._runtime()
        try:
            body = await _json_body(request)
            question, options = _asked(body, runtime.default_options())
            job = await run_in_threadpool(
                lambda: runtime.submit_query(question, options, remote_parent=request.headers.get("traceparent"))
            )
        except RagError as problem:
            return _refused(problem)
        if "text/event-stream" in request.headers.get("accept", "") or body.get("stream") is True:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(_events(job, request), media_type="text/event-stream", headers=headers)
        async for _ in _followed(job, request):
            continue
        if job.result is None:
            return _refused(RagError("the query ended without an answer", next_step="Look at the server's log."))
        answer: Answer = job.result
        status = STATUS[answer.error.kind] if answer.outcome == "failed" and answer.error else 200
        return _json(answer.to_json(), status)

    async def queries(self, request: Request) -> Response:
        """Stored queries, newest first; `limit` (100), `offset`, and the filters of the page Queries. Says the whole count."""
        try:
            where, limit, offset = _filter(request.query_params)
        except RagError as problem:
            return _refused(problem)
        traces = self._runtime().traces
        rows = await run_in_threadpool(lambda: traces.search(where, limit=limit, offset=offset))
        total = await run_in_threadpool(lambda: traces.count(where))
        return _json({"total": total, "limit": limit, "offset": offset, "queries": [asdict(row) for row in rows]})

    async def query(self, request: Request) -> Response:
        """One stored query: the Answer, with its spans for `?spans=1`."""
        traces, key = self._runtime().traces, request.path_params["id"]
        answer = await run_in_threadpool(lambda: traces.get(key))
        if answer is None:
            return _refused(
                RagError(f"no stored query has the id {key!r}", kind="not_found", next_step="List them at /api/v1/queries.")
            )
        data = answer.to_json()
        if request.query_params.get("spans") == "1":
            data["spans"] = [span.to_json() for span in await run_in_threadpool(lambda: traces.spans(key))]
        return _json(data)

    async def health(self, request: Request) -> Response:
        """200 once the models are warm and the store is open, else 503 with what is missing. Open without a token."""
        status = self._runtime().status()
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
    kinds = {"hyde": str, "candidates": int, "keep": int, "rerank": bool, "caches": str, "model": str, "collection": str}
    known = {field.name for field in fields(Options)}
    changes: dict[str, Any] = {}
    for key, value in body.items():
        if key in ("query", "question", "stream"):
            continue
        if key not in known:
            raise RagError(f"unknown key {key!r}", kind="bad_input", next_step=f"Known: query, stream, {', '.join(sorted(known))}.")
        wanted = kinds[key]
        if not isinstance(value, wanted) or wanted is int and isinstance(value, bool):
            raise RagError(f"{key} is {value!r}", kind="bad_input", next_step=f"It takes a value of type {wanted.__name__}.")
        changes[key] = value
    return question, replace(defaults, **changes)


def _filter(given: Mapping[str, str]) -> tuple[QueryFilter, int, int]:
    try:
        limit, offset = int(given.get("limit", "100")), int(given.get("offset", "0"))
        since, until, slower = (float(given[key]) if key in given else None for key in ("since", "until", "slower_than"))
    except ValueError as problem:
        raise RagError(str(problem), kind="bad_input", next_step="limit, offset, since, until, slower_than are numbers.") from None
    if not 1 <= limit <= MAX_PAGE or offset < 0:
        raise RagError(f"limit {limit}, offset {offset}", kind="bad_input", next_step=f"limit is 1 to {MAX_PAGE}, offset from 0.")
    cold = {"1": True, "0": False}.get(given.get("cold", ""))
    outcome: Any = given.get("outcome")
    return QueryFilter(text=given.get("text"), since=since, until=until, cold=cold, outcome=outcome, slower_than=slower), limit, offset


async def _followed(job: QueryJob, request: Request) -> AsyncIterator[dict[str, Any] | None]:
    """The job's events; a client that went away cancels it."""
    async for event in iterate_in_threadpool(job.follow(beat=BEAT_SECONDS if event_stream(request) else 0.5)):
        yield event
        if event is None and await request.is_disconnected():
            job.cancel()


def event_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


async def _events(job: QueryJob, request: Request) -> AsyncIterator[str]:
    finished = False
    try:
        async for event in _followed(job, request):
            if event is None:
                yield ": still running\n\n"
                continue
            data = json.dumps(event, ensure_ascii=False)
            yield f"id: {event['seq']}\nevent: {event['type']}\ndata: {data}\n\n"
        finished = True
    finally:
        if not finished:
            job.cancel()


def _json(data: Any, status: int = 200) -> Response:
    return JSONResponse(data, status)


def _refused(problem: RagError) -> Response:
    error = {"kind": problem.kind, "message": problem.message, "address": problem.address, "next_step": problem.next_step}
    return JSONResponse({"error": error}, STATUS[problem.kind])
