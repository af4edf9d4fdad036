"""node_exporter's metrics as readings of a host and its filesystems. Pure; names as of node_exporter 1.x."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from collectors.readings import Cpu, Disk, Filesystem, Filesystems, Host, Interface, Load, Memory, Pressure
from collectors.vllm_metrics import Row

MEMORY = ("MemTotal", "MemAvailable", "MemFree", "Cached", "Buffers", "SwapTotal", "SwapFree")
FILESYSTEM = ("size_bytes", "free_bytes", "avail_bytes", "files", "files_free", "readonly")
GAUGES = (
    "node_load1",
    "node_load5",
    "node_load15",
    "node_procs_running",
    "node_time_seconds",
    "node_boot_time_seconds",
    *(f"node_memory_{name}_bytes" for name in MEMORY),
    *(f"node_filesystem_{name}" for name in FILESYSTEM),
)
# Our column ← its counter.
DISK = {
    "read_bytes_per_second": "node_disk_read_bytes_total",
    "written_bytes_per_second": "node_disk_written_bytes_total",
    "reads_per_second": "node_disk_reads_completed_total",
    "writes_per_second": "node_disk_writes_completed_total",
    "busy_ratio": "node_disk_io_time_seconds_total",
    "queue_length": "node_disk_io_time_weighted_seconds_total",
    "read_wait": "node_disk_read_time_seconds_total",
    "write_wait": "node_disk_write_time_seconds_total",
}
NETWORK = {
    "received_bytes_per_second": "node_network_receive_bytes_total",
    "sent_bytes_per_second": "node_network_transmit_bytes_total",
    "received_packets_per_second": "node_network_receive_packets_total",
    "sent_packets_per_second": "node_network_transmit_packets_total",
    "receive_errors": "node_network_receive_errs_total",
    "transmit_errors": "node_network_transmit_errs_total",
    "receive_drops": "node_network_receive_drop_total",
    "transmit_drops": "node_network_transmit_drop_total",
}
PRESSURE = {
    "cpu.some": "node_pressure_cpu_waiting_seconds_total",
    "memory.some": "node_pressure_memory_waiting_seconds_total",
    "memory.full": "node_pressure_memory_stalled_seconds_total",
    "io.some": "node_pressure_io_waiting_seconds_total",
    "io.full": "node_pressure_io_stalled_seconds_total",
}
NO_DISKS = "loop.+|ram.+|sr[0-9]+|fd[0-9]+|zram.+"
NO_INTERFACES = "lo|veth.*|docker.*|br-.*|cni.*|cali.*|flannel.*|virbr.*"
NOT_REAL = "tmpfs devtmpfs overlay squashfs ramfs proc sysfs cgroup cgroup2 nsfs autofs tracefs fuse.lxcfs efivarfs"
NO_FILESYSTEMS = frozenset(NOT_REAL.split())


def rate_queries(label: str, window_seconds: int) -> dict[str, str]:
    """PromQL by tag. CPU time is added over the cores: hundreds of machines with hundreds of cores are not sent one by one."""
    window = f"[{window_seconds}s]"
    queries = {
        "cpu": f"sum by ({label}, mode) (rate(node_cpu_seconds_total{window}))",
        "cores": f'count by ({label}) (node_cpu_seconds_total{{mode="idle"}})',
    }
    for column, name in DISK.items():
        queries[f"disk.{column}"] = f'rate({name}{{device!~"{NO_DISKS}"}}{window})'
    for column, name in NETWORK.items():
        queries[f"network.{column}"] = f'rate({name}{{device!~"{NO_INTERFACES}"}}{window})'
    for column, name in PRESSURE.items():
        queries[f"pressure.{column}"] = f"rate({name}[1m])"
    return queries


def host(gauges: Iterable[Row], rates: Iterable[Row], seconds: float) -> Host:
    """The reading of one machine. Cores one by one, processes, and averages over other spans than ours are not known."""
    value = {name: number for name, labels, number in gauges if "mountpoint" not in labels}
    rates = list(rates)
    boot, now = value.get("node_boot_time_seconds"), value.get("node_time_seconds")
    return Host(
        uptime_seconds=None if boot is None or now is None else now - boot,
        seconds=seconds if rates else None,
        cpu=_cpu(rates),
        cores=None,
        load=_load(value),
        memory=_memory(value),
        pressures=_pressures(rates),
        disks=_disks(rates),
        interfaces=_interfaces(rates),
        processes=None,
    )


def filesystems(gauges: Iterable[Row]) -> Filesystems:
    """Real filesystems by mount point; `used_ratio` as `df` has it."""
    found: dict[str, dict[str, float]] = {}
    about: dict[str, Mapping[str, str]] = {}
    for name, labels, number in gauges:
        mount = labels.get("mountpoint")
        if mount is not None and (mount == "/" or labels.get("fstype") not in NO_FILESYSTEMS):
            found.setdefault(mount, {})[name.removeprefix("node_filesystem_")] = number
            about[mount] = labels
    first: dict[str, str] = {}  # device -> the shortest path: bind mounts count once
    for mount in sorted(found, key=lambda mount: (len(mount), mount)):
        first.setdefault(about[mount].get("device") or mount, mount)
    return Filesystems(tuple(_filesystem(mount, found[mount], about[mount]) for mount in sorted(first.values())))


def _filesystem(mount: str, value: Mapping[str, float], labels: Mapping[str, str]) -> Filesystem:
    total, free, available = (_whole(value.get(name)) for name in ("size_bytes", "free_bytes", "avail_bytes"))
    inodes, inodes_free = _whole(value.get("files")), _whole(value.get("files_free"))
    used = None if total is None or free is None else total - free
    inodes_used = None if not inodes or inodes_free is None else inodes - inodes_free
    read_only = value.get("readonly")
    return Filesystem(
        mount=mount,
        device=labels.get("device", ""),
        type=labels.get("fstype"),
        total_bytes=total,
        used_bytes=used,
        available_bytes=available,
        used_ratio=None if used is None or available is None else _share(used, used + available),
        inodes_total=inodes or None,
        inodes_used=inodes_used,
        inodes_used_ratio=None if inodes_used is None else _share(inodes_used, inodes),
        read_only=None if read_only is None else read_only > 0,
    )


def _cpu(rates: Iterable[Row]) -> Cpu | None:
    mode = {labels.get("mode", ""): number for tag, labels, number in rates if tag == "cpu"}
    cores = next((int(number) for tag, _, number in rates if tag == "cores"), None)
    total = sum(mode.values())
    if total <= 0:
        return None if cores is None else Cpu(cores, None, None, None, None, None)
    share = {name: seconds / total for name, seconds in mode.items()}
    return Cpu(
        cores=cores,
        busy_ratio=1.0 - share.get("idle", 0.0) - share.get("iowait", 0.0),
        user_ratio=share.get("user", 0.0) + share.get("nice", 0.0),
        system_ratio=share.get("system"),
        iowait_ratio=share.get("iowait"),
        steal_ratio=share.get("steal"),
    )


def _load(value: Mapping[str, float]) -> Load | None:
    one, five, fifteen = (value.get(f"node_load{minutes}") for minutes in (1, 5, 15))
    if one is None or five is None or fifteen is None:
        return None
    return Load(one, five, fifteen, running=_whole(value.get("node_procs_running")))


def _memory(value: Mapping[str, float]) -> Memory | None:
    total, available, free, cached, buffers, swap, swap_free = (_whole(value.get(f"node_memory_{name}_bytes")) for name in MEMORY)
    if total is None:
        return None
    used = None if available is None else total - available
    swap_used = None if swap is None or swap_free is None else swap - swap_free
    return Memory(
        total_bytes=total,
        available_bytes=available,
        free_bytes=free,
        used_bytes=used,
        used_ratio=None if used is None else _share(used, total),
        cached_bytes=cached,
        buffers_bytes=buffers,
        swap_total_bytes=swap,
        swap_used_bytes=swap_used,
        swap_used_ratio=None if swap_used is None else _share(swap_used, swap),
    )


def _pressures(rates: Iterable[Row]) -> tuple[Pressure, ...] | None:
    value = {tag.removeprefix("pressure."): number for tag, _, number in rates if tag.startswith("pressure.")}
    found = [
        Pressure(resource, None, value[f"{resource}.some"], None, full_60s_ratio=value.get(f"{resource}.full"))
        for resource in ("cpu", "memory", "io")
        if f"{resource}.some" in value
    ]
    return tuple(found) or None


def _disks(rates: Iterable[Row]) -> tuple[Disk, ...] | None:
    found = _by_device(rates, "disk.")
    return tuple(_disk(name, value) for name, value in sorted(found.items())) or None


def _disk(name: str, value: Mapping[str, float]) -> Disk:
    requests = value.get("reads_per_second", 0.0) + value.get("writes_per_second", 0.0)
    waited = _sum(value.get("read_wait"), value.get("write_wait"))
    busy = value.get("busy_ratio")
    return Disk(
        name,
        value.get("read_bytes_per_second"),
        value.get("written_bytes_per_second"),
        value.get("reads_per_second"),
        value.get("writes_per_second"),
        busy_ratio=None if busy is None else min(1.0, busy),
        wait_seconds=waited / requests if waited is not None and requests > 0 else None,
        queue_length=value.get("queue_length"),
    )


def _interfaces(rates: Iterable[Row]) -> tuple[Interface, ...] | None:
    found = _by_device(rates, "network.")
    return tuple(_interface(name, value) for name, value in sorted(found.items())) or None


def _interface(name: str, value: Mapping[str, float]) -> Interface:
    return Interface(
        name,
        value.get("received_bytes_per_second"),
        value.get("sent_bytes_per_second"),
        value.get("received_packets_per_second"),
        value.get("sent_packets_per_second"),
        errors_per_second=_sum(value.get("receive_errors"), value.get("transmit_errors")),
        drops_per_second=_sum(value.get("receive_drops"), value.get("transmit_drops")),
    )


def _by_device(rates: Iterable[Row], prefix: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for tag, labels, number in rates:
        if tag.startswith(prefix):
            found.setdefault(labels.get("device", ""), {})[tag.removeprefix(prefix)] = number
    return found


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _share(part: int, whole: int | None) -> float | None:
    return part / whole if whole else None


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
