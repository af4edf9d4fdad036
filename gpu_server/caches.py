"""Caches in front of any embedder and reranker: query embeddings in memory, rerank scores in a store. Knows nothing of HTTP.

`CachedEmbedder` and `CachedReranker` are an `Embedder` and a `Reranker` themselves, and offer `begin` where the wrapped one
does. What is kept belongs to the model's identity and precision: after a reload with another model nothing of the old one is
found. Who the model is is asked only after it has answered once, because asking may load it, and a load is the model's call's
to time. `caches`: "use" looks up and keeps, "refresh" computes and keeps, "bypass" does neither.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from gpu_server.flights import Call, Flight, KeptVectors, Key, Placed, Round, entries_of, longest, wait_for, waited
from gpu_server.futures import attempt, cancel_with, fail, finished, follow, settle, started, when_all
from gpu_server.interfaces import (
    DENSE_AND_SPARSE,
    CacheMode,
    Embedder,
    Embeddings,
    ModelInfo,
    RerankCandidate,
    Reranker,
    Scores,
    TextKind,
    Timing,
    VectorKind,
    identity_of,
    info_at_once,
)
from gpu_server.score_stores import ScoreStore, StoredScore, StoreName

MAX_ENTRIES = 4096
MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Texts or pairs answered from the cache and computed, of those that were looked up; what the store holds, where known."""

    hits: int
    misses: int
    entries: int | None
    bytes: int | None
    evictions: int | None
    store: StoreName
    problem: str | None = None

    @property
    def hit_ratio(self) -> float | None:
        """0..1, None while nothing was looked up."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


class _Counted:
    """Hits and misses, counted by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def add(self, *, hits: int, misses: int) -> None:
        with self._lock:
            self._hits += hits
            self._misses += misses

    def both(self) -> tuple[int, int]:
        with self._lock:
            return self._hits, self._misses


class _Identity:
    """Who a model is: name, weights and precision; None while it has not answered yet, or cannot be asked."""

    def __init__(self, inner: Embedder | Reranker) -> None:
        self._inner = inner
        self.answered = False

    def known(self) -> str | None:
        return self.learn() if self.answered else None

    def learn(self) -> str | None:
        """To be called after the model answered: its weights are there, and asking is cheap."""
        self.answered = True
        try:
            info = self._inner.info
        except Exception:  # the answer came all the same: it is served, and nothing is kept
            return None
        return f"{info.identity}\n{info.precision}"


