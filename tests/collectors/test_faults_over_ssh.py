"""A machine that misbehaves, behind a real sshd, watched by the real sweep: each fault is told as what it is, the rest goes on,
and after our end nothing of ours is left there. `nvidia-smi`, `docker`, `date` and `tail` over there are fakes, by PATH."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collectors.alerts import Alerts
from collectors.errors import TimedOut
from collectors.machine_remote import RemoteReader
from collectors.machines import Machine, PartName
from collectors.readings import Containers, Gpus, Host
from collectors.rules import rules
from collectors.sweep import Sweep
from collectors.views import MachineView
from tests.collectors.machine_fakes import DATA, FakeProgram, fake_nvidia_smi, machine_of, nvidia_smi_script, with_path
from tests.collectors.sshd import Sshd, eventually

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
FAILURES = sorted((DATA / "nvidia_smi").glob("failure_*.txt"))
UNYIELDING = "trap '' HUP INT TERM PIPE QUIT; "  # of a process in D state too, only the power switch is sure


@pytest.fixture(autouse=True)
def kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.sweep.KEEP_SECONDS", 0.1)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bin")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Sshd]:
    made = Sshd(tmp_path_factory.mktemp("sshd"), force=with_path(programs))
    yield made
    made.stop()


@pytest.fixture
def sshd(server: Sshd, programs: Path) -> Iterator[Sshd]:
    """The server with no fakes; at the end of the test nothing runs there any more."""
    for program in programs.iterdir():
        program.unlink()
    yield server
    assert eventually(lambda: server.left() == []), server.left()


@contextmanager
def sweeping(sshd: Sshd, *collect: PartName, alerts: Alerts | None = None, slow: float = 0.5) -> Iterator[Sweep]:
    sweep = Sweep(
        [Machine("local", collect=("host",)), machine_of(sshd, collect=collect, slow_every_seconds=slow)], alerts=alerts
    )
    sweep.start()
    try:
        yield sweep
    finally:
        assert sweep.stop(PATIENCE)


def until(sweep: Sweep, condition: Callable[[MachineView], bool]) -> MachineView:
    found: list[MachineView] = []

    def met(snapshot: object) -> bool:
        view = sweep.snapshot().machine("gpu-1")
        found[:] = [view] if view is not None and condition(view) else []
        return bool(found)

    assert sweep.wait_for(met, PATIENCE), sweep.snapshot().machine("gpu-1")
    return found[0]


def host_at(view: MachineView) -> float | None:
    return view.host.at if view.host is not None and view.host.problem is None else None


def gpus_of(view: MachineView) -> Gpus | None:
    return view.gpus.value if view.gpus else None


# nvidia-smi


@pytest.fixture
def reader(sshd: Sshd) -> Iterator[RemoteReader]:
    made = RemoteReader(machine_of(sshd))
    made.connect(PATIENCE)
    yield made
    made.close()


@pytest.mark.parametrize("path", FAILURES, ids=lambda path: path.stem)
def test_each_failure_text_is_its_own_finding(programs: Path, reader: RemoteReader, path: Path) -> None:
    """What fails prints on stderr and ends with a status of its own; the fault is named as the file is."""
    FakeProgram(programs, "nvidia-smi").says(f"cat {path} >&2; exit 9")
    gpus = reader.read("gpus", 20.0)
    assert isinstance(gpus, Gpus)
    assert gpus.faults[0].code == path.stem.removeprefix("failure_") and gpus.faults[0].text and gpus.faults[0].next_step
    assert gpus.gpus == (() if "no_gpus" in path.stem else None), "what cannot be read is unknown, not none"
    assert isinstance(reader.read("host", 20.0), Host)


def test_a_failing_driver_is_an_alert_that_ends_when_it_works_again(sshd: Sshd, programs: Path, tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.db", tuple(rule for rule in rules({}) if rule.id in ("fault", "gpu-missing")))
    program = fake_nvidia_smi(programs)
    with sweeping(sshd, "host", "gpus", alerts=alerts) as sweep:
        until(sweep, lambda view: (gpus := gpus_of(view)) is not None and bool(gpus.gpus))
        mismatch = DATA / "nvidia_smi" / "failure_driver_mismatch.txt"
        program.says(f"cat {mismatch} >&2; exit 18")
        assert eventually(lambda: "fault.driver_mismatch" in [alert.metric for alert in alerts.active()])
        alert = next(each for each in alerts.active() if each.metric == "fault.driver_mismatch")
        assert alert.level == "critical" and "version mismatch" in alert.detail and "reboot" in alert.detail
        fake_nvidia_smi(programs)
        assert eventually(lambda: alerts.active() == []), alerts.active()
        assert {each.ended for each in alerts.past()} == {"no longer reported"}
    alerts.close()


def test_one_gpu_of_eight_is_lost_and_comes_back(sshd: Sshd, programs: Path, tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.db", tuple(rule for rule in rules({}) if rule.id in ("fault", "gpu-missing")))
    program = fake_nvidia_smi(programs)
    with sweeping(sshd, "host", "gpus", alerts=alerts) as sweep:
        until(sweep, lambda view: (gpus := gpus_of(view)) is not None and len(gpus.gpus or ()) == 8)
        program.says(nvidia_smi_script("h100x8_one_lost.csv"))
        view = until(sweep, lambda view: (gpus := gpus_of(view)) is not None and len(gpus.gpus or ()) == 7)
        gpus = gpus_of(view)
        assert gpus is not None and [gpu.index for gpu in gpus.gpus or ()] == [0, 1, 2, 3, 4, 6, 7]
        assert all(gpu.utilization_ratio is not None for gpu in gpus.gpus or ()), "the seven are read whole"
        assert view.expected_gpus == 8 and view.state == "ok"
        assert [(fault.code, fault.subject) for fault in gpus.faults] == [("device_handle", "gpu 0000:C3:00.0")]
        assert eventually(lambda: {alert.metric for alert in alerts.active()} == {"fault.device_handle", "gpus.missing"})
        missing = next(alert for alert in alerts.active() if alert.rule == "gpu-missing")
        assert (missing.level, missing.detail) == ("critical", "8 expected, 7 seen")
        program.says(nvidia_smi_script("h100x8.csv"))
        assert eventually(lambda: alerts.active() == [])
    alerts.close()


def test_one_that_heeds_no_signal_holds_up_nothing_and_does_not_pile_up(
    sshd: Sshd, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"host": 15.0, "gpus": 0.4, "filesystems": 15.0}
    monkeypatch.setattr("collectors.machine_watch.READ_SECONDS", seconds)
    program = fake_nvidia_smi(programs)
    with sweeping(sshd, "host", "gpus", "filesystems") as sweep:
        until(sweep, lambda view: gpus_of(view) is not None and view.filesystems is not None and view.filesystems.tried)
        program.says(nvidia_smi_script("h100x8.csv", before=f"{UNYIELDING} sleep 611; "))
        hung = until(sweep, lambda view: view.gpus is not None and view.gpus.problem is not None)
        assert hung.gpus is not None and hung.gpus.problem is not None and hung.gpus.problem.kind == "timeout"
        assert eventually(lambda: "sleep 611" in sshd.left()), "what was late was not yet the one that hangs"
        for _ in range(3):  # each try that follows waits for the first one
            at = host_at(sweep.snapshot().machine("gpu-1") or hung)
            sweep.retry("gpu-1")
            until(sweep, lambda view, at=at: host_at(view) not in (None, at))  # type: ignore[misc]
        assert len([line for line in sshd.left() if line == "sleep 611"]) == 1
        assert (sweep.snapshot().machine("gpu-1") or hung).problem is None


# The machine as a whole


def test_a_machine_that_hangs_in_the_middle_of_a_record_and_comes_back(
    sshd: Sshd, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a record is no reading: the last whole one stays, and the first after it has sane rates."""
    monkeypatch.setattr("collectors.machine_watch.READ_SECONDS", {"host": 3.0})
    gate = tmp_path / "gate"
    with sweeping(sshd, "host") as sweep:
        until(sweep, lambda view: view.host is not None and view.host.value is not None and view.host.value.seconds is not None)
        real = "/usr/bin/tail"
        FakeProgram(programs, "tail").says(f'[ -e {gate} ] || {{ {real} "$@" | head -c 700; exec sleep 612; }}; exec {real} "$@"')
        hung = until(sweep, lambda view: view.host is not None and view.host.problem is not None)
        assert hung.host is not None and hung.host.value is not None and hung.host.problem is not None
        assert hung.state == "failing" and hung.host.problem.kind == "timeout"
        before, memory = hung.host.at, hung.host.value.memory
        gate.touch()
        sweep.retry("gpu-1")
        back = until(sweep, lambda view: host_at(view) not in (None, before) and _has_rates(view))
        host = back.host.value if back.host else None
        assert host is not None and host.cpu is not None and host.cpu.busy_ratio is not None and host.faults == ()
        assert 0.0 <= host.cpu.busy_ratio <= 1.0
        assert host.memory is not None and memory is not None and host.memory.total_bytes == memory.total_bytes
        assert back.state == "ok" and back.problem is None


