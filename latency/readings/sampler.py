"""Reads this machine twenty times a second while a query runs, and sleeps otherwise. Knows no query and no other machine.

One thread has several paces: GPUs 20 times a second; processor and disks 10 times, since Linux counts in steps of 10 ms; memory,
temperatures and the processes on GPUs twice; other processes once, and only while others keep the processor busy. A
pace whose look costs more than 2 % of a core is slowed down until it does not. Readings lie in rings of the last ten minutes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from latency.readings.gpus import GpuReader, GpuUse
from latency.readings.host import BusyProcess, HostReader
from latency.readings.ring import Ring, Samples

log = logging.getLogger(__name__)

GPU_SECONDS = 0.05
HOST_SECONDS = 0.1
SLOW_SECONDS = 0.5
PROCESSES_SECONDS = 1.0
FACTS_SECONDS = 10.0
KEPT_SECONDS = 600.0
MAX_COST = 0.02  # of one core, for each pace
PAUSE_SECONDS = 1.0  # after such a pause counters are not compared with what they were before it
STALLED_SECONDS = 2.5
BUSY_CORES = 0.5  # that others than this process keep busy: then it is worth asking who
GPU_RETRY_SECONDS = 300.0
FLICKER_SECONDS = 0.3  # a reason that comes back within it was there all the time
MAX_EVENTS = 2_000


class Throttled(NamedTuple):
    """A reason that held a GPU's clocks down, from its first to its last sight."""

    gpu: int
    reason: str
    start: float
    end: float


class Seen(NamedTuple):
    """Processes at one time. `gpu_uses` None: GPUs were not looked at then; `busy` None: other processes were not."""

    at: float
    gpu_uses: tuple[GpuUse, ...] | None = None
    busy: tuple[BusyProcess, ...] | None = None


class LocalReadings(NamedTuple):
    """What is known of this machine between two times of the sampler's clock. `groups` have one time axis each."""

    groups: tuple[Samples, ...]
    throttled: tuple[Throttled, ...]
    seen: tuple[Seen, ...]
    facts: Mapping[str, str]
    problems: tuple[str, ...]


class _Pace:
    """Something to do every so often; `cost` is the processor time of the last time, in seconds."""

    def __init__(self, every: float, run: Callable[[float], None]) -> None:
        self.every, self.run = every, run
        self.due = 0.0
        self.cost = 0.0
        self.failed = False

    def done(self, started: float, finished: float, cost: float) -> None:
        self.cost = cost
        self.due = max(started + max(self.every, cost / MAX_COST), finished)


