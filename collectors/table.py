"""A snapshot as text for a terminal. Unknown is `-`. Pure; texts of machines are cut and freed of control characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from collectors.readings import Gpu
from collectors.services import ProbeResult
from collectors.texts import cut
from collectors.views import MachineView, Part, ServiceView, Snapshot

GIB = 1024**3
MACHINE_COLUMNS = (
    "MACHINE",
    "STATE",
    "AGE",
    "CPU",
    "LOAD",
    "MEMORY",
    "DISK",
    "GPU",
    "GPU MEMORY",
    "GPU °C",
    "UNITS",
    "CONTAINERS",
)
SERVICE_COLUMNS = ("SERVICE", "KIND", "STATE", "LIVENESS", "FUNCTION", "WHAT")


def table(snapshot: Snapshot) -> str:
    """Machines, services, sources, and under them what is wrong with what to do next."""
    blocks = [_rows(MACHINE_COLUMNS, [_machine(machine) for machine in snapshot.machines])]
    if snapshot.services:
        blocks.append(_rows(SERVICE_COLUMNS, [_service(service) for service in snapshot.services]))
    if snapshot.sources:
        rows = [(each.name, each.address, _number(each.machines), _seconds(each.age_seconds)) for each in snapshot.sources]
        blocks.append(_rows(("PROMETHEUS", "ADDRESS", "MACHINES", "AGE"), rows))
    problems = list(_problems(snapshot))
    return "\n\n".join([*blocks, *(["\n".join(problems)] if problems else [])])


def _machine(machine: MachineView) -> tuple[str, ...]:
    host = machine.host.value if machine.host else None
    cpu, memory, load = (host.cpu, host.memory, host.load) if host else (None, None, None)
    gpus = (machine.gpus.value.gpus if machine.gpus and machine.gpus.value else None) or ()
    filesystems = (machine.filesystems.value.filesystems if machine.filesystems and machine.filesystems.value else None) or ()
    disks = [each.used_ratio for each in filesystems if each.used_ratio is not None]
    ages = [part.age_seconds for _, part in machine.parts() if part.age_seconds is not None and not part.absent]
    return (
        cut(machine.name, 40),
        machine.state,
        _seconds(machine.host.age_seconds if machine.host else min(ages, default=None)),
        _percent(cpu.busy_ratio if cpu else None),
        "-" if load is None else f"{load.average_1m:.2f}",
        _percent(memory.used_ratio if memory else None),
        _percent(max(disks, default=None)),
        _each(_percent(gpu.utilization_ratio) for gpu in gpus),
        _each(_gpu_memory(gpu) for gpu in gpus),
        _each("-" if gpu.temperature_celsius is None else f"{gpu.temperature_celsius:.0f}" for gpu in gpus),
        _states(machine.units, "units", "active", "active"),
        _states(machine.containers, "containers", "state", "running"),
    )


def _service(service: ServiceView) -> tuple[str, ...]:
    result = service.result
    said = cut(result.message, 70) if result else ""
    return (
        cut(service.name, 40),
        service.kind,
        service.state,
        _latency(service.liveness),
        _latency(service.functional),
        said or "-",
    )


def _problems(snapshot: Snapshot) -> Iterable[str]:
    for machine in snapshot.machines:
        seen = {machine.problem} if machine.problem else set()
        seen |= {part.problem for _, part in machine.parts() if part.problem}
        for problem in sorted(seen, key=lambda each: each.text):
            yield f"! {cut(machine.name, 40)}: {problem.text}\n    {problem.next_step}"
        for fault in machine.faults:
            if fault.severity != "note":
                subject = f" {fault.subject}" if fault.subject else ""
                yield f"! {cut(machine.name, 40)}{subject}: {cut(fault.text)} [{fault.severity}]\n    {fault.next_step}"
    for service in snapshot.services:
        result = service.result
        if result is not None and result.state != "ok":
            yield f"! {cut(service.name, 40)}: {cut(result.message)}\n    {cut(result.next_step)}"
    for source in snapshot.sources:
        if source.problem:
            yield f"! {cut(source.name, 40)}: {source.problem.text}\n    {source.problem.next_step}"


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; those in which nothing is known are left out."""
    used = [index for index in range(len(columns)) if index == 0 or any(row[index].strip("- ") for row in rows)]
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in used]
    return "\n".join(
        "  ".join(row[index].ljust(width) for index, width in zip(used, widths, strict=True)).rstrip() for row in [columns, *rows]
    )


def _each(texts: Iterable[str]) -> str:
    return " ".join(texts) or "-"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.0f}%"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}s"


def _latency(part: Part[ProbeResult]) -> str:
    return "-" if part.value is None else f"{1000 * part.value.latency.total_seconds:.0f}ms"


def _gpu_memory(gpu: Gpu) -> str:
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    return "-" if used is None else f"{used / GIB:.1f}" + ("" if total is None else f"/{total / GIB:.0f}G")


def _states(part: Part[object] | None, name: str, field: str, good: str) -> str:
    """`5/6`: so many are as they should be."""
    listed: tuple[object, ...] = getattr(part.value, name, None) or () if part is not None else ()
    states = [getattr(each, field) for each in listed]
    return f"{states.count(good)}/{len(states)}" if states else "-"
