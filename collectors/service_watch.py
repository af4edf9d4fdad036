"""Keeps one service probed: liveness often, function rarely and only where it lives, and what its `/metrics` tells.

Knows no other service. Probes never raise; a service that is down is asked as often as one that is up.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from collectors.alerts import Observation
from collectors.derived import Numbers, service_numbers
from collectors.probes import engine_metrics, probe
from collectors.readings import metrics
from collectors.scheduler import Task
from collectors.services import ProbeKind, ProbeResult, Service, ServiceError, ServiceKind
from collectors.views import Problem, ServiceState, ServiceView
from collectors.vllm_metrics import Engine, EngineSample, engine
from collectors.watching import Memory, Surroundings

LIVENESS_SECONDS = 10.0
FUNCTIONAL_SECONDS = 60.0
ENGINE_SECONDS = 10.0
NO_ENGINE_SECONDS = 300.0
ENGINE_BURST_SECONDS = 1.0  # a page of metrics takes some milliseconds to read: not oftener beside a query
ENGINE_KINDS: frozenset[ServiceKind] = frozenset({"gpu_server", "openai-chat", "openai-embeddings", "rerank", "whisper", "ocr"})


@dataclass(frozen=True, slots=True)
class WatchedService:
    """A service and how often it is asked. `functional_every_seconds` None: only on demand (a paid API, a model that is slow)."""

    service: Service
    liveness_every_seconds: float = LIVENESS_SECONDS
    functional_every_seconds: float | None = FUNCTIONAL_SECONDS

    @property
    def name(self) -> str:
        return self.service.name


class ServiceWatch:
    """Thread-safe."""

    def __init__(self, watched: WatchedService, around: Surroundings) -> None:
        self.watched = watched
        self._service = watched.service
        self._around = around
        self._lock = threading.Lock()
        self._results: dict[ProbeKind, Memory[ProbeResult]] = {"liveness": Memory(), "functional": Memory()}
        self._results["functional"].absent = watched.functional_every_seconds is None
        self._numbers: dict[str, Numbers] = {}
        self._engine: Memory[Engine] = Memory()
        self._sample: tuple[EngineSample, float] | None = None
        self._burst_until = 0.0
        self._closed = False
        task, name = around.scheduler.task, watched.name
        self._liveness: Task = task(f"liveness of {name}", self._probe_liveness)
        self._functional: Task = task(f"function of {name}", self._probe_functional)
        self._metrics: Task = task(f"metrics of {name}", self._read_engine)

    # From outside

    def start(self) -> None:
        self._liveness.soon()
        if self._service.kind in ENGINE_KINDS:
            self._metrics.soon()

    def burst(self, until: float) -> None:
        """Read the engine oftener until then (monotonic), where there is one that answers."""
        with self._lock:
            well = self._engine.value is not None and self._engine.problem is None
        if well and self._burst_until < self._around.monotonic():
            self._metrics.soon()
        self._burst_until = max(self._burst_until, until)

    def close(self) -> None:
        """Ask no more; a probe under way ends at its time limit, and what it finds is dropped."""
        with self._lock:
            self._closed = True
        for task in (self._liveness, self._functional, self._metrics):
            task.cancel()

    def run(self, kind: ProbeKind) -> ProbeResult:
        """Probe now, and take the result in. At most the service's `timeout_seconds`."""
        started = self._around.monotonic()
        result = probe(self._service, kind, now=self._around.clock)
        at, now = self._around.clock(), self._around.monotonic()
        with self._lock:
            if self._closed:
                return result
            self._results[kind].good(result, at, now, now - started)
            state = self._state()
            found = self._numbers[kind] = service_numbers(result, state == "failed", state in ("ok", "degraded"))
        self._around.report(Observation(self.watched.name, self._service.kind, at, found.metrics, found.details))
        self._around.changed()
        return result

    def view(self) -> ServiceView:
        now = self._around.monotonic()
        every = self.watched.functional_every_seconds
        with self._lock:
            return ServiceView(
                name=self.watched.name,
                kind=self._service.kind,
                address=self._service.address,
                state=self._state(),
                liveness=self._results["liveness"].view(now, self.watched.liveness_every_seconds),
                functional=self._results["functional"].view(now, float("inf") if every is None else every),
                engine=self._engine.view(now, ENGINE_SECONDS) if self._service.kind in ENGINE_KINDS else None,
            )

    def known(self) -> dict[str, float]:
        """All metrics of the last results."""
        with self._lock:
            return {name: value for found in self._numbers.values() for name, value in found.metrics.items()}

    def is_readable(self, metric: str) -> bool:
        """Whether a metric would be known if there were one: when every probe that is made by itself went well."""
        with self._lock:
            needed: list[ProbeKind] = (
                ["liveness"] if self.watched.functional_every_seconds is None else ["liveness", "functional"]
            )
            return all((result := self._results[kind].value) is not None and result.up for kind in needed)

    # Probing

    def _probe_liveness(self) -> float:
        with self._lock:
            before = self._results["liveness"].value
        result = self.run("liveness")
        if result.up and (before is None or not before.up) and self.watched.functional_every_seconds is not None:
            self._functional.soon()  # it has come up: does it work?
        return self.watched.liveness_every_seconds

    def _probe_functional(self) -> float | None:
        with self._lock:
            alive = self._results["liveness"].value
        if alive is None or not alive.up:
            return None  # it would say the same, and later; the next good liveness probe asks for it
        self.run("functional")
        return self.watched.functional_every_seconds

    def _state(self) -> ServiceState:
        """Of liveness where that is bad; else the worse of both."""
        alive, works = self._results["liveness"].value, self._results["functional"].value
        if alive is None:
            return "waiting" if works is None else works.state
        if not alive.up or works is None:
            return alive.state
        return works.state if not works.up or alive.state == "ok" else alive.state

    def _read_engine(self) -> float:
        started = self._around.monotonic()
        try:
            sample = engine_metrics(self._service)
        except ServiceError as error:
            with self._lock:
                self._engine.bad(Problem.of(error))
                self._engine.absent = error.failure in ("not_found", "bad_answer") and self._engine.value is None
                return NO_ENGINE_SECONDS if self._engine.absent else ENGINE_SECONDS
        at, now = self._around.clock(), self._around.monotonic()
        with self._lock:
            previous, seconds = (None, None) if self._sample is None else (self._sample[0], now - self._sample[1])
            self._sample = (sample, now)
            reading = engine(sample, previous, seconds)
            self._engine.good(reading, at, now, now - started)
            self._engine.absent = False
            found = self._numbers["engine"] = Numbers(metrics(reading))
            if self._closed:
                return ENGINE_SECONDS
        self._around.report(Observation(self.watched.name, self._service.kind, at, found.metrics))
        self._around.changed()
        return ENGINE_BURST_SECONDS if now < self._burst_until else ENGINE_SECONDS
