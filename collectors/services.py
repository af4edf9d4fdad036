"""What a service to be probed is, and what a probe of it found. Knows no protocol and no clock.

A `Service` comes from the settings; its secrets show neither in its repr nor in anything that `Service.said` has passed.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

ServiceKind = Literal[
    "http",
    "gpu_server",
    "openai-chat",
    "openai-embeddings",
    "rerank",
    "whisper",
    "ocr",
    "milvus",
    "redis",
    "postgres",
    "tcp",
]
ProbeKind = Literal["liveness", "functional"]
State = Literal["ok", "degraded", "loading", "failed"]
Failure = Literal[
    "dns",
    "refused",
    "connection",
    "tls",
    "authentication",
    "not_found",
    "model",
    "timeout",
    "overloaded",
    "bad_input",
    "bad_answer",
    "server_error",
    "internal",
]
KINDS: tuple[ServiceKind, ...] = get_args(ServiceKind)

DEFAULT_PORTS = {"http": 80, "https": 443, "redis": 6379, "rediss": 6379, "postgres": 5432, "postgresql": 5432}
MILVUS_PORT = 19530
SECRET_NAMES = re.compile(r"key|token|pass|secret|sig|auth|credential", re.IGNORECASE)
SECRET_CHARS = 4  # a shorter "secret" hides nothing, and masking every "1" would make messages unreadable
PART_CHARS = 8  # so much of a secret in a row is masked too
SAID_CHARS = 300

NEXT_STEPS: Mapping[Failure, str] = {
    "dns": "Check the host name in the service's url and this machine's name servers.",
    "refused": "Check that the service runs, on which address and port it listens, and the firewall.",
    "connection": "Check the service's log and the network between this machine and it.",
    "tls": "Check the certificate of the service, its name and expiry, and ca_file in the settings.",
    "authentication": "Check api_key_env (or the user and password in the url) of this service in the settings.",
    "not_found": "Check the url of this service: the server answers, but not under this path.",
    "model": "Check the model of this service in the settings against what the server serves.",
    "timeout": "Look at the load, the queue and the log of the service; raise timeout_seconds if it is only slow.",
    "overloaded": "Look at the queue of the service; send it less, or add a replica.",
    "bad_input": "Check the url, the headers and the kind of this service in the settings.",
    "bad_answer": "Check that the url leads to a service of this kind, and not to another one or to a proxy's page.",
    "server_error": "Read the service's log: it failed at a request that is well-formed.",
    "internal": "This is a fault of the dashboard: its log says more.",
}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Above (seconds) or below (days) these a working service counts as degraded. None: never."""

    liveness_seconds: float | None = None
    functional_seconds: float | None = None
    certificate_days: float | None = 14.0


