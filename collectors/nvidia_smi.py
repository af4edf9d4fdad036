"""NVIDIA GPUs through `nvidia-smi`: explicit fields as CSV, which is smaller and steadier than its XML. Knows no transport.

1) `HELP` prints the fields that the driver there knows; `known_fields(help_text)` picks ours: one unknown field fails the query.
2) `query(fields)` -> command, `parse(text, fields)` -> Gpus. The name, which may hold commas, is asked last.
3) `PROCESSES`, `MIG`, `NVLINK` -> commands with parsers of their own; `gpus_with(...)` joins them. They change slowly.

An absent value is None. What the driver says is wrong is a fault; a GPU that is lost does not hide the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from collectors.gpu_facts import fault_in, findings, slowed_by, throttle_names
from collectors.owners import owner
from collectors.readings import Fault, Gpu, GpuProcess, Gpus, MigDevice
from collectors.texts import count, cut, lines, number, ratio

MEBIBYTE = 1024 * 1024
LONGEST_BYTES = 200_000  # 16 GPUs print 8,000
MOST_FAULTS = 40

HELP = "nvidia-smi --help-query-gpu 2>&1"
MIG = "nvidia-smi -L 2>&1"
NVLINK = "nvidia-smi nvlink -s 2>&1"
# The control group of each process follows. `answered` tells no processes from no answer.
PROCESSES = """if apps=$(nvidia-smi --query-compute-apps=gpu_uuid,pid,used_memory,name --format=csv,noheader,nounits 2>&1); then
  printf 'answered\\n%s\\n' "$apps"
  printf '%s\\n' "$apps" | cut -d, -f2 | while read -r pid; do
    case "$pid" in ''|*[!0-9]*) continue ;; esac
    [ -r "/proc/$pid/cgroup" ] && printf 'cgroup %s\\n' "$pid" && cat "/proc/$pid/cgroup"
  done
else printf '%s\\n' "$apps"; fi
"""

# Ours, each with the names it had: the first that the driver knows is asked. Order matters: index first, name last.
FIELDS: tuple[tuple[str, ...], ...] = (
    ("index",),
    ("uuid", "gpu_uuid"),
    ("pci.bus_id", "gpu_bus_id"),
    ("driver_version",),
    ("persistence_mode",),
    ("pstate",),
    ("utilization.gpu",),
    ("utilization.memory",),
    ("memory.total",),
    ("memory.used",),
    ("memory.free",),
    ("temperature.gpu",),
    ("temperature.memory",),
    ("fan.speed",),
    ("power.draw.instant", "power.draw"),
    ("enforced.power.limit", "power.limit"),
    ("clocks.current.sm", "clocks.sm"),
    ("clocks.max.sm",),
    ("clocks.current.memory", "clocks.mem"),
    ("clocks.max.memory", "clocks.max.mem"),
    ("clocks_event_reasons.active", "clocks_throttle_reasons.active"),
    ("ecc.mode.current",),
    ("ecc.errors.corrected.volatile.total",),
    ("ecc.errors.uncorrected.volatile.total",),
    ("ecc.errors.uncorrected.aggregate.total",),
    ("remapped_rows.correctable",),
    ("remapped_rows.uncorrectable",),
    ("remapped_rows.pending",),
    ("remapped_rows.failure",),
    ("gpu_recovery_action",),
    ("pcie.link.gen.gpucurrent", "pcie.link.gen.current"),
    ("pcie.link.gen.max",),
    ("pcie.link.width.current",),
    ("pcie.link.width.max",),
    ("mig.mode.current",),
    ("name", "gpu_name"),
)
# What every driver since 2013 knows: asked when the help cannot be read.
BASIC_FIELDS = (
    *("index", "uuid", "pci.bus_id", "driver_version", "persistence_mode", "pstate", "utilization.gpu", "utilization.memory"),
    *("memory.total", "memory.used", "memory.free", "temperature.gpu", "fan.speed", "power.draw", "power.limit"),
    *("clocks.current.sm", "clocks.max.sm", "name"),
)


def known_fields(help_text: str) -> tuple[str, ...]:
    """Our fields that this driver knows, in our order, from the text of HELP; the basic ones when it cannot be read."""
    listed = set(re.findall(r'"([a-z0-9_.]+)"', help_text))
    chosen = [next((name for name in names if name in listed), None) for names in FIELDS]
    if chosen[0] is None or chosen[-1] is None:
        return BASIC_FIELDS
    return tuple(name for name in chosen if name is not None)


def query(fields: Sequence[str]) -> str:
    """The command that prints one line a GPU. Where one bad GPU makes the query fail for all, it asks each by its bus address.
    A shell keeps what it is to look at in its memory, so that a flood must be cut off over there."""
    ask = f"--query-gpu={','.join(fields)} --format=csv,noheader,nounits 2>&1"
    return f"""out=$(nvidia-smi {ask} | head -c {LONGEST_BYTES}); printf '%s\\n' "$out"
