"""Names of span attributes: GenAI semantic conventions v1.41.1, OpenInference, and ours under `ragdeck.`.

Knows nothing of spans; `trace.py` and `otlp.py` use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIRST_TOKEN_EVENT = "First Token Stream Event"
_CHAT = {"gen_ai.operation.name": "chat", "openinference.span.kind": "LLM"}
_RETRIEVAL = {"gen_ai.operation.name": "retrieval", "openinference.span.kind": "RETRIEVER"}
STAGE_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "hyde": _CHAT,
    "generate": _CHAT,
    "embed": {"gen_ai.operation.name": "embeddings", "openinference.span.kind": "EMBEDDING"},
    "search": _RETRIEVAL,
    "cache": _RETRIEVAL,
    "rerank": {"openinference.span.kind": "RERANKER"},
}
# Short names that callers may use, and the attribute each stands for. Dotted names pass as they are.
SHORT_NAMES = {
    "model": "gen_ai.request.model",
    "provider": "gen_ai.provider.name",
    "stream": "gen_ai.request.stream",
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "response_id": "gen_ai.response.id",
    "response_model": "gen_ai.response.model",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "ttft_seconds": "gen_ai.response.time_to_first_chunk",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "dimensions": "gen_ai.embeddings.dimension.count",
    "collection": "gen_ai.data_source.id",
    "top_k": "gen_ai.request.top_k",
    "address": "server.address",
    "port": "server.port",
    "input": "input.value",
    "output": "output.value",
    "query": "reranker.query",
    "error_type": "error.type",
}
RERANK_NAMES = {"model": "reranker.model_name", "top_k": "reranker.top_k"}  # no gen_ai convention for reranking yet
_LLM_MIRROR = {
    "gen_ai.request.model": "llm.model_name",
    "gen_ai.usage.input_tokens": "llm.token_count.prompt",
    "gen_ai.usage.output_tokens": "llm.token_count.completion",
}
MIRRORS: dict[str, dict[str, str]] = {
    "hyde": _LLM_MIRROR,
    "generate": _LLM_MIRROR,
    "embed": {"gen_ai.request.model": "embedding.model_name"},
}
_OPERATIONS = {
    "hyde": ("chat", "gen_ai.request.model"),
    "generate": ("chat", "gen_ai.request.model"),
    "embed": ("embeddings", "gen_ai.request.model"),
    "search": ("retrieval", "gen_ai.data_source.id"),
    "cache": ("retrieval", "gen_ai.data_source.id"),
    "rerank": ("rerank", "reranker.model_name"),
}
_CONTENT_PREFIXES = (
    "input.value", "output.value", "reranker.query", "llm.input_messages", "llm.output_messages", "llm.prompts",
    "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "retrieval.documents",
    "reranker.input_documents", "reranker.output_documents", "embedding.embeddings", "embedding.text",
)  # fmt: skip


def span_name(stage: str, attributes: Mapping[str, Any]) -> str:
    """The conventions' name, operation and object: `chat {model}`, `retrieval {collection}`; the stage if it is unknown."""
    operation, key = _OPERATIONS.get(stage, (stage, ""))
    return f"{operation} {attributes[key]}" if key in attributes else operation


def is_content(key: str) -> bool:
    """True when an attribute can hold what a user or a document said."""
    return key.startswith(_CONTENT_PREFIXES)
