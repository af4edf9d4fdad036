"""What was read from a machine, as frozen records. Knows no command, no transport and no clock; imports nothing of ours.

A record is flat: numbers, texts, truth values, and tuples of such records. Units are in the names (`_bytes`, `_seconds`,
`_celsius`, `_watts`, `_mhz`; `_ratio` is 0..1). Unknown is None, never 0, and a collection that could not be read is None, never
empty; the reason stands in `faults`.

`to_json(reading)` gives plain dicts and lists; `metrics(reading)` names every known number: `cpu.busy_ratio`,
`gpu.0.memory_used_bytes`, `filesystem./data.used_ratio`. In such a name the text up to the first dot is the kind, the text after
the last dot the field, and what is between them (it may hold dots itself) which one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Severity = Literal["critical", "warning", "note"]
IMAGE_TYPES = frozenset({"squashfs", "fuse.squashfuse", "fuse.snapfuse", "iso9660", "udf", "erofs", "cramfs", "romfs"})


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that could not be read, or that was read and is wrong. `code` is stable, `text` is what the machine said (cut
    short, not to be trusted), `next_step` what to do, `subject` which part of the machine (`gpu 3`), None for all of it."""

    code: str
    text: str
    next_step: str
    subject: str | None = None
    severity: Severity = "warning"


@dataclass(frozen=True, slots=True)
class Record:
    """Base of all readings. `kind` begins its metric names; `key` names the field that tells several of a kind apart."""

    kind: ClassVar[str] = ""
    key: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Load(Record):
    kind: ClassVar[str] = "load"

    average_1m: float
    average_5m: float
    average_15m: float
    running: int | None = None
    tasks: int | None = None


@dataclass(frozen=True, slots=True)
class Memory(Record):
    """`used_bytes` is total minus available, as `free` of procps 4 counts. `limit_bytes` and `limit_used_bytes` are those of the
    control group when the machine is a container, None otherwise."""

    kind: ClassVar[str] = "memory"

    total_bytes: int | None
    available_bytes: int | None
    free_bytes: int | None
    used_bytes: int | None
    used_ratio: float | None
    cached_bytes: int | None
    buffers_bytes: int | None
    swap_total_bytes: int | None
    swap_used_bytes: int | None
    swap_used_ratio: float | None
    limit_bytes: int | None = None
    limit_used_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Pressure(Record):
    """Share of time in which some, or all, tasks waited for a resource (kernel documentation, accounting/psi)."""

    kind: ClassVar[str] = "pressure"
    key: ClassVar[str] = "resource"

    resource: str
    some_10s_ratio: float | None
    some_60s_ratio: float | None
    some_300s_ratio: float | None
    full_10s_ratio: float | None = None
    full_60s_ratio: float | None = None
    full_300s_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Cpu(Record):
    """Shares of the time of all cores since the sample before. Iowait counts as idle, not as busy."""

    kind: ClassVar[str] = "cpu"

    cores: int | None
    busy_ratio: float | None
    user_ratio: float | None
    system_ratio: float | None
    iowait_ratio: float | None
    steal_ratio: float | None


@dataclass(frozen=True, slots=True)
class Core(Record):
    kind: ClassVar[str] = "core"
    key: ClassVar[str] = "index"

    index: int
    busy_ratio: float | None
    iowait_ratio: float | None
    steal_ratio: float | None


@dataclass(frozen=True, slots=True)
class Disk(Record):
    """`wait_seconds` is the mean time of a request from queueing to its end; None when there was none."""

    kind: ClassVar[str] = "disk"
    key: ClassVar[str] = "name"

    name: str
    read_bytes_per_second: float | None
    written_bytes_per_second: float | None
    reads_per_second: float | None
    writes_per_second: float | None
    busy_ratio: float | None
    wait_seconds: float | None
    queue_length: float | None


@dataclass(frozen=True, slots=True)
class Interface(Record):
    kind: ClassVar[str] = "interface"
    key: ClassVar[str] = "name"

    name: str
    received_bytes_per_second: float | None
    sent_bytes_per_second: float | None
    received_packets_per_second: float | None
    sent_packets_per_second: float | None
    errors_per_second: float | None
    drops_per_second: float | None


@dataclass(frozen=True, slots=True)
class Process(Record):
    """`cpu_ratio` is of one core: 2.0 is two cores. Arguments are not read: they can hold secrets."""

    pid: int
    name: str
    state: str
    cpu_ratio: float | None
    memory_bytes: int | None
    threads: int | None


@dataclass(frozen=True, slots=True)
class Host(Record):
    """The fast reading of a machine. `seconds` is the span the rates are over; None with no sample before."""

    kind: ClassVar[str] = "host"

    uptime_seconds: float | None
    seconds: float | None
    cpu: Cpu | None
    cores: tuple[Core, ...] | None
    load: Load | None
    memory: Memory | None
    pressures: tuple[Pressure, ...] | None
    disks: tuple[Disk, ...] | None
    interfaces: tuple[Interface, ...] | None
    processes: tuple[Process, ...] | None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Filesystem(Record):
    """`available_bytes` is what an ordinary user may still write; `used_ratio` is used / (used + available), as `df` shows.
    `read_only` is how it is mounted."""

    kind: ClassVar[str] = "filesystem"
    key: ClassVar[str] = "mount"

    mount: str
    device: str
    type: str | None
    total_bytes: int | None
    used_bytes: int | None
    available_bytes: int | None
    used_ratio: float | None
    inodes_total: int | None = None
    inodes_used: int | None = None
    inodes_used_ratio: float | None = None
    read_only: bool | None = None

    @property
    def can_fill(self) -> bool:
        """False for images that are full from the day they are made, and for what nobody can write to."""
        return self.type not in IMAGE_TYPES and not self.read_only


