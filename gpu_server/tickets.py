"""A request's place in a batcher: a future of its results, and of the seconds it waited and was computed.

Knows nothing of models, threads or the order of requests. `BatchQueue` changes a ticket's counts, under its lock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from gpu_server.errors import TimedOut
from gpu_server.interfaces import Encoded, VectorKind

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """A request's results in its own order. `queue` and `compute` are seconds that add up to the time since `submit`.

    `compute` is the time in which at least one batch with texts of the request ran, whoever else was in it.
    """

    results: list[R]
    queue: float
    compute: float


class _Queue(Protocol):
    def drop(self, ticket: Ticket[Any]) -> None: ...


class Ticket(Future[Outcome[R]], Generic[R]):
    """Pending until the last text is computed, so that it can be cancelled all the while; callbacks run on the worker's thread.

    Texts are handed out shortest first, so that those of one batch are alike in length.
    """

    def __init__(self, queue: _Queue, items: Sequence[Encoded], wanted: frozenset[VectorKind], deadline: float | None) -> None:
        super().__init__()
        self.items = items
        self.wanted = wanted
        self.deadline = deadline
        self.order = sorted(range(len(items)), key=lambda index: len(items[index].ids))
        self.taken = 0
        self.closed = False
        self._queue = queue
        self._results: list[Any] = [None] * len(items)
        self._missing = len(items)
        self._submitted = time.perf_counter()
        self._batches = 0
        self._since = self._compute = 0.0

    def cancel(self) -> bool:
        """Give the texts up: those that wait are dropped, those in the batch in flight are thrown away."""
        cancelled = super().cancel()
        if cancelled:
            self._queue.drop(self)
        return cancelled

    def wait(self) -> Outcome[R]:
        """The outcome. Raises TimedOut at the deadline, after giving the texts up; and what went wrong."""
        if self.deadline is None:
            return self.result()
        try:
            return self.result(max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            if not self.cancel():  # it came in this very moment, an outcome or an error
                return self.result()
            raise late("the texts waited for the model or were computed") from None

    def waiting(self) -> tuple[int, int]:
        """Texts and tokens that no batch has taken yet."""
        rest = self.order[self.taken :]
        return len(rest), sum(cost(self.items[index]) for index in rest)

    def begun(self, now: float) -> None:
        """A batch with texts of this request starts."""
        if not self._batches:
            self._since = now
        self._batches += 1

    def ended(self, now: float) -> None:
        """Such a batch is over."""
        self._batches -= 1
        if not self._batches:
            self._compute += now - self._since

    def wants(self, index: int) -> bool:
        """Whether this text is still to be computed."""
        return not self.closed and self._results[index] is None

    def put(self, index: int, result: R, now: float) -> Outcome[R] | None:
        """Keep one text's result, which is not None; the outcome when it was the last one."""
        self._results[index] = result
        self._missing -= 1
        if self._missing:
            return None
        self.closed = True
        compute = self._compute + (now - self._since if self._batches else 0.0)
        return Outcome(self._results, max(0.0, now - self._submitted - compute), compute)


class Entry(NamedTuple, Generic[R]):
    """One text in a batch: whose it is, and which of the request's texts, from 0."""

    ticket: Ticket[R]
    number: int

    @property
    def item(self) -> Encoded:
        return self.ticket.items[self.number]


def cost(item: Encoded) -> int:
    """What a text takes of a batch's token budget."""
    return max(1, len(item.ids))


def late(while_what: str) -> TimedOut:
    return TimedOut(f"the deadline passed while {while_what}", next_step="Allow more time, or send less at once.")
