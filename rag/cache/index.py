"""Where the vectors of cached questions are searched: in this process's memory, rebuilt from the answers' store.

For an embedded store this is the index. Milvus Lite 3.2 takes about 11 ms for a dense and 22 ms for a BM25 search over 10,000
questions, more than a look-up may cost; this takes under a millisecond for both. `rag/cache/milvus_index.py` is its
counterpart for Milvus servers. Knows nothing of answers or thresholds.
"""

from __future__ import annotations

import math
import re
import threading
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rag.cache.normalise import exact

RRF_K = 60  # Cormack, Clarke & Büttcher 2009
BM25_K1, BM25_B = 1.2, 0.75  # Robertson & Zaragoza 2009
_WORD = re.compile(r"\w+")


class Row(NamedTuple):
    """One cached question to be found again; `vector` float32 [d], L2-normalised."""

    id: str
    scope: str
    question: str
    vector: NDArray[np.float32]
    created_at_unix: float = 0.0


class Near(NamedTuple):
    """A cached question near the asked one, with both raw scores; None where a route does not know it."""

    id: str
    question: str
    dense: float | None
    sparse: float | None


class QuestionIndex(Protocol):
    """Cached questions by scope. Thread-safe; raises RagError where it is a server that is away."""

    name: str

    def add(self, rows: Iterable[Row]) -> None: ...

    def remove(self, ids: Iterable[str]) -> None: ...

    def clear(self) -> None: ...

    def search(self, scope: str, vector: NDArray[np.float32], question: str, limit: int) -> list[Near]:
        """The nearest by dense and by sparse search, `limit` a route, in order of reciprocal rank fusion."""
        ...

    def count(self) -> int: ...


class MemoryIndex:
    """Exact cosine and BM25 over all questions of a scope."""

    name = "memory"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scopes: dict[str, _Scope] = {}

    def add(self, rows: Iterable[Row]) -> None:
        with self._lock:
            for row in rows:
                scope = self._scopes.get(row.scope)
                if scope is None:
                    scope = self._scopes[row.scope] = _Scope(len(row.vector))
                if len(row.vector) == scope.dimension:
                    scope.add(row)

    def remove(self, ids: Iterable[str]) -> None:
        with self._lock:
            for key in ids:
                scope = self._scopes.get(key[:16])
                if scope is not None:
                    scope.remove(key)
                    if not scope.slots:
                        del self._scopes[key[:16]]

    def clear(self) -> None:
        with self._lock:
            self._scopes.clear()

    def count(self) -> int:
        with self._lock:
            return sum(len(scope.slots) for scope in self._scopes.values())

    def search(self, scope: str, vector: NDArray[np.float32], question: str, limit: int) -> list[Near]:
        with self._lock:
            found = self._scopes.get(scope)
            return [] if found is None or len(vector) != found.dimension else found.search(vector, question, limit)


class _Scope:
    """Vectors in one growing array, postings by word; the slot of a removed question is used again."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.slots: dict[str, int] = {}
        self._ids: list[str] = []
        self._questions: list[str] = []
        self._words: list[Counter[str]] = []
        self._vectors = np.zeros((64, dimension), dtype=np.float32)
        self._lengths = np.zeros(64, dtype=np.float32)
        self._free: list[int] = []
        self._postings: dict[str, array[int]] = {}

    def add(self, row: Row) -> None:
        self.remove(row.id)
        words = Counter(_words(row.question))
        slot = self._free.pop() if self._free else self._new_slot()
        self.slots[row.id] = slot
        self._ids[slot], self._questions[slot], self._words[slot] = row.id, row.question, words
        self._vectors[slot] = row.vector
        self._lengths[slot] = sum(words.values())
        for word in words:
            self._postings.setdefault(word, array("i")).append(slot)

    def _new_slot(self) -> int:
        slot = len(self._ids)
        if slot == len(self._vectors):
            self._vectors = np.vstack([self._vectors, np.zeros_like(self._vectors)])
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self._ids.append("")
        self._questions.append("")
        self._words.append(Counter())
        return slot

    def remove(self, key: str) -> None:
        slot = self.slots.pop(key, None)
        if slot is None:
            return
        for word in self._words[slot]:
            self._postings[word].remove(slot)
            if not self._postings[word]:
                del self._postings[word]
        self._vectors[slot] = 0.0
        self._lengths[slot] = 0.0
        self._free.append(slot)

    def search(self, vector: NDArray[np.float32], question: str, limit: int) -> list[Near]:
        if not self.slots:
            return []
        used = len(self._ids)
        dense = self._vectors[:used] @ vector
        sparse = self._bm25(question, used)
        alive = np.ones(used, dtype=bool)
        alive[self._free] = False
        by_dense = _best(np.where(alive, dense, -np.inf), limit)
        by_sparse = [slot for slot in _best(np.where(alive, sparse, -np.inf), limit) if sparse[slot] > 0]
        return [
            Near(self._ids[slot], self._questions[slot], float(dense[slot]), float(sparse[slot]))
            for slot in fused(by_dense, by_sparse)
        ]

    def _bm25(self, question: str, used: int) -> NDArray[np.float32]:
        """BM25 of every question, each of its words counted once: questions hardly repeat any."""
        scores = np.zeros(used, dtype=np.float32)
        count = len(self.slots)
        mean = float(self._lengths[:used].sum()) / count or 1.0
        saturation = (BM25_K1 + 1) / (1 + BM25_K1 * (1 - BM25_B + BM25_B * self._lengths[:used] / mean))
        for word in set(_words(question)):
            postings = self._postings.get(word)
            if postings:
                where = np.frombuffer(postings, dtype=np.int32)
                scores[where] += math.log(1 + (count - len(where) + 0.5) / (len(where) + 0.5)) * saturation[where]
        return scores


def fused(*rankings: Sequence[int]) -> list[int]:
    """Reciprocal rank fusion, for order alone: its scores are ranks in disguise and say nothing of likeness."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (RRF_K + rank)
    return sorted(scores, key=lambda item: -scores[item])


def _best(scores: NDArray[np.float32], limit: int) -> list[int]:
    top = np.argpartition(-scores, limit - 1)[:limit] if len(scores) > limit else np.arange(len(scores))
    return [int(slot) for slot in top[np.argsort(-scores[top], kind="stable")] if scores[slot] > -np.inf]


def _words(text: str) -> list[str]:
    return _WORD.findall(exact(text))
