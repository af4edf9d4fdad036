"""The sweep over this machine, real sshds and real services that die and come back; nothing waits for what hangs."""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from collectors.alerts import Alerts, Event
from collectors.errors import AuthenticationFailed, ConnectionLost, HostKeyUnknown
from collectors.history import History
from collectors.machine_local import LocalReader
from collectors.machines import Machine, PartName, Reader
from collectors.prometheus_source import PrometheusSource
from collectors.readings import Host
from collectors.rules import DEFAULTS, Rule, rules
from collectors.service_watch import WatchedService
from collectors.services import Service
from collectors.source_watch import WatchedSource
from collectors.sweep import Sweep
from collectors.views import MachineView, Part, Problem, ServiceView, Snapshot
from collectors.watching import Memory
from tests.collectors.machine_fakes import FakeProgram, FakeReader, fake_nvidia_smi, machine_of, nvidia_smi_script, with_path
from tests.collectors.service_fakes import fake_port, fake_service, running, silence
from tests.collectors.sshd import Sshd, eventually
from tests.ports import free_port

PATIENCE = 60.0
HOST_ONLY: tuple[PartName, ...] = ("host",)
LOCAL = Machine("local", collect=HOST_ONLY, every_seconds=0.2)


@pytest.fixture(autouse=True)
def kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.sweep.KEEP_SECONDS", 0.1)


@contextmanager
def sweeping(*arguments: object, **named: object) -> Iterator[Sweep]:
    sweep = Sweep(*arguments, **named)  # type: ignore[arg-type]
    sweep.start()
    try:
        yield sweep
    finally:
        assert sweep.stop(PATIENCE)
        assert eventually(lambda: not [each for each in threading.enumerate() if each.name.startswith("sweep")])


def until(sweep: Sweep, name: str, condition: Callable[[MachineView], bool]) -> MachineView:
    """The machine's view once it meets a condition."""
    found: list[MachineView] = []

    def met(snapshot: Snapshot) -> bool:
        view = snapshot.machine(name)
        found[:] = [view] if view is not None and condition(view) else []
        return bool(found)

    assert sweep.wait_for(met, PATIENCE), sweep.snapshot().machine(name)
    return found[0]


def until_service(sweep: Sweep, name: str, condition: Callable[[ServiceView], bool]) -> ServiceView:
    found: list[ServiceView] = []

    def met(snapshot: Snapshot) -> bool:
        view = snapshot.service(name)
        found[:] = [view] if view is not None and condition(view) else []
        return bool(found)

    assert sweep.wait_for(met, PATIENCE), sweep.snapshot().service(name)
    return found[0]


def only(rule: str, **changes: float) -> tuple[Rule, ...]:
    """One rule alone: the machine that runs the tests may be busy."""
    return tuple(each for each in rules({rule: changes}) if each.id == rule)


def raised(alerts: Alerts) -> list[str]:
    return [f"{alert.rule} {alert.level} on {alert.source}" for alert in alerts.active()]


def host_of(view: MachineView) -> Host | None:
    return view.host.value if view.host else None


def fresh(view: MachineView) -> bool:
    return view.state == "ok" and view.host is not None and view.host.problem is None and view.host.value is not None


def fakes(*readers: FakeReader) -> Callable[[Machine], Reader]:
    """Gives each machine its fake reader, and the local machine a real one."""

    def reader(machine: Machine) -> Reader:
        return LocalReader(machine) if machine.is_local else next(each for each in readers if each.machine == machine)

    return reader


def fake(name: str, collect: tuple[PartName, ...] = ("host", "gpus"), every: float = 0.05) -> tuple[Machine, FakeReader]:
    machine = Machine(name, f"{name}.example", collect=collect, every_seconds=every)
    return machine, FakeReader(machine)


# This machine


def test_the_local_machine_is_watched_without_settings() -> None:
    with sweeping() as sweep:
        view = until(sweep, "local", lambda view: all(part.tried for _, part in view.parts()) and _has_rates(view))
        assert (view.state, view.source, view.address) == ("ok", "local", "this machine")
        assert [name for name, _ in view.parts()] == ["host", "gpus", "filesystems", "units", "containers"]
        snapshot = sweep.snapshot()
        assert json.loads(json.dumps(snapshot.to_json()))["machines"][0]["host"]["value"]["cpu"]["cores"]
        assert snapshot.machine("elsewhere") is None and snapshot.service("local") is None
        assert [(step.step, step.ok) for step in sweep.test("local")] == [("shell", True), ("command", True)]


