"""The trace file itself: its schema and migrations, opening it, and what its errors mean.

queries   one narrow row a query: what the run list shows, filters and sorts by, so that it reads no blobs
answers   the Answer as compact JSON without its passages' texts, zlib-compressed where that is smaller
spans     the spans of a query, encoded the same way
stages    one row a query and stage, for percentiles without JSON
passages  each distinct passage text once, under a hash of its content
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rag.errors import Kind, RagError
from rag.types import STAGES

log = logging.getLogger(__name__)
APPLICATION_ID = 0x52414744  # "RAGD": tells our file from another program's
_PAGE_BYTES = 8192


def _create(db: sqlite3.Connection) -> None:
    for statement in (
        """CREATE TABLE queries (
            id TEXT PRIMARY KEY, started_at_unix REAL NOT NULL, question TEXT NOT NULL, outcome TEXT NOT NULL,
            total_seconds REAL NOT NULL, ttft_seconds REAL, cold INTEGER NOT NULL, cache_hit INTEGER, error_stage TEXT,
            error_kind TEXT, model TEXT, tokens_completion INTEGER, candidates INTEGER, hyde TEXT, rerank INTEGER,
            caches TEXT, settings TEXT, version TEXT, content INTEGER NOT NULL, span_count INTEGER NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX queries_started ON queries (started_at_unix)",
        "CREATE TABLE answers (query_id TEXT PRIMARY KEY, body BLOB NOT NULL)",
        "CREATE TABLE spans (query_id TEXT PRIMARY KEY, body BLOB NOT NULL)",
        """CREATE TABLE stages (
            query_id TEXT NOT NULL, stage TEXT NOT NULL, started_at_unix REAL NOT NULL, seconds REAL NOT NULL,
            cold INTEGER NOT NULL, skipped TEXT, load REAL, queue REAL, tokenize REAL, compute REAL, network REAL,
            PRIMARY KEY (query_id, stage)) WITHOUT ROWID""",
        """CREATE TABLE passages (
            hash BLOB PRIMARY KEY, text TEXT NOT NULL, title TEXT NOT NULL, source TEXT NOT NULL, location TEXT,
            last_used_unix REAL NOT NULL)""",
        f"PRAGMA application_id = {APPLICATION_ID}",
    ):
        db.execute(statement)


def _add_stage_columns(db: sqlite3.Connection) -> None:
    """v1 -> v2: the seconds of each stage beside the query, so that the run list needs no join."""
    for stage in STAGES:
        db.execute(f"ALTER TABLE queries ADD COLUMN {stage}_seconds REAL")
        db.execute(
            f"""UPDATE queries SET {stage}_seconds =
                (SELECT seconds FROM stages WHERE query_id = queries.id AND stage = ? AND skipped IS NULL)""",
            (stage,),
        )


def _add_investigation_columns(db: sqlite3.Connection) -> None:
    """v2 -> v3: who asked, what HyDE changed, and what makes stages comparable (model, device, place, work load)."""
    for column in ("origin TEXT NOT NULL DEFAULT 'ask'", "hyde_ran INTEGER", "hyde_changed INTEGER", "tokens_prompt INTEGER"):
        db.execute(f"ALTER TABLE queries ADD COLUMN {column}")
    for column in ("device TEXT", "model TEXT", "place TEXT", "other REAL", "units REAL"):
        db.execute(f"ALTER TABLE stages ADD COLUMN {column}")
    db.execute("UPDATE queries SET hyde_ran = hyde_seconds IS NOT NULL")


def _add_hyde_columns(db: sqlite3.Connection) -> None:
    """v3 -> v4: how close the search without HyDE came, and an index of the queries whose effect is known."""
    db.execute("ALTER TABLE queries ADD COLUMN hyde_dense REAL")
    db.execute("CREATE INDEX queries_hyde ON queries (started_at_unix) WHERE hyde_changed IS NOT NULL")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _create,
    _add_stage_columns,
    _add_investigation_columns,
    _add_hyde_columns,
)
VERSION = len(MIGRATIONS)  # `PRAGMA user_version` of a file on which all of them have run


