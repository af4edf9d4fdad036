"""The OpenAPI document of /api: what programs may send and what comes back. A description; the routes know nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from access.forget import Forgotten
from access.scopes import SCOPES, needed
from collectors.audit import Action
from gpu_server.interfaces import CacheMode
from rag.api import FILTERS, MAX_FILTER_CHARS, MAX_OFFSET, MAX_PAGE
from rag.types import STAGES, Answer, HydeMode, Outcome

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ID: Schema = {"type": "string", "description": "32 hex digits of a stored query."}
MAYBE: dict[str, Schema] = {name: {"type": [name, "null"]} for name in ("string", "number", "integer", "object")}


def document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1 of every route of ours; a token is asked for where the server wants one."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "RAG Deck",
            "version": version,
            "description": "Ask questions, read stored queries, delete them. docs/contracts.md has every field.",
        },
        "servers": [{"url": "/"}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths() -> dict[str, Any]:
    given = {
        ("POST", "/api/v1/ask"): _operation(
            "Answer a question", "Answer", body="Ask", errors=(400, 404, 409, 413, 415, 429, 500, 502, 504), events=True
        ),
        ("GET", "/api/v1/queries"): _operation("Stored queries, newest first", "Queries", _paging() + _filters(), (400,)),
        ("GET", "/api/v1/queries/{id}"): _operation("One stored query", "Answer", [_path(), _query("spans", _choice("0", "1"))]),
        ("DELETE", "/api/v1/queries"): _operation(
            "Delete what the filters find", "Forgotten", [*_filters(), _query("all", _choice("0", "1"))], (400,)
        ),
        ("DELETE", "/api/v1/queries/{id}"): _operation("Delete a stored query and what was kept of it", "Forgotten", [_path()]),
        ("GET", "/api/v1/whoami"): _operation("Who you are to this server", "Identity", (), ()),
        ("GET", "/api/v1/audit"): _operation("Who did what, newest first", "Actions", _audit_filters(), (400,)),
        ("GET", "/api/health"): _operation("Is everything ready", "Health", (), (503,)),
    }
    paths: dict[str, Any] = {}
    for (method, path), operation in given.items():
        scope = needed(method, path)
        if scope is not None:
            operation |= {"security": [{}, {"token": []}], "description": f"Needs the scope `{scope}` where a token is wanted."}
            operation["responses"] |= {"401": _answer("Error"), "403": _answer("Error")}
        paths.setdefault(path, {})[method.lower()] = operation
    return paths


def _operation(
    summary: str,
    answer: str,
    parameters: Sequence[Schema] = (),
    errors: Sequence[int] = (400, 404),
    *,
    body: str | None = None,
    events: bool = False,
) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": _answer(answer)}
    if events:
        responses["200"]["content"]["text/event-stream"] = {"schema": TEXT}
        responses["200"]["headers"] = {"X-RagDeck-Job": {"description": "The job that `/?job=` follows.", "schema": TEXT}}
    # a query that failed is an Answer with its error; what could not be asked at all is an Error
    kinds = ["Error", "Answer"] if body else ["Health"] if answer == "Health" else ["Error"]
    responses |= {str(status): _answer(*kinds) for status in errors}
    found: dict[str, Any] = {"summary": summary, "parameters": list(parameters), "responses": responses}
    if body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _named(body)}}}
    return found


def _answer(*schemas: str) -> dict[str, Any]:
    schema = _named(schemas[0]) if len(schemas) == 1 else {"anyOf": [_named(name) for name in schemas]}
    return {"description": " or ".join(schemas), "content": {"application/json": {"schema": schema}}}


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _query(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": dict(schema)}


def _path() -> dict[str, Any]:
    return {"name": "id", "in": "path", "required": True, "schema": ID}


def _choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _filters() -> list[dict[str, Any]]:
    kinds: dict[str, Schema] = {
        "text": {"type": "string", "maxLength": MAX_FILTER_CHARS},
        "cold": _choice("0", "1"),
        "outcome": _choice(*get_args(Outcome)),
        **dict.fromkeys(("since", "until", "slower_than"), NUMBER),
    }
    return [_query(name, kinds.get(name, TEXT)) for name in FILTERS]


def _paging() -> list[dict[str, Any]]:
    limits = {"limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}, "offset": {**COUNT, "maximum": MAX_OFFSET}}
    return [_query(name, schema) for name, schema in limits.items()]


def _audit_filters() -> list[dict[str, Any]]:
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}
    return [_query(name, limit if name == "limit" else TEXT) for name in ("text", "outcome", "since", "limit")]


def _object(properties: Mapping[str, Any], *, required: Sequence[str] | None = None, closed: bool = False) -> Schema:
    found: Schema = {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties if required is None else required),
    }
    return {**found, "additionalProperties": False} if closed else found


def _schemas() -> dict[str, Schema]:
    problem = _object({"kind": TEXT, "message": TEXT, "address": MAYBE["string"], "next_step": TEXT})
    stage = _object({"stage": _choice(*STAGES), "seconds": NUMBER, "spans": COUNT, "cold": {"type": "boolean"}})
    anything: dict[str, Schema] = {name: {} for name in (*(field.name for field in fields(Answer)), "cold")}
    told = {
        "id": ID,
        "question": TEXT,
        "started_at": TEXT,
        "outcome": _choice(*get_args(Outcome)),
        "error": MAYBE["object"],
        "answer": TEXT,
        "stages": {"type": "array", "items": stage},
        "total_seconds": NUMBER,
        "ttft_seconds": MAYBE["number"],
        "cold": {"type": "boolean"},
    }
    row = _object({"id": ID, "question": MAYBE["string"], "outcome": TEXT, "total_seconds": NUMBER})
    return {
        "Error": _object({"error": problem}),
        "Ask": _ask(),
        "Answer": _object({**anything, **told}),
        "Queries": _object({"total": COUNT, "limit": COUNT, "offset": COUNT, "queries": {"type": "array", "items": row}}),
        "Health": _object({"status": _choice("ok", "warming", "degraded", "broken")}),
        "Identity": _object({"name": TEXT, "how": TEXT, "scopes": {"type": "array", "items": _choice(*SCOPES)}}),
        "Actions": _object({"actions": {"type": "array", "items": _object({field.name: {} for field in fields(Action)})}}),
        "Forgotten": _object(
            {**{field.name: COUNT for field in fields(Forgotten)}, "problems": {"type": "array", "items": TEXT}}
        ),
    }


def _ask() -> Schema:
    """The body of a question; what it leaves out is as the settings say."""
    count = {"type": "integer", "minimum": 1, "maximum": 1000}
    optional = {
        "stream": {"type": "boolean", "description": "Server-sent events instead of one answer."},
        "hyde": _choice(*get_args(HydeMode)),
        "candidates": count,
        "keep": {**count, "description": "At most `candidates`."},
        "rerank": {"type": "boolean"},
        "caches": _choice(*get_args(CacheMode)),
        "model": MAYBE["string"],
        "collection": MAYBE["string"],
    }
    query = {"type": "string", "minLength": 1, "maxLength": 20_000}
    return _object({"query": query, **optional}, required=["query"], closed=True)
