"""How often HyDE changed the first passages of questions like this one, learnt from the stored queries.

A question has classes from narrow (language, length, question word, how close the first search came) to wide (all). The
narrowest with enough cases decides: HyDE is skipped where even the upper bound of its share of changes is small, and no
narrower class speaks against it. One in EXPLORE_ONE_IN is tried all the same. Knows nothing of models, searches or pages;
a change is a change, not an improvement.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from rag.cache.normalise import exact
from rag.errors import RagError
from rag.hyde_questions import QUESTION_WORDS, classify
from rag.trace_file import closing, connect, mapped

log = logging.getLogger(__name__)

CASES = 2000  # the newest HyDE queries whose effect is known
ENOUGH_CASES = 20
OBJECTING_CASES = 3  # so many in a narrower class may speak against skipping
SKIP_BELOW = 0.20  # upper bound of the share of questions whose first passages HyDE changed
STAY_BELOW = 0.25  # the same for a class that is skipped already, so that one case more does not turn it back and forth
EXPLORE_ONE_IN = 20
REFRESH_SECONDS = 60.0
Z_95 = 1.959964
DENSE_EDGES = (0.2, 0.3, 0.4, 0.5, 0.6)

Key = tuple[tuple[str, str], ...]
Action = Literal["skip", "run", "learn"]

_LEVELS = (
    ("length", "language", "kind", "closeness"),
    ("language", "closeness"),
    ("length", "language", "kind"),
    ("language", "kind"),
    ("language",),
    (),
)


class Share(NamedTuple):
    """Of so many distinct questions HyDE changed the first passages of `changed`."""

    cases: int
    changed: int

    @property
    def ratio(self) -> float | None:
        return self.changed / self.cases if self.cases else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bounds of the share by Wilson's score (Wilson 1927); (0, 1) without cases."""
        if not self.cases:
            return 0.0, 1.0
        n, p, z2 = self.cases, self.changed / self.cases, Z_95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to run HyDE, and why, in words for the screen. `explored`: run only to go on learning."""

    run: bool
    reason: str
    explored: bool = False


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of questions for the screen. `breadth` 0 is all questions, more is narrower; `low`, `high` bound the share."""

    label: str
    breadth: int
    cases: int
    changed: int
    low: float
    high: float
    action: Action


@dataclass(frozen=True, slots=True)
class _Known:
    """What was learnt at one time; never changed, so that any thread may read it."""

    shares: Mapping[Key, Share] = field(default_factory=lambda: MappingProxyType({}))
    skipped: frozenset[Key] = frozenset()
    has_closeness: bool = False


class _Case(NamedTuple):
    question: str
    changed: bool
    best_dense: float | None


