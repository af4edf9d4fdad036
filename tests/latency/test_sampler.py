"""The local sampler: rings, /proc by a made tree and for real, GPUs by a fake NVML, and the thread that sleeps between queries."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from collectors.readings import Cpu, Disk, Gpu, Memory, Pressure
from latency.readings.gpus import GpuReader
from latency.readings.host import BusyProcess, HostReader
from latency.readings.ring import Ring
from latency.readings.sampler import FLICKER_SECONDS, GPU_SECONDS, MAX_COST, Sampler, _Pace
from tests.collectors.fake_nvml import FakeNvml, gpu
from tests.collectors.sshd import eventually


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Proc:
    """A made /proc, as text files: two cores, one disk with a partition and a loop device."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc" / "pressure").mkdir(parents=True)
        self.cpu()
        self.disk()
        self.write("meminfo", "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable: 2000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n")
        self.pressure(0.0, 0)

    def write(self, name: str, text: str) -> None:
        path = self.root / "proc" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def cpu(self, user: int = 0, idle: int = 0, iowait: int = 0, steal: int = 0) -> None:
        self.write("stat", f"cpu  {user} 0 0 {idle} {iowait} 0 0 {steal} 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")

    def disk(self, reads: int = 10, sectors: int = 0, busy_ms: int = 0, wait_ms: int = 0) -> None:
        row = f"{reads} 0 {sectors} {wait_ms} 5 0 0 0 0 {busy_ms} {wait_ms}"
        self.write("diskstats", f" 8 0 sda {row}\n 8 1 sda1 {row}\n 7 0 loop0 {row}\n 8 16 sdb 0 0 0 0 0 0 0 0 0 0 0\n")

    def pressure(self, average: float, total: int) -> None:
        for name in ("cpu", "io"):
            self.write(f"pressure/{name}", f"some avg10={average:.2f} avg60=0.00 avg300=0.00 total={total}\n")

    def process(self, pid: int, name: str, ticks: int) -> None:
        self.write(f"{pid}/stat", f"{pid} ({name}) R 1 1 1 0 -1 4194304 9 0 0 0 {ticks} 0 0 0 20 0 1 0 100 1000 10 0\n")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.fixture
def closing() -> Iterator[list[Sampler]]:
    samplers: list[Sampler] = []
    yield samplers
    assert all(sampler.close(10.0) for sampler in samplers)


# Rings


def test_a_ring_keeps_the_newest_and_knows_what_was_unknown() -> None:
    ring = Ring(3)
    assert ring.oldest is None and ring.between(0, 10).times == ()
    for at in range(5):
        ring.add(float(at), {"a": at, "late": at} if at >= 3 else {"a": at})
    found = ring.between(0, 10)
    assert found.times == (2.0, 3.0, 4.0) and ring.oldest == 2.0
    assert found.values == {"a": (2, 3, 4), "late": (None, 3, 4)}
    ring.add(5.0, {"late": 7})
    assert ring.between(4.5, 10).values == {"late": (7.0,)}  # a metric that is not known at all is left out
    assert ring.between(3.5, 10).values["a"] == (4.0, None)


def test_a_ring_gives_a_few_readings_from_before_but_no_old_ones() -> None:
    ring = Ring(100)
    for at in (1.0, 2.0, 8.0, 9.0, 10.0, 11.0, 12.0):
        ring.add(at, {"a": at})
    assert ring.between(10.0, 11.0, before=2, reach=5.0).times == (8.0, 9.0, 10.0, 11.0)
    assert ring.between(10.0, 11.0, before=9, reach=5.0).times == (8.0, 9.0, 10.0, 11.0)
    assert ring.between(10.0, 11.0).times == (10.0, 11.0)
    assert ring.between(20.0, 30.0, before=2, reach=5.0).times == ()


# The host


def test_shares_of_processor_and_disk_between_two_looks(made: Proc) -> None:
    used = iter([5.0, 5.3])
    host = HostReader(made.root, lambda: next(used), cores=2)
    assert host.fast(100.0) == {}
    made.cpu(user=12, idle=6, iowait=2, steal=0)
    made.disk(reads=20, sectors=2000, busy_ms=50, wait_ms=30)
    found = host.fast(100.1)
    assert found == pytest.approx(
        {
            "cpu.busy_ratio": 0.6,
            "cpu.iowait_ratio": 0.1,
            "cpu.steal_ratio": 0.0,
            "process.cpu_ratio": 3.0,
            "disk.sda.busy_ratio": 0.5,
            "disk.sda.read_bytes_per_second": 2000 * 512 / 0.1,
            "disk.sda.written_bytes_per_second": 0.0,
            "disk.sda.queue_length": 0.3,
            "disk.sda.wait_seconds": 0.003,
        }
    )
    assert host.others(found) == 0.0  # 1.2 cores are busy, and this process used more than that
    assert host.others({"cpu.busy_ratio": 0.9, "process.cpu_ratio": 0.3}) == pytest.approx(1.5)


