"""Spans of one query, in OpenTelemetry's model. Knows nothing of SQLite; the SDK sends them on in `otlp.py`.

    with tracing.query(question) as trace:
        with trace.span("embed", "embeddings MiniLM", model="MiniLM", dimensions=384) as span:
            ...
            span.timing(tokenize=0.0004, compute=0.0065, device="cpu")
        records = trace.finish(answer)

Each span carries the GenAI semantic conventions (v1.41.1) and OpenInference side by side, and ours under `ragdeck.`.
"""

from __future__ import annotations

import secrets
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import StatusCode
from opentelemetry.version import __version__ as sdk_version

from rag.conventions import FIRST_TOKEN_EVENT, MIRRORS, RERANK_NAMES, SHORT_NAMES, STAGE_ATTRIBUTES, is_content, span_name
from rag.errors import Cancelled, RagError
from rag.otlp import ExportHealth, Outlet, SpanEvent, SpanRecord, iso_utc
from rag.types import Answer

__all__ = ["ExportHealth", "QueryTrace", "SpanEvent", "SpanHandle", "SpanRecord", "TimeOrderedIds", "Tracing"]


class TimeOrderedIds:
    """Trace ids in the layout of UUIDv7 (RFC 9562, method 1): they sort by time, within a millisecond by a counter.

    The right-most 62 bits are random, which is what W3C's random-trace-id flag promises of 56.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._last = 0

    def generate_trace_id(self) -> int:
        now = self._clock_ns() // 1_000_000 << 12
        with self._lock:
            # also when the clock was set back: the counter goes on, and past 4096 in a millisecond runs into the next
            self._last = max(now, self._last + 1)
            stamp = self._last
        return (stamp >> 12) << 80 | 7 << 76 | (stamp & 0xFFF) << 64 | 2 << 62 | secrets.randbits(62)

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1


class Tracing:
    """Makes the trace of each query; has nothing to do with the process-wide tracer.

    `clock_ns` is wall time in Unix ns (read once a query), `ticks_ns` a monotonic clock that measures within it.
    """

    def __init__(
        self,
        service_name: str = "rag-deck",
        exporter: SpanExporter | None = None,
        *,
        capture_content: bool = True,
        version: str | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        ticks_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.capture_content = capture_content
        self.clock_ns = clock_ns
        self.ticks_ns = ticks_ns
        self.ids = TimeOrderedIds(clock_ns)
        resource = _resource(service_name, version)
        self._outlet = Outlet(exporter, resource, capture_content=capture_content) if exporter else None

    def query(self, question: str, remote_parent: str | None = None) -> QueryTrace:
        """Start the root span. A valid `traceparent` header as `remote_parent` makes it a child in the caller's trace."""
        return QueryTrace(self, question, remote_parent)

    def send(self, records: list[SpanRecord], answer: Answer | None) -> None:
        if self._outlet:
            self._outlet.send(records, answer)

    def export_health(self) -> ExportHealth | None:
        """Counts of spans sent on, or None when no exporter was given."""
        return self._outlet.health() if self._outlet else None

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait up to `timeout` seconds until all finished spans are sent on; True without an exporter."""
        return self._outlet.flush(timeout) if self._outlet else True

    def shutdown(self, timeout: float = 5.0) -> bool:
        """Send what is left, within `timeout` seconds, and stop sending. False when spans were given up."""
        return self._outlet.shutdown(timeout) if self._outlet else True


def _resource(service_name: str, version: str | None) -> Resource:
    attributes = {
        "service.name": service_name,
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": sdk_version,
    }
    return Resource({**attributes, "service.version": version} if version else attributes)


class QueryTrace:
    """One query's spans under the root `rag.query`. Use as a context: whatever raises, its spans end.

    `id` is unique and sorts by time. It is also the trace id, except under a remote parent, whose trace id the spans
    join (`trace_id`): a caller may ask twice in one trace, and must not be able to overwrite a stored query.
    """

    def __init__(self, tracing: Tracing, question: str, remote_parent: str | None) -> None:
        self._tracing = tracing
        self._ticks0 = tracing.ticks_ns()
        self._unix0 = tracing.clock_ns()
        self._handles: list[SpanHandle] = []
        self._records: list[SpanRecord] | None = None
        self._lock = threading.Lock()
        own = f"{tracing.ids.generate_trace_id():032x}"
        self.trace_id, parent_id = _remote_parent(remote_parent) or (own, None)
        self.id = own
        self._root = SpanHandle(self, "query", "rag.query", parent_id, {"input": question, "openinference.span.kind": "CHAIN"})
        self._root.set(**{"ragdeck.query_id": self.id})

    @property
    def started_at(self) -> str:
        """ISO 8601 in UTC with milliseconds and `Z`."""
        return iso_utc(self._unix0)

    def elapsed(self) -> float:
        """Seconds since the query started, by the monotonic clock."""
        return (self._tracing.ticks_ns() - self._ticks0) / 1e9

    def now_unix_ns(self) -> int:
        """Wall time that cannot jump within a query: its start plus what the monotonic clock counted."""
        return self._unix0 + self._tracing.ticks_ns() - self._ticks0

    def span(self, stage: str, name: str, **attributes: Any) -> SpanHandle:
        """Start a span of a stage below the root. `attributes` as in `SpanHandle.set`.

        With the stage as its name it is named by the conventions when it ends: `chat {model}`, `retrieval {collection}`.
        """
        handle = SpanHandle(self, stage, name, self._root.span_id, attributes)
        with self._lock:
            self._handles.append(handle)
        return handle

    def traceparent(self) -> str:
        """W3C header value that makes a remote span a child of the root; inside a stage use the span's own."""
        return self._root.traceparent()

    def finish(self, answer: Answer) -> list[SpanRecord]:
        """End the root span (and any left open), send the spans on, return them with the root first. Idempotent."""
        self._root.set(
            **{
                "output": answer.answer,
                "ragdeck.outcome": answer.outcome,
                "ragdeck.cold": answer.cold,
                "ragdeck.candidates": answer.options.candidates,
                "ragdeck.hyde": answer.options.hyde,
                "ragdeck.caches": answer.options.caches,
            }
        )
        if answer.error:
            self._root.fail(answer.error.kind, answer.error.message)
        return self._close(answer)

    def _close(self, answer: Answer | None) -> list[SpanRecord]:
        with self._lock:
            if self._records is not None:
                return self._records
            for handle in self._handles:
                if handle.seconds is None:
                    handle.set(unfinished=True)
                    handle.end()
            self._root.end()
            self._records = [handle.record() for handle in (self._root, *self._handles)]
        self._tracing.send(self._records, answer)
        return self._records

    @property
    def records(self) -> list[SpanRecord]:
        """The finished spans, root first; empty before the end."""
        return self._records or []

    @property
    def tracing(self) -> Tracing:
        return self._tracing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._records is None:
            self._root.note(error)
            self._close(None)


