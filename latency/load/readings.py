"""What machines and services did while a step ran, read from the sweep's snapshots. Knows no thread: somebody calls `look`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

from collectors.readings import Host, metrics
from collectors.views import MachineView, Part, Snapshot
from latency.load.steps import Reading

WANTED = (
    "cpu.busy_ratio",
    "memory.used_ratio",
    "gpu.*.utilization_ratio",
    "gpu.*.memory_used_ratio",
    "gpu.*.power_watts",
    "engine.*running",
    "engine.*waiting",
    "engine.*kv_cache_used_ratio",
)


class Source(Protocol):
    """The part of the sweep that is looked at."""

    def snapshot(self) -> Snapshot: ...


class _Value(NamedTuple):
    source: str
    metric: str
    at: float
    value: float


class Looks:
    """Readings since `since` (Unix seconds): each counts once, however often the snapshot shows it."""

    def __init__(self, source: Source | None, since: float) -> None:
        self._source, self._since = source, since
        self._values: dict[tuple[str, str], dict[float, float]] = {}

    def look(self) -> None:
        if self._source is None:
            return
        for each in _values(self._source.snapshot()):
            if each.at >= self._since:
                self._values.setdefault((each.source, each.metric), {})[each.at] = each.value

    def latest(self) -> list[dict[str, Any]]:
        """The newest value of each metric, for people who watch."""
        return [
            {"source": source, "metric": metric, "value": values[max(values)]}
            for (source, metric), values in sorted(self._values.items())
        ]

    def summary(self) -> tuple[Reading, ...]:
        return tuple(
            Reading(source, metric, sum(values.values()) / len(values), max(values.values()), len(values))
            for (source, metric), values in sorted(self._values.items())
        )


def _values(snapshot: Snapshot) -> Iterator[_Value]:
    for machine in snapshot.machines:
        for part in (machine.host, machine.gpus):
            yield from _of_part(machine.name, part)
        yield from _own_process(machine)
        for engine in machine.engines or ():
            at = machine.host.at if machine.host else None  # a Prometheus server tells both at once
            yield from _wanted(engine.name or machine.name, at or snapshot.at, metrics(engine))
    for service in snapshot.services:
        yield from _of_part(service.name, service.engine)


def _of_part(source: str, part: Part[Any] | None) -> Iterator[_Value]:
    if part is not None and part.value is not None and part.at is not None:
        yield from _wanted(source, part.at, metrics(part.value))


def _wanted(source: str, at: float, known: dict[str, float]) -> Iterator[_Value]:
    for name, value in known.items():
        if any(fnmatchcase(name, pattern) for pattern in WANTED):
            kind, _, rest = name.partition(".")
            yield _Value(source, f"engine.{rest.rpartition('.')[2]}" if kind == "engine" else name, at, value)


def _own_process(machine: MachineView) -> Iterator[_Value]:
    """Our own process among those listed of the machine we run on: its threads share one interpreter."""
    part: Part[Host] | None = machine.host
    if machine.source != "local" or part is None or part.value is None or part.at is None:
        return
    own = next((each for each in part.value.processes or () if each.pid == os.getpid()), None)
    if own is not None and own.cpu_ratio is not None:
        yield _Value(machine.name, "process.cpu_ratio", part.at, own.cpu_ratio)
