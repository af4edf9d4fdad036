"""The whole way, from fake programs behind a real sshd over the real sweep to the page Machine: units, containers, logs, GPUs,
a restart with its audit line, and the connection test step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from bs4 import BeautifulSoup
from streamlit.testing.v1 import AppTest

import runtime
from collectors.connection_test import StepResult
from settings import reference
from tests.collectors.machine_fakes import DATA, FakeProgram, machine_of, nvidia_smi_script, with_path
from tests.collectors.sshd import Sshd, eventually
from ui import machines_view
from ui.cached import kept_points, the_runtime

ROOT = Path(__file__).resolve().parent.parent.parent
EVIL = '"><img src=x onerror=alert(1)>'
pytestmark = pytest.mark.xdist_group("pages")

SYSTEMCTL = """case "$1" in
list-units) echo 'vllm.service loaded failed failed vLLM' ;;
show) sed '1,/^answered/d' {data}/systemd/units.txt ;;
restart) echo "$*" >> {folder}/restarts; [ -e {folder}/works ] && exit 0
  echo 'Job for vllm.service failed because the control process exited with error code.' >&2; exit 1 ;;
*) exit 1 ;;
esac"""
JOURNALCTL = """echo "$*" >> {folder}/logs; echo '2026-01-01T00:00:00 out of memory {evil}'"""
DOCKER = """case "$1" in
ps) grep -o '"id":"[a-f0-9]*"' {data}/docker/containers.txt | cut -d'"' -f4 ;;
inspect) grep '^{{' {data}/docker/containers.txt ;;
logs) echo "$*" >> {folder}/logs; echo 'listening on 8001' ;;
*) exit 1 ;;
esac"""
APPS = "printf '%s\\n' 'GPU-0e3b1f0a-57c1-4c1e-9a55-0d2f6a7b8c00, 1, 74211, VLLM::Worker' ;;"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("machine")
    evil = EVIL.replace("'", "")
    for name, script in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL), ("docker", DOCKER)):
        FakeProgram(made / "bin", name).says(script.format(data=DATA, folder=made, evil=evil))
    FakeProgram(made / "bin", "id").says("echo 0")
    # The script of eight H100, with a process on the first
    script = nvidia_smi_script("h100x8_one_lost.csv").replace("--query-compute-apps*) echo ;;", f"--query-compute-apps*) {APPS}")
    FakeProgram(made / "bin", "nvidia-smi").says(script)
    return made


@pytest.fixture(scope="module")
def rt(folder: Path) -> Iterator[runtime.Runtime]:
    server = Sshd(folder / "sshd", force=with_path(folder / "bin"))
    machine = machine_of(server)
    values = {name: str(getattr(machine, name)) for name in ("name", "address", "user", "key", "known_hosts")}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    more = ["use_agent = false", 'units = ["vllm"]', 'restart = ["vllm"]', "expected_gpus = 8", "every_seconds = 0.5"]
    config = folder / "dashboard.toml"
    config.write_text("\n".join(["[[machines]]", *lines, f"port = {machine.port}", *more, ""]))
    with pytest.MonkeyPatch.context() as patch:
        for name in [row.variable for row in reference() if row.variable] + ["MILVUS_HOST", "OPENAI_API_KEY"]:
            patch.delenv(name, raising=False)
        patch.setenv("RAGDECK_DATA", str(folder / "data"))
        patch.setenv("RAGDECK_CONFIG", str(config))
        runtime.shut_down()
        the_runtime.clear()
        running = runtime.get()
        running.deployment.start()
        yield running
        running.wait_warm(60.0)
        runtime.shut_down()
        the_runtime.clear()
        kept_points.clear()
    assert eventually(lambda: server.left() == []), server.left()
    server.stop()


@pytest.fixture
def app(rt: runtime.Runtime) -> AppTest:
    def is_read(snapshot: Any) -> bool:
        view = snapshot.machine("gpu-1")
        return view.state == "ok" and all(part.value is not None for _, part in view.parts()) and view.host.value.seconds

    assert rt.sweep.wait_for(is_read, 120.0), rt.sweep.snapshot().machine("gpu-1")
    opened = AppTest.from_file(str(ROOT / "ui" / "frame.py"), default_timeout=60)
    opened.run()
    opened.query_params["name"] = "gpu-1"
    opened.switch_page(str(ROOT / "pages" / "machine.py"))
    opened.run()
    assert not opened.exception
    return opened


def html(app: AppTest) -> str:
    shown = "\n".join(str(item.proto.body) for item in app.get("html"))
    assert "<img" not in shown, "what a machine prints is text"
    return shown


def text(app: AppTest) -> str:
    return " ".join(BeautifulSoup(html(app), "html.parser").get_text(" ").split())


def test_units_containers_and_gpus_are_shown_as_the_programs_told_them(app: AppTest) -> None:
    shown = text(app)
    for said in (
        "vllm.service failed (exit-code, exit status 203)",
        "rag-gpu-server.service GPU server: embedder = reranker active",
        "there is no unit whisper.service",
        "milvus.standalone milvusdb/milvus:v2.5.4 running, unhealthy",
        "running, healthy",
        "whisper was ended for want of memory",
        "1 GPU of 8 missing",
        "Unable to determine the device handle for GPU5",
        "NVIDIA H100 80GB HBM3",
        "VLLM::Worker",
        "72.5 / 79.6 GiB",
    ):
        assert said in shown, said
    assert shown.count("NVIDIA H100 80GB HBM3") >= 7
    assert "It is configured in dashboard.toml" in shown


def test_logs_come_from_journalctl_and_docker(app: AppTest, folder: Path) -> None:
    app.selectbox(key="log").set_value("vllm.service")
    app.button(key="log-read").click().run()
    assert app.code[0].value == f"2026-01-01T00:00:00 out of memory {EVIL}"
    app.selectbox(key="log").set_value("milvus.standalone")
    app.button(key="log-read").click().run()
    assert app.code[0].value == "listening on 8001"
    assert (folder / "logs").read_text().splitlines() == [
        "--no-pager --output=short-iso --lines=50 --unit=vllm.service",
        "logs --tail 50 --timestamps milvus.standalone",
    ]


def test_a_unit_is_restarted_from_the_page_and_audited(app: AppTest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(st.context), "ip_address", property(lambda context: "10.0.0.3"))
    app.button(key="restart-0-vllm.service").click().run()
    assert not app.exception
    assert "was not restarted: Job for vllm.service failed because the control process exited" in text(app)
    (folder / "works").touch()
    app.button(key="restart-1-vllm.service").click().run()
    assert not app.exception and "vllm.service on gpu-1 was restarted" in text(app)
    assert (folder / "restarts").read_text() == "restart vllm.service\n" * 2
    lines = [json.loads(line) for line in (folder / "data" / "audit.log").read_text().splitlines()]
    assert [(line["who"], line["machine"], line["what"], line["outcome"]) for line in lines] == [
        ("10.0.0.3", "gpu-1", "restart vllm.service", outcome) for outcome in ("asked", "failed", "asked", "done")
    ]


def test_the_steps_of_a_test_are_shown_as_they_end(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    so_far: list[list[StepResult]] = []
    drawn = machines_view.steps_so_far

    def noted(results: Any, order: Any) -> str:
        so_far.append(list(results))
        return drawn(results, order)

    monkeypatch.setattr(machines_view, "steps_so_far", noted)
    app.button(key="test").click().run()
    assert not app.exception
    steps = ["name", "connect", "host key", "authentication", "shell", "command"]
    assert [[result.step for result in each] for each in so_far] == [steps[:count] for count in range(7)]
    last = so_far[-1]
    assert last[0].text == "127.0.0.1" and last[1].text.startswith("SSH-2.0-") and last[2].text.startswith("SHA256:")
    assert "user_key" in last[3].text and last[4].text.startswith("Linux")
    assert last[2].text in text(app)
