"""Cheap questions to HTTP services, and the whole of the kind `http`. Knows no model's request: that is `probes_models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from collectors.attempt import Attempt, Finding, check_plain, is_page
from collectors.http_timing import HttpAnswer
from collectors.services import DEFAULT_PORTS, ServiceError

SHOWN_MODELS = 5
VERSION_SECONDS = 2.0


def http_answers(attempt: Attempt) -> Finding:
    """A GET of the url itself: any status below 400 will do, since a redirect is a sign of life."""
    return _answered(attempt, _get(attempt))


def http_works(attempt: Attempt) -> Finding:
    """The same, and the expected text is in the answer."""
    answer, wanted = _get(attempt), attempt.service.expect_text
    finding = _answered(attempt, answer)
    if wanted:
        check_plain(answer)
    if wanted and wanted not in answer.body.decode("utf-8", "replace"):
        raise ServiceError("bad_answer", f"answered {answer.status}, but without the expected text “{wanted}”")
    return finding


def server_answers(attempt: Attempt) -> Finding:
    """`/health` as vLLM, TEI and our server have it; where there is none, the list of models."""
    try:
        return _health(attempt)
    except ServiceError as problem:
        if problem.failure != "not_found":
            raise
    return serves_models(attempt)


def serves_models(attempt: Attempt) -> Finding:
    """OpenAI's `/v1/models`, and the configured model is on it; where there is no such list, `/health`."""
    try:
        data = attempt.get(attempt.versioned("/models"))
    except ServiceError as problem:
        if problem.failure != "not_found":
            raise
        return _health(attempt, missing=problem)
    models = model_names(data)
    check_model(attempt, models)
    shown = ", ".join(models[:SHOWN_MODELS]) + (f" and {len(models) - SHOWN_MODELS} more" if len(models) > SHOWN_MODELS else "")
    return Finding(f"serves {shown}" if models else "serves no model yet", models=models, version=_version(data))


def model_names(data: Any) -> tuple[str, ...]:
    """The names in OpenAI's list of models. Raises ServiceError for anything else."""
    listed = data.get("data") if isinstance(data, Mapping) else None
    if not isinstance(listed, list) or not all(isinstance(row, Mapping) and isinstance(row.get("id"), str) for row in listed):
        raise ServiceError("bad_answer", "what it lists as models is no list of models")
    return tuple(row["id"] for row in listed)


def check_model(attempt: Attempt, models: tuple[str, ...]) -> None:
    wanted = attempt.service.model
    if wanted and models and wanted not in models:
        raise ServiceError("model", f"serves {', '.join(models[:SHOWN_MODELS])}, not {wanted}")


def version(attempt: Attempt, path: str = "/version") -> str | None:
    """What vLLM tells at `/version` and our server at `/status`; its time does not count."""
    aside = attempt.aside(VERSION_SECONDS)
    try:
        return _version(aside.get(aside.root(path)))
    except ServiceError:
        return None


def gpu_server_is_healthy(attempt: Attempt) -> Finding:
    """Our server's `/health`: healthy means that a real pass has proven the models."""
    data = gpu_server_health(attempt)
    device, gpu = _text(data.get("device")), _text(data.get("gpu"))
    models = tuple(name for row in rows(data.get("models")) if (name := _text(row.get("name"))))
    if not models and (only := _text(data.get("model"))):
        models = (only,)
    check_model(attempt, models)
    where = f"{device} ({gpu})" if device and gpu else device
    return Finding(f"healthy on {where}" if where else "healthy", models=models or None, device=where, version=_version(data))


def gpu_server_health(attempt: Attempt) -> Mapping[str, Any]:
    """The JSON of `/health` when it is healthy; ServiceError otherwise, with the state `loading` while it loads."""
    answer = attempt.send("GET", attempt.root("/health"))
    if answer.status == 503:
        raise _unready(attempt, answer)
    data = attempt.read(answer)
    if not isinstance(data, Mapping) or data.get("status") != "healthy":
        raise ServiceError("bad_answer", f"answered {answer.status} without the status “healthy”")
    return data


def _unready(attempt: Attempt, answer: HttpAnswer) -> Exception:
    """503 of our server: still loading, or models that failed."""
    try:
        attempt.check(answer)
    except ServiceError as problem:
        if problem.state == "loading" or b'"unhealthy"' not in answer.body:
            return problem
        return ServiceError("model", f"its models are not healthy: {problem.message}", "Read the server's log.")
    raise AssertionError("a 503 is never a good answer")


def _get(attempt: Attempt) -> HttpAnswer:
    return attempt.send("GET", _url(attempt))


def _url(attempt: Attempt) -> str:
    parts = attempt.service.parts
    return f"{attempt.origin}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else "")


def _same(url: str, other: str) -> bool:
    """The same resource: scheme and host are written in any case, a default port may stand there."""
    return _normal(url) == _normal(other)


def _normal(url: str) -> tuple[object, ...]:
    parts = urlsplit(url)
    try:
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        port = None
    return parts.scheme, parts.hostname, port, parts.path or "/", parts.query


def _answered(attempt: Attempt, answer: HttpAnswer) -> Finding:
    if answer.status >= 400:
        attempt.check(answer)
    target = answer.headers.get("location")
    if target and answer.status >= 300 and _same(urljoin(_url(attempt), target), _url(attempt)):
        step = "Read the configuration of the service, or of the proxy before it: often both rewrite http to https."
        raise ServiceError("bad_answer", f"answered {answer.status}, a redirect to itself: it never ends", step)
    notes = (f"it redirects to {target.partition('?')[0]}",) if target and answer.status >= 300 else ()
    return Finding(f"answered {answer.status}", version=answer.headers.get("server"), notes=notes)


def _health(attempt: Attempt, missing: ServiceError | None = None) -> Finding:
    """`/health`, of which only the status counts: vLLM and TEI answer with an empty body. `missing` is raised without it."""
    answer = attempt.send("GET", attempt.root("/health"))
    if missing and answer.status in (404, 405):
        raise missing
    attempt.check(answer)
    if is_page(answer):
        raise ServiceError("bad_answer", "answers /health with a web page")
    return Finding("healthy, by its /health", notes=("it does not list its models",) if missing else ())


def _version(data: Any) -> str | None:
    return _text(data.get("version")) if isinstance(data, Mapping) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def rows(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a JSON list; empty for anything else."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
