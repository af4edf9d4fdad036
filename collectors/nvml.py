"""The GPUs of this machine through NVML, as the same reading that `nvidia_smi` gives. Without library or driver there is a fault
with the reason, not an error. Knows no transport; `pynvml` (nvidia-ml-py) is loaded at the first look, here and in
`latency/readings/gpus.py` alone.

A value that this GPU or driver does not have is None. A GPU that is lost has a fault and does not hide the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from collectors.gpu_facts import fault_in, findings, slowed_by, throttle_names
from collectors.owners import owner
from collectors.readings import Fault, Gpu, GpuProcess, Gpus, MigDevice
from collectors.texts import cut, ratio

# nvmlDeviceGpuRecoveryAction_t, in nvidia-smi's words.
RECOVERY_ACTIONS = {0: "None", 1: "Reset", 2: "Reboot", 3: "Drain P2P", 4: "Drain and Reset"}
MEMORY_V2 = 0x02000028  # its `used` leaves out what the driver reserves, as nvidia-smi's does

# What a lost or broken GPU answers, against a value it does not have.
_WRONG_ERRORS = ("NVMLError_GpuIsLost", "NVMLError_Unknown", "NVMLError_ResetRequired", "NVMLError_OperatingSystem")


class Nvml:
    """Looks at the local GPUs. `library` is the module pynvml, or what behaves like it; None loads it. Safe in many threads."""

    def __init__(self, library: Any = None, read_text: Callable[[str], str] | None = None) -> None:
        self._library = library
        self._read_text = read_text or read_file
        self._lock = threading.Lock()
        self._open = False

    def read(self) -> Gpus:
        """The reading with processes and MIG devices; `gpus` is None, with the reason as a fault, when NVML is not there."""
        with self._lock:
            fault = self._start()
            if fault is not None:
                return Gpus(None, faults=(fault,))
            library = self._library
            driver = ask(library.nvmlSystemGetDriverVersion)
            number = ask(library.nvmlDeviceGetCount)
            if not number:
                text = "No devices were found" if number == 0 else "NVML does not say how many GPUs there are"
                return Gpus(() if number == 0 else None, text_of(driver), faults=(fault_in(text),))
            looks = [_Look(library, index, self._read_text) for index in range(number)]
            gpus = tuple(look.gpu() for look in looks)
            processes = [process for look in looks for process in look.processes()]
            mig = [device for look in looks for device in look.mig_devices()]
            faults = [fault for look in looks for fault in look.faults]
        return Gpus(gpus, text_of(driver), tuple(processes), tuple(mig), (*dict.fromkeys(faults), *findings(gpus)))

    def close(self) -> None:
        """Let go of the driver. A later `read` opens it again."""
        with self._lock:
            if self._open:
                self._open = False
                ask(self._library.nvmlShutdown)

    def _start(self) -> Fault | None:
        if self._open:
            return None
        if self._library is None:
            try:
                import pynvml  # type: ignore[import-untyped]
            except ImportError:
                return Fault("no_library", "nvidia-ml-py is not installed", "pip install nvidia-ml-py.", severity="note")
            self._library = pynvml
        try:
            self._library.nvmlInit()
        except Exception as error:  # NVMLError, or OSError from a broken library
            fault = fault_in(f"Failed to initialize NVML: {error}")
            absent = fault.code in ("no_library", "no_driver")
            return replace(fault, severity="note") if absent else fault
        self._open = True
        return None


class _Look:
    """One look at one GPU. A failing call is None; what is wrong, and not just absent, is noted in `faults`."""

    def __init__(self, library: Any, index: int, read_text: Callable[[str], str]) -> None:
        self.library = library
        self.index = index
        self.read_text = read_text
        self.faults: list[Fault] = []
        self.handle = self.ask("nvmlDeviceGetHandleByIndex", index, device=False)
        self.uuid = text_of(self.ask("nvmlDeviceGetUUID"))

    def ask(self, function: str, *arguments: Any, device: bool = True) -> Any:
        call = getattr(self.library, function, None)
        if call is None or (device and self.handle is None):
            return None
        try:
            return call(*((self.handle, *arguments) if device else arguments))
        except Exception as error:
            if type(error).__name__ in _WRONG_ERRORS:
                self.faults.append(fault_in(str(error), f"gpu {self.index}"))
            return None

    def constant(self, name: str) -> Any:
        return getattr(self.library, name, None)

    def field(self, name: str) -> int | None:
        """A field of nvmlDeviceGetFieldValues that is an unsigned number."""
        values = self.ask("nvmlDeviceGetFieldValues", [self.constant(name)]) if self.constant(name) is not None else None
        return None if not values or values[0].nvmlReturn != 0 else int(values[0].value.uiVal)

    def ecc(self, error: str, counter: str) -> int | None:
        kind, scope = self.constant(f"NVML_MEMORY_ERROR_TYPE_{error}"), self.constant(f"NVML_{counter}_ECC")
        count: int | None = self.ask("nvmlDeviceGetTotalEccErrors", kind, scope)
        return count

    def gpu(self) -> Gpu:
        utilization = self.ask("nvmlDeviceGetUtilizationRates")
        memory = self.ask("nvmlDeviceGetMemoryInfo", MEMORY_V2) or self.ask("nvmlDeviceGetMemoryInfo")
        mask = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:
            mask = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        reasons = throttle_names(mask)
        state = self.ask("nvmlDeviceGetPerformanceState")
        gpu = Gpu(
            index=self.index,
            uuid=self.uuid,
            name=text_of(self.ask("nvmlDeviceGetName")),
            pci_bus_id=text_of(getattr(self.ask("nvmlDeviceGetPciInfo"), "busId", None)),
            utilization_ratio=ratio(getattr(utilization, "gpu", None), 100.0),
            memory_bandwidth_ratio=ratio(getattr(utilization, "memory", None), 100.0),
            memory_total_bytes=getattr(memory, "total", None),
            memory_used_bytes=getattr(memory, "used", None),
            memory_free_bytes=getattr(memory, "free", None),
            memory_used_ratio=ratio(getattr(memory, "used", None), getattr(memory, "total", None)),
            temperature_celsius=self.ask("nvmlDeviceGetTemperature", self.constant("NVML_TEMPERATURE_GPU")),
            memory_temperature_celsius=self.field("NVML_FI_DEV_MEMORY_TEMP") or None,
            fan_ratio=ratio(self.ask("nvmlDeviceGetFanSpeed"), 100.0),
            power_watts=ratio(self.ask("nvmlDeviceGetPowerUsage"), 1000.0),
            power_limit_watts=ratio(self.ask("nvmlDeviceGetEnforcedPowerLimit"), 1000.0),
            performance_state=f"P{state}" if isinstance(state, int) and 0 <= state <= 15 else None,  # 32 is "unknown"
            throttle_reasons=reasons,
            slowed=slowed_by(reasons),
            mig_enabled=_switch(self.first("nvmlDeviceGetMigMode")),
            persistence_enabled=_switch(self.ask("nvmlDeviceGetPersistenceMode")),
        )
        return self.with_links(self.with_health(self.with_clocks(gpu)))

    def first(self, function: str) -> Any:
        """The first of (current, pending)."""
        values = self.ask(function)
        return values[0] if values else None

    def with_clocks(self, gpu: Gpu) -> Gpu:
        sm, memory = self.constant("NVML_CLOCK_SM"), self.constant("NVML_CLOCK_MEM")
        return replace(
            gpu,
            sm_clock_mhz=self.ask("nvmlDeviceGetClockInfo", sm),
            sm_clock_max_mhz=self.ask("nvmlDeviceGetMaxClockInfo", sm),
            memory_clock_mhz=self.ask("nvmlDeviceGetClockInfo", memory),
            memory_clock_max_mhz=self.ask("nvmlDeviceGetMaxClockInfo", memory),
        )

    def with_health(self, gpu: Gpu) -> Gpu:
        rows = self.ask("nvmlDeviceGetRemappedRows")
        correctable, uncorrectable, pending, failed = rows if rows else (None, None, None, None)
        action = self.field("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION")
        return replace(
            gpu,
            ecc_enabled=_switch(self.first("nvmlDeviceGetEccMode")),
            ecc_corrected=self.ecc("CORRECTED", "VOLATILE"),
            ecc_uncorrected=self.ecc("UNCORRECTED", "VOLATILE"),
            ecc_uncorrected_lifetime=self.ecc("UNCORRECTED", "AGGREGATE"),
            rows_remapped_correctable=correctable,
            rows_remapped_uncorrectable=uncorrectable,
            row_remap_pending=_switch(pending),
            row_remap_failed=_switch(failed),
            recovery_action=None if action is None else RECOVERY_ACTIONS.get(action, f"action {action}"),
        )

    def with_links(self, gpu: Gpu) -> Gpu:
        states = [self.ask("nvmlDeviceGetNvLinkState", link) for link in range(self.constant("NVML_NVLINK_MAX_LINKS") or 0)]
        known = [state for state in states if state is not None]
        active = sum(1 for state in known if state) if known else None
        speed = self.field("NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON") if active else None
        return replace(
            gpu,
            pcie_generation=self.ask("nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_generation_max=self.ask("nvmlDeviceGetMaxPcieLinkGeneration"),
            pcie_width=self.ask("nvmlDeviceGetCurrPcieLinkWidth"),
            pcie_width_max=self.ask("nvmlDeviceGetMaxPcieLinkWidth"),
            nvlinks_active=active,
            nvlinks_inactive=None if active is None else len(known) - active,
            nvlink_bytes_per_second=None if active is None or speed is None else active * speed * 1e6,
        )

    def processes(self) -> list[GpuProcess]:
        found = []
        for process in self.ask("nvmlDeviceGetComputeRunningProcesses") or []:
            name = self.ask("nvmlSystemGetProcessName", process.pid, device=False)
            group = owner(self.read_text(f"/proc/{process.pid}/cgroup")) if name else None
            found.append(GpuProcess(self.uuid or f"gpu {self.index}", process.pid, text_of(name), process.usedGpuMemory, group))
        return found

    def mig_devices(self) -> list[MigDevice]:
        if not _switch(self.first("nvmlDeviceGetMigMode")):
            return []
        found = []
        for device in range(self.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
            handle = self.ask("nvmlDeviceGetMigDeviceHandleByIndex", device)
            if handle is not None:
                name = text_of(ask(self.library.nvmlDeviceGetName, handle))
                uuid = text_of(ask(self.library.nvmlDeviceGetUUID, handle))
                found.append(MigDevice(self.index, device, (name or "").rpartition("MIG ")[2], uuid or ""))
        return found


def ask(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call gives; None for what NVML does not know of this GPU."""
    try:
        return call(*arguments)
    except Exception:  # NVMLError: the value is unknown
        return None


def _switch(value: Any) -> bool | None:
    return None if value is None else bool(value)


def text_of(value: Any) -> str | None:
    """Old versions of the library give bytes."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return cut(value) or None if isinstance(value, str) else None


def read_file(path: str) -> str:
    """The file's text, empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
