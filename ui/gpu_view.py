"""The GPUs of one machine as HTML: what each does, what holds its memory, what slows it down, how healthy it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collectors.readings import Gpu, GpuProcess, Gpus
from collectors.views import MachineView, Part
from ui import cards, figures, gauges
from ui.format import UNKNOWN, bytes_text, count, escape, number, percent, plural, shortened, unknown_html
from ui.gauges import Tones, shown

SILENT = "the driver does not tell"
_REASONS: Mapping[str, str] = {
    "gpu_idle": "idle",
    "applications_clocks_setting": "application clocks",
    "sw_power_cap": "power limit",
    "hw_slowdown": "hardware slowdown",
    "sync_boost": "sync boost",
    "sw_thermal_slowdown": "heat (driver)",
    "hw_thermal_slowdown": "heat (hardware)",
    "hw_power_brake_slowdown": "power brake",
    "display_clock_setting": "display clocks",
}


def title(view: MachineView) -> str:
    part = view.gpus
    gpus = part.value.gpus if part and part.value else None
    if not gpus:
        return "GPUs"
    missing = max(0, (view.expected_gpus or 0) - len(gpus))
    if missing:
        return f"{plural(missing, 'GPU')} of {view.expected_gpus} missing"
    slowed = [gpu for gpu in gpus if gpu.slowed]
    if slowed:
        names = ", ".join(str(gpu.index) for gpu in slowed)
        return f"GPU {names} {'is' if len(slowed) == 1 else 'are'} slowed down by heat or power"
    known = [gpu.utilization_ratio for gpu in gpus if gpu.utilization_ratio is not None]
    busy = f", {percent(sum(known) / len(known))} busy" if known else ""
    return f"{plural(len(gpus), 'GPU')}{busy}"


def table(view: MachineView, tones: Tones) -> str:
    part = view.gpus
    gpus = part.value.gpus if part and part.value else None
    if gpus is None:
        return gauges.nothing(gauges.why(part, SILENT))
    if not gpus:
        return cards.empty("The driver says that there is no GPU.", "If there is one: dmesg and lspci on the machine say more.")
    rows = [_row(gpu, tones) for gpu in gpus]
    heads = ["GPU", "Busy", "VRAM", "Heat", "Power", "SM clock", "Held back by", "Memory errors"]
    return figures.table(heads, rows, wrap=(0,))


def _row(gpu: Gpu, tones: Tones) -> list[str]:
    split = "split by MIG: the driver tells it of no whole GPU" if gpu.mig_enabled else SILENT
    limit = "" if gpu.power_limit_watts is None else f" / {number(gpu.power_limit_watts)}"
    power = UNKNOWN if gpu.power_watts is None else f"{number(gpu.power_watts)}{limit} W"
    clock = "–" if gpu.sm_clock_mhz is None else f"{gpu.sm_clock_mhz:,.0f} / {_whole(gpu.sm_clock_max_mhz)} MHz"
    used = gauges.used_of(gpu.memory_used_bytes, gpu.memory_total_bytes)
    ratio = gpu.memory_used_ratio or gauges.ratio_of(gpu.memory_used_bytes, gpu.memory_total_bytes)
    hot = tones.of(f"gpu.{gpu.index}.temperature_celsius", gpu.temperature_celsius)
    return [
        f"<strong>{gpu.index}</strong> {escape(gpu.name or '')}",
        gauges.bar(gpu.utilization_ratio, percent(gpu.utilization_ratio), split),
        gauges.bar(ratio, used, "unified memory: the GPU has none of its own, or the driver does not tell"),
        gauges.bar(None, number(gpu.temperature_celsius, "°C"), SILENT, hot),
        gauges.bar(gauges.ratio_of(gpu.power_watts, gpu.power_limit_watts), power, SILENT),
        shown(clock, SILENT),
        held_back(gpu),
        errors(gpu),
    ]


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def held_back(gpu: Gpu) -> str:
    """The clock event reasons in words; idling and a power limit are normal, heat and brakes are not."""
    if gpu.throttle_reasons is None:
        return unknown_html(SILENT)
    words = ", ".join(_REASONS.get(reason, reason.replace("_", " ")) for reason in gpu.throttle_reasons) or "nothing"
    return cards.state_mark("warn", words) if gpu.slowed else f'<span class="rd-soft">{escape(words)}</span>'


def errors(gpu: Gpu) -> str:
    """Uncorrected ECC errors and what became of the rows; a mark where it needs somebody."""
    if gpu.row_remap_failed or gpu.ecc_uncorrected:
        text = "row remapping failed" if gpu.row_remap_failed else f"{gpu.ecc_uncorrected:,} uncorrected"
        return cards.state_mark("critical", text, _health(gpu))
    if gpu.row_remap_pending:
        return cards.state_mark("warn", "remapping pending", _health(gpu))
    if gpu.ecc_uncorrected is None:
        return unknown_html("this GPU has no ECC, or it is off" if not gpu.ecc_enabled else SILENT)
    return f'<span class="rd-soft" title="{escape(_health(gpu))}">none</span>'


def _health(gpu: Gpu) -> str:
    named = {
        "corrected since the driver was loaded": gpu.ecc_corrected,
        "uncorrected since then": gpu.ecc_uncorrected,
        "uncorrected since manufacture": gpu.ecc_uncorrected_lifetime,
        "rows remapped after uncorrected errors": gpu.rows_remapped_uncorrectable,
        "rows remapped after correctable errors": gpu.rows_remapped_correctable,
        "recovery action": gpu.recovery_action,
    }
    return "\n".join(f"{name}: {value}" for name, value in named.items() if value is not None)


def processes(part: Part[Gpus] | None) -> str:
    """What holds GPU memory, the largest first, with the unit or container it belongs to."""
    reading = part.value if part else None
    if reading is None or not reading.gpus:
        return ""
    if reading.processes is None:
        reason = gauges.why(part, "not told: in a container the driver may hide the processes of others")
        return f'<div class="rd rd-soft">What holds the memory: {unknown_html(reason)}</div>'
    if not reading.processes:
        return '<div class="rd rd-soft">No process holds GPU memory.</div>'
    places = {gpu.uuid: str(gpu.index) for gpu in reading.gpus}
    listed = sorted(reading.processes, key=lambda each: -(each.memory_bytes or 0))
    rows = [_process(each, places) for each in listed]
    return figures.table(["Process on the GPU", "Belongs to", "GPU", "VRAM", "PID"], rows, numeric=(2, 3, 4), wrap=(0, 1))


def _process(each: GpuProcess, places: Mapping[str | None, str]) -> list[str]:
    name = shortened(each.name, 60) if each.name else ""
    return [
        f'<span class="rd-plain" title="{escape(each.name or "")}">{escape(name)}</span>'
        if name
        else unknown_html("its name is hidden from this user"),
        escape(each.owner) if each.owner else unknown_html("neither a container nor a unit, or hidden from this user"),
        shown(places.get(each.gpu_uuid, "–"), "an instance of a GPU split by MIG"),
        shown(bytes_text(each.memory_bytes), SILENT),
        str(each.pid),
    ]


def details(reading: Gpus | None) -> str:
    """Everything else that the driver tells of each GPU."""
    if reading is None or not reading.gpus:
        return ""
    rows = [_detail(gpu) for gpu in reading.gpus]
    heads = [
        *("GPU", "Bandwidth in use", "Memory heat", "Fan", "Memory clock", "State", "PCIe", "NVLink", "ECC"),
        *("Remapped", "Recovery", "Persistence", "MIG", "Bus", "UUID"),
    ]
    told = f'<div class="rd rd-soft">Driver {escape(reading.driver_version)}</div>' if reading.driver_version else ""
    return told + figures.table(heads, rows, wrap=()) + _mig(reading)


def _detail(gpu: Gpu) -> list[str]:
    def text(value: str | None, reason: str = SILENT) -> str:
        return shown(value or "–", reason)

    memory_clock = (
        None if gpu.memory_clock_mhz is None else f"{gpu.memory_clock_mhz:,.0f} / {_whole(gpu.memory_clock_max_mhz)} MHz"
    )
    width = None if gpu.pcie_width is None else f"gen {count(gpu.pcie_generation)} ×{gpu.pcie_width}"
    limit = f"at most gen {count(gpu.pcie_generation_max)} ×{count(gpu.pcie_width_max)}; idle GPUs lower it"
    links = None if gpu.nvlinks_active is None else f"{gpu.nvlinks_active} up, {count(gpu.nvlinks_inactive)} down"
    remapped = gpu.rows_remapped_uncorrectable
    return [
        f"<strong>{gpu.index}</strong>",
        f'<span title="share of time in which its memory was read or written: not how full it is">'
        f"{shown(percent(gpu.memory_bandwidth_ratio), SILENT)}</span>",
        text(number(gpu.memory_temperature_celsius, "°C")),
        text(percent(gpu.fan_ratio), "it has no fan of its own"),
        text(memory_clock),
        text(gpu.performance_state),
        f'<span title="{escape(limit)}">{text(width)}</span>',
        text(links, "it has no NVLink, or the driver does not tell"),
        text(_on_off(gpu.ecc_enabled), "it has no ECC"),
        text(None if remapped is None else f"{remapped} / {count(gpu.rows_remapped_correctable)}", "it remaps no rows"),
        text(gpu.recovery_action),
        text(_on_off(gpu.persistence_enabled)),
        text(_on_off(gpu.mig_enabled), "it cannot be split"),
        text(gpu.pci_bus_id),
        f'<span class="rd-mono rd-small">{text(gpu.uuid)}</span>',
    ]


def _on_off(value: bool | None) -> str | None:
    return None if value is None else "on" if value else "off"


def _mig(reading: Gpus) -> str:
    if not reading.mig_devices:
        return ""
    rows: Sequence[Sequence[str]] = [
        [
            str(each.gpu_index),
            str(each.device),
            escape(each.profile),
            f'<span class="rd-mono rd-small">{escape(each.uuid)}</span>',
        ]
        for each in reading.mig_devices
    ]
    return figures.table(["GPU", "Instance", "Profile", "UUID"], rows, numeric=(0, 1))
