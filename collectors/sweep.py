"""All machines, services and Prometheus servers at once: each read when it is due, none waiting for another.

`Sweep` owns the threads. What is watched comes in as values, and can be changed while it runs; what is known goes out as a
`Snapshot`, into the history and before the alert rules. Knows no settings and no page.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from collectors.alerts import Alerts
from collectors.connection_test import StepResult, Told, ignore
from collectors.history import History
from collectors.keeper import Keeper, Known
from collectors.machine_local import LocalReader, try_local
from collectors.machine_remote import RemoteReader, try_machine
from collectors.machine_watch import MachineWatch
from collectors.machines import LOCAL, Machine, Reader
from collectors.notify import Notifier
from collectors.restart import Restarted
from collectors.retry import Doors
from collectors.scheduler import Scheduler
from collectors.service_watch import ServiceWatch, WatchedService
from collectors.services import ProbeKind, ProbeResult
from collectors.source_watch import SourceWatch, WatchedSource
from collectors.views import MachineView, Snapshot
from collectors.watching import Surroundings

KEEP_SECONDS = 2.0
MAX_BURST_SECONDS = 120.0
MAX_LOG_LINES = 1_000
LOG_SECONDS = 10.0


class _Watches(NamedTuple):
    """What is watched now, by name in the order of the settings; replaced as a whole."""

    machines: Mapping[str, MachineWatch]
    services: Mapping[str, ServiceWatch]
    sources: Mapping[str, SourceWatch]

    def all(self) -> list[MachineWatch | ServiceWatch | SourceWatch]:
        return [*self.machines.values(), *self.services.values(), *self.sources.values()]


class _PrometheusMachine(NamedTuple):
    """A machine that a source tells of, for the keeper."""

    source: SourceWatch
    name: str

    def known(self) -> dict[str, float]:
        return self.source.known(self.name)

    def is_readable(self, metric: str) -> bool:
        return self.source.is_readable(self.name)


class Sweep:
    """Thread-safe. `history`, `alerts` and `notifier` are the caller's to close, after `stop`. `reader` makes a machine's reader.

    Without a machine called `local` the one we run on is watched under that name. Of a Prometheus server's machines those are
    left out that are watched under the same name.
    """

    def __init__(
        self,
        machines: Sequence[Machine] = (),
        services: Sequence[WatchedService] = (),
        sources: Sequence[WatchedSource] = (),
        *,
        history: History | None = None,
        alerts: Alerts | None = None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        reader: Callable[[Machine], Reader] | None = None,
    ) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._reader = reader or _reader
        self._keeper = Keeper(history, alerts, notifier, clock)
        self._scheduler = Scheduler("sweep", monotonic)
        self._changed = threading.Condition()
        self._applying = threading.Lock()
        self._started = self._stopped = False
        self._around = Surroundings(
            self._scheduler, self._keeper.take, self._notify, clock, monotonic, random or Random(), Doors()
        )
        self._keeping = self._scheduler.task("keep", self._keep)
        self._watches = _Watches({}, {}, {})
        self.apply(machines, services, sources)

    # 1) start, change, stop

    def start(self) -> None:
        """Begin. Once; returns at once."""
        with self._applying:
            if self._started or self._stopped:
                return
            self._started = True
            self._scheduler.start()
            for watch in self._watches.all():
                watch.start()
            self._keeping.soon(KEEP_SECONDS)

    def apply(
        self, machines: Sequence[Machine], services: Sequence[WatchedService], sources: Sequence[WatchedSource] = ()
    ) -> None:
        """Watch these from now on. What is not changed goes on undisturbed; what is removed or changed is ended in the
        background. Raises ValueError for a name that two of them have."""
        machines = machines if any(each.name == LOCAL for each in machines) else [Machine(LOCAL), *machines]
        check_names(machines, services, sources)
        with self._applying:
            if self._stopped:
                return
            old = self._watches
            new = _Watches(
                {each.name: self._machine_watch(each, old.machines.get(each.name)) for each in machines},
                {each.name: self._service_watch(each, old.services.get(each.name)) for each in services},
                {each.name: self._source_watch(each, old.sources.get(each.name)) for each in sources},
            )
            self._watches = new
            kept = set(map(id, new.all()))
            known = set(map(id, old.all()))
            _close([watch for watch in old.all() if id(watch) not in kept])
            for watch in new.all():
                if self._started and id(watch) not in known:
                    watch.start()
        self._notify()

    def stop(self, timeout: float = 5.0) -> bool:
        """End all connections and what runs over them, write what is still to be written. For good. False when something (a
        probe, a hung driver) had not ended after `timeout` seconds; its thread ends with the process."""
        deadline = self._monotonic() + timeout
        with self._applying:
            if self._stopped:
                return True
            self._stopped = True
            closing = _close(self._watches.all())
        ended = self._scheduler.stop(max(0.0, deadline - self._monotonic()))
        for thread in closing:
            thread.join(max(0.0, deadline - self._monotonic()))
        if self._started:
            self._keep()
        self._notify()
        return ended and not any(thread.is_alive() for thread in closing)

    # 2) what is known

    def snapshot(self) -> Snapshot:
        """Everything as it is known now. Cheap: for each page at each refresh."""
        watches = self._watches
        machines = [watch.view() for watch in watches.machines.values()]
        machines += [view for view in _others(watches) if not self._is_taken(view.name)]
        return Snapshot(
            at=self._clock(),
            machines=tuple(machines),
            services=tuple(watch.view() for watch in watches.services.values()),
            sources=tuple(watch.view() for watch in watches.sources.values()),
        )

    def wait_for(self, condition: Callable[[Snapshot], bool], timeout: float) -> bool:
        """Wait until the snapshot meets a condition; False when `timeout` seconds passed first."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition(self.snapshot()):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                self._changed.wait(min(remaining, 1.0))  # ages grow without a change
        return True

    # 3) on demand

    def burst(self, seconds: float) -> None:
        """Read hosts and GPUs of remote machines twice a second, and model servers' metrics once, for so long: a query runs."""
        until = self._monotonic() + min(seconds, MAX_BURST_SECONDS)
        watches = self._watches
        for machine in watches.machines.values():
            machine.burst(until)
        for service in watches.services.values():
            service.burst(until)

    def retry(self, name: str) -> None:
        """Try a machine, service or source again now, also after a refused login. Raises KeyError for an unknown name."""
        watches = self._watches
        if name in watches.services:
            watches.services[name].start()
        elif name in watches.sources:
            watches.sources[name].retry()
        else:
            watches.machines[name].retry()

    def test(self, name: str, timeout: float = 15.0, told: Told = ignore) -> tuple[StepResult, ...]:
        """The connection test of a machine, on a connection of its own; when it goes well, the sweep tries again too. At most
        `timeout` seconds; `told` gets each step when it is over. Raises KeyError for an unknown name; for a machine that is not
        watched yet see `try_machine`."""
        watch = self._watches.machines[name]
        steps = try_local(timeout, told) if watch.machine.is_local else try_machine(watch.machine, timeout, told)
        if all(step.ok for step in steps):
            watch.retry()
        return steps

    def probe(self, name: str, kind: ProbeKind = "functional") -> ProbeResult:
        """Probe a service now and take the result in. Takes up to its `timeout_seconds`. Raises KeyError for an unknown name."""
        return self._watches.services[name].run(kind)

    def logs(self, machine: str, unit_or_container: str, lines: int = 50) -> str:
        """The last lines of the log of a unit or container that the machine's last reading lists, at most 64 KiB. The text comes
        from the machine: not to be shown unescaped. Raises KeyError for an unknown machine, ValueError for a name that is not
        listed, CollectorError when the machine cannot be asked."""
        return self._watches.machines[machine].logs(unit_or_container, max(1, min(lines, MAX_LOG_LINES)), LOG_SECONDS)

    def restart(self, machine: str, name: str) -> Restarted:
        """Restart a unit (`vllm.service`) or container (`docker:whisper`) that the machine's settings name for it, and wait for
        the end: up to 90 s. Raises KeyError for an unknown machine, ValueError for any other name and for one that is being
        restarted, CollectorError when the machine cannot be asked. Keeping a record of it is the caller's."""
        return self._watches.machines[machine].restart(name)

    # 4) inside

    def _machine_watch(self, machine: Machine, old: MachineWatch | None) -> MachineWatch:
        if old is not None and old.machine == machine:
            return old
        return MachineWatch(machine, self._reader(machine), self._around, self._keeper.most_gpus(machine.name))

    def _service_watch(self, watched: WatchedService, old: ServiceWatch | None) -> ServiceWatch:
        return old if old is not None and old.watched == watched else ServiceWatch(watched, self._around)

    def _source_watch(self, watched: WatchedSource, old: SourceWatch | None) -> SourceWatch:
        return old if old is not None and old.watched == watched else SourceWatch(watched, self._around, self._is_taken)

    def _is_taken(self, name: str) -> bool:
        watches = self._watches
        return name in watches.machines or name in watches.services or name in watches.sources

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _keep(self) -> float:
        watches = self._watches
        sources: dict[str, tuple[str, Known]] = {}
        for source in watches.sources.values():
            sources |= {name: ("machine", _PrometheusMachine(source, name)) for name in source.names() or ()}
            for observation in source.observations():
                self._keeper.take(observation)
        for machine in watches.machines.values():
            sources[machine.machine.name] = ("machine", machine)
            self._keeper.take(machine.observation())
        for name, service in watches.services.items():
            sources[name] = (service.watched.service.kind, service)
        self._keeper.flush(sources, complete=all(each.names() is not None for each in watches.sources.values()))
        return KEEP_SECONDS


def check_names(machines: Sequence[Machine], services: Sequence[WatchedService], sources: Sequence[WatchedSource] = ()) -> None:
    """Raise ValueError when two have one name: history and alerts are kept by it."""
    names = [*(each.name for each in machines), *(each.name for each in services), *(each.name for each in sources)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the name {twice[0]!r} is used twice: machines, services and sources need names of their own")


def _reader(machine: Machine) -> Reader:
    return LocalReader(machine) if machine.is_local else RemoteReader(machine)


def _others(watches: _Watches) -> list[MachineView]:
    """Machines that Prometheus tells of; of two servers the first counts."""
    found: dict[str, MachineView] = {}
    for source in watches.sources.values():
        for view in source.machines():
            found.setdefault(view.name, view)
    return list(found.values())


def _close(watches: Sequence[MachineWatch | ServiceWatch | SourceWatch]) -> list[threading.Thread]:
    """Close each on a thread of its own: one whose machine or driver hangs must not hold up the others."""
    threads = [threading.Thread(target=watch.close, name="sweep-close", daemon=True) for watch in watches]
    for thread in threads:
        thread.start()
    return threads
