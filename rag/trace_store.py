"""Queries and their spans on disk: SQLite in WAL mode, written by one thread in batches, read by any.

Knows nothing of how a query runs or how spans are made. `save` returns once the query is in the bounded queue; a lock or a
full disk is waited out with everything kept in memory, and `health` says so. What `flush` has acknowledged survives the
process being killed (synchronous=NORMAL: not a power cut in the same second).
"""

from __future__ import annotations

import atexit
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rag.conventions import is_content
from rag.errors import RagError
from rag.otlp import SpanRecord
from rag.trace_file import closing, connect, identity, mapped, open_file, parts, problem
from rag.trace_rows import (
    PASSAGE_SLACK_SECONDS,
    ROW_SQL,
    STAGE_SQL,
    QueryFilter,
    QueryRow,
    Rows,
    StageRow,
    order_by,
    passage_hashes,
    query_row,
    stage_row,
    started_unix,
    to_answer,
    to_rows,
    unpack,
    without_content,
)
from rag.types import Answer

__all__ = ["QueryFilter", "QueryRow", "StageRow", "StoreHealth", "StoreStats", "TraceStore"]

log = logging.getLogger(__name__)
_BATCH = 64  # queries a transaction at most
_READERS_KEPT = 4
_DELETE_CHUNK = 500
_ALL = QueryFilter()


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """`error` is what the last attempt to write met, None when it succeeded; `backlog` queries wait in memory.

    `rejected` counts queries that could not be stored at all because of their own content (a bug; each is logged).
    """

    error: str | None
    backlog: int
    rejected: int

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What the file holds; `bytes_on_disk` counts the write-ahead log too."""

    queries: int
    spans: int
    passages: int
    bytes_on_disk: int
    backlog: int


@dataclass(frozen=True, slots=True)
class _Job:
    answer: Answer
    spans: tuple[SpanRecord, ...]
    number: int


class TraceStore:
    """Opens (or makes) the file at `path`; raises RagError, naming file and next step, when that cannot be done.

    `capacity` is how many queries may wait in memory before `save` waits too.
    """

    def __init__(self, path: Path, *, capture_content: bool = True, capacity: int = 512) -> None:
        self.path = Path(path)
        self.capture_content = capture_content
        self._capacity = capacity
        self._state = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._pending: dict[str, _Job] = {}
        self._accepted = self._done = self._rejected = 0
        self._error: str | None = None
        self._closing = self._give_up = False
        self._readers: list[tuple[object, sqlite3.Connection]] = []
        self._readers_lock = threading.Lock()
        self._revision_lock = threading.Lock()
        self._watch: tuple[object, sqlite3.Connection] | None = None
        self._seen_version, self._revision = -1, 0
        with mapped(self.path):
            self._db: sqlite3.Connection | None = open_file(self.path, wait_seconds=5.0)
        self._db_file = identity(self.path)
        self._thread = threading.Thread(target=self._write_until_closed, name="trace-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # the writer is a daemon thread: an owner that forgets must not hang the exit

    # Writing

    def save(self, answer: Answer, spans: Sequence[SpanRecord] = (), *, timeout: float | None = None) -> None:
        """Queue a query for writing; one with the same id replaces the stored one. Waits only while the queue is full.

        Raises RagError: `overloaded` after `timeout` seconds of a full queue, `bad_input` for an answer without id or time.
        """
        started_unix(answer)  # a caller's mistake is told to the caller, not found later in the writer
        if not answer.id:
            raise RagError("An answer without id cannot be stored.", kind="bad_input")
        if not self.capture_content:
            answer, spans = without_content(answer), [_bare(span) for span in spans]
        with self._state:
            if not self._state.wait_for(lambda: self._closing or len(self._queue) < self._capacity, timeout):
                raise RagError(f"{self._capacity} queries wait to be written to {self.path}: {self._error}", kind="overloaded")
            if self._closing:
                raise RagError(f"The trace store {self.path} is closed.", next_step="Start the dashboard again.")
            self._accepted += 1
            job = _Job(answer, tuple(spans), self._accepted)
            self._queue.append(job)
            self._pending[answer.id] = job
            self._state.notify_all()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything saved before this call is committed; False when that takes longer than `timeout` seconds."""
        with self._state:
            target = self._accepted
            return self._state.wait_for(lambda: self._done >= target, timeout)

    def close(self, timeout: float = 10.0) -> bool:
        """Write what waits and close. False (and a log entry) when some could not be written within `timeout` seconds."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join(timeout)
        atexit.unregister(self.close)
        with self._state:
            self._give_up = True
            self._state.notify_all()
            left = len(self._queue)
        self._thread.join(2.0)
        with self._readers_lock:
            readers, self._readers = self._readers, []
        with self._revision_lock:
            watch, self._watch = self._watch, None
        for _, db in [*readers, *([watch] if watch else [])]:
            db.close()
        if left:
            log.error("%d queries could not be written to %s: %s", left, self.path, self._error)
        return left == 0

    def health(self) -> StoreHealth:
        with self._state:
            return StoreHealth(self._error, len(self._queue), self._rejected)

    def delete_before(self, unix: float) -> int:
        """Delete queries that started before `unix` (seconds) and passages only they used; returns how many queries.

        Works in small transactions, so that queries being saved meanwhile wait for milliseconds only.
        """
        self.flush()
        deleted = 0
        with mapped(self.path), closing(open_file(self.path, wait_seconds=5.0)) as db:
            db.execute("PRAGMA busy_timeout = 5000")
            while count := _delete_some(db, unix):
                deleted += count
            db.execute("DELETE FROM passages WHERE last_used_unix < ?", (unix - PASSAGE_SLACK_SECONDS,))
            db.execute("PRAGMA incremental_vacuum").fetchall()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return deleted

    # Reading

    def get(self, query_id: str) -> Answer | None:
        """The whole answer, also when it still waits to be written; None when there is no such query."""
        with self._state:
            job = self._pending.get(query_id)
        if job:
            return job.answer
        with self._reader() as db:
            db.execute("BEGIN")  # one snapshot for both reads
            found = db.execute("SELECT body FROM answers WHERE query_id = ?", (query_id,)).fetchone()
            body = unpack(found[0]) if found else None
            hashes = list(set(passage_hashes(body))) if body else []
            marks = ",".join("?" * len(hashes))
            rows = db.execute(
                f"SELECT hash, text, title, source, location FROM passages WHERE hash IN ({marks})", hashes
            ).fetchall()
            db.execute("COMMIT")
        return to_answer(body, {row[0]: row[1:] for row in rows}) if body else None

    def spans(self, query_id: str) -> list[SpanRecord]:
        """The spans of a query as they were saved; empty when there are none."""
        with self._state:
            job = self._pending.get(query_id)
        if job:
            return list(job.spans)
        with self._reader() as db:
            found = db.execute("SELECT body FROM spans WHERE query_id = ?", (query_id,)).fetchone()
        return [SpanRecord.from_json(span) for span in unpack(found[0])] if found else []

    def search(
        self,
        where: QueryFilter = _ALL,
        sort: str = "started_at",
        descending: bool = True,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[QueryRow]:
        """Committed queries, sorted by any field of QueryRow; all of them unless `limit` is given."""
        clause, values = where.sql()
        sql = f"SELECT {ROW_SQL} FROM queries{clause}{order_by(sort, descending)} LIMIT ? OFFSET ?"
        with self._reader() as db:
            rows = db.execute(sql, [*values, -1 if limit is None else limit, offset]).fetchall()
        return [query_row(row) for row in rows]

    def count(self, where: QueryFilter = _ALL) -> int:
        clause, values = where.sql()
        with self._reader() as db:
            return int(db.execute(f"SELECT count(*) FROM queries{clause}", values).fetchone()[0])

    def stage_rows(self, where: QueryFilter = _ALL, stage: str | None = None) -> list[StageRow]:
        """The stages of the queries that match, oldest query first: what percentiles are computed from."""
        clause, values = where.sql()
        tests = [f"query_id IN (SELECT id FROM queries{clause})"] if clause else []
        if stage:
            tests, values = [*tests, "stage = ?"], [*values, stage]
        sql = (
            f"SELECT {STAGE_SQL} FROM stages{' WHERE ' + ' AND '.join(tests) if tests else ''} ORDER BY query_id, started_at_unix"
        )
        with self._reader() as db:
            return [stage_row(row) for row in db.execute(sql, values)]

    def stats(self) -> StoreStats:
        with self._reader() as db:
            queries, spans = db.execute("SELECT count(*), coalesce(sum(span_count), 0) FROM queries").fetchone()
            passages = db.execute("SELECT count(*) FROM passages").fetchone()[0]
        size = sum(part.stat().st_size for part in parts(self.path) if part.exists())
        return StoreStats(queries, spans, passages, size, self.health().backlog)

    @property
    def revision(self) -> int:
        """Grows when anything was committed since it was last read, by this process or another; takes microseconds."""
        with self._revision_lock, mapped(self.path):
            here = identity(self.path)
            if self._watch is None or self._watch[0] != here:
                if self._watch:
                    self._watch[1].close()
                self._watch, self._seen_version = (here, connect(self.path)), -1
            version = self._watch[1].execute("PRAGMA data_version").fetchone()[0]
            if version != self._seen_version:
                self._seen_version, self._revision = version, self._revision + 1
            return self._revision

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """A connection of one's own for the moment, from a small pool; sqlite3's errors come out as RagError."""
        with mapped(self.path):
            here = identity(self.path)
            db = None
            with self._readers_lock:
                while self._readers and db is None:
                    opened_on, candidate = self._readers.pop()
                    if opened_on == here:  # else the file was moved away or replaced since
                        db = candidate
                    else:
                        candidate.close()
            db = db or connect(self.path, reading=True)
            try:
                yield db
            except BaseException:
                db.close()  # it may be inside a transaction
                raise
            with self._readers_lock:
                if len(self._readers) < _READERS_KEPT and not self._give_up:
                    self._readers.append((here, db))
                else:
                    db.close()

    # The writer's thread

    def _write_until_closed(self) -> None:
        pause = 0.05
        while batch := self._next_batch():
            try:
                self._write(batch)
            except Exception as error:  # whatever it is, this thread goes on trying
                self._failed(error)
                with self._state:
                    self._state.wait_for(lambda: self._give_up, pause)
                pause = min(pause * 2, 2.0)
            else:
                pause = 0.05
                self._committed(batch)
        self._drop_writer()

    def _next_batch(self) -> list[_Job]:
        with self._state:
            self._state.wait_for(lambda: self._queue or self._closing)
            return [] if self._give_up else [self._queue[n] for n in range(min(len(self._queue), _BATCH))]

    def _write(self, batch: list[_Job]) -> None:
        if self._db is None or self._db_file != identity(self.path):
            self._drop_writer()  # the file was moved away or deleted under us: go on in a new one
            self._db = open_file(self.path)
            self._db_file = identity(self.path)
        self._db.execute("BEGIN IMMEDIATE")
        for job in batch:
            self._db.execute("SAVEPOINT one")
            try:
                _insert(self._db, to_rows(job.answer, job.spans, content=self.capture_content))
            except (sqlite3.OperationalError, MemoryError):
                raise  # a lock or a full disk: the whole batch is tried again
            except Exception as error:
                if type(error) is sqlite3.DatabaseError:
                    raise  # a damaged file
                self._db.execute("ROLLBACK TO one")  # one query that cannot be stored must not hold up all others for ever
                log.exception("Query %s cannot be stored.", job.answer.id)
                with self._state:
                    self._rejected += 1
            self._db.execute("RELEASE one")
        self._db.execute("COMMIT")

    def _committed(self, batch: list[_Job]) -> None:
        with self._state:
            self._error = None
            for job in batch:
                self._queue.popleft()
                if self._pending.get(job.answer.id) is job:
                    del self._pending[job.answer.id]
            self._done = batch[-1].number
            self._state.notify_all()

    def _failed(self, error: Exception) -> None:
        self._drop_writer()
        cause = error if isinstance(error, RagError) else problem(error, self.path)
        with self._state:
            first, self._error = self._error is None, f"{cause.message} {cause.next_step}".strip()
        if first:
            log.warning("Traces wait in memory: %s", self._error)

    def _drop_writer(self) -> None:
        db, self._db = self._db, None
        if db:
            db.close()  # rolls back what is open


def _bare(span: SpanRecord) -> SpanRecord:
    return replace(span, attributes={key: value for key, value in span.attributes.items() if not is_content(key)})


def _insert(db: sqlite3.Connection, rows: Rows) -> None:
    columns, marks = ", ".join(rows.query), ", ".join("?" * len(rows.query))
    db.execute(f"INSERT OR REPLACE INTO queries ({columns}) VALUES ({marks})", tuple(rows.query.values()))
    query_id = rows.query["id"]
    db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (query_id, rows.answer))
    db.execute("INSERT OR REPLACE INTO spans VALUES (?, ?)", (query_id, rows.spans))
    db.execute("DELETE FROM stages WHERE query_id = ?", (query_id,))
    marks = ", ".join("?" * len(StageRow.__dataclass_fields__))
    db.executemany(f"INSERT OR REPLACE INTO stages ({STAGE_SQL}) VALUES ({marks})", rows.stages)
    db.executemany(
        f"""INSERT INTO passages (hash, text, title, source, location, last_used_unix) VALUES (?, ?, ?, ?, ?, ?)
            ON CONFLICT (hash) DO UPDATE SET last_used_unix = excluded.last_used_unix
            WHERE excluded.last_used_unix > last_used_unix + {PASSAGE_SLACK_SECONDS}""",
        rows.passages,
    )


def _delete_some(db: sqlite3.Connection, unix: float) -> int:
    db.execute("BEGIN IMMEDIATE")
    some = f"SELECT id FROM queries WHERE started_at_unix < ? ORDER BY started_at_unix, id LIMIT {_DELETE_CHUNK}"
    for table in ("answers", "spans", "stages"):
        db.execute(f"DELETE FROM {table} WHERE query_id IN ({some})", (unix,))
    count = db.execute(f"DELETE FROM queries WHERE id IN ({some})", (unix,)).rowcount
    db.execute("COMMIT")
    return count
