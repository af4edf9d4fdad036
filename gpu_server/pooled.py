"""What callers hold of the pool: embedder, reranker and language model, with load, queue and cold filled in.

Texts are tokenised in the caller's thread and computed by the model's batcher. Caches are not known here: `CachedEmbedder`
and `CachedReranker` stand before these, and the argument `caches` is ignored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gpu_server import futures
from gpu_server.batch_queue import ShuttingDown
from gpu_server.batcher import Forward
from gpu_server.errors import BadInput, ForwardFailed
from gpu_server.interfaces import (
    DENSE_AND_SPARSE,
    CacheMode,
    ChatModel,
    ChatRequest,
    Delta,
    EmbeddingModel,
    Embeddings,
    Encoded,
    ModelInfo,
    RerankCandidate,
    Reranker,
    RerankModel,
    Scores,
    TextKind,
    Timing,
    VectorKind,
    Vectors,
)
from gpu_server.slot import Slot, Visit
from gpu_server.tickets import Outcome, Ticket

FEW_TEXTS = 4  # a request of so few is urgent whatever its kind
PROOF_SECONDS = 60.0  # for a few tokens of a language model on a slow CPU
MANY_TEXTS = 64  # one of more is bulk whatever its kind: nobody waits for it before a screen, and others may

M = TypeVar("M")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Sent(Generic[R]):
    """A request in the batcher."""

    visit: Visit[Any]
    encoded: list[Encoded]
    tokenize: float
    ticket: Ticket[R]

    def timing(self, outcome: Outcome[R]) -> Timing:
        return Timing(self.visit.load, outcome.queue, self.tokenize, outcome.compute, cold=self.visit.cold)

    @property
    def tokens(self) -> int:
        return sum(len(item.ids) for item in self.encoded)

    @property
    def truncated(self) -> int:
        return sum(item.truncated for item in self.encoded)


@dataclass(frozen=True, slots=True)
class _Request(Generic[M, R]):
    """What a call wants of a batched model: its texts as token ids, and how they are to be served."""

    slot: Slot[M]
    encode: Callable[[M], list[Encoded]]
    vectors: frozenset[VectorKind]
    priority: int
    deadline: float | None

    def run(self, visit: Visit[M]) -> tuple[_Sent[R], Outcome[R]]:
        """Wait for the queue and for the outcome."""
        sent = self._send_to_whichever(visit)
        try:
            outcome = sent.ticket.wait()
        except Exception as problem:
            self.slot.failed(problem)
            raise
        self._ran(sent, outcome)
        return sent, outcome

    def _send_to_whichever(self, visit: Visit[M]) -> _Sent[R]:
        while True:
            try:
                return self._send(visit)
            except ShuttingDown:
                if self.slot.holds(visit.loaded):
                    raise
                visit = self.slot.visit(self.deadline)  # it was loaded anew in this very moment

    def begin(self, visit: Visit[M] | None, answer: Callable[[_Sent[R], Outcome[R]], T], blocking: Callable[[], T]) -> Future[T]:
        """`answer` in the future; waits for nothing. `blocking` is the same call, for a model that is not loaded now."""
        if visit is None:
            return self.slot.aside(blocking)
        try:
            sent = self._send(visit)
        except ShuttingDown:
            if self.slot.holds(visit.loaded):
                raise
            return self.slot.aside(blocking)
        outer: Future[T] = Future()

        def landed(outcome: Outcome[R]) -> None:
            self._ran(sent, outcome)
            futures.settle(outer, answer(sent, outcome))

        sent.ticket.add_done_callback(self._note_failure)
        futures.follow(outer, sent.ticket, landed)
        return outer

    def _send(self, visit: Visit[M]) -> _Sent[R]:
        started = time.perf_counter()
        try:
            encoded = self.encode(visit.loaded.model)
            tokenized = time.perf_counter()
            assert visit.loaded.batcher is not None
            ticket = visit.loaded.batcher.submit(encoded, wanted=self.vectors, priority=self.priority, deadline=self.deadline)
        except Exception as problem:
            self.slot.failed(problem)
            raise
        return _Sent(visit, encoded, tokenized - started, ticket)

    def _note_failure(self, ticket: Future[Outcome[R]]) -> None:
        problem = None if ticket.cancelled() else ticket.exception()
        if problem is not None:
            self.slot.failed(problem)

    def _ran(self, sent: _Sent[R], outcome: Outcome[R]) -> None:
        self.slot.ran(sent.tokenize + outcome.compute)

    def prove(self, visit: Visit[M]) -> float:
        """One pass on each device, before all that waits; seconds until the last answer."""
        started = time.perf_counter()
        try:
            assert visit.loaded.batcher is not None
            tickets = visit.loaded.batcher.submit_to_each(
                self.encode(visit.loaded.model), wanted=self.vectors, deadline=self.deadline
            )
            for ticket in tickets:
                ticket.wait()
        except Exception as problem:
            self.slot.failed(problem)
            raise
        seconds = time.perf_counter() - started
        self.slot.ran(seconds)
        return seconds


class PooledEmbedder:
    """The pool's embedder. Thread-safe; `begin` is `embed` without a thread that waits."""

    def __init__(self, slot: Slot[EmbeddingModel]) -> None:
        self.slot = slot

    @property
    def info(self) -> ModelInfo:
        """Loads the model: who asks wants its dimension or identity."""
        return self.slot.loaded().model.info

    @property
    def info_at_once(self) -> bool:
        return self.slot.glance() is not None

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
        """As `Embedder.embed`; loads the model where it is not. Raises BadInput for no texts, and what the load raises."""
        request = self._request(texts, kind, vectors, priority, deadline)
        sent, outcome = request.run(self.slot.visit(deadline))
        return _embeddings(vectors, sent, outcome)

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
        """`embed` as a future: tokenises here and now, waits for nothing. Cancelling it drops the texts that wait.

        Its callbacks run on the model's worker. A model that is not loaded is waited for on a thread of the pool's, where
        cancelling ends nothing. Raises Overloaded and BadInput at once, the rest comes with the future.
        """
        request = self._request(texts, kind, vectors, priority, deadline)
        blocking = partial(self.embed, texts, kind, vectors=vectors, priority=priority, deadline=deadline)
        return request.begin(self.slot.glance(), partial(_embeddings, vectors), blocking)

    def _request(
        self, texts: Sequence[str], kind: TextKind, vectors: frozenset[VectorKind], priority: int, deadline: float | None
    ) -> _Request[EmbeddingModel, Vectors]:
        if not texts:
            raise BadInput("no texts to embed", next_step="Send at least one.")

        def encode(model: EmbeddingModel) -> list[Encoded]:
            return model.encode(texts, kind)

        return _Request(self.slot, encode, vectors, _lane(len(texts), kind, priority), deadline)

    def count_tokens(self, text: str) -> int:
        return self.slot.loaded().model.count_tokens(text)

    def prove(self, deadline: float | None = None) -> float:
        """One pass on each device, before all that waits; seconds. Raises what is wrong."""
        request = self._request(["Does it answer?"], "query", DENSE_AND_SPARSE, 0, deadline)
        return request.prove(self.slot.visit(deadline))


