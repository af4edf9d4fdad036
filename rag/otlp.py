"""Finished spans as plain records, and their way out over OTLP. Knows nothing of SQLite or of how a query runs.

A live span carries no passages: the SDK keeps 128 attributes a span and drops the rest without a word. Here the spans
are rebuilt without that limit and, in the sender's thread, given their documents as flattened OpenInference attributes.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from rag.types import Answer, Passage

log = logging.getLogger(__name__)
_SDK_LOGGER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_OBSERVATION_TYPES = {
    "query": "chain",
    "cache": "retriever",
    "hyde": "generation",
    "embed": "embedding",
    "search": "retriever",
    "rerank": "span",
    "generate": "generation",
}


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened at one moment of a span."""

    name: str
    unix_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A finished span. Ids are hex digits (32 and 16), times Unix nanoseconds, `status` is UNSET, OK or ERROR.

    Values of `attributes` are str, bool, int, float or tuples of these.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: str
    start_unix_ns: int
    end_unix_ns: int
    status: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    status_message: str = ""

    @property
    def stage(self) -> str:
        """The stage it belongs to, `query` for the root, empty for a span of another program."""
        return str(self.attributes.get("ragdeck.stage", ""))

    @property
    def seconds(self) -> float:
        return (self.end_unix_ns - self.start_unix_ns) / 1e9

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["attributes"] = dict(self.attributes)
        data["events"] = [{"name": e.name, "unix_ns": e.unix_ns, "attributes": dict(e.attributes)} for e in self.events]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SpanRecord:
        """The inverse of `to_json`, also after JSON has turned tuples into lists."""
        events = tuple(SpanEvent(e["name"], e["unix_ns"], _tuples(e.get("attributes", {}))) for e in data.get("events", ()))
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**{**known, "attributes": _tuples(data.get("attributes", {})), "events": events})


def _tuples(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in attributes.items()}


@dataclass(frozen=True, slots=True)
class ExportHealth:
    """Counts of spans since the start: every span handed over is pending, sent, failed or dropped."""

    sent: int
    failed: int
    dropped: int
    pending: int
    last_error: str | None


class Outlet:
    """Hands spans to an exporter in the background. `send` never blocks and never raises.

    `queue_spans` bounds what waits; past it spans are dropped and counted. Batches are small (`batch_spans`) because a
    rerank span with 40 documents is some 200 KB and collectors refuse requests of 4 to 20 MB.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        resource: Resource,
        *,
        capture_content: bool = True,
        queue_spans: int = 2048,
        batch_spans: int = 64,
    ) -> None:
        self._resource = resource
        self._capture = capture_content
        self._queue_spans = queue_spans
        self._gate = _Gate(exporter)
        self._batches = BatchSpanProcessor(
            self._gate,
            max_queue_size=queue_spans,
            schedule_delay_millis=1000,
            max_export_batch_size=batch_spans,
            export_timeout_millis=10_000,
        )

    def send(self, records: Sequence[SpanRecord], answer: Answer | None = None) -> None:
        """Queue the spans of one query; its passages are flattened later, in the sender's thread."""
        if not self._gate.admit(len(records), self._queue_spans):
            return
        last = {record.stage: record.span_id for record in records}  # documents go on a stage's last span only, once
        shown = answer if self._capture else None
        for record in records:
            with_documents = shown if last[record.stage] == record.span_id else None
            self._batches.on_end(_Rebuilt(record, self._resource, with_documents))

    def health(self) -> ExportHealth:
        return self._gate.health()

    def flush(self, timeout: float = 5.0) -> bool:
        """Send what is queued; False when that takes longer than `timeout` seconds or some spans failed to go."""
        failed = self._gate.health().failed
        return _within(timeout, self._batches.force_flush) and self._gate.health().failed == failed

    def shutdown(self, timeout: float = 5.0) -> bool:
        """Send what is queued and stop; after `timeout` seconds retries are cut short and the rest is given up."""
        done = _within(timeout, self._batches.shutdown)
        self._gate.shutdown()
        return done and self._gate.health().pending == 0


def _within(timeout: float, work: Callable[[], object]) -> bool:
    """Run `work` in a thread: the SDK's own flush and shutdown ignore their timeouts while an export hangs."""
    thread = threading.Thread(target=work, name="otlp-flush", daemon=True)
    thread.start()
    thread.join(timeout)
    return not thread.is_alive()


class _Rebuilt(ReadableSpan):
    """A span rebuilt from its record; `enriched` adds what only other tools need."""

    def __init__(self, record: SpanRecord, resource: Resource, answer: Answer | None) -> None:
        self.record = record
        self.answer = answer
        trace_id = int(record.trace_id, 16)
        super().__init__(
            name=record.name,
            context=_context(trace_id, int(record.span_id, 16)),
            parent=_context(trace_id, int(record.parent_id, 16)) if record.parent_id else None,
            resource=resource,
            attributes=dict(record.attributes),
            events=[Event(e.name, dict(e.attributes), e.unix_ns) for e in record.events],
            kind=SpanKind[record.kind],
            status=Status(StatusCode[record.status], record.status_message or None if record.status == "ERROR" else None),
            start_time=record.start_unix_ns,
            end_time=record.end_unix_ns,
            instrumentation_scope=_SCOPE,
        )

    def enriched(self) -> _Rebuilt:
        attributes = {**self.record.attributes, **langfuse_attributes(self.record)}
        if self.answer is not None:
            attributes.update(document_attributes(self.record.stage, self.answer))
        self._attributes = attributes  # a plain dict: no limit of 128
        return self


