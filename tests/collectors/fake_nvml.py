"""A fake of the module pynvml: GPUs by tables, the real module's error classes and constants. Not NVML: no GPU is asked."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml


def gpu(**changes: Any) -> dict[str, Any]:
    """What an A100 answers, by function; an exception is raised, and a function that is not there is not supported."""
    answers: dict[str, Any] = {
        "nvmlDeviceGetUUID": "GPU-6c1d9bb0",
        "nvmlDeviceGetName": "NVIDIA A100-SXM4-40GB",
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:00:04.0"),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=35, memory=12),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=42949672960, used=2147483648, free=40802189312),
        "nvmlDeviceGetTemperature": 41,
        "nvmlDeviceGetPowerUsage": 58410,
        "nvmlDeviceGetEnforcedPowerLimit": 400000,
        "nvmlDeviceGetClockInfo": {pynvml.NVML_CLOCK_SM: 1095, pynvml.NVML_CLOCK_MEM: 1215},
        "nvmlDeviceGetMaxClockInfo": {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 1215},
        "nvmlDeviceGetPerformanceState": 0,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x20,
        "nvmlDeviceGetEccMode": [1, 1],
        "nvmlDeviceGetTotalEccErrors": 0,
        "nvmlDeviceGetRemappedRows": (0, 0, 0, 0),
        "nvmlDeviceGetFieldValues": {
            pynvml.NVML_FI_DEV_MEMORY_TEMP: 38,
            pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: 0,
            pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON: 25781,
        },
        "nvmlDeviceGetCurrPcieLinkGeneration": 4,
        "nvmlDeviceGetMaxPcieLinkGeneration": 4,
        "nvmlDeviceGetCurrPcieLinkWidth": 16,
        "nvmlDeviceGetMaxPcieLinkWidth": 16,
        "nvmlDeviceGetMigMode": [0, 0],
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetNvLinkState": {0: 1, 1: 1, 2: 0},
        "nvmlDeviceGetComputeRunningProcesses": [],
    }
    return answers | changes


class FakeNvml:
    """`gpus` is one table a GPU; an exception in its place is raised when its handle is asked for."""

    def __init__(self, *gpus: Any, init: Exception | None = None, names: dict[int, str] | None = None) -> None:
        self.gpus = gpus
        self.init = init
        self.names = names or {}
        self.opened = 0

    def nvmlInit(self) -> None:
        if self.init is not None:
            raise self.init
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.133.20"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if isinstance(self.gpus[index], Exception):
            raise self.gpus[index]
        return self.gpus[index]

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        if pid not in self.names:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.names[pid]

    def __getattr__(self, function: str) -> Any:
        constant_or_function = getattr(pynvml, function)  # AttributeError where the real module has no such name
        return self._answer(function) if function.startswith("nvmlDevice") else constant_or_function

    def _answer(self, function: str) -> Callable[..., Any]:
        def call(handle: dict[str, Any], *arguments: Any) -> Any:
            answer = handle.get(function, pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
            if function == "nvmlDeviceGetFieldValues" and isinstance(answer, dict):
                return [self._field(answer, arguments[0][0])]
            if isinstance(answer, dict) and arguments:
                answer = answer.get(arguments[0], pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    @staticmethod
    def _field(answers: dict[int, int], field: int) -> SimpleNamespace:
        known = field in answers
        code = 0 if known else pynvml.NVML_ERROR_NOT_SUPPORTED
        return SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(uiVal=answers.get(field, 0)))
