"""What NVIDIA's driver says of itself and of a GPU, whichever way it was asked: failures, throttle reasons, health. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from collectors.readings import Fault, Gpu, Severity
from collectors.texts import cut

# Bits of nvmlClocksEventReasons (nvml.h), by the names of `clocks_event_reasons.*`.
THROTTLE_BITS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
SLOWDOWNS = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"})

# (code, what the text holds, what to do, severity): the first that fits counts.
_FAILURES: tuple[tuple[str, str, str, Severity], ...] = (
    (
        "gpu_lost",
        r"GPU is lost|fallen off the bus",
        "Reboot the machine; if it comes back, look for XID 79 in dmesg and have card, power and riser checked.",
        "critical",
    ),
    (
        "driver_mismatch",
        r"version mismatch",
        "The driver was updated under a running kernel module: reboot, or stop all GPU programs and reload the module.",
        "critical",
    ),
    (
        "device_handle",
        r"Unable to determine the device handle",
        "One GPU does not answer: look for its XID in dmesg, then reset it (nvidia-smi --gpu-reset -i N) or reboot.",
        "critical",
    ),
    (
        "nvml_unknown_error",
        r"Failed to initialize NVML: Unknown Error",
        "Typical of a container that lost its devices after systemd reloaded: restart it, and use the systemd cgroup fix.",
        "critical",
    ),
    (
        "nvml_no_permission",
        r"Failed to initialize NVML: Insufficient Permissions",
        "This user may not open /dev/nvidiactl: check the groups and the modes of /dev/nvidia*.",
        "critical",
    ),
    (
        "no_driver",
        r"couldn't communicate with the NVIDIA driver|Driver Not Loaded|driver is not loaded",
        "The kernel module is not loaded: `lsmod | grep nvidia`, `dkms status`; after a kernel update install its headers.",
        "critical",
    ),
    (
        "no_library",
        r"NVIDIA-SMI couldn't find libnvidia-ml|NVML Shared Library Not Found",
        "Install the driver's libraries.",
        "warning",
    ),
    ("nvml_failed", r"Failed to initialize NVML", "Run `nvidia-smi` by hand on the machine; then dmesg.", "critical"),
    (
        "no_gpus",
        r"No devices were found",
        "The driver runs and sees no GPU: `lspci | grep -i nvidia`, dmesg; was one passed to this machine at all?",
        "critical",
    ),
    (
        "unknown_field",
        r"is not a valid field to query",
        "The driver was changed: the fields are asked again at the next connection.",
        "warning",
    ),
    ("gpu_needs_reset", r"requires reset", "Stop its programs and reset it: nvidia-smi --gpu-reset -i N.", "critical"),
    (
        "no_nvidia_smi",
        r"nvidia-smi: (command )?not found|nvidia-smi: No such file",
        "No NVIDIA driver is installed there: leave GPUs out of the settings.",
        "note",
    ),
    ("gpu_value_error", r"Unknown Error|ERR!|GPU access blocked", "The GPU answers in part: look for XIDs in dmesg.", "warning"),
)
_GPU_ADDRESS = re.compile(r"GPU ?(?:[0-9]{1,3}: ?)?([0-9A-Fa-f]{3,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])")


def fault_in(text: str, subject: str | None = None) -> Fault:
    """The fault that a text of the driver or of nvidia-smi stands for; `nvidia_smi_failed` for an unknown one."""
    address = _GPU_ADDRESS.search(text)
    subject = subject or (f"gpu {address[1]}" if address else None)
    for code, pattern, next_step, severity in _FAILURES:
        if re.search(pattern, text, re.IGNORECASE):
            return Fault(code, cut(text), next_step, subject, severity)
    return Fault("nvidia_smi_failed", cut(text), "Run `nvidia-smi` by hand on the machine.", subject)


def throttle_names(mask: int | None) -> tuple[str, ...] | None:
    """The names of the active reasons; () is "runs as fast as it can", None unknown. A bit without a name is `bit_0x200`."""
    if mask is None:
        return None
    bits = (1 << position for position in range(mask.bit_length()) if mask >> position & 1)
    return tuple(THROTTLE_BITS.get(bit, f"bit_{bit:#x}") for bit in bits)


def slowed_by(reasons: tuple[str, ...] | None) -> bool | None:
    """Whether heat, power brake or another hardware slowdown is among the reasons; a power cap and idling are normal."""
    return None if reasons is None else not SLOWDOWNS.isdisjoint(reasons)


def findings(gpus: Iterable[Gpu]) -> list[Fault]:
    """What is wrong with GPUs that answer."""
    return [fault for gpu in gpus for fault in _health(gpu)]


def _health(gpu: Gpu) -> Iterable[Fault]:
    subject = f"gpu {gpu.index}"
    if gpu.recovery_action is not None and gpu.recovery_action.lower() != "none":
        text = f"the driver asks for a recovery action: {gpu.recovery_action}"
        yield Fault("recovery_action", text, "Drain the GPU, then do what it asks for.", subject, "critical")
    if gpu.row_remap_failed:
        yield Fault("row_remap_failed", "row remapping failed", "Its memory is worn: replace the card.", subject, "critical")
    if gpu.row_remap_pending:
        yield Fault("row_remap_pending", "a row is to be remapped", "Reset the GPU when it is idle.", subject)
    if gpu.ecc_uncorrected:
        text = f"{gpu.ecc_uncorrected} uncorrected memory errors since the driver was loaded"
        yield Fault(
            "ecc_uncorrected", text, "Restart what runs on it, reset it; if they return, replace it.", subject, "critical"
        )
    if gpu.persistence_enabled is False:
        text = "persistence mode is off: each look wakes the GPU and takes 1-2 s"
        yield Fault("persistence_off", text, "Start nvidia-persistenced (or `nvidia-smi -pm 1`).", subject, "note")