@dataclass(frozen=True, slots=True)
class Filesystems(Record):
    filesystems: tuple[Filesystem, ...] | None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Gpu(Record):
    """One GPU. `memory_bandwidth_ratio` is the share of time in which its memory was read or written: not how full it is.

    `throttle_reasons` are NVML's clock event reasons that are active, None when unknown; `slowed` is true when one of them is
    heat, power brake or another hardware slowdown. ECC counts are since the driver was loaded, `_lifetime` since manufacture.
    """

    kind: ClassVar[str] = "gpu"
    key: ClassVar[str] = "index"

    index: int
    uuid: str | None = None
    name: str | None = None
    pci_bus_id: str | None = None
    utilization_ratio: float | None = None
    memory_bandwidth_ratio: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_used_ratio: float | None = None
    temperature_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    fan_ratio: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    sm_clock_mhz: float | None = None
    sm_clock_max_mhz: float | None = None
    memory_clock_mhz: float | None = None
    memory_clock_max_mhz: float | None = None
    performance_state: str | None = None
    throttle_reasons: tuple[str, ...] | None = None
    slowed: bool | None = None
    ecc_enabled: bool | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    ecc_uncorrected_lifetime: int | None = None
    rows_remapped_correctable: int | None = None
    rows_remapped_uncorrectable: int | None = None
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    recovery_action: str | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    nvlinks_active: int | None = None
    nvlinks_inactive: int | None = None
    nvlink_bytes_per_second: float | None = None
    mig_enabled: bool | None = None
    persistence_enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class GpuProcess(Record):
    """A process that holds GPU memory. `owner` is its container or systemd unit (`docker 3f2a…`, `unit vllm.service`)."""

    gpu_uuid: str
    pid: int
    name: str | None
    memory_bytes: int | None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class MigDevice(Record):
    """An instance of a GPU split by MIG; `profile` as in `1g.10gb`."""

    gpu_index: int
    device: int
    profile: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Gpus(Record):
    """The GPUs of a machine. `gpus` is None when they could not be read, and empty when the driver says there are none."""

    gpus: tuple[Gpu, ...] | None
    driver_version: str | None = None
    processes: tuple[GpuProcess, ...] | None = None
    mig_devices: tuple[MigDevice, ...] | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Unit(Record):
    """A systemd unit. `state_seconds` is how long it has been in `active`; `restarts` counts automatic ones."""

    kind: ClassVar[str] = "unit"
    key: ClassVar[str] = "name"

    name: str
    load: str | None = None
    active: str | None = None
    sub: str | None = None
    result: str | None = None
    description: str | None = None
    restarts: int | None = None
    state_seconds: float | None = None
    memory_bytes: int | None = None
    main_pid: int | None = None
    exit_status: int | None = None
    enabled: str | None = None


@dataclass(frozen=True, slots=True)
class Units(Record):
    units: tuple[Unit, ...] | None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Container(Record):
    """A container. `health` is None when it has no health check; `state_seconds` is since its start, or since its end."""

    kind: ClassVar[str] = "container"
    key: ClassVar[str] = "name"

    name: str
    id: str
    image: str | None = None
    state: str | None = None
    health: str | None = None
    restarts: int | None = None
    exit_code: int | None = None
    out_of_memory: bool | None = None
    state_seconds: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Containers(Record):
    containers: tuple[Container, ...] | None
    faults: tuple[Fault, ...] = ()


def to_json(reading: Record | Fault) -> dict[str, Any]:
    """The reading as plain dicts and lists, None kept."""
    return {name: _plain(value) for name, value in _items(reading)}


def metrics(reading: Record) -> dict[str, float]:
    """Every known number of a reading by its name; truth values are 1.0 and 0.0. Records without a kind (processes) have none."""
    found: dict[str, float] = {}
    _collect(reading, found)
    return found


def _collect(reading: Record, found: dict[str, float]) -> None:
    key = getattr(reading, reading.key) if reading.key else None
    prefix = reading.kind if key is None else f"{reading.kind}.{key}"
    for name, value in _items(reading):
        if isinstance(value, Record):
            _collect(value, found)
        elif isinstance(value, tuple):
            for item in value:
                if isinstance(item, Record):
                    _collect(item, found)
        elif reading.kind and name != reading.key and isinstance(value, int | float):
            found[f"{prefix}.{name}"] = float(value)


def _items(reading: Record | Fault) -> list[tuple[str, Any]]:
    return [(item.name, getattr(reading, item.name)) for item in dataclasses.fields(reading)]


def _plain(value: Any) -> Any:
    if isinstance(value, Record | Fault):
        return to_json(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