class CachedEmbedder:
    """Keeps the vectors of queries and of single texts, least recently used out first; bulk passages pass through.

    Equal texts at the same moment are computed once: the others wait for the first. Its error is theirs too, but for its
    deadline and its cancelling, which make them ask again. Which texts of a batch were cut is not said: the longest are taken
    for them, so `truncated` of texts cached out of such a batch and asked for apart is an estimate.
    """

    def __init__(self, inner: Embedder, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._inner = inner
        self._begin: Callable[..., Future[Embeddings]] | None = getattr(inner, "begin", None)
        self._identity = _Identity(inner)
        self._kept = KeptVectors(max_entries, max_bytes)
        self._counted = _Counted()

    @property
    def info(self) -> ModelInfo:
        return self._inner.info

    @property
    def info_at_once(self) -> bool:
        return info_at_once(self._inner)

    @property
    def stats(self) -> CacheStats:
        entries, size_bytes, evictions = self._kept.size()
        return CacheStats(*self._counted.both(), entries, size_bytes, evictions, store="memory")

    def count_tokens(self, text: str) -> int:
        return self._inner.count_tokens(text)

    def embed(
        self,
        texts: Sequence[str],
        kind: TextKind = "passage",
        *,
        vectors: frozenset[VectorKind] = DENSE_AND_SPARSE,
        priority: int = 0,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Embeddings:
        """As `Embedder.embed`. `tokens` and the timing are those of what was computed; a wait for others is `queue` or `load`."""

        def ask(asked: Sequence[str]) -> Embeddings:
            result = self._inner.embed(asked, kind, vectors=vectors, priority=priority, deadline=deadline, caches=caches)
            self._identity.answered = True
            return result

        if not _is_kept(texts, kind, caches):
            return ask(texts)
        call = Call(texts, kind, vectors, priority, deadline, caches)
        while this := self._round(call, waits=True):
            if this.placed.lead:
                self._land(call, this, attempt(partial(ask, list(this.placed.lead))))
            if this.error is None:
                wait_for(this.placed.joined.values(), deadline)
            self._take(call, this)
        return self._answer(call)

    def begin(
        self,
        texts: Sequence[str],
        kind: TextKind = "passage",
        *,
        vectors: frozenset[VectorKind] = DENSE_AND_SPARSE,
        priority: int = 0,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Future[Embeddings]:
        """`embed` as a future, finished already on a full hit; errors come with it. Waits for nothing: fit for an event loop.

        Cancelling it cancels the model's. Raises TypeError where the wrapped embedder has no `begin`.
        """
        if self._begin is None:
            raise TypeError(f"{type(self._inner).__name__} has no begin: call embed")
        call = Call(texts, kind, vectors, priority, deadline, caches)
        if not _is_kept(texts, kind, caches):
            return started(partial(self._ask, call, texts))
        outer: Future[Embeddings] = Future()
        self._pursue(call, outer)
        return outer

    def _pursue(self, call: Call, outer: Future[Embeddings]) -> None:
        """`embed` in callbacks: a round, the next one when all of it has landed, the answer when nothing is missing."""
        this = self._round(call, waits=False)
        if this is None:
            settle(outer, self._answer(call))
            return
        lead, joined = this.placed.lead, this.placed.joined
        if lead:
            future = started(partial(self._ask, call, list(lead)))
            cancel_with(outer, future)
            future.add_done_callback(partial(self._land, call, this))
        when_all([flight.landed for flight in (*lead.values(), *joined.values())], partial(self._proceed, call, this, outer))

    def _ask(self, call: Call, texts: Sequence[str]) -> Future[Embeddings]:
        assert self._begin is not None  # `begin` has looked
        return self._begin(texts, call.kind, vectors=call.vectors, priority=call.priority, deadline=call.deadline)

    def _proceed(self, call: Call, this: Round, outer: Future[Embeddings]) -> None:
        if outer.cancelled():
            return
        try:
            self._take(call, this)
            self._pursue(call, outer)
        except BaseException as problem:
            fail(outer, problem)

    def _round(self, call: Call, *, waits: bool) -> Round | None:
        """Find what the call misses, or who computes it; None when it misses nothing."""
        texts = dict.fromkeys(call.texts)
        if all(text in call.rows for text in texts):
            return None
        identity = self._identity.known()
        if identity != call.identity:  # the rows are another model's
            call.identity = identity
            call.rows.clear()
        keys: dict[str, Key] = {
            text: (identity, call.kind, call.vectors, hashlib.sha256(_bytes(text)).digest())
            for text in texts
            if text not in call.rows
        }
        if call.caches == "use":
            placed = self._kept.place(keys, call.deadline, waits=waits)
        else:
            placed = Placed(lead={text: Flight(key, call.deadline) for text, key in keys.items()})
        call.rows.update(placed.found)
        return Round(identity, placed)

    def _land(self, call: Call, this: Round, done: Future[Embeddings]) -> None:
        """Keep what the model computed for this call and tell those who wait for it, whatever happens: none may wait for ever."""
        lead = this.placed.lead
        try:
            self._keep(call, this, done.result())
        except BaseException as problem:
            this.error = problem
            self._kept.fail(lead, problem)
        else:
            self._kept.land(lead, this.computed if this.shared else {}, this.timing)

    def _keep(self, call: Call, this: Round, result: Embeddings) -> None:
        lead = this.placed.lead
        this.computed = entries_of(list(lead), result)
        this.timing = result.timing
        call.own.update(lead)
        call.timings.append(result.timing)
        call.tokens += result.tokens
        call.cached_there += result.cached
        identity = self._identity.learn()
        this.shared = this.identity in (None, identity)
        if this.shared and identity is not None:
            self._kept.keep(lead, this.computed, identity)

    def _take(self, call: Call, this: Round) -> None:
        """What has landed into the call's rows. Raises the error of what this call computed or waited for."""
        joined, this.placed = this.placed.joined, Placed()  # flights' callbacks hold the round: no ring of both
        if this.error is not None:
            raise this.error
        landed = {text: flight.landed.result() for text, flight in joined.items()}
        others = {text: found for text, found in landed.items() if found is not None}
        if this.shared or not (call.rows or others):  # else of two models: the next round asks the newer one for all
            call.rows.update(this.computed)
        call.rows.update((text, entry) for text, (entry, _) in others.items())
        if landed:
            call.timings.append(waited(this, [timing for _, timing in others.values()]))

    def _answer(self, call: Call) -> Embeddings:
        rows = [call.rows[text] for text in call.texts]
        cached = sum(text not in call.own for text in call.texts)
        if call.caches == "use":
            self._counted.add(hits=cached, misses=len(rows) - cached)
        sparse = [dict(row.vectors.sparse) for row in rows if row.vectors.sparse is not None]
        late = [row.vectors.late for row in rows if row.vectors.late is not None]
        return Embeddings(
            dense=np.stack([row.vectors.dense for row in rows]),
            sparse=tuple(sparse) if len(sparse) == len(rows) else None,
            timing=Timing.total(call.timings),
            tokens=call.tokens,
            truncated=sum(row.truncated for row in rows),
            late=tuple(late) if len(late) == len(rows) else None,
            cached=cached + call.cached_there,
        )


class CachedReranker:
    """Keeps the raw score of each pair of query and passage; only pairs that the store has not got are scored.

    Which pairs of a batch were cut is not said: the longest passages are taken for them, as in `CachedEmbedder`.
    """

    uses_route_scores = False

    def __init__(self, inner: Reranker, store: ScoreStore) -> None:
        """Raises ValueError for a reranker whose scores depend on more than the pair's texts."""
        if inner.uses_route_scores:
            raise ValueError("a reranker that uses route scores cannot be cached: its scores depend on all the candidates")
        self._inner = inner
        self._begin: Callable[..., Future[Scores]] | None = getattr(inner, "begin", None)
        self._store = store
        self._identity = _Identity(inner)
        self._counted = _Counted()

    @property
    def info(self) -> ModelInfo:
        return self._inner.info

    def identify(self) -> str:
        return identity_of(self._inner)

    @property
    def stats(self) -> CacheStats:
        state = self._store.state
        return CacheStats(
            *self._counted.both(), state.entries, state.bytes, state.evictions, store=state.store, problem=state.problem
        )

    def score(
        self,
        query: str,
        candidates: Sequence[RerankCandidate],
        *,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Scores:
        """As `Reranker.score`. `tokens` and the timing are those of the pairs that were scored now."""

        def ask(asked: Sequence[RerankCandidate]) -> Scores:
            result = self._inner.score(query, asked, deadline=deadline, caches=caches)
            self._identity.answered = True
            return result

        if not candidates or caches == "bypass":
            return ask(candidates)
        pairs = _Pairs(query, candidates, caches, self._identity.known())
        pairs.found = self._find(pairs).result()
        if not pairs.missing:
            return self._answer(pairs, None)
        scores = ask(pairs.missing)
        return self._answer(pairs, scores) if self._keep(pairs, scores) else ask(candidates)

    def begin(
        self,
        query: str,
        candidates: Sequence[RerankCandidate],
        *,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Future[Scores]:
        """`score` as a future; errors come with it. Waits for nothing, Redis included: fit for an event loop.

        Cancelling it cancels the model's. Raises TypeError where the wrapped reranker has no `begin`.
        """
        begin = self._begin
        if begin is None:
            raise TypeError(f"{type(self._inner).__name__} has no begin: call score")
        if not candidates or caches == "bypass":
            return started(partial(begin, query, candidates, deadline=deadline))
        pairs = _Pairs(query, candidates, caches, self._identity.known())
        outer: Future[Scores] = Future()

        def found(scores: list[StoredScore | None]) -> None:
            pairs.found = scores
            if pairs.missing:
                follow(outer, begin(query, pairs.missing, deadline=deadline), scored)
            else:
                settle(outer, self._answer(pairs, None))

        def scored(scores: Scores) -> None:
            if self._keep(pairs, scores):
                settle(outer, self._answer(pairs, scores))
            else:
                follow(outer, begin(query, candidates, deadline=deadline), partial(settle, outer))

        follow(outer, self._find(pairs), found)
        return outer

    def _find(self, pairs: _Pairs) -> Future[list[StoredScore | None]]:
        if pairs.caches == "use" and pairs.identity is not None:
            pairs.keys = _pair_keys(pairs, pairs.identity)
            return self._store.find(pairs.keys)
        return finished([None] * len(pairs.candidates))

    def _keep(self, pairs: _Pairs, scores: Scores) -> bool:
        """Keep the new scores. False where they are another model's than those found, so that the two must not be mixed."""
        identity = self._identity.learn()
        if pairs.identity not in (None, identity):
            return len(pairs.missing) == len(pairs.candidates)
        if identity is not None:
            keys = pairs.keys or _pair_keys(pairs, identity)
            missing = [key for key, score in zip(keys, pairs.found, strict=True) if score is None]
            cut = longest([item.text for item in pairs.missing], scores.truncated)
            fresh = [StoredScore(value, index in cut) for index, value in enumerate(scores.values.tolist())]
            kept = zip(missing, fresh, strict=True)
            self._store.keep({key: score for key, score in kept if math.isfinite(score.value)})
        return True

    def _answer(self, pairs: _Pairs, scores: Scores | None) -> Scores:
        known = [score for score in pairs.found if score is not None]
        if pairs.caches == "use":
            self._counted.add(hits=len(known), misses=len(pairs.missing))
        if scores is None:
            scores = Scores(np.empty(0, dtype=np.float32), Timing())
        computed = iter(scores.values.tolist())
        values = [next(computed) if score is None else score.value for score in pairs.found]
        return Scores(
            values=np.array(values, dtype=np.float32),
            timing=scores.timing,
            truncated=scores.truncated + sum(score.truncated for score in known),
            tokens=scores.tokens,
            cached=scores.cached + len(known),
        )


@dataclass(slots=True)
class _Pairs:
    """A query with its candidates, and what the store had of them."""

    query: str
    candidates: Sequence[RerankCandidate]
    caches: CacheMode
    identity: str | None
    found: list[StoredScore | None] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    @property
    def missing(self) -> list[RerankCandidate]:
        return [item for item, score in zip(self.candidates, self.found, strict=True) if score is None]


def _pair_keys(pairs: _Pairs, identity: str) -> list[bytes]:
    """SHA-256 over model, query and passage; the first two behind their lengths, so that no two cases read alike."""
    head = hashlib.sha256()
    for part in (identity, pairs.query):
        data = _bytes(part)
        head.update(len(data).to_bytes(8, "big") + data)
    keys = []
    for item in pairs.candidates:
        key = head.copy()
        key.update(_bytes(item.text))
        keys.append(key.digest())
    return keys


def _is_kept(texts: Sequence[str], kind: TextKind, caches: CacheMode) -> bool:
    return caches != "bypass" and len(texts) > 0 and (kind == "query" or len(texts) == 1)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a lone surrogate is a text like any other here
