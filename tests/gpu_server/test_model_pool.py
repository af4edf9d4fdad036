"""The pool: one load for all who ask, who is cold, what failed loads, deadlines and reloads do. The models are fakes."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gpu_server.errors import BadInput, EngineError, ForwardFailed, Overloaded, TimedOut
from gpu_server.interfaces import (
    ChatRequest,
    Delta,
    Encoded,
    ModelInfo,
    RerankCandidate,
    Scores,
    TextKind,
    Timing,
    VectorKind,
    Vectors,
)
from gpu_server.model_pool import ModelPool, PooledEmbedder
from gpu_server.slot import Visit

PATIENCE = 60.0


@dataclass
class FakeEmbedder:
    """A letter is a token, the dense vector is (tokens, 1), the sparse one {tokens: 0.5}; cut at 50 tokens.

    Passes wait for `gate`, fail with `error`, and are noted as the number of their texts. A text of 'nan' has no vector.
    """

    gate: threading.Event | None = None
    error: BaseException | None = None
    encode_error: Exception | None = None
    passes: list[int] = field(default_factory=list)
    wanted: list[frozenset[VectorKind]] = field(default_factory=list)
    running: int = 0
    most: int = 0
    entered: threading.Event = field(default_factory=threading.Event)
    info: ModelInfo = field(
        default_factory=lambda: ModelInfo("fake", "embedder", "fake-2", "cpu", "fp32", dimension=2, memory_bytes=1000)
    )

    def encode(self, texts: Sequence[str], kind: TextKind) -> list[Encoded]:
        if self.encode_error is not None:
            raise self.encode_error
        return [Encoded([ord(letter) for letter in text[:50]], len(text) > 50) for text in texts]

    def forward(self, batch: Sequence[Encoded], vectors: frozenset[VectorKind]) -> list[Vectors]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.entered.set()
        try:
            if self.gate is not None:
                assert self.gate.wait(PATIENCE)
            if self.error is not None:
                raise self.error
            self.passes.append(len(batch))
            self.wanted.append(vectors)
            everything = np.ones((sum(len(item.ids) for item in batch), 2), dtype=np.float32)
            return [self._vectors(item, vectors, everything) for item in batch]
        finally:
            self.running -= 1

    def _vectors(self, item: Encoded, vectors: frozenset[VectorKind], everything: Any) -> Vectors:
        tokens = len(item.ids)
        first = np.nan if bytes(item.ids) == b"nan" else tokens
        late = everything[:tokens] if "late" in vectors else None
        return Vectors(np.array([first, 1], dtype=np.float32), {tokens: 0.5} if "sparse" in vectors else None, late)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


class FakeRerankModel:
    """The score of a passage is its letters less the query's; one of 'inf' has none."""

    info = ModelInfo("fake", "reranker", "fake", "cpu", "fp32")

    def encode(self, query: str, texts: Sequence[str]) -> list[Encoded]:
        return [Encoded([len(query), *map(ord, text)], len(text) > 50) for text in texts]

    def forward(self, batch: Sequence[Encoded]) -> Any:
        scores = [np.inf if bytes(item.ids[1:]) == b"inf" else len(item.ids) - 1 - item.ids[0] for item in batch]
        return np.array(scores, dtype=np.float32)


@dataclass
class FakeReranker:
    """What is a Reranker already: the score is the passage's letters; waits for `gate`."""

    gate: threading.Event | None = None
    error: Exception | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    info: ModelInfo = field(default_factory=lambda: ModelInfo("fake", "reranker", "fake", "cpu", "fp32"))
    uses_route_scores = True

    def score(self, query: str, candidates: Sequence[RerankCandidate], *, deadline=None, caches="use") -> Scores:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
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


def passages(*texts: str) -> list[RerankCandidate]:
    return [RerankCandidate(text) for text in texts]


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