def _has_rates(view: MachineView) -> bool:
    return view.host is not None and view.host.value is not None and view.host.value.seconds is not None


def test_a_program_that_floods_its_output_is_cut_off_there(sshd: Sshd, programs: Path) -> None:
    program = fake_nvidia_smi(programs)
    with sweeping(sshd, "host", "gpus") as sweep:
        until(sweep, lambda view: (gpus := gpus_of(view)) is not None and bool(gpus.gpus))
        program.says(nvidia_smi_script("h100x8.csv", before="seq 100000000 100009999; yes 'GPU 0: is this a reading?'; "))
        flooded = until(sweep, lambda view: (gpus := gpus_of(view)) is not None and gpus.gpus is None)
        gpus = gpus_of(flooded)
        assert gpus is not None and gpus.faults[0].code == "nvidia_smi_failed" and len(gpus.faults) <= 40
        at = host_at(flooded)
        until(sweep, lambda view: host_at(view) not in (None, at))
        assert eventually(lambda: not [line for line in sshd.left() if line.startswith("yes")])
        fake_nvidia_smi(programs)
        until(sweep, lambda view: (gpus := gpus_of(view)) is not None and bool(gpus.gpus) and gpus.faults == ())


def test_a_machine_that_floods_its_records_is_cut_off_here_and_comes_back(
    sshd: Sshd, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collectors.machine_watch.READ_SECONDS", {"host": PATIENCE})  # too much is what ends it, not the time
    with sweeping(sshd, "host") as sweep:
        until(sweep, _has_rates)
        FakeProgram(programs, "tail").says("exec yes 0123456789012345678901234567890123456789")
        flooded = until(sweep, lambda view: view.problem is not None)
        assert flooded.problem is not None and flooded.problem.kind == "bad_answer" and _has_rates(flooded)
        assert "bytes in one answer" in flooded.problem.text and flooded.state == "failing"
        (programs / "tail").unlink()
        sweep.retry("gpu-1")
        until(sweep, lambda view: view.state == "ok" and _has_rates(view))


def test_a_machine_whose_clock_was_set_back_has_no_ages_from_the_future(programs: Path, reader: RemoteReader) -> None:
    """Rates and units go by the uptime there; only containers tell wall times, and `date` there is wrong by years."""
    inspected = {"id": "1f", "name": "/api", "state": "running", "started": "2025-11-21T05:00:00Z", "restarts": 0}
    docker = FakeProgram(programs, "docker")
    docker.says(f"""case "$1" in ps) echo 1f ;; inspect) echo '{json.dumps(inspected)}' ;; esac""")
    date = FakeProgram(programs, "date")

    def age(now: int) -> float | None:
        date.says(f"echo {now}")
        found = reader.read("containers", 20.0)
        assert isinstance(found, Containers) and found.containers
        return found.containers[0].state_seconds

    started = 1_763_701_200
    assert age(started + 90) == 90.0
    assert age(started - 3600) is None, "not zero: it did not start just now"
    assert age(started - 1) == 0.0
    first, second = (reader.read("host", 20.0) for _ in range(2))
    assert isinstance(first, Host) and isinstance(second, Host) and second.seconds is not None and second.seconds > 0


def test_nothing_is_left_there_when_our_process_is_killed(sshd: Sshd, programs: Path, tmp_path: Path) -> None:
    """SIGKILL: nothing of ours can clean up. The loops over there end with their connection, whatever hangs in them."""
    program = fake_nvidia_smi(programs)
    program.says(nvidia_smi_script("h100x8.csv", before=f"{UNYIELDING} sleep 613; "))
    machine = machine_of(sshd)
    values = {name: str(getattr(machine, name)) for name in ("name", "address", "user", "key", "known_hosts")}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    config = tmp_path / "dashboard.toml"
    config.write_text("\n".join(["[[machines]]", *lines, f"port = {machine.port}", "use_agent = false", ""]))
    environ = {**os.environ, "RAGDECK_DATA": str(tmp_path / "data"), "RAGDECK_CONFIG": str(config)}
    command = [sys.executable, "-m", "collectors", "watch", "--json", "--every", "1"]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: "sleep 613" in sshd.left()), sshd.left()
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(30)
    assert eventually(lambda: sshd.left() == []), sshd.left()


def test_a_read_that_is_late_is_told_with_where_to_look(programs: Path, reader: RemoteReader) -> None:
    fake_nvidia_smi(programs)
    reader.read("gpus", 20.0)
    FakeProgram(programs, "nvidia-smi").says(nvidia_smi_script("h100x8.csv", before=f"{UNYIELDING} sleep 614; "))
    with pytest.raises(TimedOut) as late:
        reader.read("gpus", 0.5)
    assert "grep D" in late.value.next_step
