"""What is validated: what the settings say, as values, and the process that answers queries. Opens and asks nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from collectors.machines import Machine
from collectors.services import Service
from gpu_server.interfaces import Embedder, Reranker
from rag.loaders.media import PageReader, Transcriber
from rag.store import CollectionInfo

QUESTION = "What is this collection about?"
Role = Literal["embedder", "reranker", "llm"]


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that the settings run in this process: `starter`, a hub name or a folder."""

    role: Role
    name: str


@dataclass(frozen=True, slots=True)
class OwnServer:
    """Something of ours that listens, as the settings have it."""

    name: str
    host: str
    port: int
    token: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Targets:
    """What is acceptable; the section [readiness] of the settings. `total_seconds` is R1's warm query with HyDE and a language
    model (10 s); the first token is our own choice; `users` is the lower end of R4's 3 to 5 at once on an A100, or of its 10 to
    15 on 8×H100. Evidence older than `evidence_days` proves nothing; stored queries count for `query_days`."""

    total_seconds: float = 10.0
    first_token_seconds: float = 2.0
    users: int = 3
    evidence_days: float = 30.0
    query_days: float = 7.0


@dataclass(frozen=True, slots=True)
class Subject:
    """A deployment as its settings describe it. `path_services` are those that a query of this process uses, `services` also the
    watched ones; `addresses` are all urls of the settings by the name of the setting, without secrets. `offline` are the three
    variables by name, as they are in force. `root` is the folder of the program."""

    root: Path
    data_dir: Path
    version: str
    path_services: tuple[Service, ...] = ()
    watched: tuple[Service, ...] = ()
    machines: tuple[Machine, ...] = ()
    own: tuple[OwnServer, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    local_models: tuple[LocalModel, ...] = ()
    offline: Mapping[str, bool] = field(default_factory=dict)
    device: str = "auto"
    llm_url: str | None = None
    gpu_server_url: str | None = None
    milvus_url: str | None = None
    page_reader: PageReader | None = None
    transcriber: Transcriber | None = None
    question: str = QUESTION
    targets: Targets = Targets()

    @property
    def services(self) -> tuple[Service, ...]:
        """Those of the path, then the watched ones at other places; a service watched at the same address is the same one."""
        seen = {(service.kind, service.address) for service in self.path_services}
        return (*self.path_services, *(each for each in self.watched if (each.kind, each.address) not in seen))


class Process(Protocol):
    """The process whose queries are validated: this one, or a server that has the embedded store open."""

    @property
    def where(self) -> str:
        """For people: `in this process`, or the server's address."""

    @property
    def embedder(self) -> Embedder | None:
        """The embedder in force; None where it is inside another process."""

    @property
    def reranker(self) -> Reranker | None: ...

    @property
    def chat_address(self) -> str | None:
        """Where the language model in force is asked; None without one over HTTP."""

    def collections(self) -> tuple[CollectionInfo, ...]:
        """Those of the store, the one in use marked `active`. Raises RagError."""

    def ask(self, question: str) -> Mapping[str, Any]:
        """One query past the caches, as an Answer in JSON. Raises RagError."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own loopback, by its spelling alone."""
    name = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
