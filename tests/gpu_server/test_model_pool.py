"""The pool: one load for all who ask, who is cold, what a failed load and a deadline do. The models are fakes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gpu_server.interfaces import ChatRequest, Delta, Embeddings, ModelInfo, RerankCandidate, Scores, TextKind, Timing
from gpu_server.model_pool import ModelPool, PooledEmbedder, Worker

PATIENCE = 20.0


@dataclass
class FakeEmbedder:
    """The vector of a text is its length; runs wait for `gate`, fail with `error`, and are counted."""

    gate: threading.Event | None = None
    error: Exception | None = None
    runs: int = 0
    running: int = 0
    most: int = 0
    entered: threading.Event = field(default_factory=threading.Event)
    info: ModelInfo = field(default_factory=lambda: ModelInfo("fake", "embedder", "fake-1", "cpu", "fp32", dimension=1))

    def embed(
        self, texts: Sequence[str], kind: TextKind = "passage", *, priority: int = 0, deadline: float | None = None
    ) -> Embeddings:
        self.running += 1
        self.most = max(self.most, self.running)
        self.entered.set()
        try:
            if self.gate is not None:
                assert self.gate.wait(PATIENCE)
            if self.error is not None:
                raise self.error
            self.runs += 1
            dense = np.array([[len(text)] for text in texts], dtype=np.float32)
            return Embeddings(dense, None, Timing(tokenize=0.25, compute=0.5), tokens=len(texts))
        finally:
            self.running -= 1

    def count_tokens(self, text: str) -> int:
        return len(text.split())


class FakeReranker:
    info = ModelInfo("fake", "reranker", "fake", "cpu", "fp32")

    def score(self, query: str, candidates: Sequence[RerankCandidate], *, deadline: float | None = None) -> Scores:
        return Scores(np.array([len(item.text) for item in candidates], dtype=np.float32), Timing(compute=0.5))


class FakeChat:
    info = ModelInfo("fake", "llm", "fake", "cpu", "fp32")

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        yield Delta("one ")
        yield Delta("two", timing=Timing(compute=0.5))


@dataclass
class Maker:
    """Makes `model`; waits for `gate`, fails while there are `errors`, and counts the tries."""

    model: Any
    gate: threading.Event | None = None
    errors: list[Exception] = field(default_factory=list)
    tries: int = 0
    entered: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> Any:
        self.tries += 1
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.errors:
            raise self.errors.pop(0)
        return self.model


def pooled(model: Any = None, **given: Any) -> tuple[ModelPool, PooledEmbedder, Maker]:
    pool, maker = ModelPool(), Maker(model or FakeEmbedder(), **given)
    return pool, pool.add_embedder("fake", maker), maker


def at_once(count: int, call: Callable[[], Any]) -> tuple[list[threading.Thread], list[Any]]:
    """Start `count` threads that call at the same moment; results and exceptions come into the list."""
    barrier, results = threading.Barrier(count), []

    def run() -> None:
        barrier.wait(PATIENCE)
        try:
            results.append(call())
        except Exception as problem:
            results.append(problem)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "did not happen in time"
        threading.Event().wait(0.005)


def stands_in(thread: threading.Thread, function: str, variable: str) -> bool:
    """Whether the thread waits in this function of the pool, past the line that sets the variable."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == function and variable in frame.f_locals


# 1) loading


def test_nothing_loads_before_it_is_needed() -> None:
    pool, embedder, maker = pooled()
    assert maker.tries == 0 and [status.state for status in pool.status()] == ["waiting"]
    assert embedder.info.name == "fake" and maker.tries == 1
    assert embedder.count_tokens("one two") == 2 and maker.tries == 1


def test_ten_threads_asking_get_one_load_and_one_run_at_a_time() -> None:
    gate = threading.Event()
    pool, embedder, maker = pooled(gate=gate)
    threads, results = at_once(10, lambda: embedder.embed(["four"]))
    assert maker.entered.wait(PATIENCE)
    assert pool.status()[0].state == "loading"
    gate.set()
    join(threads)
    assert maker.tries == 1 and maker.model.runs == 10 and maker.model.most == 1
    assert all(result.dense.tolist() == [[4.0]] for result in results)
    status = pool.status()[0]
    assert (status.state, status.runs, status.error) == ("warm", 10, None)
    assert status.load_seconds is not None and status.first_run_seconds is not None and status.info is not None


