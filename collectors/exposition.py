"""Everything that is known of machines and services, in Prometheus's text format: `exposition(snapshot)`. Pure.

One gauge a number: `ragdeck_KIND_FIELD`, named as `readings.metrics` names it, in base units (hertz, seconds, bytes), with the
label `machine` or `service` and one that tells several of a kind apart (`gpu`, `mount`, `unit` …). Words (states, names) are
labels of a gauge that is 1. A reading that is stale is left out, so that its series end there too; how old each reading is stays.
Knows no transport, no history, and no process by its number: what is listed of a name is added up, for numbers do not come back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily

from collectors.alerts import Alert
from collectors.derived import numbers, service_numbers
from collectors.readings import Containers, Gpus, Host, Record, Units, metrics
from collectors.texts import cut
from collectors.views import MachineView, ServiceView, Snapshot, SourceView

MAX_SAMPLES = 50_000
MAX_LABEL_CHARS = 200
# The label of what stands in the middle of a metric's name.
KEYS: Mapping[str, str] = {
    "core": "core",
    "disk": "disk",
    "interface": "interface",
    "filesystem": "mount",
    "gpu": "gpu",
    "unit": "unit",
    "container": "container",
    "pressure": "resource",
    "engine": "engine",
}
# What reads otherwise in base units, or has an ending that means something else to Prometheus.
SUFFIXES: Mapping[str, tuple[str, float]] = {"_mhz": ("_hertz", 1e6), "_days": ("_seconds", 86_400.0), "_total": ("_limit", 1.0)}
NAMES: Mapping[str, str] = {"gpus.count": "gpus"}

Labels = Mapping[str, str]
Row = tuple[str, Labels, float]


def exposition(snapshot: Snapshot, alerts: Iterable[Alert] = ()) -> bytes:
    """The page of `/metrics`, at most 50,000 samples: what is beyond is counted in `ragdeck_export_dropped_samples`."""
    families: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    count = dropped = 0
    for name, labels, value in _rows(snapshot, alerts):
        family = families.setdefault(name, {})
        key = tuple((label, cut(text, MAX_LABEL_CHARS)) for label, text in labels.items())
        if key in family:  # of two that are named alike the first counts
            continue
        if count >= MAX_SAMPLES:
            dropped += 1
            continue
        family[key] = value
        count += 1
    families["ragdeck_export_dropped_samples"] = {(): float(dropped)}
    return generate_latest(_Page(families))


class _Page:
    """What `generate_latest` needs of a registry."""

    def __init__(self, families: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]) -> None:
        self._families = families

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, samples in sorted(self._families.items()):
            family = GaugeMetricFamily(name, _meaning(name))
            for labels, value in samples.items():
                family.add_sample(name, dict(labels), value)
            if samples:
                yield family


def _meaning(name: str) -> str:
    words = name.removeprefix("ragdeck_").replace("_", " ")
    return f"As RAG Deck reads it: {words}."


def _rows(snapshot: Snapshot, alerts: Iterable[Alert]) -> Iterator[Row]:
    for machine in snapshot.machines:
        yield from _machine(machine)
    for service in snapshot.services:
        yield from _service(service)
    for source in snapshot.sources:
        yield from _source(source)
    for alert in alerts:
        about = {"rule": alert.rule, "source": alert.source, "metric": alert.metric, "level": alert.level}
        yield "ragdeck_alert_active", about, 1.0


# Machines


def _machine(view: MachineView) -> Iterator[Row]:
    of = {"machine": view.name}
    yield "ragdeck_machine_up", {**of, "source": view.source}, float(view.state in ("ok", "stale"))
    yield "ragdeck_machine_state", {**of, "state": view.state}, 1.0
    for name, part in view.parts():
        if part.age_seconds is not None:
            yield "ragdeck_machine_reading_age_seconds", {**of, "part": name}, part.age_seconds
        if part.seconds is not None:
            yield "ragdeck_machine_reading_seconds", {**of, "part": name}, part.seconds
        if part.value is not None and not part.stale:
            yield from _reading(part.value, of, view.expected_gpus)
    for engine in view.engines or ():
        yield from _numbers(metrics(engine), of)
    for fault in view.faults:
        yield "ragdeck_machine_fault", {**of, "code": fault.code, "subject": fault.subject or "", "severity": fault.severity}, 1.0


def _reading(reading: Record, of: Labels, expected_gpus: int | None) -> Iterator[Row]:
    derived = {name: value for name, value in numbers(reading, expected_gpus).metrics.items() if not name.startswith("fault.")}
    yield from _numbers(derived | metrics(reading), of)
    if isinstance(reading, Host):
        yield from _processes(reading, of)
    elif isinstance(reading, Gpus):
        yield from _gpu_words(reading, of)
    elif isinstance(reading, Units):
        for unit in reading.units or ():
            yield "ragdeck_unit_state", {**of, "unit": unit.name, "state": unit.active or "", "sub": unit.sub or ""}, 1.0
    elif isinstance(reading, Containers):
        for each in reading.containers or ():
            words = {"state": each.state or "", "health": each.health or "", "image": each.image or ""}
            yield "ragdeck_container_state", {**of, "container": each.name, **words}, 1.0


def _processes(reading: Host, of: Labels) -> Iterator[Row]:
    listed = [({**of, "process": each.name}, each.cpu_ratio, each.memory_bytes) for each in reading.processes or ()]
    yield from _added("ragdeck_process_cpu_ratio", ((labels, cpu) for labels, cpu, _ in listed))
    yield from _added("ragdeck_process_memory_bytes", ((labels, memory) for labels, _, memory in listed))


def _gpu_words(reading: Gpus, of: Labels) -> Iterator[Row]:
    places = {gpu.uuid: str(gpu.index) for gpu in reading.gpus or ()}
    for gpu in reading.gpus or ():
        which = {**of, "gpu": str(gpu.index)}
        words = {"name": gpu.name, "uuid": gpu.uuid, "driver": reading.driver_version, "bus": gpu.pci_bus_id}
        words |= {"performance_state": gpu.performance_state, "recovery_action": gpu.recovery_action}
        yield "ragdeck_gpu_info", {**which, **{label: text or "" for label, text in words.items()}}, 1.0
        for reason in gpu.throttle_reasons or ():
            yield "ragdeck_gpu_throttle_reason", {**which, "reason": reason}, 1.0
    for device in reading.mig_devices or ():
        which = {**of, "gpu": str(device.gpu_index), "device": str(device.device)}
        yield "ragdeck_gpu_mig_device", {**which, "profile": device.profile, "uuid": device.uuid}, 1.0
    holders = (
        ({**of, "gpu": places.get(each.gpu_uuid, each.gpu_uuid), "process": each.name or "", "owner": each.owner or ""}, each)
        for each in reading.processes or ()
    )
    yield from _added("ragdeck_gpu_process_memory_bytes", ((labels, each.memory_bytes) for labels, each in holders))


def _added(name: str, values: Iterable[tuple[Labels, float | None]]) -> Iterator[Row]:
    """The known values of equal labels, added up."""
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for labels, value in values:
        if value is not None:
            key = tuple(labels.items())
            sums[key] = sums.get(key, 0.0) + value
    yield from ((name, dict(labels), value) for labels, value in sums.items())


# Services and sources


def _service(view: ServiceView) -> Iterator[Row]:
    of = {"service": view.name, "kind": view.kind}
    if view.state != "waiting":
        yield "ragdeck_service_up", of, float(view.state in ("ok", "degraded"))
    yield "ragdeck_service_state", {**of, "state": view.state}, 1.0
    for kind, part in (("liveness", view.liveness), ("functional", view.functional)):
        if part.age_seconds is not None:
            yield "ragdeck_service_probe_age_seconds", {**of, "probe": kind}, part.age_seconds
        if part.value is not None and not part.stale:
            found = service_numbers(part.value, view.state == "failed", False).metrics
            yield from _numbers({name: value for name, value in found.items() if name not in _SAID_BY_STATE}, of)
    if view.engine is not None and view.engine.value is not None and not view.engine.stale:
        yield from _numbers(metrics(view.engine.value), of)


_SAID_BY_STATE = frozenset({"service.up", "service.failed", "service.degraded", "service.loading"})


def _source(view: SourceView) -> Iterator[Row]:
    of = {"source": view.name}
    yield "ragdeck_source_up", of, float(view.problem is None and view.at is not None)
    if view.machines is not None:
        yield "ragdeck_source_machines", of, float(view.machines)
    if view.age_seconds is not None:
        yield "ragdeck_source_reading_age_seconds", of, view.age_seconds


# Names


def _numbers(found: Mapping[str, float], of: Labels) -> Iterator[Row]:
    for metric, value in found.items():
        kind, _, rest = metric.partition(".")
        which, _, field = rest.rpartition(".")
        name, factor = _name(kind, field)
        yield name, {**of, KEYS.get(kind, "which"): which} if which else of, value * factor


def _name(kind: str, field: str) -> tuple[str, float]:
    """A metric's name for Prometheus, and what its value is multiplied by."""
    known = NAMES.get(f"{kind}.{field}")
    if known is not None:
        return f"ragdeck_{known}", 1.0
    ending = next((ending for ending in SUFFIXES if field.endswith(ending)), "")
    base, factor = SUFFIXES.get(ending, ("", 1.0))
    return re.sub(r"[^a-z0-9_]", "_", f"ragdeck_{kind}_{field.removesuffix(ending)}{base}".lower()), factor
