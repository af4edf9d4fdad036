"""The semantic cache: an answer given once is given again to the same question, and to one that asks the same in other words.

Equal texts first, then candidates by dense and sparse search, then guards (`rag/cache/guards.py`): a near miss must not get the
answer of its neighbour. Every refusal has its reason. Nothing here fails a query: a store that is away costs the hit, and the
reason says so. It knows nothing of stages, events or pages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rag.cache.answers import AnswerStore, Order, SqliteAnswers
from rag.cache.book import CacheBook
from rag.cache.counts import CacheLimits, CacheStatus, Counts
from rag.cache.filler import Filler
from rag.cache.flights import Flights, waited
from rag.cache.guards import compare
from rag.cache.index import MemoryIndex, Near, QuestionIndex, Row
from rag.cache.redis_answers import RedisAnswers
from rag.cache.types import CacheAway, CachedAnswer, CacheKey, Candidate, Lookup, Thresholds
from rag.errors import RagError
from rag.generate import citations
from rag.types import Answer

__all__ = [
    "CacheAway",
    "CacheKey",
    "CacheLimits",
    "CacheStatus",
    "CachedAnswer",
    "Candidate",
    "Lookup",
    "SemanticCache",
    "open_cache",
]

log = logging.getLogger(__name__)
CANDIDATES = 5  # a route

BothWays = Callable[[str, str], float]
Vector = NDArray[np.float32]
Carried = CacheKey | Literal["leave", "forget"]


def open_cache(
    data_dir: Path,
    redis_url: str | None,
    limits: CacheLimits | None = None,
    index: QuestionIndex | None = None,
    *,
    both_ways: BothWays | None = None,
) -> SemanticCache:
    """The cache of a data folder: answers in Redis where an address is given, else in `cache.db`. Connects to nothing yet.

    `index` None searches in memory. Raises ValueError for an address that is none.
    """
    limits = limits or CacheLimits()
    bounds: dict[str, Any] = {"ttl_seconds": limits.ttl_seconds, "max_entries": limits.max_entries}
    answers: AnswerStore = RedisAnswers(redis_url, **bounds) if redis_url else SqliteAnswers(data_dir / "cache.db", **bounds)
    return SemanticCache(answers, index or MemoryIndex(), CacheBook(data_dir / "cache-book.db"), limits, both_ways=both_ways)


class SemanticCache:
    """Thread-safe. `both_ways` is a reranker asked for a question and a candidate, in both directions; a further guard."""

    def __init__(
        self,
        answers: AnswerStore,
        index: QuestionIndex,
        book: CacheBook,
        limits: CacheLimits | None = None,
        *,
        both_ways: BothWays | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.answers, self.index, self.book = answers, index, book
        self.limits = limits or CacheLimits()
        self._both_ways, self._clock = both_ways, clock
        self._flights = Flights()
        self._counts = Counts()
        self._filler = Filler(answers, index)

    # 1) looking up

    def look_up(self, question: str, vector: Vector | None, key: CacheKey, *, check: Callable[[], None] = lambda: None) -> Lookup:
        """First without a vector (equal text), then, where that missed, with the question's vector (equal meaning).

        A miss without a vector makes the caller this question's leader (`Lookup.lead`): others who ask it wait until the
        caller's `keep` or `release`. Who waits is let out by `check` raising; nothing else is raised.
        """
        self._filler.refresh()
        if vector is None:
            found = self._equal(question, key, check)
        else:
            found = self._alike(question, vector, key)
            if found.hit is not None:
                self._flights.land(key.entry_id(question), found.hit)
        self._counts.looked_up(found, first=vector is None)
        if found.hit is not None and not found.waited_seconds:
            self._touch(found.hit.id)
        return found

    def _equal(self, question: str, key: CacheKey, check: Callable[[], None]) -> Lookup:
        name, spent, problem = key.entry_id(question), 0.0, None
        while True:
            try:
                entry = self.answers.get(name)
            except CacheAway as away:
                entry, problem = None, self._away(away)
            if entry is not None:
                return Lookup(entry, f"the same question, answered {self._ago(entry)}", exact=True)
            flight = self._flights.join(name)
            if flight is None:
                return Lookup(None, problem or "not asked before in these words", lead=True, waited_seconds=spent)
            answer, seconds = waited(flight, check)
            spent += seconds
            if answer is not None:
                reason = f"the same question was being answered: waited {spent:.3g} s for it"
                return Lookup(answer, reason, exact=True, waited_seconds=spent)

    def _alike(self, question: str, vector: Vector, key: CacheKey) -> Lookup:
        thresholds = self.thresholds(key.embedder)
        if not self.limits.semantic:
            return Lookup(None, "only equal questions are looked up")
        if thresholds is None:
            return Lookup(None, "no thresholds are calibrated for this embedder: python -m rag calibrate-cache")
        if not self._filler.ready:
            return Lookup(None, self._away(self._filler.problem) if self._filler.problem else "the index is being built")
        try:
            near = self.index.search(key.scope, vector, question, CANDIDATES)
        except RagError as problem:
            return Lookup(None, f"{self.index.name} is away: {problem.message}")
        candidates: list[Candidate] = []
        for item in near:
            candidate = self._judge(question, item, thresholds)
            if candidate.refused is None:
                try:
                    entry = self.answers.get(item.id)
                except CacheAway as away:
                    candidates.append(candidate._replace(refused="its answer cannot be read now"))
                    return Lookup(None, self._away(away), tuple(candidates))
                if entry is not None:
                    candidates.append(candidate)
                    return Lookup(entry, self._like(candidate, entry), tuple(candidates))
                self._drop_from_index([item.id])
                candidate = candidate._replace(refused="its answer is gone")
            candidates.append(candidate)
        return Lookup(None, _why_none(candidates), tuple(candidates))

    def _judge(self, question: str, near: Near, thresholds: Thresholds) -> Candidate:
        found = compare(question, near.question)
        candidate = Candidate(near.id, near.question, near.dense, near.sparse, found.agreement, found.checks)
        if near.dense is None or near.dense < thresholds.dense:
            known = "unknown" if near.dense is None else f"{near.dense:.3f}"
            return candidate._replace(refused=f"cosine {known}, at least {thresholds.dense:.2f} is wanted")
        if found.refused is not None:
            return candidate._replace(refused=found.refused.said)
        if found.agreement < thresholds.agreement:
            return candidate._replace(refused=f"agreement {found.agreement:.2f}, at least {thresholds.agreement:.2f} is wanted")
        if self.book.denied(question, near.question):
            return candidate._replace(refused="somebody reported that these two do not share an answer")
        return candidate._replace(refused=self._reranked(question, near.question, thresholds))

    def _reranked(self, question: str, cached: str, thresholds: Thresholds) -> str | None:
        if self._both_ways is None or thresholds.rerank is None:
            return None
        try:
            lower = min(self._both_ways(question, cached), self._both_ways(cached, question))
        except Exception as problem:  # whatever a model's call may raise: without its word there is no hit
            return f"the reranker could not be asked: {problem}"
        return None if lower >= thresholds.rerank else f"reranker {lower:.2f}, at least {thresholds.rerank:.2f} is wanted"

    def thresholds(self, embedder: str) -> Thresholds | None:
        """What is wanted of a candidate of this embedder: the settings', else what was calibrated, else None."""
        found, limits = self.book.thresholds(embedder), self.limits
        if limits.dense is not None:
            agreement = limits.agreement if limits.agreement is not None else found.agreement if found else 1.0
            return Thresholds(embedder, limits.dense, agreement, limits.rerank)
        if found is None:
            return None
        agreement = found.agreement if limits.agreement is None else limits.agreement
        return replace(found, agreement=agreement, rerank=found.rerank if limits.rerank is None else limits.rerank)

    def test(self, asked: str, cached: str, embedder: str, vectors: Sequence[Vector] | None = None) -> Candidate:
        """The verdict on two questions, with every guard's word, whatever is stored. `vectors` are theirs, in this order."""
        dense = None if vectors is None else float(vectors[0] @ vectors[1])
        thresholds = self.thresholds(embedder)
        if thresholds is None:
            found = compare(asked, cached)
            refused = found.refused.said if found.refused else "no thresholds are calibrated for this embedder"
            return Candidate("", cached, dense, None, found.agreement, found.checks, refused)
        return self._judge(asked, Near("", cached, dense, None), thresholds)

    def _like(self, candidate: Candidate, entry: CachedAnswer) -> str:
        return f"like {entry.question!r}, answered {self._ago(entry)} (cosine {candidate.dense:.3f})"

    def _ago(self, entry: CachedAnswer) -> str:
        seconds = max(0.0, self._clock() - entry.created_at_unix)
        for name, unit in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
            if seconds >= unit:
                return f"{seconds / unit:.0f} {name} ago"
        return f"{seconds:.0f} s ago"

    def _away(self, away: CacheAway | str) -> str:
        name = {"redis": "Redis", "sqlite": "the answers' file"}[self.answers.state_name]
        return f"{name} is away: {away}"

    def _touch(self, key: str) -> None:
        try:
            self.answers.touch(key)
        except CacheAway as away:
            log.debug("a hit was not counted: %s", away)

    # 2) keeping

    def keep(self, answer: Answer, vector: Vector | None, key: CacheKey) -> str | None:
        """Keep a finished answer and give it to those who wait. Returns why it is not kept, None where it is."""
        name = key.entry_id(answer.question)
        refused = why_not(answer)
        entry = None
        try:
            if refused is None:
                entry = CachedAnswer.from_answer(answer, key, self._clock())
                refused = self._store(entry, vector)
        finally:
            self._flights.land(name, entry)
        self._counts.kept(refused)
        return refused

    def _store(self, entry: CachedAnswer, vector: Vector | None) -> str | None:
        try:
            gone = self.answers.keep(entry, vector)
        except CacheAway as away:
            return self._away(away)
        if vector is not None:
            try:
                self.index.add([Row(entry.id, entry.scope, entry.question, vector, entry.created_at_unix)])
            except RagError as problem:
                return f"kept for equal questions alone, {self.index.name} is away: {problem.message}"
        self._drop_from_index(gone)
        return None

    def release(self, question: str, key: CacheKey) -> None:
        """End a question's lead without an answer: those who wait compute for themselves. Does nothing where there is none."""
        self._flights.land(key.entry_id(question), None)

    # 3) curating

    def entries(self, limit: int = 100, offset: int = 0, order: Order = "used", text: str = "") -> list[CachedAnswer]:
        """`text` leaves only questions that hold it. Raises CacheAway, as all of these do."""
        return self.answers.page(limit, offset, order, text)

    def entry(self, key: str) -> CachedAnswer | None:
        return self.answers.get(key)

    def delete(self, key: str) -> bool:
        self._drop_from_index([key])
        return self.answers.delete([key]) > 0

    def purge(self) -> int:
        """Delete every answer; thresholds and reported pairs stay. Returns how many answers went."""
        gone = self.answers.purge()
        try:
            self.index.clear()
        except RagError as problem:
            log.warning("the index of cached questions was not cleared: %s", problem.message)
        return gone

    def report_false_hit(self, asked: str, key: str) -> bool:
        """The answer of this entry was wrong for `asked`: the entry goes, and the pair is kept for the next calibration and
        never a hit again. False where the entry is gone already. Raises RagError, too, where the pair cannot be kept."""
        entry = self.answers.get(key)
        if entry is None:
            return False
        if CacheKey("", "", "", "", "", "").entry_id(asked)[16:] != key[16:]:
            self.book.add_pair(asked, entry.question, "different")
        self.delete(key)
        self._counts.reported()
        return True

    def mark_good(self, key: str, good: bool = True) -> CachedAnswer | None:
        """Curated: goes into the exports. None where the entry is gone."""
        return self._rewrite(key, lambda entry: replace(entry, good=good))

    def edit(self, key: str, text: str) -> CachedAnswer | None:
        """Another text; its citations are read anew. Raises RagError for an empty one."""
        if not text.strip():
            raise RagError("the answer is empty", kind="bad_input", next_step="Write an answer, or delete the entry.")

        def edited(entry: CachedAnswer) -> CachedAnswer:
            kept = [passage for passage in entry.passages if passage.kept]
            return replace(entry, answer=text.strip(), citations=citations(text, kept), edited=True)

        return self._rewrite(key, edited)

    def _rewrite(self, key: str, change: Callable[[CachedAnswer], CachedAnswer]) -> CachedAnswer | None:
        entry = self.answers.get(key)
        if entry is None:
            return None
        changed = change(entry)
        return changed if self.answers.rewrite(changed) else None

    def carry_over(self, decide: Callable[[CachedAnswer, Vector], Carried]) -> tuple[int, int]:
        """After documents changed: `decide` says of each answer under which key it goes on, or whether it is forgotten.

        Returns how many went on and how many went. Raises CacheAway.
        """
        stayed = went = 0
        for row in list(self.answers.rows()):
            entry = self.answers.get(row.id)
            said = "leave" if entry is None else decide(entry, row.vector)
            if entry is None or said == "leave":
                continue
            if isinstance(said, CacheKey):
                self._store(replace(entry, id=said.entry_id(entry.question), key=asdict(said)), row.vector)
                stayed += 1
            else:
                went += 1
            self.delete(row.id)
        self._counts.carried(stayed, went)
        return stayed, went

    # 4) the index, and what is known of it all

    def wait_until_ready(self, timeout_seconds: float) -> bool:
        """Whether the index holds what the answers' store has; starts filling it where nobody has asked yet."""
        return self._filler.wait(timeout_seconds)

    def _drop_from_index(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        try:
            self.index.remove(keys)
        except RagError as problem:
            log.debug("cached questions stay in the index until they are found there: %s", problem.message)

    def status(self) -> CacheStatus:
        """Asks the stores for their sizes; what is away is told, not raised."""
        problem = self._filler.problem
        try:
            size: int | None = self.index.count()
        except RagError as away:
            size, problem = None, f"{self.index.name} is away: {away.message}"
        answers = self.answers.state
        return CacheStatus(
            answers, self.index.name, size, self._filler.ready, self.limits, self._counts.now(), answers.problem or problem
        )

    def close(self) -> None:
        self._filler.close()
        self.answers.close()
        self.book.close()


def why_not(answer: Answer) -> str | None:
    """Why an answer must not be given to others: it is no whole answer, or not this path's own."""
    if answer.outcome != "answered" or answer.error is not None:
        return f"the query ended as {answer.outcome}"
    if answer.options.caches == "bypass":
        return "caches were bypassed"
    for stage in answer.stages:
        if stage.stage == "cache" and stage.hit:
            return "it came from the cache"
        if stage.stage != "cache" and stage.degraded:
            return f"{stage.stage} was degraded: {stage.degraded}"
    if answer.finish_reason != "stop":
        told = f"with {answer.finish_reason!r}" if answer.finish_reason else "without a reason"
        return f"the language model ended {told}, so the answer may be cut"
    if not answer.answer.strip() or not any(passage.kept for passage in answer.passages):
        return "there is no text, or no passage behind it"
    return None


def _why_none(candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return "no question like it is cached"
    best = max(candidates, key=lambda candidate: candidate.dense or 0.0)
    near = f"cosine {best.dense:.3f}" if best.dense is not None else "found by its words"
    return f"nearest is {best.question[:200]!r} ({near}): {best.refused}"
