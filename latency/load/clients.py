"""Who a load test asks: this process, or any server that takes `POST {"query": …}`. Each call gives a `Told` and never raises.

Knows nothing of users, steps and schedules.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Protocol, get_args
from urllib.parse import urlsplit

import httpx
import orjson

from jobs import Job
from latency.load.steps import Told
from rag.api import ORIGIN_HEADER
from rag.errors import Kind, RagError
from rag.types import Answer, Options

if TYPE_CHECKING:
    from latency.lab import Lab

LOOK_SECONDS = 0.2
END_SECONDS = 5.0  # for a query that was told to stop
MAX_ANSWER_BYTES = 8 * 1024 * 1024
ASK_PATH = "/api/v1/ask"
KINDS = frozenset(get_args(Kind))
STATUS_KINDS: Mapping[int, Kind] = {
    401: "authentication",
    403: "authentication",
    404: "not_found",
    408: "timeout",
    409: "held",
    429: "overloaded",
    502: "connection",
    503: "overloaded",
    504: "timeout",
}


class Client(Protocol):
    """Asked by many threads at once."""

    def ask(self, question: str, stop: threading.Event) -> Told:
        """One question; ends early with the error `cancelled` when `stop` is set."""
        ...

    def close(self) -> None: ...


class ProcessClient:
    """Asks this process, as the pages do, with origin `measure`."""

    def __init__(self, lab: Lab, options: Mapping[str, Any], timeout: float) -> None:
        self._lab, self._timeout = lab, timeout
        self._options = options_of(lab.default_options(), options)

    def ask(self, question: str, stop: threading.Event) -> Told:
        try:
            job = self._lab.submit_query(question, self._options, origin="measure")
        except RagError as problem:
            return Told(error=problem.kind, message=problem.message)
        deadline = time.monotonic() + self._timeout
        while not job.wait(LOOK_SECONDS):
            if stop.is_set() or time.monotonic() > deadline:
                job.cancel()
                job.wait(END_SECONDS)
                return Told(error="cancelled" if stop.is_set() else "timeout", message=f"no answer within {self._timeout:g} s")
        return _of_job(job)

    def close(self) -> None:
        """Nothing of ours is open."""


def options_of(base: Options, changes: Mapping[str, Any]) -> Options:
    """The options with what the plan changes; caches are bypassed unless it says otherwise. Raises RagError for unknown keys."""
    known = {field.name for field in fields(Options)}
    if unknown := sorted(changes.keys() - known):
        raise RagError(f"unknown option {unknown[0]!r}", kind="bad_input", next_step=f"Known are {', '.join(sorted(known))}.")
    return replace(base, **{"caches": "bypass", **changes})


def _of_job(job: Job[Answer]) -> Told:
    if job.result is None:
        return Told(error="internal", message=str(job.error) if job.error else "the query ended without an answer")
    return told_of(job.result)


def told_of(answer: Answer) -> Told:
    """An answer as the test counts it. Queues are our own and, where the language model's server tells, that server's."""
    if answer.outcome == "cancelled":
        return Told(error="cancelled", query_id=answer.id)
    if answer.outcome == "failed":
        error = answer.error
        return Told(error=error.kind if error else "internal", message=error.message if error else "", query_id=answer.id)
    ran = [stage for stage in answer.stages if stage.spans or stage.seconds]
    served: dict[str, float] = {}
    for each in answer.timeline:
        served[each.stage] = served.get(each.stage, 0.0) + float(each.facts.get("server_queue_seconds") or 0.0)
    return Told(
        stages={stage.stage: stage.seconds for stage in ran},
        queues={stage.stage: max(stage.split.queue or 0.0, served.get(stage.stage, 0.0)) for stage in ran},
        cold=answer.cold,
        query_id=answer.id,
    )


class HttpClient:
    """Asks a server: RAG Deck's own API, whose answers carry stages, or any other that answers such a body, by text alone.

    `caches: bypass` is added where the options say nothing of caches, and left out from then on where it is refused.
    """

    def __init__(self, url: str, token: str | None, options: Mapping[str, Any], timeout: float, connections: int) -> None:
        self.url = ask_url(url)
        self._options = dict(options)
        self._added = {} if "caches" in options else {"caches": "bypass"}
        headers = {ORIGIN_HEADER: "measure", **({"authorization": f"Bearer {token}"} if token else {})}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        times = httpx.Timeout(timeout, connect=min(5.0, timeout), pool=timeout)
        self._timeout = timeout
        self._http = httpx.Client(timeout=times, headers=headers, limits=limits, follow_redirects=False)

    def ask(self, question: str, stop: threading.Event) -> Told:
        try:
            added = self._added
            told = self._asked(question, added)
            if told.error == "bad_input" and added:
                self._added = {}
                told = self._asked(question, {})
            return told
        except httpx.TimeoutException:
            return Told(error="timeout", message=f"no answer within {self._timeout:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as problem:  # RuntimeError: the client was closed meanwhile
            if stop.is_set():
                return Told(error="cancelled")
            return Told(error="connection", message=f"{type(problem).__name__}: {problem}")

    def _asked(self, question: str, added: Mapping[str, str]) -> Told:
        end = time.monotonic() + self._timeout
        body = bytearray()
        with self._http.stream("POST", self.url, json={"query": question, **added, **self._options}) as response:
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    return Told(error="bad_answer", message=f"the answer has more than {MAX_ANSWER_BYTES:,} bytes")
                if time.monotonic() > end:  # the time limit of httpx is for each piece
                    return Told(error="timeout", message=f"no whole answer within {self._timeout:g} s")
        return _of_response(response.status_code, bytes(body))

    def close(self) -> None:
        self._http.close()


def ask_url(url: str) -> str:
    """Where to ask: the URL itself when it has a path, else RAG Deck's path under it. Raises RagError for no HTTP address."""
    try:
        parts = urlsplit(url.strip())
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine:
        raise RagError(
            "the address to ask is no HTTP address", kind="bad_input", next_step="Give one like http://127.0.0.1:8080."
        )
    if parts.username or parts.password:
        raise RagError("the address holds a login", kind="bad_input", next_step="Give the token apart from the address.")
    return url.strip() if parts.path not in ("", "/") else f"{parts.scheme}://{parts.netloc}{ASK_PATH}"


def _of_response(status: int, body: bytes) -> Told:
    try:
        data = orjson.loads(body)
    except ValueError:
        data = None
    if not 200 <= status < 300:
        return _refused(status, data)
    if not isinstance(data, dict) or not isinstance(data.get("stages"), list):
        return Told()  # another program's answer: text, with nothing said of its stages
    try:
        return told_of(Answer.from_json(data))
    except (TypeError, ValueError, KeyError, AttributeError):
        return Told()


def _refused(status: int, data: Any) -> Told:
    """An error with the kind that the body names, else the one that the status stands for. A failed Answer has its error too."""
    error = data.get("error") if isinstance(data, dict) else None
    error = error if isinstance(error, dict) else {}
    said = error.get("kind")
    otherwise: Kind = STATUS_KINDS.get(status, "internal" if status >= 500 else "bad_input")
    kind = said if isinstance(said, str) and said in KINDS else otherwise
    message = error.get("message")
    return Told(error=kind, message=f"HTTP {status}" + (f": {message}" if isinstance(message, str) else ""))
