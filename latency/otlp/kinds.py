"""What a foreign span is: a stage of a RAG query, a model server's own span, or structure. Pure; names of conventions only.

Sources: OpenInference semantic conventions (openinference.span.kind), OpenTelemetry GenAI conventions v1.41.1
(gen_ai.operation.name), OpenLLMetry (llm.request.type, traceloop.span.kind), Langfuse (langfuse.observation.type), vLLM's tracing
(gen_ai.latency.*), OpenTelemetry database conventions (db.system.name) for vector stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rag.otlp import SpanRecord
from rag.types import STAGES

LLM = "llm"  # hyde or generate: known only beside the other spans
SERVER = "server"  # a model server's view of a request: no stage of its own

_OPENINFERENCE = {"EMBEDDING": "embed", "RETRIEVER": "search", "RERANKER": "rerank", "LLM": LLM}
_OPERATIONS = {
    "chat": LLM,
    "text_completion": LLM,
    "generate_content": LLM,
    "completion": LLM,
    "embeddings": "embed",
    "embedding": "embed",
    "retrieval": "search",
    "rerank": "rerank",
}
_LANGFUSE = {"generation": LLM, "embedding": "embed", "retriever": "search", "reranker": "rerank"}
_VECTOR_STORES = re.compile(r"milvus|qdrant|chroma|pinecone|weaviate|pgvector|lancedb|marqo|vespa|elasticsearch|opensearch", re.I)
_LOOKS_UP = re.compile(r"search|query|retriev|similar|knn", re.I)
_REWRITES = re.compile(r"hyde|hypothe|rewrite|condense|expan|multi.?query|step.?back", re.I)


def kind_of(span: SpanRecord) -> str | None:
    """A stage, LLM, SERVER, or None for structure (chains, agents, tools, web requests)."""
    told = span.attributes
    if any(key.startswith("gen_ai.latency.") for key in told):
        return SERVER
    if told.get("ragdeck.stage") in STAGES:
        return str(told["ragdeck.stage"])
    if told.get("ragdeck.stage"):
        return None
    for key, known, fold in (
        ("openinference.span.kind", _OPENINFERENCE, str.upper),
        ("gen_ai.operation.name", _OPERATIONS, str.lower),
        ("llm.request.type", _OPERATIONS, str.lower),
        ("langfuse.observation.type", _LANGFUSE, str.lower),
    ):
        if key in told:
            return known.get(fold(str(told[key])))
    store = str(told.get("db.system.name") or told.get("db.system") or "")
    operation = f"{span.name} {told.get('db.operation.name', '')} {told.get('db.operation', '')}"
    return "search" if _VECTOR_STORES.search(store) and _LOOKS_UP.search(operation) else None


def stages_of(spans: Iterable[SpanRecord]) -> dict[str, str]:
    """Span id to stage, or SERVER. A language model's span before the first search is `hyde` (a hypothesis, or another rewriting
    of the question) when a later one answers, or when its name says so; every other is `generate`."""
    kinds = {span.span_id: (kind, span) for span in spans if (kind := kind_of(span)) is not None}
    searches = [span.start_unix_ns for kind, span in kinds.values() if kind == "search"]
    first_search = min(searches, default=None)
    last_llm = max((span.start_unix_ns for kind, span in kinds.values() if kind == LLM), default=0)
    found: dict[str, str] = {}
    for key, (kind, span) in kinds.items():
        if kind != LLM:
            found[key] = kind
            continue
        before = first_search is not None and span.end_unix_ns <= first_search
        later = first_search is not None and last_llm > first_search
        found[key] = "hyde" if _REWRITES.search(span.name) or (before and later) else "generate"
    return found


def first(attributes: Mapping[str, Any], *names: str) -> Any:
    """The first of these attributes that is there."""
    return next((attributes[name] for name in names if attributes.get(name) not in (None, "")), None)


def number(attributes: Mapping[str, Any], *names: str) -> float | None:
    """The first of these attributes that is a number (or a text that is one)."""
    for name in names:
        value = attributes.get(name)
        if isinstance(value, bool) or value is None:
            continue
        try:
            return float(value)
        except (TypeError, ValueError):
            continue
    return None


def whole(attributes: Mapping[str, Any], *names: str) -> int | None:
    """As `number`, without its fraction; None for what is no finite number."""
    value = number(attributes, *names)
    return int(value) if value is not None and abs(value) < 1e15 else None


_MODEL_KEYS = {
    "embed": ("gen_ai.response.model", "gen_ai.request.model", "embedding.model_name"),
    "rerank": ("reranker.model_name", "gen_ai.request.model"),
    "search": (),
    "cache": (),
}


def model_of(stage: str, attributes: Mapping[str, Any]) -> str | None:
    """The model that a stage's span names."""
    value = first(attributes, *_MODEL_KEYS.get(stage, ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name")))
    return None if value is None else str(value)[:200]
