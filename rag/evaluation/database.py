"""The file `evaluations.db`: its schema, opening it, and what its errors mean. Knows nothing of what the rows say.

marks    one row a marked query: question, verdict, note, and the judged passages as documents and places
sets     one row a version of a question set
runs     one row a run: set, setting, environment, state, summary
results  the run's single questions, apart, so that lists need not read them

Opened anew for each call, so that the dashboard and commands can share it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rag import trace_file
from rag.errors import RagError
from rag.sqlite_file import turn_to_wal, version_of

APPLICATION_ID = 0x52414756  # "RAGV"
VERSION = 1
WAIT_SECONDS = 5.0

_SCHEMA = f"""BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS marks (
    query_id TEXT PRIMARY KEY, question TEXT NOT NULL, verdict TEXT, note TEXT NOT NULL, collection TEXT, language TEXT,
    asked_at_unix REAL NOT NULL, marked_at_unix REAL NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sets (
    id TEXT NOT NULL, version INTEGER NOT NULL, name TEXT NOT NULL, created_at_unix REAL NOT NULL, origin TEXT NOT NULL,
    questions INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (id, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, set_id TEXT NOT NULL, set_version INTEGER NOT NULL, set_name TEXT NOT NULL, job_id TEXT NOT NULL,
    started_at_unix REAL NOT NULL, beat_at_unix REAL NOT NULL, seconds REAL, state TEXT NOT NULL,
    body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_set ON runs (set_id, started_at_unix);
CREATE TABLE IF NOT EXISTS results (run_id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;"""


class Database:
    """The file at `path`, made where it is not there. Thread-safe; several processes may use one file."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """A connection for the moment, in autocommit. Raises RagError, with what to do, for a file that is locked, damaged,
        read-only, on a full disk or somebody else's."""
        try:
            with self._lock:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with trace_file.closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)) as db:
                    _prepare(db, self.path)
                    yield db
        except (sqlite3.Error, OSError) as error:
            meant = trace_file.problem(error, self.path)
            message = meant.message.replace("The trace file", "The file of evaluations")
            raise RagError(message, kind=meant.kind, address=meant.address, next_step=meant.next_step) from error

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """The same inside one transaction: all of it is written or nothing."""
        with self.open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    if version_of(db, path, APPLICATION_ID, VERSION) < VERSION:
        turn_to_wal(db, WAIT_SECONDS)
        db.executescript(_SCHEMA)
