"""Numbers that alerts and history need and readings do not have: states as 0 and 1, what is missing, what is left. Pure.

Which names there are is said by the rules (`rules.DEFAULTS`); a test makes each of them appear. What a fault says goes to the
details. `kept` chooses what goes into the history, `watched` what the rules look at, `gone` names alerts whose metric is no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from collectors.alerts import Alert, Gone
from collectors.machines import PartName
from collectors.readings import Containers, Fault, Filesystems, Gpus, Host, Record, Units, metrics
from collectors.rules import DEFAULTS
from collectors.services import ProbeResult
from collectors.services import metrics as service_metrics

ROOM_FROM_BYTES = 20 * 1024**3  # 5 GiB left is little only where there was much: /boot is small and full for years
FAULT_LEVELS = {"warning": 1.0, "critical": 2.0}
# These have rules of their own, by the metric that the fault was found from.
COVERED_FAULTS = frozenset({"unit_failed", "container_unhealthy", "ecc_uncorrected", "row_remap_failed"})
NOT_MEASURED = "no longer measured"
NOT_REPORTED = "no longer reported"
# Of these there is no number where the file system cannot fill up: it has been full since it was made.
FILLING = ("used_ratio", "inodes_used_ratio")

# What charts show, by kind of metric. The rest can be had from a reading, and 90 days of it would fill disks.
KEPT: Mapping[str, frozenset[str]] = {
    "cpu": frozenset({"busy_ratio", "user_ratio", "system_ratio", "iowait_ratio", "steal_ratio"}),
    "load": frozenset({"average_1m", "per_core_15m"}),
    "memory": frozenset({"used_bytes", "used_ratio", "swap_used_bytes", "limit_used_bytes"}),
    "pressure": frozenset({"some_10s_ratio", "full_10s_ratio"}),
    "disk": frozenset({"read_bytes_per_second", "written_bytes_per_second", "busy_ratio", "wait_seconds"}),
    "interface": frozenset({"received_bytes_per_second", "sent_bytes_per_second", "errors_per_second"}),
    "filesystem": frozenset({"used_bytes", "used_ratio", "inodes_used_ratio"}),
    "gpu": frozenset(
        {
            *("utilization_ratio", "memory_bandwidth_ratio", "memory_used_bytes", "temperature_celsius"),
            *("power_watts", "sm_clock_mhz", "slowed"),
        }
    ),
    "gpus": frozenset({"count"}),
    "unit": frozenset({"failed", "memory_bytes", "restarts"}),
    "container": frozenset({"unhealthy", "memory_bytes", "restarts"}),
    "collection": frozenset({"failing", "seconds"}),
    "engine": frozenset(
        {
            *("running", "waiting", "kv_cache_used_ratio", "prefix_cache_hit_ratio", "requests_per_second"),
            *("prompt_tokens_per_second", "generation_tokens_per_second", "preemptions", "ttft_p50_seconds", "ttft_p95_seconds"),
            *("per_token_p50_seconds", "per_token_p95_seconds", "queue_p95_seconds"),
        }
    ),
}


@dataclass(frozen=True, slots=True)
class Numbers:
    """Metrics by name, and for some of them more in words."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)


def numbers(reading: Record, expected_gpus: int | None = None) -> Numbers:
    """All metrics of a machine's reading, except those of single cores."""
    found: dict[str, float] = {}
    details: dict[str, str] = {}
    if isinstance(reading, Host):
        found |= metrics(replace(reading, cores=None, processes=None)) | _load(reading)
    else:
        found |= metrics(reading)
    if isinstance(reading, Filesystems):
        found = _without_full_by_nature(reading, found) | _room(reading)
    elif isinstance(reading, Units):
        found |= _failed_units(reading, details)
    elif isinstance(reading, Containers):
        found |= _unhealthy_containers(reading)
    elif isinstance(reading, Gpus):
        found |= _gpu_count(reading, expected_gpus, details)
    found |= fault_numbers(getattr(reading, "faults", ()), details)
    return Numbers(found, details)


def fault_numbers(faults: Iterable[Fault], details: dict[str, str]) -> dict[str, float]:
    """`fault.CODE`: 1.0 for a warning, 2.0 for something critical; notes are none. Adds their texts to `details`."""
    found: dict[str, float] = {}
    for fault in faults:
        level = FAULT_LEVELS.get(fault.severity)
        if level is None or fault.code in COVERED_FAULTS:
            continue
        name = f"fault.{fault.code}"
        found[name] = max(level, found.get(name, 0.0))
        text = f"{fault.subject}: {fault.text}" if fault.subject and fault.subject not in fault.text else fault.text
        said = details.get(name)
        details[name] = f"{said}; {text}" if said else f"{text} ({fault.next_step})"
    return found


