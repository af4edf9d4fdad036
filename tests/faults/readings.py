"""Readings of a query's window in the shapes of the collectors, at 20 Hz. Recorded by hand: no machine here was in such a state.

Only the engine's series are read for real: from the page `/metrics` of the server that a query asked.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

import httpx

from collectors.vllm_metrics import parse
from latency.types import LOCAL, Fact, QueryReadings, Series, Use
from rag.types import Answer, Interval

HERTZ = 20
EDGE_SECONDS = 0.25  # read before the query's start and after its end
ENGINE = "vllm"
GPU_MEMORY_BYTES = 80 * 2**30

Value = float | Callable[[float], float | None] | None
Readings = Callable[[Answer], QueryReadings]

CALM: Mapping[str, float] = {
    "cpu.cores": 8.0,
    "cpu.busy_ratio": 0.14,
    "cpu.iowait_ratio": 0.01,
    "cpu.steal_ratio": 0.0,
    "memory.used_ratio": 0.41,
    "memory.swap_used_ratio": 0.0,
    "process.cpu_ratio": 0.35,
    "pressure.cpu.some_10s_ratio": 0.0,
    "pressure.cpu.some_ratio": 0.0,
    "pressure.io.some_10s_ratio": 0.0,
    "pressure.io.some_ratio": 0.0,
    "disk.nvme0n1.busy_ratio": 0.02,
    "disk.nvme0n1.read_bytes_per_second": 250e3,
    "disk.nvme0n1.written_bytes_per_second": 90e3,
    "disk.nvme0n1.wait_seconds": 0.0002,
    "disk.nvme0n1.queue_length": 0.02,
    "gpu.0.utilization_ratio": 0.22,
    "gpu.0.memory_bandwidth_ratio": 0.10,
    "gpu.0.memory_total_bytes": GPU_MEMORY_BYTES,
    "gpu.0.memory_used_bytes": 0.55 * GPU_MEMORY_BYTES,
    "gpu.0.memory_used_ratio": 0.55,
    "gpu.0.temperature_celsius": 48.0,
    "gpu.0.power_watts": 190.0,
    "gpu.0.power_limit_watts": 700.0,
    "gpu.0.sm_clock_mhz": 1980.0,
    "gpu.0.sm_clock_max_mhz": 1980.0,
    "gpu.0.memory_clock_mhz": 2619.0,
    "gpu.0.memory_clock_max_mhz": 2619.0,
    "gpu.0.slowed": 0.0,
}
CALM_FACTS: Mapping[str, str] = {"gpu.0.name": "NVIDIA H100 80GB HBM3", "gpu.0.persistence_enabled": "true"}
IDLE_GPU: Mapping[str, Value] = {
    "gpu.0.utilization_ratio": 0.0,
    "gpu.0.memory_bandwidth_ratio": 0.0,
    "gpu.0.power_watts": 72.0,
    "gpu.0.sm_clock_mhz": 345.0,
    "gpu.0.memory_clock_mhz": 1593.0,
}


def times_of(answer: Answer) -> tuple[float, ...]:
    """20 a second over the query's window."""
    count = int((answer.total_seconds + 2 * EDGE_SECONDS) * HERTZ) + 1
    return tuple(index / HERTZ - EDGE_SECONDS for index in range(count))


def calm(answer: Answer) -> QueryReadings:
    """A machine with an H100 on which nothing stands out."""
    times = times_of(answer)
    started = datetime.fromisoformat(answer.started_at).timestamp()
    ours = Use(LOCAL, os.getpid(), "python", memory_bytes=2 * 2**30, cpu_ratio=0.35, ours=True)
    on_gpu = Use(LOCAL, os.getpid(), "python", gpu=0, memory_bytes=int(0.55 * GPU_MEMORY_BYTES), ours=True)
    facts = tuple(Fact(LOCAL, name, value, times[0], times[-1]) for name, value in CALM_FACTS.items())
    series = tuple(Series(LOCAL, name, times, _wavering(value, len(times))) for name, value in CALM.items())
    return QueryReadings(answer.id, started, answer.total_seconds, series, facts, (ours, on_gpu))


