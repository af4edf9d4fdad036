"""One probe on its way: its deadline, its requests, what it has measured so far. Knows HTTP's statuses, no kind of service.

The kinds (`probes_http`, `probes_models`, `probes_stores`) take an `Attempt` and return a `Finding` or raise ServiceError.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from collectors.connect_timing import Steps, Tls, Wire, connect
from collectors.http_timing import LIMIT_BYTES, HttpAnswer, HttpRequest, exchange, wants_tls
from collectors.services import NEXT_STEPS, Failure, Latency, Service, ServiceError, State

CACHES_HEADER = "x-ragdeck-caches"  # a cached answer would prove nothing
JSON = "application/json"
_TLS_WANTED = re.compile(rb"HTTPS port|HTTPS server|SSL-enabled server port", re.IGNORECASE)  # nginx, Go, Apache
_TITLE = re.compile(r"<title[^>]*>([^<]{1,100})", re.IGNORECASE)
ENDPOINTS = ("/chat/completions", "/embeddings", "/rerank", "/audio/transcriptions", "/models")  # people paste them whole


@dataclass(frozen=True, slots=True)
class Finding:
    """What a kind found out about a service that works, or works half."""

    message: str
    state: State = "ok"
    failure: Failure | None = None
    next_step: str = ""
    version: str | None = None
    models: tuple[str, ...] | None = None
    device: str | None = None
    notes: tuple[str, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Attempt:
    """A probe of `service` that must end before `deadline`, a `time.monotonic()` value."""

    service: Service
    deadline: float
    _steps: list[tuple[Steps, float]] = field(default_factory=list)
    _asides: list[Attempt] = field(default_factory=list)

    def latency(self) -> Latency:
        """All requests so far, part by part; where a question aside failed before the first of them, that one."""
        counted = self._steps or [each for aside in self._asides for each in aside._steps][-1:]

        def total(name: str) -> float | None:
            known = [value for steps, _ in counted if (value := getattr(steps, name)) is not None]
            return sum(known) if known else None

        return Latency(
            sum(seconds for _, seconds in counted),
            total("dns_seconds"),
            total("connect_seconds"),
            total("tls_seconds"),
            total("first_byte_seconds"),
        )

    @property
    def last_seconds(self) -> float:
        """What the latest request took in all."""
        return self._steps[-1][1]

    def uncount(self) -> None:
        """The latest request was only to find out how the service wants to be asked."""
        self._asides.append(Attempt(self.service, self.deadline, [self._steps.pop()]))

    def certificate_expires_at(self) -> float | None:
        """Seconds since the epoch, of the certificate seen last."""
        made = [each for attempt in (*self._asides, self) for each in attempt._steps]
        seen = [steps.certificate_expires_at for steps, _ in made if steps.certificate_expires_at is not None]
        return seen[-1] if seen else None

    @contextmanager
    def timed(self, steps: Steps) -> Iterator[None]:
        """Count what happens inside as one request; its time begins where the connection does, if there is one."""
        entered = time.monotonic()
        try:
            yield
        finally:
            self._steps.append((steps, time.monotonic() - (entered if steps.began_at is None else steps.began_at)))

    @contextmanager
    def connected(self, steps: Steps, *, tls: bool = False) -> Iterator[Wire]:
        """A connection to the service's host and port."""
        host, port = self.service.endpoint
        with connect(host, port, self.deadline, steps, self.tls if tls else None) as sock:
            yield Wire(sock, self.deadline, steps)

    def touch(self, *, tls: bool = False) -> None:
        """Connect and close again: the steps up to a connection, for protocols whose libraries do not tell them."""
        steps = Steps()
        with self.timed(steps), self.connected(steps, tls=tls):
            pass

    @property
    def tls(self) -> Tls:
        return Tls(self.service.verify, self.service.ca_file)

    def aside(self, seconds: float = math.inf) -> Attempt:
        """For questions whose time is not part of the probe's; `seconds` bounds those that may go unanswered."""
        self._asides.append(Attempt(self.service, min(self.deadline, time.monotonic() + seconds)))
        return self._asides[-1]

    @property
    def origin(self) -> str:
        """Scheme, host and port of the url."""
        parts = self.service.parts
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))

    def root(self, path: str = "") -> str:
        """An address on the server itself: the url without a version at its end (`/v1`), and `path`."""
        base = self._base()
        head, _, last = base.rpartition("/")
        return (head if _is_version(last) else base) + path

    def versioned(self, path: str) -> str:
        """An address below the version: `/v1` is added unless the url ends in one."""
        base = self._base()
        return (base if _is_version(base.rpartition("/")[2]) else f"{base}/v1") + path

    def _base(self) -> str:
        path = self.service.parts.path.rstrip("/")
        return self.origin + next((path.removesuffix(end) for end in ENDPOINTS if path.endswith(end)), path)

    def send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        content_type: str = JSON,
        watch: Callable[[bytes], bool] | None = None,
        limit_bytes: int = LIMIT_BYTES,
    ) -> HttpAnswer:
        """One request with the service's key and headers. Raises ServiceError unless something answers in HTTP."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ServiceError("bad_input", "the url of this kind of service begins with http:// or https://")
        headers = {
            "Accept": "*/*",
            "User-Agent": "RAG-Deck",
            CACHES_HEADER: "bypass",
            **self._authorization(),
            **self.service.headers,
        }
        if body is not None:
            headers["Content-Type"] = content_type
        request = HttpRequest(method, url, headers, body, self.tls, limit_bytes)
        steps = Steps()
        with self.timed(steps):
            return exchange(request, self.deadline, steps, watch)

    def get(self, url: str) -> Any:
        """The JSON of a good answer."""
        return self.read(self.send("GET", url))

    def post(self, url: str, body: Mapping[str, Any]) -> Any:
        """The JSON of a good answer to JSON."""
        return self.read(self.send("POST", url, json.dumps(body).encode()))

    def read(self, answer: HttpAnswer) -> Any:
        """Its JSON. Raises ServiceError for a bad status and for what is no JSON."""
        self.check(answer)
        check_plain(answer)
        if answer.truncated:
            raise ServiceError("bad_answer", f"the answer is larger than {len(answer.body):,} bytes")
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError):
            if is_page(answer):
                raise _a_page(answer) from None
            kind = self.service.said(answer.headers.get("content-type", "no content type"))
            shown = self.service.said(answer.body[:200].decode("utf-8", "replace")) or "an empty body"
            raise ServiceError("bad_answer", f"answered {answer.status} with {kind} that is no JSON: {shown}") from None

    def check(self, answer: HttpAnswer) -> None:
        """Raise ServiceError unless the status is 200 to 299."""
        if 200 <= answer.status < 300:
            return
        said = self.service.said(_complaint(answer))
        if answer.status == 400 and _TLS_WANTED.search(answer.body[:4000]):
            raise wants_tls()
        if 300 <= answer.status < 400:
            target = self.service.said(urlsplit(answer.headers.get("location", ""))._replace(query="", fragment="").geturl())
            step = "Redirects are not followed, so that no key goes astray: set url to the final address."
            raise ServiceError("bad_answer", f"answered {answer.status}, a redirect to {target or 'nowhere'}", step)
        if answer.status == 503 and ("loading" in said.lower() or b'"loading"' in answer.body):
            step = "Wait: large models load for minutes. Its log shows how far it is."
            raise ServiceError("model", f"it is loading: {said}", step, state="loading")
        if answer.status in (401, 403):
            what = f"answered {answer.status}" + (f": {said}" if said else "")
            raise self.service.refused(what, may_not=answer.status == 403)
        failure = _failure(answer.status, said)
        raise ServiceError(failure, f"answered {answer.status}" + (f": {said}" if said else ""), _step(failure, answer))

    def _authorization(self) -> dict[str, str]:
        if self.service.api_key:
            return {"Authorization": f"Bearer {self.service.api_key}"}
        user, password = self.service.credentials
        if user is None:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password or ''}".encode()).decode()}


def check_plain(answer: HttpAnswer) -> None:
    """Raise ServiceError for a body in a coding that was not asked for: it is never unpacked, so that no bomb goes off."""
    coding = answer.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        step = "Let it, or the proxy before it, send plain text to who does not ask for compression (Accept-Encoding: identity)."
        raise ServiceError("bad_answer", f"the answer is compressed ({coding}), which nobody asked for", step)


def is_page(answer: HttpAnswer) -> bool:
    """A web page, whatever its content type says."""
    head = answer.body[:200].lstrip().lower()
    return "html" in answer.headers.get("content-type", "") or head.startswith((b"<!doctype html", b"<html"))


def _a_page(answer: HttpAnswer) -> ServiceError:
    """Most often the sign-in of a proxy, with status 200."""
    found = _TITLE.search(answer.body[:20_000].decode("utf-8", "replace"))
    title = f" (“{' '.join(found[1].split())}”)" if found and found[1].strip() else ""
    step = "Is it the page of a proxy or a sign-in? Let the url lead past it, to the service itself, with the key it takes."
    return ServiceError("bad_answer", f"answered {answer.status} with a web page{title} where JSON was expected", step)


def _is_version(segment: str) -> bool:
    return segment[:1] == "v" and segment[1:2].isdigit()


def _complaint(answer: HttpAnswer) -> str:
    """What the server says is wrong, in the shapes of OpenAI, FastAPI, TEI, Cohere and our own; else its text."""
    text = answer.body[:4000].decode("utf-8", "replace")
    try:
        data = json.loads(answer.body)
    except (ValueError, RecursionError):
        return "" if "<html" in text.lower() else text
    if not isinstance(data, dict):
        return text
    for key in ("reason", "error", "message", "detail", "status"):
        value = data.get(key)
        if isinstance(value, dict) and isinstance(value.get("message"), str):
            return str(value["message"])
        if value and isinstance(value, str | list):
            return value if isinstance(value, str) else json.dumps(value)
    return text


def _failure(status: int, said: str) -> Failure:
    if status in (400, 404) and "model" in said.lower():
        return "model"
    if status in (404, 405):
        return "not_found"
    if status in (408, 504):
        return "timeout"
    if status in (429, 503):
        return "overloaded"
    return "bad_input" if status < 500 else "server_error"


def _step(failure: Failure, answer: HttpAnswer) -> str:
    after = answer.headers.get("retry-after", "")
    if failure == "overloaded" and after.isdigit() and len(after) <= 6:
        return f"{NEXT_STEPS[failure]} It asks to wait {after} s."
    return NEXT_STEPS[failure]
