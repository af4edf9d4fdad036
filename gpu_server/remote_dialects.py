"""Bodies sent to model servers and answers read, dialect by dialect. Pure: knows nothing of connections.

Embeddings: `native` (ours, R0's) and `openai`. Reranking: `native` (ours, R0's, R2's), `cohere` (Cohere, Jina, vLLM, Infinity)
and `tei`. What cannot be a result raises BadAnswer: too few vectors or scores, NaN, another dimension, an index out of range.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpu_server.errors import BadAnswer
from gpu_server.interfaces import TextKind, VectorKind

Dialect = Literal["native", "openai", "cohere", "tei"]

NORM_TOLERANCE = 1e-3
SCORE_EDGE = 1e-15  # activated scores are clipped to this distance from 0 and 1: raw scores within 34.5


@dataclass(frozen=True, slots=True)
class Rows:
    """An answer's vectors in the texts' order, float32 [n, d]; `tokens` and `model` where the server tells them."""

    dense: NDArray[np.float32]
    sparse: tuple[Mapping[int, float], ...] | None = None
    tokens: int | None = None
    model: str | None = None


# 1) embeddings


def embed_body(
    dialect: Dialect, texts: Sequence[str], kind: TextKind, vectors: frozenset[VectorKind], model: str | None
) -> dict[str, Any]:
    if dialect == "native":
        return {"texts": list(texts), "return_dense": True, "return_sparse": "sparse" in vectors, "kind": kind}
    return {"input": list(texts), **({"model": model} if model else {})}


def read_embeddings(dialect: Dialect, data: Any, count: int) -> Rows:
    """The vectors of `count` texts. Raises BadAnswer."""
    if not isinstance(data, dict):
        raise BadAnswer(f"the answer is a JSON {type(data).__name__}, not an object")
    if dialect == "native":
        sparse = data.get("sparse_embeddings")
        return Rows(_matrix(data.get("dense_embeddings"), count), _sparse(sparse, count) if sparse else None)
    items = data.get("data")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadAnswer("the answer has no list under `data`")
    vectors = [_floats(item.get("embedding")) for item in items]
    if all("index" in item for item in items):
        order = _places([item["index"] for item in items], count, "vectors")
        vectors = [vectors[place] for place in order]
    usage, model = data.get("usage"), data.get("model")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Rows(
        _matrix(vectors, count),
        tokens=tokens if isinstance(tokens, int) else None,
        model=model if isinstance(model, str) and model else None,
    )


def _floats(value: Any) -> Any:
    """An embedding as numbers; base64 of little-endian float32 is decoded."""
    if not isinstance(value, str):
        return value
    try:
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
    except (binascii.Error, ValueError):
        raise BadAnswer("a vector is neither numbers nor base64 of float32") from None


def _matrix(rows: Any, count: int) -> NDArray[np.float32]:
    """[count, d], L2-normalised: rows that come otherwise are, those that come so are left as they are."""
    if not isinstance(rows, list):
        raise BadAnswer("the answer holds no vectors")
    if len(rows) != count:
        raise BadAnswer(f"{len(rows)} vectors came for {count} texts")
    try:
        with np.errstate(over="ignore"):
            dense = np.array(rows, dtype=np.float32)
    except (TypeError, ValueError):
        raise BadAnswer("the vectors are no rows of numbers of one length") from None
    if dense.ndim != 2 or dense.shape[1] == 0:
        raise BadAnswer("the vectors are no rows of numbers of one length")
    if not np.isfinite(dense).all():
        raise BadAnswer("a vector holds NaN or infinity", next_step="Run the server's model in fp32 or bf16.")
    norms = np.linalg.norm(dense, axis=1, keepdims=True)
    if not norms.all():
        raise BadAnswer("a vector is all zeros")
    return dense if np.abs(norms - 1.0).max() < NORM_TOLERANCE else dense / norms


def _sparse(rows: Any, count: int) -> tuple[Mapping[int, float], ...]:
    if not isinstance(rows, list) or len(rows) != count:
        raise BadAnswer(f"{len(rows) if isinstance(rows, list) else 'no'} sparse vectors came for {count} texts")
    try:
        weights = tuple({int(token): float(weight) for token, weight in row.items()} for row in rows)
    except (AttributeError, TypeError, ValueError):
        raise BadAnswer("a sparse vector is no object of token ids and weights") from None
    if not all(np.isfinite(list(row.values())).all() for row in weights):
        raise BadAnswer("a sparse weight is NaN or infinite")
    return weights


def _places(indices: Sequence[Any], count: int, what: str) -> list[int]:
    """Where each of `count` results stands in the answer, by the results' own indices. Raises BadAnswer."""
    if len(indices) != count:
        raise BadAnswer(f"{len(indices)} {what} came for {count} texts")
    if not all(isinstance(index, int) for index in indices) or sorted(indices) != list(range(count)):
        raise BadAnswer(f"the indices of the {what} are not 0 to {count - 1}, each once")
    return sorted(range(count), key=indices.__getitem__)


