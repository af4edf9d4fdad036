"""Spans of a query: their ids, nesting, attributes and ends, and what reaches a collector over OTLP."""

from __future__ import annotations

import gzip
import json
import logging
import re
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from rag.errors import Cancelled, StageError
from rag.trace import QueryTrace, SpanRecord, TimeOrderedIds, Tracing
from rag.types import Answer, Passage, Problem
from tests.ports import reserved_port

PATIENCE = 20.0  # seconds: far over what a loaded machine takes, far under what a hanging collector would
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def answer_of(trace: QueryTrace, **more: Any) -> Answer:
    return Answer(
        **{"id": trace.id, "question": "q", "started_at": trace.started_at, "outcome": "answered", "answer": "a", **more}
    )


def passages(count: int) -> tuple[Passage, ...]:
    return tuple(
        Passage(
            id=f"p{n}",
            text=f"text of {n} " + "x" * 500,
            source="s",
            title="t",
            ranks={"fused": n + 1, "rerank": count - n},
            scores={"fused": 1 / (n + 1), "rerank": float(n)},
            kept=n >= count - 8,
        )
        for n in range(count)
    )


def stages(trace: QueryTrace) -> None:
    with trace.span("search", "search", collection="manuals", top_k=40):
        pass
    with trace.span("rerank", "rerank", model="reranker", top_k=8, query="q") as span:
        span.timing(load=0.0, queue=0.001, compute=0.1, cold=True, device="cuda:0")
    with trace.span("generate", "generate", model="llama", provider="vllm", stream=True, address="gpu", port=8000) as span:
        span.first_token()
        span.set(input_tokens=10, output_tokens=5, finish_reasons="stop", response_id=None)


def by_stage(records: Sequence[SpanRecord]) -> dict[str, SpanRecord]:
    return {record.stage: record for record in records}


# Ids and times


def test_ids_are_uuid7_and_sort_by_time_also_when_the_clock_goes_back() -> None:
    now = [1_700_000_000_000_000_000]
    ids = TimeOrderedIds(lambda: now[0])
    made = [ids.generate_trace_id() for _ in range(5000)]  # more than the counter's 4096 within one millisecond
    now[0] -= 3_600_000_000_000
    made += [ids.generate_trace_id() for _ in range(10)]
    now[0] += 7_200_000_000_000
    made.append(ids.generate_trace_id())
    assert made == sorted(made) and len(set(made)) == len(made)
    assert {(one >> 76 & 0xF, one >> 62 & 0b11) for one in made} == {(7, 0b10)}
    assert made[0] >> 80 == 1_700_000_000_000


