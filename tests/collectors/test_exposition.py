"""`/metrics`: all readings in Prometheus's format, read back by Prometheus's own parsers; unknown and stale are absent."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from collectors import exposition as page
from collectors import nvidia_smi
from collectors.alerts import Alert
from collectors.exposition import exposition
from collectors.metrics_api import routes
from collectors.readings import (
    Container,
    Containers,
    Core,
    Cpu,
    Disk,
    Fault,
    Filesystem,
    Filesystems,
    Gpu,
    GpuProcess,
    Gpus,
    Host,
    Interface,
    Load,
    Memory,
    MigDevice,
    Pressure,
    Process,
    Unit,
    Units,
    metrics,
)
from collectors.services import Latency, ProbeResult
from collectors.views import MachineView, Part, Problem, ServiceView, Snapshot, SourceView
from collectors.vllm_metrics import Engine

DATA = Path(__file__).parent / "data" / "nvidia_smi"
EVIL = 'a"b\\c\nd{x="1"} 1\n# TYPE x gauge é\x00'
GIB = 2**30

HOST = Host(
    100.0,
    2.0,
    Cpu(4, 0.5, 0.3, 0.2, 0.0, None),
    (Core(0, 0.5, 0.0, None), Core(1, None, None, None)),
    Load(1.0, 2.0, 6.0, 3, 200),
    Memory(8 * GIB, 2 * GIB, GIB, 6 * GIB, 0.75, None, None, 0, 0, None),
    (Pressure("io", 0.1, 0.2, 0.3),),
    (Disk("sda", 1.0, 2.0, 3.0, 4.0, 0.5, None, 0.1),),
    (Interface("eth0.100", 1.0, 2.0, 3.0, 4.0, 0.0, 0.0),),
    (Process(7, "vllm", "S", 0.5, GIB, 3), Process(8, "vllm", "S", 0.25, None, 3), Process(9, "x", "R", None, None, None)),
)
FILESYSTEMS = Filesystems(
    (Filesystem("/mnt/a.b c", "/dev/sda1", "ext4", 100 * GIB, 90 * GIB, 10 * GIB, 0.9, 1000, 10, 0.01, False),)
)
UNITS = Units((Unit("a@1.service", active="failed", sub="failed", restarts=3), Unit("b.service", active="active")))
CONTAINERS = Containers((Container(EVIL, "1f", state="running", health="healthy", memory_bytes=GIB),))


def h100s() -> Gpus:
    head, _, text = (DATA / "h100x8.csv").read_text().partition("\n")
    found = nvidia_smi.parse(text, head.removeprefix("# ").split(","))
    first = str((found.gpus or ())[0].uuid)
    holders = (GpuProcess(first, 1, "vllm", GIB, "docker 3f"), GpuProcess(first, 2, "vllm", 2 * GIB, "docker 3f"))
    return replace(found, processes=holders, mig_devices=(MigDevice(0, 1, "1g.10gb", "MIG-x"),))


def part(value: Any, **more: Any) -> Part[Any]:
    return Part(value, 1_000.0, 1.5, 0.1, **more)


def machine(**changes: Any) -> MachineView:
    parts: dict[str, Any] = {
        "host": part(HOST),
        "gpus": part(h100s()),
        "filesystems": part(FILESYSTEMS),
        "units": part(UNITS),
        "containers": part(CONTAINERS),
        "expected_gpus": 8,
    }
    return MachineView("gpu-1", "h", "ssh", "ok", **(parts | changes))


def snapshot(*machines: MachineView) -> Snapshot:
    probe = ProbeResult(
        "llm",
        "openai-chat",
        "functional",
        "ok",
        "http://h",
        Latency(0.2, 0.001),
        certificate_days=2.0,
        measures={"ttft_seconds": 0.1},
    )
    failed = replace(probe, service="down", probe="liveness", state="failed", failure="refused")
    engine = part(Engine(models="m", seconds=10.0, running=2, waiting=1))
    services = (
        ServiceView("llm", "openai-chat", "http://h", "ok", part(replace(probe, probe="liveness")), part(probe), engine),
        ServiceView("down", "openai-chat", "http://h", "failed", part(failed), Part()),
        ServiceView("new", "tcp", "h:1", "waiting", Part(), Part()),
    )
    return Snapshot(1_000.0, machines or (machine(),), services, (SourceView("fleet", "http://p", 3, 1.0, 2.0, 0.1, None),))


def read(data: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """name -> labels -> value, by prometheus_client's parser; nothing twice."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(data.decode()):
        assert family.type == "gauge" and family.documentation
        for sample in family.samples:
            key = tuple(sorted(sample.labels.items()))
            assert key not in found.setdefault(sample.name, {})
            found[sample.name][key] = sample.value
    return found


