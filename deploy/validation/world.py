"""What the checks look at, asked once each and remembered for one run. Knows no check.

Clocks, the prober, the readers of machines, the environment and the list of installed packages are arguments.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from collectors.connect_timing import Steps, Tls, connect
from collectors.machines import Machine
from collectors.probes import probe
from collectors.services import ProbeKind, ProbeResult, Service, ServiceError
from deploy.validation import machines, subject
from deploy.validation.machines import MachineFacts
from deploy.validation.subject import Process, Subject
from gpu_server.errors import EngineError
from rag.errors import RagError

T = TypeVar("T")

AT_ONCE = 8
TLS_SCHEMES = ("https", "rediss")


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection tried to a service: how far it came. `problem` is None where it stood."""

    steps: Steps
    problem: ServiceError | None


def has_module(name: str) -> bool:
    """Whether a package is installed, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: something put None into sys.modules
        return False


class World:
    """One run's view of the deployment. Thread-safe. `process` is asked for when a check first needs it; it may raise RagError,
    which each check that needs it then meets."""

    def __init__(
        self,
        what: Subject,
        process: Callable[[], Process],
        *,
        now: Callable[[], float] = time.time,
        prober: Callable[[Service, ProbeKind], ProbeResult] = probe,
        read_machine: Callable[[Machine], MachineFacts] = machines.read,
        environment: Mapping[str, str] | None = None,
        installed: Callable[[str], bool] = has_module,
        is_loopback: Callable[[str], bool] = subject.is_loopback,
    ) -> None:
        self.subject = what
        self.now = now
        self.prober = prober
        self.environment: Mapping[str, str] = os.environ if environment is None else environment
        self.installed = installed
        self.is_loopback = is_loopback
        self._process = process
        self._read_machine = read_machine
        self._lock = threading.RLock()
        self._known: dict[Any, Any] = {}

    # 1) the process

    def process(self) -> Process:
        """Raises RagError."""
        return self._once("process", self._process)

    def answer(self) -> Mapping[str, Any]:
        """One full query; asked once more where a stage of the first was cold, so that it is a warm one. Raises RagError."""
        return self._once("answer", self._ask)

    def _ask(self) -> Mapping[str, Any]:
        process, question = self.process(), self.subject.question
        first = process.ask(question)
        again = first.get("cold") and first.get("outcome") == "answered"
        return {**process.ask(question), "cold_total_seconds": first.get("total_seconds")} if again else first

    # 2) services

    def connections(self) -> tuple[tuple[Service, Connection], ...]:
        """Of every service, in the order of the settings."""
        return self._once("connections", lambda: _each(_connect, self.subject.services))

    def probes(self, kind: ProbeKind) -> tuple[tuple[Service, ProbeResult], ...]:
        """The probe of every service to which a connection stands."""
        return self._once(kind, lambda: _each(lambda service: self.prober(service, kind), self.reached()))

    def reached(self) -> tuple[Service, ...]:
        """The services to which a connection stands."""
        return tuple(service for service, made in self.connections() if made.problem is None)

    # 3) machines

    def machines(self) -> tuple[MachineFacts, ...]:
        return self._once("machines", self._machines)

    def _machines(self) -> tuple[MachineFacts, ...]:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="validate") as pool:
            return tuple(pool.map(self._read_machine, self.subject.machines))

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        """The value, made at the first call; an error that was raised then is raised again."""
        with self._lock:
            if key not in self._known:
                try:
                    self._known[key] = make()
                except (RagError, EngineError) as problem:
                    self._known[key] = problem
            found = self._known[key]
        if isinstance(found, RagError | EngineError):
            raise found
        value: T = found
        return value


def _each(ask: Callable[[Service], T], services: Sequence[Service]) -> tuple[tuple[Service, T], ...]:
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="validate") as pool:
        return tuple(zip(services, pool.map(ask, services), strict=True))


def _connect(service: Service) -> Connection:
    steps = Steps()
    try:
        host, port = service.endpoint
        tls = Tls(service.verify, service.ca_file) if service.parts.scheme in TLS_SCHEMES else None
        connect(host, port, time.monotonic() + service.timeout_seconds, steps, tls).close()
    except ServiceError as problem:
        return Connection(steps, problem)
    except TimeoutError:
        return Connection(steps, ServiceError("timeout", f"{service.address} does not take the connection in time"))
    return Connection(steps, None)
