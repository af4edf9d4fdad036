"""Spans over the wire from a real exporter into stored queries; late, doubled, broken, too many, and those of model servers."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from starlette.applications import Starlette

from guard import Guard, Policy
from latency.otlp import api
from latency.otlp import receiver as otlp_in
from latency.otlp import wire as otlp_wire
from latency.otlp.receiver import Receiver
from rag.errors import RagError
from rag.otlp import SpanRecord
from rag.trace_store import QueryFilter, TraceStore
from rag.types import Answer, Interval, Split, Stage
from tests.latency.spans import BASE_NS, TRACE, openinference, span, vllm


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def traces(tmp_path: Path) -> Iterator[TraceStore]:
    store = TraceStore(tmp_path / "traces.db")
    yield store
    store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def receiver(traces: TraceStore, clock: Clock) -> Receiver:
    return Receiver(traces, 60_000, clock)


def settle(receiver: Receiver, clock: Clock, seconds: float = otlp_in.QUIET_SECONDS) -> None:
    clock.now += seconds
    receiver.settle()


def stored(traces: TraceStore) -> list[Answer]:
    assert traces.flush()
    found = [traces.get(row.id) for row in traces.search(sort="started_at", descending=False)]
    return [answer for answer in found if answer is not None]


# whole, late, doubled


def test_a_trace_becomes_a_query_once_it_is_quiet(receiver: Receiver, traces: TraceStore, clock: Clock) -> None:
    receiver.take(openinference()[1:])
    settle(receiver, clock)
    assert stored(traces) == []  # its root has not come
    receiver.take(openinference()[:1])
    receiver.settle()
    assert stored(traces) == []  # something may still come
    settle(receiver, clock)
    (answer,) = stored(traces)
    assert (answer.question, answer.origin, answer.total_seconds) == ("Why is it slow?", "otlp:shop-rag", pytest.approx(3.0))
    assert len(traces.spans(answer.id)) == 7
    assert traces.search(QueryFilter(origin="otlp:shop-rag"))[0].id == answer.id
    assert receiver.health().waiting == 0 and receiver.health().queries == 1


def test_a_trace_whose_root_never_comes_is_stored_after_a_while(receiver: Receiver, traces: TraceStore, clock: Clock) -> None:
    receiver.take(openinference()[1:])
    settle(receiver, clock, otlp_in.IDLE_SECONDS)
    assert len(stored(traces)) == 1


def test_late_and_doubled_spans_complete_the_query_that_is_there(receiver: Receiver, traces: TraceStore, clock: Clock) -> None:
    spans = openinference()
    receiver.take([spans[0], *spans[2:]])
    settle(receiver, clock)
    receiver.take([spans[1], spans[3]])  # children alone, one of them again
    settle(receiver, clock, otlp_in.IDLE_SECONDS)
    (answer,) = stored(traces)
    assert {each.stage for each in answer.stages if each.skipped is None} == {"hyde", "embed", "search", "rerank", "generate"}
    assert len(traces.spans(answer.id)) == 7 and receiver.health().queries == 1


def test_what_waits_is_stored_at_the_end(receiver: Receiver, traces: TraceStore) -> None:
    receiver.take(openinference())
    receiver.close()
    assert len(stored(traces)) == 1


def test_spans_of_no_rag_program_are_counted_and_left(receiver: Receiver, traces: TraceStore, clock: Clock) -> None:
    receiver.take([span(1, None, "GET /", 0, 1)])
    settle(receiver, clock)
    assert stored(traces) == [] and receiver.health().unrelated == 1


# a model server's spans and our own queries


def own_query(trace_id: str) -> tuple[Answer, list[SpanRecord]]:
    started = "2026-09-21T14:13:20.000000Z"  # BASE_NS
    timeline = (Interval("generate", 1.0, 2.0, "stream the answer", Split(compute=2.0), facts={"completion_tokens": 5}),)
    answer = Answer(
        trace_id, "ours", started, "answered", stages=(Stage("generate", 2.0, 1),), timeline=timeline, total_seconds=3.0
    )
    return answer, [span(50, None, "rag.query", 0, 3, {"ragdeck.stage": "query"}, trace=trace_id)]


def test_vllms_span_joins_our_query_also_when_it_comes_first(receiver: Receiver, traces: TraceStore, clock: Clock) -> None:
    receiver.take([vllm(77, 51, 1.2, 2.8)])
    settle(receiver, clock)
    assert stored(traces) == []
    answer, spans = own_query(TRACE)
    answer = replace(answer, started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(BASE_NS / 1e9)))
    traces.save(answer, spans)
    settle(receiver, clock)
    (found,) = stored(traces)
    assert found.question == "ours" and found.timeline[0].facts["server_queue_seconds"] == 0.2
    assert found.timeline[0].facts["completion_tokens"] == 5
    assert [each.name for each in traces.spans(TRACE)] == ["rag.query", "llm_request"]
    assert receiver.health().joined == 1


def test_nobody_overwrites_our_query_by_claiming_its_trace(receiver: Receiver, traces: TraceStore, clock: Clock) -> None:
    answer, spans = own_query(TRACE)
    traces.save(answer, spans)
    receiver.take(openinference())
    settle(receiver, clock)
    (found,) = stored(traces)
    assert found.question == "ours" and len(traces.spans(TRACE)) == 1


def test_a_server_span_that_nobody_misses_is_given_up(receiver: Receiver, traces: TraceStore, clock: Clock) -> None:
    receiver.take([vllm(77, 51, 1.2, 2.8)])
    for _ in range(5):
        settle(receiver, clock, otlp_in.JOIN_SECONDS / 4)
    assert receiver.health().waiting == 0 and stored(traces) == []


# limits


def test_more_than_the_rate_is_refused_whole_and_allowed_again_later(traces: TraceStore, clock: Clock) -> None:
    receiver = Receiver(traces, 10, clock)
    receiver.take(openinference())
    with pytest.raises(RagError, match="more than 10 spans a minute") as refused:
        receiver.take(openinference())
    assert refused.value.kind == "overloaded"
    clock.now += 60
    receiver.take(openinference())
    assert receiver.health().refused == 7


def test_a_trace_that_never_ends_is_cut(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_in, "MAX_SPANS_A_TRACE", 3)
    assert receiver.take(openinference()) == 4
    assert receiver.health().waiting == 3


def test_too_many_traces_are_refused(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_in, "MAX_TRACES", 1)
    assert receiver.take(openinference()) == 0
    assert receiver.take(openinference("5bf92f3577b34da6a3ce929d0e0e4736")) == 7


# over HTTP


@dataclass
class Holder:
    receiver: Receiver | None


@pytest.fixture
def address(receiver: Receiver) -> Iterator[str]:
    holder = Holder(receiver)
    app = Guard(Starlette(routes=api.routes(lambda: holder)), Policy("127.0.0.1", token="secret"))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


TOKEN = {"authorization": "Bearer secret"}


def test_a_real_exporter_sends_and_the_query_is_there(address: str, receiver: Receiver, traces: TraceStore, clock: Clock) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "billing-rag"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{address}/v1/traces", headers=TOKEN, timeout=10)))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("answer", attributes={"openinference.span.kind": "CHAIN", "input.value": "שאלה"}):
        with tracer.start_as_current_span("find", attributes={"openinference.span.kind": "RETRIEVER"}) as found:
            found.set_attribute("retrieval.documents.0.document.content", "a passage")
        with tracer.start_as_current_span("chat m", attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}):
            pass
    provider.shutdown()
    settle(receiver, clock)
    (answer,) = stored(traces)
    assert (answer.question, answer.origin, answer.passages[0].text) == ("שאלה", "otlp:billing-rag", "a passage")
    assert answer.fingerprint["models"] == {"generate": "m"}


def as_json(spans: list[SpanRecord]) -> dict[str, object]:
    """OTLP's JSON encoding, written by hand: ids in hex, 64-bit numbers as text."""
    items = [
        {
            "traceId": each.trace_id, "spanId": each.span_id, "parentSpanId": each.parent_id or "", "name": each.name,
            "startTimeUnixNano": str(each.start_unix_ns), "endTimeUnixNano": str(each.end_unix_ns),
            "attributes": [{"key": key, "value": {"stringValue": str(value)}} for key, value in each.attributes.items()],
        }
        for each in spans
    ]  # fmt: skip
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "json-rag"}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": items, "futureField": 1}]}]}


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_json_in_hex_and_gzip(address: str, receiver: Receiver, traces: TraceStore, clock: Clock, encoding: str) -> None:
    body = json.dumps(as_json(openinference())).encode()
    headers = {**TOKEN, "content-type": "application/json", **({"content-encoding": "gzip"} if encoding else {})}
    reply = httpx.post(f"{address}/v1/traces", content=gzip.compress(body, mtime=0) if encoding else body, headers=headers)
    assert (reply.status_code, reply.json(), reply.headers["content-type"]) == (200, {}, "application/json")
    settle(receiver, clock)
    assert [answer.origin for answer in stored(traces)] == ["otlp:json-rag"]


