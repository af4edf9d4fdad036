"""What stored queries say of the cache: how often it hit, what that saved, what it cost the others, why they missed.

Stored queries survive a restart, a purge and a Redis that was flushed; the process's own counts (`rag/cache/counts.py`) do not.
Knows no file: rows come in, and a function that reads one answer.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rag.quantities import rank
from rag.trace_rows import QueryRow, started_unix
from rag.types import Answer

READ_HITS = 500
READ_MISSES = 200
LOOKS_KEPT = 4 * (READ_HITS + READ_MISSES)

_NEAREST = re.compile(r"^nearest is .*\((?:cosine -?\d\.\d+|found by its words)\): (?P<refused>.*)$", re.DOTALL)
_REFUSALS: tuple[tuple[str, str], ...] = (
    ("cosine ", "the nearest is not alike enough"),
    ("agreement ", "too few words in common with the nearest"),
    ("somebody reported", "reported: the two do not share an answer"),
    ("reranker ", "the reranker refused"),
    ("the reranker ", "the reranker could not be asked"),
    ("its answer", "the answer of the nearest is gone or unreadable"),
    ("asked in ", "another language"),
    ("article:", "another article or section"),
    ("number:", "another number"),
    ("quantity or unit:", "another quantity or unit"),
    ("date or time:", "another date or time"),
    ("identifier,", "another identifier, product or version"),
    ("negation:", "negation"),
    ("direction:", "another direction or bound"),
    ("name:", "another name"),
    ("it asks ", "another kind of question"),
    ("modality:", "must, may or should"),
    ("words:", "other words"),
    ("no word in it", "no word to compare"),
)
_ORDER = "who does what to whom, or another order"


class Look(NamedTuple):
    """One query that asked the cache. `seconds` is the query's total; `entry_id` and `kept_seconds` (what the answer took when it
    was made) are of the hit, None where there was none or the query does not tell."""

    query_id: str
    asked_at_unix: float
    question: str
    hit: bool
    equal: bool
    reason: str
    seconds: float
    entry_id: str | None = None
    kept_seconds: float | None = None
    kept_query_id: str | None = None

    @property
    def saved_seconds(self) -> float | None:
        return None if self.kept_seconds is None else self.kept_seconds - self.seconds


def look_of(answer: Answer) -> Look | None:
    """None where the cache was not asked: switched off, bypassed, another program's query."""
    stage = next((stage for stage in answer.stages if stage.stage == "cache"), None)
    if stage is None or stage.hit is None or not stage.spans:
        return None
    spans = [item for item in answer.timeline if item.stage == "cache"]
    facts: Mapping[str, Any] = {name: value for item in spans for name, value in item.facts.items()}
    return Look(
        answer.id,
        started_unix(answer),
        answer.question,
        stage.hit,
        stage.hit and len(spans) < 2,  # the first look is for an equal question
        stage.reason or "",
        answer.total_seconds,
        facts.get("entry"),
        facts.get("kept_seconds"),
        facts.get("kept_query"),
    )


def asked(row: QueryRow) -> bool:
    """Whether the cache was asked for this query; a cache that is off or bypassed takes no time."""
    return row.cache_hit is not None and bool(row.cache_seconds)


class Looks:
    """The look-ups of stored queries; each answer is read once. Thread-safe."""

    def __init__(self, read: Callable[[str], Answer | None]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Look | None] = OrderedDict()

    def of(self, ids: Iterable[str]) -> list[Look]:
        """In the order of the ids; what is no look-up, or gone, is left out. Raises what reading raises."""
        found = []
        for query_id in ids:
            with self._lock:
                known, look = query_id in self._known, self._known.get(query_id)
            if not known:
                answer = self._read(query_id)
                look = look_of(answer) if answer is not None else None
                with self._lock:
                    self._known[query_id] = look
                    while len(self._known) > LOOKS_KEPT:
                        self._known.popitem(last=False)
            if look is not None:
                found.append(look)
        return found


class Spread(NamedTuple):
    """Seconds of `n` queries."""

    p50: float
    p95: float
    n: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What the look-ups since some time came to.

    `saved_seconds` is the sum, over the hits in `recent_hits` whose kept answer's time is known (`saved_of`), of what that answer
    took when it was made minus what the query that got it took. `added` is the cache stage's time in queries that missed,
    `hit_seconds` the whole time of those that hit. `reasons` are of the newest `reasons_of` misses, the most frequent first.
    """

    lookups: int
    hits: int
    since_unix: float | None
    recent_hits: tuple[Look, ...]
    saved_seconds: float | None
    saved_of: int
    added: Spread | None
    hit_seconds: Spread | None
    reasons: tuple[tuple[str, int], ...]
    reasons_of: int

    @property
    def hit_ratio(self) -> float | None:
        return self.hits / self.lookups if self.lookups else None

    @property
    def equal(self) -> int:
        """Of the recent hits, those of an equal question."""
        return sum(look.equal for look in self.recent_hits)


def tally(rows: Sequence[QueryRow], looks: Looks, *, read_hits: int = READ_HITS, read_misses: int = READ_MISSES) -> Tally:
    """From stored queries, newest first. Raises what reading an answer raises."""
    known = [row for row in rows if asked(row)]
    hits, missed = [row for row in known if row.cache_hit], [row for row in known if not row.cache_hit]
    recent = tuple(looks.of(row.id for row in hits[:read_hits]))
    saved = [look.saved_seconds for look in recent if look.saved_seconds is not None]
    reasons = Counter(reason_group(look.reason) for look in looks.of(row.id for row in missed[:read_misses]))
    return Tally(
        lookups=len(known),
        hits=len(hits),
        since_unix=min((row.started_at for row in known), default=None),
        recent_hits=recent,
        saved_seconds=sum(saved) if saved else None,
        saved_of=len(saved),
        added=spread([row.cache_seconds or 0.0 for row in missed]),
        hit_seconds=spread([row.total_seconds for row in hits]),
        reasons=tuple(reasons.most_common()),
        reasons_of=sum(reasons.values()),
    )


def spread(values: Sequence[float]) -> Spread | None:
    """Percentiles by nearest rank; None of nothing."""
    if not values:
        return None
    ascending, n = sorted(values), len(values)
    return Spread(ascending[rank(50, n)], ascending[rank(95, n)], n)


def reason_group(reason: str) -> str:
    """A miss's reason without what is particular to one question."""
    nearest = _NEAREST.match(reason)
    if nearest is None:
        return reason.partition(":")[0].strip() or "no reason was kept"
    refused = nearest["refused"]
    return next((words for start, words in _REFUSALS if refused.startswith(start)), _ORDER)
