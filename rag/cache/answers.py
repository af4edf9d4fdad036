"""Where cached answers lie: a protocol, and SQLite behind it (`rag/cache/redis_answers.py` is Redis).

A store never fails a query: whatever is wrong with it leaves as CacheAway, with the reason in words. Knows nothing of
questions that are alike.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rag.cache.index import Row
from rag.cache.types import CacheAway, CachedAnswer

TTL_SECONDS = 30 * 86400.0
MAX_ENTRIES = 10_000
WAIT_SECONDS = 0.25

Order = Literal["used", "created", "hits"]


@dataclass(frozen=True, slots=True)
class AnswersState:
    """`entries` is None while it cannot be counted; `problem` says why."""

    store: Literal["redis", "sqlite"]
    address: str
    entries: int | None
    evictions: int
    problem: str | None = None


class AnswerStore(Protocol):
    """Answers by id, with a time to live and a bound on their number (the least recently used goes first).

    Thread-safe. Every method but `state` and `close` raises CacheAway.
    """

    state_name: Literal["redis", "sqlite"]

    @property
    def state(self) -> AnswersState: ...

    def get(self, key: str) -> CachedAnswer | None: ...

    def keep(self, entry: CachedAnswer, vector: NDArray[np.float32] | None) -> list[str]:
        """Returns the ids of what had to go for it."""
        ...

    def touch(self, key: str) -> None:
        """Count a hit."""
        ...

    def rewrite(self, entry: CachedAnswer) -> bool:
        """Another text or mark for an entry that is there, its age and vector left alone; False where it is not."""
        ...

    def delete(self, keys: Iterable[str]) -> int: ...

    def purge(self) -> int:
        """Delete all; returns how many."""
        ...

    def page(self, limit: int = 100, offset: int = 0, order: Order = "used", text: str = "") -> list[CachedAnswer]:
        """`text` leaves only questions that hold it, whatever the case."""
        ...

    def rows(self, since_unix: float = 0.0) -> Iterator[Row]:
        """Questions with their vectors, kept at or after that time: to build an index from."""
        ...

    def close(self) -> None: ...


def packed(entry: CachedAnswer) -> bytes:
    return zlib.compress(json.dumps(entry.to_json(), ensure_ascii=False).encode("utf-8", "replace"), 1)


def unpacked(body: bytes, hits: int, used_at_unix: float | None, expires_at_unix: float | None = None) -> CachedAnswer | None:
    """The answer, or None for a value that is broken or somebody else's."""
    try:
        return CachedAnswer.from_json(json.loads(zlib.decompress(body))).counted(hits, used_at_unix, expires_at_unix)
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return None


def folded_has(question: str, folded: str) -> bool:
    return folded in question.casefold()


def vector_of(blob: bytes | None) -> NDArray[np.float32] | None:
    if not blob or len(blob) % 4:
        return None
    vector = np.frombuffer(blob, dtype="<f4")
    return vector if np.isfinite(vector).all() else None


