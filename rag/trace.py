"""Spans of one query, made with the OpenTelemetry SDK. Knows nothing of SQLite; sending them on is in `otlp.py`.

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
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.version import __version__ as sdk_version

from .conventions import FIRST_TOKEN_EVENT, MIRRORS, RERANK_NAMES, SHORT_NAMES, STAGE_ATTRIBUTES, is_content, span_name
from .errors import Cancelled, RagError
from .otlp import ExportHealth, Outlet, SpanEvent, SpanRecord, iso_utc
from .types import Answer

__all__ = ["ExportHealth", "QueryTrace", "SpanEvent", "SpanHandle", "SpanRecord", "TimeOrderedIds", "Tracing"]


class TimeOrderedIds(IdGenerator):
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

    def is_trace_id_random(self) -> bool:
        return True


class Tracing:
    """Makes the trace of each query; has its own TracerProvider, never the process-wide one.

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
        self.tracer = _tracer(resource, self.ids)

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


def _tracer(resource: Resource, ids: IdGenerator) -> Tracer:
    """A tracer that nothing in the environment can switch off: traces are a product feature, not optional telemetry."""
    limits = SpanLimits(max_events=1024, max_event_attributes=64, max_link_attributes=8)
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, id_generator=ids, span_limits=limits, shutdown_on_exit=False)
    provider._disabled = False  # OTEL_SDK_DISABLED would give trace ids of zero; without an exporter nothing leaves anyway
    return provider.get_tracer("ragdeck")


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
        parent = _parent_context(remote_parent)
        self._root = SpanHandle(self, "query", "rag.query", parent, {"input": question, "openinference.span.kind": "CHAIN"})
        self._children = set_span_in_context(self._root.live, Context())
        remote = get_current_span(parent).get_span_context().is_valid
        self.trace_id = f"{self._root.live.get_span_context().trace_id:032x}"
        self.id = f"{tracing.ids.generate_trace_id():032x}" if remote else self.trace_id
        self.started_unix_ns = self._unix0
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
        handle = SpanHandle(self, stage, name, self._children, attributes)
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


def _parent_context(traceparent: str | None) -> Context:
    if not traceparent:
        return Context()  # empty, not None: a span that happens to be current in this thread is no parent of ours
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent.strip()}, Context())


class SpanHandle:
    """A running span. `start_seconds` counts from the query's start; `seconds` is None until it ends."""

    def __init__(self, trace: QueryTrace, stage: str, name: str, parent: Context, attributes: Mapping[str, Any]) -> None:
        self._trace = trace
        self._stage = stage
        self._name = name
        self._attributes: dict[str, Any] = {"ragdeck.stage": stage, **STAGE_ATTRIBUTES.get(stage, {})}
        self._start = trace.now_unix_ns()
        self.start_seconds = (self._start - trace._unix0) / 1e9
        self.seconds: float | None = None
        kind = SpanKind.CLIENT if stage in ("hyde", "generate") else SpanKind.INTERNAL
        self.live: Span = trace.tracing.tracer.start_span(name, parent, kind, start_time=self._start)
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
        self.live.add_event(name, plain, self._trace.now_unix_ns())

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
        self.set(load_seconds=load, queue_seconds=queue, tokenize_seconds=tokenize, compute_seconds=compute)
        self.set(network_seconds=network, cold=cold, device=device)

    def traceparent(self) -> str:
        """The W3C `traceparent` header for HTTP calls made within this span."""
        context = self.live.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def fail(self, kind: str, message: str) -> None:
        """Mark the span as failed; `kind` is one of `errors.Kind` or an exception's name."""
        self._attributes["error.type"] = kind
        self.live.set_status(Status(StatusCode.ERROR, message))

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
        self.live.add_event("exception", details, self._trace.now_unix_ns())

    def end(self) -> None:
        """End the span now; a second call changes nothing."""
        if self.seconds is not None:
            return
        end = self._trace.now_unix_ns()
        self.seconds = (end - self._start) / 1e9
        self._mirror()
        if self._name == self._stage:
            self._name = span_name(self._stage, self._attributes)
        self.live.end(end)

    def _mirror(self) -> None:
        values = self._attributes
        for source, target in MIRRORS.get(self._stage, {}).items():
            if source in values:
                values.setdefault(target, values[source])
        prompt, completion = values.get("llm.token_count.prompt"), values.get("llm.token_count.completion")
        if prompt is not None and completion is not None:
            values.setdefault("llm.token_count.total", prompt + completion)

    def record(self) -> SpanRecord:
        """The span as a record, once ended.

        The attributes come from here and were never set on the SDK's span: that would clean and copy each a second time
        (a third of the whole cost), and nobody reads the SDK's span but this method.
        """
        span: Any = self.live  # the SDK's class; the API's has no getters for these
        context, parent, status = span.get_span_context(), span.parent, span.status
        return SpanRecord(
            trace_id=f"{context.trace_id:032x}",
            span_id=f"{context.span_id:016x}",
            parent_id=f"{parent.span_id:016x}" if parent else None,
            name=self._name,
            kind=span.kind.name,
            start_unix_ns=span.start_time,
            end_unix_ns=span.end_time,
            status=status.status_code.name,
            attributes=self._attributes.copy(),
            events=tuple(SpanEvent(e.name, e.timestamp, dict(e.attributes or {})) for e in span.events),
            status_message=status.description or "",
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