class PooledReranker:
    """The pool's reranker. Thread-safe. One without a `forward` is called directly, one caller at a time."""

    def __init__(
        self,
        slot: Slot[RerankModel | Reranker],
        uses_route_scores: bool,
        identity: Callable[[], str | None] | None = None,
    ) -> None:
        self.slot = slot
        self.uses_route_scores = uses_route_scores
        self._identity = identity

    @property
    def info(self) -> ModelInfo:
        return self.slot.info

    def identify(self) -> str:
        told = self._identity() if self._identity is not None and self.slot.glance() is None else None
        return told or self.slot.info.identity

    def score(
        self,
        query: str,
        candidates: Sequence[RerankCandidate],
        *,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Scores:
        """As `Reranker.score`: raw scores, no sigmoid. Raises what the load raises, too."""
        if not candidates:
            return Scores(np.empty(0, dtype=np.float32), Timing())
        visit = self.slot.visit(deadline)
        if visit.loaded.batcher is None:
            return self._turn(visit, query, candidates, deadline)
        return _scores(*self._request(query, candidates, deadline).run(visit))

    def begin(
        self,
        query: str,
        candidates: Sequence[RerankCandidate],
        *,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Future[Scores]:
        """`score` as a future, as `PooledEmbedder.begin`; a model that is called directly runs on a thread of the pool's."""
        if not candidates:
            return futures.finished(Scores(np.empty(0, dtype=np.float32), Timing()))
        blocking = partial(self.score, query, candidates, deadline=deadline)
        visit = self.slot.glance()
        if visit is not None and visit.loaded.batcher is None:
            return self.slot.aside(blocking)
        return self._request(query, candidates, deadline).begin(visit, _scores, blocking)

    def _turn(
        self, visit: Visit[RerankModel | Reranker], query: str, candidates: Sequence[RerankCandidate], deadline: float | None
    ) -> Scores:
        with self.slot.turn(visit, deadline) as turn:
            result = cast(Reranker, turn.model).score(query, candidates, deadline=deadline)
        return replace(result, timing=turn.timing(result.timing))

    def _request(
        self, query: str, candidates: Sequence[RerankCandidate], deadline: float | None
    ) -> _Request[RerankModel | Reranker, np.float32]:
        texts = [candidate.text for candidate in candidates]

        def encode(model: RerankModel | Reranker) -> list[Encoded]:
            return cast(RerankModel, model).encode(query, texts)

        return _Request(self.slot, encode, frozenset(), _lane(len(texts), "query", 0), deadline)

    def prove(self, deadline: float | None = None) -> float:
        """One pass on each device; seconds. Raises what is wrong."""
        candidates = [RerankCandidate("It does.", 0.5, 1.0), RerankCandidate("No.", 0.1, 0.0)]
        visit = self.slot.visit(deadline)
        if visit.loaded.batcher is not None:
            return self._request("Does it answer?", candidates, deadline).prove(visit)
        started = time.perf_counter()
        self._turn(visit, "Does it answer?", candidates, deadline)
        return time.perf_counter() - started


class PooledChatModel:
    """The pool's in-process language model; a stream is the only one until it ends or is closed."""

    def __init__(self, slot: Slot[ChatModel]) -> None:
        self.slot = slot

    @property
    def info(self) -> ModelInfo:
        return self.slot.info

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        deadline = time.monotonic() + request.timeout
        with self.slot.turn(self.slot.visit(deadline), deadline) as turn:
            for delta in turn.model.stream(request):
                yield replace(delta, timing=turn.timing(delta.timing)) if delta.timing else delta

    def prove(self, deadline: float | None = None) -> float:
        """A few tokens of an answer; seconds. Raises what is wrong."""
        self.slot.visit(deadline)
        started = time.perf_counter()
        seconds = PROOF_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        message = {"role": "user", "content": "Say: warm"}
        for _ in self.stream(ChatRequest((message,), max_tokens=4, temperature=0.0, thinking=False, timeout=seconds)):
            continue
        return time.perf_counter() - started


def embedding_forward(model: EmbeddingModel) -> Forward[Vectors]:
    """The model's pass for a batcher: always with the dense vector, and vectors with NaN or infinity told apart."""

    def forward(batch: Sequence[Encoded], vectors: frozenset[VectorKind]) -> list[Vectors | ForwardFailed]:
        return [row if _is_finite(row) else _not_finite() for row in model.forward(batch, vectors | {"dense"})]

    return forward


def rerank_forward(model: RerankModel | Reranker) -> Forward[np.float32] | None:
    """The model's pass for a batcher; None for one that is no model of token ids."""
    run: Callable[[Sequence[Encoded]], NDArray[np.float32]] | None = getattr(model, "forward", None)
    if run is None:
        return None

    def forward(batch: Sequence[Encoded], _: frozenset[VectorKind]) -> list[np.float32 | ForwardFailed]:
        return [value if math.isfinite(value) else _not_finite() for value in run(batch)]

    return forward


def _is_finite(row: Vectors) -> bool:
    """By sums, which NaN and infinity survive: a tenth of the time that looking at every number takes."""
    sums = [float(row.dense.dot(row.dense)), sum(row.sparse.values()) if row.sparse else 0.0]
    if row.late is not None:
        sums.append(float(np.vdot(row.late, row.late)))
    return math.isfinite(sum(sums))


def _not_finite() -> ForwardFailed:
    return ForwardFailed("the result holds NaN or infinity", next_step="Try fp32.")


def _lane(texts: int, kind: TextKind, priority: int) -> int:
    """The batcher's priority of a request."""
    if texts > MANY_TEXTS:
        return 0
    return max(priority, 1) if kind == "query" or texts <= FEW_TEXTS else max(priority, 0)


def _embeddings(vectors: frozenset[VectorKind], sent: _Sent[Vectors], outcome: Outcome[Vectors]) -> Embeddings:
    """What was asked for; a batch is computed for all its requests' wishes together."""
    rows = outcome.results
    sparse = [row.sparse for row in rows if row.sparse is not None] if "sparse" in vectors else []
    late = [row.late for row in rows if row.late is not None] if "late" in vectors else []
    return Embeddings(
        dense=np.stack([row.dense for row in rows]),
        sparse=tuple(sparse) if len(sparse) == len(rows) else None,
        timing=sent.timing(outcome),
        tokens=sent.tokens,
        truncated=sent.truncated,
        late=tuple(_own(row) for row in late) if len(late) == len(rows) else None,
    )


def _own(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Not a window on the whole batch, which it would keep in memory."""
    return rows if rows.base is None else rows.copy()


def _scores(sent: _Sent[np.float32], outcome: Outcome[np.float32]) -> Scores:
    return Scores(np.array(outcome.results, dtype=np.float32), sent.timing(outcome), sent.truncated, sent.tokens)
