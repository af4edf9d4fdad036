"""Keeps a Prometheus server asked, and shows the machines that it tells of. Knows no SSH."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from collectors.alerts import Observation
from collectors.derived import Numbers, collection, fault_numbers, numbers
from collectors.machines import PARTS
from collectors.prometheus_source import MachineReading, PrometheusSource
from collectors.readings import Record, metrics
from collectors.scheduler import Task
from collectors.services import ServiceError
from collectors.views import MachineView, Part, Problem, SourceView
from collectors.watching import STALE_MARGIN_SECONDS, STALE_ROUNDS, Memory, Surroundings

EVERY_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class WatchedSource:
    """A Prometheus server and how often it is asked."""

    source: PrometheusSource
    every_seconds: float = EVERY_SECONDS

    @property
    def name(self) -> str:
        return self.source.server.name


class SourceWatch:
    """Thread-safe. Machines whose name `is_taken` are left out: they are watched in another way."""

    def __init__(self, watched: WatchedSource, around: Surroundings, is_taken: Callable[[str], bool]) -> None:
        self.watched = watched
        self._around = around
        self._is_taken = is_taken
        self._lock = threading.Lock()
        self._memory: Memory[dict[str, MachineReading]] = Memory()
        self._numbers: dict[str, Numbers] = {}
        self._gpus_seen: dict[str, int] = {}
        self._closed = False
        self._task: Task = around.scheduler.task(f"prometheus {watched.name}", self._read)

    def start(self) -> None:
        self._task.soon()

    def retry(self) -> None:
        """Ask now."""
        self._task.soon()

    def close(self) -> None:
        """Ask no more."""
        with self._lock:
            self._closed = True
        self._task.cancel()

    def view(self) -> SourceView:
        with self._lock:
            part = self._memory.view(self._around.monotonic(), self.watched.every_seconds)
        number = None if part.value is None else len(part.value)
        address = self.watched.source.server.address
        return SourceView(self.watched.name, address, number, part.at, part.age_seconds, part.seconds, part.problem)

    def machines(self) -> tuple[MachineView, ...]:
        """The machines of the last answer, older since then."""
        with self._lock:
            part = self._memory.view(self._around.monotonic(), self.watched.every_seconds)
            expected = dict(self._gpus_seen)
        return tuple(self._machine(reading, part, expected.get(name)) for name, reading in (part.value or {}).items())

    def names(self) -> set[str] | None:
        """The machines it tells of; None while that is not known."""
        with self._lock:
            return None if self._memory.value is None else set(self._memory.value)

    def observations(self) -> list[Observation]:
        """How well each machine is read, now."""
        at = self._around.clock()
        with self._lock:
            readings = list((self._memory.value or {}).values())
        return [_observation(reading.name, at, self._collection(reading)) for reading in readings]

    def _collection(self, reading: MachineReading) -> Numbers:
        with self._lock:
            problem, age = self._memory.problem, self._memory.age(self._around.monotonic())
        said = problem.sentence if problem else ""
        return collection(problem is not None, _sum(reading.age_seconds, age), None, said)

    def known(self, name: str) -> dict[str, float]:
        """All metrics of a machine's last reading, and how well it can be read."""
        with self._lock:
            found, reading = self._numbers.get(name), (self._memory.value or {}).get(name)
        if found is None or reading is None:
            return {}
        return dict(found.metrics) | dict(self._collection(reading).metrics)

    def is_readable(self, name: str) -> bool:
        """Whether the last answer was good and complete for a machine: what is not in it then is no more."""
        with self._lock:
            reading = (self._memory.value or {}).get(name)
            return self._memory.problem is None and reading is not None and not reading.faults

    def _read(self) -> float:
        started = self._around.monotonic()
        try:
            everything = self.watched.source.read()
        except ServiceError as error:
            with self._lock:
                self._memory.bad(Problem.of(error))
            self._around.changed()
            return self.watched.every_seconds
        at, now = self._around.clock(), self._around.monotonic()
        readings = {name: reading for name, reading in everything.items() if not self._is_taken(name)}
        found = {name: self._numbers_of(reading) for name, reading in readings.items()}
        with self._lock:
            if self._closed:
                return self.watched.every_seconds
            self._memory.good(readings, at, now, now - started)
            self._numbers = found
        for name, each in found.items():
            self._around.report(_observation(name, at - (readings[name].age_seconds or 0.0), each))
        self._around.changed()
        return self.watched.every_seconds

    def _numbers_of(self, reading: MachineReading) -> Numbers:
        gpus = reading.gpus.gpus if reading.gpus is not None else None
        if gpus is not None:
            self._gpus_seen[reading.name] = max(self._gpus_seen.get(reading.name, 0), len(gpus))
        values: dict[str, float] = {}
        details: dict[str, str] = {}
        for part in PARTS:
            record: Record | None = getattr(reading, part, None)
            if record is not None:
                found = numbers(record, self._gpus_seen.get(reading.name))
                values |= found.metrics
                details |= found.details
        for engine in reading.engines or ():
            values |= metrics(engine)
        values |= fault_numbers(reading.faults, details)
        return Numbers(values, details)

    def _machine(self, reading: MachineReading, part: Part[Any], expected_gpus: int | None) -> MachineView:
        age = _sum(reading.age_seconds, part.age_seconds)
        at = None if part.at is None else part.at - (reading.age_seconds or 0.0)
        limit = max(STALE_ROUNDS * self.watched.every_seconds + STALE_MARGIN_SECONDS, float(self.watched.source.window_seconds))
        stale = age is not None and age > limit
        records = {name: getattr(reading, name, None) for name in PARTS}
        parts: dict[str, Any] = {
            name: Part(record, at, age, part.seconds, part.problem, stale)
            for name, record in records.items()
            if record is not None
        }
        return MachineView(
            name=reading.name,
            address=self.watched.source.server.address,
            source="prometheus",
            state="failing" if part.problem else "stale" if stale else "ok",
            problem=part.problem,
            engines=reading.engines,
            expected_gpus=expected_gpus,
            source_faults=reading.faults,
            **parts,
        )


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def _observation(name: str, at: float, found: Numbers) -> Observation:
    return Observation(name, "machine", at, found.metrics, found.details)
