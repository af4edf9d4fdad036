"""Vectors of cached questions in a Milvus collection of their own beside the passages: for servers that several processes share.

Speaks to Milvus through the passage store alone, and uses its collection layout: a cached question is a row whose document is
its scope. Knows nothing of answers. Its calls take one round trip, two where a route has to be completed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import ModelInfo
from rag.cache.index import Near, Row, fused
from rag.cache.normalise import exact
from rag.milvus_terms import MAX_NAME_BYTES, cut, literal
from rag.store import Store
from rag.types import PassageRow

BASE = "cached_questions"
FLUSH_ROWS = 64
TIMEOUT_SECONDS = 2.0


class MilvusIndex:
    """As `QuestionIndex`, for one embedder. Raises RagError where Milvus is away."""

    name = "milvus"

    def __init__(self, store: Store, embedder: Callable[[], ModelInfo], *, timeout: float = TIMEOUT_SECONDS) -> None:
        """`embedder` is asked when the index is: a remote model may not be known before. It raises RagError."""
        self._store, self._timeout, self._embedder = store, timeout, embedder

    def _collection(self) -> str:
        info = replace(self._embedder(), learned_sparse=False)  # questions are searched by BM25, whatever the passages are
        return self._store.use(info, BASE)

    def add(self, rows: Iterable[Row]) -> None:
        name, rest = self._collection(), iter(rows)
        while batch := list(islice(rest, 256)):
            passages = [
                PassageRow(row.id, row.scope, "", 1, cut(row.question, MAX_NAME_BYTES), "", f"{row.created_at_unix}")
                for row in batch
            ]
            self._store.write_rows(name, passages, np.stack([row.vector for row in batch]), None)
        if self._store.unflushed(name) >= FLUSH_ROWS and self._store.embedded:
            self._store.flush(name)

    def remove(self, ids: Iterable[str]) -> None:
        wanted = list(ids)
        if wanted:
            name = self._collection()
            with self._store.mapped("remove cached questions"):
                self._store.client.delete(name, filter=f"id in {literal(wanted)}", timeout=self._timeout)

    def clear(self) -> None:
        self._store.drop(self._collection())

    def count(self) -> int:
        return self._store.count(self._collection())

    def search(self, scope: str, vector: NDArray[np.float32], question: str, limit: int) -> list[Near]:
        name, words = self._collection(), exact(question)
        within = f"document_id == {literal(scope)}"
        store = self._store
        with store.mapped("search the cached questions"):
            both: Any = store.both(
                lambda: self._ask(name, "dense", vector.tolist(), limit, within),
                lambda: self._ask(name, "sparse", words, limit, within) if any(map(str.isalnum, words)) else {},
            )
            dense, sparse = both
            missing = [key for key in sparse if key not in dense]
            if missing:
                more = self._ask(name, "dense", vector.tolist(), len(missing), f"id in {literal(missing)}")
                known = {**more, **dense}
            else:
                known = dense
        keys = [*dense, *missing]
        order = fused([keys.index(key) for key in dense], [keys.index(key) for key in sparse])
        return [
            Near(key, (known.get(key) or sparse[key])[1], known[key][0] if key in known else None, _sparse(sparse, key))
            for key in (keys[place] for place in order)
        ]

    def _ask(self, name: str, field: str, data: Any, limit: int, within: str) -> Any:
        """Score and text by id, best first."""
        rows = self._store.client.search(
            name, data=[data], anns_field=field, limit=limit, filter=within, output_fields=["text"], timeout=self._timeout
        )[0]
        return {str(row["id"]): (float(row["distance"]), str(row["entity"]["text"])) for row in rows}


def _sparse(found: dict[str, tuple[float, str]], key: str) -> float | None:
    """Milvus Lite 3.2 gives BM25 as a negative distance, the server as a positive score."""
    return abs(found[key][0]) if key in found else None
