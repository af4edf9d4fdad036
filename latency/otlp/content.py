"""What was asked, answered and found, out of the attributes of foreign spans. Pure. Nothing of it is trusted: lengths are
bounded here, and whoever shows it escapes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from latency.otlp.kinds import first, kind_of, number
from rag.otlp import SpanRecord
from rag.types import Passage

MAX_CHARS = 20_000
MAX_DOCUMENTS = 200
_QUESTION_KEYS = ("question", "query", "input", "user_query", "prompt", "text", "messages", "content")
_ANSWER_KEYS = ("answer", "output", "response", "result", "text", "content", "messages")
_SOURCE_KEYS = ("source", "file_name", "filename", "file_path", "url", "path", "document_name")


def question_text(root: SpanRecord, spans: Sequence[SpanRecord]) -> str:
    """The question: what went into the root, else into the first retrieval, else the last words of a user in a prompt."""
    told = first(root.attributes, "input.value", "traceloop.entity.input", "langfuse.trace.input", "gen_ai.input.messages")
    if text := _text(told, _QUESTION_KEYS):
        return text
    for kind in ("search", "embed", "rerank"):
        for span in spans:
            if kind_of(span) == kind and (text := _text(first(span.attributes, "input.value", "reranker.query"), _QUESTION_KEYS)):
                return text
    for span in spans:
        if text := _last_message(span, "llm.input_messages", "gen_ai.input.messages"):
            return text
    return ""


def answer_text(root: SpanRecord, answering: Sequence[SpanRecord]) -> str:
    """The answer: what came out of the root, else of the last language model's span."""
    told = first(root.attributes, "output.value", "traceloop.entity.output", "langfuse.trace.output")
    if text := _text(told, _ANSWER_KEYS):
        return text
    for span in reversed(answering):
        if text := _last_message(span, "llm.output_messages", "gen_ai.output.messages"):
            return text
        if text := _text(span.attributes.get("output.value"), _ANSWER_KEYS):
            return text
    return ""


def _text(value: Any, keys: Iterable[str]) -> str:
    """The words in a value that may be plain text or JSON in any of the usual shapes."""
    if not isinstance(value, str):
        return ""
    if value[:1] in "{[":
        try:
            return _inner(json.loads(value), tuple(keys))[:MAX_CHARS]
        except (ValueError, RecursionError):
            return value[:MAX_CHARS]
    return value[:MAX_CHARS]


def _inner(data: Any, keys: Sequence[str], depth: int = 0) -> str:
    if depth > 6:
        return ""
    if isinstance(data, str):
        return data
    if isinstance(data, dict):
        for key in keys:
            if key in data and (text := _inner(data[key], keys, depth + 1)):
                return text
        parts = data.get("parts")
        return _inner(parts, keys, depth + 1) if parts else ""
    if isinstance(data, list):  # messages: the last one that says something
        return next((text for item in reversed(data) if (text := _inner(item, keys, depth + 1))), "")
    return ""


def _last_message(span: SpanRecord, flat: str, packed: str) -> str:
    """The last message of an LLM span: flattened as OpenInference has it, or JSON as the GenAI conventions."""
    pattern = re.compile(rf"{re.escape(flat)}\.(\d+)\.message\.(?:content|contents\.\d+\.message_content\.text)$")
    found = [(int(match[1]), value) for key, value in span.attributes.items() if (match := pattern.match(key))]
    for _, value in sorted(found, reverse=True):
        if isinstance(value, str) and value:
            return value[:MAX_CHARS]
    return _text(span.attributes.get(packed), _QUESTION_KEYS)


def documents(span: SpanRecord, prefix: str) -> list[Passage]:
    """OpenInference's flattened documents in their order; the score stands under the route ''."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.document\.(id|content|score|metadata)$")
    rows: dict[int, dict[str, Any]] = {}
    for key, value in span.attributes.items():
        if match := pattern.match(key):
            rows.setdefault(int(match[1]), {})[match[2]] = value
    return [_passage(index, row) for index, row in sorted(rows.items())[:MAX_DOCUMENTS]]


def _passage(index: int, row: dict[str, Any]) -> Passage:
    text = str(row.get("content") or "")[:MAX_CHARS]
    metadata = _metadata(row.get("metadata"))
    source = next((str(metadata[key]) for key in _SOURCE_KEYS if metadata.get(key)), "")
    key = str(row.get("id") or metadata.get("id") or "") or f"document {index + 1}: {text[:80]}"
    return Passage(
        id=key[:300],
        text=text,
        source=source[:500],
        title=str(metadata.get("title") or source or key)[:300],
        location=None if metadata.get("page") is None else f"p. {metadata['page']}"[:100],
        scores={"": number(row, "score")},
    )


def _metadata(value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        return {}
    try:
        data = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
