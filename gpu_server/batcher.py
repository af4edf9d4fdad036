"""Many callers' texts through one model in batches: a worker thread for each device, one bounded queue before them all.

A batch that fails is split down to the text that is to blame, whose request alone fails; the workers never die. Knows nothing
of what a model computes: texts are token ids, results are whatever the forward function gives.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gpu_server.batch_queue import BatchQueue
from gpu_server.errors import BadInput, EngineError, ForwardFailed
from gpu_server.interfaces import Encoded, VectorKind
from gpu_server.pace import Pace, Recent
from gpu_server.tickets import Entry, Ticket, cost

log = logging.getLogger(__name__)

MAX_QUEUE_TEXTS = 8192  # a lane: four of the largest requests (2,048 texts); at 500 tokens a text 150 MB of ids
MAX_BATCH_TOKENS = 16384
TARGET_BATCH_SECONDS = 0.1  # how long a query waits at most for the batch in flight, where a single text does not take longer

EXIT_SECONDS = 5.0

R = TypeVar("R")
Forward = Callable[[Sequence[Encoded], frozenset[VectorKind]], Sequence[R | ForwardFailed]]


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """A moment's reading. Waiting: `queue_*`. Since the start: `batches`, `texts` and `tokens` that were computed, requests
    that failed for the model (`failures`), batches that were split, and memory that ran out (`out_of_memory`).

    The other values are None before the first batch; `tokens_per_second` and `busy_ratio` (0..1, of all workers) are of the
    last 30 s.
    """

    queue_texts: int
    queue_tokens: int
    batches: int
    texts: int
    tokens: int
    failures: int
    splits: int
    out_of_memory: int
    tokens_per_second: float | None
    busy_ratio: float | None
    last_batch_texts: int | None
    last_batch_tokens: int | None


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a pass raised, without the frames, which would hold its tensors."""

    text: str
    next_step: str = ""
    error: type[EngineError] = ForwardFailed


