"""The whole path of a query, top to bottom: the only place where stages are called and spanned.

`answer()` yields events as it goes and returns an `Outcome`: the frozen Answer and its spans. It knows nothing of jobs, HTTP,
pages or machines. A stage that fails ends the query with an error that names it; a stage that can be done without (hyde,
rerank) degrades, says so and goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.interfaces import ChatModel, ChatRequest, Embedder, Embeddings, RerankCandidate, Reranker, Timing, info_at_once
from rag import generate, hyde
from rag.cache_stage import OFF, CacheStage
from rag.errors import Cancelled
from rag.hyde_history import HydeHistory
from rag.otlp import SpanRecord
from rag.recorder import Recorder, stage_error
from rag.routes import fuse
from rag.semantic_cache import CachedAnswer, Lookup, SemanticCache
from rag.store import Store
from rag.trace import Tracing
from rag.types import Answer, Event, HydeEffect, Options, Outcome, Passage, Problem
from rag.writing import Writing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prompts:
    """The language model's part of the settings; times in seconds."""

    answer: str
    hyde: str
    temperature: float = 0.2
    max_tokens: int = 512
    hyde_max_tokens: int = 160
    context_tokens: int = 6000
    timeout: float = 120.0
    hyde_model: str | None = None


@dataclass(frozen=True, slots=True)
class Clients:
    """What the path calls. `chat` None means that answers are quoted, `reranker` None that the fused order stands.

    `cache` None: no answer is kept or given again, for the reason `cache_off`.
    """

    embedder: Embedder
    reranker: Reranker | None
    chat: ChatModel | None
    store: Store
    tracing: Tracing
    prompts: Prompts
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    hyde_history: HydeHistory | None = None
    cache: SemanticCache | None = None
    cache_off: str = OFF


@dataclass(frozen=True, slots=True)
class Control:
    """How a caller ends a query early: a token to set, a deadline (`time.monotonic()` seconds), a trace to join; and who asks."""

    cancelled: threading.Event = field(default_factory=threading.Event)
    deadline: float | None = None
    remote_parent: str | None = None
    origin: str = "ask"

    def check(self) -> None:
        """Raises Cancelled when the caller gave up, TimeoutError past the deadline."""
        if self.cancelled.is_set():
            raise Cancelled("the query was cancelled")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TimeoutError("the query's time limit (query.deadline_seconds) passed")

    def timeout(self, wanted: float) -> float:
        """Seconds that a call may take: what it wants, or what is left until the deadline."""
        return wanted if self.deadline is None else max(0.001, min(wanted, self.deadline - time.monotonic()))


@dataclass(frozen=True, slots=True)
class Finished:
    """A query at its end: the answer and the spans it left.

    `shadow` searches once more without HyDE's hypothesis, to know what that changed: to be called after the query, outside its
    time. None where there was no hypothesis, or the path searched without it already. Raises RagError.
    """

    answer: Answer
    spans: list[SpanRecord]
    shadow: Callable[[], HydeEffect] | None = None


Events = Generator[Event, None, None]
Work = Generator[Event, None, Finished]


def answer(question: str, options: Options, clients: Clients, control: Control | None = None) -> Work:
    """Run the path. Yields `stage_started`, `stage_finished`, `passages`, `prompt`, `token`; returns the Finished query.

    Never raises for a query that fails or is cancelled: that is an Answer with its outcome and error.
    """
    control = control or Control()
    with clients.tracing.query(question, control.remote_parent) as trace:
        run = _Run(question, options, clients, control, Recorder(trace))
        try:
            outcome, error = yield from run.path()
            result = run.answer(outcome, error)
            run.keep(result)
        finally:
            run.cached.release()
        return Finished(result, trace.finish(result), run.shadow(result))


