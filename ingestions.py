"""The ingestion jobs of this process, on record so that the next one goes on with them: start, pause, cancel, resume, retry.

Knows what a job reads and where it writes by callbacks; knows nothing of samples, uploads or pages.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from gpu_server.interfaces import Embedder
from jobs import Job, Jobs, JobsFull
from rag.errors import Cancelled, RagError
from rag.ingest import PassageStore, document_id, ingest
from rag.ingest_ledger import UNFINISHED, FileRow, IngestJob, JobState, Taken
from rag.ingest_progress import problem_json
from rag.ingest_record import Record, owner
from rag.ingest_watch import state_of
from rag.loaders import Found, MediaReaders, find, printable
from rag.types import Event, Problem
from settings import Settings

log = logging.getLogger("ragdeck")

IngestSummary = dict[str, Any]
SAMPLE_PREFIX = "sample:"
LOOK_SECONDS = 0.1  # between two looks at whether a job that waits for its turn is still wanted
OpenStore = Callable[[str | None], tuple[str, PassageStore]]


class Ingestions:
    """The ingestion jobs. One runs at a time, the others wait. All of them are on record, so that the next process goes on with
    what this one leaves unfinished: a stop of the process is no cancel, and what a user paused stays paused. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        record: Record,
        embedder: Embedder,
        store: OpenStore,
        readers: MediaReaders,
        finished: Callable[[IngestJob], None],
    ) -> None:
        """`store` opens a collection by its base name, and gives its whole name too; `finished` is told of jobs that came to
        their end."""
        self._settings, self._jobs, self._record, self._embedder = settings, jobs, record, embedder
        self._store, self._readers, self._finished = store, readers, finished
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._wanted: dict[str, Literal["paused", "cancelled"]] = {}

    # 1) for the page

    def all(self, limit: int = 200) -> list[IngestJob]:
        """Newest first."""
        return self._record.jobs(limit)

    def get(self, job_id: str) -> IngestJob | None:
        return self._record.job(job_id)

    def files(self, job_id: str) -> list[FileRow]:
        """What became of each file, those that failed first."""
        return self._record.files(job_id)

    @property
    def problem(self) -> Problem | None:
        """Why nothing is kept for a restart at the moment."""
        return self._record.problem

    def pause(self, job_id: str) -> None:
        """End it after what is written; it goes on when `resume` is called, also in a later process. Raises RagError."""
        self._end_early(job_id, "paused")

    def cancel(self, job_id: str) -> None:
        """End it; what is written stays. A paused one is given up. Raises RagError."""
        known = self._record.job(job_id)
        if known is not None and known.state == "paused" and not self._runs(job_id):
            self._change(job_id, state="cancelled", ended_at_unix=time.time())
            return
        self._end_early(job_id, "cancelled").cancel()

    def resume(self, job_id: str) -> Job[IngestSummary]:
        """Go on with a job that was paused or cancelled, or failed as a whole; stored files cost a hash. Raises RagError."""
        return self._again(job_id, ("paused", "cancelled", "failed", *UNFINISHED))

    def retry(self, job_id: str) -> Job[IngestSummary]:
        """Try the files of a finished job again that failed, and no others. Raises RagError."""
        failed = [row for row in self._record.files(job_id) if row.outcome == "failed"]
        if not failed:
            raise RagError("no file of this ingestion failed", kind="bad_input", next_step="There is nothing to try again.")
        only = frozenset(row.document_id or row.source for row in failed)
        return self._again(job_id, ("finished",), only)

    def _again(self, job_id: str, states: Sequence[JobState], only: frozenset[str] | None = None) -> Job[IngestSummary]:
        known = self._record.job(job_id)
        if known is None:
            raise RagError("this ingestion is not known", kind="not_found", next_step="Add the files again.")
        if self._runs(job_id) or known.state not in states:
            raise RagError(f"this ingestion is {known.state}", kind="bad_input", next_step="Reload the page.")
        self._record.forget_refused(job_id)
        return self.submit(known, only)

    def _runs(self, job_id: str) -> bool:
        job = self._jobs.get(job_id)
        return job is not None and not job.done

    def _end_early(self, job_id: str, how: Literal["paused", "cancelled"]) -> Job[IngestSummary]:
        job = self._jobs.get(job_id)
        if job is None or job.done:
            raise RagError("this ingestion does not run here now", kind="bad_input", next_step="Reload the page.")
        with self._lock:
            self._wanted[job_id] = how
        self._change(job_id, state=how)
        return job

    def _change(self, job_id: str, **changes: Any) -> None:
        with self._lock:
            known = self._record.job(job_id)
            if known is not None:
                self._record.put(replace(known, **changes))

    # 2) starting

    def submit(self, request: IngestJob, only: frozenset[str] | None = None) -> Job[IngestSummary]:
        """Start or go on; `only` are document_ids, or names of refused paths. Raises RagError when the process stops."""
        self._record.put(replace(request, state="queued", owner=owner(), ended_at_unix=None, error=None))

        def work(job: Job[IngestSummary]) -> Generator[Event, None, IngestSummary]:
            return (yield from self._work(job, request, only))

        try:
            return self._jobs.submit("ingest", request.label, work, job_id=request.id)
        except JobsFull:
            self._change(request.id, owner=None)
            raise

    def go_on(self) -> list[Job[IngestSummary]]:
        """Resume what an earlier process left unfinished, but for the samples, which have their own rule."""
        self._record.forget_old()
        left = [job for job in self._record.left_behind() if job.id_prefix != SAMPLE_PREFIX and not self._runs(job.id)]
        for job in left:
            log.info("going on with the ingestion of %s", job.label)
        return [self.submit(job) for job in left]

    def take_in(self, root: Path, files: Sequence[Path]) -> tuple[str, bool] | None:
        """Ingest files of a watched folder and wait; see `rag.ingest_watch.Library`."""
        if any(job.root == root and job.state in (*UNFINISHED, "paused") for job in self._record.jobs()):
            return None
        label = f"watched folder {printable(root.name or str(root))}"
        try:
            job = self.submit(new_request(files, label, root=root))
        except JobsFull:
            return None
        while not job.wait(LOOK_SECONDS):
            if self._jobs.closed:
                return None
        known = self._record.job(job.id)
        return job.id, known is not None and known.state != "failed"

    # 3) the work

    def _work(
        self, job: Job[IngestSummary], request: IngestJob, only: frozenset[str] | None
    ) -> Generator[Event, None, IngestSummary]:
        summary: IngestSummary = {}
        error: Mapping[str, Any] | None = None
        try:
            while not self._turn.acquire(timeout=LOOK_SECONDS):
                if self._unwanted(job):
                    return summary
            try:
                for event in self._events(job, request, only):
                    if event["type"] == "ingest_finished":
                        event = {**event, "outcome": self._told(job, event["outcome"])}
                        summary = event
                    yield event
            finally:
                self._turn.release()
            error = summary.get("error")
        except Exception as problem:
            error = problem_json(problem)
            raise
        finally:
            self._ended(job, request, summary, error)
        return summary

    def _unwanted(self, job: Job[IngestSummary]) -> bool:
        return job.cancelled.is_set() or job.id in self._wanted

    def _told(self, job: Job[IngestSummary], outcome: str) -> str:
        return "paused" if outcome == "cancelled" and self._wanted.get(job.id) == "paused" else outcome

    def _events(self, job: Job[IngestSummary], request: IngestJob, only: frozenset[str] | None) -> Iterator[Event]:
        if not self._unwanted(job):
            self._change(job.id, state="running")
        settings = self._settings.ingest
        collection, store = self._store(request.collection)
        found = _found(request, only, self._readers)
        paths = {document_id(file.path, request.id_prefix): file.path for file in found.files}
        states = {path: state_of(path) for path in paths.values()} if request.root else {}

        def check() -> None:
            if self._unwanted(job):
                raise Cancelled("the ingestion was cancelled")

        for event in ingest(
            found,
            store,
            self._embedder,
            chunk_tokens=settings.chunk_tokens,
            overlap_tokens=settings.overlap_tokens,
            max_file_bytes=settings.max_file_bytes,
            id_prefix=request.id_prefix,
            readers=replace(self._readers, check=check),
            cancelled=lambda: self._unwanted(job),
        ):
            if event["type"] == "ingest_started" and only is None:
                self._change(job.id, files=event["files"])
            elif event["type"] == "file_finished":
                path = paths.get(event["document_id"] or "")
                self._record.put_file(job.id, FileRow.of(event), path)
                seen = states.get(path) if path is not None else None
                if request.root is not None and path is not None and seen is not None:
                    taken = Taken(seen.size, seen.mtime_ns, seen.device, event["document_id"], event["duplicate_of"])
                    self._record.take(collection, request.root, path, taken)
            yield event

    def _ended(
        self, job: Job[IngestSummary], request: IngestJob, summary: IngestSummary, error: Mapping[str, Any] | None
    ) -> None:
        with self._lock:
            wanted = self._wanted.pop(job.id, None)
        state: JobState = "failed"
        if summary.get("outcome") == "finished":  # a pause that came too late
            state = "finished"
        elif wanted is not None:
            state = wanted
        elif self._jobs.closed:
            state = "queued"  # for the next process
        elif job.cancelled.is_set():
            state = "cancelled"
        known = self._record.job(job.id) or request
        self._change(
            job.id,
            state=state,
            owner=None,
            ended_at_unix=time.time(),
            seconds=known.seconds + summary.get("seconds", 0.0),
            tokens=known.tokens + summary.get("tokens", 0),
            passages=known.passages + summary.get("passages", 0),
            skipped=tuple(summary.get("skipped_reasons", known.skipped)),
            error=error if state == "failed" else None,
        )
        self._record.let_go(job.id)
        if state == "cancelled" and request.root is not None:
            self._give_up(request)
        if state == "finished":
            self._finished(request)

    def _give_up(self, request: IngestJob) -> None:
        """Files of a watched folder whose ingestion was cancelled wait until they change, else the next look began anew."""
        (collection, _), root = self._store(request.collection), request.root
        assert root is not None
        taken = self._record.taken(collection, root)
        for path in request.paths:
            seen = state_of(path)
            if path not in taken and seen is not None:
                item = Taken(seen.size, seen.mtime_ns, seen.device, document_id(path, request.id_prefix))
                self._record.take(collection, root, path, item)


def new_request(
    paths: Sequence[Path], label: str, collection: str | None = None, *, id_prefix: str = "", root: Path | None = None
) -> IngestJob:
    """A job that is not on record yet."""
    return IngestJob(
        uuid.uuid4().hex, label[:200], tuple(paths), time.time(), root=root, collection=collection, id_prefix=id_prefix
    )


def _found(request: IngestJob, only: frozenset[str] | None, readers: MediaReaders) -> Found:
    """The job's files as they are now: those of a watched folder under the names that they have in it."""
    if request.root is not None:
        wanted = set(request.paths)
        found = Found(tuple(file for file in find([request.root], readers).files if file.path in wanted))
    else:
        found = find(request.paths, readers)
    if only is None:
        return found
    files = (
        file for file in found.files if only & {document_id(file.path, request.id_prefix), file.source, printable(str(file.path))}
    )
    return replace(found, files=tuple(files))
