"""A query's window: this machine's samples, a real sweep over a fake machine and a real HTTP service, and what goes wrong."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from collectors.errors import ConnectionFailed
from collectors.machine_local import LocalReader
from collectors.machines import Machine, PartName, Reader
from collectors.readings import Cpu, Disk, Gpu, GpuProcess, Gpus, Host, Process, Record
from collectors.service_watch import WatchedService
from collectors.services import Service
from collectors.sweep import Sweep
from collectors.views import MachineView, Part, Snapshot
from latency.readings import series as window_series
from latency.readings.gpus import GpuReader
from latency.readings.remote import RemoteLog, host_of, is_server
from latency.readings.sampler import Sampler
from latency.readings.store import ReadingStore
from latency.readings.window import Mark, Window
from latency.types import LOCAL, QueryReadings, Series
from rag.types import Answer, Stage
from tests.collectors.fake_nvml import FakeNvml, gpu
from tests.collectors.machine_fakes import FakeReader
from tests.collectors.service_fakes import fake_service
from tests.collectors.sshd import eventually

VLLM = Path(__file__).parents[1] / "collectors" / "data" / "vllm" / "v1_first.txt"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ReadingStore]:
    store = ReadingStore(tmp_path / "readings.db")
    yield store
    assert store.close()


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    running = [SimpleNamespace(pid=pid, usedGpuMemory=pid) for pid in (os.getpid(), 41_207)]
    names = {os.getpid(): "python", 41_207: "train.py"}
    library = FakeNvml(gpu(nvmlDeviceGetComputeRunningProcesses=running), names=names)
    sampler = Sampler(GpuReader(library, lambda path: ""))
    yield sampler
    assert sampler.close(10.0)
    assert library.opened == 0


def answer(query_id: str, started: float, seconds: float, where: str = "in-process") -> Answer:
    stages = (Stage("generate", seconds, 1, where=where),)
    at = datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds")
    return Answer(query_id, "?", at, "answered", stages=stages, total_seconds=seconds)


def ask(window: Window, query_id: str, work: Callable[[], Any], where: str = "in-process") -> QueryReadings:
    """A query that does `work`, as a job would have it."""
    mark = window.begin()
    unix, started = time.time(), time.monotonic()
    work()
    readings = window.end(mark, answer(query_id, unix, time.monotonic() - started, where))
    assert readings is not None
    return readings


def samples(sampler: Sampler, count: int) -> Callable[[], None]:
    """Wait until the sampler has looked at the processor and at GPUs so often from now on."""

    def wait() -> None:
        start = sampler.monotonic()
        assert eventually(lambda: min(len(each.times) for each in sampler.between(start, 1e12, 0).groups[:2]) >= count)

    return wait


# This machine


def test_a_query_gets_the_samples_of_its_time(store: ReadingStore, sampler: Sampler) -> None:
    window = Window(None, store, sampler)
    before = sampler.monotonic()
    first = ask(window, "q1", samples(sampler, 6))
    so_far = sampler.monotonic() - before
    assert {"cpu.busy_ratio", "process.cpu_ratio", "memory.used_ratio", "gpu.0.utilization_ratio"} <= {
        each.metric for each in first.series
    }
    busy = first.get(LOCAL, "gpu.0.utilization_ratio")
    assert busy is not None and len(busy.within(0.0, first.seconds)) >= 6 and set(busy.values) == {0.35}
    assert list(busy.times) == sorted(busy.times)
    assert {fact.name: fact.value for fact in first.facts}["gpu.0.persistence_enabled"] == "true"
    (held,) = [fact for fact in first.facts if fact.name == "gpu.0.throttle_reasons"]
    assert held.value == "sw_thermal_slowdown" and held.start <= held.end <= so_far + 0.01  # rounded
    on_gpu = {use.pid: use for use in first.uses if use.gpu == 0}
    assert on_gpu[os.getpid()].ours and not on_gpu[41_207].ours and on_gpu[41_207].memory_bytes == 41_207
    assert first.notes == ()


def test_what_came_after_the_end_is_written_later(store: ReadingStore, sampler: Sampler) -> None:
    window = Window(None, store, sampler)
    first = ask(window, "q1", samples(sampler, 3))
    assert store.get("q1") is not None
    assert eventually(lambda: sampler.users == 0)

    def last(readings: QueryReadings | None) -> float:
        assert readings is not None
        return max(each.times[-1] for each in readings.series)

    assert last(store.get("q1")) > first.seconds + 0.3 and last(store.get("q1")) > last(first)


def test_a_query_too_short_for_a_sample_gets_those_after_it(store: ReadingStore, sampler: Sampler) -> None:
    window = Window(None, store, sampler)
    first = ask(window, "q1", lambda: None)
    assert first.notes == ()
    assert eventually(lambda: sampler.users == 0)
    kept = store.get("q1")
    assert kept is not None and kept.get(LOCAL, "cpu.busy_ratio") is not None


def test_two_queries_at_once_share_samples(store: ReadingStore, sampler: Sampler) -> None:
    window = Window(None, store, sampler, after_seconds=5.0)  # longer than the rest of the outer one takes
    inner: list[QueryReadings] = []

    def work() -> None:
        samples(sampler, 4)()
        inner.append(ask(window, "inner", samples(sampler, 4)))
        samples(sampler, 2)()

    outer = ask(window, "outer", work)
    assert sampler.users == 2  # both still wait for their last samples
    shift = inner[0].started_at_unix - outer.started_at_unix
    one, other = outer.get(LOCAL, "gpu.0.power_watts"), inner[0].get(LOCAL, "gpu.0.power_watts")
    assert one is not None and other is not None and len(one.times) > len(other.times)
    moved = [time + shift for time in other.times]
    assert all(min(abs(time - each) for each in one.times) < 0.005 for time in moved)  # the same samples, on its own axis
    assert eventually(lambda: sampler.users == 0)
    assert set(store.get_many(["inner", "outer"])) == {"inner", "outer"}


def test_a_query_without_an_answer_lets_the_sampler_rest(store: ReadingStore, sampler: Sampler) -> None:
    window = Window(None, store, sampler)
    mark = window.begin()
    assert window.end(mark, None) is None and sampler.users == 0
    assert window.end(mark, answer("q1", time.time(), 1.0)) is None and sampler.users == 0  # ended before
    assert window.end(Mark(1.0, 1.0), None) is None


def test_closing_writes_what_still_waits(store: ReadingStore, sampler: Sampler) -> None:
    window = Window(None, store, sampler, after_seconds=3600.0)
    ask(window, "q1", samples(sampler, 1))
    assert sampler.users == 1
    window.close()
    assert sampler.users == 0 and store.get("q1") is not None


def test_a_mark_that_nobody_ends_is_forgotten(store: ReadingStore, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency.readings.window.MAX_OPEN_SECONDS", 0.2)
    window = Window(None, store, sampler)
    window.begin()
    assert eventually(lambda: sampler.users == 0)


def test_a_clock_that_is_set_while_a_query_runs(store: ReadingStore, sampler: Sampler) -> None:
    window = Window(None, store, sampler)
    mark = window.begin()
    samples(sampler, 3)()
    seconds = sampler.monotonic() - mark.at
    readings = window.end(mark, answer("q1", time.time() - 7200.0, seconds))
    assert readings is not None and readings.started_at_unix == mark.unix
    assert readings.get(LOCAL, "gpu.0.power_watts") is not None
    odd = window.end(window.begin(), replace(answer("q2", 0, 1.0), started_at="yesterday"))
    assert odd is not None and odd.started_at_unix == pytest.approx(time.time(), abs=60)


def test_a_defect_costs_no_query(store: ReadingStore, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(window_series, "bounded", broken)
    window = Window(None, store, sampler)
    readings = ask(window, "q1", lambda: None)
    assert readings.series == () and "could not be put together" in readings.notes[0]


def test_a_driver_that_hangs_holds_up_no_query(store: ReadingStore) -> None:
    entered, freed = threading.Event(), threading.Event()

    class Hanging(FakeNvml):
        def nvmlDeviceGetCount(self) -> int:
            entered.set()
            freed.wait(60)
            return 0

    sampler = Sampler(GpuReader(Hanging()))
    window = Window(None, store, sampler)
    try:
        readings = ask(window, "q1", lambda: entered.wait(60))
        assert readings.series == ()
        assert not sampler.close(0.1)
    finally:
        freed.set()
        window.close()
        assert sampler.close(10.0)


# The sweep


class BusyMachine(FakeReader):
    """A fake machine that counts: its processor is a little busier at each look; a GPU that is held back at each second one."""

    def read(self, part: PartName, timeout: float) -> Record:
        super().read(part, timeout)
        number = self.reads[part]
        if part == "gpus":
            reasons = ("sw_power_cap",) if number % 4 < 2 else ("gpu_idle",)
            card = Gpu(0, "GPU-1", "NVIDIA L4", utilization_ratio=0.5, throttle_reasons=reasons, persistence_enabled=False)
            processes = (
                GpuProcess("GPU-1", 77, "VLLM::EngineCore", 12, "unit vllm.service"),
                GpuProcess("GPU-1", 78, "train.py", 13),
            )
            return Gpus((card,), "570.1", processes)
        cpu = Cpu(4, min(1.0, number / 100), 0.0, 0.0, 0.0, 0.0)
        hog = Process(9, "ffmpeg", "R", 2.5, 100, 4)
        disks = (Disk("sda", 0.0, 0.0, 0.0, 0.0, 0.25, None, 0.0),)
        return Host(float(number), 1.0, cpu, None, None, None, None, disks, None, (hog, Process(10, "sh", "S", 0.0, 1, 1)))


def sweep_of(*machines: BusyMachine, services: tuple[WatchedService, ...] = ()) -> Sweep:
    def reader(machine: Machine) -> Reader:
        return LocalReader(machine) if machine.is_local else next(each for each in machines if each.machine == machine)

    local = Machine(LOCAL, collect=("host",))
    return Sweep([local, *(each.machine for each in machines)], services, reader=reader)


def busy_machine(name: str = "gpu-vm", every: float = 60.0) -> BusyMachine:
    return BusyMachine(Machine(name, f"{name}.example", collect=("host", "gpus"), every_seconds=every))


def test_other_machines_are_read_oftener_while_a_query_runs(store: ReadingStore, sampler: Sampler) -> None:
    machine = busy_machine()  # once a minute
    sweep = sweep_of(machine)
    window = Window(sweep, store, sampler)
    sweep.start()
    try:
        assert sweep.wait_for(lambda snapshot: _is_read(snapshot), 20.0)

        def several() -> None:
            before = dict(machine.reads)
            assert eventually(lambda: all(machine.reads[part] >= before[part] + 3 for part in ("host", "gpus")))
            assert eventually(lambda: len(window._remote.between(0, 1e12)["gpu-vm"]) >= 6)

        readings = ask(window, "q1", several)
    finally:
        assert sweep.stop(10.0)
    cpu = readings.get("gpu-vm", "cpu.busy_ratio")
    assert cpu is not None and len(cpu.times) >= 2 and len(set(cpu.values)) == len(cpu.values)
    assert readings.get("gpu-vm", "gpu.0.utilization_ratio") is not None
    assert readings.get("gpu-vm", "disk.sda.busy_ratio") is not None
    assert readings.get("gpu-vm", "engine.running") is None and len(readings.gpus("gpu-vm")) == 1
    facts = {(fact.name, fact.value) for fact in readings.facts if fact.source == "gpu-vm"}
    assert {("gpu.0.name", "NVIDIA L4"), ("gpu.0.persistence_enabled", "false"), ("driver_version", "570.1")} <= facts
    assert not [fact for fact in readings.facts if fact.value == "gpu_idle"]
    uses = {use.pid: use for use in readings.uses if use.source == "gpu-vm"}
    assert uses[9].cpu_ratio == 2.5 and uses[78].gpu == 0 and uses[77].owner == "unit vllm.service"
    assert 10 not in uses and not any(use.ours for use in uses.values())  # no service is watched there


def _is_read(snapshot: Snapshot) -> bool:
    view = snapshot.machine("gpu-vm")
    return view is not None and view.host is not None and view.gpus is not None and None not in (view.host.value, view.gpus.value)


def test_services_engines_are_kept_with_their_address(store: ReadingStore, sampler: Sampler) -> None:
    text = VLLM.read_text()
    with fake_service({"GET /metrics": text, "GET /v1/models": {"data": [{"id": "m"}]}}) as fake:
        watched = WatchedService(Service("llm", "openai-chat", fake.address, timeout_seconds=5.0), 60.0, None)
        sweep = sweep_of(services=(watched,))
        window = Window(sweep, store, sampler)
        sweep.start()
        try:
            assert sweep.wait_for(lambda snapshot: _engine_is_read(snapshot), 20.0)
            readings = ask(window, "q1", lambda: eventually(lambda: bool(window._remote.between(0, 1e12))), "http")
        finally:
            assert sweep.stop(10.0)
    running = readings.get("llm", "engine.running")
    assert running is not None and running.values[0] is not None
    assert readings.get("llm", "engine.kv_cache_used_ratio") is not None
    facts = {fact.name: fact.value for fact in readings.facts if fact.source == "llm"}
    assert facts == {"service.address": fake.address, "service.kind": "openai-chat"}


def _engine_is_read(snapshot: Snapshot) -> bool:
    engine = snapshot.services[0].engine
    return engine is not None and engine.value is not None


def test_a_machine_that_cannot_be_read_is_a_note(store: ReadingStore, sampler: Sampler) -> None:
    machine = busy_machine()
    machine.errors["connect"] = ConnectionFailed("nobody listens")
    sweep = sweep_of(machine)
    window = Window(sweep, store, sampler)
    sweep.start()
    try:
        assert sweep.wait_for(lambda snapshot: snapshot.machine("gpu-vm").problem is not None, 20.0)  # type: ignore[union-attr]
        readings = ask(window, "q1", lambda: eventually(lambda: bool(window._polling.problems)))
    finally:
        assert sweep.stop(10.0)
    assert readings.notes == ("gpu-vm could not be read: nobody listens.",)


def test_the_model_server_that_was_asked_is_ours(store: ReadingStore, sampler: Sampler) -> None:
    """A service that is watched at the machine's address, a process that is called like a server, a stage over HTTP."""
    machine = busy_machine("127.0.0.1")
    machine.machine = replace(machine.machine, name="gpu-vm", address="127.0.0.1")
    with fake_service({"GET /metrics": VLLM.read_text(), "GET /v1/models": {"data": [{"id": "m"}]}}) as fake:
        watched = WatchedService(Service("llm", "openai-chat", fake.address, timeout_seconds=5.0), 60.0, None)
        sweep = sweep_of(machine, services=(watched,))
        window = Window(sweep, store, sampler)
        sweep.start()
        try:
            assert sweep.wait_for(_is_read, 20.0)

            def taken() -> None:
                assert eventually(lambda: "gpu-vm" in window._remote.between(0, 1e12))

            over_http, in_process = ask(window, "q1", taken, "http"), ask(window, "q2", taken)
        finally:
            assert sweep.stop(10.0)
    assert {use.pid: use.ours for use in over_http.uses if use.source == "gpu-vm" and use.gpu == 0} == {77: True, 78: False}
    assert {use.pid: use.ours for use in in_process.uses if use.source == "gpu-vm" and use.gpu == 0} == {77: False, 78: False}