def test_broken_spans_are_told_and_the_others_kept(address: str, receiver: Receiver) -> None:
    good, ends_before = openinference()[0], replace(openinference()[1], end_unix_ns=1)
    reply = httpx.post(f"{address}/v1/traces", json=as_json([good, ends_before]), headers=TOKEN)
    assert reply.json() == {"partialSuccess": {"rejectedSpans": "1", "errorMessage": "1 without valid ids or times"}}
    assert receiver.health().waiting == 1


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"{}", {"content-type": "text/plain"}, 415, "content type 'text/plain' is not taken"),
        (b"{nonsense", {"content-type": "application/json"}, 400, "no OTLP trace request in JSON"),
        (b'{"resourceSpans": [1]}', {"content-type": "application/json"}, 400, "no OTLP trace request in JSON"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}', {"content-type": "application/json"}, 400, "JSON"),
        (b"[" * 100_000, {"content-type": "application/json"}, 400, "JSON"),
        (b"\xff\xff\xff", {"content-type": "application/x-protobuf"}, 400, "no OTLP trace request"),
        (b"plain", {"content-type": "application/x-protobuf", "content-encoding": "gzip"}, 400, "no gzip"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], {"content-type": "application/x-protobuf", "content-encoding": "gzip"}, 400, "ends in the middle"),
        (gzip.compress(b"\0" * (otlp_wire.MAX_INFLATED_BYTES + 10), mtime=0), {"content-type": "application/x-protobuf", "content-encoding": "gzip"}, 400, "longer"),
        (b"x", {"content-type": "application/x-protobuf", "content-encoding": "zstd"}, 400, "'zstd' is not taken"),
        (b"x" * (otlp_wire.MAX_BODY_BYTES + 1), {"content-type": "application/x-protobuf"}, 413, "at most"),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be(address: str, content: bytes, headers: dict[str, str], status: int, said: str) -> None:
    reply = httpx.post(f"{address}/v1/traces", content=content, headers={**TOKEN, **headers})
    assert reply.status_code == status and said in reply.json()["error"]["message"]


def test_without_the_token_nothing_comes_in(address: str, receiver: Receiver) -> None:
    reply = httpx.post(f"{address}/v1/traces", json=as_json(openinference()))
    assert reply.status_code == 401 and receiver.health().spans == 0


def test_another_sites_page_cannot_send(address: str, receiver: Receiver) -> None:
    reply = httpx.post(f"{address}/v1/traces", json=as_json(openinference()), headers={**TOKEN, "origin": "http://evil.example"})
    assert reply.status_code == 403 and receiver.health().spans == 0


def test_a_sender_over_the_rate_is_told_when_to_come_back(
    address: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "_per_minute", 3)
    reply = httpx.post(f"{address}/v1/traces", json=as_json(openinference()), headers=TOKEN)
    assert reply.status_code == 429 and reply.headers["retry-after"] == "30"
