"""`python -m collectors`: one round, repeated rounds, the connection test; tables, JSON and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import Response

import settings
from collectors.__main__ import is_complete, main
from collectors.readings import Fault, Gpu, Gpus
from collectors.table import table
from collectors.views import MachineView, Part, Problem, Snapshot
from tests.collectors.machine_fakes import machine_of
from tests.collectors.service_fakes import fake_service
from tests.collectors.sshd import Sshd
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
LOCAL = {"name": "local", "collect": ["host"]}


@dataclass
class FakeSettings:
    """Stands for the loaded settings: only what the commands read of them."""

    machines: list[dict[str, Any]]
    services: list[dict[str, Any]]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSettings]:
    made = FakeSettings([LOCAL], [])
    monkeypatch.setattr(settings, "load", lambda: made)
    handler = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, handler)


def test_a_real_sweep_prints_json(tmp_path: Path) -> None:
    environ = {**os.environ, "RAGDECK_DATA": str(tmp_path / "data"), "RAGDECK_CONFIG": str(tmp_path / "dashboard.toml")}
    (tmp_path / "dashboard.toml").write_text("")
    command = [sys.executable, "-m", "collectors", "sweep", "--json"]
    run = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=150)
    assert run.returncode == 0, run.stderr
    (local,) = json.loads(run.stdout)["machines"]
    assert local["state"] == "ok" and local["host"]["value"]["cpu"]["busy_ratio"] is not None
    assert not (tmp_path / "data").exists(), "it writes nothing"


def test_a_sweep_fails_when_a_service_is_down(configured: FakeSettings, capsys: pytest.CaptureFixture[str]) -> None:
    down = {"name": "redis", "kind": "tcp", "url": f"127.0.0.1:{free_port()}"}
    with fake_service({"GET /": Response("hello")}) as fake:
        configured.services = [{"name": "web", "kind": "http", "url": fake.address, "functional": False}]
        assert main(["sweep"]) == 0
        assert "web" in capsys.readouterr().out
        configured.services.append(down)
        assert main(["sweep", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [service["state"] for service in found["services"]] == ["ok", "failed"]
    assert found["services"][1]["liveness"]["value"]["failure"] == "refused"


def test_a_sweep_shows_what_to_do_about_a_machine(configured: FakeSettings, capsys: pytest.CaptureFixture[str]) -> None:
    configured.machines = [LOCAL, {"name": "gpu-1", "address": f"127.0.0.1:{free_port()}", "user": "nobody"}]
    assert main(["sweep"]) == 1
    said = capsys.readouterr().out
    assert "gpu-1" in said and "failing" in said and "connection refused" in said and "Does sshd run there" in said


def test_watch_repeats(configured: FakeSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("collectors.__main__.time", SimpleNamespace(sleep=slept.append))
    assert main(["watch", "--json", "--every", "60", "--rounds", "2"]) == 0  # the first is printed when all was read once
    assert slept == [60.0]
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert second["at"] > first["at"] and second["machines"][0]["state"] == "ok"


def test_watch_ends_well_when_it_is_told_to(tmp_path: Path) -> None:
    environ = {**os.environ, "RAGDECK_DATA": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "collectors", "watch"]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 0 and complaints == ""


def test_the_connection_test_of_a_machine(configured: FakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Sshd(tmp_path / "sshd")
    try:
        machine = machine_of(server)
        entry = {key: getattr(machine, key) for key in ("name", "address", "port", "user", "key", "known_hosts", "use_agent")}
        configured.machines = [LOCAL, entry]
        assert main(["test", "gpu-1", "--json", "--timeout", "60"]) == 0
        steps = json.loads(capsys.readouterr().out)["steps"]
        assert [step["step"] for step in steps if step["ok"]] == [
            "name",
            "connect",
            "host key",
            "authentication",
            "shell",
            "command",
        ]
        entry["known_hosts"] = tmp_path / "none"
        assert main(["test", "gpu-1", "--timeout", "60"]) == 1
        said = capsys.readouterr().out
        assert "host key        FAILED" in said and "SHA256:" in said and f">> {tmp_path / 'none'}" in said
    finally:
        server.stop()


def test_this_machine_can_be_tested(configured: FakeSettings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "local", "--timeout", "60"]) == 0
    assert "local (this machine)" in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_use(configured: FakeSettings, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    flags = ["--json"] if as_json else []
    assert main(["test", "nowhere", *flags]) == 2
    captured = capsys.readouterr()
    said = json.loads(captured.out)["error"]["message"] if as_json else captured.err
    assert "no machine 'nowhere'" in said and "local" in said
    configured.services = [{"name": "x", "kind": "gopher", "url": "h:1"}]
    assert main(["sweep", *flags]) == 2
    captured = capsys.readouterr()
    assert "services[1] (x): kind is 'gopher'" in (captured.out if as_json else captured.err)
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", "--timeout", "-1"])
    assert stopped.value.code == 2


def test_the_table_shows_unknown_as_such_and_no_control_characters() -> None:
    gpus = Gpus((Gpu(0, utilization_ratio=0.5, memory_used_bytes=2**30, memory_total_bytes=2**34), Gpu(1)))
    fault = Fault("gpu_lost", "GPU \x1b[31mis lost", "Reboot.", "gpu 3", "critical")
    view = MachineView("g\x1b1", "h", "ssh", "ok", gpus=Part(replace(gpus, faults=(fault,)), 1.0, 2.0))
    problem = Problem("timeout", "command", "no answer", "Look.")
    text = table(Snapshot(0.0, (view, MachineView("dead", "h", "ssh", "failing", problem)), ()))
    lines = text.splitlines()
    assert lines[0].split() == ["MACHINE", "STATE", "AGE", "GPU", "GPU", "MEMORY"]
    assert lines[1].split()[-4:] == ["50%", "-", "1.0/16G", "-"] and lines[2].split() == ["dead", "failing", "-", "-", "-"]
    assert "\x1b" not in text
    assert "! dead: no answer\n    Look." in text and "gpu 3: GPU  [31mis lost [critical]" in text


def test_a_round_is_over_when_everything_was_tried() -> None:
    waiting = MachineView("m", "h", "ssh", "waiting", gpus=Part())
    assert not is_complete(Snapshot(time.time(), (waiting,), ()))
    assert is_complete(Snapshot(time.time(), (replace(waiting, gpus=Part(Gpus(()), 1.0)),), ()))
    assert is_complete(Snapshot(time.time(), (replace(waiting, problem=Problem("x", "name", "y", "z")),), ()))