def test_ids_are_unique_over_threads() -> None:
    ids = TimeOrderedIds()
    made: list[int] = []
    threads = [threading.Thread(target=lambda: made.extend(ids.generate_trace_id() for _ in range(2000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000


def test_a_clock_that_jumps_does_not_bend_a_query() -> None:
    wall, ticks = [1_000_000_000_000_000_000], [0]
    tracing = Tracing(clock_ns=lambda: wall[0], ticks_ns=lambda: ticks[0])
    with tracing.query("q") as trace:
        wall[0] -= 10**12
        ticks[0] += 5_000_000
        with trace.span("embed", "embed") as span:
            ticks[0] += 7_000_000
        assert (span.start_seconds, span.seconds) == (0.005, 0.007)
        assert trace.elapsed() == 0.012
        assert trace.started_at == "2001-09-09T01:46:40.000Z"
        root, embed = trace.finish(answer_of(trace))
    assert embed.start_unix_ns - root.start_unix_ns == 5_000_000 and embed.seconds == 0.007 and root.seconds == 0.012


def test_the_environment_cannot_switch_traces_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1")
    with Tracing().query("q") as trace:
        stages(trace)
        records = trace.finish(answer_of(trace))
    assert len(records) == 4 and int(trace.id, 16) > 0 and len(by_stage(records)["generate"].attributes) > 10


# Shape


def test_spans_nest_under_the_root_and_carry_both_conventions() -> None:
    with Tracing().query("What?") as trace:
        stages(trace)
        records = trace.finish(answer_of(trace, passages=passages(3)))
    root, search, rerank, generate = records
    assert (root.name, root.kind, root.parent_id, root.trace_id) == ("rag.query", "INTERNAL", None, trace.id)
    assert {child.parent_id for child in records[1:]} == {root.span_id}
    assert root.attributes["openinference.span.kind"] == "CHAIN"
    assert (root.attributes["input.value"], root.attributes["output.value"]) == ("What?", "a")
    assert search.name == "retrieval manuals"
    assert search.attributes == {
        "ragdeck.stage": "search",
        "gen_ai.operation.name": "retrieval",
        "openinference.span.kind": "RETRIEVER",
        "gen_ai.data_source.id": "manuals",
        "gen_ai.request.top_k": 40,
    }
    assert rerank.name == "rerank reranker" and not [key for key in rerank.attributes if key.startswith("gen_ai")]
    assert rerank.attributes["ragdeck.queue_seconds"] == 0.001 and rerank.attributes["ragdeck.cold"] is True
    assert "ragdeck.network_seconds" not in rerank.attributes  # unknown is not 0
    assert (generate.name, generate.kind) == ("chat llama", "CLIENT")
    wanted = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 10,
        "server.address": "gpu",
        "server.port": 8000,
        "openinference.span.kind": "LLM",
        "llm.model_name": "llama",
        "llm.token_count.prompt": 10,
        "llm.token_count.completion": 5,
        "llm.token_count.total": 15,
    }
    assert wanted.items() <= dict(generate.attributes).items()
    assert 0 <= generate.attributes["gen_ai.response.time_to_first_chunk"] < PATIENCE
    assert [event.name for event in generate.events] == ["First Token Stream Event"]
    assert "gen_ai.response.id" not in generate.attributes


def test_a_record_survives_json() -> None:
    with Tracing().query("q") as trace:
        stages(trace)
        records = trace.finish(answer_of(trace))
    assert [SpanRecord.from_json(json.loads(json.dumps(record.to_json()))) for record in records] == records


def test_finish_twice_gives_the_same_and_late_attributes_change_nothing() -> None:
    with Tracing().query("q") as trace:
        with trace.span("embed", "embed") as span:
            pass
        first = trace.finish(answer_of(trace))
        span.set(late=True)
        assert trace.finish(answer_of(trace)) is first
    assert "ragdeck.late" not in first[1].attributes


def test_content_is_left_out_when_it_is_not_captured() -> None:
    with Tracing(capture_content=False).query("secret question") as trace:
        with pytest.raises(ValueError), trace.span("rerank", "rerank", query="secret", input="secret", model="m"):
            raise ValueError("secret in a message")
        records = trace.finish(answer_of(trace, answer="secret"))
    assert "secret" not in json.dumps([record.to_json() for record in records])


# A remote parent


def test_a_remote_parent_is_joined_but_the_id_stays_our_own() -> None:
    tracing = Tracing()
    with tracing.query("q", PARENT) as trace, tracing.query("q", PARENT) as again:
        root = trace.finish(answer_of(trace))[0]
    assert root.trace_id == trace.trace_id == PARENT[3:35] and root.parent_id == PARENT[36:52]
    assert len({trace.id, again.id, trace.trace_id}) == 3
    assert root.attributes["ragdeck.query_id"] == trace.id


@pytest.mark.parametrize(
    "header", ["", "nonsense", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ff" + PARENT[2:], PARENT + "-more"]
)
def test_a_broken_traceparent_starts_a_trace_of_our_own(header: str) -> None:
    with Tracing().query("q", header) as trace:
        root = trace.finish(answer_of(trace))[0]
    assert root.parent_id is None and root.trace_id == trace.id


def test_traceparent_names_the_span_it_is_sent_from() -> None:
    with Tracing().query("q") as trace:
        with trace.span("generate", "generate") as span:
            header = span.traceparent()
        record = trace.finish(answer_of(trace))[1]
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", header)
    assert header.split("-")[1:3] == [record.trace_id, record.span_id]


# Errors


def test_an_error_marks_its_span_and_ends_every_span() -> None:
    trace = Tracing().query("q")
    with pytest.raises(StageError), trace:
        trace.span("hyde", "hyde")  # left open
        with trace.span("search", "search"):
            raise StageError("search", "no answer", kind="timeout")
    hyde, search = trace.records[1:]
    assert (search.status, search.status_message, search.attributes["error.type"]) == ("ERROR", "no answer", "timeout")
    assert search.events[0].name == "exception"
    assert hyde.attributes["ragdeck.unfinished"] is True and hyde.end_unix_ns >= hyde.start_unix_ns
    assert trace.records[0].status == "ERROR"


def test_a_foreign_error_keeps_its_stack() -> None:
    with Tracing().query("q") as trace:
        with pytest.raises(ZeroDivisionError), trace.span("embed", "embed"):
            _ = 1 / 0
        embed = trace.finish(answer_of(trace))[1]
    assert embed.attributes["error.type"] == "ZeroDivisionError" and "1 / 0" in embed.events[0].attributes["exception.stacktrace"]


def test_a_cancel_is_no_error() -> None:
    with Tracing().query("q") as trace:
        with pytest.raises(Cancelled), trace.span("generate", "generate"):
            raise Cancelled("enough")
        root, generate = trace.finish(answer_of(trace, outcome="cancelled"))
    assert (generate.status, generate.attributes["ragdeck.cancelled"], root.status) == ("UNSET", True, "UNSET")


def test_an_abandoned_generator_ends_its_spans() -> None:
    trace = Tracing().query("q")

    def path() -> Generator[int, None, None]:
        with trace, trace.span("generate", "generate"):
            yield 1

    running = path()
    next(running)
    running.close()
    assert [record.attributes.get("ragdeck.cancelled") for record in trace.records] == [True, True]


def test_a_failed_answer_marks_the_root() -> None:
    with Tracing().query("q") as trace:
        root = trace.finish(answer_of(trace, outcome="failed", error=Problem("search", "timeout", "too slow")))[0]
    assert (root.status, root.status_message, root.attributes["error.type"]) == ("ERROR", "too slow", "timeout")


# OTLP


class Collector:
    """A local OTLP receiver: decodes what it is sent, answers with `status`, after `delay` seconds."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.status, self.delay = 200, 0.0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                time.sleep(collector.delay)
                if collector.status == 200:
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> dict[str, dict[str, Any]]:
        """Attributes by span name."""
        found = {}
        for request in self.requests:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found[span.name] = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_all_documents_arrive_at_a_collector(collector: Collector) -> None:
    tracing = Tracing(exporter=OTLPSpanExporter(endpoint=collector.url), version="1.2")
    with tracing.query("What?") as trace:
        with trace.span("search", "first search"):
            pass
        stages(trace)
        trace.finish(answer_of(trace, passages=passages(40)))
    assert tracing.flush(PATIENCE) and tracing.shutdown(PATIENCE)
    spans = collector.spans()
    search, rerank, generate = spans["retrieval manuals"], spans["rerank reranker"], spans["chat llama"]
    assert search["retrieval.documents.0.document.id"] == "p0"
    assert {search[f"retrieval.documents.{n}.document.content"].split()[2] for n in range(40)} == {str(n) for n in range(40)}
    assert not [key for key in spans["first search"] if key.startswith("retrieval.documents")]  # once, on the last search
    assert rerank["reranker.output_documents.0.document.id"] == "p39"  # best first
    assert rerank["reranker.input_documents.39.document.id"] == "p39"
    assert len([key for key in rerank if key.endswith("document.score")]) == 80
    assert json.loads(rerank["output.value"])[0] == {"rank": 1, "id": "p39", "score": 39.0, "kept": True}
    assert json.loads(search["retrieval.documents.3.document.metadata"])["scores"]["fused"] == 0.25
    types = {name: attributes["langfuse.observation.type"] for name, attributes in spans.items()}
    assert types["retrieval manuals"] == "retriever" and types["rerank reranker"] == "span" and types["rag.query"] == "chain"
    assert json.loads(generate["langfuse.observation.completion_start_time"]).endswith("Z")
    resource = {a.key: a.value.string_value for a in collector.requests[0].resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["service.version"]) == ("rag-deck", "1.2")
    health = tracing.export_health()
    assert health and (health.sent, health.failed, health.pending, health.last_error) == (5, 0, 0, None)


def test_no_document_leaves_when_content_is_not_captured(collector: Collector) -> None:
    tracing = Tracing(exporter=OTLPSpanExporter(endpoint=collector.url), capture_content=False)
    with tracing.query("secret") as trace:
        stages(trace)
        trace.finish(answer_of(trace, answer="secret", passages=passages(3)))
    assert tracing.shutdown(PATIENCE)
    assert len(collector.spans()) == 4
    assert not [key for span in collector.spans().values() for key in span if ".document." in key or key.endswith(".value")]


def test_the_sdk_s_own_limit_would_have_lost_documents() -> None:
    """Why spans are rebuilt: 40 documents in and out are more than the 128 attributes that a live SDK span keeps."""
    from rag.otlp import document_attributes

    with Tracing().query("q") as trace:
        flat = document_attributes("rerank", answer_of(trace, passages=passages(40)))
    assert len(flat) > 128


def test_an_unreachable_collector_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with reserved_port() as port, caplog.at_level(logging.WARNING):
        tracing = Tracing(exporter=OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}/v1/traces", timeout=0.3))
        for _ in range(40):
            with tracing.query("q") as trace:
                stages(trace)
                trace.finish(answer_of(trace))
        assert not tracing.flush(PATIENCE)
        assert tracing.shutdown(PATIENCE)
    health = tracing.export_health()
    assert health and (health.failed, health.sent, health.pending) == (160, 0, 0) and health.last_error
    assert len([record for record in caplog.records if record.name == "rag.otlp"]) == 1
    assert len(caplog.records) <= 2


def test_an_exporter_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise RuntimeError("broken exporter")

    tracing = Tracing(exporter=Broken())
    for _ in range(2):
        with tracing.query("q") as trace:
            trace.finish(answer_of(trace))
        tracing.flush(PATIENCE)
    health = tracing.export_health()
    assert health and health.failed == 2 and health.last_error == "RuntimeError: broken exporter"
    tracing.shutdown()


def test_a_hanging_collector_blocks_neither_queries_nor_shutdown(collector: Collector) -> None:
    collector.delay = 2 * PATIENCE
    tracing = Tracing(exporter=OTLPSpanExporter(endpoint=collector.url, timeout=3 * PATIENCE))
    slowest = 0.0
    for _ in range(600):
        start = time.perf_counter()
        with tracing.query("q") as trace:
            stages(trace)
            trace.finish(answer_of(trace))
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < PATIENCE
    start = time.perf_counter()
    assert not tracing.shutdown(0.3)
    assert time.perf_counter() - start < PATIENCE
    health = tracing.export_health()
    assert health and health.dropped > 0 and health.dropped + health.pending + health.sent + health.failed == 2400


def test_shutdown_sends_what_is_queued_and_what_comes_later_is_dropped(collector: Collector) -> None:
    tracing = Tracing(exporter=OTLPSpanExporter(endpoint=collector.url))
    for _ in range(100):
        with tracing.query("q") as trace:
            trace.finish(answer_of(trace, passages=passages(2)))
    assert tracing.shutdown(PATIENCE)
    with tracing.query("q") as trace:
        trace.finish(answer_of(trace))
    health = tracing.export_health()
    assert health and (health.sent, health.dropped) == (100, 1)
