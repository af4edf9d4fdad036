"""What the cache counts of itself, and how it is shown. Counts are of this process since it started."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rag.cache.answers import MAX_ENTRIES, TTL_SECONDS, AnswersState
from rag.cache.types import Lookup


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """`dense`, `agreement`, `rerank` override what was calibrated; None takes that. `semantic` False: equal questions alone."""

    ttl_seconds: float = TTL_SECONDS
    max_entries: int = MAX_ENTRIES
    semantic: bool = True
    dense: float | None = None
    agreement: float | None = None
    rerank: float | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """`lookups` counts questions, not calls; `refusals` is by guard, `not_kept` by reason.

    After documents changed, `carried_over` answers stayed, because they would be made from the same passages, and `invalidated`
    went.
    """

    lookups: int
    exact_hits: int
    alike_hits: int
    seconds_saved: float
    kept: int
    false_hits_reported: int
    refusals: Mapping[str, int]
    not_kept: Mapping[str, int]
    carried_over: int = 0
    invalidated: int = 0

    @property
    def hit_ratio(self) -> float | None:
        """0..1, None while nothing was asked."""
        return (self.exact_hits + self.alike_hits) / self.lookups if self.lookups else None


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """The cache as a page shows it; `index_entries` None is unknown, `problem` why something is away."""

    answers: AnswersState
    index: str
    index_entries: int | None
    index_ready: bool
    limits: CacheLimits
    counted: Counted
    problem: str | None


class Counts:
    """Counted by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups = self._exact = self._alike = self._kept = self._reported = self._carried = self._invalidated = 0
        self._seconds_saved = 0.0
        self._refusals: Counter[str] = Counter()
        self._not_kept: Counter[str] = Counter()

    def looked_up(self, found: Lookup, *, first: bool) -> None:
        """`first`: the question's first call, the one by its text."""
        with self._lock:
            self._lookups += first
            if found.hit is not None:
                self._exact += found.exact
                self._alike += not found.exact
                self._seconds_saved += max(0.0, found.hit.seconds - found.waited_seconds)
            for candidate in found.candidates:
                if candidate.refused is not None:
                    # one that the cosine refused may have failed a guard as well
                    check = next((check for check in candidate.checks if check.said == candidate.refused), None)
                    self._refusals[check.name if check else "likeness"] += 1

    def kept(self, refused: str | None) -> None:
        with self._lock:
            if refused is None:
                self._kept += 1
            else:
                self._not_kept[refused] += 1

    def reported(self) -> None:
        with self._lock:
            self._reported += 1

    def carried(self, stayed: int, went: int) -> None:
        with self._lock:
            self._carried += stayed
            self._invalidated += went

    def now(self) -> Counted:
        with self._lock:
            return Counted(
                self._lookups,
                self._exact,
                self._alike,
                self._seconds_saved,
                self._kept,
                self._reported,
                dict(self._refusals),
                dict(self._not_kept),
                self._carried,
                self._invalidated,
            )
