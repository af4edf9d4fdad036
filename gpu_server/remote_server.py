"""What remote models share: a server's transport, what stands at its end, how the last call went, where its time went.

Found out with the first call, once however many threads ask, and found out again when no call has succeeded yet.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from gpu_server.discovery import Kind, Served, discover
from gpu_server.endpoint import Endpoint
from gpu_server.errors import BadAnswer, BadInput, EngineError, TimedOut
from gpu_server.interfaces import ModelInfo, Timing
from gpu_server.transport import Reply, Transport

log = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
CACHES = {"embedder": "query_embeddings", "reranker": "rerank"}  # as our server's /status names them
CHECK_THE_SERVER = "Check what kind of server stands at this address, and its version."


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """What is known of a remote model without asking it: `state` is that of the last call, `error` its failure."""

    kind: Kind
    name: str
    state: Literal["waiting", "remote", "failed"]
    address: str
    info: ModelInfo | None = None
    runs: int = 0
    first_run_seconds: float | None = None
    error: str | None = None


class RemoteServer:
    """One model of one server. Thread-safe."""

    def __init__(self, kind: Kind, endpoint: Endpoint, dialect: str) -> None:
        self.transport = Transport(endpoint)
        self._kind, self._dialect = kind, dialect
        self._served: Served | None = None
        self._learning = threading.Lock()
        self._attempts = 0
        self._failure: EngineError | None = None
        self._noting = threading.Lock()
        self.status = RemoteStatus(kind, endpoint.model or f"{kind} at {endpoint.shown}", "waiting", endpoint.shown)
        log.debug("%s at %s: dialect %s, %r", kind, endpoint.shown, dialect, endpoint)

    @property
    def known(self) -> Served | None:
        return self._served

    def served(self, deadline: float | None) -> Served:
        """What stands at the address. Who waited for a question that failed gets its error; the next call asks again."""
        if self._served is not None:
            return self._served
        attempts = self._attempts
        patience = -1.0 if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if not self._learning.acquire(timeout=patience):
            raise TimedOut("the server did not say what it is before the deadline", address=self.status.address)
        try:
            if self._served is None and self._attempts != attempts and self._failure is not None:
                raise self._failure
            return self._served or self._discover(deadline)
        finally:
            self._learning.release()

    def _discover(self, deadline: float | None) -> Served:
        try:
            found = discover(self.transport, self._kind, self._dialect, deadline)
        except EngineError as problem:
            self._failure = problem
            raise
        finally:
            self._attempts += 1
        self._served, self._failure = found, None
        log.debug("%s at %s speaks %s: %s", self._kind, self.status.address, found.dialect, found.info)
        return found

    def learnt(self, info: ModelInfo) -> None:
        """Keep what an answer tells of the model. Raises BadAnswer where it is another model than before."""
        with self._noting:
            served = self._served
            if served is None:  # forgotten meanwhile
                return
            before = served.info
            if before.dimension is None:
                self._served = replace(served, info=info)
            elif (before.identity, before.dimension) != (info.identity, info.dimension):
                raise BadAnswer(
                    f"the server answers with {info.identity} ({info.dimension} dimensions) where it was "
                    f"{before.identity} ({before.dimension} dimensions) before",
                    next_step="Bring the old model back, or reload the model here: its vectors go into another collection.",
                )

    def forget(self) -> None:
        """Find out anew what stands at the address with the next call: for a server that serves another model on purpose."""
        with self._noting:
            self._served = None

    def report(self) -> dict[str, Any]:
        """What our GPU server says of this model now (`/status`: load, queue, memory, cache hits); {} where none answers."""
        try:
            reply = self.transport.get(
                self.transport.endpoint.bare("/status"), deadline=time.monotonic() + REPORT_SECONDS, accept=range(300, 600)
            )
        except EngineError:
            return {}
        data = reply.object()
        models, caches = data.get("models"), data.get("caches")
        listed = models if isinstance(models, list) else []
        entry = next((item for item in listed if isinstance(item, dict) and item.get("kind") == self._kind), None)
        if entry is None:
            return {}
        cache = caches.get(CACHES[self._kind]) if isinstance(caches, dict) else None
        return {**entry, "cache_hit_ratio": cache.get("hit_ratio") if isinstance(cache, dict) else None}

    def close(self) -> None:
        self.transport.close()

    @contextmanager
    def call(self, *, runs: bool = True) -> Iterator[None]:
        """Note how a call ends; its error names the address. `runs`: the model works in it."""
        started = time.perf_counter()
        try:
            yield
        except EngineError as problem:
            problem.address = problem.address or self.status.address
            if isinstance(problem, BadAnswer):
                problem.next_step = problem.next_step or CHECK_THE_SERVER
            if not isinstance(problem, BadInput):
                self._note(None, f"{problem.message}. {problem.next_step}")
            raise
        if runs:
            self._note(time.perf_counter() - started, None)

    def _note(self, seconds: float | None, error: str | None) -> None:
        with self._noting:
            status = self.status
            if error is not None and not status.runs:
                self._served = None  # whatever was found out has never been proven
            info = self._served.info if self._served else status.info
            self.status = replace(
                status,
                state="failed" if error else "remote",
                name=info.name if info else status.name,
                info=info,
                runs=status.runs + (error is None),
                first_run_seconds=status.first_run_seconds or seconds,
                error=error,
            )

    def timing(self, reply: Reply, deadline: float | None) -> Timing:
        """Where the request's seconds went.

        With `x-total-time` the network is what the server did not have; without it, the round trip measured on the open
        connection and the time to connect, marked as an estimate, and the rest counts as computing.
        """
        total = reply.milliseconds("x-total-time")
        if total is None:
            trip = self.transport.round_trip(deadline)
            network = None if trip is None else min(reply.seconds, trip + reply.connect_seconds)
            found = Timing(compute=reply.seconds - (network or 0.0), network=network, network_estimated=network is not None)
            return _with_attempts(found, reply)
        load, queue = reply.milliseconds("x-load-time") or 0.0, reply.milliseconds("x-queue-time") or 0.0
        tokenize, compute = reply.milliseconds("x-tokenization-time") or 0.0, reply.milliseconds("x-inference-time")
        if compute is None:
            compute = max(0.0, total - load - queue - tokenize)
        network = max(0.0, reply.seconds - total)
        found = Timing(load, queue, tokenize, compute, network, cold=reply.headers.get("x-cold") in ("1", "true"))
        return _with_attempts(found, reply)


def _with_attempts(timing: Timing, reply: Reply) -> Timing:
    return replace(timing, attempts=1 + len(reply.failures), waited=reply.waited_seconds, errors=reply.failures)
