"""What vLLM (v0 and v1), text-embeddings-inference and our GPU server tell at `/metrics`, as one `Engine` reading. Pure.

Names as documented by vLLM ("Production Metrics", versions 0.5 to 0.11 and their renamed successors) and TEI, and as our server
has them. Where an old and a new name stand side by side, the new one counts. Knows no transport.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from collectors.readings import Record

METRICS_BYTES = 8 * 1024 * 1024  # many engines behind one server make long pages

Row = tuple[str, Mapping[str, str], float]
T = TypeVar("T")

# Ours → theirs, newest name first. Gauges of several engines behind one server are added up, but a share is the highest one.
GAUGES: Mapping[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running", "ragdeck_active_requests"),
    "waiting": ("vllm:num_requests_waiting", "te_queue_size"),
    "swapped": ("vllm:num_requests_swapped",),
}
SHARES: Mapping[str, tuple[str, ...]] = {
    "kv_cache_used_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "prefix_cache_hit_ratio": ("vllm:gpu_prefix_cache_hit_rate",),  # v0 counts itself; v1 gives counters
}
COUNTERS: Mapping[str, tuple[str, ...]] = {
    "prompt_tokens": ("vllm:prompt_tokens_total", "ragdeck_tokens_total"),
    "generation_tokens": ("vllm:generation_tokens_total",),
    "requests": ("vllm:request_success_total", "te_request_success"),
    "failures": ("te_request_failure",),
    "preemptions": ("vllm:num_preemptions_total",),
    "prefix_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "prefix_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "cold_requests": ("ragdeck_cold_requests_total",),
}
HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    "ttft": ("vllm:time_to_first_token_seconds",),
    "per_token": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    "request": ("vllm:e2e_request_latency_seconds", "te_request_duration"),
    "queue": ("vllm:request_queue_time_seconds", "te_request_queue_duration"),
    "prefill": ("vllm:request_prefill_time_seconds",),
    "decode": ("vllm:request_decode_time_seconds",),
    "compute": ("vllm:request_inference_time_seconds", "te_request_inference_duration"),
}
# Of these histograms the sums are given too: what one request took can be told from them when it ran alone.
SUMS = ("queue", "prefill", "decode")
PREFIXES = ("vllm:", "te_", "ragdeck_")


@dataclass(frozen=True, slots=True)
class Histogram:
    """`buckets` are (upper bound, count at or below it), ascending; the last bound is infinite where the source is whole."""

    buckets: tuple[tuple[float, float], ...]

    @property
    def count(self) -> float:
        return self.buckets[-1][1] if self.buckets else 0.0


@dataclass(frozen=True, slots=True)
class EngineSample:
    """One look at `/metrics`, under our names: counters and histograms since the engine's start."""

    models: tuple[str, ...] = ()
    gauges: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Anything of it is an engine's."""
        return bool(self.gauges or self.counters or self.histograms)


@dataclass(frozen=True, slots=True)
class Engine(Record):
    """A model server's load now, and what it did since the sample before.

    Quantiles are estimates from histogram buckets and None where nothing was observed in between. `waiting` is the queue.
    `kv_cache_used_ratio` is the fullest engine's. `restarted`: counters went back, so that the span is only since the restart.
    `name` tells several on one machine apart. `_total` counts since the engine's start.
    """

    kind: ClassVar[str] = "engine"
    key: ClassVar[str] = "name"

    models: str | None
    seconds: float | None
    running: float | None = None
    waiting: float | None = None
    swapped: float | None = None
    kv_cache_used_ratio: float | None = None
    prefix_cache_hit_ratio: float | None = None
    prompt_tokens_per_second: float | None = None
    generation_tokens_per_second: float | None = None
    requests_per_second: float | None = None
    failures_per_second: float | None = None
    preemptions: float | None = None
    cold_requests: float | None = None
    ttft_p50_seconds: float | None = None
    ttft_p95_seconds: float | None = None
    ttft_p99_seconds: float | None = None
    per_token_p50_seconds: float | None = None
    per_token_p95_seconds: float | None = None
    per_token_p99_seconds: float | None = None
    request_p50_seconds: float | None = None
    request_p95_seconds: float | None = None
    queue_p50_seconds: float | None = None
    queue_p95_seconds: float | None = None
    prefill_p50_seconds: float | None = None
    prefill_p95_seconds: float | None = None
    decode_p50_seconds: float | None = None
    decode_p95_seconds: float | None = None
    compute_p50_seconds: float | None = None
    compute_p95_seconds: float | None = None
    restarted: bool | None = None
    name: str | None = None
    requests_total: float | None = None
    queue_seconds_total: float | None = None
    prefill_seconds_total: float | None = None
    decode_seconds_total: float | None = None


QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def parse(text: str) -> EngineSample:
    """A page in Prometheus' text format. What is broken or of no interest is left out; never raises."""
    lines = [line for line in text.splitlines() if line.startswith(PREFIXES)]
    try:
        rows = _rows("\n".join(lines) + "\n")
    except (ValueError, IndexError, KeyError):
        rows = [row for line in lines for row in _rows_of_broken(line)]
    return sample_of(rows)


