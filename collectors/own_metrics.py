"""What this process does itself, for its `/metrics`: queries, their stages, jobs, caches, models. Pure counting.

Counters and histograms grow as queries end; the rest is read at each scrape from what the process shows of itself. Knows no
machine and no service: those are `exposition`'s. Names follow Prometheus: base units, `_total` behind what only grows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OUTCOMES = ("answered", "no_documents", "failed", "cancelled")
ORIGINS = ("ask", "api", "cli", "measure")
MEASURED = "measure"  # load tests and replays: counted, but not among the seconds that users wait
ANSWERS = "answers"


class Stage(Protocol):
    """The part of a query's stage that is counted; `spans` 0: it did not run."""

    @property
    def stage(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def spans(self) -> int: ...
    @property
    def hit(self) -> bool | None: ...


class Answer(Protocol):
    """The part of an answer that is counted."""

    @property
    def outcome(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def stages(self) -> Iterable[Stage]: ...
    @property
    def total_seconds(self) -> float: ...
    @property
    def first_token_seconds(self) -> float | None: ...
    @property
    def cold(self) -> bool: ...


class Process(Protocol):
    """The part of a runtime that is read at a scrape: its jobs, the models' states, their caches."""

    @property
    def jobs(self) -> Any: ...
    @property
    def models(self) -> Any: ...
    @property
    def settings(self) -> Any: ...


class OwnMetrics:
    """Of one process. Thread-safe, as prometheus_client is."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the text and nobody reads them
        registry = self._registry = CollectorRegistry()
        queries = "Queries that ended, by outcome and by who asked; measure: load tests and replays"
        self._queries = Counter("ragdeck_queries", queries, ["outcome", "origin"], registry=registry)
        for outcome in OUTCOMES:  # there from the start, so that a rate sees the first failure
            for origin in ORIGINS:
                self._queries.labels(outcome, origin)
        self._refused = Counter("ragdeck_refused_queries", "Queries refused because too many ran", registry=registry)
        cold = "Queries of which a stage waited for a load or a first run"
        self._cold = Counter("ragdeck_cold_queries", cold, registry=registry)
        self._seconds = Histogram(
            "ragdeck_query_seconds", "Seconds from question to end, measure left out", buckets=SECONDS, registry=registry
        )
        self._first_token = Histogram(
            "ragdeck_query_first_token_seconds", "Seconds from question to first token", buckets=SECONDS, registry=registry
        )
        self._stages = Histogram(
            "ragdeck_query_stage_seconds", "Seconds of a stage that ran", ["stage"], buckets=SECONDS, registry=registry
        )
        self._lock = threading.Lock()
        self._looked_up = {True: 0, False: 0}  # in the cache of answers: found, not found
        self._kinds = {"query"}
        Gauge("ragdeck_build_info", "1, of this version", ["version"], registry=registry).labels(version).set(1.0)
        ProcessCollector(registry=registry)

    def answered(self, answer: Answer) -> None:
        """A query that ended, however."""
        self._queries.labels(answer.outcome, answer.origin).inc()
        for stage in answer.stages:
            if stage.spans and stage.hit is not None:
                with self._lock:
                    self._looked_up[stage.hit] += 1
        if answer.origin == MEASURED:
            return
        self._cold.inc(answer.cold)
        self._seconds.observe(answer.total_seconds)
        if answer.first_token_seconds is not None:
            self._first_token.observe(answer.first_token_seconds)
        for stage in answer.stages:
            if stage.spans:
                self._stages.labels(stage.stage).observe(stage.seconds)

    def refused(self) -> None:
        """A query that was not taken."""
        self._refused.inc()

    def text(self, process: Process) -> bytes:
        """Prometheus text format."""
        now = CollectorRegistry()
        now.register(_Now([*self._jobs(process), *self._caches(process), *_models(process)]))
        return generate_latest(self._registry) + generate_latest(now)

    def _jobs(self, process: Process) -> Iterator[Metric]:
        """A job runs at once or is refused: none waits, so that how near the limit is tells what a queue's length would."""
        running: dict[str, int] = {}
        for job in process.jobs.recent():
            running[job.kind] = running.get(job.kind, 0) + (not job.done)
        with self._lock:
            self._kinds |= running.keys()  # a kind stays, as 0, when its jobs are forgotten
            kinds = sorted(self._kinds)
        gauge = GaugeMetricFamily("ragdeck_jobs_running", "Jobs that run", labels=["kind"])
        for kind in kinds:
            gauge.add_metric([kind], running.get(kind, 0))
        yield gauge
        limit = GaugeMetricFamily("ragdeck_jobs_limit", "Most jobs of a kind at once; more are refused", labels=["kind"])
        limit.add_metric(["query"], process.settings.query.max_running)
        yield limit

    def _caches(self, process: Process) -> Iterator[Metric]:
        """The names that the GPU server has, too."""
        found: dict[str, tuple[int, int]] = {ANSWERS: (self._looked_up[True], self._looked_up[False])}
        caches: Mapping[str, Any] = process.models.caches
        found |= {kind: (cache.stats.hits, cache.stats.misses) for kind, cache in caches.items()}
        words = "Questions, texts and pairs"
        hits = CounterMetricFamily("ragdeck_cache_hits", f"{words} that a cache answered", labels=["cache"])
        misses = CounterMetricFamily("ragdeck_cache_misses", f"{words} that a cache was asked for and had not", labels=["cache"])
        for name, (hit, missed) in found.items():
            hits.add_metric([name], hit)
            misses.add_metric([name], missed)
        yield from (hits, misses)


def _models(process: Process) -> Iterator[Metric]:
    """Warm is what has answered; one behind HTTP that nobody has asked yet is neither warm nor cold."""
    warm = GaugeMetricFamily("ragdeck_model_warm", "1 when the model has answered", labels=["kind", "model"])
    waiting = GaugeMetricFamily("ragdeck_model_queue_texts", "Texts that wait for a model here", labels=["kind", "model"])
    for model in process.models.status():
        names = [model.kind, model.name]
        if model.where == "in-process" or model.state != "waiting":
            warm.add_metric(names, float(model.state in ("warm", "remote")))
        if model.queue_texts is not None:
            waiting.add_metric(names, model.queue_texts)
    yield from (warm, waiting)


class _Now(Collector):
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found