def test_stolen_time_is_busy_but_nobodys_here(made: Proc) -> None:
    host = HostReader(made.root, lambda: 0.0, cores=2)
    host.fast(1.0)
    made.cpu(user=10, idle=0, steal=90)
    found = host.fast(2.0)
    assert found["cpu.busy_ratio"] == 1.0 and found["cpu.steal_ratio"] == 0.9
    assert host.others(found) == pytest.approx(0.2)


def test_after_a_pause_nothing_is_compared(made: Proc) -> None:
    host = HostReader(made.root, lambda: 0.0)
    host.fast(1.0)
    host.slow(1.0)
    made.cpu(user=100)
    host.forget()
    assert host.fast(900.0) == {}
    assert "pressure.cpu.some_ratio" not in host.slow(900.0)


def test_a_disk_that_counts_from_zero_again_has_no_rates(made: Proc) -> None:
    host = HostReader(made.root, lambda: 0.0)
    made.disk(reads=500, sectors=9000)
    host.fast(1.0)
    made.disk(reads=1, sectors=10)
    assert not [name for name in host.fast(2.0) if name.startswith("disk.")]


def test_memory_and_pressure(made: Proc) -> None:
    host = HostReader(made.root, lambda: 0.0, cores=2)
    first = host.slow(10.0)
    made.pressure(12.5, 250_000)
    second = host.slow(10.5)
    assert first["memory.used_ratio"] == 0.75 and first["cpu.cores"] == 2.0
    assert "memory.swap_used_ratio" not in first  # there is no swap: unknown, not empty
    assert second["pressure.cpu.some_10s_ratio"] == 0.125
    assert second["pressure.cpu.some_ratio"] == pytest.approx(0.5)  # a quarter of a second within half a second


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    host = HostReader(tmp_path, lambda: 0.0, cores=2)
    assert host.fast(1.0) == {} and host.fast(2.0) == {"process.cpu_ratio": 0.0}
    assert host.slow(1.0) == {"cpu.cores": 2.0}
    assert host.busy_processes(1.0) is None and host.busy_processes(2.0) == ()
    broken = Proc(tmp_path)
    broken.write("stat", "cpu  1 2\n")
    broken.write("diskstats", "8 0 sda 1 2\n")
    assert host.fast(3.0) == {"process.cpu_ratio": 0.0}


def test_processes_that_use_the_processor(made: Proc) -> None:
    host = HostReader(made.root, lambda: 0.0)
    made.process(7, "idle", 500)
    made.process(8, "hog (of) ours", 500)
    made.process(os.getpid(), "this", 500)
    assert host.busy_processes(10.0) is None
    made.process(8, "hog (of) ours", 650)
    made.process(9, "born", 999)
    made.process(os.getpid(), "this", 900)
    assert host.busy_processes(11.0) == (BusyProcess(8, "hog (of) ours", 1.5),)
    host.rest_processes()
    assert host.busy_processes(12.0) is None


def test_the_real_proc() -> None:
    host = HostReader()
    host.fast(1.0)
    sum(number * number for number in range(2_000_000))  # several ticks of 10 ms
    found, slow = host.fast(1.5), host.slow(1.5)
    assert 0 < found["cpu.busy_ratio"] <= 1 and found["process.cpu_ratio"] > 0
    assert 0 < slow["memory.used_ratio"] < 1
    host.close()
    assert host.slow(2.0)["memory.used_ratio"] > 0  # opened again


# GPUs


def names(kind: type, prefix: str) -> set[str]:
    return {f"{prefix}.{field}" for field in kind.__dataclass_fields__}


def test_metrics_of_gpus() -> None:
    reader = GpuReader(FakeNvml(gpu(), gpu(nvmlDeviceGetUtilizationRates=SimpleNamespace(gpu=90, memory=40))))
    assert reader.open()
    found = reader.fast() | reader.slow()
    assert found["gpu.0.utilization_ratio"] == 0.35 and found["gpu.1.utilization_ratio"] == 0.9
    assert found["gpu.0.memory_used_bytes"] == 2147483648 and found["gpu.0.memory_used_ratio"] == pytest.approx(0.05)
    assert found["gpu.0.power_watts"] == pytest.approx(58.41) and found["gpu.0.power_limit_watts"] == 400
    assert found["gpu.0.sm_clock_mhz"] == 1095 and found["gpu.0.sm_clock_max_mhz"] == 1410
    assert found["gpu.0.temperature_celsius"] == 41 and found["gpu.0.slowed"] == 1.0
    assert reader.reasons == {0: ("sw_thermal_slowdown",), 1: ("sw_thermal_slowdown",)}
    assert reader.facts() == {
        "driver_version": "570.133.20",
        **{f"gpu.{index}.name": "NVIDIA A100-SXM4-40GB" for index in (0, 1)},
        **{f"gpu.{index}.persistence_enabled": "true" for index in (0, 1)},
    }