@dataclass(frozen=True, slots=True, repr=False)
class Service:
    """One service of the deployment.

    `url` is `http(s)://…` (for the OpenAI kinds with or without `/v1`), `redis(s)://…`, `postgresql://…`, and for `milvus` and
    `tcp` also `host:port`; user and password may stand in it. `expect_text` must occur in the answer of an `http` service.
    `language` chooses the spoken sample of `whisper`. `timeout_seconds` bounds a probe as a whole. `key_setting` is where the
    key is set, for messages.
    """

    name: str
    kind: ServiceKind
    url: str
    model: str | None = None
    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    verify: bool = True
    ca_file: Path | None = None
    timeout_seconds: float = 10.0
    thresholds: Thresholds = Thresholds()
    expect_text: str | None = None
    language: Literal["he", "en"] = "he"
    key_setting: str = "api_key_env"

    def __repr__(self) -> str:
        secrets = "***" if self.secrets() else None
        return f"Service(name={self.name!r}, kind={self.kind!r}, address={self.address!r}, secrets={secrets!r})"

    @property
    def parts(self) -> SplitResult:
        """The url taken apart; `host:port` counts as `tcp://host:port`. Raises ServiceError."""
        try:
            parts = urlsplit(self.url if "://" in self.url else f"tcp://{self.url}")
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ServiceError("bad_input", "the url cannot be read") from None
        if not host:
            raise ServiceError("bad_input", "the url names no host")
        return parts

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port. Raises ServiceError where the url names neither a port nor a scheme that has one."""
        parts = self.parts
        port = parts.port or (MILVUS_PORT if self.kind == "milvus" else DEFAULT_PORTS.get(parts.scheme))
        if not port:
            raise ServiceError("bad_input", "the url names no port")
        return parts.hostname or "", port

    @property
    def address(self) -> str:
        """The url to show: without user, password, query and fragment."""
        try:
            parts = self.parts
        except ServiceError:
            return "(unreadable url)"
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        return shown if "://" in self.url else shown.removeprefix("tcp://")

    @property
    def credentials(self) -> tuple[str | None, str | None]:
        """User and password of the url."""
        parts = self.parts
        return tuple(None if part is None else unquote(part) for part in (parts.username, parts.password))  # type: ignore[return-value]

    @property
    def has_key(self) -> bool:
        """Something is sent by which it may know us. Over HTTP a name alone can be a key."""
        user, password = self.credentials
        in_url = password or (user and self.parts.scheme in ("http", "https"))
        return bool(self.api_key or in_url or any(SECRET_NAMES.search(name) for name in self.headers))

    def refused(self, what: str, *, may_not: bool = False) -> ServiceError:
        """It wants another key than it got. `what` is what it said; `may_not`: it knows the key, which may not do this."""
        setting = self.key_setting
        if not self.has_key:
            step = f"Set {setting} of {self.name} in the settings to the name of an environment variable, and its key in that."
            if setting != "api_key_env":
                step = f"Set {setting} to the key that {self.name} takes."
            return ServiceError("authentication", f"needs a key: set {setting} ({what})", step)
        if may_not:
            step = f"Give the key in {setting} of {self.name} the right to do this there, or name another one."
            return ServiceError("authentication", f"the key may not do this ({what})", step)
        where = setting if self.api_key else "the url" if any(self.credentials) else "headers"
        step = f"Compare the key in {where} of {self.name} with the one that the service was started with, blanks included."
        return ServiceError("authentication", f"key refused ({what})", step)

    def secrets(self) -> tuple[str, ...]:
        """Everything that must not be shown, longest first, also as it is written in urls and in Basic authentication."""
        found = {self.api_key or "", *self.headers.values()}
        found |= {value.partition(" ")[2] for value in self.headers.values()}
        try:
            parts = self.parts
            user, password = self.credentials
            found |= {value for name, value in parse_qsl(parts.query) if SECRET_NAMES.search(name)}
            if password:
                found |= {password, parts.password or "", base64.b64encode(f"{user}:{password}".encode()).decode()}
        except ServiceError:
            found.add(self.url)
        found |= {quote(secret, safe="") for secret in found}
        return tuple(sorted((secret for secret in found if len(secret) >= SECRET_CHARS), key=len, reverse=True))

    def said(self, text: object) -> str:
        """Text that came from outside, fit for a message: secrets masked, one line, cut short. Not escaped for HTML."""
        shown = _masked(str(text), self.secrets())
        shown = " ".join("".join(char if char.isprintable() else " " for char in shown).split())
        return shown if len(shown) <= SAID_CHARS else shown[: SAID_CHARS - 1] + "…"


def _masked(text: str, secrets: tuple[str, ...]) -> str:
    """Every secret as `***`, and every PART_CHARS or more of one in a row: some servers quote a key in part, to be discreet."""
    parts = {secret[at : at + PART_CHARS] for secret in secrets for at in range(max(1, len(secret) - PART_CHARS + 1))}
    if not parts:
        return text
    shown: list[str] = []
    end = 0
    for found in re.finditer(f"(?=({'|'.join(map(re.escape, sorted(parts, key=len, reverse=True)))}))", text):
        if found.start() > end or not shown:
            shown += [text[end : found.start()], "***"]
        end = max(end, found.end(1))
    return "".join([*shown, text[end:]])


class ServiceError(Exception):
    """A probe that failed, on its way to becoming a ProbeResult. `state` is `loading` where the service is only not ready yet."""

    def __init__(self, failure: Failure, message: str, next_step: str | None = None, *, state: State = "failed") -> None:
        super().__init__(message)
        self.failure: Failure = failure
        self.message = message
        self.next_step = NEXT_STEPS[failure] if next_step is None else next_step
        self.state: State = state


@dataclass(frozen=True, slots=True)
class Latency:
    """Where the seconds of a probe went: over fresh connections, and summed where a probe made several requests.

    `first_byte_seconds` is from the request sent to the first byte of its answer. None is what was not reached or does not exist
    (no TLS, or a protocol whose library does not tell).
    """

    total_seconds: float
    dns_seconds: float | None = None
    connect_seconds: float | None = None
    tls_seconds: float | None = None
    first_byte_seconds: float | None = None

    def to_json(self) -> dict[str, float | None]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found. Texts may come from the service: never to be shown unescaped.

    `failure` is None where `state` is `ok`; `message` says what was found in either case. `models` is None where the service
    does not say. `measures` are further numbers by name (`dimension`, `ttft_seconds`, `word_recall_ratio`).
    """

    service: str
    kind: ServiceKind
    probe: ProbeKind
    state: State
    address: str
    latency: Latency
    failure: Failure | None = None
    message: str = ""
    next_step: str = ""
    version: str | None = None
    models: tuple[str, ...] | None = None
    device: str | None = None
    certificate_days: float | None = None
    notes: tuple[str, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def up(self) -> bool:
        """It does its work, however slowly."""
        return self.state in ("ok", "degraded")

    def to_json(self) -> dict[str, Any]:
        return {
            **{item.name: getattr(self, item.name) for item in dataclasses.fields(self)},
            "latency": self.latency.to_json(),
            "models": None if self.models is None else list(self.models),
            "notes": list(self.notes),
            "measures": dict(self.measures),
        }


def metrics(result: ProbeResult) -> dict[str, float]:
    """Every known number of a result by its name, as `collectors.readings` does: `service.failed` and `service.loading` (1.0
    or 0.0), `service.functional_seconds` (in all), `service.functional_connect_seconds`, `service.certificate_days`,
    `service.ttft_seconds`."""
    latency = result.latency.to_json()
    numbers: dict[str, float | None] = {
        "failed": float(result.state == "failed"),
        "degraded": float(result.state == "degraded"),
        "loading": float(result.state == "loading"),
        f"{result.probe}_seconds": latency.pop("total_seconds"),
        **{f"{result.probe}_{name}": value for name, value in latency.items()},
        "certificate_days": result.certificate_days,
        **result.measures,
    }
    return {f"service.{name}": value for name, value in numbers.items() if value is not None}