def one(found: dict[str, dict[tuple[tuple[str, str], ...], float]], name: str, /, **labels: str) -> float:
    (value,) = [value for key, value in found[name].items() if labels.items() <= dict(key).items()]
    return value


def test_promtool_has_nothing_to_say_against_it() -> None:
    data = exposition(snapshot(), [Alert(1, "gpu-hot", "GPU hot", "gpu-1", "gpu.0.t", "warn", 90, 90, 1.0, EVIL, "", "celsius")])
    done = subprocess.run([str(shutil.which("promtool")), "check", "metrics"], input=data, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_numbers_have_their_units_and_labels() -> None:
    found = read(exposition(snapshot()))
    assert one(found, "ragdeck_cpu_busy_ratio", machine="gpu-1") == 0.5
    assert one(found, "ragdeck_load_per_core_15m", machine="gpu-1") == 1.5
    assert one(found, "ragdeck_filesystem_used_ratio", mount="/mnt/a.b c") == 0.9
    assert one(found, "ragdeck_filesystem_inodes_limit", mount="/mnt/a.b c") == 1000
    assert one(found, "ragdeck_interface_sent_bytes_per_second", interface="eth0.100") == 2.0
    assert one(found, "ragdeck_gpu_sm_clock_hertz", gpu="0") == 1_980e6
    assert one(found, "ragdeck_gpu_memory_used_bytes", gpu="7", machine="gpu-1") > 0 and one(found, "ragdeck_gpus") == 8
    assert (
        one(found, "ragdeck_unit_failed", unit="a@1.service") == 1
        and one(found, "ragdeck_unit_restarts", unit="a@1.service") == 3
    )
    assert one(found, "ragdeck_unit_state", unit="b.service", state="active") == 1
    assert one(found, "ragdeck_gpu_info", gpu="0", name="NVIDIA H100 80GB HBM3", driver="570.133.20") == 1
    assert one(found, "ragdeck_gpu_throttle_reason", gpu="1") == 1
    assert one(found, "ragdeck_machine_reading_age_seconds", part="gpus") == 1.5
    assert one(found, "ragdeck_service_up", service="llm") == 1 and one(found, "ragdeck_service_up", service="down") == 0
    assert one(found, "ragdeck_service_certificate_seconds", service="llm") == 2 * 86_400
    assert (
        one(found, "ragdeck_service_ttft_seconds", service="llm") == 0.1
        and one(found, "ragdeck_engine_running", service="llm") == 2
    )
    assert one(found, "ragdeck_source_machines", source="fleet") == 3


def test_processes_of_a_name_are_added_up_and_have_no_numbers() -> None:
    found = read(exposition(snapshot()))
    assert one(found, "ragdeck_process_cpu_ratio", process="vllm") == 0.75
    assert one(found, "ragdeck_process_memory_bytes", process="vllm") == GIB
    assert one(found, "ragdeck_gpu_process_memory_bytes", gpu="0", process="vllm", owner="docker 3f") == 3 * GIB
    assert "pid" not in exposition(snapshot()).decode()


def test_every_number_of_every_reading_is_there() -> None:
    """Whatever a reading knows is exported once, under a name that can be told from it."""
    found = read(exposition(snapshot()))
    known = {
        name: value for reading in (HOST, h100s(), FILESYSTEMS, UNITS, CONTAINERS) for name, value in metrics(reading).items()
    }
    values = [(dict(key), value) for samples in found.values() for key, value in samples.items()]
    for name, value in known.items():
        kind, _, rest = name.partition(".")
        which = rest.rpartition(".")[0]
        scale = 1e6 if name.endswith("_mhz") else 1.0
        label = which if kind != "container" else page.cut(which)
        assert any(value * scale == seen and (not which or label in labels.values()) for labels, seen in values), name


def test_unknown_is_absent_and_never_zero() -> None:
    bare = machine(
        host=part(Host(*[None] * 10)),
        gpus=part(Gpus((Gpu(0),))),
        filesystems=part(Filesystems(None)),
        units=part(Units((Unit("a.service"),))),
        containers=part(Containers((Container("a", "1f"),))),
        expected_gpus=None,
    )
    found = read(exposition(Snapshot(1.0, (bare,), ())))
    readings = {name for name in found if not name.startswith(("ragdeck_machine", "ragdeck_export"))}
    assert readings == {"ragdeck_gpu_info", "ragdeck_gpus", "ragdeck_unit_state", "ragdeck_container_state"}
    failing = ServiceView(
        "s", "http", "h", "failed", part(ProbeResult("s", "http", "liveness", "failed", "h", Latency(0.1))), Part()
    )
    assert "ragdeck_service_liveness_seconds" not in read(exposition(Snapshot(1.0, (), (failing,)))), "refusing is quick"


def test_what_is_stale_ends_and_its_age_stays() -> None:
    away = machine(problem=Problem("timeout", "connect", "no", "x"), gpus=replace(part(h100s()), stale=True))
    found = read(exposition(snapshot(replace(away, state="failing"))))
    assert not [name for name in found if name.startswith("ragdeck_gpu")]
    assert one(found, "ragdeck_machine_up", machine="gpu-1") == 0
    assert one(found, "ragdeck_machine_reading_age_seconds", part="gpus") == 1.5


def test_what_machines_print_stays_within_its_label() -> None:
    fault = Fault("x", "text", "step", EVIL, "critical")
    view = replace(machine(units=part(replace(UNITS, faults=(fault,)))), name=EVIL)
    found = read(exposition(Snapshot(1.0, (view,), ())))
    (key,) = found["ragdeck_container_memory_bytes"]
    assert dict(key)["container"] == 'a"b\\c d{x="1"} 1 # TYPE x gauge é' and "x" not in found
    long = Containers((Container("c" * 5_000, "1f", memory_bytes=1),))
    (key,) = read(exposition(Snapshot(1.0, (machine(containers=part(long)),), ())))["ragdeck_container_memory_bytes"]
    assert len(dict(key)["container"]) == page.MAX_LABEL_CHARS
    twice = Containers(tuple(Container("c" * 300 + end, "1f", memory_bytes=number) for number, end in ((1, "a"), (2, "b"))))
    assert one(read(exposition(Snapshot(1.0, (machine(containers=part(twice)),), ()))), "ragdeck_container_memory_bytes") == 1


def test_the_page_is_bounded_and_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_SAMPLES", 50)
    found = read(exposition(snapshot()))
    assert sum(len(samples) for samples in found.values()) == 51
    assert one(found, "ragdeck_export_dropped_samples") > 100


def test_the_route_serves_it_and_says_when_it_cannot() -> None:
    asked: list[int] = []

    def watched() -> tuple[Snapshot, Iterable[Alert]]:
        asked.append(1)
        if len(asked) > 1:
            raise RuntimeError("settings with a secret hunter2")
        return snapshot(), ()

    mounted = routes(watched)
    assert asked == [], "mounting builds nothing"
    with TestClient(Starlette(routes=mounted)) as client:
        answer = client.get("/metrics")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
        assert one(read(answer.content), "ragdeck_cpu_busy_ratio") == 0.5
        failed = client.get("/metrics")
        assert failed.status_code == 503 and "hunter2" not in failed.text
        assert client.post("/metrics").status_code == 405