def test_names_are_those_of_the_collectors(made: Proc) -> None:
    host = HostReader(made.root, lambda: 0.0)
    made.pressure(1.0, 5)
    host.fast(1.0)
    host.slow(1.0)
    made.cpu(user=10)
    made.disk(reads=30)
    reader = GpuReader(FakeNvml(gpu()))
    reader.open()
    found = host.fast(2.0).keys() | host.slow(2.0).keys() | reader.fast().keys() | reader.slow().keys()
    known = names(Cpu, "cpu") | names(Disk, "disk.sda") | names(Memory, "memory") | names(Gpu, "gpu.0")
    known |= names(Pressure, "pressure.cpu") | names(Pressure, "pressure.io")
    ours = {"process.cpu_ratio", "pressure.cpu.some_ratio", "pressure.io.some_ratio"}
    assert found - known == ours
    assert len(found) > 25


def test_an_idle_gpu_is_not_held_back() -> None:
    reader = GpuReader(FakeNvml(gpu(nvmlDeviceGetCurrentClocksEventReasons=0x1)))
    reader.open()
    assert reader.fast()["gpu.0.slowed"] == 0.0 and reader.reasons == {0: ()}


def test_what_a_gpu_does_not_tell_is_asked_once() -> None:
    asked: list[str] = []
    table = gpu()
    del table["nvmlDeviceGetPowerUsage"]

    class Counting(FakeNvml):
        def _answer(self, function):  # type: ignore[no-untyped-def]
            answer = super()._answer(function)
            return lambda *arguments: (asked.append(function), answer(*arguments))[1]

    reader = GpuReader(Counting(table))
    reader.open()
    found = [reader.fast() for _ in range(3)]
    assert all("gpu.0.power_watts" not in each and "gpu.0.sm_clock_mhz" in each for each in found)
    assert asked.count("nvmlDeviceGetPowerUsage") == 1 and asked.count("nvmlDeviceGetClockInfo") == 3
    assert reader.problem is None


def test_a_lost_gpu_hides_no_other() -> None:
    lost = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    reader = GpuReader(FakeNvml(lost, gpu(nvmlDeviceGetUtilizationRates=lost)))
    assert reader.open() and reader.problem == "GPU 0 does not answer"
    found = reader.fast()
    assert "gpu.1.utilization_ratio" not in found and found["gpu.1.sm_clock_mhz"] == 1095
    assert reader.problem is not None and reader.problem.startswith("GPU 1: ")


@pytest.mark.parametrize(
    ("library", "told"),
    [
        (FakeNvml(init=pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)), "NVML Shared Library Not Found"),
        (FakeNvml(), "the driver sees no GPU"),
    ],
)
def test_without_gpus_there_is_a_reason(library: FakeNvml, told: str) -> None:
    reader = GpuReader(library)
    assert not reader.open() and reader.problem is not None and told in reader.problem
    assert reader.fast() == {} and reader.processes() == []


def test_processes_on_gpus() -> None:
    running = [SimpleNamespace(pid=41, usedGpuMemory=5), SimpleNamespace(pid=42, usedGpuMemory=None)]
    library = FakeNvml(gpu(nvmlDeviceGetComputeRunningProcesses=running), names={41: "/opt/vllm/bin/python"})
    cgroups = {"/proc/41/cgroup": "0::/system.slice/vllm.service\n"}
    reader = GpuReader(library, lambda path: cgroups.get(path, ""))
    reader.open()
    assert [tuple(each) for each in reader.processes()] == [
        (0, 41, "/opt/vllm/bin/python", "unit vllm.service", 5),
        (0, 42, "", None, None),
    ]
    reader.close()
    assert library.opened == 0


# The sampler


def sampler_of(made: Proc, clock: Clock, library: FakeNvml | None = None) -> Sampler:
    host = HostReader(made.root, lambda: 0.0, cores=2)
    return Sampler(GpuReader(library or FakeNvml(gpu())), host, monotonic=clock, thread_seconds=lambda: 0.0)


def looked(sampler: Sampler, clock: Clock, seconds: float) -> int:
    """Look whenever something is due, for so long; returns how often."""
    end, times = clock.now + seconds, 0
    while clock.now < end:
        due = sampler.look()
        times += 1
        clock.now = max(due, clock.now + 0.001)
    return times


