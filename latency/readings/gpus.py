"""The GPUs of this machine through NVML, only what can change within a query: a handful of calls a GPU. Knows no schedule.

`collectors.nvml` reads everything there is to know, which takes too long for twenty times a second. What a GPU does not tell is
left out and not asked again; without library or driver `problem` says why there is nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from collectors.gpu_facts import fault_in, slowed_by, throttle_names
from collectors.nvml import MEMORY_V2, ask, read_file, text_of
from collectors.owners import owner
from collectors.texts import cut, ratio

IDLE = "gpu_idle"  # the driver calls it a reason for low clocks; it is none that slows anything down
# What a GPU, driver or library does not have; AttributeError is a library without the function.
_NEVER = (
    *("NVMLError_NotSupported", "NVMLError_FunctionNotFound", "NVMLError_InvalidArgument", "NVMLError_NoPermission"),
    *("NVMLError_ArgumentVersionMismatch", "AttributeError"),
)
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")


class GpuUse(NamedTuple):
    """A process that holds memory of a GPU. `name` may be empty: one of another container is not told."""

    gpu: int
    pid: int
    name: str
    owner: str | None
    memory_bytes: int | None


class GpuReader:
    """`library` is the module pynvml, or what behaves like it; None loads it at the first look. Used by one thread."""

    def __init__(self, library: Any = None, read_text: Callable[[str], str] | None = None) -> None:
        self._library = library
        self._read_text = read_text or read_file
        self._asks: dict[int, Callable[..., Any]] = {}
        self._opened = False
        self._unsupported: set[tuple[Any, ...]] = set()
        self._names: dict[int, tuple[str, str | None]] = {}
        self.reasons: dict[int, tuple[str, ...]] = {}
        self.problem: str | None = None
        self._missing: str | None = None

    def open(self) -> bool:
        """Have handles of all GPUs; False when there are none. Once opened the driver stays so until `close`."""
        if not self._opened:
            self._missing = None
            self._asks = {index: self._asking(index, handle) for index, handle in self._handles().items()}
        self.problem = self._missing  # what failed in an earlier query may be well again
        self._names.clear()  # a pid may be another process by now
        return bool(self._asks)

    def close(self) -> None:
        if self._opened:
            self._opened, self._asks = False, {}
            ask(self._library.nvmlShutdown)

    def fast(self) -> dict[str, float]:
        """Utilisation, memory, power, clock and what holds it back, of each GPU; the reasons themselves go to `reasons`."""
        found: dict[str, float | None] = {}
        for index, gpu in self._gpus():
            utilization = gpu("nvmlDeviceGetUtilizationRates")
            memory = gpu("nvmlDeviceGetMemoryInfo", MEMORY_V2) or gpu("nvmlDeviceGetMemoryInfo")
            mask = gpu(_REASONS[0])
            reasons = throttle_names(gpu(_REASONS[1]) if mask is None else mask)
            slowed = slowed_by(reasons)
            self.reasons[index] = tuple(each for each in reasons or () if each != IDLE)
            found |= {
                f"gpu.{index}.utilization_ratio": ratio(getattr(utilization, "gpu", None), 100.0),
                f"gpu.{index}.memory_bandwidth_ratio": ratio(getattr(utilization, "memory", None), 100.0),
                f"gpu.{index}.memory_used_bytes": getattr(memory, "used", None),
                f"gpu.{index}.memory_used_ratio": ratio(getattr(memory, "used", None), getattr(memory, "total", None)),
                f"gpu.{index}.power_watts": ratio(gpu("nvmlDeviceGetPowerUsage"), 1000.0),
                f"gpu.{index}.sm_clock_mhz": gpu("nvmlDeviceGetClockInfo", self._library.NVML_CLOCK_SM),
                f"gpu.{index}.slowed": None if slowed is None else float(slowed),
            }
        return _known(found)

    def slow(self) -> dict[str, float]:
        """What changes slowly or not at all: temperature, and the limits that the fast numbers are to be seen against."""
        found: dict[str, float | None] = {}
        for index, gpu in self._gpus():
            memory = gpu("nvmlDeviceGetMemoryInfo", MEMORY_V2) or gpu("nvmlDeviceGetMemoryInfo")
            found |= {
                f"gpu.{index}.temperature_celsius": gpu("nvmlDeviceGetTemperature", self._library.NVML_TEMPERATURE_GPU),
                f"gpu.{index}.power_limit_watts": ratio(gpu("nvmlDeviceGetEnforcedPowerLimit"), 1000.0),
                f"gpu.{index}.sm_clock_max_mhz": gpu("nvmlDeviceGetMaxClockInfo", self._library.NVML_CLOCK_SM),
                f"gpu.{index}.memory_total_bytes": getattr(memory, "total", None),
                f"gpu.{index}.memory_clock_mhz": gpu("nvmlDeviceGetClockInfo", self._library.NVML_CLOCK_MEM),
                f"gpu.{index}.memory_clock_max_mhz": gpu("nvmlDeviceGetMaxClockInfo", self._library.NVML_CLOCK_MEM),
            }
        return _known(found)

    def facts(self) -> dict[str, str]:
        """Name and persistence mode ("true", "false") of each GPU, and `driver_version`."""
        found = {}
        if version := text_of(ask(self._library.nvmlSystemGetDriverVersion)):
            found["driver_version"] = version
        for index, gpu in self._gpus():
            if name := text_of(gpu("nvmlDeviceGetName")):
                found[f"gpu.{index}.name"] = name
            persistence = gpu("nvmlDeviceGetPersistenceMode")
            if persistence is not None:
                found[f"gpu.{index}.persistence_enabled"] = "true" if persistence else "false"
        return found

    def processes(self) -> list[GpuUse]:
        found = []
        for index, gpu in self._gpus():
            for process in gpu("nvmlDeviceGetComputeRunningProcesses") or ():
                name, group = self._who(process.pid)
                found.append(GpuUse(index, process.pid, name, group, process.usedGpuMemory))
        return found

    def _handles(self) -> dict[int, Any]:
        if self._library is None:
            try:
                self._library = importlib.import_module("pynvml")
            except ImportError:
                self._missing = "nvidia-ml-py is not installed"
                return {}
        try:
            self._library.nvmlInit()
            self._opened = True
            number = self._library.nvmlDeviceGetCount()
        except Exception as error:  # NVMLError, or OSError from a broken library
            self._missing = fault_in(f"Failed to initialize NVML: {error}").text
            return {}
        handles = {index: ask(self._library.nvmlDeviceGetHandleByIndex, index) for index in range(number)}
        lost = [str(index) for index, handle in handles.items() if handle is None]
        if lost or not handles:
            self._missing = f"GPU {', '.join(lost)} does not answer" if lost else "the driver sees no GPU"
        return {index: handle for index, handle in handles.items() if handle is not None}

    def _gpus(self) -> Iterator[tuple[int, Callable[..., Any]]]:
        yield from self._asks.items()

    def _asking(self, index: int, handle: Any) -> Callable[..., Any]:
        """Ask this GPU: None for what it does not tell."""

        def ask(function: str, *arguments: Any) -> Any:
            asked = (index, function, *arguments)
            if asked in self._unsupported:
                return None
            try:
                return getattr(self._library, function)(handle, *arguments)
            except Exception as error:
                if type(error).__name__ in _NEVER:
                    self._unsupported.add(asked)
                else:
                    self.problem = f"GPU {index}: {cut(str(error))}"
                return None

        return ask

    def _who(self, pid: int) -> tuple[str, str | None]:
        if pid not in self._names:
            name = text_of(ask(self._library.nvmlSystemGetProcessName, pid)) or ""
            self._names[pid] = name, owner(self._read_text(f"/proc/{pid}/cgroup")) if name else None
        return self._names[pid]


def _known(found: dict[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if value is not None}
