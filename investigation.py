"""What the process keeps to say why a query was slow: readings beside queries, what is usual, what HyDE changed, experiments, and
the queries of other programs. Built from settings; `latency` does the work."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from collectors.sweep import Sweep
from latency.baseline import from_store
from latency.experiments.experiments import ExperimentStore
from latency.otlp.receiver import Receiver
from latency.readings.sampler import Sampler
from latency.readings.store import ReadingStore
from latency.readings.window import Window
from latency.types import Baseline
from rag.errors import RagError
from rag.query import Finished
from rag.trace_store import TraceStore
from rag.types import Answer
from settings import Settings

log = logging.getLogger("ragdeck")

BASELINE_SECONDS = 60.0


class Investigation:
    """Thread-safe as its parts are. `traces` is the caller's to close, after `stop`."""

    def __init__(self, settings: Settings, traces: TraceStore, sweep: Sweep) -> None:
        self._traces = traces
        self.readings = ReadingStore(settings.data_dir / "readings.db")
        self.experiments = ExperimentStore(settings.data_dir / "experiments.db")
        self._sampler = Sampler()
        self._window = Window(sweep, self.readings, self._sampler)
        self._shadow_ratio = settings.llm.shadow_ratio
        self._shadows = ThreadPoolExecutor(1, thread_name_prefix="hyde-shadow")
        self._usual: tuple[float, Baseline] | None = None
        received = settings.traces
        self.receiver = Receiver(traces, received.receive_spans_per_minute) if received.receive else None

    def start(self) -> None:
        if self.receiver is not None:
            self.receiver.start()

    def stop(self) -> None:
        """Write what waits, close the files."""
        self._shadows.shutdown(wait=True, cancel_futures=True)
        if self.receiver is not None:
            self.receiver.close()
        self._window.close()
        self._sampler.close()
        self.readings.close()
        self.experiments.close()

    @contextmanager
    def watching(self) -> Iterator[Callable[[Answer], object]]:
        """Samples while a query runs; the function given takes its answer and keeps the readings of its time."""
        mark = self._window.begin()
        try:
            yield lambda answer: self._window.end(mark, answer)
        finally:
            self._window.end(mark, None)  # nothing when it was ended with its answer

    def look_without_hyde(self, done: Finished) -> None:
        """For a sample of the queries: search once more without the hypothesis, after the answer, and keep what it changed.

        Never for a measured one: the search would run into the next.
        """
        if done.shadow is not None and done.answer.origin != "measure" and random.random() < self._shadow_ratio:
            self._shadows.submit(self._shadow, done)

    def _shadow(self, done: Finished) -> None:
        assert done.shadow is not None
        query_id = done.answer.id
        try:
            effect = done.shadow()
            known = self._traces.get(query_id)  # not `done`: a model server's spans may have joined it since
            if known is not None:
                self._traces.save(replace(known, hyde_effect=effect), self._traces.spans(query_id))
        except RagError as problem:
            log.info("what HyDE changed in query %s is not known: %s", query_id, problem.message)

    def baseline(self, *, before: float | None = None) -> Baseline:
        """What is usual here, from stored queries (before that time, Unix seconds); the newest is kept for a minute."""
        if before is not None:
            return from_store(self._traces, before=before)
        known = self._usual
        if known is None or time.monotonic() - known[0] > BASELINE_SECONDS:
            known = self._usual = (time.monotonic(), from_store(self._traces))
        return known[1]

    def forget_before(self, unix: float) -> None:
        """Delete the readings of queries that started before that time (Unix seconds)."""
        self.readings.delete_before(unix)