def test_paces(made: Proc, clock: Clock) -> None:
    sampler = sampler_of(made, clock)
    start = clock.now
    looked(sampler, clock, 2.0)
    gpus, host, slow = sampler.between(start, clock.now).groups
    assert 35 <= len(gpus.times) <= 41 and 17 <= len(host.times) <= 20 and 3 <= len(slow.times) <= 5
    assert "gpu.0.utilization_ratio" in gpus.values and "cpu.busy_ratio" not in gpus.values
    assert sampler.between(start, clock.now).facts["gpu.0.name"] == "NVIDIA A100-SXM4-40GB"
    assert sampler.between(start, clock.now).problems == ()


def test_a_pace_that_costs_too_much_is_slowed_down() -> None:
    pace = _Pace(GPU_SECONDS, lambda now: None)
    pace.done(10.0, 10.001, 0.0001)
    assert pace.due == 10.0 + GPU_SECONDS
    pace.done(10.0, 10.02, 0.02)
    assert pace.due == pytest.approx(10.0 + 0.02 / MAX_COST)
    pace.done(10.0, 12.0, 0.0)  # a driver that took its time: not twice at once
    assert pace.due == 12.0


def test_throttling_is_kept_from_first_to_last_sight(made: Proc, clock: Clock) -> None:
    table = gpu(nvmlDeviceGetCurrentClocksEventReasons=0x1)
    sampler = sampler_of(made, clock, FakeNvml(table))
    start = clock.now
    looked(sampler, clock, 1.0)
    for reasons, seconds in ((0x20, 0.5), (0x1, FLICKER_SECONDS / 2), (0x20, 0.5), (0x1, 1.0), (0x24, 0.4)):
        table["nvmlDeviceGetCurrentClocksEventReasons"] = reasons
        looked(sampler, clock, seconds)
    found = sampler.between(start, clock.now).throttled
    assert [(each.gpu, each.reason) for each in found] == [
        (0, "sw_thermal_slowdown"),
        (0, "sw_power_cap"),
        (0, "sw_thermal_slowdown"),
    ]
    assert found[0].start - start == pytest.approx(1.0, abs=0.11)
    assert found[0].end - found[0].start == pytest.approx(1.15, abs=0.15)  # one stretch in spite of the flicker
    assert sampler.between(start, start + 0.5).throttled == ()


def test_processes_are_looked_for_only_while_others_are_busy(made: Proc, clock: Clock) -> None:
    sampler = sampler_of(made, clock)
    made.process(8, "hog", 0)
    start, ticks = clock.now, 0

    def busy(seconds: float, others: bool) -> None:
        nonlocal ticks
        for _ in range(int(seconds / 0.1)):
            ticks += 10
            made.cpu(user=ticks if others else 0, idle=ticks)
            made.process(8, "hog", ticks)
            looked(sampler, clock, 0.1)

    busy(3.0, others=False)
    assert not [each for each in sampler.between(start, clock.now).seen if each.busy is not None]
    busy(4.0, others=True)
    seen = [each for each in sampler.between(start, clock.now).seen if each.busy]
    assert seen and seen[0].busy is not None
    assert seen[-1].busy == (BusyProcess(8, "hog", pytest.approx(1.0, abs=0.35)),)


def test_a_defect_of_one_pace_stops_no_other(made: Proc, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    sampler = sampler_of(made, clock)
    sampler.also = lambda: [][0]
    looked(sampler, clock, 2.1)
    assert len(sampler.between(0, clock.now).groups[0].times) > 5
    assert caplog.text.count("the sampler failed at") == 1


def test_the_thread_sleeps_between_queries(closing: list[Sampler]) -> None:
    sampler = Sampler(GpuReader(FakeNvml(gpu())))
    closing.append(sampler)
    assert sampler.cpu_seconds == 0.0 and not [each for each in threading.enumerate() if each.name == "sampler"]
    with sampler.running(), sampler.running():
        assert sampler.users == 2
        assert eventually(lambda: len(sampler.between(0, 1e12).groups[1].times) > 3)
    assert sampler.users == 0
    sampler.stop()  # once too often does not go below zero
    assert sampler.users == 0

    def rests() -> bool:
        before = sampler.cpu_seconds
        threading.Event().wait(0.4)
        return sampler.cpu_seconds == before

    assert eventually(rests)
    count = len(sampler.between(0, 1e12).groups[0].times)
    with sampler.running():
        assert eventually(lambda: len(sampler.between(0, 1e12).groups[0].times) > count)


def test_what_stalls_is_told(made: Proc, clock: Clock) -> None:
    sampler = sampler_of(made, clock)
    start = clock.now
    assert sampler.between(start, start + 1.0).problems == ()  # too short to say anything
    looked(sampler, clock, 1.0)
    (told,) = sampler.between(start, clock.now + 8.0).problems
    assert told.startswith("This machine was not read for the last 8.0")
    sampler = sampler_of(made, clock, FakeNvml())
    looked(sampler, clock, 1.0)
    assert sampler.between(start, clock.now).problems == ("No GPU of this machine was read: the driver sees no GPU.",)
