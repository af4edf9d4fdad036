"""Readings of queries on disk, in a file of their own: SQLite in WAL mode, written by one thread, read by any.

`save` returns at once and never raises: readings explain a query, and must not cost one. While the file is locked or the disk
full they wait in memory, the newest `capacity` of them; a damaged file is set aside under another name. `health` says what is
wrong. Knows nothing of how readings are taken.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from latency.types import QueryReadings, Series

log = logging.getLogger(__name__)
T = TypeVar("T")

CAPACITY = 256
MOST_DELETED = 10_000  # remembered, so that what comes late is not written; readings come within seconds
BUSY_SECONDS = 1.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 2.0
_BATCH = 64
_CHUNK = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS readings (query_id TEXT PRIMARY KEY, started_at_unix REAL NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS readings_started ON readings (started_at_unix);
"""


@dataclass(frozen=True, slots=True)
class ReadingHealth:
    """`error` is what the last try met, None when it went well; `backlog` readings wait in memory, `dropped` were given up."""

    error: str | None
    backlog: int
    dropped: int

    @property
    def ok(self) -> bool:
        return self.error is None


class ReadingStore:
    """The readings of all queries in the file at `path`. Thread-safe; never raises for the file's sake."""

    def __init__(self, path: Path, *, capacity: int = CAPACITY) -> None:
        self.path = Path(path)
        self._capacity = capacity
        self._state = threading.Condition()
        self._waiting: OrderedDict[str, QueryReadings] = OrderedDict()
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._error: str | None = None
        self._dropped = 0
        self._closing = self._give_up = False
        self._db: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._write_until_closed, name="reading-writer", daemon=True)
        self._thread.start()

    def save(self, readings: QueryReadings) -> None:
        """Queue readings for writing; those of the same query are replaced. When too many wait, the oldest are given up.

        Those of a query that was deleted are not written: its last samples come some time after its end."""
        with self._state:
            if readings.query_id in self._deleted:
                return
            if self._closing:
                self._dropped += 1
                return
            self._waiting.pop(readings.query_id, None)
            self._waiting[readings.query_id] = readings
            while len(self._waiting) > self._capacity:
                self._waiting.popitem(last=False)
                self._dropped += 1
            self._state.notify_all()

    def get(self, query_id: str) -> QueryReadings | None:
        """The readings of a query, also while they wait to be written; None without any, or when the file cannot be read."""
        return self.get_many([query_id]).get(query_id)

    def get_many(self, query_ids: Iterable[str]) -> dict[str, QueryReadings]:
        """By query id; those that are not there, or cannot be read, are left out."""
        wanted = list(dict.fromkeys(query_ids))
        with self._state:
            found = {each: self._waiting[each] for each in wanted if each in self._waiting}
        missing = [each for each in wanted if each not in found]
        if missing and self.path.exists():
            nothing: dict[str, QueryReadings] = {}
            found |= self._tried(lambda: self._read(missing), nothing)
        return found

    def delete(self, query_ids: Sequence[str]) -> int:
        """Delete the readings of these queries, and what comes of them later; returns how many there were. What is deleted is
        overwritten, not only unlinked. Raises sqlite3.Error where the file cannot be written."""
        with self._state:
            for each in sorted(query_ids)[-MOST_DELETED:]:  # our ids sort by time, and only the newest may have samples to come
                self._deleted[each] = None
            while len(self._deleted) > MOST_DELETED:
                self._deleted.popitem(last=False)
        self.flush()  # what waits may be half written: it is deleted in the file
        if not self.path.exists():
            return 0
        deleted = 0
        with closing(sqlite3.connect(self.path, timeout=5 * BUSY_SECONDS, isolation_level=None)) as db:
            db.execute("PRAGMA secure_delete = ON")
            for start in range(0, len(query_ids), _CHUNK):
                some = query_ids[start : start + _CHUNK]
                marks = ",".join("?" * len(some))
                deleted += db.execute(f"DELETE FROM readings WHERE query_id IN ({marks})", some).rowcount
        return deleted

    def delete_before(self, unix: float) -> int:
        """Delete readings of queries that started before `unix` (seconds); returns how many. In small transactions."""
        return self._tried(lambda: self._delete_before(unix), 0) if self.path.exists() else 0

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until nothing waits to be written; False when that takes longer than `timeout` seconds."""
        with self._state:
            return self._state.wait_for(lambda: not self._waiting, timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Write what waits and close. False, and a log entry, when some could not be written within `timeout` seconds."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join(timeout)
        with self._state:
            self._give_up = True
            left = len(self._waiting)
            self._state.notify_all()
        self._thread.join(BUSY_SECONDS + 1.0)
        if left:
            log.error("the readings of %d queries could not be written to %s: %s", left, self.path, self._error)
        return left == 0

    def health(self) -> ReadingHealth:
        with self._state:
            return ReadingHealth(self._error, len(self._waiting), self._dropped)

    # Reading

    def _read(self, query_ids: list[str]) -> dict[str, QueryReadings]:
        found: dict[str, QueryReadings] = {}
        with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as db:
            db.execute("PRAGMA query_only = ON")
            for start in range(0, len(query_ids), _CHUNK):
                some = query_ids[start : start + _CHUNK]
                marks = ",".join("?" * len(some))
                for query_id, body in db.execute(f"SELECT query_id, body FROM readings WHERE query_id IN ({marks})", some):
                    try:
                        found[query_id] = unpack(body)
                    except (ValueError, LookupError, TypeError, zlib.error) as error:
                        log.warning("the readings of query %s cannot be read: %s", query_id, error)
        return found

    def _delete_before(self, unix: float) -> int:
        deleted = 0
        some = f"SELECT query_id FROM readings WHERE started_at_unix < ? LIMIT {_CHUNK}"
        with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as db:
            while count := db.execute(f"DELETE FROM readings WHERE query_id IN ({some})", (unix,)).rowcount:
                deleted += count
            db.execute("PRAGMA incremental_vacuum").fetchall()
        return deleted

    def _tried(self, work: Callable[[], T], otherwise: T) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return otherwise

    # The writer's thread

    def _write_until_closed(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while batch := self._next_batch():
            try:
                self._write(batch)
            except Exception as error:  # whatever it is, this thread goes on trying
                self._failed(error)
                self._drop(error)
                with self._state:
                    self._state.wait_for(lambda: self._give_up, pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                pause = FIRST_PAUSE_SECONDS
                self._written(batch)
        self._drop(None)

    def _next_batch(self) -> list[QueryReadings]:
        with self._state:
            self._state.wait_for(lambda: self._waiting or self._closing)
            return [] if self._give_up else list(self._waiting.values())[:_BATCH]

    def _write(self, batch: list[QueryReadings]) -> None:
        if self._db is None or not self.path.exists():  # moved away or deleted under us: go on in a new one
            self._drop(None)
            self._db = _open(self.path)
        rows = [(each.query_id, each.started_at_unix, body) for each in batch if (body := self._packed(each)) is not None]
        with _transaction(self._db) as db:
            db.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?)", rows)

    def _packed(self, readings: QueryReadings) -> bytes | None:
        """None for what is no JSON: it must not hold up all others for ever."""
        try:
            return pack(readings)
        except (TypeError, ValueError):
            log.exception("the readings of query %s cannot be stored", readings.query_id)
            with self._state:
                self._dropped += 1
            return None

    def _written(self, batch: list[QueryReadings]) -> None:
        with self._state:
            self._error = None
            for each in batch:
                if self._waiting.get(each.query_id) is each:  # else newer ones came meanwhile
                    del self._waiting[each.query_id]
            self._state.notify_all()

    def _failed(self, error: Exception) -> None:
        text = f"{self.path}: {error}"
        with self._state:
            first, self._error = self._error != text, text
        if first:
            log.warning("readings of queries: %s", text)

    def _drop(self, error: Exception | None) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()
        if error is not None and _is_damaged(error):
            _set_aside(self.path, error)


def pack(readings: QueryReadings) -> bytes:
    """Compressed JSON. Series that were read at the same times share them, kept as differences in milliseconds."""
    axes: dict[tuple[float, ...], int] = {}
    series = [[each.source, each.metric, axes.setdefault(each.times, len(axes)), each.values] for each in readings.series]
    body = readings.to_json() | {"series": series, "axes": [_steps(times) for times in axes]}
    return zlib.compress(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(), 6)


def unpack(body: bytes) -> QueryReadings:
    """The inverse of `pack`. Raises ValueError, LookupError, TypeError or zlib.error for something else."""
    data: dict[str, Any] = json.loads(zlib.decompress(body))
    axes = [_times(steps) for steps in data["axes"]]
    series = (Series(source, metric, axes[axis], tuple(values)) for source, metric, axis, values in data["series"])
    return QueryReadings.from_json({**data, "series": [each._asdict() for each in series]})


def _steps(times: tuple[float, ...]) -> list[int]:
    stamps = [round(1000 * time) for time in times]
    return [after - before for before, after in zip([0, *stamps], stamps, strict=False)]


def _times(steps: list[int]) -> tuple[float, ...]:
    stamp, found = 0, []
    for step in steps:
        stamp += step
        found.append(stamp / 1000)
    return tuple(found)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect on an empty file alone
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _is_damaged(error: Exception) -> bool:
    """Its content, not a lock, rights or a full disk."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _set_aside(path: Path, error: Exception) -> None:
    for part in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        aside = path.with_name(f"{part.name}.damaged-{int(time.time())}")
        try:
            if part.exists():
                part.rename(aside)
                log.error("%s is damaged (%s) and was set aside as %s; a new file begins", part, error, aside.name)
        except OSError as refused:
            log.error("%s is damaged and cannot be set aside: %s", part, refused)
