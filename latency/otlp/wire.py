"""OTLP/HTTP as it comes in: a body of protobuf or JSON, maybe gzipped, to span records; and the answer in the same format.

Knows nothing of what the spans mean. The JSON encoding writes ids as hex digits (OTLP specification 1.9, "JSON Protobuf
Encoding"), where protobuf's own would have base64.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToJson, ParseDict, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from rag.errors import RagError
from rag.otlp import SpanEvent, SpanRecord

PROTOBUF, JSON = "application/x-protobuf", "application/json"
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_INFLATED_BYTES = 32 * 1024 * 1024
MAX_SPANS = 10_000
MAX_VALUE_CHARS = 20_000
MAX_ATTRIBUTES = 512
MAX_EVENTS = 64
SERVICE = "service.name"

_HEX_IDS = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")
_KINDS = {0: "INTERNAL", 1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}
_STATUS = {Status.STATUS_CODE_OK: "OK", Status.STATUS_CODE_ERROR: "ERROR"}


def read(body: bytes, content_type: str, encoding: str = "") -> tuple[list[SpanRecord], int]:
    """(spans, how many were refused because they are broken). The service's name stands among each span's attributes.

    Raises RagError bad_input for a body that cannot be read, overloaded for more than MAX_SPANS.
    """
    plain = _inflated(body, encoding)
    message = _json(plain) if content_type == JSON else _protobuf(plain)
    count = sum(len(scope.spans) for resource in message.resource_spans for scope in resource.scope_spans)
    if count > MAX_SPANS:
        raise RagError(
            f"{count:,} spans in one request; at most {MAX_SPANS:,} are taken",
            kind="overloaded",
            next_step="Lower the batch size of the exporter (OTEL_BSP_MAX_EXPORT_BATCH_SIZE).",
        )
    found = [record for record in _records(message) if record is not None]
    return found, count - len(found)


def answer(content_type: str, refused: int = 0, reason: str = "") -> bytes:
    """The body of the answer, which says how many spans were refused and why."""
    response = ExportTraceServiceResponse()
    if refused:
        response.partial_success.rejected_spans = refused
        response.partial_success.error_message = reason
    return bytes(MessageToJson(response).encode() if content_type == JSON else response.SerializeToString())


def _inflated(body: bytes, encoding: str) -> bytes:
    """The body without its compression; bounded, because a few KB can inflate to gigabytes."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise RagError(f"content encoding {encoding!r} is not taken", kind="bad_input", next_step="Send gzip or none.")
    machine = zlib.decompressobj(zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))
    try:
        plain = machine.decompress(body, MAX_INFLATED_BYTES)
    except zlib.error as problem:
        raise RagError(f"the body is no {encoding}: {problem}", kind="bad_input") from None
    if machine.unconsumed_tail or not machine.eof:
        what = "is longer than can be taken" if machine.unconsumed_tail else "ends in the middle"
        raise RagError(f"the {encoding} body {what}", kind="bad_input", next_step="Lower the exporter's batch size.")
    return plain


def _protobuf(body: bytes) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise RagError(
            "the body is no OTLP trace request",
            kind="bad_input",
            next_step="Export with the protocol http/protobuf or http/json.",
        ) from None
    return message


def _json(body: bytes) -> ExportTraceServiceRequest:
    try:
        data = json.loads(body)
        _to_base64(data)
        message = ExportTraceServiceRequest()
        ParseDict(data, message, ignore_unknown_fields=True)
        return message
    except (ParseError, ValueError, TypeError, RecursionError) as problem:
        said = str(problem)[:200]
        raise RagError(
            f"the body is no OTLP trace request in JSON: {said}", kind="bad_input", next_step='Send {"resourceSpans": […]}.'
        ) from None


def _to_base64(data: Any) -> None:
    """Rewrite the ids of spans and links in place. Attributes may have keys of the same name and are left alone."""
    for resource in _listed(data, "resourceSpans", "resource_spans"):
        for scope in _listed(resource, "scopeSpans", "scope_spans"):
            for span in _listed(scope, "spans"):
                for holder in (span, *_listed(span, "links")):
                    for name in _HEX_IDS:
                        if isinstance(value := holder.get(name), str):
                            holder[name] = b64encode(bytes.fromhex(value)).decode()


def _listed(data: Any, *names: str) -> Iterator[dict[str, Any]]:
    if not isinstance(data, dict):
        raise ValueError("an object is expected")
    for name in names:
        items = data.get(name) or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError(f"{name} is no list of objects")
        yield from items


def _records(message: ExportTraceServiceRequest) -> Iterator[SpanRecord | None]:
    for resource in message.resource_spans:
        service = next((pair.value.string_value for pair in resource.resource.attributes if pair.key == SERVICE), "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _record(span, service[:200] or "unknown")


def _record(span: Span, service: str) -> SpanRecord | None:
    """The span, None where its ids or times cannot be."""
    ids_fit = len(span.trace_id) == 16 and any(span.trace_id) and len(span.span_id) == 8 and any(span.span_id)
    if not ids_fit or not 0 < span.start_time_unix_nano <= span.end_time_unix_nano < 2**63:
        return None
    events = tuple(
        SpanEvent(event.name[:200], event.time_unix_nano, _attributes(event.attributes))
        for event in span.events[:MAX_EVENTS]
        if event.time_unix_nano < 2**63
    )
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        name=span.name[:500],
        kind=_KINDS.get(span.kind, "INTERNAL"),
        start_unix_ns=span.start_time_unix_nano,
        end_unix_ns=span.end_time_unix_nano,
        status=_STATUS.get(span.status.code, "UNSET"),
        attributes={**_attributes(span.attributes), SERVICE: service},
        events=events,
        status_message=span.status.message[:1000],
    )


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    found = ((pair.key[:200], _value(pair.value)) for pair in pairs[:MAX_ATTRIBUTES])
    return {key: value for key, value in found if value is not None}


def _value(value: AnyValue) -> Any:
    """Plain values as they are, long texts cut; what is nested as JSON text."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value[:MAX_VALUE_CHARS]
    if kind == "array_value":
        items = [_value(item) for item in value.array_value.values[:1000]]
        return tuple(item for item in items if item is not None)
    if kind == "kvlist_value":
        plain: Mapping[str, Any] = _attributes(value.kvlist_value.values)
        return json.dumps(plain, ensure_ascii=False, default=str)[:MAX_VALUE_CHARS]
    return None if kind in (None, "bytes_value") else getattr(value, kind)