def test_a_failed_load_is_reported_and_tried_again_at_the_next_call() -> None:
    pool, embedder, maker = pooled(errors=[OSError("no weights")])
    with pytest.raises(OSError, match="no weights"):
        embedder.embed(["x"])
    assert (pool.status()[0].state, pool.status()[0].error) == ("failed", "OSError: no weights")
    result = embedder.embed(["x"])
    assert maker.tries == 2 and result.timing.cold
    assert (pool.status()[0].state, pool.status()[0].error) == ("warm", None)


def test_who_waited_for_a_load_that_failed_gets_its_error_and_no_load_of_its_own() -> None:
    """Ten threads and a load that takes half a minute to fail would else take five minutes."""
    gate = threading.Event()
    _, embedder, maker = pooled(gate=gate, errors=[OSError("no weights")])
    first, outcome = at_once(1, lambda: embedder.embed(["x"]))
    assert maker.entered.wait(PATIENCE)
    others, outcomes = at_once(9, lambda: embedder.embed(["x"]))
    wait_for(lambda: all(stands_in(thread, "model", "attempts") for thread in others))
    gate.set()
    join([*first, *others])
    assert maker.tries == 1
    assert [str(problem) for problem in (*outcome, *outcomes)] == ["no weights"] * 10


# 2) cold and warm


def test_loading_and_the_first_run_are_cold_and_everything_after_is_warm() -> None:
    _, embedder, _ = pooled()
    first, second = embedder.embed(["x"]).timing, embedder.embed(["x"]).timing
    assert first.cold and first.load > 0
    assert not second.cold and second.load == 0 and second.queue >= 0
    assert (second.tokenize, second.compute, second.network) == (0.25, 0.5, None)


def test_the_first_run_after_a_load_by_somebody_else_is_cold() -> None:
    _, embedder, _ = pooled()
    assert embedder.info  # loads
    timing = embedder.embed(["x"]).timing
    assert timing.cold and timing.load == 0
    assert not embedder.embed(["x"]).timing.cold


def test_waiting_for_somebody_elses_first_run_is_cold() -> None:
    gate = threading.Event()
    model = FakeEmbedder(gate)
    _, embedder, _ = pooled(model)
    first, one = at_once(1, lambda: embedder.embed(["x"]).timing)
    assert model.entered.wait(PATIENCE)
    second, other = at_once(1, lambda: embedder.embed(["x"]).timing)
    wait_for(lambda: embedder._slot._worker._changed._waiters)
    gate.set()
    join([*first, *second])
    assert one[0].cold and other[0].cold and other[0].queue > 0
    assert not embedder.embed(["x"]).timing.cold