class SqliteAnswers:
    """Answers in a file, for one process or several on one machine."""

    state_name: Literal["redis", "sqlite"] = "sqlite"

    def __init__(
        self,
        path: Path,
        *,
        ttl_seconds: float = TTL_SECONDS,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._ttl, self._max, self._clock = path, ttl_seconds, max_entries, clock
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._closed = False
        self._evictions = 0
        self._problem: str | None = None

    @property
    def state(self) -> AnswersState:
        try:
            with self._open() as db:
                entries: int | None = int(
                    db.execute("SELECT count(*) FROM answers WHERE expires > ?", (self._clock(),)).fetchone()[0]
                )
        except CacheAway:
            entries = None
        return AnswersState("sqlite", str(self._path), entries, self._evictions, self._problem)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction. A file that cannot be used is tried anew by the next call."""
        if not self._lock.acquire(timeout=WAIT_SECONDS * 4):
            raise CacheAway(f"{self._path} is busy")
        try:
            if self._closed:
                raise CacheAway(f"{self._path} is closed")
            if self._db is None:
                self._db = self._connect()
            with self._db:
                yield self._db
            self._problem = None
        except (sqlite3.Error, OSError) as problem:
            self._problem = f"{self._path}: {problem}"
            if self._db is not None:
                self._db.close()
                self._db = None
            raise CacheAway(self._problem) from problem
        finally:
            self._lock.release()

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=WAIT_SECONDS, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(
            """CREATE TABLE IF NOT EXISTS answers (
                id TEXT PRIMARY KEY, question TEXT NOT NULL, body BLOB NOT NULL, vector BLOB, created REAL NOT NULL,
                expires REAL NOT NULL, used REAL NOT NULL, hits INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID"""
        )
        db.create_function("folded_has", 2, folded_has, deterministic=True)  # SQLite's LIKE folds ASCII only
        db.execute("CREATE INDEX IF NOT EXISTS answers_used ON answers (used)")
        db.execute("CREATE INDEX IF NOT EXISTS answers_expires ON answers (expires)")
        db.execute("CREATE INDEX IF NOT EXISTS answers_created ON answers (created)")  # read every two seconds, for what is new
        return db

    def get(self, key: str) -> CachedAnswer | None:
        with self._open() as db:
            row = db.execute(
                "SELECT body, hits, used, expires FROM answers WHERE id = ? AND expires > ?", (key, self._clock())
            ).fetchone()
        return None if row is None else unpacked(*row)

    def keep(self, entry: CachedAnswer, vector: NDArray[np.float32] | None) -> list[str]:
        now = self._clock()
        blob = None if vector is None else np.asarray(vector, dtype="<f4").tobytes()
        with self._open() as db:
            db.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                (entry.id, entry.question, packed(entry), blob, now, now + self._ttl, now),
            )
            gone = [row[0] for row in db.execute("SELECT id FROM answers WHERE expires <= ?", (now,))]
            over = int(db.execute("SELECT count(*) FROM answers").fetchone()[0]) - len(gone) - self._max
            if over > 0:
                oldest = "SELECT id FROM answers WHERE expires > ? AND id != ? ORDER BY used LIMIT ?"
                gone += [row[0] for row in db.execute(oldest, (now, entry.id, over))]
                self._evictions += over
            db.executemany("DELETE FROM answers WHERE id = ?", [(key,) for key in gone])
        return gone

    def touch(self, key: str) -> None:
        with self._open() as db:
            db.execute("UPDATE answers SET hits = hits + 1, used = ? WHERE id = ?", (self._clock(), key))

    def rewrite(self, entry: CachedAnswer) -> bool:
        with self._open() as db:
            return db.execute("UPDATE answers SET body = ? WHERE id = ?", (packed(entry), entry.id)).rowcount > 0

    def delete(self, keys: Iterable[str]) -> int:
        with self._open() as db:
            return db.executemany("DELETE FROM answers WHERE id = ?", [(key,) for key in keys]).rowcount

    def purge(self) -> int:
        with self._open() as db:
            return db.execute("DELETE FROM answers").rowcount

    def page(self, limit: int = 100, offset: int = 0, order: Order = "used", text: str = "") -> list[CachedAnswer]:
        column = {"used": "used", "created": "created", "hits": "hits"}[order]
        tests = "expires > ?"
        values: list[float | str] = [self._clock()]
        if text:
            tests, values = f"{tests} AND folded_has(question, ?)", [*values, text.casefold()]
        with self._open() as db:
            rows = db.execute(
                f"SELECT body, hits, used, expires FROM answers WHERE {tests} ORDER BY {column} DESC, id LIMIT ? OFFSET ?",
                (*values, limit, offset),
            ).fetchall()
        return _readable([unpacked(*row) for row in rows])

    def rows(self, since_unix: float = 0.0) -> Iterator[Row]:
        with self._open() as db:
            found = db.execute(
                "SELECT id, question, vector, created FROM answers WHERE created >= ? AND expires > ? AND vector IS NOT NULL",
                (since_unix, self._clock()),
            ).fetchall()
        for key, question, blob, created in found:
            vector = vector_of(blob)
            if vector is not None:
                yield Row(key, key[:16], question, vector, created)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._db is not None:
                self._db.close()
                self._db = None


def _readable(entries: Sequence[CachedAnswer | None]) -> list[CachedAnswer]:
    return [entry for entry in entries if entry is not None]
