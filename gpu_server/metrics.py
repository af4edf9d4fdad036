"""What the server counts: TEI's names, so that its dashboards fit, and our own as `ragdeck_*`; and the load of the last minute.

Counted on the event loop, read at `/metrics` and `/status`. Knows nothing of requests beyond the facts it is given.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gpu_server.interfaces import Timing

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WINDOW_SECONDS = 60.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Done:
    """A request that the models answered: how many texts, what they cost, how long it took from header to answer."""

    texts: int
    tokens: int
    truncated: int
    cached: int
    timing: Timing
    seconds: float


class Metrics:
    """The counts of one server.

    `active` counts the requests under way; `live` gives what others know at the moment of a scrape: queues, models, caches.
    """

    def __init__(self, active: Callable[[], float], live: Callable[[], Iterable[Metric]]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the text and nobody reads them
        registry = CollectorRegistry(auto_describe=False)
        self._registry = registry
        self._tei: Tally[tuple[str, str, str]] = Tally()
        self._total = Histogram("te_request_duration", "Seconds of a request", buckets=SECONDS, registry=registry)
        self._tokenize = Histogram(
            "te_request_tokenization_duration", "Seconds of tokenisation", buckets=SECONDS, registry=registry
        )
        self._queue = Histogram("te_request_queue_duration", "Seconds waited for the worker", buckets=SECONDS, registry=registry)
        self._compute = Histogram("te_request_inference_duration", "Seconds of the passes", buckets=SECONDS, registry=registry)
        self._answers = Counter("ragdeck_answers", "Answers by path and status", ["path", "status"], registry=registry)
        self._tokens = Counter("ragdeck_tokens", "Tokens that the models read", registry=registry)
        self._texts = Counter("ragdeck_texts", "Texts embedded and passages scored", registry=registry)
        self._truncated = Counter("ragdeck_truncated_texts", "Texts that were cut", registry=registry)
        self._cold = Counter("ragdeck_cold_requests", "Requests that waited for a load or a first run", registry=registry)
        self._cached = Counter("ragdeck_cached_texts", "Texts that a cache answered", registry=registry)
        under_way = Gauge("ragdeck_active_requests", "Requests being answered, this scrape not counted", registry=registry)
        under_way.set_function(lambda: active() - 1)  # the scrape itself is under way, too
        self._started = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque()
        self.answered = 0
        registry.register(_Collected(self._counted))
        registry.register(_Collected(live))

    def done(self, done: Done) -> None:
        method = "single" if done.texts == 1 else "batch"
        self._tei["te_request_success", "method", method] += 1
        self._total.observe(done.seconds)
        self._tokenize.observe(done.timing.tokenize)
        self._queue.observe(done.timing.queue)
        self._compute.observe(done.timing.compute)
        self._tokens.inc(done.tokens)
        self._texts.inc(done.texts)
        self._truncated.inc(done.truncated)
        self._cached.inc(done.cached)
        self._cold.inc(done.timing.cold)
        self._recent.append((time.monotonic(), done.tokens))
        self.answered += 1
        self._forget()

    def asked(self, texts: int) -> None:
        self._tei["te_request_count", "method", "single" if texts == 1 else "batch"] += 1

    def failed(self, err: str) -> None:
        """`err` is the code of the refusal: overloaded, too_large, backend_failed, …"""
        self._tei["te_request_failure", "err", err] += 1

    def answer(self, path: str, status: int) -> None:
        self._answers.labels(path, str(status)).inc()

    def throughput(self) -> dict[str, float]:
        """Requests and tokens a second over the last minute, or since the start where that is less."""
        self._forget()
        span = max(1.0, min(WINDOW_SECONDS, time.monotonic() - self._started))
        tokens = sum(count for _, count in self._recent)
        return {"requests_per_second": len(self._recent) / span, "tokens_per_second": tokens / span, "window_seconds": span}

    def text(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self._registry)

    def _forget(self) -> None:
        oldest = time.monotonic() - WINDOW_SECONDS
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()

    def _counted(self) -> Iterator[Metric]:
        """TEI's counters under TEI's names: as counters the library would put `_total` behind them."""
        for name in ("te_request_count", "te_request_success", "te_request_failure"):
            metric = Metric(name, "Requests, as text-embeddings-inference counts them", "unknown")
            for (counted, label, value), count in self._tei.items():
                if counted == name:
                    metric.add_sample(name, {label: value}, count)
            yield metric


class _Collected(Collector):
    """A function as the library's collector."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()