def _wavering(value: float, count: int) -> tuple[float, ...]:
    """Readings are never quite the same: up to two percent less; counts, sizes and clocks stay."""
    return tuple(value if value % 1 == 0 else value * (1 - 0.01 * (index % 3)) for index in range(count))


def with_series(readings: QueryReadings, values: Mapping[str, Value], source: str = LOCAL) -> QueryReadings:
    """Metrics put in place of those of the same name; a function gives the value at a time of the window."""
    kept = tuple(each for each in readings.series if (each.source, each.metric) not in {(source, name) for name in values})
    times = readings.series[0].times
    changed = tuple(
        Series(source, name, times, tuple(value(moment) if callable(value) else value for moment in times))
        for name, value in values.items()
    )
    return replace(readings, series=kept + changed)


def with_facts(readings: QueryReadings, facts: Mapping[str, str], window: tuple[float, float]) -> QueryReadings:
    kept = tuple(each for each in readings.facts if each.name not in facts)
    return replace(readings, facts=kept + tuple(Fact(LOCAL, name, value, *window) for name, value in facts.items()))


def during(stage: str, answer: Answer) -> tuple[float, float]:
    """From when to when a stage ran."""
    spans: list[Interval] = [each for each in answer.timeline if each.stage == stage]
    return min(each.start for each in spans), max(each.start + each.seconds for each in spans)


def whole(answer: Answer) -> tuple[float, float]:
    return -EDGE_SECONDS, answer.total_seconds + EDGE_SECONDS


def within(window: tuple[float, float], value: float, otherwise: float) -> Callable[[float], float]:
    return lambda moment: value if window[0] <= moment <= window[1] + 1 / HERTZ else otherwise


# What a machine looks like in each kind of trouble, from readings of a calm one.


def idle_gpu(readings: QueryReadings, answer: Answer) -> QueryReadings:
    """Nothing to do, so its clock is low, which is as it should be."""
    return with_series(readings, IDLE_GPU)


def throttled(readings: QueryReadings, answer: Answer, stage: str = "rerank") -> QueryReadings:
    """Too hot: the driver takes the clock down to a third while the stage runs."""
    window = during(stage, answer)
    values: dict[str, Value] = {
        "gpu.0.sm_clock_mhz": within(window, 645.0, 1980.0),
        "gpu.0.temperature_celsius": 91.0,
        "gpu.0.slowed": within(window, 1.0, 0.0),
        "gpu.0.utilization_ratio": within(window, 0.97, 0.1),
        "gpu.0.power_watts": within(window, 310.0, 120.0),
    }
    return with_facts(with_series(readings, values), {"gpu.0.throttle_reasons": "sw_thermal_slowdown"}, window)


def power_capped(readings: QueryReadings, answer: Answer, stage: str = "rerank") -> QueryReadings:
    window = during(stage, answer)
    values: dict[str, Value] = {
        "gpu.0.sm_clock_mhz": within(window, 720.0, 1980.0),
        "gpu.0.utilization_ratio": within(window, 0.98, 0.1),
        "gpu.0.power_watts": within(window, 349.0, 120.0),
        "gpu.0.power_limit_watts": 350.0,
    }
    return with_facts(with_series(readings, values), {"gpu.0.throttle_reasons": "sw_power_cap"}, window)


def foreign(readings: QueryReadings, answer: Answer) -> QueryReadings:
    """A training run of somebody else's holds the GPU all the time."""
    values: dict[str, Value] = {
        "gpu.0.utilization_ratio": 0.99,
        "gpu.0.memory_bandwidth_ratio": 0.71,
        "gpu.0.memory_used_bytes": 0.80 * GPU_MEMORY_BYTES,
        "gpu.0.memory_used_ratio": 0.80,
        "gpu.0.power_watts": 520.0,
    }
    other = Use(LOCAL, 41_207, "train.py", owner="docker 3f2a9c", gpu=0, memory_bytes=int(0.25 * GPU_MEMORY_BYTES))
    return replace(with_series(readings, values), uses=(*readings.uses, other))


