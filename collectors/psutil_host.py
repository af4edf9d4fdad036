"""This machine through psutil, as the same sample that `proc` parses: it works without /proc too. Sole importer of psutil.

Pressure and a container's memory limit are no part of psutil: on Linux they are read from `root` and parsed by `proc`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collectors import proc
from collectors.readings import Fault, Load, Memory
from collectors.samples import CpuTimes, DiskCounters, InterfaceCounters, ProcessCounters, Sample
from collectors.texts import count, cut, ratio

EXTRA_FILES = [name for name in proc.FILES if name.startswith(("/proc/pressure/", "/sys/fs/cgroup/"))]


def uptime() -> float:
    """Seconds since boot, sleep included, by a clock that does not jump."""
    clock: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def sample(*, processes: bool = False, root: Path = Path("/"), clock: Callable[[], float] = uptime) -> Sample:
    """One look. `processes` adds all processes, which costs some 50 microseconds each. A part psutil cannot give is None, with a
    fault. Never raises."""
    import psutil  # type: ignore[import-untyped]

    faults: list[Fault] = []

    def part(name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # psutil raises its own, OSError, RuntimeError and NotImplementedError, by system
            faults.append(Fault("psutil_failed", f"{name}: {cut(str(error))}", "Is /proc mounted and readable?", name))
            return None

    files = {name: _read(root / name.lstrip("/")) for name in EXTRA_FILES}
    return Sample(
        uptime_seconds=part("uptime", clock),
        cpu=part("cpu", lambda: _times(None, psutil.cpu_times())),
        cores=part("cores", lambda: tuple(_times(core, times) for core, times in enumerate(psutil.cpu_times(percpu=True)))),
        load=part("load", lambda: Load(*os.getloadavg())),
        memory=part("memory", lambda: _memory(psutil.virtual_memory(), psutil.swap_memory(), files)),
        pressures=proc.pressure(files),
        disks=part("disks", lambda: _disks(psutil.disk_io_counters(perdisk=True, nowrap=False) or {})),
        interfaces=part("interfaces", lambda: _interfaces(psutil.net_io_counters(pernic=True, nowrap=False) or {})),
        processes=part("processes", lambda: _processes(psutil)) if processes else None,
        faults=tuple(faults),
    )


def _times(core: int | None, times: Any) -> CpuTimes:
    irq = [getattr(times, name) for name in ("irq", "softirq") if hasattr(times, name)]
    return CpuTimes(
        core=core,
        user_seconds=times.user,
        nice_seconds=getattr(times, "nice", 0.0),  # not on Windows, which has none
        system_seconds=times.system,
        idle_seconds=times.idle,
        iowait_seconds=getattr(times, "iowait", None),
        irq_seconds=sum(irq) if irq else None,
        steal_seconds=getattr(times, "steal", None),
    )


def _memory(memory: Any, swap: Any, files: dict[str, str]) -> Memory:
    used = max(0, memory.total - memory.available)
    limit = count(files["/sys/fs/cgroup/memory.max"])
    return Memory(
        total_bytes=memory.total,
        available_bytes=memory.available,
        free_bytes=memory.free,
        used_bytes=used,
        used_ratio=ratio(used, memory.total),
        cached_bytes=getattr(memory, "cached", None),
        buffers_bytes=getattr(memory, "buffers", None),
        swap_total_bytes=swap.total,
        swap_used_bytes=swap.used,
        swap_used_ratio=ratio(swap.used, swap.total),
        limit_bytes=limit,
        limit_used_bytes=None if limit is None else count(files["/sys/fs/cgroup/memory.current"]),
    )


def _disks(counters: dict[str, Any]) -> tuple[DiskCounters, ...]:
    """Of psutil's devices those that `proc` takes for whole disks. It gives no queue."""
    return tuple(
        DiskCounters(
            name=name,
            reads=disk.read_count,
            read_bytes=disk.read_bytes,
            writes=disk.write_count,
            written_bytes=disk.write_bytes,
            wait_seconds=(disk.read_time + disk.write_time) / 1000,
            busy_seconds=disk.busy_time / 1000 if hasattr(disk, "busy_time") else None,
        )
        for name, disk in counters.items()
        if proc.is_disk(name, counters) and (disk.read_count or disk.write_count)
    )


def _interfaces(counters: dict[str, Any]) -> tuple[InterfaceCounters, ...]:
    return tuple(
        InterfaceCounters(
            name=name,
            received_bytes=nic.bytes_recv,
            sent_bytes=nic.bytes_sent,
            received_packets=nic.packets_recv,
            sent_packets=nic.packets_sent,
            errors=nic.errin + nic.errout,
            drops=nic.dropin + nic.dropout,
        )
        for name, nic in counters.items()
        if proc.is_interface(name)
    )


def _processes(psutil: Any) -> tuple[ProcessCounters, ...]:
    """`started_seconds` is psutil's time since the epoch: it only tells a reused pid apart."""
    found = []
    for process in psutil.process_iter(["pid", "name", "status", "cpu_times", "create_time", "memory_info", "num_threads"]):
        info = process.info
        times, memory = info["cpu_times"], info["memory_info"]
        if times is None:  # gone, or not ours to see
            continue
        found.append(
            ProcessCounters(
                pid=info["pid"],
                name=cut(info["name"] or "", 64),
                state=_STATES.get(info["status"], "?"),
                cpu_seconds=times.user + times.system,
                started_seconds=info["create_time"] or 0.0,
                memory_bytes=memory.rss if memory is not None else None,
                threads=info["num_threads"],
            )
        )
    return tuple(found)


# psutil's words for the letters of /proc/PID/stat.
_STATES = {
    "running": "R",
    "sleeping": "S",
    "disk-sleep": "D",
    "stopped": "T",
    "tracing-stop": "t",
    "zombie": "Z",
    "dead": "X",
    "idle": "I",
    "parked": "P",
}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