def open_file(path: Path, *, wait_seconds: float = 1.0) -> sqlite3.Connection:
    """A connection that may write, to a file that exists and has the newest schema.

    While another process holds the file it tries again for `wait_seconds`. Raises RagError, sqlite3.Error or OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for place in (path, path.parent):
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(f"{place} is read-only")
    end = time.monotonic() + wait_seconds
    while True:  # SQLite does not wait by itself while two processes turn a new file to WAL
        try:
            return _opened(path)
        except sqlite3.OperationalError as error:
            # errors that the sqlite3 module makes up itself have no code
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > end:
                raise
        time.sleep(0.05)


def _opened(path: Path) -> sqlite3.Connection:
    db = connect(path)
    try:
        if _version(db, path) < VERSION:
            db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # both only take effect on an empty file
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            log.warning(
                "%s is in journal mode %s, not WAL (a network drive?): readers and writer will wait for each other.", path, mode
            )
        db.execute("PRAGMA synchronous = NORMAL")
        _migrate(db, path)
    except BaseException:
        db.close()
        raise
    return db


def connect(path: Path, *, reading: bool = False) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; it waits 1 s for a lock (5 s to read)."""
    db = sqlite3.connect(path, timeout=5.0 if reading else 1.0, isolation_level=None, check_same_thread=False)
    if reading:
        db.execute("PRAGMA query_only = ON")
        db.create_function("folded_has", 2, _folded_has, deterministic=True)
    return db


def _folded_has(text: str, folded: str) -> bool:
    return folded in text.casefold()


def _version(db: sqlite3.Connection, path: Path) -> int:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    application = db.execute("PRAGMA application_id").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (version or tables) and application != APPLICATION_ID:
        raise RagError(
            f"{path} belongs to another program.",
            kind="bad_input",
            next_step="Choose another path for the traces in the settings.",
        )
    if version > VERSION:
        raise RagError(
            f"{path} was written by a newer version (schema {version}; this one knows {VERSION}).",
            kind="bad_input",
            next_step="Update this program, or choose another path for the traces in the settings.",
        )
    return version


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    if _version(db, path) == VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db, path)  # another process may have been first
        for migration in MIGRATIONS[version:]:
            migration(db)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode: changes when the file is moved away or replaced while we have it open. None when it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def parts(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


@contextmanager
def closing(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield db
    finally:
        db.close()


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """sqlite3's errors and the system's come out as RagError with the file's name and what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise problem(error, path) from error


_DAMAGED = (
    "Stop the dashboard, move the file away (for f in {path}*; do mv $f $f.damaged; done) and start it again: a new one is "
    "made; nothing is ever deleted. `sqlite3 {path}.damaged .recover` may save what it held."
)
_NO_ACCESS = "Give this user write access to {folder}, or choose another data folder in the settings."
_DISK = "Check the disk of {folder}: space, quota, file size limit."
_MEANINGS: dict[int, tuple[str, Kind, str]] = {
    sqlite3.SQLITE_NOTADB: ("is damaged or no SQLite file", "internal", _DAMAGED),
    sqlite3.SQLITE_CORRUPT: ("is damaged", "internal", _DAMAGED),
    sqlite3.SQLITE_BUSY: ("is locked by another process", "held", "End the process that holds it (`fuser {path}` names it)."),
    sqlite3.SQLITE_LOCKED: ("is locked by another connection", "held", "Try again."),
    sqlite3.SQLITE_FULL: ("cannot grow: the disk is full", "internal", _DISK),
    sqlite3.SQLITE_IOERR: ("could not be read or written", "internal", _DISK),
    sqlite3.SQLITE_READONLY: ("cannot be written", "internal", _NO_ACCESS),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "internal", _NO_ACCESS),
    sqlite3.SQLITE_PERM: ("cannot be opened", "internal", _NO_ACCESS),
}


def problem(error: Exception, path: Path) -> RagError:
    """The RagError for what SQLite or the system said about `path`."""
    code = getattr(error, "sqlite_errorcode", None)
    meaning: tuple[str, Kind, str] = ("cannot be used", "internal", _DISK)
    if isinstance(error, OSError):
        meaning = ("cannot be opened", "internal", _NO_ACCESS)
    elif code is not None:
        meaning = _MEANINGS.get(code & 0xFF, meaning)  # the low byte; the rest is the extended code
    what, kind, step = meaning
    next_step = step.format(path=path, folder=path.parent)
    return RagError(f"The trace file {path} {what} ({error}).", kind=kind, address=str(path), next_step=next_step)
