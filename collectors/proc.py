"""CPU, load, memory, pressure, disks, network, uptime and processes of a Linux host, from the texts of /proc.

`COMMAND` prints the files in one process (`tail` puts `==> name <==` before each), `COMMAND_WITH_PROCESSES` all processes too,
which costs more. `parse(text)` makes a `Sample`; rates need two of them. Knows no transport. A file that is not there leaves its
part None with a fault.
"""

from __future__ import annotations

import re
from collections.abc import Container

from collectors.readings import Fault, Load, Memory, Pressure
from collectors.samples import CpuTimes, DiskCounters, InterfaceCounters, ProcessCounters, Sample
from collectors.texts import count, cut, lines, number, ratio

FILES = (
    "/proc/uptime",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/pressure/cpu",
    "/proc/pressure/memory",
    "/proc/pressure/io",
    "/proc/diskstats",
    "/proc/net/dev",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory.current",
)
COMMAND = f"tail -n +1 {' '.join(FILES)} 2>/dev/null"
COMMAND_WITH_PROCESSES = (
    f"{COMMAND}; printf '\\n==> page <==\\n'; sed -n '/^KernelPageSize/{{p;q;}}' /proc/self/smaps 2>/dev/null"
    "; printf '\\n==> processes <==\\n'; cat /proc/[0-9]*/stat 2>/dev/null"
)

TICKS_PER_SECOND = 100.0  # USER_HZ: what Linux shows to programs on every architecture in use
SECTOR_BYTES = 512  # of /proc/diskstats, whatever the device's own
# Not disks of their own: memory, loops, optical and floppy drives.
_NO_DISKS = re.compile(r"(loop|ram|zram|sr|fd)[0-9]+")
# One end of a container's or a virtual machine's cable: there can be hundreds, and their bytes are counted on the bridge.
_NO_INTERFACES = re.compile(r"lo|(veth|cali|lxc|tap|vnet|ifb|dummy|tunl).*")
_HEADER = re.compile(r"^==> (.+) <==$", re.MULTILINE)


def parse(text: str) -> Sample:
    """The sample in what a COMMAND printed. Never raises; what is missing is None."""
    files = split(text)
    cpu, cores = cpu_times(files.get("/proc/stat", ""))
    uptime = number(_word(files.get("/proc/uptime", ""), 0))
    load = load_average(files.get("/proc/loadavg", ""))
    memory = memory_of(files)
    pressures = pressure(files)
    disks = disk_counters(files["/proc/diskstats"]) if "/proc/diskstats" in files else None
    interfaces = interface_counters(files["/proc/net/dev"]) if "/proc/net/dev" in files else None
    parts = {"uptime": uptime, "stat": cpu, "loadavg": load, "meminfo": memory, "diskstats": disks, "net/dev": interfaces}
    faults = tuple(_missing(f"/proc/{name}") for name, part in parts.items() if part is None)
    if pressures is None:
        faults += (_NO_PRESSURE,)
    processes = process_counters(files["processes"], files.get("page", "")) if "processes" in files else None
    return Sample(uptime, cpu, cores, load, memory, pressures, disks, interfaces, processes, faults)


_NO_PRESSURE = Fault(
    "no_pressure",
    "no /proc/pressure",
    "Pressure needs Linux 4.20 or newer with PSI on (kernel parameter psi=1).",
    severity="note",
)


def _missing(file: str) -> Fault:
    return Fault("proc_missing", f"{file} could not be read", "Is it Linux, and may this user read /proc?", subject=file)


def split(text: str) -> dict[str, str]:
    """File name -> its text, from the output of `tail -n +1 FILES`."""
    parts = _HEADER.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=False))


def cpu_times(text: str) -> tuple[CpuTimes | None, tuple[CpuTimes, ...] | None]:
    """(all cores together, each core) of /proc/stat. A core that is offline has no line."""
    total: CpuTimes | None = None
    cores: list[CpuTimes] = []
    for line in lines(text):
        words = line.split()
        if not words or not (match := re.fullmatch(r"cpu([0-9]{0,5})", words[0])):
            continue
        times = _times(int(match[1]) if match[1] else None, words[1:])
        if times is not None and times.core is None:
            total = times
        elif times is not None:
            cores.append(times)
    return total, tuple(cores) if cores else None


def _times(core: int | None, words: list[str]) -> CpuTimes | None:
    ticks = [count(word) for word in words[:8]]
    seconds = [None if tick is None else tick / TICKS_PER_SECOND for tick in ticks] + [None] * 8
    user, nice, system, idle = seconds[:4]
    if user is None or nice is None or system is None or idle is None:
        return None
    irqs = [irq for irq in seconds[5:7] if irq is not None]
    return CpuTimes(core, user, nice, system, idle, seconds[4], sum(irqs) if irqs else None, seconds[7])


def load_average(text: str) -> Load | None:
    """The three averages, and the running and all tasks, of /proc/loadavg."""
    one, five, fifteen = (number(_word(text, index)) for index in range(3))
    if one is None or five is None or fifteen is None:
        return None
    running, _, tasks = _word(text, 3).partition("/")
    return Load(one, five, fifteen, count(running), count(tasks))