class HydeHistory:
    """Reads the trace file at `path`, in a thread of its own at most every `refresh_seconds`, when a question comes.

    `clock` gives monotonic seconds. Any thread may call any method; none raises, and only `refresh` and `wait` wait. Until the
    first reading is done the history is empty, and an empty history never skips.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        cases: int = CASES,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._path, self._clock, self._cases, self._refresh_seconds = Path(path), clock, cases, refresh_seconds
        self._known = _Known()
        self._read_at: float | None = None
        self._reading = threading.Lock()
        self._problem: str | None = None

    @property
    def knows_closeness(self) -> bool:
        """Whether the stored queries tell how close their first search came: then a decision is better made after it."""
        return self._known.has_closeness

    @property
    def problem(self) -> str | None:
        """Why the last reading failed, None when it did not."""
        return self._problem

    def decide(self, question: str, best_dense: float | None = None) -> Decision:
        """Whether HyDE is worth its time for `question`. `best_dense`: cosine of the best passage of its first search."""
        known = self._known  # before the reading starts, which may be done at any moment
        self._refresh_if_due()
        keys = [key for key in _keys(question, best_dense) if key in known.shares]
        at = next((n for n, key in enumerate(keys) if known.shares[key].cases >= ENOUGH_CASES), None)
        if at is None:
            share = known.shares.get((), Share(0, 0))
            return Decision(True, f"what HyDE changes is known of {share.cases} questions, too few to tell")
        key, share = keys[at], known.shares[keys[at]]
        told = _told(key, share)
        if key not in known.skipped:
            low, high = share.interval
            return Decision(True, f"{told} (95 %: {_percent(low)} to {_percent(high)} %)")
        against = next((each for each in keys[:at] if _objects(known.shares[each])), None)
        if against is not None:
            return Decision(
                True, f"{_told(against, known.shares[against])}, against {share.changed} of {share.cases} ({_label(key)})"
            )
        told = f"{told} (95 % below {math.ceil(100 * share.interval[1])} %)"
        if explores(question):
            return Decision(True, f"{told}; 1 in {EXPLORE_ONE_IN} is tried all the same, to go on learning", explored=True)
        return Decision(False, told)

    def table(self) -> tuple[ClassRow, ...]:
        """Every class with cases: the widest first, then by cases."""
        known = self._known
        rows = [_row(key, share, key in known.skipped) for key, share in known.shares.items()]
        return tuple(sorted(rows, key=lambda row: (row.breadth, -row.cases, row.label)))

    def refresh(self) -> None:
        """Read the trace file now, in this thread."""
        with self._reading:
            self._read()

    def refresh_once(self) -> None:
        """Read the trace file in this thread unless it has been read before; later readings are left to `decide`."""
        if self._read_at is None:
            self.refresh()
        else:
            self._refresh_if_due()

    def wait(self, timeout: float = 10.0) -> bool:
        """Until a reading that is under way has ended; False when that takes longer than `timeout` seconds."""
        if not self._reading.acquire(timeout=timeout):
            return False
        self._reading.release()
        return True

    def _refresh_if_due(self) -> None:
        due = self._read_at is None or self._clock() - self._read_at >= self._refresh_seconds
        if not due or not self._reading.acquire(blocking=False):
            return
        try:
            threading.Thread(target=self._read_and_release, name="hyde-history", daemon=True).start()
        except RuntimeError:  # no thread to be had: the next question tries again
            self._reading.release()

    def _read_and_release(self) -> None:
        try:
            self._read()
        finally:
            self._reading.release()

    def _read(self) -> None:
        self._read_at = self._clock()
        try:
            self._known = _learn(_cases(self._path, self._cases), self._known.skipped)
            self._problem = None
        except RagError as problem:  # locked or damaged: what was known stays
            self._problem = f"{problem.message} {problem.next_step}".strip()
            log.info("what HyDE changed could not be read: %s", problem.message)
        except Exception as problem:
            self._problem = f"{type(problem).__name__}: {problem}"
            log.exception("what HyDE changed could not be read")


def explores(question: str) -> bool:
    """Whether this question is one of those that are tried all the same; the same question always gets the same answer."""
    digest = blake2b(exact(question).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) % EXPLORE_ONE_IN == 0


def _cases(path: Path, limit: int) -> list[_Case]:
    """The newest queries of people whose effect is known, each question once. Raises RagError."""
    if not path.exists():
        return []
    with mapped(path), closing(connect(path, reading=True)) as db:
        columns = {row[1] for row in db.execute("PRAGMA table_info(queries)")}
        if "hyde_changed" not in columns:  # not written yet, or by an older version
            return []
        dense = "hyde_dense" if "hyde_dense" in columns else "NULL"
        rows = db.execute(
            f"""SELECT question, hyde_changed, {dense} FROM queries
                WHERE hyde_changed IS NOT NULL AND question <> '' AND origin <> 'measure' AND origin NOT LIKE 'otlp:%'
                ORDER BY started_at_unix DESC, id DESC LIMIT ?""",
            (limit,),
        ).fetchall()
    newest: dict[str, _Case] = {}
    for question, changed, best_dense in rows:
        newest.setdefault(exact(question), _Case(question, bool(changed), best_dense))
    return list(newest.values())


def _learn(cases: list[_Case], skipped: frozenset[Key]) -> _Known:
    counts: dict[Key, list[int]] = {}
    for case in cases:
        for key in _keys(case.question, case.best_dense):
            count = counts.setdefault(key, [0, 0])
            count[0] += 1
            count[1] += case.changed
    shares = {key: Share(*count) for key, count in counts.items()}
    now = frozenset(key for key, share in shares.items() if _rarely(share, STAY_BELOW if key in skipped else SKIP_BELOW))
    return _Known(MappingProxyType(shares), now, any(case.best_dense is not None for case in cases))


def _rarely(share: Share, limit: float) -> bool:
    return share.cases >= ENOUGH_CASES and share.interval[1] < limit


def _objects(share: Share) -> bool:
    return share.cases >= OBJECTING_CASES and share.interval[0] > SKIP_BELOW


def _keys(question: str, best_dense: float | None) -> list[Key]:
    """The classes of a question, narrowest first; those by closeness only where that is known."""
    found = classify(question)
    signals = {"length": found.length, "language": found.language, "kind": found.kind}
    if best_dense is not None:
        signals["closeness"] = _closeness(best_dense)
    return [tuple((name, signals[name]) for name in level) for level in _LEVELS if set(level) <= signals.keys()]


def _closeness(best_dense: float) -> str:
    at = sum(best_dense >= edge for edge in DENSE_EDGES)
    if at == 0:
        return f"below {DENSE_EDGES[0]}"
    return f"{DENSE_EDGES[at - 1]} to {DENSE_EDGES[at]}" if at < len(DENSE_EDGES) else f"from {DENSE_EDGES[-1]}"


def _label(key: Key) -> str:
    return ", ".join(_shown(name, value) for name, value in key) or "all questions"


def _shown(name: str, value: str) -> str:
    if name == "closeness":
        return f"first search {value}"
    return f"“{value}”" if name == "kind" and value in QUESTION_WORDS else value


def _told(key: Key, share: Share) -> str:
    return f"of {share.cases} such questions ({_label(key)}) HyDE changed the first passages of {share.changed}"


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f}"


def _row(key: Key, share: Share, is_skipped: bool) -> ClassRow:
    action: Action = "skip" if is_skipped else "run" if share.cases >= ENOUGH_CASES else "learn"
    return ClassRow(_label(key), len(key), share.cases, share.changed, *share.interval, action)