# 2) reranking


def rerank_body(dialect: Dialect, query: str, texts: Sequence[str], model: str | None, raw: bool) -> dict[str, Any]:
    """`raw`: the server is known to give scores without the sigmoid when asked; all scores are asked for, not the best."""
    if dialect == "tei":
        return {"query": query, "texts": list(texts), "raw_scores": True, "truncate": True}  # else it refuses long ones
    if dialect == "native":
        return {"query": query, "documents": list(texts), "top_k": len(texts), **({"raw_scores": True} if raw else {})}
    named = {"model": model} if model else {}
    return {**named, "query": query, "documents": list(texts), "top_n": len(texts), "return_documents": False}


def read_scores(dialect: Dialect, data: Any, count: int, raw: bool) -> NDArray[np.float32]:
    """Raw scores in the order of the texts sent, float32 [count]. Raises BadAnswer."""
    indices, scores = _native_pairs(data) if dialect == "native" else _listed_pairs(dialect, data)
    order = _places(indices, count, "scores")
    try:
        values = np.array([scores[place] for place in order], dtype=np.float64)
    except (TypeError, ValueError):
        raise BadAnswer("a score is no number") from None
    if values.ndim != 1 or not np.isfinite(values).all():
        raise BadAnswer("a score is NaN or infinite", next_step="Run the server's model in fp32 or bf16.")
    return (values if raw or dialect == "tei" else unactivated(values)).astype(np.float32)


def _native_pairs(data: Any) -> tuple[list[Any], list[Any]]:
    rankings, scores = (data.get("rankings"), data.get("scores")) if isinstance(data, dict) else (None, None)
    if not isinstance(rankings, list) or not isinstance(scores, list):
        raise BadAnswer("the answer has no lists `rankings` and `scores`")
    if len(rankings) != len(scores):
        raise BadAnswer(f"{len(scores)} scores came with {len(rankings)} rankings")
    return rankings, scores


def _listed_pairs(dialect: Dialect, data: Any) -> tuple[list[Any], list[Any]]:
    items = data.get("results") if dialect == "cohere" and isinstance(data, dict) else data
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadAnswer("the answer has no list of results")
    name = "relevance_score" if dialect == "cohere" else "score"
    return [item.get("index") for item in items], [item.get(name) for item in items]


def unactivated(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln(p / (1 - p)), the inverse of the sigmoid, where all scores are from 0 to 1; others are raw already.

    Monotone: the order of candidates stays, ties included. 0 and 1 become -34.5 and 34.5.
    """
    if ((values < 0) | (values > 1)).any():
        return values
    inside = np.clip(values, SCORE_EDGE, 1 - SCORE_EDGE)
    return np.asarray(np.log(inside) - np.log1p(-inside))
