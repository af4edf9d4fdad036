"""What the sweep shows: immutable views of machines, services and sources at one moment. Knows no thread and no transport.

Ages are counted by a clock that does not jump; `at` is Unix seconds by our own clock, never the machine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from collectors.errors import CollectorError, HostKeyUnknown
from collectors.machines import PARTS, PartName
from collectors.readings import Containers, Fault, Filesystems, Gpus, Host, Record, Units, to_json
from collectors.restart_powers import Obstacle
from collectors.services import ProbeResult, ServiceError, ServiceKind
from collectors.texts import cut
from collectors.vllm_metrics import Engine

T = TypeVar("T", covariant=True)

# waiting: nothing known yet. stale: a part is older than it should be. halted: login refused, not tried again by itself.
MachineState = Literal["waiting", "ok", "stale", "failing", "halted"]
ServiceState = Literal["waiting", "ok", "degraded", "loading", "failed"]
Source = Literal["local", "ssh", "prometheus"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something could not be read. `text` may come from the machine: never to be shown unescaped. `fingerprint` is that of a
    host key that is not trusted, `command` what makes it known."""

    kind: str
    step: str
    text: str
    next_step: str
    fingerprint: str | None = None
    command: str | None = None

    @property
    def sentence(self) -> str:
        """What is wrong and, in brackets, what to do."""
        return f"{self.text} ({self.next_step})" if self.next_step else self.text

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """The problem that an error stands for; one that is not of our trees is a defect here."""
        if isinstance(error, CollectorError):
            fingerprint = getattr(error, "fingerprint", None)
            command = error.command if isinstance(error, HostKeyUnknown) else None
            return cls(error.kind, error.step, cut(error.message, 500), error.next_step, fingerprint, command)
        if isinstance(error, ServiceError):
            return cls(error.failure, "command", cut(error.message, 500), error.next_step)
        text = f"{type(error).__name__}: {cut(str(error))}"
        return cls("internal", "command", text, "This is a fault of the dashboard: its log says more.")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """The last reading of one kind. `value` is the last that could be read, however old; `seconds` what reading it took.

    `problem` is why the latest try failed, None when it went well. `stale`: older than three rounds. `absent`: the machine does
    not have it (no GPU, no Docker), and is asked rarely.
    """

    value: T | None = None
    at: float | None = None
    age_seconds: float | None = None
    seconds: float | None = None
    problem: Problem | None = None
    stale: bool = False
    absent: bool = False

    @property
    def tried(self) -> bool:
        return self.at is not None or self.problem is not None


@dataclass(frozen=True, slots=True)
class MachineView:
    """One machine. A part that is not collected is None. `problem` is why the machine as a whole cannot be read;
    `retry_seconds` when it is tried again, None when not by itself. `expected_gpus` None: unknown. `restart` is what the settings
    allow to be restarted; `restart_obstacles` what is in the way of that on the machine we run on."""

    name: str
    address: str
    source: Source
    state: MachineState
    problem: Problem | None = None
    retry_seconds: float | None = None
    host: Part[Host] | None = None
    gpus: Part[Gpus] | None = None
    filesystems: Part[Filesystems] | None = None
    units: Part[Units] | None = None
    containers: Part[Containers] | None = None
    engines: tuple[Engine, ...] | None = None
    expected_gpus: int | None = None
    source_faults: tuple[Fault, ...] = ()
    restart: tuple[str, ...] = ()
    restart_obstacles: tuple[Obstacle, ...] = ()

    def parts(self) -> Iterator[tuple[PartName, Part[Record]]]:
        """(name, part) of those that are collected."""
        for name in PARTS:
            part: Part[Record] | None = getattr(self, name)
            if part is not None:
                yield name, part

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is wrong or unknown on the machine, of all parts."""
        found = (fault for _, part in self.parts() if part.value is not None for fault in getattr(part.value, "faults", ()))
        return (*self.source_faults, *found)

    def to_json(self) -> dict[str, Any]:
        parts = {name: _part_json(part, None if part.value is None else to_json(part.value)) for name, part in self.parts()}
        return {
            "name": self.name,
            "address": self.address,
            "source": self.source,
            "state": self.state,
            "problem": _problem_json(self.problem),
            "retry_seconds": self.retry_seconds,
            "expected_gpus": self.expected_gpus,
            "restart": list(self.restart),
            **{name: parts.get(name) for name in PARTS},
            "engines": None if self.engines is None else [to_json(engine) for engine in self.engines],
            "faults": [to_json(fault) for fault in self.faults],
        }


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service. `state` follows the liveness probe, and where that is good the functional one, which is `absent` where it runs
    only on demand. `engine` is what its `/metrics` tells, None for kinds that have none."""

    name: str
    kind: ServiceKind
    address: str
    state: ServiceState
    liveness: Part[ProbeResult]
    functional: Part[ProbeResult]
    engine: Part[Engine] | None = None

    @property
    def result(self) -> ProbeResult | None:
        """The result that `state` comes from: what to show of the service in one line."""
        results = [part.value for part in (self.liveness, self.functional) if part.value is not None]
        return max(results, key=lambda result: _BADNESS.index(result.state), default=None) if results else None

    def to_json(self) -> dict[str, Any]:
        probes = {"liveness": self.liveness, "functional": self.functional}
        engine = self.engine
        return {
            "name": self.name,
            "kind": self.kind,
            "address": self.address,
            "state": self.state,
            **{name: _part_json(part, part.value.to_json() if part.value else None) for name, part in probes.items()},
            "engine": None if engine is None else _part_json(engine, to_json(engine.value) if engine.value else None),
        }


_BADNESS = ("ok", "degraded", "loading", "failed")


@dataclass(frozen=True, slots=True)
class SourceView:
    """A Prometheus server that readings come from; `problem` is why its last answer failed."""

    name: str
    address: str
    machines: int | None
    at: float | None
    age_seconds: float | None
    seconds: float | None
    problem: Problem | None

    def to_json(self) -> dict[str, Any]:
        fields = ("name", "address", "machines", "at", "age_seconds", "seconds")
        return {**{name: getattr(self, name) for name in fields}, "problem": _problem_json(self.problem)}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything watched, as it was known at `at` (Unix seconds)."""

    at: float
    machines: tuple[MachineView, ...]
    services: tuple[ServiceView, ...]
    sources: tuple[SourceView, ...] = ()

    def machine(self, name: str) -> MachineView | None:
        return next((machine for machine in self.machines if machine.name == name), None)

    def service(self, name: str) -> ServiceView | None:
        return next((service for service in self.services if service.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, None kept."""
        return {
            "at": self.at,
            "machines": [machine.to_json() for machine in self.machines],
            "services": [service.to_json() for service in self.services],
            "sources": [source.to_json() for source in self.sources],
        }


def _part_json(part: Part[object], value: dict[str, Any] | None) -> dict[str, Any]:
    fields = ("at", "age_seconds", "seconds", "stale", "absent")
    return {"value": value, **{name: getattr(part, name) for name in fields}, "problem": _problem_json(part.problem)}


def _problem_json(problem: Problem | None) -> dict[str, Any] | None:
    names = ("kind", "step", "text", "next_step", "fingerprint", "command")
    return None if problem is None else {name: getattr(problem, name) for name in names}
