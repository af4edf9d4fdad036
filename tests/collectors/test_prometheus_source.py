"""A real Prometheus that scrapes a real node_exporter, and pages of dcgm-exporter and vLLM served by a fake."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from collectors.prometheus_gpus import gpus
from collectors.prometheus_source import MachineReading, PrometheusSource, machine_name, machines, queries_of
from collectors.readings import metrics, to_json
from collectors.services import Service, ServiceError
from collectors.vllm_metrics import _rows
from tests.collectors.service_fakes import FakeService, fake_service, running, wait_for
from tests.ports import free_port

DATA = Path(__file__).parent / "data"
TOKENS_A_SECOND = 100

CONFIG = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs:
  - {{job_name: node, static_configs: [{{targets: ["127.0.0.1:{node}"]}}]}}
  - {{job_name: dcgm, metrics_path: /dcgm, static_configs: [{{targets: ["127.0.0.1:{fake}"]}}]}}
  - {{job_name: vllm, metrics_path: /vllm, static_configs: [{{targets: ["127.0.0.1:{fake}"]}}]}}
  - {{job_name: gone, static_configs: [{{targets: ["localhost:{dead}"]}}]}}
"""


def growing() -> Any:
    """vLLM's page, with the counter of generated tokens and one histogram growing with the time, however often it is scraped."""
    page, began = (DATA / "vllm/v1_first.txt").read_text(), time.monotonic()
    line = 'vllm:generation_tokens_total{engine="0",model_name="Qwen/Qwen3-8B-AWQ"}'
    bucket = 'vllm:request_queue_time_seconds_bucket{engine="0",model_name="Qwen/Qwen3-8B-AWQ",le='

    async def answer(request: Request) -> Response:
        number = (time.monotonic() - began) * TOKENS_A_SECOND
        lines = [each for each in page.splitlines() if not each.startswith((line, bucket))]
        lines += [
            f"{line} {number}",
            f'{bucket}"0.3"}} 0',
            f'{bucket}"0.5"}} {number}',
            f'{bucket}"+Inf"}} {number}',
        ]
        return Response("\n".join(lines) + "\n", media_type="text/plain")

    return answer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusSource]:
    home, node, port, dead = tmp_path_factory.mktemp("prometheus"), free_port(), free_port(), free_port()
    answers: dict[str, Any] = {"GET /dcgm": (DATA / "prometheus/dcgm_h100.txt").read_text(), "GET /vllm": growing()}
    exporter = [str(shutil.which("prometheus-node-exporter")), f"--web.listen-address=127.0.0.1:{node}"]
    with fake_service(answers) as fake, running(exporter, node):
        (home / "prometheus.yml").write_text(CONFIG.format(node=node, fake=fake.port, dead=dead))
        command = ["prometheus", f"--config.file={home / 'prometheus.yml'}", f"--storage.tsdb.path={home / 'data'}"]
        with running([*command, f"--web.listen-address=127.0.0.1:{port}"], port):
            server = Service("prometheus", "http", f"http://127.0.0.1:{port}", timeout_seconds=20)
            made = PrometheusSource(server, window_seconds=5)
            wait_for(lambda: _filled(made))
            yield made


def _filled(source: PrometheusSource) -> MachineReading | None:
    """This machine, once everything is known of it."""
    try:
        read = source.read()
    except ServiceError as problem:
        assert problem.failure in ("server_error", "overloaded", "bad_answer"), problem.message  # 503 until it is ready
        return None
    found = read.get("127.0.0.1")
    rates = (
        found and found.host and found.host.cpu and found.host.cpu.busy_ratio is not None and found.host.interfaces is not None
    )
    engine = found.engines[0] if found and found.engines else None
    whole = engine and (engine.generation_tokens_per_second or 0.0) > TOKENS_A_SECOND * 0.7  # the window is full of scrapes
    return found if rates and whole and found and found.gpus and "localhost" in read else None


@pytest.fixture(scope="module")
def machine(source: PrometheusSource) -> MachineReading:
    found: list[MachineReading | None] = []
    wait_for(lambda: found.append(_filled(source)) or found[-1])  # a scrape may have been missed since
    assert found[-1]
    return found[-1]


def test_several_exporters_of_a_machine_come_together(source: PrometheusSource, machine: MachineReading):
    assert machine.name == "127.0.0.1" and machine.age_seconds is not None and machine.age_seconds < 60
    assert machine.host and machine.gpus and machine.engines and machine.filesystems
    assert json.loads(json.dumps(to_json(machine)))["name"] == "127.0.0.1"
    numbers = metrics(machine)
    assert {"cpu.busy_ratio", "memory.used_ratio", "gpu.0.utilization_ratio", "load.average_1m"} <= set(numbers)
    assert any(name.startswith("engine.127.0.0.1:") and name.endswith(".running") for name in numbers)


def _memory_agrees(source: PrometheusSource) -> bool:
    """Others may take much between the scrape and our look."""
    host = source.read()["127.0.0.1"].host
    available = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line).split()[1])
    return bool(host and host.memory and host.memory.available_bytes == pytest.approx(available * 1024, rel=0.3))


