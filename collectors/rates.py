"""Two samples of a host make a reading: shares and rates over the time between them. Pure; knows no clock but the host's uptime.

A counter that went back (reboot, replugged device, wrapped number) gives None, not a negative or a huge rate. Idle and iowait may
go back by a little on a healthy kernel (man 5 proc_stat), which counts as no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from collectors.readings import Core, Cpu, Disk, Host, Interface, Process
from collectors.samples import CpuTimes, DiskCounters, InterfaceCounters, ProcessCounters, Sample
from collectors.texts import ratio

TOP_PROCESSES = 15
T = TypeVar("T")
K = TypeVar("K")


def rates(previous: Sample | None, current: Sample, top: int = TOP_PROCESSES) -> Host:
    """The reading of `current`, with rates since `previous`; they are None without it, or when the host was restarted between.

    Of the processes the `top` by CPU and the `top` by memory are kept, the busiest first; their rates need processes in both
    samples, so where not every sample has them, keep the last one that had.
    """
    seconds = elapsed(previous, current)
    if previous is None or seconds is None:
        previous = None
    cores = None if current.cores is None else _cores(previous.cores if previous else None, current.cores)
    return Host(
        uptime_seconds=current.uptime_seconds,
        seconds=seconds,
        cpu=None if current.cpu is None else _cpu(previous.cpu if previous else None, current.cpu, cores),
        cores=cores,
        load=current.load,
        memory=current.memory,
        pressures=current.pressures,
        disks=_paired(previous.disks if previous else None, current.disks, _name, lambda old, new: _disk(old, new, seconds)),
        interfaces=_paired(
            previous.interfaces if previous else None, current.interfaces, _name, lambda old, new: _interface(old, new, seconds)
        ),
        processes=_processes(previous.processes if previous else None, current.processes, seconds, top),
        faults=current.faults,
    )


def elapsed(previous: Sample | None, current: Sample) -> float | None:
    """Seconds between two samples by the host's uptime; None when unknown or when the host was restarted between them."""
    if previous is None or previous.uptime_seconds is None or current.uptime_seconds is None:
        return None
    seconds = current.uptime_seconds - previous.uptime_seconds
    return seconds if seconds > 0 else None


def _cores(previous: Iterable[CpuTimes] | None, current: tuple[CpuTimes, ...]) -> tuple[Core, ...]:
    before = {times.core: times for times in previous or ()}
    found = []
    for times in current:
        cpu = _cpu(before.get(times.core), times, None)
        if times.core is not None:
            found.append(Core(times.core, cpu.busy_ratio, cpu.iowait_ratio, cpu.steal_ratio))
    return tuple(found)


def _cpu(previous: CpuTimes | None, current: CpuTimes, cores: tuple[Core, ...] | None) -> Cpu:
    """Shares of all time between; busy is everything but idle and iowait."""
    number = None if cores is None else len(cores)
    if previous is None:
        return Cpu(number, None, None, None, None, None)
    idle = max(0.0, current.idle_seconds - previous.idle_seconds)
    iowait = _grown(previous.iowait_seconds, current.iowait_seconds, may_go_back=True)
    user = _grown(previous.user_seconds + previous.nice_seconds, current.user_seconds + current.nice_seconds)
    system = _grown(previous.system_seconds, current.system_seconds)
    irq = _grown(previous.irq_seconds, current.irq_seconds)
    steal = _grown(previous.steal_seconds, current.steal_seconds)
    if user is None or system is None:
        return Cpu(number, None, None, None, None, None)
    busy = user + system + (irq or 0.0) + (steal or 0.0)
    total = busy + idle + (iowait or 0.0)
    return Cpu(number, ratio(busy, total), ratio(user, total), ratio(system, total), ratio(iowait, total), ratio(steal, total))


def _disk(previous: DiskCounters | None, current: DiskCounters, seconds: float | None) -> Disk:
    def rate(name: str) -> float | None:
        return ratio(_growth(previous, current, name), seconds)

    reads, writes = _growth(previous, current, "reads"), _growth(previous, current, "writes")
    requests = None if reads is None or writes is None else reads + writes
    busy = rate("busy_seconds")
    return Disk(
        name=current.name,
        read_bytes_per_second=rate("read_bytes"),
        written_bytes_per_second=rate("written_bytes"),
        reads_per_second=rate("reads"),
        writes_per_second=rate("writes"),
        busy_ratio=None if busy is None else min(1.0, busy),
        wait_seconds=ratio(_growth(previous, current, "wait_seconds"), requests),
        queue_length=rate("queue_seconds"),
    )


def _interface(previous: InterfaceCounters | None, current: InterfaceCounters, seconds: float | None) -> Interface:
    fields = ("received_bytes", "sent_bytes", "received_packets", "sent_packets", "errors", "drops")
    return Interface(current.name, *(ratio(_growth(previous, current, field), seconds) for field in fields))


def _processes(
    previous: tuple[ProcessCounters, ...] | None, current: tuple[ProcessCounters, ...] | None, seconds: float | None, top: int
) -> tuple[Process, ...] | None:
    def reading(old: ProcessCounters | None, new: ProcessCounters) -> Process:
        cpu = ratio(_growth(old, new, "cpu_seconds"), seconds)
        return Process(new.pid, new.name, new.state, cpu, new.memory_bytes, new.threads)

    found = _paired(previous, current, lambda process: (process.pid, process.started_seconds), reading)
    if found is None:
        return None
    by_memory = sorted(found, key=lambda process: -(process.memory_bytes or 0))[:top]
    by_cpu = sorted(found, key=lambda process: -(process.cpu_ratio or 0.0))[:top]
    return tuple(dict.fromkeys([*by_cpu, *by_memory]))


def _paired(
    previous: Iterable[T] | None, current: Iterable[T] | None, key: Callable[[T], object], make: Callable[[T | None, T], K]
) -> tuple[K, ...] | None:
    """`make(old or None, new)` for each new one."""
    if current is None:
        return None
    before = {key(item): item for item in previous or ()}
    return tuple(make(before.get(key(item)), item) for item in current)


def _name(counters: DiskCounters | InterfaceCounters) -> str:
    return counters.name


def _growth(previous: object | None, current: object, field: str) -> float | None:
    return None if previous is None else _grown(getattr(previous, field), getattr(current, field))


def _grown(previous: float | None, current: float | None, *, may_go_back: bool = False) -> float | None:
    if previous is None or current is None:
        return None
    if current < previous:
        return 0.0 if may_go_back else None
    return current - previous