_SCOPE = InstrumentationScope("ragdeck")


def _context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class _Gate(SpanExporter):
    """Between the SDK's batches and the real exporter: enriches, counts, and keeps failures from being raised."""

    def __init__(self, inner: SpanExporter, *, log_every_seconds: float = 60.0) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._sent = self._failed = self._dropped = self._pending = 0
        self._last_error: str | None = None
        self._quiet = _Quiet(log_every_seconds)
        self._closed = False
        logging.getLogger(_SDK_LOGGER).addFilter(self._quiet.sdk_filter)

    def admit(self, count: int, limit: int) -> bool:
        with self._lock:
            if not self._closed and self._pending + count <= limit:
                self._pending += count
                return True
            self._dropped += count
        self._quiet.warn("traces are not sent on: %s", "shut down" if self._closed else f"{limit} spans are waiting already")
        return False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        error = "refused or unreachable (see the log of opentelemetry.exporter)"
        try:
            result = self._inner.export([span.enriched() if isinstance(span, _Rebuilt) else span for span in spans])
        except Exception as problem:  # whatever an exporter raises must not end the sender's thread
            result, error = SpanExportResult.FAILURE, f"{type(problem).__name__}: {problem}"
        ok = result is SpanExportResult.SUCCESS
        with self._lock:
            self._pending -= len(spans)
            self._sent += len(spans) if ok else 0
            self._failed += 0 if ok else len(spans)
            self._last_error = None if ok else error
        if not ok:
            self._quiet.warn("traces could not be sent on: %s", error)
        return result

    def health(self) -> ExportHealth:
        with self._lock:
            return ExportHealth(self._sent, self._failed, self._dropped, self._pending, self._last_error)

    def shutdown(self) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._inner.shutdown()
            logging.getLogger(_SDK_LOGGER).removeFilter(self._quiet.sdk_filter)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _Quiet:
    """Lets one message through per `every_seconds`, for our log and, apart, for the SDK's own."""

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}

    def _due(self, which: str) -> bool:
        with self._lock:
            now = time.monotonic()
            if now < self._next.get(which, 0.0):
                return False
            self._next[which] = now + self._every
            return True

    def warn(self, message: str, detail: str) -> None:
        if self._due("ours"):
            log.warning(message + " (said at most once a minute; counted in the export health)", detail)

    def sdk_filter(self, record: logging.LogRecord) -> bool:
        return self._due("sdk")


def langfuse_attributes(record: SpanRecord) -> dict[str, Any]:
    """What Langfuse needs to label a span rightly and to show TTFT.

    It calls any span with a model attribute a generation unless told its type, and reads `completion_start_time` with
    `JSON.parse`, so that the ISO time stands in quotes (langfuse OtelIngestionProcessor.extractCompletionStartTime).
    """
    kind = _OBSERVATION_TYPES.get(record.stage)
    attributes: dict[str, Any] = {"langfuse.observation.type": kind} if kind else {}
    ttft = record.attributes.get("gen_ai.response.time_to_first_chunk")
    if isinstance(ttft, int | float):
        attributes["langfuse.observation.completion_start_time"] = json.dumps(iso_utc(record.start_unix_ns + int(ttft * 1e9)))
    return attributes


def document_attributes(stage: str, answer: Answer) -> dict[str, Any]:
    """The passages of `answer` as OpenInference's flattened keys; every passage, however many there are."""
    if stage == "search":
        return _flattened("retrieval.documents", _by_rank(answer.passages, "fused"), "fused")
    if stage != "rerank":
        return {}
    ranked = [passage for passage in _by_rank(answer.passages, "rerank") if passage.ranks.get("rerank") is not None]
    listing = [{"rank": p.ranks.get("rerank"), "id": p.id, "score": p.scores.get("rerank"), "kept": p.kept} for p in ranked]
    return {
        **_flattened("reranker.input_documents", _by_rank(answer.passages, "fused"), "fused"),
        **_flattened("reranker.output_documents", ranked, "rerank"),
        "output.value": json.dumps(listing),
        "output.mime_type": "application/json",
    }


def _by_rank(passages: Sequence[Passage], route: str) -> list[Passage]:
    def key(passage: Passage) -> float:
        rank = passage.ranks.get(route)
        return float("inf") if rank is None else rank

    return sorted(passages, key=key)


def _flattened(prefix: str, passages: Sequence[Passage], route: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for number, passage in enumerate(passages):
        head = f"{prefix}.{number}.document."
        flat[head + "id"] = passage.id
        flat[head + "content"] = passage.text
        score = passage.scores.get(route)
        if score is not None:
            flat[head + "score"] = float(score)
        flat[head + "metadata"] = json.dumps(
            {
                "title": passage.title,
                "source": passage.source,
                "location": passage.location,
                "kept": passage.kept,
                "ranks": dict(passage.ranks),
                "scores": dict(passage.scores),
            },
            ensure_ascii=False,
            default=float,  # numpy scores
        )
    return flat


def iso_utc(unix_ns: int) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`."""
    moment = datetime.fromtimestamp(unix_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{unix_ns // 1_000_000 % 1000:03d}Z"


def exporter(endpoint: str | None) -> SpanExporter | None:
    """What sends spans to a collector; None without an address."""
    if not endpoint:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # OTEL_EXPORTER_OTLP_ENDPOINT names the base; the path of traces is ours to add
    url = endpoint if endpoint.rstrip("/").endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"
    return OTLPSpanExporter(endpoint=url, timeout=10)
