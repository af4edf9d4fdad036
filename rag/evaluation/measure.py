"""One question through the retrieval stages of the live path, scored against its judgements.

The order of work is that of `rag.query`: embed, perhaps a hypothesis, search both routes `candidates` deep, fuse, rerank. No
answer is written, nothing is cached, no trace is made. Metrics are those of `rag.evaluate`. Knows nothing of sets, jobs or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import ChatRequest, RerankCandidate, Reranker
from rag import hyde
from rag.errors import StageError
from rag.evaluate import mrr_at, ndcg_at, recall_at
from rag.evaluation.items import Items, Names
from rag.evaluation.types import Measured, Question, Setting
from rag.generate import ThinkFilter
from rag.query import Clients
from rag.recorder import stage_error
from rag.routes import Found, Hit, fuse
from rag.types import Passage

TOP = 10
Clock = Callable[[], float]
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What each stage ranked, best first, and the seconds each stage of the path took. `degraded`: why a stage did less."""

    ranked: Mapping[str, Sequence[Passage]]
    seconds: Mapping[str, float]
    degraded: str | None


class Retrieval:
    """The retrieval of one setting against one collection, which is open. Raises StageError that names the stage that failed."""

    def __init__(self, clients: Clients, collection: str, setting: Setting, *, clock: Clock = time.perf_counter) -> None:
        self._clients, self._collection, self._setting, self._clock = clients, collection, setting, clock
        self._reranker = clients.reranker if setting.rerank else None
        self._seconds: dict[str, float] = {}
        self._degraded: str | None = None

    def __call__(self, question: str) -> Retrieved:
        self._seconds, self._degraded = {}, None
        vector, sparse = self._embed(question)
        if self._setting.hyde and (hypothesis := self._hypothesis(question)):
            vector = hyde.blend(vector, self._embed(hypothesis)[0])
        ranked = self._search(question, vector, sparse)
        if self._reranker is not None:
            ranked["rerank"] = self._rerank(self._reranker, question, ranked["fused"])
        return Retrieved(ranked, dict(self._seconds), self._degraded)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        except Exception as problem:
            raise stage_error(stage, problem) from problem
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + self._clock() - started

    def _embed(self, text: str) -> tuple[Vector, Mapping[int, float] | None]:
        with self._timed("embed"):
            embeddings = self._clients.embedder.embed([text], "query", priority=1, caches="bypass")
        return embeddings.dense[0], embeddings.sparse[0] if embeddings.sparse else None

    def _hypothesis(self, question: str) -> str | None:
        """A hypothetical answer; None where the language model fails, as a query goes on without one."""
        chat, prompts = self._clients.chat, self._clients.prompts
        if chat is None:
            self._degraded = "hyde: no language model is configured"
            return None
        content = prompts.hyde.format(question=question)
        request = ChatRequest(
            ({"role": "user", "content": content},),
            prompts.hyde_max_tokens,
            temperature=0.0,
            thinking=False,
            model=prompts.hyde_model,
            timeout=prompts.timeout,
        )
        think = ThinkFilter()
        try:
            with self._timed("hyde"):
                text = "".join(think.feed(delta.text)[0] for delta in chat.stream(request)) + think.rest()
        except StageError as problem:
            self._degraded = f"hyde: {problem.message}"
            return None
        if not text.strip():
            self._degraded = "hyde: the language model wrote nothing"
        return text.strip() or None

    def _search(self, question: str, vector: Vector, sparse: Mapping[int, float] | None) -> dict[str, Sequence[Passage]]:
        limit = self._setting.candidates
        complete = self._reranker is not None and self._reranker.uses_route_scores
        with self._timed("search"):
            found = self._clients.store.search(self._collection, vector, question, limit, sparse=sparse, complete=complete)
            fused = fuse(found, limit)
        return {"dense": _alone(found.dense), "sparse": _alone(found.sparse), "fused": fused}

    def _rerank(self, reranker: Reranker, question: str, passages: Sequence[Passage]) -> Sequence[Passage]:
        """In the reranker's order; equal scores keep the order they came in."""
        if not passages:
            return ()
        pairs = [RerankCandidate(each.text, each.scores.get("dense"), each.scores.get("sparse")) for each in passages]
        with self._timed("rerank"):
            scores = reranker.score(question, pairs, caches="bypass")
            order = sorted(range(len(passages)), key=lambda index: (-float(scores.values[index]), index))
        return [passages[index] for index in order]


def _alone(hits: tuple[Hit, ...]) -> tuple[Passage, ...]:
    """One route's hits as passages: fused with nothing they keep their order."""
    return fuse(Found(hits, (), {"dense": {}, "sparse": {}}, round_trips=0), len(hits))


def measure(question: Question, retrieve: Callable[[str], Retrieved], names: Names, keep: int) -> Measured:
    """Retrieve, and score every stage. Raises as `retrieve` does."""
    items = Items(question.judgements, names)
    retrieved = retrieve(question.text)
    ranked = {stage: items.ranked(passages) for stage, passages in retrieved.ranked.items()}
    final = list(retrieved.ranked.values())[-1]
    return Measured(
        question=question.text,
        scores={
            stage: score(order, items.grades) | {"hit@keep": hit_at(items, retrieved.ranked[stage], keep)}
            for stage, order in ranked.items()
        },
        seconds=retrieved.seconds,
        first={stage: first_relevant(order, items.grades) for stage, order in ranked.items()},
        top=tuple(items.item(key) for key in items.ranked(final)[:TOP]),
        missing=None if names.known is None else items.missing,
        degraded=retrieved.degraded,
    )


def score(order: Sequence[str], grades: Mapping[str, int]) -> dict[str, float]:
    """The metrics of one ranking of items. recall@100 is of as many items as the candidates hold, at most 100."""
    return {
        "ndcg@10": ndcg_at(order, grades),
        "recall@10": recall_at(order, grades, 10),
        "recall@100": recall_at(order, grades, 100),
        "mrr@10": mrr_at(order, grades),
    }


def hit_at(items: Items, passages: Sequence[Passage], keep: int) -> float:
    """1 when one of the first `keep` passages, which are what an answer is written from, stands for a relevant item, else 0."""
    return float(any(items.grades.get(key, 0) > 0 for passage in passages[:keep] for key in items.keys(passage)))


def first_relevant(order: Sequence[str], grades: Mapping[str, int]) -> int | None:
    """The rank, from 1, of the first relevant item; None when none is in the order."""
    return next((rank for rank, key in enumerate(order, 1) if grades.get(key, 0) > 0), None)
