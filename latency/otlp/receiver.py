"""Queries that other programs answered: their spans come in at POST /v1/traces, wait until their trace is whole, and are stored
as queries with stages. A model server's spans join the stored query of their trace, ours too.

A trace counts as whole when a span without parent has come and nothing more for QUIET_SECONDS, or nothing for IDLE_SECONDS.
Spans that come later are put to it anew. Everything is bounded; what had to be refused is counted and answered to the sender.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from latency.otlp import stages as foreign
from latency.otlp.kinds import SERVER, kind_of
from latency.otlp.timeline import with_server_spans
from rag.errors import RagError
from rag.otlp import SpanRecord
from rag.trace_store import TraceStore
from rag.types import Answer

log = logging.getLogger(__name__)

QUIET_SECONDS = 2.0
IDLE_SECONDS = 30.0
JOIN_SECONDS = 300.0  # how long a model server's span waits for the query of ours that it belongs to
LOOK_SECONDS = 0.5
MAX_TRACES = 5_000
MAX_SPANS_A_TRACE = 2_000
MAX_SPANS = 100_000
MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class ReceiverHealth:
    """Counts since the start. `refused` spans were over a limit, `unrelated` belonged to traces without a RAG stage."""

    spans: int = 0
    queries: int = 0
    joined: int = 0
    refused: int = 0
    unrelated: int = 0
    waiting: int = 0


@dataclass(slots=True)
class _Waiting:
    """The spans of a trace by id that are not stored yet; times by the monotonic clock."""

    first: float
    last: float
    spans: dict[str, SpanRecord] = field(default_factory=dict)


class Receiver:
    """Thread-safe. `spans_per_minute` are taken; `clock` is monotonic seconds."""

    def __init__(self, traces: TraceStore, spans_per_minute: int = 60_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._traces = traces
        self._per_minute = spans_per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._held = 0
        self._stored: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._allowance, self._refilled = float(spans_per_minute), clock()
        self._counts = dict.fromkeys(("spans", "queries", "joined", "refused", "unrelated"), 0)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Store whole traces from now on, on a thread of its own. Once."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="otlp-in", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Store what has come, whole or not."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self.settle(everything=True)

    def health(self) -> ReceiverHealth:
        with self._lock:
            return ReceiverHealth(**self._counts, waiting=self._held)

    def take(self, spans: Sequence[SpanRecord]) -> int:
        """Keep spans until their trace is whole; returns how many were refused because their trace, or all, are too many.

        Raises RagError overloaded, with nothing kept, when the rate is passed.
        """
        now = self._clock()
        with self._lock:
            self._allow(len(spans), now)
            refused = sum(not self._keep(span, now) for span in spans)
            self._counts["spans"] += len(spans) - refused
            self._counts["refused"] += refused
        return refused

    def _allow(self, count: int, now: float) -> None:
        """A token bucket that holds a minute's worth."""
        self._allowance = min(float(self._per_minute), self._allowance + (now - self._refilled) * self._per_minute / MINUTE)
        self._refilled = now
        if count > self._allowance:
            self._counts["refused"] += count
            raise RagError(
                f"more than {self._per_minute:,} spans a minute",
                kind="overloaded",
                next_step="Sample in the sending program, or raise traces.receive_spans_per_minute.",
            )
        self._allowance -= count

    def _keep(self, span: SpanRecord, now: float) -> bool:
        waiting = self._waiting.get(span.trace_id)
        if waiting is None:
            if len(self._waiting) >= MAX_TRACES:
                return False
            waiting = self._waiting[span.trace_id] = _Waiting(now, now)
        if span.span_id not in waiting.spans:
            if len(waiting.spans) >= MAX_SPANS_A_TRACE or self._held >= MAX_SPANS:
                return False
            self._held += 1
        waiting.spans[span.span_id] = span
        waiting.last = now
        return True

    # storing

    def _run(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            try:
                self.settle()
            except Exception:  # whatever one trace holds, the others must not wait for ever
                log.exception("received spans could not be stored")

    def settle(self, *, everything: bool = False) -> None:
        """Store the traces that are whole."""
        now = self._clock()
        with self._lock:
            due = [key for key, waiting in self._waiting.items() if everything or _is_due(waiting, now)]
            taken = [(key, self._waiting.pop(key)) for key in due]
            self._held -= sum(len(waiting.spans) for _, waiting in taken)
        for key, waiting in taken:
            spans = list(waiting.spans.values())
            try:
                if not self._store(key, spans) and not everything and now - waiting.first < JOIN_SECONDS:
                    self._put_back(key, waiting, now)
            except RagError as problem:
                log.warning("trace %s could not be stored: %s %s", key, problem.message, problem.next_step)

    def _put_back(self, key: str, waiting: _Waiting, now: float) -> None:
        """Wait on, for the query of ours that these spans belong to."""
        with self._lock:
            newer = self._waiting.get(key)
            spans = {**waiting.spans, **(newer.spans if newer else {})}
            self._held += len(spans) - (len(newer.spans) if newer else 0)
            self._waiting[key] = _Waiting(waiting.first, now, spans)

    def _store(self, trace_id: str, spans: list[SpanRecord]) -> bool:
        """Whether they found their place; only a model server's spans may have to wait for it."""
        own = self._traces.get(trace_id)
        if own is not None and not own.origin.startswith(foreign.ORIGIN):
            self._join(own, spans)
            return True
        if all(kind_of(span) == SERVER for span in spans):
            return False
        earlier = self._stored.get(trace_id, ())
        merged = {span.span_id: span for span in (*(each for key in earlier for each in self._traces.spans(key)), *spans)}
        found = foreign.queries(list(merged.values()))
        ids = [self._save(root, group) for root, group in found]
        self._remember(trace_id, ids)
        kept = {span.span_id for _, group in found for span in group}
        with self._lock:
            self._counts["queries"] += len(set(ids) - set(earlier))
            self._counts["unrelated"] += sum(span.span_id not in kept for span in spans)
        return True

    def _join(self, own: Answer, spans: Iterable[SpanRecord]) -> None:
        """A query of ours with a model server's spans. Whatever else claims our trace id is left out: it could be anybody's."""
        known = self._traces.spans(own.id)
        ids = {span.span_id for span in known}
        servers = [span for span in spans if kind_of(span) == SERVER and span.span_id not in ids]
        if servers:
            self._traces.save(with_server_spans(own, servers), [*known, *servers])
        with self._lock:
            self._counts["joined"] += len(servers)

    def _save(self, root: SpanRecord, group: Sequence[SpanRecord]) -> str:
        """Store a query, with those of its spans that were stored before this process started; returns its id."""
        query_id = foreign.answer_id(root.trace_id, root)
        merged = {span.span_id: span for span in (*self._traces.spans(query_id), *group)}
        self._traces.save(foreign.to_answer(root, list(merged.values())), list(merged.values()))
        return query_id

    def _remember(self, trace_id: str, query_ids: Sequence[str]) -> None:
        """Which queries a trace became, for spans that come late."""
        self._stored[trace_id] = tuple(query_ids)
        self._stored.move_to_end(trace_id)
        if len(self._stored) > MAX_TRACES:
            self._stored.popitem(last=False)


def _is_due(waiting: _Waiting, now: float) -> bool:
    quiet = now - waiting.last
    if quiet >= IDLE_SECONDS:
        return True
    spans = waiting.spans.values()
    return quiet >= QUIET_SECONDS and (
        any(span.parent_id is None for span in spans) or all(kind_of(span) == SERVER for span in spans)
    )