def _has_rates(view: MachineView) -> bool:
    host = host_of(view)
    return host is not None and host.seconds is not None


def test_readings_are_stamped_by_the_clock_and_aged_by_another() -> None:
    wall = [5_000.0]
    with sweeping([LOCAL], clock=lambda: wall[0]) as sweep:
        first = until(sweep, "local", fresh)
        assert first.host is not None and first.host.at == 5_000.0
        wall[0] = 1_000.0  # the clock is set back by an hour
        second = until(sweep, "local", lambda view: view.host is not None and view.host.at == 1_000.0)
        assert second.host is not None and second.host.age_seconds is not None and 0 <= second.host.age_seconds < PATIENCE
        assert second.state == "ok" and sweep.snapshot().at == 1_000.0


def test_a_sweep_starts_and_stops_once() -> None:
    sweep = Sweep([LOCAL])
    sweep.start()
    sweep.start()
    assert sweep.stop(PATIENCE) and sweep.stop(PATIENCE)
    sweep.start()
    sweep.apply([], [])
    assert [machine.state for machine in sweep.snapshot().machines] in (["ok"], ["waiting"])


# Machines over SSH


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    return tmp_path / "bin"


@pytest.fixture
def sshd(tmp_path: Path, programs: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "sshd", force=with_path(programs))
    yield server
    if server.process.poll() is None:
        server.stop()


def test_a_hung_nvidia_smi_leaves_the_rest_and_nothing_stays_behind(
    sshd: Sshd, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "collectors.machine_watch.READ_SECONDS", dict.fromkeys(("host", "filesystems", "units"), 15.0) | {"gpus": 0.5}
    )
    program = fake_nvidia_smi(programs)
    machine = machine_of(sshd, collect=("host", "gpus", "filesystems"))
    with sweeping([LOCAL, machine]) as sweep:
        well = until(sweep, "gpu-1", lambda view: fresh(view) and view.gpus is not None and view.gpus.value is not None)
        assert well.gpus is not None and well.gpus.value is not None and well.gpus.value.gpus is not None
        assert len(well.gpus.value.gpus) == 8 and well.expected_gpus == 8
        program.says(nvidia_smi_script("h100x8.csv", before="sleep 600;"))
        hung = until(sweep, "gpu-1", lambda view: view.gpus is not None and view.gpus.problem is not None)
        assert hung.gpus is not None and hung.gpus.problem is not None and hung.gpus.problem.kind == "timeout"
        assert hung.gpus.value == well.gpus.value, "the last reading stays"
        at = hung.host.at if hung.host else None
        later = until(sweep, "gpu-1", lambda view: view.host is not None and view.host.at != at and view.host.problem is None)
        assert later.state == "ok" and later.problem is None
    assert eventually(lambda: sshd.left() == []), sshd.left()


