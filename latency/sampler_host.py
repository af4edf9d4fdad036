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
from collectors.rates import rates
from collectors.readings import metrics
from collectors.samples import Sample

FAST_FIELDS = frozenset(
    {"busy_ratio", "iowait_ratio", "steal_ratio", "read_bytes_per_second", "written_bytes_per_second", "wait_seconds"}
)
TOP_PROCESSES = 5
NOTEWORTHY_CPU_RATIO = 0.1  # of one core: what takes less explains nothing
_READ_BYTES = 1 << 20
_PRESSURES = ("cpu", "memory", "io")
_TOTAL = re.compile(r"^some .*total=([0-9]{1,20})", re.MULTILINE)


class BusyProcess(NamedTuple):
    """A process that used the processor between two looks; `cpu_ratio` is of one core."""

    pid: int
    name: str
    cpu_ratio: float


class HostReader:
    """`root` is where `proc/` is found, `process_seconds` the processor time of this process. Used by one thread."""

    def __init__(
        self, root: Path = Path("/"), process_seconds: Callable[[], float] = time.process_time, cores: int | None = None
    ) -> None:
        self._proc = root / "proc"
        self._process_seconds = process_seconds
        self._cores = cores or os.cpu_count() or 1
        self.forget()

    def forget(self) -> None:
        """Compare with nothing: what was counted during a pause belongs to no query."""
        self._sample: Sample | None = None
        self._ours: tuple[float, float] | None = None
        self._stalls: tuple[float, Mapping[str, int]] | None = None
        self._ticks: tuple[float, dict[tuple[int, str], float]] | None = None

    def fast(self, now: float) -> dict[str, float]:
        """Shares of processor and disks since the call before; `now` is of a clock that does not jump."""
        sample = self._look(now)
        host = rates(self._sample, sample)
        self._sample = sample
        found = {name: value for name, value in metrics(host).items() if name.rpartition(".")[2] in FAST_FIELDS}
        ours = self._our_share(now)
        return found if ours is None else found | {"process.cpu_ratio": ours}

    def others(self, found: Mapping[str, float]) -> float:
        """How many cores others than this process kept busy, by what `fast` gave; 0 when it is not known."""
        busy = found.get("cpu.busy_ratio", 0.0) - found.get("cpu.steal_ratio", 0.0)
        return max(0.0, busy * self._cores - found.get("process.cpu_ratio", 0.0))

    def slow(self, now: float) -> dict[str, float]:
        """Memory, pressure over 10 s as the kernel has it, and as `some_ratio` the pressure since the call before."""
        files = {"/proc/meminfo": self._text("meminfo")}
        files |= {f"/proc/pressure/{name}": self._text(f"pressure/{name}") for name in _PRESSURES}
        memory = proc.memory_of(files)
        found = {"cpu.cores": float(self._cores)}
        if memory is not None and memory.used_ratio is not None:
            found["memory.used_ratio"] = memory.used_ratio
        if memory is not None and memory.swap_used_ratio is not None:
            found["memory.swap_used_ratio"] = memory.swap_used_ratio
        for pressure in proc.pressure(files) or ():
            if pressure.some_10s_ratio is not None:
                found[f"pressure.{pressure.resource}.some_10s_ratio"] = pressure.some_10s_ratio
        return found | self._stalled(now, files)

    def busy_processes(self, now: float) -> tuple[BusyProcess, ...] | None:
        """Who else used the processor since the call before, the busiest first; None at the first call. Costs some 10
        microseconds for each process that there is."""
        ticks = self._all_ticks()
        before, self._ticks = self._ticks, (now, ticks)
        if before is None or now <= before[0]:
            return None
        seconds = now - before[0]
        found = [
            BusyProcess(pid, name, (ticks[pid, name] - before[1][pid, name]) / seconds)
            for pid, name in ticks.keys() & before[1].keys()
            if pid != os.getpid()
        ]
        top = sorted((each for each in found if each.cpu_ratio >= NOTEWORTHY_CPU_RATIO), key=lambda each: -each.cpu_ratio)
        return tuple(top[:TOP_PROCESSES])

    def rest_processes(self) -> None:
        """The next look at processes is a first one."""
        self._ticks = None

    def _look(self, now: float) -> Sample:
        first_line = self._text("stat").partition("\n")[0]
        disks = proc.disk_counters(self._text("diskstats"))
        return Sample(now, proc.cpu_times(first_line)[0], None, None, None, None, disks, None)

    def _our_share(self, now: float) -> float | None:
        used = self._process_seconds()
        before, self._ours = self._ours, (now, used)
        return None if before is None or now <= before[0] else max(0.0, (used - before[1]) / (now - before[0]))

    def _stalled(self, now: float, files: Mapping[str, str]) -> dict[str, float]:
        """Growth of PSI's totals (microseconds): averages over 10 s tell nothing of a query of one."""
        matches = {name: _TOTAL.search(files[f"/proc/pressure/{name}"]) for name in _PRESSURES}
        totals = {name: int(match[1]) for name, match in matches.items() if match}
        before, self._stalls = self._stalls, (now, totals)
        if before is None or now <= before[0]:
            return {}
        known = totals.keys() & before[1].keys()
        return {
            f"pressure.{name}.some_ratio": min(1.0, max(0, totals[name] - before[1][name]) / 1e6 / (now - before[0]))
            for name in known
        }

    def _all_ticks(self) -> dict[tuple[int, str], float]:
        """(pid, name) -> processor seconds, by hand: a full parse of each process would cost five times as much."""
        found = {}
        try:
            names = os.listdir(self._proc)
        except OSError:
            return {}
        for pid in names:
            if not pid.isdigit():
                continue
            head, _, tail = self._text(f"{pid}/stat").rpartition(") ")
            fields = tail.split(" ", 13)
            if len(fields) == 14 and fields[11].isdigit() and fields[12].isdigit():
                name = head.partition(" (")[2]
                found[int(pid), name] = (int(fields[11]) + int(fields[12])) / proc.TICKS_PER_SECOND
        return found

    def _text(self, name: str) -> str:
        """A file of /proc in one read, as the kernel writes it; empty when it cannot be read."""
        try:
            file = os.open(self._proc / name, os.O_RDONLY)
        except OSError:
            return ""
        try:
            return os.read(file, _READ_BYTES).decode("utf-8", "replace")
        except OSError:  # the process ended in between
            return ""
        finally:
            os.close(file)