class _Run:
    """One query on its way: each method is one stage, called in order by `path`."""

    def __init__(self, question: str, options: Options, clients: Clients, control: Control, recorder: Recorder) -> None:
        self.question, self.options, self.clients, self.control = question, options, clients, control
        self.stages = recorder
        self.cached = CacheStage(question, options, clients)
        self.vector: NDArray[np.float32] | None = None
        self.sparse: Mapping[int, float] | None = None
        self.candidates: tuple[Passage, ...] = ()
        self.searched = False
        self.collection: str | None = None
        self.question_vector: NDArray[np.float32] | None = None
        self.found_plain: tuple[str, ...] | None = None
        self.found_blended: tuple[str, ...] | None = None
        self.kept: tuple[Passage, ...] = ()
        self.hyde_text: str | None = None
        self.best_dense: float | None = None
        self.text = ""
        self.writing = Writing(recorder, control, clients.prompts)

    def path(self) -> Generator[Event, None, tuple[Outcome, Problem | None]]:
        try:
            yield from self.meet_embedder()
            yield from self.cache()
            if self.cached.hit is None:
                yield from self.embed_question()
            if self.cached.can_be_alike:
                yield from self.cache_alike()
            if self.cached.hit is not None:
                yield from self.give(self.cached.hit)
                return "answered", None
            yield from self.hyde()
            if not self.searched:
                yield from self.search()
            yield from self.rerank()
            yield from self.generate()
        except Cancelled as stop:
            return "cancelled", Problem(self.stages.current, "internal", str(stop), None, "Ask again when you like.")
        except Exception as problem:
            failure = stage_error(self.stages.current or "query", problem)
            if failure.kind == "internal":
                log.exception("the query failed in stage %s", failure.stage)
            return "failed", Problem(failure.stage, failure.kind, failure.message, failure.address, failure.next_step)
        return ("answered" if self.kept else "no_documents"), None

    # 0) who embeds decides the collection and the cache's key: a model that must be loaded for that is not the cache's time

    def meet_embedder(self) -> Events:
        embedder = self.clients.embedder
        if self.cached.skipped is not None or info_at_once(embedder):
            return
        self.control.check()
        yield self.stages.started("embed")
        with self.stages.span("embed", "wait for the embedder") as note:
            began = self.stages.elapsed()
            info = embedder.info
            note.describe(info)
            if info.where == "in-process":
                note.timing = Timing(load=self.stages.elapsed() - began, cold=True)
        yield self.stages.finished("embed")

    # 1) cache

    def cache(self) -> Events:
        reason = self.cached.skipped
        if reason is not None:
            yield self.stages.skip("cache", reason, hit=False)
            return
        self.control.check()
        yield self.stages.started("cache")
        with self.stages.span("cache", "look for an equal question") as note:
            began = self.stages.elapsed()
            found = self.cached.look(self.control.check)
            note.where, note.timing = "in-process", Timing(queue=found.waited_seconds)
            note.compute = self.stages.elapsed() - began
            note.facts |= {"waited_seconds": found.waited_seconds or None, **_of_hit(found)}
        self.stages.cache_said(found.hit is not None, found.reason)
        yield self.stages.finished("cache")

    def cache_alike(self) -> Events:
        """Once the question is embedded, for its own search in any case."""
        yield self.stages.started("cache")
        with self.stages.span("cache", "look for a question like it") as note:
            began = self.stages.elapsed()
            found = self.cached.look_alike(self.vector)
            note.where, note.compute = "in-process", self.stages.elapsed() - began
            near_equal = self.cached.near_equal() or None
            note.facts |= {"candidates": len(found.candidates), "near_equal": near_equal, **_of_hit(found)}
        self.stages.cache_said(found.hit is not None, found.reason)
        yield self.stages.finished("cache")

    def give(self, hit: CachedAnswer) -> Events:
        self.kept = tuple(passage for passage in hit.passages if passage.kept)
        self.candidates, self.text = hit.passages, hit.answer
        self.writing.finish_reason = hit.finish_reason
        for stage in self.stages.not_run():
            yield self.stages.skip(stage, "answered from the cache")
        yield {"type": "passages", "passages": [passage.to_json() for passage in self.candidates]}
        self.writing.first_token = self.stages.elapsed()
        yield {"type": "token", "text": self.text}

    def keep(self, result: Answer) -> None:
        """For the next who ask the same. After the answer, outside its time."""
        asked = self.vector if self.question_vector is None else self.question_vector
        refused = self.cached.keep(result, asked)
        if refused is not None:
            log.debug("the answer is not kept for others: %s", refused)

    # 2) embed

    def embed_question(self) -> Events:
        embeddings = yield from self._embed("embed the question", self.question)
        self.vector = embeddings.dense[0]
        self.sparse = embeddings.sparse[0] if embeddings.sparse else None
        if embeddings.truncated:
            self.stages.degrade("embed", "the question is longer than the embedder takes and was cut")

    def _embed(self, label: str, text: str) -> Generator[Event, None, Embeddings]:
        self.control.check()
        yield self.stages.started("embed")
        embedder = self.clients.embedder
        with self.stages.span("embed", label) as note:
            embeddings = embedder.embed([text], "query", priority=1, deadline=self.control.deadline, caches=self.options.caches)
            info = embedder.info
            note.describe(info)
            note.timing = embeddings.timing
            note.cached = (embeddings.cached, 1)
            note.facts |= {
                "texts": 1,
                "tokens": embeddings.tokens,
                "truncated": embeddings.truncated,
                "cached": embeddings.cached,
            }
            note.handle.set(dimensions=info.dimension, input_tokens=embeddings.tokens)
        yield self.stages.finished("embed")
        return embeddings

    # 3) hyde: skipped for a reason, or a hypothetical answer whose vector joins the question's

    def hyde(self) -> Events:
        history = self.clients.hyde_history
        reason = hyde.skip_before_search(self.options.hyde, self.question, self.clients.chat is not None, history)
        if reason is None and self.options.hyde == "auto":
            yield from self.search()
            self.best_dense = _best_dense(self.candidates)
            found = self.candidates
            reason = hyde.skip_after_search(self.best_dense, self.question, history) if found else "the collection is empty"
        if reason is not None:
            yield self.stages.skip("hyde", reason)
            return
        yield from self._write_hypothesis()
        if self.hyde_text and self.vector is not None:
            hypothesis = yield from self._embed("embed the hypothesis", self.hyde_text)
            self.question_vector = self.vector
            self.vector = hyde.blend(self.vector, hypothesis.dense[0])
            self.searched = False

    def _write_hypothesis(self) -> Events:
        chat, prompts = self.clients.chat, self.clients.prompts
        assert chat is not None
        self.control.check()
        yield self.stages.started("hyde")
        content = prompts.hyde.format(question=self.question)
        # temperature 0 keeps the hypothesis, and with it the search, repeatable
        request = ChatRequest(
            ({"role": "user", "content": content},),
            prompts.hyde_max_tokens,
            temperature=0.0,
            thinking=False,
            model=prompts.hyde_model,
            timeout=self.control.timeout(prompts.timeout),
        )
        texts: list[str] = []
        with self.stages.span("hyde", "write a hypothetical answer", can_degrade=True) as note:
            if self.clients.hyde_history is not None and self.options.hyde == "auto":
                note.facts["why"] = self.clients.hyde_history.decide(self.question, self.best_dense).reason
            for piece in self.writing.stream(chat, request, note):
                texts.append(piece)
        if not self.stages.degraded("hyde"):  # what broke off in the middle is not searched with
            self.hyde_text = "".join(texts).strip() or None
            if self.hyde_text is None:
                self.stages.degrade("hyde", "the language model wrote nothing; the question alone was searched")
        yield self.stages.finished("hyde")

    # 4) search

    def search(self) -> Events:
        self.control.check()
        yield self.stages.started("search")
        store, limit = self.clients.store, self.options.candidates
        complete = bool(self._reranker() and self.clients.reranker and self.clients.reranker.uses_route_scores)
        with self.stages.span("search", "dense and sparse, fused", top_k=limit) as note:
            note.where, note.address = ("in-process", None) if store.embedded else ("http", store.address)
            wanted = self.options.collection
            began, name = self.stages.elapsed(), store.collection_name(self.clients.embedder.info, wanted)
            was_open = store.is_open(name)
            collection = store.use(self.clients.embedder.info, wanted, create=wanted is None)
            opening = 0.0 if was_open else self.stages.elapsed() - began
            note.handle.set(collection=collection)
            self.collection = collection
            found = store.search(
                collection,
                self.vector,
                self.question,
                limit,
                sparse=self.sparse,
                complete=complete,
                timeout=self.control.timeout(60.0),
            )
            opening += found.open_seconds
            note.compute = self.stages.elapsed() - began  # the recorder takes loading and network off
            note.timing = Timing(load=opening)
            note.network(store.round_trip_seconds, found.round_trips)
            self.candidates = fuse(found, limit)
            note.facts |= {
                "limit": limit,
                "round_trips": found.round_trips,
                "round_trip_seconds": store.round_trip_seconds,
                "open_seconds": opening or None,
                "loaded": was_open and not found.open_seconds,
                "unflushed_rows": store.unflushed(collection),
            }
        if self.question_vector is None:
            self.found_plain = _first(self.candidates)
        else:
            self.found_blended = _first(self.candidates)
        self.searched = True
        yield self.stages.finished("search")

    # 5) rerank

    def _reranker(self) -> bool:
        return self.options.rerank and self.clients.reranker is not None

    def rerank(self) -> Events:
        keep = self.options.keep
        reranker = self.clients.reranker
        if not self.candidates or not self._reranker() or reranker is None:
            reason = "no candidates" if not self.candidates else "switched off"
            yield self.stages.skip("rerank", reason)
            self._keep(self.candidates[:keep])
        else:
            yield from self._score(reranker)
        yield {"type": "passages", "passages": [passage.to_json() for passage in self.candidates]}

    def _score(self, reranker: Reranker) -> Events:
        self.control.check()
        yield self.stages.started("rerank")
        texts = [RerankCandidate(item.text, item.scores.get("dense"), item.scores.get("sparse")) for item in self.candidates]
        ordered = self.candidates
        with self.stages.span("rerank", "score the candidates", can_degrade=True, top_k=self.options.keep) as note:
            note.handle.set(query=self.question)
            note.describe(reranker.info)
            scores = reranker.score(self.question, texts, deadline=self.control.deadline, caches=self.options.caches)
            note.describe(reranker.info)  # once more: a model that was loaded only now knows its device
            note.timing = scores.timing
            note.cached = (scores.cached, len(texts))
            note.facts |= {
                "candidates": len(texts),
                "tokens": scores.tokens,
                "truncated": scores.truncated,
                "cached": scores.cached,
            }
            order = sorted(range(len(texts)), key=lambda index: (-float(scores.values[index]), index))
            ordered = tuple(
                self.candidates[index].with_route("rerank", rank, float(scores.values[index]))
                for rank, index in enumerate(order, 1)
            )
        self.candidates = ordered
        self._keep(ordered[: self.options.keep])
        yield self.stages.finished("rerank")

    def _keep(self, kept: tuple[Passage, ...]) -> None:
        self.kept = tuple(passage._replace(kept=True) for passage in kept)
        self.candidates = (*self.kept, *self.candidates[len(kept) :])

    # 6) generate

    def generate(self) -> Events:
        if not self.kept:
            self.text = generate.NO_DOCUMENTS
            yield self.stages.skip("generate", "no passages to answer from")
            yield {"type": "token", "text": self.text}
            return
        self.control.check()
        yield self.stages.started("generate")
        chat = self.clients.chat
        write = self.writing
        model = self.options.model
        pieces = write.quote(self.question, self.kept) if chat is None else write.answer(chat, self.question, self.kept, model)
        for piece in pieces:
            self.text += piece
            yield {"type": "token", "text": piece}
            if self.control.cancelled.is_set():
                pieces.close()
                raise Cancelled("the query was cancelled while it was answered")
        self.text = write.without_reasoning(self.text).strip()
        yield {"type": "prompt", "prompt": [dict(message) for message in write.prompt]}
        yield self.stages.finished("generate")

    # 7) the answer

    def answer(self, outcome: Outcome, error: Problem | None) -> Answer:
        trace = self.stages.trace
        return Answer(
            id=trace.id,
            question=self.question,
            started_at=trace.started_at,
            outcome=outcome,
            error=error,
            answer=self.text,
            citations=generate.citations(self.text, self.kept),
            passages=self.candidates,
            stages=self.stages.all(),
            timeline=self.stages.timeline,
            total_seconds=trace.elapsed(),
            ttft_seconds=self.writing.ttft,
            first_token_seconds=self.writing.first_token,
            tokens=self.writing.tokens,
            options=self.options,
            fingerprint={**self.clients.fingerprint, "models": self.stages.models()},
            prompt=self.writing.prompt,
            hyde_text=self.hyde_text,
            finish_reason=self.writing.finish_reason,
            origin=self.control.origin,
            hyde_effect=hyde.effect(self.found_plain, self.found_blended, best_dense=self.best_dense),
        )

    def shadow(self, result: Answer) -> Callable[[], HydeEffect] | None:
        """The search that HyDE spared us, where the path has not made it itself."""
        plain, blended, collection = self.question_vector, self.found_blended, self.collection
        if plain is None or blended is None or collection is None or result.hyde_effect is not None:
            return None
        store, limit, sparse, question = self.clients.store, self.options.candidates, self.sparse, self.question

        def search() -> HydeEffect:
            found = fuse(store.search(collection, plain, question, limit, sparse=sparse, timeout=60.0), limit)
            effect = hyde.effect(_first(found), blended, shadow=True, best_dense=_best_dense(found))
            assert effect is not None
            return effect

        return search


def _of_hit(found: Lookup) -> dict[str, Any]:
    """Which kept answer it was: for those who report it as wrong, and for the time that it saved."""
    hit = found.hit
    return {} if hit is None else {"entry": hit.id, "kept_seconds": hit.seconds, "kept_query": hit.query_id}


def _best_dense(passages: Sequence[Passage]) -> float | None:
    return max((score for item in passages if (score := item.scores.get("dense")) is not None), default=None)


def _first(passages: Sequence[Passage]) -> tuple[str, ...]:
    return tuple(passage.id for passage in passages[: hyde.TOP])