def low_clocks(readings: QueryReadings, answer: Answer) -> QueryReadings:
    """The clock stands low without a reason to throttle."""
    values: dict[str, Value] = {
        "gpu.0.sm_clock_mhz": 345.0,
        "gpu.0.memory_clock_mhz": 405.0,
        "gpu.0.utilization_ratio": 0.88,
    }
    return with_series(readings, values)


def asleep(readings: QueryReadings, answer: Answer) -> QueryReadings:
    """The driver let the GPU go when nobody used it; at its first work it has to be set up again."""
    window = during("rerank", answer)
    values: dict[str, Value] = {
        "gpu.0.utilization_ratio": within(window, 0.31, 0.0),
        "gpu.0.power_watts": within(window, 110.0, 30.0),
    }
    return with_facts(with_series(readings, values), {"gpu.0.persistence_enabled": "false"}, whole(answer))


def full_memory(readings: QueryReadings, answer: Answer) -> QueryReadings:
    values: dict[str, Value] = {
        "gpu.0.memory_used_bytes": 0.992 * GPU_MEMORY_BYTES,
        "gpu.0.memory_used_ratio": 0.992,
        "gpu.0.utilization_ratio": 0.85,
    }
    return with_series(readings, values)


def busy_processor(readings: QueryReadings, answer: Answer) -> QueryReadings:
    values: dict[str, Value] = {
        "cpu.busy_ratio": 0.99,
        "pressure.cpu.some_10s_ratio": 0.62,
        "pressure.cpu.some_ratio": 0.81,
        "process.cpu_ratio": 0.5,
    }
    hog = Use(LOCAL, 30_551, "python", owner="unit nightly-report.service", cpu_ratio=7.3)
    return replace(with_series(readings, values), uses=(*readings.uses, hog))


def busy_disk(readings: QueryReadings, answer: Answer) -> QueryReadings:
    values: dict[str, Value] = {
        "disk.nvme0n1.busy_ratio": 0.99,
        "disk.nvme0n1.read_bytes_per_second": 410e6,
        "disk.nvme0n1.written_bytes_per_second": 520e6,
        "disk.nvme0n1.wait_seconds": 0.048,
        "disk.nvme0n1.queue_length": 31.0,
        "cpu.iowait_ratio": 0.48,
        "pressure.io.some_10s_ratio": 0.57,
        "pressure.io.some_ratio": 0.74,
    }
    return with_series(readings, values)


class EngineWatch:
    """Reads the page `/metrics` of an engine, 20 times a second, while a query runs."""

    def __init__(self, address: str) -> None:
        self._address = f"{address}/metrics"
        self._read: list[tuple[float, dict[str, float]]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, ended: threading.Event) -> None:
        with httpx.Client(trust_env=False, timeout=20.0, verify=False) as client:  # no certificates are read for it
            while True:
                sample = parse(client.get(self._address).text)
                self._read.append((time.time(), {**sample.gauges, **sample.counters}))
                if ended.wait(1 / HERTZ):
                    return

    def onto(self, readings: QueryReadings) -> QueryReadings:
        """The readings with the engine's series; `engine.preemptions` counts those since the reading before."""
        if not self._read:
            return readings
        times = tuple(moment - readings.started_at_unix for moment, _ in self._read)
        series = (Series(ENGINE, f"engine.{name}", times, self._values(name)) for name in _ENGINE)
        return replace(readings, series=(*readings.series, *series))

    def _values(self, name: str) -> tuple[float | None, ...]:
        values = [found.get(name) for _, found in self._read]
        if name != "preemptions":
            return tuple(values)
        return (None, *(None if b is None or a is None else b - a for a, b in zip(values, values[1:], strict=False)))


_ENGINE = ("running", "waiting", "kv_cache_used_ratio", "preemptions")
