"""Brackets a query: what this machine, others and services did from shortly before its start to shortly after its end.

`begin` wakes the sampler and has the sweep read oftener; `end` gives what is known by then and leaves a first version in the
store. Shortly after, the sampler's thread writes the whole one over it, with what came in after the query's end. Queries that run
at once share the samples. Nothing here raises: a query is not lost for its readings. Knows no stage.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from collectors.sweep import Sweep
from collectors.views import Snapshot
from latency.readings import remote as window_remote
from latency.readings import series as window_series
from latency.readings.remote import RemoteLog, host_of, is_server
from latency.readings.sampler import Sampler
from latency.readings.store import ReadingStore
from latency.types import LOCAL, QueryReadings, Use
from rag.types import Answer

log = logging.getLogger(__name__)

BEFORE_SECONDS = 1.0
AFTER_SECONDS = 1.5  # the first sample after the end, of the slower paces too
BURST_SECONDS = 6.0
BURST_EVERY_SECONDS = 4.0
LONELY_SECONDS = 10.0  # how often to look whether anything but this machine is watched by now
MAX_OPEN_SECONDS = 3600.0
CLOCK_SLACK_SECONDS = 60.0
MAX_NOTES = 20


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """A query's begin: by the sampler's clock, and in Unix seconds."""

    at: float
    unix: float


@dataclass(frozen=True, slots=True)
class _Ended:
    """A query that ended and whose last samples are still to come."""

    mark: Mark
    query_id: str
    started_unix: float
    seconds: float
    asked_over_http: bool
    due: float


@dataclass(slots=True)
class _Polling:
    """When the sampler's thread last turned to the sweep."""

    burst_at: float | None = None
    lonely_at: float | None = None
    problems: tuple[str, ...] = ()
    local_servers: frozenset[str] = field(default_factory=frozenset)


class Window:
    """Thread-safe. `clock` gives Unix seconds; the sampler's own clock counts what is between. Takes the sampler's `also`."""

    def __init__(
        self,
        sweep: Sweep | None,
        store: ReadingStore,
        sampler: Sampler,
        *,
        clock: Callable[[], float] = time.time,
        after_seconds: float = AFTER_SECONDS,
    ) -> None:
        self._sweep, self._store, self._sampler = sweep, store, sampler
        self._clock, self._after = clock, after_seconds
        self._lock = threading.Lock()
        self._open: set[Mark] = set()
        self._ended: list[_Ended] = []
        self._remote = RemoteLog()
        self._polling = _Polling()
        sampler.also = self._poll

    def begin(self) -> Mark:
        """A query starts. Takes microseconds: the sweep is told on the sampler's thread."""
        mark = Mark(self._sampler.monotonic(), self._clock())
        with self._lock:
            self._open.add(mark)
        self._sampler.start()
        return mark

    def end(self, mark: Mark, answer: Answer | None) -> QueryReadings | None:
        """The query ended: its readings as known now. None without an answer, and for a mark that was ended before."""
        with self._lock:
            if mark not in self._open:
                return None
            self._open.discard(mark)
        if answer is None:
            self._sampler.stop()
            return None
        over_http = any(stage.where == "http" for stage in answer.stages)
        started = _started(answer, mark)
        due = self._sampler.monotonic() + self._after
        ended = _Ended(mark, answer.id, started, answer.total_seconds, over_http, due)
        readings = self._save(ended)
        with self._lock:
            self._ended.append(ended)
        return readings

    def close(self) -> None:
        """Write what is known of queries whose last samples were still to come. The sampler and the store are the caller's."""
        with self._lock:
            ended, self._ended = self._ended, []
            self._open.clear()
        for each in ended:
            self._save(each)
            self._sampler.stop()

    # On the sampler's thread

    def _poll(self) -> None:
        self._look_around()
        now = self._sampler.monotonic()
        with self._lock:
            done = [each for each in self._ended if each.due <= now]
            self._ended = [each for each in self._ended if each.due > now]
            forgotten = [mark for mark in self._open if now - mark.at > MAX_OPEN_SECONDS]
            self._open.difference_update(forgotten)
        for each in done:
            self._save(each)
        for _ in (*done, *forgotten):
            self._sampler.stop()

    def _look_around(self) -> None:
        """Keep the sweep's new readings, and have it read oftener while a query runs."""
        if self._sweep is None:
            return
        now, polling = self._sampler.monotonic(), self._polling
        if polling.lonely_at is not None and now - polling.lonely_at < LONELY_SECONDS:
            return
        if self._open and (polling.burst_at is None or now - polling.burst_at >= BURST_EVERY_SECONDS):
            polling.burst_at = now
            self._sweep.burst(BURST_SECONDS)
        snapshot = self._sweep.snapshot()
        polling.lonely_at = None if self._remote.take(snapshot) else now
        polling.problems = window_remote.problems(snapshot)
        polling.local_servers = _local_servers(snapshot)

    # Putting together

    def _save(self, ended: _Ended) -> QueryReadings:
        try:
            readings = self._readings(ended)
        except Exception:  # a defect of ours must not cost the query
            log.exception("the readings of query %s could not be put together", ended.query_id)
            note = "The readings could not be put together; the log says more."
            readings = QueryReadings(ended.query_id, ended.started_unix, ended.seconds, notes=(note,))
        self._store.save(readings)
        return readings

    def _readings(self, ended: _Ended) -> QueryReadings:
        zero = ended.mark.at + (ended.started_unix - ended.mark.unix)
        until = ended.seconds + self._after
        now = min(self._sampler.monotonic(), zero + until)
        local = self._sampler.between(zero - BEFORE_SECONDS, now)
        start = ended.started_unix
        looks = self._remote.between(start - BEFORE_SECONDS, start + until)
        series, cut = window_series.bounded(
            [*window_series.local_series(local, zero), *window_series.remote_series(looks, start)]
        )
        notes = [*local.problems, *self._polling.problems, *([cut] if cut else [])]
        return QueryReadings(
            query_id=ended.query_id,
            started_at_unix=start,
            seconds=ended.seconds,
            series=series,
            facts=tuple(window_series.facts(local, looks, zero, start, ended.seconds)),
            uses=tuple(self._asked(use, ended) for use in window_series.uses(local, looks, os.getpid())),
            notes=tuple(notes[:MAX_NOTES]),
        )

    def _asked(self, use: Use, ended: _Ended) -> Use:
        """A model server is ours only for a query that asked one; one on this machine when a service is watched here."""
        if use.ours and use.pid != os.getpid():
            return use._replace(ours=ended.asked_over_http)
        here = use.source == LOCAL and use.gpu is not None and bool(self._polling.local_servers)
        return use._replace(ours=use.ours or (here and ended.asked_over_http and is_server(use.name, use.owner)))


def _started(answer: Answer, mark: Mark) -> float:
    """The query's start in Unix seconds: by the answer, unless the clock was set in between."""
    try:
        told = datetime.fromisoformat(answer.started_at).timestamp()
    except ValueError:
        return mark.unix
    return told if -1.0 <= told - mark.unix <= CLOCK_SLACK_SECONDS else mark.unix


def _local_servers(snapshot: Snapshot) -> frozenset[str]:
    """Names of model services that run on this machine."""
    loopback = ("localhost", "127.0.0.1", "::1")
    models = (each for each in snapshot.services if each.kind in window_remote.MODEL_KINDS)
    return frozenset(each.name for each in models if host_of(each.address) in loopback)
