"""Runs tasks when they are due, on as many threads as are busy at once. Knows nothing of machines.

A task says at its end when it wants to run again. One runs once at a time, so that what hangs holds one thread and nothing else.
Threads are made when all others are busy, and end when too many of them have nothing to do.
"""

from __future__ import annotations

import heapq
import logging
import queue
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

MAX_THREADS = 256
SPARE_THREADS = 8  # idle ones that are kept: making one costs more than letting it wait
DEFECT_SECONDS = 30.0  # a task that raised has a defect: not at once again


class Task:
    """One thing to do again and again. Made by `Scheduler.task`, dormant until `soon`."""

    def __init__(self, scheduler: Scheduler, name: str, run: Callable[[], float | None]) -> None:
        self._scheduler = scheduler
        self.name = name
        self.run = run
        self.due: float | None = None
        self.running = False
        self.cancelled = False

    def soon(self, after: float = 0.0) -> None:
        """Run in `after` seconds, or sooner if that is planned; while it runs, once more after its end."""
        self._scheduler.plan(self, after)

    def cancel(self) -> None:
        """Not again. A run under way goes on."""
        self._scheduler.forget(self)


class Scheduler:
    """`monotonic` gives seconds and is what `threading` waits by: another clock only moves the due times. Thread-safe."""

    def __init__(self, name: str, monotonic: Callable[[], float] = time.monotonic, max_threads: int = MAX_THREADS) -> None:
        self._name = name
        self._monotonic = monotonic
        self._max_threads = max_threads
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Task]] = []
        self._sequence = 0
        self._ready: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads = self._in_hand = self._made = 0
        self._started = self._stopped = False

    @property
    def threads(self) -> int:
        """Worker threads alive now."""
        return self._threads

    def start(self) -> None:
        """Begin to run what is due. Once."""
        with self._changed:
            if self._started:
                return
            self._started = True
        threading.Thread(target=self._dispatch, name=self._name, daemon=True).start()

    def stop(self, timeout: float) -> bool:
        """Start nothing more and wait for what runs; False when something still ran after `timeout` seconds. For good."""
        with self._changed:
            self._stopped = True
            self._heap.clear()
            self._changed.notify_all()
            for _ in range(self._threads):
                self._ready.put(None)
            return self._changed.wait_for(lambda: self._in_hand == 0, timeout)

    def task(self, name: str, run: Callable[[], float | None]) -> Task:
        """`run` returns the seconds from its beginning to its next one, or None to sleep until `soon`."""
        return Task(self, name, run)

    def plan(self, task: Task, after: float) -> None:
        with self._changed:
            self._plan(task, self._monotonic() + after)

    def forget(self, task: Task) -> None:
        with self._changed:
            task.cancelled, task.due = True, None

    def _plan(self, task: Task, due: float) -> None:
        if self._stopped or task.cancelled or (task.due is not None and task.due <= due):
            return
        task.due = due
        if not task.running:
            self._push(task, due)

    def _push(self, task: Task, due: float) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, task))
        if self._heap[0][2] is task:
            self._changed.notify_all()

    def _dispatch(self) -> None:
        with self._changed:
            while not self._stopped:
                now = self._monotonic()
                while self._heap and self._heap[0][0] <= now:
                    due, _, task = heapq.heappop(self._heap)
                    if task.due == due and not task.running:  # else it was planned anew, or cancelled
                        self._hand_out(task)
                self._changed.wait(self._heap[0][0] - now if self._heap else None)

    def _hand_out(self, task: Task) -> None:
        task.due, task.running = None, True
        self._in_hand += 1
        self._ready.put(task)
        if self._in_hand > self._threads and self._threads < self._max_threads:
            self._threads += 1
            self._made += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True).start()

    def _work(self) -> None:
        while (task := self._ready.get()) is not None:
            started = self._monotonic()
            again = None if self._stopped else self._run(task)
            with self._changed:
                self._in_hand -= 1
                task.running = False
                self._finished(task, None if again is None else max(self._monotonic(), started + again))
                if self._threads > self._in_hand + SPARE_THREADS:
                    break
        with self._changed:
            self._threads -= 1

    def _run(self, task: Task) -> float | None:
        try:
            return task.run()
        except Exception:
            log.exception("%s failed", task.name)
            return DEFECT_SECONDS

    def _finished(self, task: Task, due: float | None) -> None:
        """Plan the next run: the earlier of what it asked for and of what was asked for while it ran."""
        known, task.due = task.due, None
        times = [each for each in (known, due) if each is not None]
        if times:
            self._plan(task, min(times))
        if self._stopped:
            self._changed.notify_all()
