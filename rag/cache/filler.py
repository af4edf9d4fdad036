"""Keeps the memory's index filled from the answers' store, beside the queries. Knows nothing of look-ups."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from rag.cache.answers import AnswerStore
from rag.cache.index import MemoryIndex, QuestionIndex
from rag.cache.types import CacheAway

log = logging.getLogger(__name__)
REFRESH_SECONDS = 2.0
RETRY_SECONDS = 5.0
OVERLAP_SECONDS = 1.0  # what another process kept a moment ago may appear only now


class Filler:
    """One thread that reads what was kept since it last read, by this process or others. An index on a server needs none."""

    def __init__(self, answers: AnswerStore, index: QuestionIndex, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers, self._index, self._clock = answers, index, clock
        self._needed = isinstance(index, MemoryIndex)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache-index")
        self._lock = threading.Lock()
        self._running: Future[None] | None = None
        self._next_at = float("-inf")
        self._read_to = 0.0
        self.ready = not self._needed
        self.problem: str | None = None

    def refresh(self) -> None:
        """Start reading where it is time to; waits for nothing."""
        if not self._needed:
            return
        with self._lock:
            if self._clock() < self._next_at or (self._running is not None and not self._running.done()):
                return
            self._next_at = self._clock() + REFRESH_SECONDS
            try:
                self._running = self._thread.submit(self._fill)
            except RuntimeError:  # closed
                return

    def _fill(self) -> None:
        latest = self._read_to
        try:
            for row in self._answers.rows(max(0.0, self._read_to - OVERLAP_SECONDS)):
                self._index.add([row])
                latest = max(latest, row.created_at_unix)
        except CacheAway as away:
            self.problem = str(away)
            self._next_at = self._clock() + RETRY_SECONDS
            return
        except Exception as problem:  # in a thread that nobody waits for
            log.exception("the index of cached questions could not be filled")
            self.problem = f"{type(problem).__name__}: {problem}"
            return
        self._read_to, self.problem, self.ready = latest, None, True

    def wait(self, timeout_seconds: float) -> bool:
        """Whether the index holds what the store has; starts reading where nobody has yet."""
        self.refresh()
        if self._running is not None:
            try:
                self._running.result(timeout_seconds)
            except TimeoutError:
                return False
        return self.ready

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
