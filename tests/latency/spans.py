"""Spans as other programs send them: OpenInference, the GenAI conventions, OpenLLMetry, vLLM. Written after their documentation."""

from __future__ import annotations

import json
from typing import Any

from rag.otlp import SpanEvent, SpanRecord

BASE_NS = 1_790_000_000_000_000_000
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def span(
    key: int,
    parent: int | None,
    name: str,
    start: float,
    end: float,
    attributes: dict[str, Any] | None = None,
    *,
    trace: str = TRACE,
    kind: str = "INTERNAL",
    status: str = "UNSET",
    message: str = "",
    events: tuple[tuple[str, float, dict[str, Any]], ...] = (),
    service: str = "shop-rag",
) -> SpanRecord:
    """A span with times in seconds after BASE_NS."""

    def at(seconds: float) -> int:
        return BASE_NS + round(seconds * 1e9)

    return SpanRecord(
        trace_id=trace,
        span_id=f"{key:016x}",
        parent_id=None if parent is None else f"{parent:016x}",
        name=name,
        kind=kind,
        start_unix_ns=at(start),
        end_unix_ns=at(end),
        status=status,
        attributes={**(attributes or {}), "service.name": service},
        events=tuple(SpanEvent(label, at(when), more) for label, when, more in events),
        status_message=message,
    )


def documents(prefix: str, ids: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, key in enumerate(ids):
        found[f"{prefix}.{number}.document.id"] = key
        found[f"{prefix}.{number}.document.content"] = f"text of {key}"
        found[f"{prefix}.{number}.document.score"] = 0.9 - number / 10
        found[f"{prefix}.{number}.document.metadata"] = json.dumps({"source": f"{key}.md", "page": number + 1})
    return found


def openinference(trace: str = TRACE) -> list[SpanRecord]:
    """A chain that rewrites, retrieves (and embeds inside the retriever), reranks, generates: 3 s."""
    return [
        span(1, None, "RetrievalQA", 0.0, 3.0, {
            "openinference.span.kind": "CHAIN", "input.value": json.dumps({"question": "Why is it slow?"}),
            "output.value": json.dumps({"answer": "Because of the tunnel."}),
        }, trace=trace),
        span(2, 1, "ChatOpenAI", 0.0, 0.5, {"openinference.span.kind": "LLM", "llm.model_name": "qwen", "llm.token_count.completion": 60}, trace=trace),
        span(3, 1, "VectorStoreRetriever", 0.5, 1.0, {"openinference.span.kind": "RETRIEVER", **documents("retrieval.documents", list("abcd"))}, trace=trace),
        span(4, 3, "OpenAIEmbeddings", 0.5, 0.7, {"openinference.span.kind": "EMBEDDING", "embedding.model_name": "bge-m3"}, trace=trace),
        span(5, 1, "Reranker", 1.0, 1.4, {
            "openinference.span.kind": "RERANKER", "reranker.model_name": "bge-reranker", "reranker.top_k": 2,
            **documents("reranker.input_documents", list("abcd")), **documents("reranker.output_documents", ["c", "a"]),
        }, trace=trace),
        span(6, 1, "ChatOpenAI", 1.4, 2.9, {
            "openinference.span.kind": "LLM", "llm.model_name": "qwen", "llm.token_count.prompt": 800, "llm.token_count.completion": 101,
        }, trace=trace, events=(("First Token Stream Event", 1.9, {}),)),
        span(7, 6, "openai.chat", 1.41, 2.89, {"gen_ai.operation.name": "chat", "gen_ai.request.model": "qwen", "gen_ai.request.max_tokens": 512}, trace=trace),
    ]  # fmt: skip


def vllm(key: int, parent: int, start: float, end: float, trace: str = TRACE) -> SpanRecord:
    """vLLM's own span of a request, as its tracing documents it."""
    attributes = {
        "gen_ai.response.model": "qwen",
        "gen_ai.latency.time_in_queue": 0.2,
        "gen_ai.latency.time_in_model_prefill": 0.15,
        "gen_ai.latency.time_in_model_decode": 0.9,
        "gen_ai.latency.e2e": end - start,
    }
    return span(key, parent, "llm_request", start, end, attributes, trace=trace, kind="SERVER", service="vllm-server")