def test_a_machine_dies_and_comes_back(sshd: Sshd, tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.db", only("collection-failing", for_seconds=0))
    machine = machine_of(sshd, collect=HOST_ONLY)
    with sweeping([LOCAL, machine], alerts=alerts) as sweep:
        until(sweep, "gpu-1", fresh)
        sshd.stop()
        dead = until(sweep, "gpu-1", lambda view: view.problem is not None and view.problem.step == "connect")
        assert dead.state == "failing" and dead.retry_seconds is not None and dead.problem is not None
        assert "refused" in dead.problem.text and host_of(dead) is not None
        assert eventually(lambda: raised(alerts) == ["collection-failing warn on gpu-1"])
        assert alerts.active()[0].detail
        sshd.process = sshd._start()
        sweep.retry("gpu-1")
        until(sweep, "gpu-1", fresh)
        assert eventually(lambda: raised(alerts) == [])
    alerts.close()


def test_an_unreachable_machine_is_one_alert(tmp_path: Path) -> None:
    """All its readings are old too: that is said once."""
    later, rounds = [0.0], [0]
    quick = rules({"collection-failing": {"for_seconds": 0}, "collection-slow": {"enabled": False}})

    class Counted(Alerts):
        def evaluate(self, *arguments: Any, **named: Any) -> list[Event]:
            rounds[0] += 1
            return super().evaluate(*arguments, **named)

    alerts = Counted(tmp_path / "alerts.db", tuple(rule for rule in quick if rule.id.startswith("collection-")))
    machine, reader = fake("m")
    with sweeping([LOCAL, machine], alerts=alerts, reader=fakes(reader), monotonic=lambda: time.monotonic() + later[0]) as sweep:
        until(sweep, "m", fresh)
        reader.errors["connect"] = reader.errors["host"] = ConnectionLost("gone", next_step="Is it up?")
        reader.connected = False
        until(sweep, "m", lambda view: view.state == "failing")
        later[0] = 900.0
        aged = until(sweep, "m", lambda view: view.host is not None and (view.host.age_seconds or 0) >= 900.0)
        assert aged.host is not None and aged.host.stale
        before = rounds[0]
        assert eventually(lambda: rounds[0] > before + 3)
        assert [line for line in raised(alerts) if line.endswith("on m")] == ["collection-failing warn on m"]
        assert "not connected" in next(alert.detail for alert in alerts.active() if alert.source == "m")
        reader.errors.clear()
        sweep.retry("m")
        assert eventually(lambda: raised(alerts) == []), raised(alerts)
    alerts.close()


def test_a_machine_that_is_read_slowly_stays_an_alert_until_it_is_not(tmp_path: Path) -> None:
    """How well a machine can be read is a metric like others: it is not taken for gone."""
    slow = rules({"collection-slow": {"for_seconds": 0, "warn": 0.0, "warn_clear": 0.0}})
    alerts = Alerts(tmp_path / "alerts.db", tuple(rule for rule in slow if rule.id == "collection-slow"))
    machine, reader = fake("m")
    with sweeping([machine], alerts=alerts, reader=fakes(reader)) as sweep:
        until(sweep, "m", fresh)
        assert eventually(lambda: "collection-slow warn on m" in raised(alerts))
        number = next(alert.id for alert in alerts.active() if alert.source == "m")
        reads = reader.reads["host"]
        assert eventually(lambda: reader.reads["host"] > reads + 20)
        assert [alert.id for alert in alerts.active() if alert.source == "m"] == [number] and alerts.past() == []
    alerts.close()


def test_a_machine_that_stands_still_is_given_up_and_found_again(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.machine_watch.READ_SECONDS", {"host": 2.0})
    with sweeping([LOCAL, machine_of(sshd, collect=HOST_ONLY)]) as sweep:
        until(sweep, "gpu-1", fresh)
        sshd.signal_connections(signal.SIGSTOP)
        still = until(sweep, "gpu-1", lambda view: view.retry_seconds is not None)
        assert still.state == "failing" and still.problem is not None and still.problem.kind == "timeout"
        sweep.retry("gpu-1")  # the listener still answers: a new connection is made
        until(sweep, "gpu-1", fresh)
        sshd.signal_connections(signal.SIGCONT)


def test_a_refused_login_is_not_tried_again_until_a_test_goes_well(sshd: Sshd) -> None:
    keys = sshd.directory / "authorized_keys"
    right = keys.read_text()
    keys.write_text("")
    with sweeping([LOCAL, machine_of(sshd, collect=HOST_ONLY)]) as sweep:
        halted = until(sweep, "gpu-1", lambda view: view.state == "halted")
        assert halted.problem is not None and halted.problem.kind == "authentication" and halted.retry_seconds is None
        steps = {step.step: step for step in sweep.test("gpu-1")}
        assert steps["authentication"].ok is False
        until(sweep, "gpu-1", lambda view: view.state == "halted")
        keys.write_text(right)
        assert all(step.ok for step in sweep.test("gpu-1"))
        until(sweep, "gpu-1", fresh)


def test_an_unknown_host_is_refused_with_what_makes_it_known(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    with sweeping([LOCAL, machine_of(sshd, collect=HOST_ONLY, known_hosts=known)]) as sweep:
        refused = until(sweep, "gpu-1", lambda view: view.problem is not None)
        assert refused.problem is not None and refused.problem.step == "host key" and refused.problem.command is not None
        assert refused.problem.fingerprint is not None and refused.problem.fingerprint in refused.problem.text
        known.write_text(sshd.known_hosts.read_text())
        sweep.retry("gpu-1")
        until(sweep, "gpu-1", fresh)


def test_logs_of_what_is_listed(sshd: Sshd, programs: Path, tmp_path: Path) -> None:
    inspected = json.dumps(
        {"id": "1f", "name": "/api", "image": "api", "restarts": 0, "state": "running", "exit": 0, "oom": False}
    )
    FakeProgram(programs, "docker").says(
        f"""case "$1" in ps) echo 1f ;; inspect) echo '{inspected}' ;; logs) shift; echo "lines: $*"; yes | head -c 200000 ;; esac"""
    )
    with sweeping([LOCAL, machine_of(sshd, collect=("containers",))]) as sweep:
        until(sweep, "gpu-1", lambda view: view.containers is not None and view.containers.value is not None)
        text = sweep.logs("gpu-1", "api", lines=7)
        assert len(text) <= 65_536
        FakeProgram(programs, "docker").says('shift; echo "lines: $*"')
        assert sweep.logs("gpu-1", "api", lines=7) == "lines: --tail 7 --timestamps api\n"
        for name in ("other", "api; reboot", "--all"):
            with pytest.raises(ValueError, match="lists no unit and no container"):
                sweep.logs("gpu-1", name)
        with pytest.raises(KeyError):
            sweep.logs("nowhere", "api")


# Many machines, by fake readers


def test_hung_machines_change_nothing_for_the_others() -> None:
    machines, readers = zip(*(fake(f"m{number}") for number in range(40)), strict=True)
    for reader in readers[:39]:
        reader.hung |= {"host", "gpus"}
    with sweeping([LOCAL, *machines], reader=fakes(*readers)) as sweep:
        assert eventually(lambda: all(reader.reads.get("host") for reader in readers))
        before = readers[39].reads["host"]
        assert eventually(lambda: readers[39].reads["host"] >= before + 10)
        assert eventually(lambda: readers[39].reads["gpus"] >= 10)
        assert fresh(until(sweep, "m39", fresh))
        local = until(sweep, "local", fresh)
        at = local.host.at if local.host else None
        until(sweep, "local", lambda view: fresh(view) and view.host is not None and view.host.at != at)


def test_failing_machines_are_tried_ever_more_rarely_and_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []

    def back_off(failures: int, random: random.Random) -> float:
        waits.append(failures)
        return 0.0 if failures < 4 else 3600.0

    monkeypatch.setattr("collectors.machine_watch.back_off", back_off)
    machine, reader = fake("m", HOST_ONLY)
    reader.errors["connect"] = HostKeyUnknown("unknown", fingerprint="SHA256:x", command="echo")
    with sweeping([LOCAL, machine], reader=fakes(reader)) as sweep:
        view = until(sweep, "m", lambda view: view.retry_seconds is not None and view.retry_seconds > 60)
        assert (reader.connects, waits, view.state) == (4, [1, 2, 3, 4], "failing")
        reader.errors.clear()
        sweep.retry("m")
        until(sweep, "m", fresh)
        reader.errors["host"] = ConnectionLost("gone")
        reader.connected = False
        until(sweep, "m", lambda view: view.problem is not None)
        assert eventually(lambda: len(waits) > 4) and waits[4] == 1, "a good reading ends the counting"


def test_a_machine_without_a_shell_is_asked_for_nothing_more() -> None:
    """Each shell is a burden to a machine that is too slow to start one."""
    machine, reader = fake("m")
    reader.hung.add("host")
    with sweeping([LOCAL, machine], reader=fakes(reader)) as sweep:
        assert eventually(lambda: reader.reads.get("host") == 1)
        sweep.burst(30.0)
        until(sweep, "local", fresh)
        assert "gpus" not in reader.reads
        reader.hung.clear()
        reader.release()
        until(sweep, "m", lambda view: view.gpus is not None and view.gpus.value is not None)


def test_a_refused_login_ends_the_trying() -> None:
    machine, reader = fake("m", HOST_ONLY)
    reader.errors["connect"] = AuthenticationFailed("no")
    other = FakeReader(replace(machine, user="root"))
    with sweeping([LOCAL, machine], reader=fakes(reader, other)) as sweep:
        until(sweep, "m", lambda view: view.state == "halted")
        sweep.apply([LOCAL, machine], [])
        assert reader.connects == 1
        sweep.apply([LOCAL, other.machine], [])
        until(sweep, "m", fresh)
        assert (reader.connects, other.connects) == (1, 1)


def test_a_burst_reads_remote_machines_oftener() -> None:
    machine, reader = fake("m", every=3600.0)
    with sweeping([replace(LOCAL, every_seconds=3600.0), machine], reader=fakes(reader)) as sweep:
        until(sweep, "m", lambda view: fresh(view) and view.gpus is not None and view.gpus.value is not None)
        assert eventually(lambda: (reader.reads["host"], reader.reads["gpus"]) == (1, 1))
        sweep.burst(30.0)
        assert eventually(lambda: reader.reads["host"] >= 3 and reader.reads["gpus"] >= 3)


def test_machines_come_change_and_go() -> None:
    (first, a), (second, b), (third, c) = fake("a"), fake("b"), fake("c")
    with sweeping([LOCAL, first, second], reader=fakes(a, b, c)) as sweep:
        until(sweep, "a", fresh), until(sweep, "b", fresh)
        sweep.apply([first, third], [])
        until(sweep, "c", fresh)
        assert [view.name for view in sweep.snapshot().machines] == ["local", "a", "c"]
        assert eventually(lambda: not b.connected) and a.connected and a.connects == 1
        reads = dict(b.reads)
        count = a.reads["host"]
        assert eventually(lambda: a.reads["host"] > count + 3) and b.reads == reads
        with pytest.raises(ValueError, match="the name 'a' is used twice"):
            sweep.apply([first, first], [])


def test_absent_parts_are_asked_rarely_and_close_what_is_open(sshd: Sshd, programs: Path) -> None:
    fake_nvidia_smi(programs).says("echo 'sh: nvidia-smi: not found'; exit 127")
    with sweeping([LOCAL, machine_of(sshd, collect=("gpus",))]) as sweep:
        view = until(sweep, "gpu-1", lambda view: view.gpus is not None and view.gpus.absent)
        assert view.state == "ok" and view.gpus is not None and not view.gpus.stale
        assert eventually(lambda: sshd.left() == [])


# Numbers kept, alerts


def test_gpus_that_were_there_before_are_missed(tmp_path: Path) -> None:
    def run(gpus: int) -> tuple[int | None, list[str]]:
        machine, reader = fake("m")
        reader.gpus = gpus
        history, alerts = History(tmp_path / "history.db"), Alerts(tmp_path / "alerts.db", DEFAULTS)
        with sweeping([LOCAL, machine], history=history, alerts=alerts, reader=fakes(reader)) as sweep:
            view = until(sweep, "m", lambda view: view.gpus is not None and view.gpus.value is not None and fresh(view))
        found = [f"{alert.metric} {alert.value:g}: {alert.detail}" for alert in alerts.active() if alert.source == "m"]
        history.close(), alerts.close()
        return view.expected_gpus, found

    assert run(8) == (8, [])
    assert run(7) == (8, ["gpus.missing 1: 8 expected, 7 seen"])
    assert run(8) == (8, [])


def test_alerts_on_what_is_gone_end_and_on_what_cannot_be_read_stay(sshd: Sshd, programs: Path, tmp_path: Path) -> None:
    """A unit that failed was removed; then systemd does not answer any more."""
    alerts = Alerts(tmp_path / "alerts.db", tuple(rule for rule in DEFAULTS if rule.id in ("unit-failed", "fault")))
    systemctl = FakeProgram(programs, "systemctl")

    def fails(*units: str) -> str:
        listed = "\n".join(f"{unit} loaded failed failed It" for unit in units)
        shown = "\n\n".join(f"Id={unit}\nLoadState=loaded\nActiveState=failed" for unit in units)
        return f"""case "$1" in list-units) printf '%s\\n' '{listed}' ;; *) printf '%s\\n' '{shown}' ;; esac"""

    systemctl.says(fails("a.service", "b.service"))
    with sweeping([LOCAL, machine_of(sshd, collect=("units",), slow_every_seconds=0.1)], alerts=alerts):
        assert eventually(
            lambda: {alert.metric for alert in alerts.active()} == {"unit.a.service.failed", "unit.b.service.failed"}
        )
        systemctl.says(fails("b.service"))
        assert eventually(lambda: {alert.metric for alert in alerts.active()} == {"unit.b.service.failed"})
        systemctl.says("echo 'Failed to connect to bus: No such file'; exit 1")
        assert eventually(
            lambda: {alert.metric for alert in alerts.active()} == {"unit.b.service.failed", "fault.systemd_unreachable"}
        )
        systemctl.says(fails())
        assert eventually(lambda: alerts.active() == [])
    alerts.close()


def test_what_is_old_is_stale_unless_it_is_absent() -> None:
    memory: Memory[str] = Memory()
    assert not memory.view(100.0, 2.0).tried and not memory.view(100.0, 2.0).stale
    memory.good("reading", 5_000.0, 100.0, 0.1)
    assert memory.view(110.0, 2.0) == Part("reading", 5_000.0, 10.0, 0.1)
    assert memory.view(112.0, 2.0).stale and not memory.view(112.0, 30.0).stale
    memory.bad(Problem("timeout", "command", "no answer", "Look."))
    failing = memory.view(112.0, 2.0)
    assert failing.value == "reading" and failing.problem is not None and failing.age_seconds == 12.0
    memory.absent = True
    assert not memory.view(900.0, 2.0).stale


def test_readings_reach_the_history(tmp_path: Path) -> None:
    history = History(tmp_path / "history.db")
    with sweeping([LOCAL], history=history) as sweep:
        until(sweep, "local", _has_rates)
        assert eventually(lambda: bool(history.read("local", "cpu.busy_ratio", time.time() - 60)))
        names = {metric for _, metric in history.series("local")}
        assert {"memory.used_ratio", "load.per_core_15m", "collection.seconds"} <= names
        assert not [name for name in names if name.startswith("core.")]
    history.close()


# Services


def web(port: int, **changes: object) -> WatchedService:
    service = Service("web", "http", f"http://127.0.0.1:{port}", timeout_seconds=30.0)
    return WatchedService(replace(service, **changes), 0.1, 0.2)  # type: ignore[arg-type]


def test_a_service_dies_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    server = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    alerts = Alerts(tmp_path / "alerts.db", only("service-failing", window_seconds=0))
    with sweeping([LOCAL], [web(port)], alerts=alerts) as sweep:
        with running(server, port, cwd=tmp_path):
            well = until_service(sweep, "web", lambda view: view.state == "ok" and view.functional.value is not None)
            assert well.liveness.value is not None and well.liveness.value.up
        # a probe that was under way at that moment tells of a connection that broke off; the next ones are refused
        dead = until_service(sweep, "web", lambda view: view.result is not None and view.result.failure == "refused")
        assert dead.state == "failed"
        assert eventually(lambda: raised(alerts) == ["service-failing critical on web"])
        with running(server, port, cwd=tmp_path):
            until_service(sweep, "web", lambda view: view.state == "ok")
            assert eventually(lambda: raised(alerts) == [])
    alerts.close()


def test_what_answers_but_does_not_work_stays_failed() -> None:
    """Its good liveness must not make it well between two functional probes."""
    with fake_service({"GET /health": {"status": "healthy"}}) as fake:  # no /embed: the functional probe fails
        watched = WatchedService(Service("gpu", "gpu_server", fake.address, timeout_seconds=30.0), 0.05, 3600.0)
        with sweeping([LOCAL], [watched]) as sweep:
            until_service(sweep, "gpu", lambda view: view.functional.value is not None)
            count = len(fake.asked)
            assert eventually(lambda: len(fake.asked) > count + 5)
            view = sweep.snapshot().service("gpu")
            assert view is not None and view.liveness.value is not None and view.liveness.value.state == "ok"
            assert view.state == "failed" and view.result is not None and view.result.probe == "functional"


def test_a_service_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    with fake_port(silence) as port, fake_service({"GET /": Response("hello")}) as fake:
        hangs = WatchedService(Service("hangs", "http", f"http://127.0.0.1:{port}", timeout_seconds=2.0), 0.1, None)
        with sweeping([LOCAL], [hangs, replace(web(fake.port), functional_every_seconds=None)]) as sweep:
            until_service(sweep, "web", lambda view: view.state == "ok")
            count = len(fake.asked)
            assert eventually(lambda: len(fake.asked) > count + 3)
            hung = until_service(sweep, "hangs", lambda view: view.state == "failed")
            assert hung.result is not None and hung.result.failure == "timeout"
            assert hung.functional.absent and not hung.functional.tried
            assert sweep.probe("web").probe == "functional"
            assert until_service(sweep, "web", lambda view: view.functional.value is not None).state == "ok"


def test_the_engine_behind_a_service_is_read() -> None:
    page = (Path(__file__).parent / "data" / "vllm").glob("*.txt")
    text = next(each.read_text() for each in sorted(page) if "vllm:num_requests_running" in each.read_text())
    answers = {"GET /metrics": text, "GET /v1/models": {"data": [{"id": "m"}]}}
    with fake_service(dict(answers)) as fake:
        watched = WatchedService(Service("llm", "openai-chat", fake.address, timeout_seconds=30.0), 0.1, None)
        with sweeping([LOCAL], [watched]) as sweep:
            view = until_service(sweep, "llm", lambda view: view.engine is not None and view.engine.value is not None)
            assert view.engine is not None and view.engine.value is not None and view.engine.value.running is not None


def test_services_come_change_and_go() -> None:
    with fake_service({"GET /": Response("hello")}) as fake, sweeping([LOCAL], [web(fake.port)]) as sweep:
        until_service(sweep, "web", lambda view: view.state == "ok")
        sweep.apply([LOCAL], [web(fake.port, expect_text="bye")])
        until_service(sweep, "web", lambda view: view.state == "failed")
        sweep.apply([LOCAL], [])
        assert sweep.snapshot().services == ()
        with pytest.raises(KeyError):
            sweep.probe("web")


# Prometheus


async def prometheus(request: Request) -> Response:
    """A fake Prometheus of two machines: each query that asks for `up` or node_load1 gets them."""
    query = parse_qs((await request.body()).decode())["query"][0]
    rows = []
    for instance in ("db-1:9100", "gpu-1:9100"):
        if "timestamp(up)" in query:
            rows += [_row(instance, 3.0, tag="age", job="node"), _row(instance, 1.0, tag="up", job="node")]
        elif "node_load1" in query:
            rows += [_row(instance, 4.0, __name__=name) for name in ("node_load1", "node_load5", "node_load15")]
    return JSONResponse({"status": "success", "data": {"resultType": "vector", "result": rows}})


def _row(instance: str, value: float, **labels: str) -> dict[str, object]:
    return {"metric": {"instance": instance, **labels}, "value": [0, str(value)]}


def test_machines_of_prometheus_stand_beside_the_others(tmp_path: Path) -> None:
    machine, reader = fake("gpu-1")
    history = History(tmp_path / "history.db")
    with fake_service({"POST /api/v1/query": prometheus}) as fake_server:
        server = Service("fleet", "http", fake_server.address, timeout_seconds=30.0)
        source = WatchedSource(PrometheusSource(server), 0.2)
        with sweeping([LOCAL, machine], [], [source], history=history, reader=fakes(reader)) as sweep:
            view = until(sweep, "db-1", lambda view: view.state == "ok")
            assert view.source == "prometheus" and view.host is not None and view.host.age_seconds is not None
            assert view.host.age_seconds >= 3.0, "the scrape's own age counts"
            host = host_of(view)
            assert host is not None and host.load is not None and host.load.average_1m == 4.0
            assert until(sweep, "gpu-1", fresh).source == "ssh", "what is read over SSH is not read twice"
            assert [each.name for each in sweep.snapshot().sources] == ["fleet"]
            assert eventually(lambda: ("db-1", "load.average_1m") in history.series())
            fake_server.answers.clear()
            failing = until(sweep, "db-1", lambda view: view.state == "failing")
            assert failing.problem is not None and host_of(failing) is not None
    history.close()
