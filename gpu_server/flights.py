"""Vectors kept by key, and the computing of them that is under way: equal texts at the same moment are computed once.

A flight is one text that one caller has computed now; others may wait for its landing. Knows nothing of models or of calls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpu_server.errors import TimedOut
from gpu_server.interfaces import CacheMode, Embeddings, TextKind, Timing, VectorKind, Vectors
from gpu_server.score_stores import Lru

ENTRY_BYTES = 900  # what an entry takes beside its numbers: key, digest, heads of arrays and mapping, measured
SPARSE_ITEM_BYTES = 80  # an int, a float and their place in a dict

Key = tuple[str | None, TextKind, frozenset[VectorKind], bytes]  # model, kind, wanted vectors, digest of the text


@dataclass(frozen=True, slots=True)
class Entry:
    """One text's vectors, in arrays of their own that nobody writes to."""

    vectors: Vectors
    truncated: bool

    @property
    def size_bytes(self) -> int:
        late = self.vectors.late
        sparse = len(self.vectors.sparse or ()) * SPARSE_ITEM_BYTES
        return ENTRY_BYTES + self.vectors.dense.nbytes + (late.nbytes if late is not None else 0) + sparse


@dataclass(slots=True)
class Flight:
    """Lands with the entry and the timing of the call that made it; with None where those who wait must ask for themselves."""

    key: Key
    deadline: float | None
    landed: Future[tuple[Entry, Timing] | None] = field(default_factory=Future)


@dataclass(slots=True)
class Placed:
    """How a call gets the texts it asked for: found, to be computed by it, under way for others."""

    found: dict[str, Entry] = field(default_factory=dict)
    lead: dict[str, Flight] = field(default_factory=dict)
    joined: dict[str, Flight] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One caller's texts: `rows` is what is known so far of the model `identity`, `own` the texts computed for this caller."""

    texts: Sequence[str]
    kind: TextKind
    vectors: frozenset[VectorKind]
    priority: int
    deadline: float | None
    caches: CacheMode
    identity: str | None = None
    rows: dict[str, Entry] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)
    timings: list[Timing] = field(default_factory=list)
    tokens: int = 0
    cached_there: int = 0


@dataclass(slots=True)
class Round:
    """One round of getting what a call misses: what the model computed for it, and what others compute.

    `shared`: others may have what was computed. Not so where the model was exchanged meanwhile: nobody knows which one answered.
    """

    identity: str | None
    placed: Placed
    started: float = field(default_factory=time.perf_counter)
    computed: dict[str, Entry] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    shared: bool = False
    error: BaseException | None = None


class KeptVectors:
    """Entries, least recently used out first, and flights. Thread-safe."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._lru: Lru[Key, Entry] = Lru(max_entries, max_bytes)
        self._flights: dict[Key, Flight] = {}

    def size(self) -> tuple[int, int, int]:
        """Entries, bytes, evictions."""
        with self._lock:
            return len(self._lru), self._lru.bytes, self._lru.evictions

    def place(self, keys: Mapping[str, Key], deadline: float | None, *, waits: bool) -> Placed:
        """What is there of the texts, and who computes the others. The caller must `land` all of `lead`.

        `waits`: the caller can leave a flight at its own deadline; who cannot joins only those that end before.
        """
        placed = Placed()
        with self._lock:
            for text, key in keys.items():
                entry = self._lru.get(key)
                flight = self._flights.get(key)
                if entry is not None:
                    placed.found[text] = entry
                elif flight is None:
                    placed.lead[text] = self._flights[key] = Flight(key, deadline)
                elif waits or _ends_by(flight.deadline, deadline):
                    placed.joined[text] = flight
                else:
                    placed.lead[text] = Flight(key, deadline)
        return placed

    def keep(self, lead: Mapping[str, Flight], entries: Mapping[str, Entry], identity: str) -> None:
        """Keep the entries for the model `identity`, which is known now even where the flights' keys had to do without."""
        with self._lock:
            for text, entry in entries.items():
                self._lru.put((identity, *lead[text].key[1:]), entry, entry.size_bytes)

    def land(self, lead: Mapping[str, Flight], entries: Mapping[str, Entry], timing: Timing) -> None:
        """Give each flight its entry; those without one give None."""
        self._forget(lead.values())
        for text, flight in lead.items():
            flight.landed.set_result((entries[text], timing) if text in entries else None)

    def fail(self, lead: Mapping[str, Flight], problem: BaseException) -> None:
        """Give each flight the error; None where it was the leader's own deadline, cancelling or exit."""
        if not isinstance(problem, Exception) or isinstance(problem, (TimeoutError, CancelledError)):
            self.land(lead, {}, Timing())
            return
        self._forget(lead.values())
        for flight in lead.values():
            flight.landed.set_exception(problem)

    def _forget(self, flights: Iterable[Flight]) -> None:
        with self._lock:
            for flight in flights:
                if self._flights.get(flight.key) is flight:
                    del self._flights[flight.key]


def wait_for(flights: Iterable[Flight], deadline: float | None) -> None:
    """Until they have landed. Raises TimedOut at `deadline`."""
    patience = None if deadline is None else max(0.0, deadline - time.monotonic())
    if wait([flight.landed for flight in flights], patience).not_done:
        raise TimedOut(
            "the deadline passed while another caller had the same text embedded", next_step="Allow the call more time."
        )


def waited(this: Round, others: Sequence[Timing]) -> Timing:
    """The seconds of this round that were not the model's for this call: others' load first, the rest is queueing."""
    own = this.timing
    seconds = time.perf_counter() - this.started
    seconds = max(0.0, seconds - (own.load + own.queue + own.tokenize + own.compute + (own.network or 0.0) + own.waited))
    load = min(seconds, max((timing.load for timing in others), default=0.0))
    return Timing(load=load, queue=seconds - load, cold=any(timing.cold for timing in others))


def entries_of(texts: Sequence[str], result: Embeddings) -> dict[str, Entry]:
    """The result text by text. Which texts were cut it does not say: the longest are taken for them."""
    cut = longest(texts, result.truncated)
    entries = {}
    for index, text in enumerate(texts):
        vectors = Vectors(
            dense=_own(result.dense[index]),
            sparse=None if result.sparse is None else dict(result.sparse[index]),
            late=None if result.late is None else _own(result.late[index]),
        )
        entries[text] = Entry(vectors, index in cut)
    return entries


def longest(texts: Sequence[str], count: int) -> set[int]:
    """Where the `count` longest texts stand."""
    return set(sorted(range(len(texts)), key=lambda index: -len(texts[index]))[:count])


def _own(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy that nobody writes to, and that keeps no batch alive."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def _ends_by(flight_deadline: float | None, deadline: float | None) -> bool:
    """Whether a flight ends, one way or another, before who would join it must have left."""
    return deadline is None or (flight_deadline is not None and flight_deadline <= deadline)