def test_the_host_is_this_one(source: PrometheusSource, machine: MachineReading):
    host = machine.host
    assert host and host.cpu and host.memory and host.load
    meminfo = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines()}
    assert host.memory.total_bytes == meminfo["MemTotal"] and host.memory.swap_total_bytes == meminfo["SwapTotal"]
    wait_for(lambda: _memory_agrees(source))
    assert host.cpu.cores == os.cpu_count()
    assert host.cpu.busy_ratio is not None and 0.0 <= host.cpu.busy_ratio <= 1.0
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert host.uptime_seconds == pytest.approx(uptime, abs=120)
    assert host.cores is None and host.processes is None, "not asked for: unknown, not empty"


def test_its_filesystems(machine: MachineReading):
    assert machine.filesystems and machine.filesystems.filesystems
    for found in machine.filesystems.filesystems:
        if os.path.isdir(found.mount):
            real = os.statvfs(found.mount)
            assert found.total_bytes == real.f_blocks * real.f_frsize
            assert found.used_ratio is None or 0.0 <= found.used_ratio <= 1.0


def test_its_gpus(machine: MachineReading):
    assert machine.gpus and machine.gpus.gpus and machine.gpus.driver_version == "570.124.06"
    busy, lost = machine.gpus.gpus
    assert (busy.name, busy.utilization_ratio, busy.power_watts) == ("NVIDIA H100 80GB HBM3", 0.97, 512.25)
    assert busy.memory_used_bytes == 70_000 * 2**20 and busy.memory_total_bytes == 81_559 * 2**20
    assert busy.memory_used_ratio == pytest.approx(70_000 / 81_559)
    assert lost.memory_temperature_celsius is None, "DCGM's mark for no value"
    assert lost.row_remap_failed is True and lost.rows_remapped_uncorrectable == 2 and busy.row_remap_failed is False
    assert [(fault.code, fault.subject, fault.severity) for fault in machine.gpus.faults] == [("xid", "gpu 1", "critical")]


def test_its_engines(machine: MachineReading):
    assert machine.engines
    (engine,) = machine.engines
    assert (engine.models, engine.running, engine.kv_cache_used_ratio) == ("Qwen/Qwen3-8B-AWQ", 3.0, 0.125)
    assert engine.generation_tokens_per_second == pytest.approx(TOKENS_A_SECOND, rel=0.5)
    assert engine.queue_p50_seconds == pytest.approx(0.4, abs=0.001), "all between 0.3 and 0.5 s"
    assert engine.prompt_tokens_per_second == 0.0 and engine.ttft_p50_seconds is None


def test_a_target_that_cannot_be_scraped(source: PrometheusSource):
    gone = source.read()["localhost"]
    assert gone.host is None and gone.gpus is None and gone.engines is None
    (fault,) = gone.faults
    assert fault.code == "scrape_failed" and "job gone" in fault.text


def test_queries_are_few_and_do_not_grow_with_the_fleet():
    assert len(queries_of("instance", 120)) == 7
    rows = [("node_load1", {"instance": f"10.0.{n // 250}.{n % 250}:9100"}, 1.0) for n in range(500)]
    assert len(machines({"node": rows}, "instance", 120)) == 500


def test_a_query_that_prometheus_refuses(source: PrometheusSource):
    with pytest.raises(ServiceError) as caught:
        replace(source, machine_label="not a label").read()
    assert caught.value.failure == "server_error" and "parse error" in caught.value.message


@pytest.mark.parametrize(
    "answer, failure",
    [
        (JSONResponse({"status": "success", "data": {"resultType": "matrix", "result": []}}), "bad_answer"),
        (JSONResponse({"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}}]}}), "bad_answer"),
        (JSONResponse(["nothing"]), "bad_answer"),
        (Response("<html>Grafana</html>"), "bad_answer"),
        (JSONResponse({}, 401), "authentication"),
    ],
)
def test_what_is_no_prometheus(answer: Response, failure: str):
    with fake_service({"POST /api/v1/query": answer}) as fake, pytest.raises(ServiceError) as caught:
        PrometheusSource(Service("p", "http", fake.address)).read()
    assert caught.value.failure == failure


def test_values_that_are_no_numbers_are_left_out():
    series = [
        {"metric": {"__name__": "node_load1", "instance": "a"}, "value": [1, value]} for value in ("NaN", "+Inf", "x", None)
    ]
    body = {"status": "success", "data": {"resultType": "vector", "result": series}}
    with fake_service({"POST /prefix/api/v1/query": body}) as fake:
        assert PrometheusSource(Service("p", "http", f"{fake.address}/prefix", api_key="key-of-prometheus")).read() == {}
        check_key(fake)


def check_key(fake: FakeService) -> None:
    assert {asked.headers["authorization"] for asked in fake.asked} == {"Bearer key-of-prometheus"}


@pytest.mark.parametrize(
    "label, name",
    [
        ("gpu-1:9100", "gpu-1"),
        ("10.0.0.1", "10.0.0.1"),
        ("[fd00::1]:9400", "fd00::1"),
        ("fd00::1", "fd00::1"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_names_of_machines(label: str, name: str):
    assert machine_name(label) == name


def test_mig_instances_do_not_pass_for_the_gpu():
    found = gpus(_rows((DATA / "prometheus/dcgm_mig.txt").read_text()))
    assert found.gpus and found.mig_devices
    (gpu,) = found.gpus
    assert gpu.mig_enabled is True and gpu.memory_used_bytes is None and gpu.power_watts == 120.0
    assert [(device.device, device.profile) for device in found.mig_devices] == [(1, "3g.20gb"), (2, "3g.20gb")]