def sample_of(rows: Iterable[Row]) -> EngineSample:
    """Samples (name, labels, value) of one server as an EngineSample; the values of one name are added over their labels."""
    totals: dict[str, float] = {}
    highest: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    models: dict[str, None] = {}
    for name, labels, value in rows:
        if not math.isfinite(value):
            continue
        totals[name] = totals.get(name, 0.0) + value
        if value >= 0:  # v0 writes -1 for a hit rate that it does not know
            highest[name] = max(highest.get(name, value), value)
        if name.endswith("_bucket") and (bound := _bound(labels.get("le", ""))) is not None:
            of_name = buckets.setdefault(name.removesuffix("_bucket"), {})
            of_name[bound] = of_name.get(bound, 0.0) + value
        if model := labels.get("model_name") or (labels.get("model") if name == "ragdeck_model_warm" else None):
            models[model] = None
    return EngineSample(
        models=tuple(models),
        gauges=_first(GAUGES, totals) | _first(SHARES, highest),
        counters=_first(COUNTERS, totals),
        histograms={ours: _histogram(found) for ours, found in _first(HISTOGRAMS, buckets).items()},
        sums=_first({ours: tuple(f"{name}_sum" for name in HISTOGRAMS[ours]) for ours in SUMS}, totals),
    )


def difference(previous: EngineSample, current: EngineSample) -> tuple[EngineSample, bool]:
    """What was counted between two samples, and whether the engine was started anew: then, all since that start."""
    counters, restarted = {}, False
    for name, value in current.counters.items():
        before = previous.counters.get(name, 0.0)
        restarted = restarted or value < before
        counters[name] = value - before if value >= before else value
    histograms = {}
    for name, histogram in current.histograms.items():
        earlier = previous.histograms.get(name)
        if earlier is None or histogram.count < earlier.count or _bounds(earlier) != _bounds(histogram):
            histograms[name] = histogram
            continue
        pairs = zip(histogram.buckets, earlier.buckets, strict=True)
        histograms[name] = Histogram(tuple((bound, max(0.0, count - old)) for (bound, count), (_, old) in pairs))
    return EngineSample(current.models, current.gauges, counters, histograms), restarted


def engine(current: EngineSample, previous: EngineSample | None = None, seconds: float | None = None) -> Engine:
    """The reading of `current`; rates and quantiles over the `seconds` since `previous`, None without it."""
    totals: dict[str, Any] = {f"{name}_seconds_total": value for name, value in current.sums.items()}
    if "requests" in current.counters:
        totals["requests_total"] = current.counters["requests"]
    if previous is None or not seconds or seconds <= 0:
        return _engine(current, None, None, {**current.gauges, **totals})
    grown, restarted = difference(previous, current)
    return replace(engine_of(grown, seconds, restarted), **totals)


def engine_of(grown: EngineSample, seconds: float, restarted: bool | None = None) -> Engine:
    """The reading of gauges now and of counters and histograms that grew by so much within `seconds`."""
    counted = grown.counters
    values = dict(grown.gauges)
    for name in ("prompt_tokens", "generation_tokens", "requests", "failures"):
        if name in counted:
            values[f"{name}_per_second"] = counted[name] / seconds
    values |= {name: counted[name] for name in ("preemptions", "cold_requests") if name in counted}
    if counted.get("prefix_queries"):
        values["prefix_cache_hit_ratio"] = min(1.0, counted.get("prefix_hits", 0.0) / counted["prefix_queries"])
    wanted = Engine.__dataclass_fields__
    for name, histogram in grown.histograms.items():
        for label, share in QUANTILES.items():
            found = quantile(histogram, share)
            if found is not None and (column := f"{name}_{label}_seconds") in wanted:
                values[column] = found
    return _engine(grown, seconds, restarted, values)


def quantile(histogram: Histogram, share: float) -> float | None:
    """Estimate by linear interpolation within the bucket, as PromQL's `histogram_quantile` does; None without observations.

    In the last, open bucket the answer is its lower bound: it is at least that.
    """
    wanted, below, lower = histogram.count * share, 0.0, 0.0
    if histogram.count <= 0:
        return None
    for bound, count in histogram.buckets:
        if count >= wanted and count > below:
            if math.isinf(bound):
                return lower
            lower = min(lower, bound)
            return lower + (bound - lower) * (wanted - below) / (count - below)
        below, lower = max(below, count), bound
    return None


def _engine(sample: EngineSample, seconds: float | None, restarted: bool | None, values: Mapping[str, Any]) -> Engine:
    return Engine(models=", ".join(sample.models) or None, seconds=seconds, restarted=restarted, **values)


def _rows(text: str) -> list[Row]:
    return [(row.name, row.labels, row.value) for family in text_string_to_metric_families(text) for row in family.samples]


def _rows_of_broken(line: str) -> list[Row]:
    try:
        return _rows(line + "\n")
    except (ValueError, IndexError, KeyError):
        return []


def _first(table: Mapping[str, tuple[str, ...]], found: Mapping[str, T]) -> dict[str, T]:
    return {ours: next(found[name] for name in names if name in found) for ours, names in table.items() if _any(names, found)}


def _any(names: tuple[str, ...], found: Mapping[str, object]) -> bool:
    return any(name in found for name in names)


def _bound(text: str) -> float | None:
    try:
        bound = float(text)
    except ValueError:
        return None
    return None if math.isnan(bound) else bound


def _bounds(histogram: Histogram) -> list[float]:
    return [bound for bound, _ in histogram.buckets]


def _histogram(found: Mapping[float, float]) -> Histogram:
    """Ascending and never falling: a page is not written in one instant."""
    buckets, highest = [], 0.0
    for bound in sorted(found):
        highest = max(highest, found[bound])
        buckets.append((bound, highest))
    return Histogram(tuple(buckets))
