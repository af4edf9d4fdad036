"""Equal questions at the same moment, from threads and as futures: computed once, and nobody waits for ever. The models are fakes."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from gpu_server.caches import CachedEmbedder, CachedReranker
from gpu_server.errors import Overloaded, TimedOut
from gpu_server.flights import KeptVectors
from gpu_server.interfaces import Embeddings, Scores
from gpu_server.score_stores import MemoryScores
from tests.gpu_server.cache_fakes import PATIENCE, FakeEmbedder, FakePool, FakeReranker, lengths, passages


class Gate:
    """Holds a fake until the test opens it; `entered` says that somebody stands there."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, deadline: float | None) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENCE)


class Joins:
    """Counts the callers that found their text under way, and says when there are as many as wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wanted: int) -> None:
        self.all = threading.Event()
        count = 0
        lock = threading.Lock()
        place = KeptVectors.place

        def counted(kept: KeptVectors, keys: object, deadline: float | None, *, waits: bool) -> object:
            nonlocal count
            placed = place(kept, keys, deadline, waits=waits)
            with lock:
                count += len(placed.joined)
                if count >= wanted:
                    self.all.set()
            return placed

        monkeypatch.setattr(KeptVectors, "place", counted)


def test_ten_threads_with_one_question_compute_once(monkeypatch):
    model = FakeEmbedder()
    gate = Gate()
    model.before = gate
    joins = Joins(monkeypatch, wanted=9)
    cached = CachedEmbedder(model)
    with ThreadPoolExecutor(10) as threads:
        futures = [threads.submit(cached.embed, ["abc"], "query") for _ in range(10)]
        assert joins.all.wait(PATIENCE)
        gate.opened.set()
        results = [future.result(PATIENCE) for future in futures]
    assert model.calls == [["abc"]]
    assert all(lengths(result) == [3] for result in results)
    assert sorted(result.cached for result in results) == [0] + [1] * 9
    assert sum(result.tokens for result in results) == 3
    assert all(result.timing.cold for result in results)  # all of them waited for the load
    waited = [result.timing for result in results if result.cached]
    assert all(timing.compute == 0 and timing.load > 0 for timing in waited)


def test_who_waits_gets_the_error_and_the_next_call_tries_again(monkeypatch):
    model = FakeEmbedder(error=Overloaded("full"))
    gate = Gate()
    model.before = gate
    joins = Joins(monkeypatch, wanted=4)
    cached = CachedEmbedder(model)
    with ThreadPoolExecutor(5) as threads:
        futures = [threads.submit(cached.embed, ["abc"], "query") for _ in range(5)]
        assert joins.all.wait(PATIENCE)
        gate.opened.set()
        for future in futures:
            with pytest.raises(Overloaded):
                future.result(PATIENCE)
    assert len(model.calls) == 1
    model.error = None
    assert cached.embed(["abc"], "query").cached == 0


def test_an_answer_without_all_rows_is_an_error_and_nobody_waits_for_ever(monkeypatch):
    model = FakeEmbedder()
    gate = Gate()
    model.before = gate
    model.answer = lambda texts: FakeEmbedder().answer(texts[:1])
    joins = Joins(monkeypatch, wanted=2)
    cached = CachedEmbedder(model)
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(cached.embed, ["a", "bb"], "query") for _ in range(2)]
        assert joins.all.wait(PATIENCE)
        gate.opened.set()
        for future in futures:
            with pytest.raises(IndexError):
                future.result(PATIENCE)


def test_a_deadline_of_ones_own_ends_the_wait():
    model = FakeEmbedder()
    gate = Gate()
    model.before = gate
    cached = CachedEmbedder(model)
    with ThreadPoolExecutor(1) as threads:
        leader = threads.submit(cached.embed, ["abc"], "query")
        assert gate.entered.wait(PATIENCE)
        with pytest.raises(TimedOut):
            cached.embed(["abc"], "query", deadline=time.monotonic())
        gate.opened.set()
        assert lengths(leader.result(PATIENCE)) == [3]
    assert model.calls == [["abc"]]


def test_the_deadline_of_the_first_is_not_the_others(monkeypatch):
    model = FakeEmbedder()
    gate = Gate()

    def before(deadline: float | None) -> None:
        gate(deadline)
        if deadline is not None:
            raise TimedOut("too late")

    model.before = before
    joins = Joins(monkeypatch, wanted=2)
    cached = CachedEmbedder(model)
    with ThreadPoolExecutor(3) as threads:
        hurried = threads.submit(cached.embed, ["abc"], "query", deadline=time.monotonic() + PATIENCE)
        assert gate.entered.wait(PATIENCE)
        patient = [threads.submit(cached.embed, ["abc"], "query") for _ in range(2)]
        assert joins.all.wait(PATIENCE)
        gate.opened.set()
        with pytest.raises(TimedOut):
            hurried.result(PATIENCE)
        assert [lengths(future.result(PATIENCE)) for future in patient] == [[3], [3]]
    assert model.calls == [["abc"]] * 2  # the hurried one's and one for both who had the time


def test_lists_that_overlap_are_computed_text_by_text_once(monkeypatch):
    model = FakeEmbedder()
    gate = Gate()
    model.before = gate
    joins = Joins(monkeypatch, wanted=2)
    cached = CachedEmbedder(model)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(cached.embed, ["a", "bb"], "query")
        assert gate.entered.wait(PATIENCE)
        two = threads.submit(cached.embed, ["bb", "ccc", "a"], "query")
        assert joins.all.wait(PATIENCE)
        gate.opened.set()
        assert lengths(one.result(PATIENCE)) == [1, 2]
        assert lengths(two.result(PATIENCE)) == [2, 3, 1]
    assert sorted(text for call in model.calls for text in call) == ["a", "bb", "ccc"]


# Futures, for the server's event loop


def test_begin_answers_a_full_hit_at_once():
    model = FakePool()
    cached = CachedEmbedder(model)
    future = cached.begin(["abc"], "query")
    assert not future.done()
    model.finish(0)
    assert lengths(future.result(0)) == [3] and future.result(0).cached == 0
    again = cached.begin(["abc"], "query")
    assert again.done() and again.result(0).cached == 1 and len(model.begun) == 1


def test_begin_joins_what_is_under_way():
    model = FakePool()
    cached = CachedEmbedder(model)
    futures = [cached.begin(["abc"], "query"), cached.begin(["abc"], "query"), cached.begin(["d", "abc"], "query")]
    assert [texts for texts, _ in model.begun] == [["abc"], ["d"]]
    model.finish(0)
    assert futures[0].done() and futures[1].done() and not futures[2].done()
    model.finish(1)
    assert [lengths(future.result(0)) for future in futures] == [[3], [3], [1, 3]]
    assert [future.result(0).cached for future in futures] == [0, 1, 1]


def test_cancelling_reaches_the_model():
    model = FakePool()
    future = CachedEmbedder(model).begin(["abc"], "query")
    assert future.cancel()
    assert model.begun[0][1].cancelled()


def test_cancelling_the_first_does_not_cancel_the_others():
    model = FakePool()
    cached = CachedEmbedder(model)
    futures = [cached.begin(["abc"], "query") for _ in range(4)]
    assert futures[0].cancel()
    assert [texts for texts, _ in model.begun] == [["abc"], ["abc"]]  # one took over, the others joined it
    assert futures[2].cancel()
    assert not model.begun[1][1].cancelled()
    model.finish(1)
    assert lengths(futures[1].result(0)) == lengths(futures[3].result(0)) == [3]


def test_nothing_is_begun_for_who_has_gone():
    model = FakePool()
    cached = CachedEmbedder(model)
    first, second = cached.begin(["abc"], "query"), cached.begin(["abc"], "query")
    second.cancel()
    first.cancel()
    assert len(model.begun) == 1


def test_a_model_that_cannot_be_cancelled_any_more_still_serves_the_others():
    model = FakePool()
    cached = CachedEmbedder(model)
    first, second = cached.begin(["abc"], "query"), cached.begin(["abc"], "query")
    assert model.begun[0][1].set_running_or_notify_cancel()
    assert first.cancel()
    model.finish(0)
    assert lengths(second.result(0)) == [3] and len(model.begun) == 1


def test_errors_come_with_the_future():
    model = FakePool(error=Overloaded("full"))
    cached = CachedEmbedder(model)
    for mode in ("use", "bypass", "refresh"):
        assert isinstance(cached.begin(["abc"], "query", caches=mode).exception(0), Overloaded)
    model.error = None
    future = cached.begin(["abc"], "query")
    model.begun[0][1].set_exception(TimedOut("late"))
    assert isinstance(future.exception(0), TimedOut)


def test_begin_joins_no_flight_that_may_outlast_its_deadline():
    model = FakePool()
    cached = CachedEmbedder(model)
    now = time.monotonic()
    cached.begin(["abc"], "query", deadline=now + 10)
    cached.begin(["abc"], "query", deadline=now + 5)
    cached.begin(["abc"], "query", deadline=now + 20)
    assert len(model.begun) == 2


def test_begin_passes_bulk_and_bypass_through():
    model = FakePool()
    cached = CachedEmbedder(model)
    assert cached.begin(["a", "b"]) is model.begun[0][1]
    assert cached.begin(["a"], "query", caches="bypass") is model.begun[1][1]


def test_an_embedder_without_begin_has_none():
    with pytest.raises(TypeError, match="FakeEmbedder has no begin"):
        CachedEmbedder(FakeEmbedder()).begin(["a"], "query")


def test_begin_under_asyncio():
    model = FakePool()
    cached = CachedEmbedder(model)

    async def ask() -> Embeddings:
        gone = asyncio.ensure_future(asyncio.wrap_future(cached.begin(["abc"], "query")))
        stays = asyncio.ensure_future(asyncio.wrap_future(cached.begin(["abc"], "query")))
        gone.cancel()
        await asyncio.sleep(0)  # the loop hands the cancelling on
        assert gone.cancelled()
        assert len(model.begun) == 2
        threading.Thread(target=model.finish, args=(1,)).start()
        return await asyncio.wait_for(stays, PATIENCE)

    assert lengths(asyncio.run(ask())) == [3]


def test_answers_go_without_the_garbage_collector():
    model = FakePool()
    cached = CachedEmbedder(model)
    reranker = FakeReranker(held=True)
    reranked = CachedReranker(reranker, MemoryScores())
    gc.collect()
    gc.disable()
    try:
        left = []
        futures: list[Future[Embeddings] | Future[Scores]] = [cached.begin(["abc"], "query") for _ in range(2)]
        model.finish(0)
        model.begun.clear()
        futures.append(reranked.begin("q", passages("a")))
        reranker.begun.pop().set_result(reranker.score("q", passages("a")))
        for future in futures:
            left.append(weakref.ref(future))
        del futures, future
        assert [reference() for reference in left] == [None] * 3
    finally:
        gc.enable()
