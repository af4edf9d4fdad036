"""What was ingested: jobs, the outcome of each of their files, where each document's file lies, and what watched folders held.

A SQLite file of its own (WAL), so that a process that ends at any moment leaves behind what it was about. Knows nothing of what
runs: states are written by whoever runs the jobs.

jobs       one row a job: what was asked, its state, who runs it
files      one row a job and file: outcome, notes, error
documents  document_id to the real path of its file
watched    the files of watched folders as they were taken in
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rag.errors import Kind, RagError
from rag.types import Event

JobState = Literal["queued", "running", "paused", "finished", "failed", "cancelled"]
UNFINISHED: tuple[JobState, ...] = ("queued", "running")
APPLICATION_ID = 0x52414749  # "RAGI": tells our file from another program's
VERSION = 1
WAIT_SECONDS = 1.0
STORED = ("added", "replaced", "unchanged")

_SCHEMA = (
    """CREATE TABLE jobs (
        id TEXT PRIMARY KEY, label TEXT NOT NULL, paths TEXT NOT NULL, root TEXT, collection TEXT, id_prefix TEXT NOT NULL,
        state TEXT NOT NULL, owner TEXT, created_at_unix REAL NOT NULL, ended_at_unix REAL, seconds REAL NOT NULL DEFAULT 0,
        tokens INTEGER NOT NULL DEFAULT 0, passages INTEGER NOT NULL DEFAULT 0, files INTEGER, skipped TEXT, error TEXT)""",
    "CREATE INDEX jobs_created ON jobs (created_at_unix)",
    """CREATE TABLE files (
        job_id TEXT NOT NULL, key TEXT NOT NULL, source TEXT NOT NULL, outcome TEXT NOT NULL,
        passages INTEGER NOT NULL, notes TEXT NOT NULL, error TEXT, PRIMARY KEY (job_id, key)) WITHOUT ROWID""",
    "CREATE TABLE documents (document_id TEXT PRIMARY KEY, path BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE watched (
        collection TEXT NOT NULL, root BLOB NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        device INTEGER NOT NULL, document_id TEXT NOT NULL, original TEXT, PRIMARY KEY (collection, root, path)) WITHOUT ROWID""",
)


