"""The batcher: order, shares, bounds, faults and the end. The forward functions are fakes: the result of a text is its ids' sum."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpu_server.batch_queue import ShuttingDown
from gpu_server.batcher import Batcher
from gpu_server.errors import BadInput, ForwardFailed, Overloaded, TimedOut
from gpu_server.interfaces import Encoded, VectorKind
from gpu_server.pace import MEMORY_SECONDS, MIN_TOKENS, START_TOKENS, WINDOW_SECONDS, Pace, Recent
from gpu_server.tickets import Ticket

PATIENCE = 60.0
POISON = 666
NOT_A_NUMBER = 667


@dataclass
class FakeForward:
    """Sums the ids of each text. Notes each call's texts by their first id; what it fails on is told by the fields.

    `held`: each pass waits for a `release()`, so that a test decides what waits meanwhile.
    """

    held: bool = False
    memory_tokens: int | None = None
    broken: BaseException | None = None
    poison: BaseException = field(default_factory=lambda: RuntimeError("poisoned"))
    calls: list[list[int]] = field(default_factory=list)
    wanted: list[frozenset[VectorKind]] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    _entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __call__(self, batch: Sequence[Encoded], wanted: frozenset[VectorKind]) -> list[Any]:
        self.calls.append([item.ids[0] for item in batch])
        self.wanted.append(wanted)
        self._entered.release()
        if self.held:
            assert self._gate.acquire(timeout=PATIENCE)
        self._fail(batch)
        self.left.append(time.perf_counter())
        return [ForwardFailed("NaN", next_step="fp32") if NOT_A_NUMBER in item.ids else sum(item.ids) for item in batch]

    def _fail(self, batch: Sequence[Encoded]) -> None:
        if self.broken is not None:
            raise self.broken
        if any(POISON in item.ids for item in batch):
            raise self.poison
        if self.memory_tokens is not None and sum(len(item.ids) for item in batch) > self.memory_tokens:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    def hold(self) -> None:
        """From the next pass on; nothing may run now."""
        self._entered, self._gate = threading.Semaphore(0), threading.Semaphore(0)
        self.held = True

    def entered(self) -> None:
        """Wait for the next pass to begin."""
        assert self._entered.acquire(timeout=PATIENCE)

    def release(self, passes: int = 1) -> None:
        self._gate.release(passes)

    def open(self) -> None:
        self.held = False
        self.release(100)


def text(first: int, tokens: int = 1) -> Encoded:
    return Encoded([first, *[0] * (tokens - 1)])


def steady(*forwards: FakeForward, tokens: int = 400, **more: Any) -> Batcher[int]:
    """A batcher whose budget is `tokens`, however slow the machine is."""
    return Batcher(forwards, max_batch_tokens=tokens, target_batch_seconds=1e9, **more)


def done(ticket: Any) -> list[int]:
    results: list[int] = ticket.result(PATIENCE).results
    return results


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "did not happen in time"
        threading.Event().wait(0.002)


def busy(forward: FakeForward, batcher: Batcher[int]) -> Any:
    """Hold the worker in a pass over one text, the number 1."""
    forward.hold()
    ticket = batcher.submit([text(1)])
    forward.entered()
    return ticket


# 1) what is computed when


def test_requests_that_wait_share_a_batch_sorted_by_length_and_each_gets_its_own_results():
    forward = FakeForward()
    batcher = steady(forward)
    first = busy(forward, batcher)
    waiting = [batcher.submit([text(10, 5), text(20, 2)]), batcher.submit([text(30, 3)]), batcher.submit([text(40, 4), text(50)])]
    forward.open()
    assert [done(ticket) for ticket in (first, *waiting)] == [[1], [10, 20], [30], [40, 50]]
    assert forward.calls == [[1], [50, 20, 30, 40, 10]]


def test_a_request_of_many_texts_is_spread_over_batches_of_the_budget():
    forward = FakeForward()
    batcher = steady(forward, tokens=100)
    assert done(batcher.submit([text(number, 1 + number % 40) for number in range(1, 60)])) == list(range(1, 60))
    assert len(forward.calls) > 5
    assert all(sum(1 + number % 40 for number in call) <= 100 for call in forward.calls)


def test_a_text_over_the_budget_is_a_batch_of_its_own():
    forward = FakeForward()
    batcher = steady(forward, tokens=100)
    assert done(batcher.submit([text(1, 500), text(2, 500), text(3)])) == [1, 2, 3]
    assert forward.calls == [[3], [1], [2]]


def test_a_query_that_comes_while_bulk_runs_is_in_the_very_next_batch_with_a_quarter_of_bulk():
    forward = FakeForward(held=True)
    batcher = steady(forward)
    bulk = batcher.submit([text(number, 100) for number in range(2, 42)])
    forward.entered()
    query = batcher.submit([text(1, 10)], priority=1)
    forward.release(2)
    assert done(query) == [1]
    assert forward.calls[1] == [1, 6], "400 tokens: one text of 100 is a quarter"
    forward.open()
    assert done(bulk) == list(range(2, 42))


def test_bulk_is_not_starved_by_queries_even_where_its_texts_are_longer_than_its_share():
    forward = FakeForward()
    batcher = steady(forward)
    busy(forward, batcher)
    bulk = batcher.submit([text(1000 + number, 250) for number in range(3)])
    queries = [batcher.submit([text(number, 50)], priority=1) for number in range(100, 200)]
    forward.open()
    assert [done(query) for query in queries] == [[number] for number in range(100, 200)]
    assert done(bulk) == [1000, 1001, 1002]
    with_bulk = [place for place, call in enumerate(forward.calls) if call[-1] >= 1000]
    assert len(with_bulk) == 3
    assert with_bulk[-1] < len(forward.calls) - 1, "the last batch is of queries only"
    queries_beside_bulk = [sum(number < 1000 for number in call) for call in forward.calls[1 : with_bulk[-1]]]
    assert set(queries_beside_bulk) == {6}, "50 tokens each: three quarters of 400"


def test_priority_two_goes_before_all_queries():
    forward = FakeForward()
    batcher = steady(forward, tokens=10)
    busy(forward, batcher)
    queries = [batcher.submit([text(number, 10)], priority=1) for number in (2, 3)]
    proof = batcher.submit([text(4, 10)], priority=2)
    forward.open()
    assert [done(ticket) for ticket in (*queries, proof)] == [[2], [3], [4]]
    assert forward.calls == [[1], [4], [2], [3]]


def test_a_batch_is_computed_with_what_any_of_its_requests_wants():
    forward = FakeForward()
    batcher = steady(forward)
    busy(forward, batcher)
    tickets = [batcher.submit([text(2)], wanted=frozenset({"sparse"})), batcher.submit([text(3)], wanted=frozenset({"late"}))]
    forward.open()
    assert [done(ticket) for ticket in tickets] == [[2], [3]]
    assert forward.wanted == [frozenset(), {"sparse", "late"}]


# 2) who goes


def test_a_cancelled_request_is_not_computed_and_leaves_the_queue_at_once():
    forward = FakeForward()
    batcher = steady(forward)
    busy(forward, batcher)
    gone, stays = batcher.submit([text(2, 7)]), batcher.submit([text(3)])
    assert (batcher.stats().queue_texts, batcher.stats().queue_tokens) == (2, 8)
    assert gone.cancel() and gone.cancelled()
    assert (batcher.stats().queue_texts, batcher.stats().queue_tokens) == (1, 1)
    forward.open()
    assert done(stays) == [3]
    assert forward.calls == [[1], [3]]


def test_cancelling_in_the_middle_spares_the_rest_and_harms_nobody():
    forward = FakeForward(held=True)
    batcher = steady(forward, tokens=10)
    bulk = batcher.submit([text(number, 5) for number in range(2, 50)])
    forward.entered()
    other = batcher.submit([text(1, 5)])
    assert bulk.cancel() and not bulk.set_running_or_notify_cancel()
    forward.open()
    assert done(other) == [1]
    assert forward.calls == [[2, 3], [1]]


def test_a_deadline_that_passes_in_the_queue_ends_the_wait_and_spares_the_work():
    forward = FakeForward()
    batcher = steady(forward)
    first = busy(forward, batcher)
    with pytest.raises(TimedOut, match="deadline"):
        batcher.submit([text(2)], deadline=time.monotonic() + 0.02).wait()
    assert batcher.stats().queue_texts == 0
    nobody_waits = batcher.submit([text(3)], deadline=time.monotonic() - 1.0)
    last = batcher.submit([text(4)], deadline=time.monotonic() + PATIENCE)
    forward.open()
    assert isinstance(nobody_waits.exception(PATIENCE), TimedOut)
    assert (done(first), last.wait().results) == ([1], [4])
    assert forward.calls == [[1], [4]]


def test_a_deadline_that_passes_between_two_batches_spares_the_rest():
    forward = FakeForward(held=True)
    batcher = steady(forward, tokens=5)
    bulk = batcher.submit([text(number, 5) for number in range(2, 9)], deadline=time.monotonic() + PATIENCE)
    forward.entered()
    passes = bulk.deadline = time.monotonic()  # now: no machine has to begin the first batch in time
    wait_for(lambda: time.monotonic() > passes)
    forward.open()
    assert isinstance(bulk.exception(PATIENCE), TimedOut)
    assert done(batcher.submit([text(1)])) == [1]
    assert forward.calls == [[2], [1]]


def test_a_full_queue_refuses_at_once_says_when_and_queries_have_a_queue_of_their_own():
    forward = FakeForward()
    batcher = steady(forward, max_queue_texts=10)
    first = busy(forward, batcher)
    large = batcher.submit([text(number) for number in range(2, 32)])  # an empty lane takes any request
    with pytest.raises(Overloaded, match="30 texts wait, at most 10") as refused:
        batcher.submit([text(100)])
    assert refused.value.retry_after is None, "nothing is measured yet"
    query = batcher.submit([text(101)], priority=1)
    forward.open()
    assert (done(first), done(large), done(query)) == ([1], list(range(2, 32)), [101])
    busy(forward, batcher)
    batcher.submit([text(number) for number in range(10)])
    with pytest.raises(Overloaded) as refused:
        batcher.submit([text(100)])
    assert refused.value.retry_after is not None and refused.value.retry_after > 0
    forward.open()


# 3) faults


def test_one_poisoned_request_among_64_fails_alone_and_costs_few_passes():
    forward = FakeForward()
    batcher = steady(forward)
    busy(forward, batcher)
    tickets = [batcher.submit([text(number), text(POISON if number == 40 else number)]) for number in range(64)]
    forward.open()
    for number, ticket in enumerate(tickets):
        if number != 40:
            assert done(ticket) == [number, number]
    with pytest.raises(ForwardFailed, match=r"text 2 of 2: RuntimeError: poisoned"):
        done(tickets[40])
    assert len(forward.calls) <= 1 + 1 + 2 * 7, "128 texts: the batch, then two halves on each of seven levels"
    stats = batcher.stats()
    assert (stats.failures, stats.splits, stats.texts) == (1, 1, 1 + 127)


def test_poison_in_both_halves_fails_those_requests_only():
    forward = FakeForward()
    batcher = steady(forward)
    busy(forward, batcher)
    tickets = [batcher.submit([text(POISON if number in (3, 9, 30, 31) else number)]) for number in range(1, 40)]
    forward.open()
    failed = [number for number, ticket in enumerate(tickets, start=1) if ticket.exception(PATIENCE)]
    assert failed == [3, 9, 30, 31]


def test_a_request_that_failed_is_not_computed_any_further():
    forward = FakeForward()
    batcher = steady(forward, tokens=4)
    busy(forward, batcher)
    poisoned, other = batcher.submit([text(POISON) for _ in range(100)]), batcher.submit([text(7)])
    waiting: list[int] = []
    poisoned.add_done_callback(lambda _: waiting.append(batcher.stats().queue_texts))
    forward.open()
    assert isinstance(poisoned.exception(PATIENCE), ForwardFailed)
    assert done(other) == [7]
    assert len(forward.calls) < 10 and waiting == [1]


def test_a_device_that_fails_on_everything_is_not_asked_for_every_text():
    forward = FakeForward()
    batcher = steady(forward)
    first = busy(forward, batcher)
    tickets = [batcher.submit([text(number)]) for number in range(2, 66)]
    forward.broken = RuntimeError("CUDA error: device-side assert triggered")
    forward.open()
    for ticket in (first, *tickets):
        with pytest.raises(ForwardFailed, match="device-side assert"):
            done(ticket)
    assert len(forward.calls) == 1 + 1 + 2 + 3, "the one that was held; the batch, its halves, three texts alone"
    forward.broken = None
    assert done(batcher.submit([text(5)])) == [5]


def test_memory_that_runs_out_makes_batches_smaller_and_loses_nothing():
    forward = FakeForward(memory_tokens=100)
    batcher = steady(forward)
    assert done(batcher.submit([text(number, 10) for number in range(1, 200)])) == list(range(1, 200))
    stats = batcher.stats()
    assert (stats.failures, stats.texts) == (0, 199)
    assert 1 <= stats.out_of_memory <= 3, "it learns from the first batch"
    assert stats.last_batch_texts is not None and stats.last_batch_texts <= 10


def test_one_text_too_large_for_the_memory_fails_alone_and_says_what_to_do():
    forward = FakeForward(memory_tokens=100)
    batcher = steady(forward)
    busy(forward, batcher)
    large, small = batcher.submit([text(2, 101)]), batcher.submit([text(3, 50)])
    forward.open()
    assert done(small) == [3]
    with pytest.raises(ForwardFailed, match="out of memory") as failed:
        done(large)
    assert "Free memory" in failed.value.next_step


@pytest.mark.parametrize("broken", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_the_worker_survives_what_is_no_exception(broken: BaseException):
    forward = FakeForward(poison=broken)
    batcher = steady(forward)
    busy(forward, batcher)
    thread = batcher._workers[0]._thread
    bad, good = batcher.submit([text(POISON)]), batcher.submit([text(2)])
    forward.open()
    with pytest.raises(ForwardFailed, match=type(broken).__name__):
        done(bad)
    assert (done(good), done(batcher.submit([text(3)]))) == ([2], [3])
    assert batcher._workers[0]._thread is thread


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced_and_what_waited_is_served(monkeypatch: pytest.MonkeyPatch):
    forward = FakeForward()
    batcher = steady(forward)
    with monkeypatch.context() as patch:
        patch.setattr(batcher._queue, "take", lambda *_: sys.exit())
        waits = batcher.submit([text(1)])
        thread = batcher._workers[0]._thread
        assert thread is not None
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert done(batcher.submit([text(2)])) == [2]
    assert done(waits) == [1]


def test_a_result_that_is_no_number_fails_its_request_alone_and_at_once():
    forward = FakeForward()
    batcher = steady(forward)
    busy(forward, batcher)
    bad, good = batcher.submit([text(2), text(NOT_A_NUMBER)]), batcher.submit([text(3)])
    forward.open()
    with pytest.raises(ForwardFailed, match="text 2 of 2: NaN") as failed:
        done(bad)
    assert (failed.value.next_step, done(good), len(forward.calls)) == ("fp32", [3], 2)


def test_a_wrong_number_of_results_is_a_failure():
    batcher: Batcher[int] = Batcher([lambda batch, wanted: [1, 2, 3]])
    with pytest.raises(ForwardFailed, match="text 1 of 2: RuntimeError: 3 results for 1 texts"):
        done(batcher.submit([text(1), text(2)]))


def test_what_the_model_says_of_the_input_stays_bad_input():
    batcher = steady(FakeForward(broken=BadInput("a token is outside the table", next_step="its own tokenizer?")))
    with pytest.raises(BadInput, match="text 1 of 1: a token is outside") as refused:
        done(batcher.submit([text(1)]))
    assert refused.value.next_step == "its own tokenizer?"


def test_a_callback_that_fails_keeps_nobody_else_from_the_results():
    forward = FakeForward()
    batcher = steady(forward)
    busy(forward, batcher)
    first, second = batcher.submit([text(2)]), batcher.submit([text(3)])

    def fail(_: object) -> None:
        raise SystemExit

    first.add_done_callback(fail)
    forward.open()
    assert (done(first), done(second), done(batcher.submit([text(4)]))) == ([2], [3], [4])


# 4) several devices, many callers


def test_two_devices_work_at_the_same_time_on_one_queue():
    both = threading.Barrier(2)

    def forward(batch: Sequence[Encoded], wanted: frozenset[VectorKind]) -> list[int]:
        both.wait(PATIENCE)
        return [sum(item.ids) for item in batch]

    batcher: Batcher[int] = Batcher([forward, forward], max_batch_tokens=2, target_batch_seconds=1e9)
    ticket = batcher.submit([text(number) for number in range(8)])
    assert done(ticket) == list(range(8))
    outcome = ticket.result()
    assert outcome.queue >= 0 and outcome.compute > 0


def test_a_proof_reaches_each_device_before_what_waits():
    forwards = FakeForward(held=True), FakeForward(held=True)
    batcher = steady(*forwards, tokens=1)
    bulk = batcher.submit([text(number) for number in range(2, 8)])
    for forward in forwards:
        forward.entered()
    proofs = batcher.submit_to_each([text(100), text(101)])
    for forward in forwards:
        forward.open()
    assert [done(proof) for proof in proofs] == [[100, 101], [100, 101]]
    assert done(bulk) == list(range(2, 8))
    assert all(forward.calls[1] == [100, 101] for forward in forwards)


def test_many_threads_with_requests_of_any_size_get_exactly_their_own_results():
    batcher = steady(FakeForward(), FakeForward(), max_queue_texts=100_000)
    wrong: list[Any] = []

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            items = [text(chance.randrange(1, 600), chance.randrange(1, 60)) for _ in range(chance.choice((1, 1, 1, 3, 30)))]
            found = batcher.submit(items, priority=int(len(items) == 1)).wait().results
            if found != [item.ids[0] for item in items]:
                wrong.append((items, found))

    threads = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    stats = batcher.stats()
    assert (stats.queue_texts, stats.queue_tokens, stats.failures) == (0, 0, 0)
    assert stats.batches < stats.texts, "requests share batches"
    assert stats.tokens_per_second is not None and stats.busy_ratio is not None and 0 < stats.busy_ratio <= 1


# 5) time, memory, the end


def test_queue_and_compute_add_up_to_the_time_from_submit_to_result():
    forward = FakeForward()
    batcher = steady(forward, tokens=5)
    busy(forward, batcher)
    finished: list[float] = []
    before = time.perf_counter()
    ticket = batcher.submit([text(number, 5) for number in range(2, 12)])
    between = batcher.submit([text(1, 5)], priority=1)
    submitted = time.perf_counter()
    ticket.add_done_callback(lambda _: finished.append(time.perf_counter()))
    wait_for(lambda: time.perf_counter() > submitted + 0.03)
    freed = time.perf_counter()
    forward.open()
    assert (done(ticket), done(between)) == (list(range(2, 12)), [1])
    outcome = ticket.result()
    wait_for(lambda: bool(finished))
    assert forward.left[-1] - submitted <= outcome.queue + outcome.compute <= finished[0] - before
    assert outcome.queue >= freed - submitted, "it waited for the one that was held"
    assert outcome.compute <= finished[0] - freed


def test_time_on_two_devices_at_once_counts_once():
    class NoQueue:
        def drop(self, ticket: Any) -> None: ...

    ticket: Ticket[int] = Ticket(NoQueue(), [text(1), text(2), text(3)], frozenset(), None)
    ticket.begun(1.0)
    ticket.begun(2.0)
    ticket.put(0, 1, 3.0)
    ticket.ended(3.0)
    ticket.put(1, 2, 5.0)
    ticket.ended(5.0)
    ticket.begun(7.0)
    outcome = ticket.put(2, 3, 8.0)
    assert outcome is not None
    assert (outcome.results, outcome.compute) == ([1, 2, 3], 5.0), "from 1 to 5 and from 7 to 8"


def test_nothing_finished_is_kept_in_memory():
    class Ids(list[int]):
        """A list that can be watched."""

    class Broken(Exception):
        """An exception that can be watched."""

    watched: list[weakref.ref[Any]] = []

    def forward(batch: Sequence[Encoded], wanted: frozenset[VectorKind]) -> list[Any]:
        tensor = Ids([1])
        watched.append(weakref.ref(tensor))
        if POISON in batch[0].ids:
            raise Broken
        return [tensor for _ in batch]

    batcher: Batcher[Any] = Batcher([forward])

    def ask() -> None:
        ids = Ids([2])
        watched.append(weakref.ref(ids))
        batcher.submit([Encoded(ids)]).wait()

    gc.disable()
    try:
        ask()
        with pytest.raises(ForwardFailed) as failed:
            batcher.submit([text(POISON)]).wait()
        wait_for(lambda: all(reference() is None for reference in watched))
        assert len(watched) == 3 and failed.value.__cause__ is None
    finally:
        gc.enable()


def test_a_batcher_that_nobody_holds_any_more_ends_its_thread():
    batcher = steady(FakeForward())
    done(batcher.submit([text(1)]))
    thread = batcher._workers[0]._thread
    assert thread is not None
    del batcher
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_stopping_finishes_what_was_accepted_and_refuses_the_rest():
    forward = FakeForward()
    batcher = steady(forward, tokens=1)
    first = busy(forward, batcher)
    waiting = batcher.submit([text(2), text(3)])
    assert not batcher.stop(timeout=0.01), "the worker is held"
    with pytest.raises(ShuttingDown, match="shutting down"):
        batcher.submit([text(4)])
    forward.open()
    assert batcher.stop(timeout=PATIENCE)
    assert (done(first), done(waiting)) == ([1], [2, 3])


def test_stopping_without_draining_fails_what_waits_and_finishes_what_runs():
    forward = FakeForward()
    batcher = steady(forward)
    first = busy(forward, batcher)
    waiting = batcher.submit([text(2)])
    batcher.stop(drain=False, timeout=0.0)
    with pytest.raises(ShuttingDown):
        done(waiting)
    forward.open()
    assert done(first) == [1] and batcher.stop(timeout=PATIENCE)


# 6) the pace


def test_the_budget_follows_the_measured_speed_up_to_its_bound():
    pace = Pace(16384, 0.25)
    assert pace.budget(0.0) == START_TOKENS
    pace.ran(512, 5.0)  # the first pass pays for what is set up once
    assert (pace.tokens_per_second, pace.budget(0.0)) == (None, START_TOKENS)
    pace.ran(512, 0.4)
    assert pace.budget(0.0) == 320
    for _ in range(50):
        pace.ran(320, 0.128)
    assert pace.budget(0.0) == pytest.approx(625, rel=0.01)
    for _ in range(50):
        pace.ran(16384, 0.01)
    assert pace.budget(0.0) == 16384


def test_short_passes_do_not_make_the_budget_small():
    pace = Pace(16384, 0.25)
    pace.ran(1, 1.0)
    pace.ran(512, 0.0512)
    assert pace.budget(0.0) == 2500
    for _ in range(100):
        pace.ran(12, 0.005)  # 2,400 tokens a second, mostly overhead
    assert pace.budget(0.0) == 2500
    pace.ran(2500, 0.5)
    assert pace.budget(0.0) < 2500


def test_overhead_does_not_drive_a_slow_model_down_to_single_texts():
    """A pass of 1 s + 1 ms a token: by its speed alone it would get ever fewer tokens, and be ever slower."""
    pace = Pace(16384, 0.25)
    for _ in range(50):
        tokens = pace.budget(0.0)
        pace.ran(tokens, 1.0 + 0.001 * tokens)
    assert pace.budget(0.0) == MIN_TOKENS


def test_after_memory_ran_out_the_budget_stays_halved_for_a_while():
    pace = Pace(16384, 1e9)
    pace.ran(1, 1.0)
    pace.ran(10, 1.0)
    pace.out_of_memory(8000, now=10.0)
    assert pace.budget(11.0) == 4000
    assert pace.budget(10.0 + MEMORY_SECONDS) == 16384


def test_the_recent_rate_forgets_what_is_long_over():
    recent = Recent()
    assert recent.rates(0.0) == (None, None)
    recent.add(1000, 0.5, 100.5)
    recent.add(1000, 0.5, 110.0)
    assert recent.rates(110.0) == (200.0, 0.1)
    assert recent.rates(100.5 + WINDOW_SECONDS + 2.0)[0] == pytest.approx(1000 / WINDOW_SECONDS)
    assert recent.rates(1000.0) == (0.0, 0.0)


def test_a_process_ends_well_whose_model_is_let_go_of_at_the_last_moment() -> None:
    """A worker that the interpreter cuts off inside torch ends the process with abort()."""
    code = (
        "from gpu_server import makers\n"
        "from gpu_server.model_pool import ModelPool\n"
        "def run():\n"
        "    embedder = ModelPool().add_embedder('starter', makers.embedder('starter', 'cpu', 'auto'))\n"
        "    embedder.embed(['text'] * 64)\n"
        "run()\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