def memory_of(files: dict[str, str]) -> Memory | None:
    """Memory and swap of /proc/meminfo, and the control group's limit where there is one."""
    kilobytes = dict(re.findall(r"^([A-Za-z]+):\s+([0-9]{1,20}) kB$", files.get("/proc/meminfo", ""), re.MULTILINE))
    if "MemTotal" not in kilobytes:
        return None
    sizes = {name: int(value) * 1024 for name, value in kilobytes.items()}
    total, available = sizes["MemTotal"], sizes.get("MemAvailable")
    used = None if available is None else max(0, total - available)
    swap_total, swap_free = sizes.get("SwapTotal"), sizes.get("SwapFree")
    swap_used = None if swap_total is None or swap_free is None else max(0, swap_total - swap_free)
    limit = count(files.get("/sys/fs/cgroup/memory.max", ""))  # "max" is no limit
    return Memory(
        total_bytes=total,
        available_bytes=available,
        free_bytes=sizes.get("MemFree"),
        used_bytes=used,
        used_ratio=ratio(used, total),
        cached_bytes=sizes.get("Cached"),
        buffers_bytes=sizes.get("Buffers"),
        swap_total_bytes=swap_total,
        swap_used_bytes=swap_used,
        swap_used_ratio=ratio(swap_used, swap_total),
        limit_bytes=limit,
        limit_used_bytes=None if limit is None else count(files.get("/sys/fs/cgroup/memory.current", "")),
    )


def pressure(files: dict[str, str]) -> tuple[Pressure, ...] | None:
    """PSI of cpu, memory and io; None without it."""
    found = []
    for resource in ("cpu", "memory", "io"):
        text = files.get(f"/proc/pressure/{resource}", "")
        some, full = _averages("some", text), _averages("full", text)
        if some[0] is not None:
            found.append(Pressure(resource, *some, *full))
    return tuple(found) if found else None


def _averages(which: str, text: str) -> tuple[float | None, float | None, float | None]:
    match = re.search(rf"^{which} avg10=(\S+) avg60=(\S+) avg300=(\S+)", text, re.MULTILINE)
    if not match:
        return None, None, None
    ten, sixty, three_hundred = (ratio(number(value), 100.0) for value in match.groups())
    return ten, sixty, three_hundred


def disk_counters(text: str) -> tuple[DiskCounters, ...]:
    """Whole devices of /proc/diskstats: partitions, loops and memory disks are left out, as are devices never used."""
    rows = {}
    for line in lines(text):
        words = line.split()
        fields = [count(word) for word in words[3:14]]
        if len(fields) == 11 and None not in fields:
            rows[words[2]] = [value for value in fields if value is not None]
    return tuple(_disk(name, row) for name, row in rows.items() if is_disk(name, rows) and (row[0] or row[4]))


def is_disk(name: str, names: Container[str]) -> bool:
    """Whether `name` is a whole disk: no loop and no memory disk, and no partition of another of `names` (sda1 of sda, nvme0n1p2
    of nvme0n1). A lone xvda1 is a disk: some clouds show no more."""
    if _NO_DISKS.fullmatch(name):
        return False
    base = name.rstrip("0123456789")
    if base == name:
        return True
    whole = base[:-1] if base.endswith("p") and base[:-1][-1:].isdigit() else base
    return whole not in names


def _disk(name: str, fields: list[int]) -> DiskCounters:
    reads, _, read_sectors, read_ms, writes, _, written_sectors, written_ms, _, busy_ms, queue_ms = fields
    return DiskCounters(
        name=cut(name),
        reads=reads,
        read_bytes=read_sectors * SECTOR_BYTES,
        writes=writes,
        written_bytes=written_sectors * SECTOR_BYTES,
        wait_seconds=(read_ms + written_ms) / 1000,
        busy_seconds=busy_ms / 1000,
        queue_seconds=queue_ms / 1000,
    )


def interface_counters(text: str) -> tuple[InterfaceCounters, ...]:
    """Interfaces of /proc/net/dev, without the loopback and without the ends of containers' cables."""
    found = []
    for line in lines(text):
        name, colon, rest = line.rpartition(":")  # an alias has a colon in its name; a number may follow without a space
        fields = [value for value in map(count, rest.split()) if value is not None]
        name = name.strip()
        if colon and len(fields) == 16 and is_interface(name):
            errors, drops = fields[2] + fields[10], fields[3] + fields[11]
            found.append(InterfaceCounters(cut(name), fields[0], fields[8], fields[1], fields[9], errors, drops))
    return tuple(found)


def is_interface(name: str) -> bool:
    """Whether an interface is worth a reading: not the loopback, not the end of a container's cable."""
    return not _NO_INTERFACES.fullmatch(name)


def process_counters(text: str, page: str = "") -> tuple[ProcessCounters, ...] | None:
    """All processes of the lines of /proc/*/stat; `page` is the line `KernelPageSize: 4 kB`, without it memory is None. None
    where no line could be read: there is always at least the reader's own process."""
    match = re.search(r"KernelPageSize:\s+([0-9]{1,9}) kB", page)
    page_bytes = int(match[1]) * 1024 if match else None
    found = [process for line in lines(text) if (process := _process(line, page_bytes)) is not None]
    return tuple(found) if found else None


def _process(line: str, page_bytes: int | None) -> ProcessCounters | None:
    """The name stands in parentheses and may hold spaces and parentheses: read from both ends."""
    head, _, tail = line.rpartition(") ")
    pid_text, _, name = head.partition(" (")
    fields = tail.split()
    pid = count(pid_text)
    if pid is None or len(fields) < 22:
        return None
    user, system, threads, started, pages = (count(fields[index]) for index in (11, 12, 17, 19, 21))
    if user is None or system is None or started is None:
        return None
    memory = None if page_bytes is None or pages is None else pages * page_bytes
    cpu_seconds = (user + system) / TICKS_PER_SECOND
    return ProcessCounters(pid, cut(name, 64), fields[0][:1], cpu_seconds, started / TICKS_PER_SECOND, memory, threads)


def _word(text: str, index: int) -> str:
    words = text.split()
    return words[index] if index < len(words) else ""