case "$out" in *"device handle"*|*"is lost"*)
  for gpu in /proc/driver/nvidia/gpus/*; do [ -d "$gpu" ] && nvidia-smi -i "${{gpu##*/}}" {ask}; done ;;
esac
"""


def parse(text: str, fields: Sequence[str]) -> Gpus:
    """The reading in what `query(fields)` printed. Never raises; `gpus` is None when no GPU could be read."""
    gpus: dict[int, Gpu] = {}
    faults: list[Fault] = []
    driver: str | None = None
    for line in lines(text):
        values = _values(line, fields)
        if values is not None and (index := count(values["index"])) is not None:
            gpus[index] = _gpu(index, values)
            faults += _wrong_values(index, values)
            driver = driver or _text(values, "driver_version")
        elif line.strip():
            faults.append(fault_in(line))
    if not gpus and not faults:
        faults.append(Fault("nvidia_smi_silent", "nvidia-smi printed nothing", "Run `nvidia-smi` by hand on the machine."))
    none_there = any(fault.code == "no_gpus" for fault in faults)
    found = tuple(gpus[index] for index in sorted(gpus)) if gpus or none_there else None
    said = tuple(dict.fromkeys(faults))[:MOST_FAULTS]
    return Gpus(found, driver, faults=tuple(dict.fromkeys([*said, *findings(found or ())])))


def _values(line: str, fields: Sequence[str]) -> dict[str, str] | None:
    """Field -> its text, when the line is a record: as many values as fields, and the index a number."""
    values = [value.strip() for value in line.split(",", len(fields) - 1)]
    if len(values) != len(fields) or count(values[0]) is None:
        return None
    # A name and an old one mean the same: keep ours.
    ours = {name: names[0] for names in FIELDS for name in names}
    return {ours.get(field, field): value for field, value in zip(fields, values, strict=True)}


def _gpu(index: int, values: Mapping[str, str]) -> Gpu:
    used, total = _bytes(values, "memory.used"), _bytes(values, "memory.total")
    reasons = throttle_names(_mask(values, "clocks_event_reasons.active"))
    return Gpu(
        index=index,
        uuid=_text(values, "uuid"),
        name=_text(values, "name"),
        pci_bus_id=_text(values, "pci.bus_id"),
        utilization_ratio=_percent(values, "utilization.gpu"),
        memory_bandwidth_ratio=_percent(values, "utilization.memory"),
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory_free_bytes=_bytes(values, "memory.free"),
        memory_used_ratio=ratio(used, total),
        temperature_celsius=_number(values, "temperature.gpu"),
        memory_temperature_celsius=_number(values, "temperature.memory"),
        fan_ratio=_percent(values, "fan.speed"),
        power_watts=_number(values, "power.draw.instant"),
        power_limit_watts=_number(values, "enforced.power.limit"),
        sm_clock_mhz=_number(values, "clocks.current.sm"),
        sm_clock_max_mhz=_number(values, "clocks.max.sm"),
        memory_clock_mhz=_number(values, "clocks.current.memory"),
        memory_clock_max_mhz=_number(values, "clocks.max.memory"),
        performance_state=_text(values, "pstate"),
        throttle_reasons=reasons,
        slowed=slowed_by(reasons),
        ecc_enabled=_switch(values, "ecc.mode.current"),
        ecc_corrected=_count(values, "ecc.errors.corrected.volatile.total"),
        ecc_uncorrected=_count(values, "ecc.errors.uncorrected.volatile.total"),
        ecc_uncorrected_lifetime=_count(values, "ecc.errors.uncorrected.aggregate.total"),
        rows_remapped_correctable=_count(values, "remapped_rows.correctable"),
        rows_remapped_uncorrectable=_count(values, "remapped_rows.uncorrectable"),
        row_remap_pending=_switch(values, "remapped_rows.pending"),
        row_remap_failed=_switch(values, "remapped_rows.failure"),
        recovery_action=_text(values, "gpu_recovery_action"),
        pcie_generation=_count(values, "pcie.link.gen.gpucurrent"),
        pcie_generation_max=_count(values, "pcie.link.gen.max"),
        pcie_width=_count(values, "pcie.link.width.current"),
        pcie_width_max=_count(values, "pcie.link.width.max"),
        mig_enabled=_switch(values, "mig.mode.current"),
        persistence_enabled=_switch(values, "persistence_mode"),
    )


# A driver that cannot give a value says so in brackets, padded or not; these are not "absent" but "something is wrong".
_WRONG = re.compile(r"\[?(unknown error|err!|gpu is lost|gpu requires reset|gpu access blocked.*)\]?", re.IGNORECASE)
_ABSENT = re.compile(r"|-|n/a|not (supported|found|available)|\[.*", re.IGNORECASE)
_SWITCHES = {"enabled": True, "disabled": False, "yes": True, "no": False, "1": True, "0": False, "on": True, "off": False}


def _wrong_values(index: int, values: Mapping[str, str]) -> list[Fault]:
    wrong = dict.fromkeys(value for value in values.values() if _WRONG.fullmatch(value))
    return [fault_in(value, f"gpu {index}") for value in wrong]


def _text(values: Mapping[str, str], field: str) -> str | None:
    value = values.get(field, "")
    return None if _ABSENT.fullmatch(value) or _WRONG.fullmatch(value) else cut(value)


def _first(values: Mapping[str, str], field: str) -> str:
    """The first word: an old driver prints the unit all the same."""
    return (_text(values, field) or "").partition(" ")[0]


def _number(values: Mapping[str, str], field: str) -> float | None:
    return number(_first(values, field))


def _percent(values: Mapping[str, str], field: str) -> float | None:
    return ratio(_number(values, field), 100.0)


def _count(values: Mapping[str, str], field: str) -> int | None:
    return count(_first(values, field).removesuffix("x"))


def _bytes(values: Mapping[str, str], field: str) -> int | None:
    mebibytes = _count(values, field)
    return None if mebibytes is None else mebibytes * MEBIBYTE


def _switch(values: Mapping[str, str], field: str) -> bool | None:
    return _SWITCHES.get(_first(values, field).lower())


def _mask(values: Mapping[str, str], field: str) -> int | None:
    match = re.fullmatch(r"0x([0-9A-Fa-f]{1,16})", _first(values, field))
    return int(match[1], 16) if match else None


def parse_processes(text: str) -> tuple[GpuProcess, ...] | None:
    """Processes with GPU memory, from what PROCESSES printed; None when nvidia-smi did not answer. Never raises.

    A name can hold commas, so it stands last. Where nvidia-smi cannot find the name the pid is of another namespace (the host's,
    seen from a container): then /proc/PID here is another process, and the owner is None.
    """
    head, *groups = re.split(r"^cgroup ([0-9]+)$", text, flags=re.MULTILINE)
    if "answered" not in lines(head):
        return None
    owners = {count(pid): owner(group) for pid, group in zip(groups[::2], groups[1::2], strict=True)}
    found: list[GpuProcess] = []
    for line in lines(head):
        parts = [part.strip() for part in line.split(",", 3)]
        pid = count(parts[1]) if len(parts) == 4 else None
        if pid is None:
            continue
        values = dict(zip(("uuid", "pid", "memory", "name"), parts, strict=True))
        name = _text(values, "name")
        found.append(GpuProcess(cut(parts[0]), pid, name, _bytes(values, "memory"), owners.get(pid) if name else None))
    return tuple(found)


def parse_mig(text: str) -> tuple[MigDevice, ...]:
    """MIG devices of `nvidia-smi -L`. Never raises."""
    found: list[MigDevice] = []
    gpu: int | None = None
    for line in lines(text):
        if match := re.match(r"GPU ([0-9]{1,5}):", line):
            gpu = int(match[1])
        elif gpu is not None and (match := re.match(r"\s+MIG (\S+)\s+Device\s+([0-9]{1,5}): \(UUID: (\S+)\)", line)):
            found.append(MigDevice(gpu, int(match[2]), cut(match[1]), cut(match[3])))
    return tuple(found)


def parse_nvlinks(text: str) -> dict[int, tuple[int, int, float]]:
    """GPU index -> (active links, inactive links, bytes/s of the active ones together, one way), of `nvidia-smi nvlink -s`. A GPU
    without NVLink is not in it. Never raises."""
    found: dict[int, tuple[int, int, float]] = {}
    gpu: int | None = None
    for line in lines(text):
        if match := re.match(r"GPU ([0-9]{1,5}):", line):
            gpu = int(match[1])
        elif gpu is not None and (match := re.match(r"\s+Link [0-9]+: (?:([0-9.]{1,12}) GB/s|<inactive>)", line)):
            active, inactive, speed = found.get(gpu, (0, 0, 0.0))
            link = number(match[1] or "0") or 0.0
            found[gpu] = (active + 1, inactive, speed + link * 1e9) if link else (active, inactive + 1, speed)
    return found


def gpus_with(
    gpus: Gpus,
    processes: tuple[GpuProcess, ...] | None = None,
    mig_devices: tuple[MigDevice, ...] | None = None,
    nvlinks: Mapping[int, tuple[int, int, float]] | None = None,
) -> Gpus:
    """The reading with what the slow commands found, which may be of some seconds before."""
    joined = None
    if gpus.gpus is not None:
        links = {gpu.index: (nvlinks or {}).get(gpu.index, (None, None, None)) for gpu in gpus.gpus}
        joined = tuple(
            replace(
                gpu,
                nvlinks_active=links[gpu.index][0],
                nvlinks_inactive=links[gpu.index][1],
                nvlink_bytes_per_second=links[gpu.index][2],
            )
            for gpu in gpus.gpus
        )
    return replace(gpus, gpus=joined, processes=processes, mig_devices=mig_devices)
