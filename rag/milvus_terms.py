"""Our passages, strings and their errors in Milvus's terms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rag.errors import Kind
from rag.types import PassageRow

MAX_TEXT_BYTES = 65_535
MAX_NAME_BYTES = 4096


def literal(value: str | list[str]) -> str:
    """A string or list as Milvus's expression language takes it: quoted as in JSON, but without \\u escapes."""
    return json.dumps(value, ensure_ascii=False)


def entity(
    row: PassageRow, vector: NDArray[np.float32], sparse: Mapping[int, float] | None, passages: int, ingested_at: str
) -> dict[str, Any]:
    """A passage as a row; the number of passages and the time go onto the document's marker row (position 0)."""
    data: dict[str, Any] = {
        "id": row.id,
        "text": row.text,
        "indexed": cut(row.indexed_text, MAX_TEXT_BYTES),
        "document_id": row.document_id,
        "content_hash": row.content_hash,
        "source": cut(row.source),
        "title": cut(row.title),
        "location": cut(row.location or ""),
        "language": row.language or "",
        "position": row.position,
        "passages": passages if row.position == 0 else 0,
        "ingested_at": ingested_at,
        "dense": vector.tolist(),
    }
    if sparse is not None:
        data["sparse"] = dict(sparse) or {0: 1e-6}  # Milvus rejects an empty sparse vector
    return data


def cut(text: str, limit: int = MAX_NAME_BYTES) -> str:
    """At most `limit` UTF-8 bytes, the field's limit; no letter is cut in half."""
    return text.encode("utf-8", "replace")[:limit].decode(errors="ignore")


def is_released(message: str) -> bool:
    """Whether Milvus refused a search because the collection is not in its memory."""
    text = message.lower()
    return "released" in text or "not loaded" in text


def diagnose(problem: Exception, embedded: bool) -> tuple[Kind, str]:
    """What kind of error pymilvus's exception is, by its words (it has one class for nearly all), and what to do next."""
    text = str(problem).lower()
    if "no space left" in text:
        return "internal", "The disk is full: free space where the store's folder is, then try again."
    if isinstance(problem, TimeoutError) or "deadline" in text or "timeout" in text or "timed out" in text:
        return "timeout", "Check the network between here and Milvus, or raise milvus.timeout_seconds."
    if "auth" in text or "permission" in text or "token" in text:
        return "authentication", "Check MILVUS_TOKEN (user:password) and what that user may do."
    if "can't find collection" in text or "not found" in text or "not exist" in text:
        return "not_found", "Ingest documents first, or check milvus.collection and milvus.mapping."
    if "dim" in text:
        return "model", "The collection was filled by another embedder; choose that one or ingest again."
    if embedded:
        return "internal", "Look at the log; if the store's folder is damaged, move it away and ingest again."
    return (
        "connection",
        "Check that Milvus runs at this address (MILVUS_URI, or MILVUS_HOST and MILVUS_PORT) and that no firewall is between.",
    )