def view(at: float, reasons: tuple[str, ...] = (), gpus: int = 1) -> Snapshot:
    cards = tuple(Gpu(index, f"GPU-{index}", utilization_ratio=at / 1000, throttle_reasons=reasons) for index in range(gpus))
    return Snapshot(at, (MachineView("vm", "user@vm.example:22", "ssh", "ok", gpus=Part(Gpus(cards), at)),), ())


def test_each_reading_counts_once_and_old_ones_go() -> None:
    log = RemoteLog()
    for at in (100.0, 100.0, 102.0, 102.0, 104.0):
        assert log.take(view(at))
    assert [look.at for look in log.between(0, 1000)["vm"]] == [100.0, 102.0, 104.0]
    assert [look.at for look in log.between(104.0, 1000, before=1)["vm"]] == [102.0, 104.0]
    assert [look.at for look in log.between(104.0, 1000, before=2, reach=1.0)["vm"]] == [104.0]
    assert not log.take(Snapshot(104.0, (MachineView(LOCAL, "", "local", "ok"),), ()))
    log.take(view(2000.0))
    assert [look.at for look in log.between(0, 3000)["vm"]] == [2000.0]


def test_facts_of_others_last_as_long_as_they_are_seen(sampler: Sampler) -> None:
    log = RemoteLog()
    for at, reasons in ((10.0, ("sw_power_cap",)), (11.0, ("sw_power_cap",)), (12.0, ("gpu_idle",)), (13.0, ("sw_power_cap",))):
        log.take(view(at, reasons))
    found = window_series.facts(sampler.between(0, 1), log.between(0, 100), 0.0, 10.0, 3.0)
    assert [(fact.value, fact.start, fact.end) for fact in found if fact.name.endswith("throttle_reasons")] == [
        ("sw_power_cap", 0.0, 1.0),
        ("sw_power_cap", 3.0, 3.0),
    ]


