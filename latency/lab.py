"""What measuring needs of the process it runs in: ask a query, with other models or settings when wanted. The runtime has it.

Replay, load test, component tests and what-if receive a Lab and import no runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from collectors.sweep import Sweep
from gpu_server.interfaces import ChatModel
from jobs import Job, Jobs
from latency.readings.store import ReadingStore
from latency.types import Baseline
from rag.query import Clients
from rag.trace_store import TraceStore
from rag.types import Answer, Options


@dataclass(frozen=True, slots=True)
class Variant:
    """Models and settings other than those in force, for queries that measure. `changes` are as they were asked for."""

    changes: Mapping[str, Any]
    clients: Clients


class Lab(Protocol):
    """The process's runtime as measuring sees it."""

    @property
    def traces(self) -> TraceStore: ...

    @property
    def readings(self) -> ReadingStore: ...

    @property
    def jobs(self) -> Jobs: ...

    @property
    def sweep(self) -> Sweep: ...

    @property
    def chat(self) -> ChatModel | None:
        """The language model that is configured."""
        ...

    def submit_query(
        self,
        question: str,
        options: Options | None = None,
        *,
        remote_parent: str | None = None,
        origin: str = "ask",
        variant: Variant | None = None,
    ) -> Job[Answer]:
        """Ask. Raises RagError bad_input, overloaded."""
        ...

    def default_options(self) -> Options: ...

    def clients(self) -> Clients:
        """What the path calls with the settings in force."""
        ...

    def variant(self, changes: Mapping[str, Any]) -> AbstractContextManager[Variant]:
        """Other models for a while: built on entry, let go of on exit (loaded weights are shared with the pool where the model is
        the same). Keys: `embedder` and `reranker` ("in-process" | "http", to the addresses in the settings),
        `embedder.device`, `reranker.device` ("cpu", "cuda", "cuda:1"), `embedder.precision`, `reranker.precision`
        ("fp32", "bf16", "int8"), `llm.model`, `llm.temperature`, `llm.max_tokens`. Raises RagError for what cannot be had."""
        ...

    def baseline(self, *, before: float | None = None) -> Baseline:
        """What is usual here, from stored queries (before that time, Unix seconds); kept for a minute."""
        ...
