"""Who waits for a model, and which texts are computed next: two bounded lanes, urgent before bulk, first come first served.

Knows nothing of models: it hands out batches of a token budget and settles tickets. Thread-safe. No timer holds a batch back
for more to come: who asks while texts wait gets them (as text-embeddings-inference does).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gpu_server import futures
from gpu_server.errors import EngineError, Overloaded
from gpu_server.tickets import Entry, Outcome, Ticket, cost, late

log = logging.getLogger(__name__)

BULK_SHARE = 4  # bulk work gets a quarter of the tokens while urgent texts wait, and at most that much delays them

R = TypeVar("R")
T = TypeVar("T")


class ShuttingDown(Overloaded):
    """The batcher takes no more requests: its process ends, or its model is being loaded anew."""


@dataclass(slots=True)
class _Draw(Generic[R]):
    """A batch being put together: its texts, and the tickets found past their deadlines."""

    entries: list[Entry[R]]
    late: list[Ticket[R]]


class _Lane(Generic[R]):
    """Tickets in the order they are served; `texts` and `tokens` are those that no batch has taken."""

    def __init__(self) -> None:
        self._tickets: OrderedDict[Ticket[R], None] = OrderedDict()
        self.texts = 0
        self.tokens = 0

    def push(self, ticket: Ticket[R], *, first: bool) -> None:
        self._tickets[ticket] = None
        if first:
            self._tickets.move_to_end(ticket, last=False)
        texts, tokens = ticket.waiting()
        self.texts += texts
        self.tokens += tokens

    def drop(self, ticket: Ticket[R]) -> None:
        if ticket in self._tickets:
            del self._tickets[ticket]
            texts, tokens = ticket.waiting()
            self.texts -= texts
            self.tokens -= tokens

    def clear(self) -> list[Ticket[R]]:
        tickets = list(self._tickets)
        for ticket in tickets:
            self.drop(ticket)
        return tickets

    def draw(self, room: int, into: _Draw[R]) -> int:
        """Take texts into the batch while they fit in `room` tokens, one at least where the batch is empty; their tokens."""
        used, now = 0, time.monotonic()
        while self._tickets:
            ticket = next(iter(self._tickets))
            if ticket.deadline is not None and now > ticket.deadline:
                self.drop(ticket)
                into.late.append(ticket)
                continue
            while ticket.taken < len(ticket.order):
                index = ticket.order[ticket.taken]
                tokens = cost(ticket.items[index])
                if into.entries and used + tokens > room:
                    return used
                into.entries.append(Entry(ticket, index))
                ticket.taken += 1
                used += tokens
                self.texts -= 1
                self.tokens -= tokens
            del self._tickets[ticket]
        return used


class BatchQueue(Generic[R]):
    """The lanes before `workers` workers.

    `max_texts` is each lane's bound, so that ingestion never takes the place of queries; an empty lane takes any request.
    """

    def __init__(self, name: str, workers: int, max_texts: int) -> None:
        self.name = name
        self._changed = threading.Condition()
        self._urgent: _Lane[R] = _Lane()
        self._bulk: _Lane[R] = _Lane()
        self._own: list[deque[Ticket[R]]] = [deque() for _ in range(workers)]
        self._max_texts = max_texts
        self._credit = 0
        self._closed = False

    def sizes(self) -> tuple[int, int]:
        """Texts and tokens that wait."""
        with self._changed:
            return self._urgent.texts + self._bulk.texts, self._urgent.tokens + self._bulk.tokens

    def put(self, ticket: Ticket[R], priority: int, tokens_per_second: float | None) -> None:
        """Let a ticket wait: `priority` 0 in the bulk lane, 1 in the urgent one, 2 at that one's head. Raises Overloaded."""
        with self._changed:
            self._check_open()
            lane = self._urgent if priority > 0 else self._bulk
            new = len(ticket.items)
            if lane.texts and lane.texts + new > self._max_texts:
                raise self._full(lane, new, tokens_per_second)
            lane.push(ticket, first=priority > 1)
            self._changed.notify()

    def put_for(self, worker: int, ticket: Ticket[R]) -> None:
        """Let a ticket be this worker's next batch, before all others and past the bound: to see whether it works."""
        with self._changed:
            self._check_open()
            self._own[worker].append(ticket)
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown(f"{self.name} is shutting down", next_step="Try again when it is back.")

    def _full(self, lane: _Lane[R], new: int, tokens_per_second: float | None) -> Overloaded:
        wait = None
        if tokens_per_second:
            wait = lane.tokens / lane.texts * min(new, lane.texts) / tokens_per_second  # until that many have been computed
        return Overloaded(
            f"the queue of {self.name} is full: {lane.texts} texts wait, at most {self._max_texts} may",
            next_step="Try again later, or send fewer texts at once.",
            retry_after=wait,
        )

    def take(self, worker: int, budget: Callable[[], int]) -> list[Entry[R]] | None:
        """The next batch, shortest text first, as soon as there is one; None when the queue is closed and empty.

        `ended` must be told of each batch.
        """
        while True:
            draw: _Draw[R] = _Draw([], [])
            with self._changed:
                self._fill(worker, budget(), draw)
                if not draw.entries and not draw.late:
                    if self._closed:
                        return None
                    self._changed.wait()
                    continue
                self._begun(draw.entries)
                if self._urgent.texts or self._bulk.texts:
                    self._changed.notify()  # for a worker that slept through the put of a request of many texts
            for ticket in draw.late:
                self.fail(ticket, late(f"the texts waited for {self.name}"))
            if draw.entries:
                return sorted(draw.entries, key=lambda entry: cost(entry.item))

    def _fill(self, worker: int, budget: int, draw: _Draw[R]) -> None:
        """The worker's own ticket; else urgent texts with at most a quarter of bulk; else bulk.

        What bulk could not use of its quarter it keeps, so that a text longer than that comes to its turn.
        """
        own = self._own[worker]
        if own:
            ticket = own.popleft()
            ticket.taken = len(ticket.order)
            draw.entries.extend(Entry(ticket, index) for index in ticket.order)
            return
        share = max(1, budget // BULK_SHARE) if self._bulk.texts else 0
        if self._urgent.draw(budget - share, draw):
            self._credit += share
            self._credit -= self._bulk.draw(self._credit, draw)
        else:
            self._credit = 0
            self._bulk.draw(budget, draw)

    def _begun(self, entries: Sequence[Entry[R]]) -> None:
        now = time.perf_counter()
        for ticket in _tickets(entries):
            ticket.begun(now)

    def ended(self, entries: Sequence[Entry[R]]) -> None:
        """A batch is over, however it ended."""
        with self._changed:
            now = time.perf_counter()
            for ticket in _tickets(entries):
                ticket.ended(now)

    def deliver(self, entries: Sequence[Entry[R]], results: Sequence[R]) -> None:
        """Give each text its result; requests that are complete are settled, those given up are left alone."""
        complete: list[tuple[Ticket[R], Outcome[R]]] = []
        with self._changed:
            now = time.perf_counter()
            for entry, result in zip(entries, results, strict=True):
                if entry.ticket.wants(entry.number):
                    outcome = entry.ticket.put(entry.number, result, now)
                    if outcome is not None:
                        complete.append((entry.ticket, outcome))
        for ticket, outcome in complete:
            _settle(ticket, outcome)

    def fail(self, ticket: Ticket[R], problem: EngineError) -> bool:
        """Fail the request, once, and drop what waits of it; whether it was still open."""
        with self._changed:
            was_open = not ticket.closed
            ticket.closed = True
            self._drop(ticket)
        if was_open:
            _settle(ticket, problem)
        return was_open

    def drop(self, ticket: Ticket[Any]) -> None:
        """The caller has gone: nothing more of it is computed."""
        with self._changed:
            ticket.closed = True
            self._drop(ticket)

    def _drop(self, ticket: Ticket[R]) -> None:
        self._urgent.drop(ticket)
        self._bulk.drop(ticket)

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests; without `drain` those that wait fail with ShuttingDown."""
        with self._changed:
            self._closed = True
            gone = [] if drain else [*self._urgent.clear(), *self._bulk.clear()]
            self._changed.notify_all()
        for ticket in gone:
            self.fail(ticket, ShuttingDown(f"{self.name} is shutting down", next_step="Try again when it is back."))


def _tickets(entries: Iterable[Entry[R]]) -> Iterable[Ticket[R]]:
    return dict.fromkeys(entry.ticket for entry in entries)


def _settle(future: Future[T], result: T | EngineError) -> None:
    """Give the result or the error. A callback that raises must not keep the worker from the other requests."""
    try:
        if isinstance(result, EngineError):
            futures.fail(future, result)
        else:
            futures.settle(future, result)
    except BaseException:
        log.exception("a callback of a finished request failed")