def test_hosts_and_servers() -> None:
    assert [host_of(text) for text in ("http://GPU:8001/v1", "gpu:19530", "[::1]:80", "http://[", "")] == [
        *("gpu", "gpu", "::1", "", ""),
    ]
    assert is_server("python", "unit vllm.service") and is_server("/opt/text-embeddings-router")
    assert not is_server("python", None, "") and not is_server("storage-daemon")


# Series


def test_thinning_keeps_peaks_and_order() -> None:
    points = [(float(index), 0.0 if index != 777 else 9.0) for index in range(5000)]
    points[1234] = (1234.0, None)
    found = window_series.thinned(points, 600)
    assert len(found) <= 610
    assert (777.0, 9.0) in found and [time for time, _ in found] == sorted(time for time, _ in found)
    assert window_series.thinned(points[:600], 600) == points[:600]
    assert window_series.thinned([(0.0, None)] * 3000, 100)[0] == (0.0, None)


def test_a_window_is_bounded_and_says_so() -> None:
    times = tuple(index / 20 for index in range(2000))
    many = [Series(LOCAL, f"gpu.{index}.power_watts", times, times) for index in range(90)]
    kept, said = window_series.bounded(many)
    assert sum(len(each.times) for each in kept) <= 2 * window_series.MAX_WINDOW_POINTS
    assert said is not None and "thinned" in said
    assert [each.metric for each in kept[:11]] == [f"gpu.{index}.power_watts" for index in range(11)]  # 10 after 9
    assert window_series.bounded(many[:2])[1] is None


def test_values_are_short_but_counters_are_whole() -> None:
    series = [
        Series(LOCAL, "a", (0.12345678,), (0.123456789,)),
        Series(LOCAL, "b", (0.0,), (42_949_672_960.0,)),
        Series("llm", "engine.queue_seconds_total", (0.0,), (123_456.123456,)),
        Series("llm", "odd", (0.0, 1.0), (float("inf"), None)),
    ]
    kept, _ = window_series.bounded(series)
    assert [each.values for each in kept] == [(0.12346,), (42_950_000_000,), (123_456.123456,), (None, None)]
    assert kept[0].times == (0.123,)
