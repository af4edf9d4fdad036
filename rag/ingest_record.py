"""The ledger as running jobs see it: it never fails them. Writes that could not be made are made later, in order.

Keeps the jobs of this process in memory too, so that they can be paused, resumed and shown while the file cannot be used.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rag.errors import RagError
from rag.ingest_ledger import UNFINISHED, FileRow, IngestJob, Ledger, Taken
from rag.types import Problem

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0  # a locked file costs each attempt a second
PENDING_LIMIT = 100_000  # writes; about 1 kB each
KEEP_JOBS = 500

T = TypeVar("T")


def owner(pid: int | None = None, proc: Path = Path("/proc")) -> str | None:
    """`pid:start` of this process, or of another that lives; the start (clock ticks since boot, field 22 of /proc/PID/stat) tells
    it from a later process of the same number. None when it has ended."""
    number = os.getpid() if pid is None else pid
    try:
        fields = (proc / str(number) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else f"{number}:{fields[19]}"
    except (OSError, IndexError):
        return f"{number}:?" if not proc.is_dir() and _exists(number) else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def is_alive(who: str | None) -> bool:
    """Whether the process that `owner` named still runs."""
    return who is not None and owner(int(who.partition(":")[0])) == who


class Record:
    """Thread-safe. `problem` is why the ledger could not be used at the last attempt, None when it could."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self._clock = ledger, clock
        self._lock = threading.RLock()
        self._jobs: dict[str, IngestJob] = {}
        self._files: dict[str, dict[str, FileRow]] = {}
        self._taken: dict[tuple[str, Path], dict[Path, Taken]] = {}
        self._pending: deque[Callable[[], None]] = deque(maxlen=PENDING_LIMIT)
        self._retry_at = float("-inf")
        self.problem: Problem | None = None

    def close(self) -> None:
        """Try once more to write what waits."""
        with self._lock:
            self._retry_at = float("-inf")
            self._write_pending()
            self._ledger.close()

    # 1) the file, or else not

    def _write(self, write: Callable[[], None]) -> None:
        with self._lock:
            self._pending.append(write)
            self._write_pending()

    def _write_pending(self) -> None:
        if self._clock() < self._retry_at:
            return
        while self._pending:
            try:
                self._pending[0]()
            except RagError as problem:
                self._note(problem)
                return
            self._pending.popleft()
            self.problem = None

    def _read(self, read: Callable[[], T], otherwise: Callable[[], T]) -> T:
        with self._lock:
            self._write_pending()
            if self._pending or self._clock() < self._retry_at:
                return otherwise()
            try:
                found = read()
            except RagError as problem:
                self._note(problem)
                return otherwise()
            self.problem = None
            return found

    def _note(self, problem: RagError) -> None:
        if self.problem is None:
            log.warning("%s %s", problem.message, problem.next_step)
        self.problem = Problem(None, problem.kind, problem.message, problem.address, problem.next_step)
        self._retry_at = self._clock() + RETRY_SECONDS

    # 2) jobs

    def put(self, job: IngestJob) -> None:
        with self._lock:
            self._jobs[job.id] = replace(job, counts={})
            self._write(partial(self._ledger.put, job))

    def job(self, job_id: str) -> IngestJob | None:
        return self._read(lambda: self._ledger.job(job_id), lambda: self._remembered(job_id))

    def jobs(self, limit: int = 200) -> list[IngestJob]:
        """Newest first; those of this process alone while the ledger cannot be used."""

        def remembered() -> list[IngestJob]:
            newest = sorted(self._jobs.values(), key=lambda job: job.created_at_unix, reverse=True)
            return [job for item in newest[:limit] if (job := self._remembered(item.id))]

        return self._read(lambda: self._ledger.jobs(limit), remembered)

    def _remembered(self, job_id: str) -> IngestJob | None:
        job = self._jobs.get(job_id)
        if job is None:
            return None
        counts: dict[str, int] = {}
        for row in self._files.get(job_id, {}).values():
            counts[row.outcome] = counts.get(row.outcome, 0) + 1
        return replace(job, counts=counts)

    def left_behind(self) -> list[IngestJob]:
        """Unfinished jobs that no living process runs, oldest first."""
        jobs = self._read(self._ledger.unfinished, list[IngestJob])
        return [job for job in jobs if job.state in UNFINISHED and not is_alive(job.owner)]

    def forget_old(self) -> None:
        self._write(partial(self._ledger.forget_old, KEEP_JOBS))

    # 3) files

    def put_file(self, job_id: str, row: FileRow, path: Path | None) -> None:
        with self._lock:
            rows = self._files.setdefault(job_id, {})
            key = row.document_id or row.source
            before = rows.get(key)
            kept = before is not None and row.outcome == "unchanged" and before.outcome in ("added", "replaced")
            rows[key] = replace(row, outcome=before.outcome, notes=before.notes) if before and kept else row
            self._write(partial(self._ledger.put_file, job_id, row, path))

    def files(self, job_id: str) -> list[FileRow]:
        def remembered() -> list[FileRow]:
            return sorted(self._files.get(job_id, {}).values(), key=lambda row: (row.outcome != "failed", row.source))

        return self._read(lambda: self._ledger.files(job_id), remembered)

    def forget_refused(self, job_id: str) -> None:
        with self._lock:
            rows = self._files.get(job_id, {})
            self._files[job_id] = {key: row for key, row in rows.items() if row.document_id is not None}
            self._write(partial(self._ledger.forget_refused, job_id))

    def let_go(self, job_id: str) -> None:
        """The job has ended: its files are in the ledger, and in memory only while they are not."""
        with self._lock:
            if not self._pending:
                self._files.pop(job_id, None)

    def path_of(self, document_id: str) -> Path | None:
        return self._read(lambda: self._ledger.path_of(document_id), lambda: None)

    # 4) watched folders

    def taken(self, collection: str, root: Path) -> Mapping[Path, Taken]:
        return self._read(lambda: self._ledger.taken(collection, root), lambda: dict(self._taken.get((collection, root), {})))

    def take(self, collection: str, root: Path, path: Path, taken: Taken) -> None:
        with self._lock:
            self._taken.setdefault((collection, root), {})[path] = taken
            self._write(partial(self._ledger.take, collection, root, path, taken))

    def untake(self, collection: str, root: Path, path: Path) -> None:
        with self._lock:
            self._taken.get((collection, root), {}).pop(path, None)
            self._write(partial(self._ledger.untake, collection, root, path))

    def untake_duplicates(self, collection: str, original: str) -> None:
        with self._lock:
            for (name, _), files in self._taken.items():
                for path in [path for path, taken in files.items() if name == collection and taken.original == original]:
                    del files[path]
            self._write(partial(self._ledger.untake_duplicates, collection, original))

    def untake_all(self, collection: str) -> None:
        with self._lock:
            self._taken = {key: files for key, files in self._taken.items() if key[0] != collection}
            self._write(partial(self._ledger.untake_all, collection))
