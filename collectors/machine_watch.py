"""Keeps one machine read: connects, reads each part when it is due, backs off, and remembers what came. Knows no other machine.

A part that hangs or fails waits longer each time and disturbs no other. A lost connection, or a host that does not answer twice,
ends them all until the next connection; a refused login ends the trying until somebody asks for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from collectors import docker, restart, systemd
from collectors.alerts import Observation
from collectors.derived import Numbers, absent, collection, numbers, part_of
from collectors.errors import AuthenticationFailed, CollectorError
from collectors.machines import FAST, Machine, PartName, Reader
from collectors.readings import Gpus, Host, Record
from collectors.restart_powers import obstacles, powers
from collectors.retry import back_off
from collectors.scheduler import Task
from collectors.texts import cut
from collectors.views import MachineState, MachineView, Problem
from collectors.watching import Memory, Surroundings

log = logging.getLogger(__name__)

CONNECT_SECONDS = 15.0
FIRST_READ_SECONDS = 20.0  # a login shell must start first, with whatever profile there is
# Eight busy GPUs take nvidia-smi six seconds; a slow reading is an alert at five, so that it must be waited for.
READ_SECONDS: Mapping[PartName, float] = {"host": 10.0, "gpus": 20.0, "filesystems": 15.0, "units": 15.0, "containers": 20.0}
ABSENT_SECONDS = 300.0
FIRST_RATES_SECONDS = 0.5  # rates need two samples
DOOR_SECONDS = 0.2
PATIENCE = 2  # answers that may be late or broken before the connection is given up
SPREAD_SECONDS = 0.5
BURST_SECONDS = 0.5
LOG_BYTES = 65_536


class MachineWatch:
    """`remembered_gpus`: the most GPUs seen in the last days, if known. Thread-safe."""

    def __init__(self, machine: Machine, reader: Reader, around: Surroundings, remembered_gpus: int | None = None) -> None:
        self.machine = machine
        self._reader = reader
        self._around = around
        self._lock = threading.Lock()
        self._since = around.monotonic()
        self._parts: dict[PartName, Memory[Any]] = {part: Memory() for part in machine.collect}
        self._numbers: dict[PartName, Numbers] = {}
        self._origins: dict[str, PartName] = {}  # the part that a fault came from
        self._gpus_seen = remembered_gpus
        self._connected = machine.is_local
        self._awake = machine.is_local  # over a connection the other parts wait for the first reading
        self._generation = 0  # of the connection: what an old one did late is no news of the new one
        self._problem: Problem | None = None
        self._halted = self._closed = False
        self._failures = 0
        self._burst_until = 0.0
        self._restarting: set[str] = set()
        self._obstacles = obstacles(machine.restart, powers()) if machine.is_local and machine.restart else ()
        self._retry_at: float | None = None
        task = around.scheduler.task
        self._connecting: Task = task(f"connect {machine.name}", self._connect)
        self._tasks = {part: task(f"{part} of {machine.name}", partial(self._read, part)) for part in machine.collect}

    # From outside

    def start(self) -> None:
        if self.machine.is_local:
            self._wake(self._tasks, 0.0)
        else:
            self._connecting.soon()

    def retry(self) -> None:
        """Try now what failed, also after a refused login."""
        with self._lock:
            self._halted = False
            self._failures = 0
            connected = self._connected
        if connected:
            self._wake(self._tasks, 0.0)
        else:
            self._connecting.soon()

    def burst(self, until: float) -> None:
        """Read the fast parts oftener until then (monotonic). The local machine has a sampler of its own for that."""
        if self.machine.is_local:
            return
        self._burst_until = max(self._burst_until, until)
        if self._awake:
            for part in FAST & self._tasks.keys():
                if not self._parts[part].absent and self._parts[part].problem is None:
                    self._tasks[part].soon()

    def close(self) -> None:
        """End everything here and there. May be called twice; can take a moment."""
        with self._lock:
            self._closed = True
        for task in (self._connecting, *self._tasks.values()):
            task.cancel()
        self._reader.close()

    def logs(self, name: str, lines: int, timeout: float) -> str:
        """The last lines of the log of a unit or container. Raises CollectorError; ValueError for one that is not listed."""
        units = self._names("units")
        if name not in units | self._names("containers"):
            raise ValueError(f"{self.machine.name} lists no unit and no container {cut(name)!r}")
        command = systemd.logs(name, lines) if name in units else docker.logs(name, lines)
        return self._reader.run(f"{command} | tail -c {LOG_BYTES}", timeout).stdout

    def restart(self, name: str) -> restart.Restarted:
        """See `Sweep.restart`."""
        with self._lock:
            if name not in self.machine.restart:
                raise ValueError(f"the settings of {self.machine.name} do not name {cut(name)!r} for a restart")
            if name in self._restarting:
                raise ValueError(f"{name} is being restarted already")
            self._restarting.add(name)
        try:
            output = self._reader.run(restart.command(name), restart.SECONDS)
        finally:
            with self._lock:
                self._restarting.discard(name)
            part: PartName = "containers" if name.startswith(restart.CONTAINER) else "units"
            if part in self._tasks:
                self._tasks[part].soon()
        done = restart.outcome(name, output)
        obstacle = next((each for each in self._obstacles if each.name == name), None)
        if obstacle is None:
            return done
        if not done.ok:
            return replace(done, next_step=obstacle.next_step) if restart.is_refusal(done.text) else done
        with self._lock:
            self._obstacles = tuple(each for each in self._obstacles if each.name != name)
        return done

    def view(self) -> MachineView:
        now = self._around.monotonic()
        with self._lock:
            parts: dict[str, Any] = {part: memory.view(now, self.machine.every(part)) for part, memory in self._parts.items()}
            retry = None if self._retry_at is None or self._halted else max(0.0, self._retry_at - now)
            return MachineView(
                name=self.machine.name,
                address=self.machine.shown_address,
                source="local" if self.machine.is_local else "ssh",
                state=self._state(any(part.stale for part in parts.values())),
                problem=self._problem,
                retry_seconds=retry,
                expected_gpus=self._expected_gpus(),
                restart=self.machine.restart,
                restart_obstacles=self._obstacles,
                **parts,
            )

    def observation(self) -> Observation:
        """How well the machine can be read, now."""
        return self._observation(self._collection())

    def _collection(self) -> Numbers:
        now = self._around.monotonic()
        with self._lock:
            known = {part: memory for part, memory in self._parts.items() if not memory.absent}
            ages = [now - (self._since if memory.read_at is None else memory.read_at) for memory in known.values()]
            fast = [memory.seconds for part, memory in known.items() if part in FAST and memory.seconds is not None]
            said = self._problem.sentence if self._problem else ""
            return collection(self._problem is not None, max(ages, default=None), max(fast, default=None), said)

    def known(self) -> dict[str, float]:
        """All metrics of the last reading of each part, and how well it can be read."""
        how = self._collection().metrics
        with self._lock:
            return {name: value for found in self._numbers.values() for name, value in found.metrics.items()} | dict(how)

    def is_readable(self, metric: str) -> bool:
        """Whether a metric would be known if there were one: its part was read at the last try, and was there to read. For a
        fault the trying is enough, and where it is not known what part it came from, the trying of all. An alert on how old
        readings are stays while there are none."""
        with self._lock:
            if metric.startswith("collection."):
                return self._problem is None
            part = part_of(metric) or self._origins.get(metric)
            wanted = [part] if part in self._parts else [] if part else list(self._parts)
            memories = [self._parts[each] for each in wanted]
            tried = self._problem is None and all(memory.at is not None and memory.problem is None for memory in memories)
            return tried and (
                metric.startswith("fault.") or all(_has_value(*pair) for pair in zip(wanted, memories, strict=True))
            )

    # Connecting

    def _connect(self) -> float | None:
        if self._connected:
            return None  # asked for twice
        door = self.machine.jump or self.machine.shown_address.rpartition("@")[2]
        if not self._around.doors.enter(door):
            return DOOR_SECONDS * (1.0 + self._around.random.random())
        try:
            self._reader.connect(CONNECT_SECONDS)
        except Exception as error:
            return self._not_connected(error)
        finally:
            self._around.doors.leave(door)
        with self._lock:
            self._connected, self._awake, self._retry_at = True, False, None
            self._generation += 1
        self._wake(self.machine.collect[:1], 0.0)
        return None

    def _not_connected(self, error: Exception) -> float | None:
        if not isinstance(error, CollectorError):
            log.exception("connecting to %s failed", self.machine.name)
        with self._lock:
            if self._closed:
                return None
            self._problem = Problem.of(error)
            self._halted = isinstance(error, AuthenticationFailed)
            wait = self._wait()
        self._around.changed()
        return None if self._halted else wait

    def _wait(self) -> float:
        self._failures += 1
        wait = back_off(self._failures, self._around.random)
        self._retry_at = self._around.monotonic() + wait
        return wait

    def _wake(self, parts: Iterable[PartName], within: float) -> None:
        for part in parts:
            self._tasks[part].soon(within * self._around.random.random())

    def _lost(self, problem: Problem, generation: int) -> None:
        """The connection is of no use any more: make another one later."""
        with self._lock:
            if self._closed or not self._connected or generation != self._generation:
                return
            self._connected, self._awake, self._problem = False, False, problem
            wait = self._wait()
        self._reader.disconnect()
        self._connecting.soon(wait)

    # Reading

    def _read(self, part: PartName) -> float | None:
        if not self._connected:
            return None
        generation, started = self._generation, self._around.monotonic()
        try:
            reading = self._reader.read(part, READ_SECONDS[part] if self._awake else FIRST_READ_SECONDS)
        except Exception as error:
            return self._failed(part, error, generation)
        at, now = self._around.clock(), self._around.monotonic()
        found = numbers(reading, self._count_gpus(reading))
        with self._lock:
            if self._closed or generation != self._generation:
                return None
            memory = self._parts[part]
            memory.good(reading, at, now, now - started)
            memory.absent = absent(part, reading)
            self._numbers[part] = found
            self._origins |= dict.fromkeys(found.details, part)
            if part == self.machine.collect[0]:
                self._problem, self._failures, self._retry_at = None, 0, None
            first, self._awake = not self._awake, True
        if first:
            self._wake(self.machine.collect[1:], SPREAD_SECONDS)
        if memory.absent:
            self._reader.rest(part)
        self._around.report(self._observation(found, at))
        self._around.changed()
        return self._next(part, reading, memory.absent)

    def _next(self, part: PartName, reading: Record, is_absent: bool) -> float:
        if is_absent:
            return ABSENT_SECONDS
        if isinstance(reading, Host) and reading.seconds is None:
            return FIRST_RATES_SECONDS * (1.0 + self._around.random.random())
        every = self.machine.every(part)
        if part in FAST and self._around.monotonic() < self._burst_until:
            return min(every, BURST_SECONDS)
        return every

    def _failed(self, part: PartName, error: Exception, generation: int) -> float | None:
        if not isinstance(error, CollectorError):
            log.exception("reading the %s of %s failed", part, self.machine.name)
        problem = Problem.of(error)
        with self._lock:
            if self._closed or generation != self._generation:
                return None
            memory = self._parts[part]
            memory.bad(problem)
            if part == self.machine.collect[0]:
                self._problem = problem
            failures = memory.failures
        # Only the host's: each new connection could leave another hung nvidia-smi there
        if not self._reader.connected or (part == "host" and failures >= PATIENCE and not self.machine.is_local):
            self._lost(problem, generation)
        self._around.changed()
        return max(self.machine.every(part), back_off(failures, self._around.random)) if self._connected else None

    def _count_gpus(self, reading: Record) -> int | None:
        """How many GPUs are expected, this reading included."""
        if isinstance(reading, Gpus) and reading.gpus is not None:
            self._gpus_seen = max(self._gpus_seen or 0, len(reading.gpus))
        return self._expected_gpus()

    def _expected_gpus(self) -> int | None:
        return self._gpus_seen if self.machine.expected_gpus is None else self.machine.expected_gpus

    def _state(self, is_stale: bool) -> MachineState:
        if self._halted:
            return "halted"
        if self._problem is not None:
            return "failing"
        if not self._parts or any(memory.at is not None for memory in self._parts.values()):
            return "stale" if is_stale else "ok"
        return "waiting"

    def _names(self, part: PartName) -> set[str]:
        with self._lock:
            memory = self._parts.get(part)
            listed = getattr(memory.value, part, None) if memory is not None else None
        return {each.name for each in listed or ()}

    def _observation(self, found: Numbers, at: float | None = None) -> Observation:
        return Observation(self.machine.name, "machine", self._around.clock() if at is None else at, found.metrics, found.details)


def _has_value(part: PartName, memory: Memory[Any]) -> bool:
    return memory.absent or getattr(memory.value, part, memory.value) is not None