class Sampler:
    """Thread-safe. `monotonic` stamps the readings, `thread_seconds` is that thread's processor time. `also` is called
    about twice a second on the sampler's thread."""

    def __init__(
        self,
        gpus: GpuReader | None = None,
        host: HostReader | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        thread_seconds: Callable[[], float] = time.thread_time,
        also: Callable[[], None] | None = None,
    ) -> None:
        self._gpus, self._host = gpus or GpuReader(), host or HostReader()
        self.monotonic = monotonic
        self.also = also
        self._thread_seconds = thread_seconds
        self.cpu_seconds = 0.0  # of the sampler's thread, since it began
        self._changed = threading.Condition()
        self._users = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # of everything below
        self._gpu_ring = Ring(int(KEPT_SECONDS / GPU_SECONDS))
        self._host_ring = Ring(int(KEPT_SECONDS / HOST_SECONDS))
        self._slow_ring = Ring(int(KEPT_SECONDS / SLOW_SECONDS))
        self._throttled: deque[Throttled] = deque(maxlen=MAX_EVENTS)
        self._holding: dict[tuple[int, str], Throttled] = {}
        self._seen: deque[Seen] = deque(maxlen=MAX_EVENTS)
        self._facts: dict[str, str] = {}
        self._looked_at: float | None = None
        self._gpus_open = False
        self._gpus_tried: float | None = None
        self._others_busy = False
        self._paces = (
            _Pace(HOST_SECONDS, self._read_host),
            _Pace(GPU_SECONDS, self._read_gpus),
            _Pace(SLOW_SECONDS, self._read_slow),
            _Pace(SLOW_SECONDS, self._read_gpu_processes),
            _Pace(PROCESSES_SECONDS, self._read_processes),
            _Pace(FACTS_SECONDS, self._read_facts),
            _Pace(SLOW_SECONDS, self._call_also),
        )

    # From outside

    def start(self) -> None:
        """Sample until as many `stop` as `start` were called. Returns at once."""
        with self._changed:
            self._users += 1
            if self._users > 1 or self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._users = max(0, self._users - 1)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()

    @property
    def users(self) -> int:
        return self._users

    def close(self, timeout: float = 2.0) -> bool:
        """End the thread for good; False when a driver held it for longer than `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
            if thread.is_alive():
                return False
        self._gpus.close()
        self._host.close()
        return True

    def between(self, start: float, end: float, before: float = 10.0) -> LocalReadings:
        """What was read from `start` to `end` (of `monotonic`), and of each pace the last two readings before `start`, if they
        are not older than `before` seconds."""
        with self._lock:
            groups = tuple(ring.between(start, end, 2, before) for ring in (self._gpu_ring, self._host_ring, self._slow_ring))
            events = (*self._throttled, *self._holding.values())
            throttled = tuple(each for each in events if start <= each.end and each.start <= end)
            seen = tuple(each for each in self._seen if start - 1.0 <= each.at <= end)
            return LocalReadings(groups, throttled, seen, dict(self._facts), self._problems(start, end))

    def look(self) -> float:
        """Read what is due; returns the time at which something is due next. The sampler's thread calls it."""
        now = self.monotonic()
        if self._looked_at is None or now - self._looked_at > PAUSE_SECONDS:
            self._wake(now)
        for pace in self._paces:
            started = self.monotonic()
            if pace.due > started:
                continue
            used = self._thread_seconds()
            try:
                pace.run(started)
            except Exception:  # a defect of ours: the other paces go on, and it is told once
                if not pace.failed:
                    log.exception("the sampler failed at %s", getattr(pace.run, "__name__", pace.run))
                pace.failed = True
            cost = self._thread_seconds() - used
            self.cpu_seconds += cost
            pace.done(started, self.monotonic(), cost)
        self._looked_at = self.monotonic()
        return min(pace.due for pace in self._paces)

    # The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._users or self._closed)
                if self._closed:
                    return
            due = self.look()
            with self._changed:
                if self._users and not self._closed:
                    self._changed.wait(max(0.001, due - self.monotonic()))

    def _wake(self, now: float) -> None:
        self._host.forget()
        self._others_busy = False
        for pace in self._paces:
            pace.due = now
        if self._gpus_open or self._gpus_tried is None or now - self._gpus_tried >= GPU_RETRY_SECONDS:
            self._gpus_tried = now
            self._gpus_open = self._gpus.open()

    def _read_host(self, now: float) -> None:
        found = self._host.fast(now)
        busy = self._host.others(found) >= BUSY_CORES
        if self._others_busy and not busy:
            self._host.rest_processes()
        self._others_busy = busy
        if found:
            with self._lock:
                self._host_ring.add(now, found)

    def _read_gpus(self, now: float) -> None:
        if not self._gpus_open:
            return
        found = self._gpus.fast()
        with self._lock:
            self._gpu_ring.add(now, found)
            for gpu, reasons in self._gpus.reasons.items():
                for reason in reasons:
                    self._hold(gpu, reason, now)
            self._let_go(now)

    def _hold(self, gpu: int, reason: str, now: float) -> None:
        known = self._holding.get((gpu, reason))
        self._holding[gpu, reason] = Throttled(gpu, reason, now, now) if known is None else known._replace(end=now)

    def _let_go(self, now: float) -> None:
        for key, held in list(self._holding.items()):
            if now - held.end > FLICKER_SECONDS:
                self._throttled.append(self._holding.pop(key))

    def _read_slow(self, now: float) -> None:
        found = self._host.slow(now)
        if self._gpus_open:
            found |= self._gpus.slow()
        with self._lock:
            self._slow_ring.add(now, found)

    def _read_gpu_processes(self, now: float) -> None:
        if self._gpus_open:
            uses = tuple(self._gpus.processes())
            with self._lock:
                self._seen.append(Seen(now, gpu_uses=uses))

    def _read_processes(self, now: float) -> None:
        if not self._others_busy:
            return
        busy = self._host.busy_processes(now)
        if busy is not None:
            with self._lock:
                self._seen.append(Seen(now, busy=busy))

    def _read_facts(self, now: float) -> None:
        if self._gpus_open:
            facts = self._gpus.facts()
            with self._lock:
                self._facts = facts

    def _call_also(self, now: float) -> None:
        if self.also is not None:
            self.also()

    def _problems(self, start: float, end: float) -> tuple[str, ...]:
        found = [f"No GPU of this machine was read: {self._gpus.problem}."] if self._gpus.problem and not self._gpus_open else []
        if self._gpus.problem and self._gpus_open:
            found.append(f"GPUs were read in part: {self._gpus.problem}.")
        silent = end - max(start, start if self._looked_at is None else self._looked_at)
        if silent > STALLED_SECONDS:
            found.append(f"This machine was not read for the last {silent:.1f} s: the GPU driver may hang.")
        oldest = self._host_ring.oldest
        if oldest is not None and oldest > start and end - start > KEPT_SECONDS:
            found.append(f"Of this machine only the last {KEPT_SECONDS:.0f} s were kept.")
        return tuple(found)
