"""One machine but its GPUs: processor, memory, disks, network, processes, units and containers as HTML. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Any

from collectors.alerts import Alert
from collectors.readings import Container, Cpu, Disk, Fault, Filesystem, Host, Interface, Memory, Pressure, Process, Unit
from collectors.views import MachineView, Part
from ui import cards, figures, gauges, machines_view
from ui.format import bytes_text, code_html, count, escape, number, percent, plural, seconds, unknown_html
from ui.gauges import Tones, shown

SILENT = "the machine does not tell"
MAX_PROCESSES = 12
_UNIT_STATES = {"active": "ok", "failed": "critical", "activating": "warn", "deactivating": "warn", "reloading": "warn"}
_CONTAINER_STATES = {"running": "ok", "restarting": "warn", "dead": "critical", "removing": "warn"}


def header(view: MachineView, alerts: Sequence[Alert], zone: tzinfo) -> str:
    """State, address, what it is, since when it is up, and how old the reading is."""
    host = view.host.value if view.host else None
    cores = plural(host.cpu.cores, "core") if host and host.cpu and host.cpu.cores else ""
    memory = bytes_text(host.memory.total_bytes) if host and host.memory and host.memory.total_bytes else ""
    uptime = f"up {gauges.duration(host.uptime_seconds)}" if host and host.uptime_seconds is not None else ""
    source = "read by Prometheus" if view.source == "prometheus" else ""
    parts = [view.address, cores, memory, machines_view.gpu_words(view), uptime, source]
    told = "".join(f'<span class="rd-part">{escape(text)}</span>' for text in parts if text)
    age = gauges.age(machines_view.oldest(view), zone)
    return f'<div class="rd rd-head"><span class="rd-state">{machines_view.state(view, alerts)}</span>{told}{age}</div>'


def faults(view: MachineView) -> str:
    """What the machine, or the way to it, says is wrong; notes are on the values they explain."""
    html = machines_view.problem_note(view.problem, view.retry_seconds) if view.problem else ""
    for severity in ("critical", "warning"):
        found = [fault for fault in view.faults if fault.severity == severity]
        if found:
            html += cards.note(gauges.FAULT_SEVERITIES[severity], *(_fault(fault) for fault in found))
    late = [
        f"<strong>{name}</strong> cannot be read: {escape(gauges.said(part.problem))}"
        for name, part in view.parts()
        if part.problem
    ]
    return html + (cards.note("warn", *late) if late and view.problem is None else "")


def beside_faults(alerts: Iterable[Alert]) -> list[Alert]:
    """The alerts that say more than `faults` does: those that a fault raised repeat its words."""
    return [alert for alert in alerts if not alert.metric.startswith("fault.")]


def _fault(fault: Fault) -> str:
    subject = f"<strong>{escape(fault.subject)}</strong>: " if fault.subject else ""
    return f"{subject}{code_html(gauges.sentence(fault.text))} <strong>Next:</strong> {code_html(fault.next_step)}"


# ------------------------------------------------------------------------------------------------------------- processor


def cpu_title(host: Host | None) -> str:
    busy = host.cpu.busy_ratio if host and host.cpu else None
    return "CPU" if busy is None else f"CPU is {percent(busy)} busy"


def cpu(part: Part[Host] | None, tones: Tones) -> str:
    host = part.value if part else None
    reason = gauges.why(part, SILENT)
    if host is None or host.cpu is None:
        return gauges.nothing(reason)
    if host.seconds is None:
        reason = "rates need two readings"
    found: Cpu = host.cpu
    figures_ = [
        ("user", shown(percent(found.user_ratio), reason)),
        ("system", shown(percent(found.system_ratio), reason)),
        ("waiting for disks", _toned(percent(found.iowait_ratio), reason, tones.of("cpu.iowait_ratio", found.iowait_ratio))),
        ("stolen by other guests", shown(percent(found.steal_ratio), reason)),
        ("load 1 / 5 / 15 min", _load(host, reason, tones)),
    ]
    meter = gauges.meter_line(found.busy_ratio, tones.of("cpu.busy_ratio", found.busy_ratio))
    return f'<div class="rd">{meter}</div>{_line(figures_)}{cores(host)}'


def _toned(text: str, reason: str, tone: str) -> str:
    return gauges.bar(None, text, reason, tone)


def _load(host: Host, reason: str, tones: Tones) -> str:
    if host.load is None:
        return unknown_html(reason)
    text = " / ".join(number(value) for value in (host.load.average_1m, host.load.average_5m, host.load.average_15m))
    count_of = host.cpu.cores if host.cpu else None
    each = host.load.average_15m / count_of if count_of else None
    return _toned(text, reason, tones.of("load.per_core_15m", each))


def cores(host: Host) -> str:
    """One upright bar a core: waiting for disks is pale, above the busy part."""
    if not host.cores:
        return ""
    bars = "".join(
        f'<i class="unknown" title="core {core.index}: {escape("not known")}"></i>'
        if core.busy_ratio is None
        else f'<i style="--v:{core.busy_ratio * 100:.0f}%;--w:{(core.iowait_ratio or 0) * 100:.0f}%" title="'
        f"core {core.index}: {percent(core.busy_ratio)} busy"
        f'{f", {percent(core.iowait_ratio)} waiting for disks" if core.iowait_ratio else ""}"></i>'
        for core in host.cores
    )
    return f'<div class="rd rd-cores" role="img" aria-label="busy share of {plural(len(host.cores), "core")}">{bars}</div>'


def _line(items: Iterable[tuple[str, str]]) -> str:
    """Names and values side by side; values are HTML."""
    told = "".join(f'<span class="rd-pair"><span class="rd-soft">{escape(name)}</span> {value}</span>' for name, value in items)
    return f'<div class="rd rd-pairs">{told}</div>'


# ---------------------------------------------------------------------------------------------------------------- memory


def memory_title(host: Host | None) -> str:
    memory = host.memory if host else None
    if memory is None or memory.used_bytes is None:
        return "Memory"
    return f"Memory: {gauges.used_of(memory.used_bytes, memory.total_bytes)} used"


def memory(part: Part[Host] | None, tones: Tones) -> str:
    host = part.value if part else None
    reason = gauges.why(part, SILENT)
    if host is None or host.memory is None:
        return gauges.nothing(reason)
    found: Memory = host.memory
    no_swap = "the machine has no swap" if found.swap_total_bytes == 0 else reason
    swap = "–" if not found.swap_total_bytes else gauges.used_of(found.swap_used_bytes, found.swap_total_bytes)
    pairs = [
        ("available", shown(bytes_text(found.available_bytes), reason)),
        ("cached", shown(bytes_text(found.cached_bytes), reason)),
        ("buffers", shown(bytes_text(found.buffers_bytes), reason)),
        ("swap", shown(swap, no_swap)),
    ]
    if found.limit_bytes is not None:
        pairs.append(("limit of its container", shown(gauges.used_of(found.limit_used_bytes, found.limit_bytes), reason)))
    meter = gauges.meter_line(found.used_ratio, tones.of("memory.used_ratio", found.used_ratio))
    return f'<div class="rd">{meter}</div>{_line(pairs)}{pressure(host.pressures, part)}'


def pressure(found: Sequence[Pressure] | None, part: Part[Host] | None) -> str:
    if not found:
        return _line([("pressure (PSI)", unknown_html(gauges.why(part, "the kernel there does not measure it")))])
    silent = "the kernel does not tell it of this resource"
    rows = [
        [
            escape(each.resource),
            *(
                shown(percent(value), silent)
                for value in (
                    each.some_10s_ratio,
                    each.some_60s_ratio,
                    each.some_300s_ratio,
                    each.full_10s_ratio,
                    each.full_60s_ratio,
                )
            ),
        ]
        for each in found
    ]
    heads = ["Pressure (PSI)", "some, 10 s", "60 s", "5 min", "all, 10 s", "60 s"]
    return figures.table(heads, rows, numeric=range(1, 6))


# ----------------------------------------------------------------------------------------------------------------- disks


def filesystems(part: Part[Any] | None, tones: Tones) -> str:
    listed: Sequence[Filesystem] = (part.value.filesystems or ()) if part and part.value else ()
    if not listed:
        return gauges.nothing(gauges.why(part, "none was listed"))
    rows = [
        [
            f'<span class="rd-plain">{escape(each.mount)}</span>{gauges.below(_device(each))}',
            gauges.bar(
                each.used_ratio,
                percent(each.used_ratio),
                SILENT,
                tones.of(f"filesystem.{each.mount}.used_ratio", each.used_ratio) if each.can_fill else "",
                "" if each.can_fill else "it cannot fill up: an image, or mounted read-only",
            ),
            shown(bytes_text(each.available_bytes), SILENT),
            shown(bytes_text(each.total_bytes), SILENT),
            shown(percent(each.inodes_used_ratio), "this file system does not count its inodes"),
        ]
        for each in sorted(listed, key=lambda each: -(each.used_ratio or 0.0))
    ]
    return figures.table(["Mounted at", "Used", "Free", "Size", "Inodes"], rows, numeric=(2, 3, 4), wrap=(0,))


def _device(each: Filesystem) -> str:
    return " · ".join(text for text in (each.device, each.type, "read-only" if each.read_only else "") if text)


def disks(part: Part[Host] | None, tones: Tones) -> str:
    host = part.value if part else None
    listed: Sequence[Disk] = (host.disks or ()) if host else ()
    reason = "rates need two readings" if host and host.seconds is None else gauges.why(part, SILENT)
    if not listed:
        return gauges.nothing(gauges.why(part, "no disk was listed: a container sees none"))
    rows = [
        [
            escape(each.name),
            gauges.bar(
                each.busy_ratio, percent(each.busy_ratio), reason, tones.of(f"disk.{each.name}.busy_ratio", each.busy_ratio)
            ),
            shown(_rate(each.read_bytes_per_second), reason),
            shown(_rate(each.written_bytes_per_second), reason),
            shown(number(each.reads_per_second, "/s"), reason),
            shown(number(each.writes_per_second, "/s"), reason),
            shown(seconds(each.wait_seconds), "no request in this time"),
            shown(number(each.queue_length), reason),
        ]
        for each in listed
    ]
    heads = ["Disk", "Busy", "Read", "Written", "Reads", "Writes", "Wait", "Queue"]
    return figures.table(heads, rows, numeric=range(2, 8))


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{bytes_text(value)}/s"


def network(part: Part[Host] | None) -> str:
    host = part.value if part else None
    listed: Sequence[Interface] = (host.interfaces or ()) if host else ()
    reason = "rates need two readings" if host and host.seconds is None else gauges.why(part, SILENT)
    if not listed:
        return gauges.nothing(gauges.why(part, "no interface was listed"))
    rows = [
        [
            escape(each.name),
            shown(_rate(each.received_bytes_per_second), reason),
            shown(_rate(each.sent_bytes_per_second), reason),
            shown(number(each.received_packets_per_second, "/s"), reason),
            shown(number(each.sent_packets_per_second, "/s"), reason),
            shown(number(each.errors_per_second, "/s"), reason),
            shown(number(each.drops_per_second, "/s"), reason),
        ]
        for each in listed
    ]
    heads = ["Interface", "Received", "Sent", "Packets in", "Packets out", "Errors", "Drops"]
    return figures.table(heads, rows, numeric=range(1, 7))


# ------------------------------------------------------------------------------------------------------------- processes


def processes(part: Part[Host] | None, by_memory: bool) -> str:
    host = part.value if part else None
    if host is None or host.processes is None:
        return gauges.nothing(gauges.why(part, "not read yet: every 10 s, twice for rates"))

    def size(each: Process) -> float:
        value = each.memory_bytes if by_memory else each.cpu_ratio
        return -1.0 if value is None else float(value)

    listed = sorted(host.processes, key=size, reverse=True)[:MAX_PROCESSES]
    rows = [
        [
            f'<span class="rd-plain">{escape(each.name)}</span>',
            str(each.pid),
            shown(percent(each.cpu_ratio), "rates need two readings"),
            shown(bytes_text(each.memory_bytes), "not told of this process"),
            shown(count(each.threads), "not told of this process"),
            escape(each.state),
        ]
        for each in listed
    ]
    return figures.table(["Process", "PID", "CPU", "Memory", "Threads", "State"], rows, numeric=(1, 2, 3, 4), wrap=(0,))


# --------------------------------------------------------------------------------------------------- units and containers


def units(part: Part[Any] | None) -> str:
    listed: Sequence[Unit] | None = part.value.units if part and part.value else None
    if listed is None:
        return gauges.nothing(gauges.why(part, "systemd did not answer"))
    if not listed:
        return cards.empty(
            "No unit is watched, and none has failed.", "Name the units to watch in the machine's setting `units`."
        )
    rows = [
        [
            f'<span class="rd-plain">{escape(each.name)}</span>{gauges.below(each.description or "")}',
            cards.state_mark(_UNIT_STATES.get(each.active or "", "unknown"), each.active or "not known", _unit_hover(each)),
            shown(gauges.duration(each.state_seconds), "systemd does not tell"),
            shown(count(each.restarts), "this systemd does not count them"),
            shown(bytes_text(each.memory_bytes), "memory accounting is off, or it does not run"),
            shown(str(each.main_pid) if each.main_pid else "–", "it has no main process now"),
        ]
        for each in listed
    ]
    return figures.table(["Unit", "State", "Since", "Restarts", "Memory", "PID"], rows, numeric=(2, 3, 4, 5), wrap=(0,))


def _unit_hover(unit: Unit) -> str:
    named = {
        "sub-state": unit.sub,
        "result": unit.result,
        "exit status": unit.exit_status,
        "enabled": unit.enabled,
        "load": unit.load,
    }
    return "\n".join(f"{name}: {value}" for name, value in named.items() if value not in (None, ""))


def containers(part: Part[Any] | None) -> str:
    listed: Sequence[Container] | None = part.value.containers if part and part.value else None
    if listed is None:
        return gauges.nothing(gauges.why(part, "Docker did not answer"))
    if not listed:
        return cards.empty("Docker runs no container.", "Containers show up here as soon as one is created.")
    rows = [
        [
            f'<span class="rd-plain">{escape(each.name)}</span>{gauges.below(each.image or "")}',
            _container_state(each),
            shown(gauges.duration(each.state_seconds), "Docker does not tell"),
            shown(count(each.restarts), "Docker does not tell"),
            shown(bytes_text(each.memory_bytes), "it does not run, or Docker does not tell"),
        ]
        for each in listed
    ]
    return figures.table(["Container", "State", "Since", "Restarts", "Memory"], rows, numeric=(2, 3, 4), wrap=(0,))


def _container_state(each: Container) -> str:
    word, severity = each.state or "not known", _CONTAINER_STATES.get(each.state or "", "unknown")
    if each.health == "unhealthy":
        severity, word = "critical", f"{word}, unhealthy"
    elif each.health:
        word = f"{word}, {each.health}"
    elif each.out_of_memory:
        severity, word = "critical", f"{word}, out of memory"
    elif each.state == "exited" and each.exit_code:
        severity, word = "critical", f"exited with {each.exit_code}"
    return cards.state_mark(severity, word, f"id {each.id}")


def log_names(view: MachineView) -> list[str]:
    """Units and containers whose log can be asked for."""
    found: list[str] = []
    if view.units and view.units.value:
        found += [each.name for each in view.units.value.units or ()]
    if view.containers and view.containers.value:
        found += [each.name for each in view.containers.value.containers or ()]
    return found


def log_text(text: str) -> str:
    """A log as it may be shown: escape sequences and other control characters are left out."""
    plain = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return "".join(char for char in plain if char in "\n\t" or char.isprintable()).strip("\n")


_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")


def configured(view: MachineView, config_file: Path | None) -> str:
    """Where a machine comes from that was not added on a page."""
    file = f"<code>{escape(config_file.name if config_file else 'dashboard.toml')}</code>"
    name = f"<code>name = {escape(json.dumps(view.name, ensure_ascii=False))}</code>"
    if view.source == "prometheus":
        said = f"The Prometheus server at {escape(view.address)} tells of it: what that scrapes is configured there."
    elif view.source == "local":
        said = f"It is always watched. What is read of it can be set in {file}, in a <code>[[machines]]</code> with {name}."
    else:
        said = f"It is configured in {file}, in the <code>[[machines]]</code> with {name}: change or remove it there."
    return f'<div class="rd rd-plain">{said}</div>'


def absence(part: Part[Any]) -> str:
    """Why the machine does not have a part, in its own words."""
    return gauges.why(part, "the machine says that it has none")