class _Counts:
    """What the workers have done, together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent = Recent()
        self.batches = self.texts = self.tokens = self.failures = self.splits = self.out_of_memory = 0
        self.last: tuple[int, int] | None = None

    def ran(self, texts: int, tokens: int, seconds: float) -> None:
        with self._lock:
            self.batches += 1
            self.texts += texts
            self.tokens += tokens
            self.last = texts, tokens
            self._recent.add(tokens, seconds, time.monotonic())

    def add(self, *, failures: int = 0, splits: int = 0, out_of_memory: int = 0) -> None:
        with self._lock:
            self.failures += failures
            self.splits += splits
            self.out_of_memory += out_of_memory

    def read(self, queued: tuple[int, int], workers: int) -> BatcherStats:
        with self._lock:
            rate, busy = self._recent.rates(time.monotonic())
            return BatcherStats(
                queue_texts=queued[0],
                queue_tokens=queued[1],
                batches=self.batches,
                texts=self.texts,
                tokens=self.tokens,
                failures=self.failures,
                splits=self.splits,
                out_of_memory=self.out_of_memory,
                tokens_per_second=rate,
                busy_ratio=None if busy is None else min(1.0, busy / workers),
                last_batch_texts=self.last[0] if self.last else None,
                last_batch_tokens=self.last[1] if self.last else None,
            )


_batchers: weakref.WeakSet[Batcher[Any]] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """End the workers before the interpreter does: a thread that it cuts off inside torch, or while it lets go of its model,
    ends the process with abort()."""
    for batcher in list(_batchers):
        batcher.stop(drain=False, timeout=EXIT_SECONDS)
    for thread in list(_threads):  # of batchers that nobody held any more
        thread.join(EXIT_SECONDS)


class Batcher(Generic[R]):
    """A queue and, for each of `forwards`, a thread that runs it; the threads start with the first request.

    A forward function gets texts and the kinds of vectors that any of them wants, and gives one result a text; for a text it
    failed on alone, a ForwardFailed. Thread-safe. One that nobody holds any more finishes what waits and ends its threads.
    """

    def __init__(
        self,
        forwards: Sequence[Forward[R]],
        *,
        name: str = "the model",
        max_queue_texts: int = MAX_QUEUE_TEXTS,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        target_batch_seconds: float = TARGET_BATCH_SECONDS,
    ) -> None:
        """`max_queue_texts` is the bound of each lane, urgent and bulk; a larger request is taken where its lane is empty.

        A batch has at most `max_batch_tokens`, and as many as run in about `target_batch_seconds`, but always one text.
        """
        self._queue: BatchQueue[R] = BatchQueue(name, len(forwards), max_queue_texts)
        self._counts = _Counts()
        self._workers = [
            _Worker(number, forward, self._queue, Pace(max_batch_tokens, target_batch_seconds), self._counts)
            for number, forward in enumerate(forwards)
        ]
        weakref.finalize(self, self._queue.close)
        _batchers.add(self)

    def submit(
        self,
        items: Sequence[Encoded],
        *,
        wanted: frozenset[VectorKind] = frozenset(),
        priority: int = 0,
        deadline: float | None = None,
    ) -> Ticket[R]:
        """Queue a request of at least one text; returns at once.

        Bulk work has `priority` 0; 1 is before it, 2 before that. A request still queued at `deadline` (monotonic seconds)
        fails with TimedOut when a worker comes to it, and is not computed; `Ticket.wait` raises at the deadline itself.
        Raises Overloaded where the lane is full, its subclass ShuttingDown after `stop`.
        """
        ticket: Ticket[R] = Ticket(self._queue, items, wanted, deadline)
        rates = [worker.pace.tokens_per_second for worker in self._workers]
        self._queue.put(ticket, priority, sum(rate for rate in rates if rate is not None) or None)
        self._start()
        return ticket

    def submit_to_each(
        self, items: Sequence[Encoded], *, wanted: frozenset[VectorKind] = frozenset(), deadline: float | None = None
    ) -> list[Ticket[R]]:
        """The same request for each worker, as its next batch: whether every device works. Raises ShuttingDown."""
        tickets: list[Ticket[R]] = [Ticket(self._queue, items, wanted, deadline) for _ in self._workers]
        for number, ticket in enumerate(tickets):
            self._queue.put_for(number, ticket)
        self._start()
        return tickets

    def stats(self) -> BatcherStats:
        return self._counts.read(self._queue.sizes(), len(self._workers))

    def stop(self, *, drain: bool = True, timeout: float = 10.0) -> bool:
        """Take no more requests, finish those that wait (without `drain` fail them), end the threads.

        False where `timeout` seconds were not enough; the threads then end when they are done.
        """
        self._queue.close(drain=drain)
        end = time.monotonic() + timeout
        ended = [worker.join(max(0.0, end - time.monotonic())) for worker in self._workers]
        return all(ended)

    def _start(self) -> None:
        for worker in self._workers:
            worker.start()


class _Worker(Generic[R]):
    """The only thread that runs one forward function."""

    def __init__(self, number: int, forward: Forward[R], queue: BatchQueue[R], pace: Pace, counts: _Counts) -> None:
        self.pace = pace
        self._number = number
        self._forward = forward
        self._queue = queue
        self._counts = counts
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread where none lives."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                name = f"batcher {self._queue.name} {self._number}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                _threads.add(self._thread)
                self._thread.start()

    def join(self, timeout: float) -> bool:
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """One batch; a function of its own, so that nothing of it is held while the next one is waited for."""
        batch = self._queue.take(self._number, lambda: self.pace.budget(time.monotonic()))
        if batch is None:
            return False
        try:
            self._compute(batch)
        except BaseException as problem:  # ours, not the model's: those whom it concerns hear of it, the worker goes on
            log.exception("the worker of %s failed", self._queue.name)
            self._fail_all(batch, _Failure(f"{type(problem).__name__}: {problem}"))
        finally:
            self._queue.ended(batch)
        return True

    def _compute(self, batch: list[Entry[R]]) -> None:
        """The batch, or on failure its halves and so on down to the texts to blame: 1 + 2 log2(n) passes for one among n.

        Where both halves fail, up to three requests' texts are tried alone: when none of them passes either, it is not the
        texts, and the rest fails unseen instead of in 2n passes.
        """
        failure = self._failure(batch)
        if failure is None or len(batch) == 1:
            return
        self._counts.add(splits=1)
        failed = [half for half in _halves(batch) if self._failure(half)]
        if len(failed) == 2 and self._is_hopeless(batch):
            log.error("every pass of %s fails: %s", self._queue.name, failure.text)
            self._fail_all(batch, failure)
        for half in failed:
            self._bisect(half)

    def _is_hopeless(self, batch: Sequence[Entry[R]]) -> bool:
        probes = _probes(batch)
        return bool(probes) and all(self._failure([probe]) for probe in probes)

    def _bisect(self, part: list[Entry[R]]) -> None:
        """A part that failed."""
        for half in _halves(_open(part)):
            if self._failure(half):
                self._bisect(half)

    def _failure(self, part: Sequence[Entry[R]]) -> _Failure | None:
        """One pass over what is still wanted of the part; what went wrong. A text that fails alone fails its request."""
        entries = _open(part)
        if not entries:
            return None
        failure = self._pass(entries)
        if failure is not None and len(entries) == 1:
            self._fail(entries[0], failure)
        return failure

    def _pass(self, entries: Sequence[Entry[R]]) -> _Failure | None:
        items = [entry.item for entry in entries]
        wanted = frozenset[VectorKind]().union(*(entry.ticket.wanted for entry in entries))
        tokens = sum(map(cost, items))
        started = time.perf_counter()
        try:
            results = self._forward(items, wanted)
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} texts")
        except BaseException as problem:
            return self._blamed(problem, len(items), tokens)
        seconds = time.perf_counter() - started
        self.pace.ran(tokens, seconds)
        self._counts.ran(len(items), tokens, seconds)
        self._deliver(entries, results)
        return None

    def _blamed(self, problem: BaseException, texts: int, tokens: int) -> _Failure:
        level = logging.ERROR if texts == 1 else logging.INFO  # as text: a record would hold the frames, and they the tensors
        log.log(level, "a pass of %s over %d texts failed:\n%s", self._queue.name, texts, traceback.format_exc())
        text = str(problem) or "no message"
        if isinstance(problem, MemoryError) or "out of memory" in text.lower():
            self.pace.out_of_memory(tokens, time.monotonic())
            self._counts.add(out_of_memory=1)
            return _Failure(f"{type(problem).__name__}: {text}", "Free memory on the device, or send shorter texts.")
        if isinstance(problem, BadInput):  # the text's own fault, not the model's
            return _Failure(text, problem.next_step, type(problem))
        return _Failure(f"{type(problem).__name__}: {text}")

    def _deliver(self, entries: Sequence[Entry[R]], results: Sequence[R | ForwardFailed]) -> None:
        good: list[tuple[Entry[R], R]] = []
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, ForwardFailed):
                self._fail(entry, _Failure(result.message, result.next_step))
            else:
                good.append((entry, result))
        self._queue.deliver([entry for entry, _ in good], [result for _, result in good])

    def _fail(self, entry: Entry[R], failure: _Failure) -> None:
        ticket = entry.ticket
        message = f"{self._queue.name} failed on text {entry.number + 1} of {len(ticket.items)}: {failure.text}"
        self._end(ticket, failure.error(message, next_step=failure.next_step))

    def _fail_all(self, batch: Iterable[Entry[R]], failure: _Failure) -> None:
        for entry in batch:
            message = f"{self._queue.name} fails on every text: {failure.text}"
            self._end(entry.ticket, ForwardFailed(message, next_step=failure.next_step))

    def _end(self, ticket: Ticket[R], problem: EngineError) -> None:
        if self._queue.fail(ticket, problem):
            self._counts.add(failures=1)


def _open(part: Sequence[Entry[R]]) -> list[Entry[R]]:
    """Without the texts that are computed, and those of requests that failed or were given up meanwhile."""
    return [entry for entry in part if entry.ticket.wants(entry.number)]


def _halves(part: list[Entry[R]]) -> list[list[Entry[R]]]:
    middle = len(part) // 2
    return [half for half in (part[:middle], part[middle:]) if half and len(part) > 1]


def _probes(batch: Sequence[Entry[R]]) -> list[Entry[R]]:
    """The shortest texts of the first, the middle and the last request that are still open."""
    by_request: dict[Ticket[R], Entry[R]] = {}
    for entry in _open(batch):
        by_request.setdefault(entry.ticket, entry)
    entries = list(by_request.values())
    return [entries[place] for place in sorted({0, len(entries) // 2, len(entries) - 1})] if entries else []
