"""Work that outlives the request that started it: a thread, an append-only event log that many readers follow, a cancel token.

Queries, ingestion, replay and load tests are jobs. A reader may come late and gets the whole log. Knows nothing of what runs.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

log = logging.getLogger(__name__)

Event = dict[str, Any]
State = Literal["running", "finished", "failed", "cancelled"]
R = TypeVar("R")
Work = Callable[["Job[R]"], Generator[Event, None, R]]


class JobsFull(Exception):
    """As many jobs of this kind run as may run at once."""


class Job(Generic[R]):
    """One piece of work. Events carry `seq` (from 1) and `at` (seconds since the start)."""

    def __init__(self, kind: str, title: str, deadline_seconds: float | None = None, job_id: str | None = None) -> None:
        self.id = job_id or uuid.uuid4().hex
        self.kind = kind
        self.title = title
        self.started_at = datetime.now(UTC)
        self.started_by: str | None = None
        """Who may end it beside the operators, as `access.scopes.Identity.key` has them; None: nobody."""
        self.state: State = "running"
        self.result: R | None = None
        self.error: Exception | None = None
        self.cancelled = threading.Event()
        self._started = time.monotonic()
        self.deadline = None if deadline_seconds is None else self._started + deadline_seconds
        self._ended: float | None = None
        self._events: list[Event] = []
        self._changed = threading.Condition()

    @property
    def done(self) -> bool:
        return self.state != "running"

    def elapsed(self) -> float:
        """Seconds it has run, or ran."""
        return (self._ended or time.monotonic()) - self._started

    def cancel(self) -> None:
        """Ask the work to stop; it ends at its next look at the token."""
        self.cancelled.set()

    def events(self, after: int = 0) -> list[Event]:
        """What the log holds now beyond sequence number `after`."""
        with self._changed:
            return self._events[after:]

    def follow(self, after: int = 0, beat: float | None = None) -> Iterator[Event | None]:
        """The log as it grows, to its end; with `beat` (seconds) yields None in every silence of that length."""
        while True:
            with self._changed:
                if not self.done and len(self._events) <= after:
                    self._changed.wait(beat)
                fresh, done = self._events[after:], self.done
            yield from fresh
            after += len(fresh)
            if done and not fresh:
                return
            if not fresh:
                yield None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; False when `timeout` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self.done, timeout)

    def add(self, event: Event) -> None:
        with self._changed:
            self._events.append({**event, "seq": len(self._events) + 1, "at": round(self.elapsed(), 6)})
            self._changed.notify_all()

    def run(self, work: Work[R]) -> None:
        """Drive the work to its end on this thread; nothing leaves but state, result and error."""
        state: State = "finished"
        try:
            steps = work(self)
            while True:
                try:
                    self.add(next(steps))
                except StopIteration as end:
                    self.result = end.value
                    break
            if self.cancelled.is_set():
                state = "cancelled"
        except BaseException as problem:  # also SystemExit: a job that never ends keeps its readers waiting for ever
            self.error = problem if isinstance(problem, Exception) else RuntimeError(f"the work ended by {problem!r}")
            state = "cancelled" if self.cancelled.is_set() else "failed"
            log.log(
                logging.ERROR if state == "failed" else logging.INFO,
                "job %s (%s) %s",
                self.id,
                self.kind,
                state,
                exc_info=problem,
            )
        with self._changed:
            self._ended = time.monotonic()
            self.state = state
            self._changed.notify_all()


class Jobs:
    """The jobs of this process by id; finished ones are kept up to `keep`, the oldest go first."""

    def __init__(self, keep: int = 200, limits: dict[str, int] | None = None) -> None:
        self._jobs: OrderedDict[str, Job[Any]] = OrderedDict()
        self._keep = keep
        self._limits = limits or {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        """The process is stopping: that a job is cancelled now is not what a user wished."""
        return self._closed

    def submit(
        self, kind: str, title: str, work: Work[R], deadline_seconds: float | None = None, job_id: str | None = None
    ) -> Job[R]:
        """Start the work on a thread of its own. Raises JobsFull when the kind's limit is reached or the process stops.

        `job_id` is that of an earlier job that goes on, which this one stands for from now on; JobsFull while that one runs.
        """
        job: Job[R] = Job(kind, title, deadline_seconds, job_id)
        with self._lock:
            if self._closed:
                raise JobsFull("the process is stopping")
            running = sum(not other.done for other in self._jobs.values() if other.kind == kind)
            if running >= self._limits.get(kind, running + 1):
                raise JobsFull(f"{running} jobs of kind {kind} are running already")
            earlier = self._jobs.get(job.id)
            if earlier is not None and not earlier.done:
                raise JobsFull(f"{title} is running already")
            self._jobs[job.id] = job
            self._jobs.move_to_end(job.id)
            self._forget_old()
        try:
            threading.Thread(target=job.run, args=(work,), name=f"job-{kind}-{job.id[:8]}", daemon=True).start()
        except RuntimeError as problem:  # no thread to be had; a job that never ran must not count as running
            with self._lock:
                del self._jobs[job.id]
            raise JobsFull(f"the machine starts no more threads: {problem}") from None
        return job

    def _forget_old(self) -> None:
        finished = [key for key, job in self._jobs.items() if job.done]
        for key in finished[: max(0, len(self._jobs) - self._keep)]:
            del self._jobs[key]

    def get(self, job_id: str) -> Job[Any] | None:
        return self._jobs.get(job_id)

    def recent(self, kind: str | None = None) -> list[Job[Any]]:
        """Newest first."""
        with self._lock:
            jobs = list(self._jobs.values())
        return [job for job in reversed(jobs) if kind is None or job.kind == kind]

    def stop(self, timeout: float = 10.0) -> bool:
        """Refuse new jobs, cancel the running ones, wait for them together at most `timeout` seconds."""
        with self._lock:
            self._closed = True
            running = [job for job in self._jobs.values() if not job.done]
        for job in running:
            job.cancel()
        end = time.monotonic() + timeout
        return all(job.wait(max(0.0, end - time.monotonic())) for job in running)