@dataclass(frozen=True, slots=True)
class IngestJob:
    """A job as the ledger has it. `paths` are what was asked for; with `root` they are files of that watched folder.

    `owner` is the process that runs it (`rag.ingest_record.owner`), None where none does. `seconds` and `tokens` are sums over
    its runs; `counts` are files by outcome; `files` None before it looked. `error` is a `Problem` as JSON.
    """

    id: str
    label: str
    paths: tuple[Path, ...]
    created_at_unix: float
    root: Path | None = None
    collection: str | None = None
    id_prefix: str = ""
    state: JobState = "queued"
    owner: str | None = None
    ended_at_unix: float | None = None
    seconds: float = 0.0
    tokens: int = 0
    passages: int = 0
    files: int | None = None
    skipped: tuple[Mapping[str, Any], ...] = ()
    error: Mapping[str, Any] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file's outcome in a job. `document_id` is None for a path that was refused. `error` is a `Problem` as JSON."""

    source: str
    document_id: str | None
    outcome: str
    passages: int = 0
    notes: tuple[str, ...] = ()
    error: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, event: Event) -> FileRow:
        """From a `file_finished` event."""
        return cls(
            event["source"], event["document_id"], event["outcome"], event["passages"], tuple(event["notes"]), event["error"]
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """A file of a watched folder as it was when it was taken in. A duplicate names the document that has its text (`original`).

    `device` is that of the file system it lay on (`st_dev`).
    """

    size: int
    mtime_ns: int
    device: int
    document_id: str
    original: str | None = None


class Ledger:
    """Opens (or makes) the file at its first use. Thread-safe; every method raises RagError, naming the file and what to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction. After an error the file is opened anew: what was wrong may be mended by then."""
        with self._lock:
            try:
                if self._db is None:
                    self._db = _opened(self.path)
                with self._db:
                    yield self._db
            except (sqlite3.Error, OSError) as problem:
                if self._db is not None:
                    self._db.close()
                    self._db = None
                raise _mapped(problem, self.path) from problem

    # jobs

    def put(self, job: IngestJob) -> None:
        """Make or change a job; its files stay."""
        values = {
            "id": job.id,
            "label": job.label,
            "paths": json.dumps([os.fspath(path) for path in job.paths]),
            "root": None if job.root is None else json.dumps(os.fspath(job.root)),
            "collection": job.collection,
            "id_prefix": job.id_prefix,
            "state": job.state,
            "owner": job.owner,
            "created_at_unix": job.created_at_unix,
            "ended_at_unix": job.ended_at_unix,
            "seconds": job.seconds,
            "tokens": job.tokens,
            "passages": job.passages,
            "files": job.files,
            "skipped": json.dumps([dict(item) for item in job.skipped]),
            "error": None if job.error is None else json.dumps(dict(job.error)),
        }
        names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
        changes = ", ".join(f"{name} = excluded.{name}" for name in values if name != "id")
        with self._open() as db:
            db.execute(f"INSERT INTO jobs ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {changes}", values)

    def job(self, job_id: str) -> IngestJob | None:
        return next(iter(self._jobs("WHERE id = ?", (job_id,))), None)

    def jobs(self, limit: int = 200) -> list[IngestJob]:
        """Newest first."""
        return self._jobs("ORDER BY created_at_unix DESC, rowid DESC LIMIT ?", (limit,))

    def unfinished(self) -> list[IngestJob]:
        """Queued or running when they were last heard of, oldest first."""
        return self._jobs("WHERE state IN (?, ?) ORDER BY created_at_unix, rowid", UNFINISHED)

    def _jobs(self, where: str, values: Sequence[Any]) -> list[IngestJob]:
        with self._open() as db:
            rows = db.execute(f"SELECT * FROM jobs {where}", values).fetchall()
            counted: dict[str, dict[str, int]] = {}
            for row in rows:
                counts = db.execute("SELECT outcome, count(*) FROM files WHERE job_id = ? GROUP BY outcome", (row["id"],))
                counted[row["id"]] = dict(counts.fetchall())
        return [_job(row, counted[row["id"]]) for row in rows]

    def forget_old(self, keep: int) -> None:
        """Delete ended jobs beyond the newest `keep`; where documents lie stays known."""
        with self._open() as db:
            db.execute(
                """DELETE FROM jobs WHERE state IN ('finished', 'failed', 'cancelled') AND id NOT IN
                   (SELECT id FROM jobs ORDER BY created_at_unix DESC LIMIT ?)""",
                (keep,),
            )
            db.execute("DELETE FROM files WHERE job_id NOT IN (SELECT id FROM jobs)")

    # files and documents

    def put_file(self, job_id: str, row: FileRow, path: Path | None) -> None:
        """A file is done. That it was added in an earlier run of the same job stays where this run found it unchanged."""
        notes, error = json.dumps(row.notes), None if row.error is None else json.dumps(dict(row.error))
        with self._open() as db:
            db.execute(
                """INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id, key) DO UPDATE SET
                   source = excluded.source, passages = excluded.passages, error = excluded.error,
                   notes = CASE WHEN excluded.outcome = 'unchanged' THEN files.notes ELSE excluded.notes END,
                   outcome = CASE WHEN excluded.outcome = 'unchanged' AND files.outcome IN ('added', 'replaced')
                             THEN files.outcome ELSE excluded.outcome END""",
                (job_id, row.document_id or f"path:{row.source}", row.source, row.outcome, row.passages, notes, error),
            )
            if row.document_id and path is not None and row.outcome in STORED:
                values = (row.document_id, os.fsencode(path))
                db.execute("INSERT INTO documents VALUES (?, ?) ON CONFLICT DO UPDATE SET path = excluded.path", values)

    def files(self, job_id: str) -> list[FileRow]:
        """The job's files by name, those that failed first."""
        with self._open() as db:
            rows = db.execute("SELECT * FROM files WHERE job_id = ? ORDER BY outcome != 'failed', source", (job_id,)).fetchall()
        return [
            FileRow(
                row["source"],
                None if row["key"].startswith("path:") else row["key"],
                row["outcome"],
                row["passages"],
                tuple(json.loads(row["notes"])),
                None if row["error"] is None else json.loads(row["error"]),
            )
            for row in rows
        ]

    def forget_refused(self, job_id: str) -> None:
        """Forget the paths that were refused, before they are tried again: they may have another name then."""
        with self._open() as db:
            db.execute("DELETE FROM files WHERE job_id = ? AND key LIKE 'path:%'", (job_id,))

    def path_of(self, document_id: str) -> Path | None:
        """Where the document's file was when it was last read in."""
        with self._open() as db:
            row = db.execute("SELECT path FROM documents WHERE document_id = ?", (document_id,)).fetchone()
        return None if row is None else Path(os.fsdecode(row[0]))

    # watched folders

    def taken(self, collection: str, root: Path) -> dict[Path, Taken]:
        with self._open() as db:
            rows = db.execute(
                "SELECT * FROM watched WHERE collection = ? AND root = ?", (collection, os.fsencode(root))
            ).fetchall()
        return {
            Path(os.fsdecode(row["path"])): Taken(
                row["size"], row["mtime_ns"], row["device"], row["document_id"], row["original"]
            )
            for row in rows
        }

    def take(self, collection: str, root: Path, path: Path, taken: Taken) -> None:
        values = (
            *(collection, os.fsencode(root), os.fsencode(path), taken.size, taken.mtime_ns, taken.device),
            *(taken.document_id, taken.original),
        )
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO watched VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def untake(self, collection: str, root: Path, path: Path) -> None:
        with self._open() as db:
            values = (collection, os.fsencode(root), os.fsencode(path))
            db.execute("DELETE FROM watched WHERE collection = ? AND root = ? AND path = ?", values)

    def untake_duplicates(self, collection: str, original: str) -> None:
        """The document left: files with its text are to be taken in with the next look."""
        with self._open() as db:
            db.execute("DELETE FROM watched WHERE collection = ? AND original = ?", (collection, original))

    def untake_all(self, collection: str) -> None:
        """The collection was emptied."""
        with self._open() as db:
            db.execute("DELETE FROM watched WHERE collection = ?", (collection,))


def _job(row: sqlite3.Row, counts: Mapping[str, int]) -> IngestJob:
    return IngestJob(
        id=row["id"],
        label=row["label"],
        paths=tuple(Path(path) for path in json.loads(row["paths"])),
        created_at_unix=row["created_at_unix"],
        root=None if row["root"] is None else Path(json.loads(row["root"])),
        collection=row["collection"],
        id_prefix=row["id_prefix"],
        state=row["state"],
        owner=row["owner"],
        ended_at_unix=row["ended_at_unix"],
        seconds=row["seconds"],
        tokens=row["tokens"],
        passages=row["passages"],
        files=row["files"],
        skipped=tuple(json.loads(row["skipped"] or "[]")),
        error=None if row["error"] is None else json.loads(row["error"]),
        counts=counts,
    )


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=WAIT_SECONDS, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        application, version = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version"))
        empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not empty and (application != APPLICATION_ID or version > VERSION):
            whose = "a newer version of this program" if application == APPLICATION_ID else "another program"
            raise RagError(
                f"The ingestion ledger {path} belongs to {whose}.",
                kind="bad_input",
                address=str(path),
                next_step=f"Move it away (mv {path} {path}.other); a new one is made.",
            )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if empty:
            _create(db)
    except BaseException:
        db.close()
        raise
    return db


def _create(db: sqlite3.Connection) -> None:
    """All or nothing; another process may have been first."""
    db.execute("BEGIN IMMEDIATE")
    with db:
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")


_DAMAGED = "Stop the dashboard and move it away (for f in {path}*; do mv $f $f.damaged; done); a new one is made."
_DISK = "Free space on the disk of {folder}, and check its quota."
_ACCESS = "Give this user write access to {folder}."
_MEANINGS: dict[int, tuple[str, Kind, str]] = {
    sqlite3.SQLITE_NOTADB: ("is damaged or no SQLite file", "internal", _DAMAGED),
    sqlite3.SQLITE_CORRUPT: ("is damaged", "internal", _DAMAGED),
    sqlite3.SQLITE_BUSY: ("is locked by another process", "held", "End the process that holds it (`fuser {path}` names it)."),
    sqlite3.SQLITE_FULL: ("cannot grow: the disk is full", "internal", _DISK),
    sqlite3.SQLITE_READONLY: ("cannot be written", "internal", _ACCESS),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "internal", _ACCESS),
}


def _mapped(problem: Exception, path: Path) -> RagError:
    meaning: tuple[str, Kind, str] = ("cannot be used", "internal", _DISK)
    if isinstance(problem, OSError):
        meaning = ("cannot be opened", "internal", _ACCESS)
    elif (code := getattr(problem, "sqlite_errorcode", None)) is not None:
        meaning = _MEANINGS.get(code & 0xFF, meaning)  # the low byte; the rest is the extended code
    elif isinstance(problem, sqlite3.OperationalError) and "no such" in str(problem):
        meaning = ("is damaged", "internal", _DAMAGED)
    what, kind, step = meaning
    next_step = step.format(path=path, folder=path.parent)
    return RagError(f"The ingestion ledger {path} {what} ({problem}).", kind=kind, address=str(path), next_step=next_step)