def wait_for(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "did not happen in time"
        threading.Event().wait(0.005)


def stands_in(thread: threading.Thread, function: str, variable: str) -> bool:
    """Whether the thread waits in this function of the pool, or below it, past the line that sets the variable."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_name == function and variable in frame.f_locals:
            return True
        frame = frame.f_back
    return False


# 1) loading


def test_nothing_loads_before_it_is_needed() -> None:
    pool, embedder, maker = pooled()
    assert maker.tries == 0 and [status.state for status in pool.status()] == ["waiting"]
    assert embedder.info.name == "fake" and maker.tries == 1
    assert embedder.count_tokens("one two") == 2 and maker.tries == 1


def test_ten_threads_asking_get_one_load_and_one_pass_at_a_time() -> None:
    gate = threading.Event()
    pool, embedder, maker = pooled(gate=gate)
    threads, results = at_once(10, lambda: embedder.embed(["four"]))
    assert maker.entered.wait(PATIENCE)
    assert pool.status()[0].state == "loading"
    gate.set()
    join(threads)
    assert maker.tries == 1 and maker.model.most == 1 and sum(maker.model.passes) == 10
    assert all(result.dense.tolist() == [[4.0, 1.0]] for result in results)
    status = pool.status()[0]
    assert (status.state, status.runs, status.error, status.proven) == ("warm", 10, None, True)
    assert status.load_seconds is not None and status.first_run_seconds is not None and status.loaded_at is not None
    assert (status.info, status.devices, status.memory_bytes) == (maker.model.info, ("cpu",), 1000)
    assert (status.texts, status.tokens, status.queue_texts, status.failures) == (10, 40, 0, 0)
    assert status.tokens_per_second is not None and status.busy_ratio is not None


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
    wait_for(lambda: all(stands_in(thread, "loaded", "attempts") for thread in others))
    gate.set()
    join([*first, *others])
    assert maker.tries == 1
    assert [str(problem) for problem in (*outcome, *outcomes)] == ["no weights"] * 10


# 2) what comes back


def test_an_embedding_is_whole_and_in_order() -> None:
    _, embedder, _ = pooled()
    result = embedder.embed(["abc", "a" * 60, "", "x"])
    assert result.dense.dtype == np.float32
    assert result.dense[:, 0].tolist() == [3, 50, 0, 1]
    assert result.sparse == ({3: 0.5}, {50: 0.5}, {0: 0.5}, {1: 0.5})
    assert (result.late, result.tokens, result.truncated, result.cached) == (None, 54, 1, 0)


def test_each_request_gets_the_vectors_it_asked_for_though_they_share_a_batch() -> None:
    model = FakeEmbedder(threading.Event())
    pool, embedder, _ = pooled(model)
    pool_thread, _ = at_once(1, lambda: embedder.embed(["held"], "query"))
    assert model.entered.wait(PATIENCE)
    plain = embedder.begin(["ab"], "query", vectors=frozenset({"dense"}))
    late = embedder.begin(["abc"], "query", vectors=frozenset({"dense", "late"}))
    assert model.gate is not None
    model.gate.set()
    join(pool_thread)
    assert (plain.result(PATIENCE).sparse, plain.result().late, late.result(PATIENCE).sparse) == (None, None, None)
    rows = late.result().late
    assert rows is not None and rows[0].shape == (3, 2) and rows[0].base is None, "no window on the whole batch"
    assert model.wanted[-1] == {"dense", "late"} and model.passes == [1, 2]
    assert pool.status()[0].runs == 3


def test_scores_come_raw_in_candidate_order_and_are_counted() -> None:
    reranker = ModelPool().add_reranker("fake", FakeRerankModel)
    scores = reranker.score("query", passages("a" * 60, "abc", "seven b"))
    assert scores.values.tolist() == [55, -2, 2] and scores.values.dtype == np.float32
    assert (scores.tokens, scores.truncated, scores.cached, scores.timing.cold) == (73, 1, 0, True)
    assert not reranker.begin("query", passages("a")).result(PATIENCE).timing.cold
    assert reranker.score("query", []).values.tolist() == reranker.begin("query", []).result(0).values.tolist() == []


@pytest.mark.parametrize("vector", ["dense", "sparse", "late"])
def test_a_vector_that_is_no_number_is_an_error_of_its_request_alone(vector: str) -> None:
    bad = {"dense": np.array([1, np.inf]), "sparse": {1: float("nan")}, "late": np.array([[1.0, np.nan]])}

    class BrokenEmbedder(FakeEmbedder):
        def _vectors(self, item: Encoded, vectors: frozenset[VectorKind], everything: Any) -> Vectors:
            good: dict[str, Any] = {"dense": np.array([1, 1]), "sparse": None, "late": None}
            return Vectors(**(good | ({vector: bad[vector]} if len(item.ids) == 3 else {})))

    _, embedder, _ = pooled(BrokenEmbedder())
    with pytest.raises(ForwardFailed, match=r"text 1 of 1: .*NaN") as failed:
        embedder.embed(["nan"])
    assert "fp32" in failed.value.next_step
    assert embedder.embed(["good"]).dense.tolist() == [[1, 1]]


def test_a_score_that_is_no_number_is_an_error() -> None:
    reranker = ModelPool().add_reranker("fake", FakeRerankModel)
    with pytest.raises(ForwardFailed, match="text 2 of 2"):
        reranker.score("query", passages("good", "inf"))


def test_no_texts_are_bad_input_and_load_nothing() -> None:
    _, embedder, maker = pooled()
    for call in (embedder.embed, embedder.begin):
        with pytest.raises(BadInput, match="no texts"):
            call([])
    assert maker.tries == 0


# 3) cold and warm


def test_loading_and_the_first_run_are_cold_and_everything_after_is_warm() -> None:
    _, embedder, _ = pooled()
    first, second = embedder.embed(["x"]).timing, embedder.embed(["x"]).timing
    assert first.cold and first.load > 0
    assert not second.cold and second.load == 0 and second.queue >= 0
    assert second.tokenize > 0 and second.compute > 0 and second.network is None


def test_load_queue_tokenize_and_compute_stay_within_the_time_of_the_call() -> None:
    _, embedder, _ = pooled()
    for _ in range(5):
        started = time.perf_counter()
        timing = embedder.embed(["x"] * 100).timing
        assert 0 < timing.load + timing.queue + timing.tokenize + timing.compute <= time.perf_counter() - started


def test_the_first_run_after_a_load_by_somebody_else_is_cold() -> None:
    _, embedder, _ = pooled()
    assert embedder.info  # loads
    timing = embedder.embed(["x"]).timing
    assert timing.cold and timing.load == 0
    assert not embedder.embed(["x"]).timing.cold


def test_waiting_for_somebody_elses_first_run_is_cold() -> None:
    gate = threading.Event()
    model = FakeEmbedder(gate)
    pool, embedder, _ = pooled(model)
    first, one = at_once(1, lambda: embedder.embed(["x"]).timing)
    assert model.entered.wait(PATIENCE)
    second, other = at_once(1, lambda: embedder.embed(["x"]).timing)
    wait_for(lambda: pool.status()[0].queue_texts)
    gate.set()
    join([*first, *second])
    assert one[0].cold and other[0].cold and other[0].queue > 0
    assert not embedder.embed(["x"]).timing.cold


def test_a_first_run_that_failed_does_not_warm() -> None:
    model = FakeEmbedder(error=RuntimeError("out of memory"))
    pool, embedder, _ = pooled(model)
    with pytest.raises(ForwardFailed, match="out of memory"):
        embedder.embed(["x"])
    status = pool.status()[0]
    assert (status.state, status.runs, status.failures, status.proven) == ("failed", 0, 1, False)
    assert status.error is not None and "RuntimeError: out of memory" in status.error
    model.error = None
    assert embedder.embed(["x"]).timing.cold
    assert (pool.status()[0].state, pool.status()[0].error) == ("warm", None)


def test_a_later_failure_leaves_the_model_warm_and_unproven_until_it_answers() -> None:
    model = FakeEmbedder()
    pool, embedder, _ = pooled(model)
    embedder.embed(["x"])
    model.error = ValueError("bad text")
    with pytest.raises(ForwardFailed, match="bad text"):
        embedder.embed(["x"])
    assert (pool.status()[0].state, pool.status()[0].proven, pool.status()[0].failures) == ("warm", False, 1)
    assert isinstance(embedder.begin(["x"]).exception(PATIENCE), ForwardFailed)
    assert pool.status()[0].failures == 2
    model.error = None
    assert not embedder.embed(["x"], deadline=time.monotonic() + PATIENCE).timing.cold
    assert (pool.status()[0].state, pool.status()[0].proven, pool.status()[0].runs) == ("warm", True, 2)


def test_what_is_not_the_models_fault_leaves_it_proven() -> None:
    pool, embedder, maker = pooled()
    embedder.embed(["x"])
    maker.model.encode_error = BadInput("lone surrogate")
    with pytest.raises(BadInput):
        embedder.embed(["x"])
    assert (pool.status()[0].proven, pool.status()[0].failures) == (True, 0)
    maker.model.encode_error = RuntimeError("the tokenizer is broken")
    with pytest.raises(RuntimeError):
        embedder.embed(["x"])
    assert (pool.status()[0].proven, pool.status()[0].failures) == (False, 1)


# 4) deadlines, the queue


def test_a_deadline_while_another_holds_the_worker() -> None:
    gate = threading.Event()
    model = FakeEmbedder(gate)
    pool, embedder, _ = pooled(model)
    holding, results = at_once(1, lambda: embedder.embed(["x"]))
    assert model.entered.wait(PATIENCE)
    for patience in (0.02, -1.0):
        with pytest.raises(TimedOut, match="deadline"):
            embedder.embed(["x"], deadline=time.monotonic() + patience)
    assert (pool.status()[0].state, pool.status()[0].queue_texts) == ("loading", 0)
    gate.set()
    join(holding)
    assert results[0].timing.cold and model.passes == [1]
    assert embedder.embed(["x"], deadline=time.monotonic() + 1e6).dense.shape == (1, 2)


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


def test_queries_go_before_bulk_and_many_texts_are_bulk_whatever_they_say() -> None:
    gate = threading.Event()
    model = FakeEmbedder(gate)
    _, embedder, _ = pooled(model)
    holding, _ = at_once(1, lambda: embedder.embed(["x"]))
    assert model.entered.wait(PATIENCE)
    order: list[str] = []
    calls: list[tuple[str, list[str], TextKind, int]] = [
        ("bulk", ["a" * 50] * 400, "passage", 0),
        ("many", ["b" * 50] * 200, "query", 1),
        ("query", ["c"] * 10, "query", 0),
        ("few", ["d"], "passage", 0),
        ("asked for", ["e"] * 30, "passage", 1),
    ]
    futures = [(name, embedder.begin(texts, kind, priority=priority)) for name, texts, kind, priority in calls]
    for name, future in futures:
        future.add_done_callback(lambda _, name=name: order.append(name))
    gate.set()
    join(holding)
    wait_for(lambda: len(order) == 5)
    assert order == ["query", "few", "asked for", "bulk", "many"]


def test_a_full_queue_refuses_bulk_and_still_takes_queries() -> None:
    gate = threading.Event()
    model, pool = FakeEmbedder(gate), ModelPool(max_queue_texts=10)
    embedder = pool.add_embedder("fake", lambda: model)
    embedder.slot.loaded()
    held = embedder.begin(["x"])
    assert model.entered.wait(PATIENCE)
    bulk = embedder.begin(["x"] * 2048)
    for call in (embedder.begin, embedder.embed):
        with pytest.raises(Overloaded, match="2048 texts wait, at most 10"):
            call(["x"] * 5)
    query = embedder.begin(["x"], "query")
    gate.set()
    assert [len(future.result(PATIENCE).dense) for future in (held, bulk, query)] == [1, 2048, 1]
    assert pool.status()[0].failures == 0


# 5) begin


def test_begin_gives_what_embed_gives_and_its_timing() -> None:
    pool, embedder, _ = pooled()
    pool.warm_up()
    now, later = embedder.embed(["abc", "x"]), embedder.begin(["abc", "x"]).result(PATIENCE)
    assert later.dense.tolist() == now.dense.tolist() and later.sparse == now.sparse and later.tokens == now.tokens
    assert not later.timing.cold and later.timing.compute > 0 and later.timing.tokenize > 0


def test_cancelling_what_was_begun_drops_its_texts() -> None:
    gate = threading.Event()
    model = FakeEmbedder(gate)
    pool, embedder, _ = pooled(model)
    embedder.slot.loaded()
    held = embedder.begin(["x"])
    assert model.entered.wait(PATIENCE)
    gone = embedder.begin(["y"] * 30)
    assert pool.status()[0].queue_texts == 30
    assert gone.cancel()
    assert pool.status()[0].queue_texts == 0
    gate.set()
    assert held.result(PATIENCE).tokens == 1
    with pytest.raises(CancelledError):
        gone.result(0)
    assert embedder.embed(["z"]).tokens == 1
    assert model.passes == [1, 1] and pool.status()[0].failures == 0


def test_begin_of_a_model_that_is_not_loaded_waits_for_the_load_elsewhere() -> None:
    gate = threading.Event()
    _, embedder, maker = pooled(gate=gate, errors=[OSError("no weights")])
    failing = embedder.begin(["x"])
    assert maker.entered.wait(PATIENCE) and not failing.done()
    gate.set()
    assert isinstance(failing.exception(PATIENCE), OSError)
    assert embedder.begin(["x"]).result(PATIENCE).timing.cold


# 6) what is called directly


def test_warm_up_leaves_every_kind_warm() -> None:
    pool, embedder, _ = pooled()
    reranker, chat = pool.add_reranker("fake", FakeReranker, uses_route_scores=True), pool.add_chat_model("fake", FakeChat)
    pool.warm_up()
    assert [(status.kind, status.state, status.runs, status.queue_texts) for status in pool.status()] == [
        ("embedder", "warm", 1, 0),
        ("reranker", "warm", 1, None),
        ("llm", "warm", 1, None),
    ]
    assert not embedder.embed(["x"]).timing.cold
    scores = reranker.score("q", passages("abc", "a"))
    assert scores.values.tolist() == [3, 1] and not scores.timing.cold and scores.timing.compute == 0.5
    assert (reranker.info.kind, chat.info.kind, reranker.uses_route_scores) == ("reranker", "llm", True)


def test_warm_up_never_raises_and_goes_on_after_a_failure() -> None:
    pool, _, _ = pooled(errors=[OSError("no weights")])
    pool.add_reranker("broken", Maker(FakeReranker(error=ValueError("broken"))))
    pool.add_chat_model("fake", FakeChat)
    pool.warm_up()
    assert [status.state for status in pool.status()] == ["failed", "failed", "warm"]
    assert all(status.error for status in pool.status()[:2])


def test_a_reranker_that_is_called_directly_has_one_caller_at_a_time() -> None:
    gate = threading.Event()
    model = FakeReranker(gate)
    pool = ModelPool()
    reranker = pool.add_reranker("fake", lambda: model)
    holding, results = at_once(1, lambda: reranker.score("q", passages("abc")))
    assert model.entered.wait(PATIENCE)
    with pytest.raises(TimedOut, match="no turn at fake"):
        reranker.score("q", passages("x"), deadline=time.monotonic() + 0.02)
    begun = reranker.begin("q", passages("ab"))
    assert not begun.done()
    gate.set()
    join(holding)
    assert results[0].values.tolist() == [3] and begun.result(PATIENCE).values.tolist() == [2]
    assert (pool.status()[0].runs, pool.status()[0].failures) == (2, 0)


def test_a_stream_is_the_only_one_until_it_ends_or_is_closed() -> None:
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


# 7) proof, reload, several devices, the end


def test_a_proof_is_a_real_pass_before_all_that_waits() -> None:
    gate = threading.Event()
    model = FakeEmbedder(gate)
    pool, embedder, maker = pooled(model)
    holding, _ = at_once(1, lambda: embedder.embed(["x"]))
    assert model.entered.wait(PATIENCE)
    with pytest.raises(TimedOut):
        pool.prove("embedder", time.monotonic() + 0.02)
    assert not pool.status()[0].proven
    gate.set()
    join(holding)
    assert pool.prove("embedder", time.monotonic() + PATIENCE) > 0
    model.error = RuntimeError("device lost")
    with pytest.raises(ForwardFailed, match="device lost"):
        pool.prove("embedder")
    assert not pool.status()[0].proven and maker.tries == 1
    with pytest.raises(LookupError, match="no llm is in this pool"):
        pool.prove("llm")


def test_reload_finishes_what_waits_then_loads_anew_and_runs_once() -> None:
    gate, old, new = threading.Event(), FakeEmbedder(), FakeEmbedder()
    old.gate, models = gate, [old, new]
    pool = ModelPool()
    embedder = pool.add_embedder("fake", lambda: models.pop(0))
    embedder.slot.loaded()
    waiting = [embedder.begin(["x"]) for _ in range(3)]
    assert old.entered.wait(PATIENCE)
    reloading, status = at_once(1, lambda: pool.reload("embedder", PATIENCE))
    wait_for(lambda: embedder.slot.glance() is None)
    coming = embedder.begin(["y"])
    gate.set()
    join(reloading)
    assert [future.result(0).tokens for future in waiting] == [1, 1, 1] and sum(old.passes) == 3
    assert coming.result(PATIENCE).timing.cold and sum(new.passes) == 2
    assert (status[0].state, status[0].proven, status[0].kind) == ("warm", True, "embedder")
    gone = weakref.ref(old)
    del old
    wait_for(lambda: gc.collect() >= 0 and gone() is None)


def test_a_call_that_meets_a_reload_goes_on_to_the_new_model() -> None:
    pool, embedder, maker = pooled()
    pool.warm("embedder")
    before = embedder.slot.visit()
    pool.reload("embedder")
    held: Visit[Any] = before
    request = embedder._request(["abc"], "query", frozenset({"dense"}), 0, None)
    sent, outcome = request.run(held)
    assert sent.visit.loaded is not before.loaded and outcome.results[0].dense[0] == 3 and maker.tries == 2


def test_a_caller_whose_turn_comes_after_a_reload_gets_the_new_model() -> None:
    models = [FakeReranker(), FakeReranker()]
    old, new = models
    pool = ModelPool()
    reranker = pool.add_reranker("fake", lambda: models.pop(0))
    before = reranker.slot.visit()
    pool.reload("reranker")
    with reranker.slot.turn(before) as turn:
        assert turn.model is new
    assert before.loaded.model is old


def test_a_reload_that_fails_says_so_and_the_next_call_loads() -> None:
    pool, embedder, maker = pooled()
    pool.warm("embedder")
    maker.errors.append(OSError("no weights"))
    with pytest.raises(OSError):
        pool.reload("embedder")
    status = pool.status()[0]
    assert (status.state, status.proven, status.first_run_seconds) == ("failed", False, None)
    assert embedder.embed(["x"]).timing.cold


def test_a_reload_waits_for_a_stream_and_gives_up_in_time() -> None:
    pool = ModelPool()
    maker = Maker(FakeChat())
    chat = pool.add_chat_model("fake", maker)
    request = ChatRequest(({"role": "user", "content": "?"},), 4, 0.0, timeout=PATIENCE)
    stream = chat.stream(request)
    next(stream)
    with pytest.raises(TimedOut, match="busy"):
        pool.reload("llm", 0.02)
    assert [delta.text for delta in stream] == ["two"]
    assert pool.reload("llm").state == "warm" and maker.tries == 2


def test_one_replica_for_each_device_and_a_proof_runs_them_all() -> None:
    models = [FakeEmbedder(info=ModelInfo("m", "embedder", "m", f"cuda:{n}", "bf16", memory_bytes=10)) for n in range(3)]
    pool = ModelPool()
    pool.add_embedder("fake", [lambda model=model: model for model in models])
    pool.warm_up()
    status = pool.status()[0]
    assert (status.devices, status.memory_bytes, status.batches) == (("cuda:0", "cuda:1", "cuda:2"), 30, 3)
    assert [model.passes for model in models] == [[1], [1], [1]]
    models[1].error = RuntimeError("lost")
    with pytest.raises(ForwardFailed, match="lost"):
        pool.prove("embedder")


def test_a_stopped_pool_finishes_what_it_took_and_takes_no_more() -> None:
    gate = threading.Event()
    model = FakeEmbedder(gate)
    pool, embedder, _ = pooled(model)
    reranker = pool.add_reranker("never loaded", FakeReranker)
    embedder.slot.loaded()
    taken = [embedder.begin(["x"]) for _ in range(3)]
    assert model.entered.wait(PATIENCE)
    stopping, _ = at_once(1, lambda: pool.stop(PATIENCE))
    wait_for(lambda: embedder.slot._stopped)
    gate.set()
    join(stopping)
    assert [future.result(0).tokens for future in taken] == [1, 1, 1]
    refused: list[Callable[[], Any]] = [
        lambda: embedder.embed(["x"]),
        lambda: embedder.begin(["x"]),
        lambda: reranker.score("q", passages("x")),
        lambda: pool.prove("embedder"),
        lambda: pool.reload("embedder"),
    ]
    for call in refused:
        with pytest.raises(EngineError, match="shutting down"):
            call()
    assert pool.status()[0].runs == 3
