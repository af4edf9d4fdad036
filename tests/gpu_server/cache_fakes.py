"""Fake models for the tests of the caches: predictable arithmetic, counted calls, and futures that the test answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from gpu_server.interfaces import (
    DENSE_AND_SPARSE,
    CacheMode,
    Embeddings,
    ModelInfo,
    RerankCandidate,
    Scores,
    TextKind,
    Timing,
    VectorKind,
)

PATIENCE = 60.0
LIMIT = 20  # characters a fake reads; what is longer is cut


@dataclass
class FakeEmbedder:
    """The vector of a text is its length and `factor`; a token a character. Counts its calls, fails with `error`."""

    factor: float = 1.0
    error: BaseException | None = None
    info_error: Exception | None = None
    late: bool = False
    calls: list[list[str]] = field(default_factory=list)
    modes: list[CacheMode] = field(default_factory=list)
    asked_who: int = 0
    before: Callable[[float | None], None] = lambda deadline: None

    @property
    def info(self) -> ModelInfo:
        self.asked_who += 1
        if self.info_error is not None:
            raise self.info_error
        return ModelInfo("fake", "embedder", f"fake-{self.factor}", "cpu", "fp32", dimension=2)

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
        self.calls.append(list(texts))
        self.modes.append(caches)
        self.before(deadline)
        if self.error is not None:
            raise self.error
        return self.answer(texts)

    def answer(self, texts: Sequence[str]) -> Embeddings:
        return Embeddings(
            dense=np.array([[len(text), self.factor] for text in texts], dtype=np.float32),
            sparse=tuple({len(text): 0.5} for text in texts),
            timing=Timing(load=1.0, queue=0.5, tokenize=0.25, compute=2.0, cold=True),
            tokens=sum(len(text) for text in texts),
            truncated=sum(len(text) > LIMIT for text in texts),
            late=tuple(np.ones((len(text), 2), dtype=np.float32) for text in texts) if self.late else None,
        )

    def count_tokens(self, text: str) -> int:
        return len(text)


@dataclass
class FakePool(FakeEmbedder):
    """Its `begin` gives futures that the test answers with `finish`."""

    begun: list[tuple[list[str], Future[Embeddings]]] = field(default_factory=list)

    def begin(
        self,
        texts: Sequence[str],
        kind: TextKind = "passage",
        *,
        vectors: frozenset[VectorKind] = DENSE_AND_SPARSE,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Future[Embeddings]:
        if self.error is not None:
            raise self.error
        future: Future[Embeddings] = Future()
        self.begun.append((list(texts), future))
        return future

    def finish(self, turn: int) -> None:
        texts, future = self.begun[turn]
        future.set_result(self.answer(texts))


@dataclass
class FakeReranker:
    """The score of a pair is the difference of the lengths plus `shift`; its `begin` answers at once unless `held`."""

    shift: float = 0.25
    precision: str = "fp32"
    held: bool = False
    uses_route_scores: bool = False
    calls: list[list[str]] = field(default_factory=list)
    begun: list[Future[Scores]] = field(default_factory=list)

    @property
    def info(self) -> ModelInfo:
        return ModelInfo("fake", "reranker", f"fake-{self.shift}", "cpu", self.precision)

    def score(
        self,
        query: str,
        candidates: Sequence[RerankCandidate],
        *,
        deadline: float | None = None,
        caches: CacheMode = "use",
    ) -> Scores:
        texts = [item.text for item in candidates]
        self.calls.append(texts)
        values = np.array([len(text) - len(query) + self.shift for text in texts], dtype=np.float32)
        cut = sum(len(text) > LIMIT for text in texts)
        return Scores(values, Timing(queue=0.5, compute=2.0), truncated=cut, tokens=10 * len(texts))

    def begin(self, query: str, candidates: Sequence[RerankCandidate], *, deadline: float | None = None) -> Future[Scores]:
        future: Future[Scores] = Future()
        self.begun.append(future)
        if not self.held:
            future.set_result(self.score(query, candidates, deadline=deadline))
        return future


def lengths(result: Embeddings) -> list[float]:
    return [float(row[0]) for row in result.dense]


def passages(*texts: str) -> list[RerankCandidate]:
    return [RerankCandidate(text) for text in texts]
