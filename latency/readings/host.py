"""This machine's processor, memory, disks and pressure from /proc, cheap enough for ten looks a second. Knows no schedule.

Each call compares with the one before; the first after a pause only remembers. A file that cannot be read leaves its metrics out.
Linux counts processor time in steps of 10 ms, so that shares over less than a tenth of a second would be mostly rounding.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from collectors import proc
from collectors.texts import cut

TOP_PROCESSES = 5
NOTEWORTHY_CPU_RATIO = 0.1  # of one core: what takes less explains nothing
_HEAD_BYTES = 1024  # holds the first line of `stat`, the sizes of `meminfo`, all of a `pressure`
_DISKS_BYTES = 32_768
_PRESSURES = ("cpu", "memory", "io")
_SOME = re.compile(rb"some avg10=([0-9.]{1,8}) .*total=([0-9]{1,20})")
_MEMORY = re.compile(rb"^(MemTotal|MemAvailable|SwapTotal|SwapFree):\s+([0-9]{1,20}) kB$", re.MULTILINE)


class BusyProcess(NamedTuple):
    """A process that used the processor between two looks; `cpu_ratio` is of one core."""

    pid: int
    name: str
    cpu_ratio: float


class _Ticks(NamedTuple):
    """All cores together since boot, in kernel ticks; guest time is within `user`."""

    busy: int
    idle: int
    iowait: int
    steal: int


class _Disk(NamedTuple):
    """One disk since boot: sectors, milliseconds, requests."""

    read: int
    written: int
    busy_ms: int
    wait_ms: int
    queue_ms: int
    requests: int


class _Look(NamedTuple):
    at: float
    ticks: _Ticks | None
    disks: Mapping[str, _Disk]
    ours: float


class HostReader:
    """`root` is where `proc/` is found, `process_seconds` the processor time of this process. Used by one thread."""

    def __init__(
        self, root: Path = Path("/"), process_seconds: Callable[[], float] = time.process_time, cores: int | None = None
    ) -> None:
        self._proc = root / "proc"
        self._process_seconds = process_seconds
        self._cores = cores or os.cpu_count() or 1
        self._open: dict[str, int] = {}
        self.forget()

    def close(self) -> None:
        """Close the files; the next look opens them again."""
        for file in self._open.values():
            os.close(file)
        self._open = {}

    def forget(self) -> None:
        """Compare with nothing: what was counted during a pause belongs to no query."""
        self._last: _Look | None = None
        self._disks: frozenset[str] | None = None
        self._stalls: tuple[float, Mapping[str, int]] | None = None
        self._processes: tuple[float, dict[tuple[int, bytes], int]] | None = None

    def fast(self, now: float) -> dict[str, float]:
        """Shares of processor and disks since the call before; `now` is of a clock that does not jump."""
        disks = self._disk_counters(self._read("diskstats", _DISKS_BYTES))
        look = _Look(now, _ticks(self._read("stat")), disks, self._process_seconds())
        last, self._last = self._last, look
        if last is None or now <= last.at:
            return {}
        seconds = now - last.at
        found = {"process.cpu_ratio": max(0.0, (look.ours - last.ours) / seconds)}
        if last.ticks is not None and look.ticks is not None:
            found |= _cpu_shares(last.ticks, look.ticks)
        for name in look.disks.keys() & last.disks.keys():
            found |= _disk_rates(name, last.disks[name], look.disks[name], seconds)
        return found

    def others(self, found: Mapping[str, float]) -> float:
        """How many cores others than this process kept busy, by what `fast` gave; 0 when it is not known."""
        busy = found.get("cpu.busy_ratio", 0.0) - found.get("cpu.steal_ratio", 0.0)
        return max(0.0, busy * self._cores - found.get("process.cpu_ratio", 0.0))

    def slow(self, now: float) -> dict[str, float]:
        """Memory, pressure over 10 s as the kernel has it, and as `some_ratio` the pressure since the call before."""
        found = {"cpu.cores": float(self._cores)} | _memory(self._read("meminfo"))
        totals: dict[str, int] = {}
        for name in _PRESSURES:
            if match := _SOME.match(self._read(f"pressure/{name}")):
                found[f"pressure.{name}.some_10s_ratio"] = float(match[1]) / 100
                totals[name] = int(match[2])
        last, self._stalls = self._stalls, (now, totals)
        if last is not None and now > last[0]:  # averages over 10 s tell nothing of a query of one
            for name in totals.keys() & last[1].keys():
                stalled_seconds = max(0, totals[name] - last[1][name]) / 1e6
                found[f"pressure.{name}.some_ratio"] = min(1.0, stalled_seconds / (now - last[0]))
        return found

    def busy_processes(self, now: float) -> tuple[BusyProcess, ...] | None:
        """Who else used the processor since the call before, the busiest first; None at the first call. Costs some 10
        microseconds for each process that there is."""
        ticks = self._all_ticks()
        before, self._processes = self._processes, (now, ticks)
        if before is None or now <= before[0]:
            return None
        seconds = now - before[0]
        least = NOTEWORTHY_CPU_RATIO * proc.TICKS_PER_SECOND * seconds
        grown = ((key, used - before[1].get(key, used)) for key, used in ticks.items() if key[0] != os.getpid())
        top = sorted((each for each in grown if each[1] >= least), key=lambda each: -each[1])[:TOP_PROCESSES]
        per_second = proc.TICKS_PER_SECOND * seconds
        return tuple(BusyProcess(pid, cut(name.decode("utf-8", "replace"), 64), used / per_second) for (pid, name), used in top)

    def rest_processes(self) -> None:
        """The next look at processes is a first one."""
        self._processes = None

    def _disk_counters(self, text: bytes) -> dict[str, _Disk]:
        """Of whole disks that were ever used; which ones those are is found out once, since telling them apart costs more than
        reading them."""
        if self._disks is None:
            self._disks = frozenset(each.name for each in proc.disk_counters(text.decode("utf-8", "replace")))
        found = {}
        for line in text.split(b"\n"):
            words = line.split()[:14]
            if len(words) >= 14 and (name := words[2].decode("utf-8", "replace")) in self._disks:
                reads, _, read, read_ms, writes, _, written, written_ms, _, busy_ms, queue_ms = map(int, words[3:14])
                found[name] = _Disk(read, written, busy_ms, read_ms + written_ms, queue_ms, reads + writes)
        return found

    def _all_ticks(self) -> dict[tuple[int, bytes], int]:
        """(pid, name) -> ticks of processor time, by hand: a full parse of each process would cost five times as much."""
        found = {}
        try:
            names = os.listdir(self._proc)
        except OSError:
            return {}
        for pid in names:
            if "0" <= pid[0] <= "9":
                head, _, tail = self._stat(pid).rpartition(b") ")
                fields = tail.split(b" ", 13)
                if len(fields) == 14:
                    found[int(pid), head.partition(b" (")[2]] = int(fields[11]) + int(fields[12])
        return found

    def _read(self, name: str, size: int = _HEAD_BYTES) -> bytes:
        """The beginning of a file of /proc, as the kernel writes it anew each time; empty when it cannot be read. Kept open:
        opening and closing it would double what a look costs."""
        try:
            if name not in self._open:
                self._open[name] = os.open(f"{self._proc}/{name}", os.O_RDONLY)
            return os.pread(self._open[name], size, 0)
        except OSError:
            return b""

    def _stat(self, pid: str) -> bytes:
        try:
            file = os.open(f"{self._proc}/{pid}/stat", os.O_RDONLY)
        except OSError:  # it ended in between
            return b""
        try:
            return os.read(file, 1024)
        except OSError:
            return b""
        finally:
            os.close(file)


def _memory(text: bytes) -> dict[str, float]:
    """`used` is total minus available, as `collectors.proc` counts it."""
    sizes = {name: int(size) for name, size in _MEMORY.findall(text)}
    pairs = (("memory.used_ratio", b"MemTotal", b"MemAvailable"), ("memory.swap_used_ratio", b"SwapTotal", b"SwapFree"))
    return {
        metric: max(0, sizes[total] - sizes[free]) / sizes[total]
        for metric, total, free in pairs
        if sizes.get(total) and free in sizes
    }


def _ticks(text: bytes) -> _Ticks | None:
    """The first line of /proc/stat: `cpu user nice system idle iowait irq softirq steal …`."""
    words = text.partition(b"\n")[0].split()[1:9]
    if len(words) < 8:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, words)
    return _Ticks(user + nice + system + irq + softirq + steal, idle, iowait, steal)


def _cpu_shares(old: _Ticks, new: _Ticks) -> dict[str, float]:
    """As `collectors.rates` counts them: iowait is idle, stolen time is busy; idle and iowait may go back by a little."""
    busy, idle, iowait, steal = (max(0, after - before) for before, after in zip(old, new, strict=True))
    total = busy + idle + iowait
    return (
        {}
        if total == 0
        else {
            "cpu.busy_ratio": busy / total,
            "cpu.iowait_ratio": iowait / total,
            "cpu.steal_ratio": steal / total,
        }
    )


def _disk_rates(name: str, old: _Disk, new: _Disk, seconds: float) -> dict[str, float]:
    if any(after < before for before, after in zip(old, new, strict=True)):
        return {}  # another disk under the same name
    requests = new.requests - old.requests
    found = {
        f"disk.{name}.busy_ratio": min(1.0, (new.busy_ms - old.busy_ms) / 1000 / seconds),
        f"disk.{name}.read_bytes_per_second": (new.read - old.read) * proc.SECTOR_BYTES / seconds,
        f"disk.{name}.written_bytes_per_second": (new.written - old.written) * proc.SECTOR_BYTES / seconds,
        f"disk.{name}.queue_length": (new.queue_ms - old.queue_ms) / 1000 / seconds,
    }
    return found if not requests else found | {f"disk.{name}.wait_seconds": (new.wait_ms - old.wait_ms) / 1000 / requests}