def _remote_parent(traceparent: str | None) -> tuple[str, str] | None:
    """(trace id, span id) of a valid W3C header, else None."""
    if not traceparent:
        return None
    found = TraceContextTextMapPropagator().extract({"traceparent": traceparent.strip()}, Context())
    context = get_current_span(found).get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None


class SpanHandle:
    """A running span. `start_seconds` counts from the query's start; `seconds` is None until it ends.

    Not the SDK's own running span: starting one costs 58 us in the midst of a query (its caches are cold by then), this one a
    fifth. The SDK takes over where spans leave the process (`otlp.py`).
    """

    def __init__(self, trace: QueryTrace, stage: str, name: str, parent_id: str | None, attributes: Mapping[str, Any]) -> None:
        self._trace = trace
        self._stage = stage
        self._name = name
        self._attributes: dict[str, Any] = {"ragdeck.stage": stage, **STAGE_ATTRIBUTES.get(stage, {})}
        self._start = trace.now_unix_ns()
        self.start_seconds = (self._start - trace._unix0) / 1e9
        self.seconds: float | None = None
        self.span_id = f"{trace.tracing.ids.generate_span_id():016x}"
        self._parent_id = parent_id
        self._end = 0
        self._events: list[SpanEvent] = []
        self._status, self._status_message = StatusCode.UNSET, ""
        self.set(**attributes)

    def set(self, **attributes: Any) -> None:
        """Set attributes by short name (`model`, `top_k`, `input_tokens`, …: conventions.SHORT_NAMES) or dotted name.

        Other plain names get the prefix `ragdeck.`. None is left out; content is left out when it is not captured.
        """
        capture = self._trace.tracing.capture_content
        for name, value in attributes.items():
            if value is None:
                continue
            key = self._key(name)
            if capture or not is_content(key):
                self._attributes[key] = _plain(value) if key != "gen_ai.response.finish_reasons" else _strings(value)

    def _key(self, name: str) -> str:
        if self._stage == "rerank" and name in RERANK_NAMES:
            return RERANK_NAMES[name]
        return name if "." in name else SHORT_NAMES.get(name, f"ragdeck.{name}")

    def event(self, name: str, **attributes: Any) -> None:
        """Something that happened just now."""
        plain = {key: _plain(value) for key, value in attributes.items() if value is not None}
        self._events.append(SpanEvent(name, self._trace.now_unix_ns(), plain))

    def first_token(self) -> float:
        """Mark the first token; returns the seconds since the span's start (also set as time to first chunk)."""
        seconds = (self._trace.now_unix_ns() - self._start) / 1e9
        self.set(ttft_seconds=seconds)
        self.event(FIRST_TOKEN_EVENT)
        return seconds

    def timing(
        self,
        *,
        load: float | None = None,
        queue: float | None = None,
        tokenize: float | None = None,
        compute: float | None = None,
        network: float | None = None,
        cold: bool | None = None,
        device: str | None = None,
    ) -> None:
        """Where the span's seconds went; what is None is unknown and not set."""
        parts = (
            ("ragdeck.load_seconds", load),
            ("ragdeck.queue_seconds", queue),
            ("ragdeck.tokenize_seconds", tokenize),
            ("ragdeck.compute_seconds", compute),
            ("ragdeck.network_seconds", network),
            ("ragdeck.cold", cold),
            ("ragdeck.device", device),
        )
        self._attributes.update((name, value) for name, value in parts if value is not None)

    def traceparent(self) -> str:
        """The W3C `traceparent` header for HTTP calls made within this span."""
        return f"00-{self._trace.trace_id}-{self.span_id}-01"

    def fail(self, kind: str, message: str) -> None:
        """Mark the span as failed; `kind` is one of `errors.Kind` or an exception's name."""
        self._attributes["error.type"] = kind
        self._status, self._status_message = StatusCode.ERROR, message

    def note(self, error: BaseException | None) -> None:
        """Mark the span by what ended it: nothing, a cancel (no error), or an error."""
        if error is None:
            return
        if isinstance(error, Cancelled | GeneratorExit):
            self._attributes["ragdeck.cancelled"] = True
            return
        capture = self._trace.tracing.capture_content
        ours = isinstance(error, RagError)
        kind = error.kind if isinstance(error, RagError) else type(error).__name__
        # a foreign message may quote the question; ours are written for the screen
        message = str(error) if ours or capture else ""
        self.fail(kind, message)
        details = {"exception.type": type(error).__name__, "exception.message": message}
        if capture and not ours:
            details["exception.stacktrace"] = "".join(traceback.format_exception(error))[-8000:]
        self._events.append(SpanEvent("exception", self._trace.now_unix_ns(), details))

    def end(self) -> None:
        """End the span now; a second call changes nothing."""
        if self.seconds is not None:
            return
        self._end = self._trace.now_unix_ns()
        self.seconds = (self._end - self._start) / 1e9
        self._mirror()
        if self._name == self._stage:
            self._name = span_name(self._stage, self._attributes)

    def _mirror(self) -> None:
        values = self._attributes
        for source, target in MIRRORS.get(self._stage, {}).items():
            if source in values:
                values.setdefault(target, values[source])
        prompt, completion = values.get("llm.token_count.prompt"), values.get("llm.token_count.completion")
        if prompt is not None and completion is not None:
            values.setdefault("llm.token_count.total", prompt + completion)

    def record(self) -> SpanRecord:
        """The span as a record, once ended."""
        return SpanRecord(
            trace_id=self._trace.trace_id,
            span_id=self.span_id,
            parent_id=self._parent_id,
            name=self._name,
            kind="CLIENT" if self._stage in ("hyde", "generate") else "INTERNAL",
            start_unix_ns=self._start,
            end_unix_ns=self._end,
            status=self._status.name,
            attributes=self._attributes.copy(),
            events=tuple(self._events),
            status_message=self._status_message,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.seconds is None:
            self.note(error)
            self.end()


def _plain(value: Any) -> Any:
    """A value that OpenTelemetry takes: str, bool, int, float, or a tuple of these (numpy scalars become Python's)."""
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


def _strings(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value)
