"""Routes beside the query API: who am I, the audit log, deleting stored queries. Receives the runtime, imports it not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from access import audit, forget, openapi
from access.scopes import KEY, OPEN, SCOPES, Identity
from collectors.audit import AuditLog
from rag.api import query_filter, refused
from rag.errors import RagError
from rag.trace_rows import QueryFilter

MOST_LINES = 1000


class HasAudit(Protocol):
    @property
    def audit(self) -> AuditLog: ...


class AccessRuntime(forget.Forgetting, Protocol):
    """The part of the runtime that these routes need."""

    @property
    def deployment(self) -> HasAudit: ...


Endpoint = Callable[[Request, Any], Awaitable[Response]]


def routes(runtime: Callable[[], Any]) -> list[Route]:
    """The routes; `runtime` is asked at each request, so that importing and mounting build nothing."""

    def route(path: str, endpoint: Endpoint, method: str) -> Route:
        async def handled(request: Request) -> Response:
            try:
                return await endpoint(request, await run_in_threadpool(runtime))
            except RagError as problem:
                return refused(problem)

        return Route(path, handled, methods=[method])

    return [
        route("/api/v1/whoami", _whoami, "GET"),
        route("/api/v1/audit", _audit, "GET"),
        route("/api/v1/openapi.json", _openapi, "GET"),
        route("/api/v1/queries", _delete_many, "DELETE"),
        route("/api/v1/queries/{id}", _delete_one, "DELETE"),
    ]


def who(request: Request) -> Identity:
    """Who the guard found it to be."""
    found = request.scope.get(KEY)
    return found if isinstance(found, Identity) else OPEN


async def _whoami(request: Request, runtime: Any) -> Response:
    me = who(request)
    return JSONResponse({"name": me.name, "how": me.how, "scopes": [scope for scope in SCOPES if scope in me.scopes]})


async def _openapi(request: Request, runtime: Any) -> Response:
    return JSONResponse(openapi.document(runtime.status().version))


async def _audit(request: Request, runtime: AccessRuntime) -> Response:
    """The newest lines first; `text`, `outcome`, `since`, `limit` (200)."""
    given = request.query_params
    if unknown := sorted(given.keys() - {"text", "outcome", "since", "limit"}):
        raise _bad(f"unknown parameter {unknown[0]!r}", "Known: text, outcome, since, limit.")
    if not given.get("limit", "200").isdecimal() or not 1 <= (limit := int(given.get("limit", "200")[:9])) <= MOST_LINES:
        raise _bad("limit is no number that is taken", f"It is 1 to {MOST_LINES}.")
    where = audit.Filter(given.get("text", ""), given.get("outcome"), given.get("since"))
    found = await run_in_threadpool(lambda: audit.found(runtime.deployment.audit, where, limit))
    return JSONResponse({"actions": [asdict(action) for action in found]})


async def _delete_one(request: Request, runtime: AccessRuntime) -> Response:
    """One stored query, with all that was kept because of it."""
    key = request.path_params["id"]

    def work() -> forget.Forgotten:
        with audit.recorded(runtime.deployment.audit, who(request), _address(request), "delete a stored query", key):
            runtime.traces.flush()
            if runtime.traces.get(key) is None:
                raise RagError(f"no stored query has the id {key!r}", kind="not_found", next_step="List them at /api/v1/queries.")
            return forget.forget(runtime, [key])

    return JSONResponse(asdict(await run_in_threadpool(work)))


async def _delete_many(request: Request, runtime: AccessRuntime) -> Response:
    """The stored queries that match the filters of `GET /api/v1/queries`; `all=1` where no filter is meant."""
    given = dict(request.query_params)
    everything = given.pop("all", "0")
    where = _where(given, everything)

    def work() -> forget.Forgotten:
        with audit.recorded(runtime.deployment.audit, who(request), _address(request), "delete stored queries", _words(given)):
            return forget.forget(runtime, forget.matching(runtime, where))

    return JSONResponse(asdict(await run_in_threadpool(work)))


def _where(given: Mapping[str, str], everything: str) -> QueryFilter:
    if {"limit", "offset"} & given.keys():
        raise _bad("limit and offset choose no queries", "Choose them by since, until, text and the other filters.")
    where, _, _ = query_filter(given)
    if everything not in ("0", "1") or (where == QueryFilter()) != (everything == "1"):
        raise _bad("it is not said which queries go", "Give a filter, or all=1 for all of them; not both.")
    return where


def _words(given: Mapping[str, str]) -> str:
    """The filter, without the text that was looked for: it may be what is to be forgotten."""
    return ", ".join(f"{key}={'…' if key == 'text' else value[:40]}" for key, value in given.items()) or "all"


def _address(request: Request) -> str | None:
    return request.client.host if request.client else None


def _bad(message: str, next_step: str) -> RagError:
    return RagError(message, kind="bad_input", next_step=next_step)