def collection(failing: bool, age_seconds: float | None, seconds: float | None, problem: str = "") -> Numbers:
    """How well a machine can be read: `age_seconds` of its oldest reading, `seconds` that the slowest fast one took. Of one that
    cannot be read at all neither says anything more: one thing, one alert."""
    values = {"failing": float(failing)} | ({} if failing else {"age_seconds": age_seconds, "seconds": seconds})
    found = {f"collection.{name}": value for name, value in values.items() if value is not None}
    return Numbers(found, {"collection.failing": problem} if failing else {})


def service_numbers(result: ProbeResult, failed: bool, up: bool) -> Numbers:
    """The metrics of a probe. `failed` and `up` are of the service, all its probes together: else a service that answers but does
    not work would be well again with each liveness probe. Latencies of what failed are left out: refusing is quick."""
    found = service_metrics(result) | {"service.failed": float(failed), "service.up": float(up)}
    if not result.up:
        found = {name: value for name, value in found.items() if not name.endswith("_seconds")}
    said = f"{result.message} ({result.next_step})" if result.next_step else result.message
    return Numbers(found, {name: said for name in found if name != "service.up"} if not result.up else {})


def kept(found: Mapping[str, float]) -> dict[str, float]:
    """What of these goes into the history."""
    return {name: value for name, value in found.items() if _is_kept(name)}


def watched(found: Mapping[str, float]) -> dict[str, float]:
    """What of these a rule may look at: the others need not be compared with each of them."""
    return {name: value for name, value in found.items() if _has_rule(name)}


@lru_cache(maxsize=50_000)
def _is_kept(name: str) -> bool:
    kind, _, rest = name.partition(".")
    return kind == "service" or rest.rpartition(".")[2] in KEPT.get(kind, frozenset())


@lru_cache(maxsize=50_000)
def _has_rule(name: str) -> bool:
    return any(fnmatchcase(name, rule.metric) for rule in DEFAULTS)


def part_of(metric: str) -> PartName | None:
    """The part of a machine that a metric comes from; None for what may come from any."""
    return _PARTS.get(metric.partition(".")[0])


_PARTS: Mapping[str, PartName] = {
    **dict.fromkeys(("cpu", "load", "memory", "pressure", "disk", "interface", "host"), "host"),
    **dict.fromkeys(("gpu", "gpus"), "gpus"),
    "filesystem": "filesystems",
    "unit": "units",
    "container": "containers",
}


def gone(active: Iterable[Alert], known: Mapping[str, float], is_readable: Callable[[str], bool]) -> list[Gone]:
    """The metrics of active alerts that are no more: a unit that was removed, a fault that is not reported any longer.

    `known` are the source's metrics now. `is_readable(metric)` says whether it would be among them if it were there: what cannot
    be read now may still be wrong.
    """
    return [
        Gone(alert.source, alert.metric, NOT_REPORTED if alert.metric.startswith("fault.") else NOT_MEASURED)
        for alert in active
        if alert.metric not in known and is_readable(alert.metric)
    ]


def absent(part: PartName, reading: Record) -> bool:
    """Whether the machine does not have what was asked for, and says so without a failure: no GPU driver, no Docker."""
    faults: tuple[Fault, ...] = getattr(reading, "faults", ())
    return getattr(reading, part, reading) is None and bool(faults) and all(fault.severity == "note" for fault in faults)


def _load(host: Host) -> dict[str, float]:
    cores = None if host.cpu is None else host.cpu.cores
    return {"load.per_core_15m": host.load.average_15m / cores} if host.load is not None and cores else {}


def _without_full_by_nature(reading: Filesystems, found: Mapping[str, float]) -> dict[str, float]:
    fixed = {f"filesystem.{each.mount}.{name}" for each in reading.filesystems or () if not each.can_fill for name in FILLING}
    return {name: value for name, value in found.items() if name not in fixed}


def _room(reading: Filesystems) -> dict[str, float]:
    return {
        f"filesystem.{each.mount}.room_bytes": float(each.available_bytes)
        for each in reading.filesystems or ()
        if each.can_fill and each.available_bytes is not None and (each.total_bytes or 0) >= ROOM_FROM_BYTES
    }


def _failed_units(reading: Units, details: dict[str, str]) -> dict[str, float]:
    found = {f"unit.{unit.name}.failed": float(unit.active == "failed") for unit in reading.units or () if unit.active}
    for fault in reading.faults:
        if fault.code == "unit_failed":
            details[f"unit.{fault.subject}.failed"] = fault.text
    return found


def _unhealthy_containers(reading: Containers) -> dict[str, float]:
    known = (each for each in reading.containers or () if each.state or each.health)
    return {f"container.{each.name}.unhealthy": float(each.health == "unhealthy") for each in known}


def _gpu_count(reading: Gpus, expected: int | None, details: dict[str, str]) -> dict[str, float]:
    """`gpus.missing` is unknown where the GPUs cannot be read at all: that is a fault of its own."""
    if reading.gpus is None:
        return {}
    seen = len(reading.gpus)
    missing = None if expected is None else max(0, expected - seen)
    if missing:
        details["gpus.missing"] = f"{expected} expected, {seen} seen"
    return {"gpus.count": float(seen)} | ({} if missing is None else {"gpus.missing": float(missing)})
