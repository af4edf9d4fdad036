"""One look at a host: counters since boot, of which two make rates. Knows neither where it was read nor how."""

from __future__ import annotations

from dataclasses import dataclass

from collectors.readings import Fault, Load, Memory, Pressure, Record


@dataclass(frozen=True, slots=True)
class CpuTimes(Record):
    """Seconds since boot of all cores (`core` None) or of one. Guest time is in `user_seconds`, as the kernel has it."""

    core: int | None
    user_seconds: float
    nice_seconds: float
    system_seconds: float
    idle_seconds: float
    iowait_seconds: float | None = None
    irq_seconds: float | None = None
    steal_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DiskCounters(Record):
    """One block device since boot. `busy_seconds` is the time with at least one request under way."""

    name: str
    reads: int
    read_bytes: int
    writes: int
    written_bytes: int
    wait_seconds: float | None = None
    busy_seconds: float | None = None
    queue_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class InterfaceCounters(Record):
    """One network interface since boot."""

    name: str
    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int
    errors: int
    drops: int


@dataclass(frozen=True, slots=True)
class ProcessCounters(Record):
    """One process. `started_seconds` (after boot) tells a reused pid apart."""

    pid: int
    name: str
    state: str
    cpu_seconds: float
    started_seconds: float
    memory_bytes: int | None
    threads: int | None


@dataclass(frozen=True, slots=True)
class Sample(Record):
    """One look at a host. `uptime_seconds` is the host's own clock, which does not jump; None parts were not there to read."""

    uptime_seconds: float | None
    cpu: CpuTimes | None
    cores: tuple[CpuTimes, ...] | None
    load: Load | None
    memory: Memory | None
    pressures: tuple[Pressure, ...] | None
    disks: tuple[DiskCounters, ...] | None
    interfaces: tuple[InterfaceCounters, ...] | None
    processes: tuple[ProcessCounters, ...] | None = None
    faults: tuple[Fault, ...] = ()