def test_a_first_run_that_failed_does_not_warm() -> None:
    model = FakeEmbedder(error=RuntimeError("out of memory"))
    pool, embedder, _ = pooled(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        embedder.embed(["x"])
    status = pool.status()[0]
    assert (status.state, status.error, status.runs) == ("failed", "RuntimeError: out of memory", 0)
    model.error = None
    assert embedder.embed(["x"]).timing.cold
    assert (pool.status()[0].state, pool.status()[0].error) == ("warm", None)


def test_a_later_failure_leaves_the_model_warm_and_its_worker_free() -> None:
    model = FakeEmbedder()
    pool, embedder, _ = pooled(model)
    embedder.embed(["x"])
    model.error = ValueError("bad text")
    with pytest.raises(ValueError):
        embedder.embed(["x"])
    model.error = None
    assert not embedder.embed(["x"], deadline=time.monotonic() + PATIENCE).timing.cold
    assert (pool.status()[0].state, pool.status()[0].runs) == ("warm", 2)


# 3) deadlines


def test_a_deadline_while_another_holds_the_worker() -> None:
    gate = threading.Event()
    model = FakeEmbedder(gate)
    pool, embedder, _ = pooled(model)
    holding, results = at_once(1, lambda: embedder.embed(["x"]))
    assert model.entered.wait(PATIENCE)
    for patience in (0.02, -1.0):
        with pytest.raises(TimeoutError, match="fake"):
            embedder.embed(["x"], deadline=time.monotonic() + patience)
    assert pool.status()[0].state != "failed"
    gate.set()
    join(holding)
    assert results[0].timing.cold and model.runs == 1
    assert embedder.embed(["x"], deadline=time.monotonic() + 1e12).dense.shape == (1, 1)


def test_a_deadline_while_another_loads() -> None:
    gate = threading.Event()
    _, embedder, maker = pooled(gate=gate)
    loading, results = at_once(1, lambda: embedder.embed(["x"]))
    assert maker.entered.wait(PATIENCE)
    with pytest.raises(TimeoutError, match="not loaded"):
        embedder.embed(["x"], deadline=time.monotonic() + 0.02)
    gate.set()
    join(loading)
    assert maker.tries == 1 and results[0].timing.cold


# 4) warming up, the other kinds


def test_warm_up_leaves_every_kind_warm() -> None:
    pool, embedder, _ = pooled()
    reranker, chat = pool.add_reranker("fake", FakeReranker), pool.add_chat_model("fake", FakeChat)
    pool.warm_up()
    assert [(status.kind, status.state, status.runs) for status in pool.status()] == [
        ("embedder", "warm", 1),
        ("reranker", "warm", 1),
        ("llm", "warm", 1),
    ]
    assert not embedder.embed(["x"]).timing.cold
    scores = reranker.score("q", [RerankCandidate("abc"), RerankCandidate("a")])
    assert scores.values.tolist() == [3, 1] and not scores.timing.cold
    assert (reranker.info.kind, chat.info.kind) == ("reranker", "llm")


def test_warm_up_never_raises_and_goes_on_after_a_failure() -> None:
    pool, _, _ = pooled(errors=[OSError("no weights")])
    pool.add_reranker("broken", Maker(FakeReranker, errors=[]))  # a class where an instance belongs: fails at its run
    pool.add_chat_model("fake", FakeChat)
    pool.warm_up()
    assert [status.state for status in pool.status()] == ["failed", "failed", "warm"]
    assert all(status.error for status in pool.status()[:2])


def test_a_stream_holds_the_worker_until_it_ends_or_is_closed() -> None:
    pool = ModelPool()
    chat = pool.add_chat_model("fake", FakeChat)
    request = ChatRequest(({"role": "user", "content": "?"},), 4, 0.0, timeout=0.02)
    stream = chat.stream(request)
    assert next(stream).text == "one "
    with pytest.raises(TimeoutError):
        next(chat.stream(request))
    stream.close()  # type: ignore[attr-defined]
    pieces = list(chat.stream(request))
    assert "".join(piece.text for piece in pieces) == "one two"
    assert pieces[-1].timing is not None and pieces[-1].timing.cold  # the closed one was no whole run
    assert [piece.timing.cold for piece in chat.stream(request) if piece.timing] == [False]


class BulkEmbedder:
    """Named a fake: a text's vector is its length; notes each turn and waits at a gate before passages."""

    info = ModelInfo("bulk fake", "embedder", "bulk", "cpu", "fp32", dimension=1)

    def __init__(self) -> None:
        self.turns: list[tuple[str, int]] = []
        self.gate = threading.Semaphore(0)

    def count_tokens(self, text: str) -> int:
        return len(text)

    def embed(self, texts, kind="passage", *, priority=0, deadline=None) -> Embeddings:
        self.turns.append((kind, len(texts)))
        if kind == "passage":
            assert self.gate.acquire(timeout=20)
        dense = np.array([[len(text)] for text in texts], dtype=np.float32)
        return Embeddings(dense, tuple({len(text): 1.0} for text in texts), Timing(compute=0.01), tokens=len(texts), truncated=1)


def test_a_query_comes_between_the_turns_of_bulk_work() -> None:
    model = BulkEmbedder()
    embedder = ModelPool().add_embedder("bulk", lambda: model)
    texts = ["x" * (1 + number * 7 % 20) for number in range(20)]
    done: list[Embeddings] = []
    bulk = threading.Thread(target=lambda: done.append(embedder.embed(texts)))
    bulk.start()
    while not model.turns:
        time.sleep(0.001)
    asked: list[Embeddings] = []
    query = threading.Thread(target=lambda: asked.append(embedder.embed(["how long?"], "query")))
    query.start()
    worker = embedder._slot._worker
    while not worker._urgent:
        time.sleep(0.001)
    model.gate.release()
    query.join(20)
    assert asked and model.turns[:2] == [("passage", 8), ("query", 1)]
    for _ in range(2):
        model.gate.release()
    bulk.join(20)
    assert [turn for turn in model.turns if turn[0] == "passage"] == [("passage", 8), ("passage", 8), ("passage", 4)]
    result = done[0]
    assert result.dense[:, 0].tolist() == [len(text) for text in texts], "in the texts' own order"
    assert [next(iter(row)) for row in result.sparse] == [len(text) for text in texts]
    assert (result.tokens, result.truncated) == (20, 3)
    assert result.timing.compute == pytest.approx(0.03)


def test_a_turn_that_comes_too_late_leaves_the_worker_free() -> None:
    worker = Worker()
    assert worker.acquire(False, 0.0)
    assert not worker.acquire(True, 0.01)
    worker.release()
    assert worker.acquire(False, 0.0), "the query that gave up holds nobody back"
