"""Local GPUs through NVML: the real library where it has no driver, and a fake of it with GPUs."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pynvml
import pytest

from collectors.nvml import Nvml
from collectors.readings import metrics
from tests.collectors.fake_nvml import FakeNvml, gpu


def lost(code: int = pynvml.NVML_ERROR_GPU_IS_LOST) -> Exception:
    return pynvml.NVMLError(code)


def test_a_gpu_is_read_whole() -> None:
    reading = Nvml(FakeNvml(gpu())).read()
    assert reading.driver_version == "570.133.20" and reading.faults == () and reading.processes == ()
    assert reading.gpus
    found = reading.gpus[0]
    assert (found.index, found.uuid, found.name) == (0, "GPU-6c1d9bb0", "NVIDIA A100-SXM4-40GB")
    assert (found.utilization_ratio, found.memory_bandwidth_ratio) == (0.35, 0.12)
    assert (found.memory_total_bytes, found.memory_used_bytes, found.memory_used_ratio) == (42949672960, 2147483648, 0.05)
    assert (found.power_watts, found.power_limit_watts, found.temperature_celsius) == (58.41, 400.0, 41)
    assert (found.sm_clock_mhz, found.sm_clock_max_mhz, found.memory_clock_mhz) == (1095, 1410, 1215)
    assert (found.performance_state, found.throttle_reasons, found.slowed) == ("P0", ("sw_thermal_slowdown",), True)
    assert (found.ecc_enabled, found.ecc_uncorrected, found.row_remap_failed, found.recovery_action) == (True, 0, False, "None")
    assert (found.pcie_generation, found.pcie_width, found.persistence_enabled, found.mig_enabled) == (4, 16, True, False)
    assert (found.nvlinks_active, found.nvlinks_inactive) == (2, 1)
    assert found.nvlink_bytes_per_second == pytest.approx(2 * 25.781e9) and found.memory_temperature_celsius == 38
    assert found.fan_ratio is None  # not supported


def test_what_a_gpu_does_not_have_is_none() -> None:
    bare = {"nvmlDeviceGetUUID": "GPU-1", "nvmlDeviceGetName": b"Old", "nvmlDeviceGetPerformanceState": 32}
    reading = Nvml(FakeNvml(bare)).read()
    assert reading.gpus and reading.gpus[0].name == "Old" and reading.gpus[0].performance_state is None
    assert metrics(reading) == {} and reading.faults == ()


def test_an_old_library_without_event_reasons() -> None:
    old = gpu(
        nvmlDeviceGetCurrentClocksEventReasons=pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND),
        nvmlDeviceGetCurrentClocksThrottleReasons=0x4,
    )
    found = Nvml(FakeNvml(old)).read().gpus
    assert found and found[0].throttle_reasons == ("sw_power_cap",)


def test_a_lost_gpu_does_not_hide_the_others() -> None:
    half = gpu(nvmlDeviceGetPowerUsage=lost(), nvmlDeviceGetTemperature=lost(), nvmlDeviceGetUUID="GPU-2")
    reading = Nvml(FakeNvml(gpu(), lost(), half)).read()
    assert reading.gpus and [item.utilization_ratio for item in reading.gpus] == [0.35, None, 0.35]
    assert [(fault.code, fault.subject) for fault in reading.faults] == [("gpu_lost", "gpu 1"), ("gpu_lost", "gpu 2")]


def test_processes_and_mig_devices() -> None:
    mig = {0: {"nvmlDeviceGetName": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "nvmlDeviceGetUUID": "MIG-1"}}
    busy = gpu(
        nvmlDeviceGetMigMode=[1, 1],
        nvmlDeviceGetUtilizationRates=pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED),
        nvmlDeviceGetMaxMigDeviceCount=7,
        nvmlDeviceGetMigDeviceHandleByIndex=mig,
        nvmlDeviceGetComputeRunningProcesses=[
            SimpleNamespace(pid=7, usedGpuMemory=2048),
            SimpleNamespace(pid=8, usedGpuMemory=None),
        ],
    )
    fake = FakeNvml(busy, names={7: "python3"})
    reading = Nvml(
        fake, read_text=lambda path: "0::/system.slice/a.service" if path == "/proc/7/cgroup" else "0::/b.service"
    ).read()
    assert reading.gpus and reading.gpus[0].utilization_ratio is None and reading.gpus[0].mig_enabled is True
    assert [(item.pid, item.name, item.memory_bytes, item.owner) for item in reading.processes or ()] == [
        (7, "python3", 2048, "unit a.service"),
        (8, None, None, None),
    ]
    assert [(item.profile, item.uuid) for item in reading.mig_devices or ()] == [("1g.5gb", "MIG-1")]


def test_no_gpus_is_empty_with_a_fault() -> None:
    reading = Nvml(FakeNvml()).read()
    assert reading.gpus == () and [fault.code for fault in reading.faults] == ["no_gpus"]


@pytest.mark.parametrize(
    ("error", "code", "severity"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "driver_mismatch", "critical"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "no_driver", "note"),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no_library", "note"),
        (pynvml.NVML_ERROR_UNKNOWN, "nvml_unknown_error", "critical"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "nvml_no_permission", "critical"),
        (pynvml.NVML_ERROR_TIMEOUT, "nvml_failed", "critical"),
    ],
)
def test_each_failure_to_start_has_its_reason(error: int, code: str, severity: str) -> None:
    reading = Nvml(FakeNvml(init=lost(error))).read()
    assert reading.gpus is None and [(fault.code, fault.severity) for fault in reading.faults] == [(code, severity)]


def test_it_starts_again_after_a_failure_and_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml(gpu(), init=lost(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    looker = Nvml(fake)
    assert looker.read().gpus is None
    fake.init = None
    assert looker.read().gpus and looker.read().gpus and fake.opened == 1
    looker.close()
    looker.close()
    assert fake.opened == 0


def test_the_real_library_without_a_driver_gives_a_reason() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        reading = Nvml().read()
        assert reading.gpus is None and len(reading.faults) == 1 and reading.faults[0].next_step
    else:  # a machine with GPUs: they are read
        assert Nvml().read().gpus is not None


def test_without_the_package_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    reading = Nvml().read()
    assert reading.gpus is None and "nvidia-ml-py" in reading.faults[0].text
