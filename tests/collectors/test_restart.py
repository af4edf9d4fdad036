"""Restarts: only what the settings name, by a fixed command, through a real sshd with a fake `systemctl`, `docker` and `sudo`."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collectors import machine_watch, restart
from collectors.audit import AuditLog
from collectors.errors import CollectorError, TimedOut
from collectors.inventory import BadInventory, from_settings
from collectors.machines import Machine
from collectors.restart_powers import Powers, obstacles, polkit_rule, powers
from collectors.shell import Output
from collectors.sweep import Sweep
from tests.collectors.machine_fakes import FakeProgram, machine_of, with_path
from tests.collectors.sshd import Sshd, eventually

ALLOWED = ("vllm.service", "docker:whisper")


# The names and the command


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm", "vllm.service"),
        ("vllm.service", "vllm.service"),
        ("a@b.c.service", "a@b.c.service"),
        ("docker:w-1.x", "docker:w-1.x"),
    ],
)
def test_names_that_can_be_restarted(name: str, expected: str) -> None:
    assert restart.canonical(name) == expected


BAD_NAMES = [
    "",
    "a b",
    "a; reboot",
    "$(id)",
    "--now",
    "a\nb",
    "reboot.target",
    "docker.socket",
    "-.mount",
    "docker:",
    "docker:-a",
    "docker:a b",
    "docker:$(id)",
    "docker:--all",
    "docker:../x",
    "x" * 300,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_cannot(name: str) -> None:
    with pytest.raises(ValueError):
        restart.command(name)
    with pytest.raises(BadInventory, match=r"machines\[1\] \(m\): restart: "):
        from_settings([{"name": "m", "address": "h", "restart": [name]}], [])


def test_a_setting_names_them_once() -> None:
    found = from_settings([{"name": "m", "address": "h", "restart": ["vllm", "vllm.service", "docker:w"]}], []).machines[1]
    assert found.restart == ("vllm.service", "docker:w") and Machine("m").restart == ()
    with pytest.raises(BadInventory, match="restart is not a list of texts"):
        from_settings([{"name": "m", "address": "h", "restart": "vllm"}], [])


def test_the_command_is_what_a_line_of_sudoers_allows() -> None:
    assert restart.command("vllm") == (
        'if [ "$(id -u)" = 0 ]; then systemctl restart vllm.service; '
        "elif grep -q '^NoNewPrivs:.*1' /proc/self/status 2>/dev/null; "
        "then systemctl --no-ask-password restart vllm.service; "
        "else sudo -n systemctl restart vllm.service; fi 2>&1"
    )
    assert restart.command("docker:whisper").endswith("; $docker restart whisper 2>&1")


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ('sudo: The "no new privileges" flag is set, which prevents sudo from running as root.', "polkit rule"),
        ("sudo: a password is required", "NOPASSWD: /usr/bin/systemctl restart vllm.service"),
        ("Sorry, user ops is not allowed to execute; sudo: may not run", "visudo"),
        ("ops is not in the sudoers file.", "visudo"),
        ("sh: sudo: not found", "Install sudo"),
        ("Failed to restart vllm.service: Interactive authentication required.", "polkit"),
        ("Failed to restart vllm.service: Unit vllm.service not found.", "Is its name right?"),
        ("Error response from daemon: No such container: whisper", "Is its name right?"),
        (
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
            "group `docker`",
        ),
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "Start Docker"),
        ('Job for vllm.service failed. See "journalctl -xeu vllm.service" for details.', "Read its last log lines."),
        ("", "Read its last log lines."),
    ],
)
def test_what_to_do_about_each_failure(text: str, step: str) -> None:
    failed = restart.outcome("vllm.service", Output(text, "", 1, 0.2))
    assert not failed.ok and step in failed.next_step and failed.text


# What this process may do on its own machine

OURS = Powers(998, "ragdeck", True, True, True, True, None)  # as in our hardened unit


@pytest.mark.parametrize(
    ("changes", "certain", "text", "step"),
    [
        ({"uid": 0}, None, "", ""),
        ({"no_new_privileges": False}, None, "", ""),
        ({"no_new_privileges": False, "sudo": False}, True, "no sudo", "Install it"),
        ({}, False, "NoNewPrivileges, so that sudo cannot work", 'units = ["vllm.service", "x.service"]'),
        ({"polkit": False}, True, "no polkit that reads rules", "Install polkitd"),
        ({"systemctl": False, "uid": 0}, True, "no systemd here", "over SSH"),
    ],
)
def test_what_is_in_the_way_of_a_unit_is_known_before(changes: Any, certain: bool | None, text: str, step: str) -> None:
    found = obstacles(("vllm.service", "docker:w", "x.service"), replace(OURS, **changes))
    if certain is None:
        assert found == ()
        return
    assert [each.name for each in found] == ["vllm.service", "x.service"], "there is no Docker to be in the way"
    assert all(each.certain is certain and text in each.text and step in each.next_step for each in found)


def test_a_docker_that_is_not_for_us_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = obstacles(("docker:w",), replace(OURS, docker_socket=False))
    assert found.certain and "SupplementaryGroups=docker" in found.next_step
    (tmp_path / "run").mkdir()
    (tmp_path / "run/docker.sock").touch()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert powers(tmp_path, {}).docker_socket is False
    assert powers(tmp_path, {"DOCKER_HOST": "tcp://h:1"}).docker_socket is None


def test_the_powers_are_read_from_the_system(tmp_path: Path) -> None:
    for folder in ("proc/self", "etc/polkit-1/rules.d", "run/systemd/system", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tpython\nNoNewPrivs:\t1\nSeccomp:\t2\n")
    for name in ("systemctl", "sudo"):
        (tmp_path / "bin" / name).touch(0o755)
    found = powers(tmp_path, {"PATH": str(tmp_path / "bin")})
    assert (found.no_new_privileges, found.systemctl, found.sudo, found.polkit, found.docker_socket) == (True,) * 4 + (None,)
    nothing = powers(tmp_path / "none", {"PATH": ""})
    assert (nothing.no_new_privileges, nothing.systemctl, nothing.sudo, nothing.polkit) == (False,) * 4


def test_the_polkit_rule_names_user_verb_and_units() -> None:
    rule = polkit_rule("ragdeck", ["vllm.service", "x@1.service"])
    for part in ('subject.user == "ragdeck"', '"org.freedesktop.systemd1.manage-units"', '["vllm.service", "x@1.service"]'):
        assert part in rule
    assert rule.count("(") == rule.count(")") and rule.count("{") == rule.count("}") == 2
    assert 'action.lookup("verb") == "restart"' in rule


def test_where_no_privileges_can_be_gained_polkit_is_asked_and_not_sudo(programs: Path) -> None:
    """Under the kernel's real flag, as systemd sets it for NoNewPrivileges=yes."""
    as_somebody(programs)
    systemctl, sudo = recorder(programs, "systemctl"), recorder(programs, "sudo")
    bound = "import ctypes; assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS\n"
    run = "from collectors import restart, local, restart_powers as own; local.LocalShell().run(restart.command('vllm'), 20)\n"
    program = f"{bound}{run}assert own.powers().no_new_privileges"
    environ = {"PATH": f"{programs}:/usr/bin:/bin", "PYTHONPATH": str(Path(restart.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert systemctl.read_text() == "--no-ask-password restart vllm.service\n" and not sudo.exists()


def test_a_page_knows_before_anybody_clicks(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_somebody(programs)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(machine_watch, "powers", lambda: OURS)
    FakeProgram(programs, "sudo").says("echo 'Failed to restart: Interactive authentication required.'; exit 1")
    sweep = Sweep([Machine("local", collect=("host",), restart=("vllm.service",))])
    try:
        view = sweep.snapshot().machine("local")
        assert view is not None and [each.certain for each in view.restart_obstacles] == [False]
        failed = sweep.restart("local", "vllm.service")
        assert not failed.ok and "polkit.addRule(" in failed.next_step
        FakeProgram(programs, "sudo").says("exit 0")
        assert sweep.restart("local", "vllm.service").ok
        view = sweep.snapshot().machine("local")
        assert view is not None and view.restart_obstacles == (), "it has worked: the rule is there"
    finally:
        sweep.stop()


# Over a real sshd


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    return tmp_path / "bin"


@pytest.fixture
def sshd(tmp_path: Path, programs: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "sshd", force=with_path(programs))
    yield server
    server.stop()


@contextmanager
def watching(sshd: Sshd, **changes: Any) -> Iterator[Sweep]:
    sweep = Sweep([machine_of(sshd, collect=("units", "containers"), restart=ALLOWED, slow_every_seconds=3600.0, **changes)])
    sweep.start()
    try:
        assert sweep.wait_for(lambda now: (view := now.machine("gpu-1")) is not None and view.state == "ok", 60.0)
        yield sweep
    finally:
        assert sweep.stop(60.0)
        assert eventually(lambda: sshd.left() == []), sshd.left()


def recorder(programs: Path, name: str, then: str = "") -> Path:
    """A fake program that writes its arguments down when it is asked to restart; returns the file."""
    done = programs.parent / f"{name}.done"
    FakeProgram(programs, name).says(f'case "$*" in *restart*) echo "$*" >> {done}; {then} ;; esac')
    return done


def as_somebody(programs: Path) -> None:
    """A fake `id`: the login is not root's."""
    FakeProgram(programs, "id").says("echo 1000")


def as_root(programs: Path) -> None:
    FakeProgram(programs, "id").says("echo 0")


def test_a_unit_and_a_container_are_restarted_and_looked_at_again(sshd: Sshd, programs: Path) -> None:
    as_root(programs)
    systemctl, docker = recorder(programs, "systemctl"), recorder(programs, "docker", "echo whisper")
    with watching(sshd) as sweep:
        before = sweep.snapshot().machine("gpu-1")
        assert before is not None and before.restart == ALLOWED
        done = sweep.restart("gpu-1", "vllm.service")
        assert (done.ok, done.text, done.next_step) == (True, "", "") and done.seconds > 0
        assert systemctl.read_text() == "restart vllm.service\n" and not docker.exists()
        assert sweep.restart("gpu-1", "docker:whisper").text == "whisper"
        assert docker.read_text() == "restart whisper\n"
        at = before.units.at if before.units else None
        assert sweep.wait_for(lambda now: (view := now.machine("gpu-1")) is not None and view.units is not None and view.units.at != at, 60.0)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["ssh.service", "vllm", "whisper", "docker:vllm", "vllm.service; reboot", "docker:whisper x", ""]
)
def test_anything_else_is_refused_and_not_even_sent(sshd: Sshd, programs: Path, name: str) -> None:
    as_root(programs)
    files = [recorder(programs, "systemctl"), recorder(programs, "docker")]
    with watching(sshd) as sweep:
        with pytest.raises(ValueError, match="do not name"):
            sweep.restart("gpu-1", name)
        with pytest.raises(KeyError):
            sweep.restart("nowhere", "vllm.service")
        with pytest.raises(ValueError, match="do not name"):
            sweep.restart("local", "vllm.service")
    assert not [file for file in files if file.exists()]


def test_another_user_needs_sudo_and_is_told_the_line_for_it(sshd: Sshd, programs: Path) -> None:
    as_somebody(programs)
    systemctl = recorder(programs, "systemctl")
    FakeProgram(programs, "sudo").says("echo 'sudo: a password is required' >&2; exit 1")
    with watching(sshd) as sweep:
        failed = sweep.restart("gpu-1", "vllm.service")
        assert not failed.ok and failed.text == "sudo: a password is required"
        assert "/usr/bin/systemctl restart vllm.service" in failed.next_step and not systemctl.exists()
        FakeProgram(programs, "sudo").says('[ "$1" = -n ] && shift && exec "$@"')
        assert sweep.restart("gpu-1", "vllm.service").ok and systemctl.read_text() == "restart vllm.service\n"


def test_what_fails_says_what_the_machine_said(sshd: Sshd, programs: Path) -> None:
    as_root(programs)
    recorder(programs, "systemctl", "echo 'Job for vllm.service failed.' >&2; exit 1")
    recorder(programs, "docker", "exit 7")
    with watching(sshd) as sweep:
        unit, container = sweep.restart("gpu-1", "vllm.service"), sweep.restart("gpu-1", "docker:whisper")
        assert (unit.ok, unit.text) == (False, "Job for vllm.service failed.")
        assert (container.ok, container.text) == (False, "it ended with exit status 7 and said nothing")


def test_one_that_hangs_is_given_up_and_leaves_nothing_there(sshd: Sshd, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "SECONDS", 6.0)
    as_root(programs)
    done = recorder(programs, "systemctl", "trap '' TERM HUP; sleep 300")
    with watching(sshd) as sweep:
        failures: list[Exception] = []

        def first() -> None:
            try:
                sweep.restart("gpu-1", "vllm.service")
            except CollectorError as error:
                failures.append(error)

        thread = threading.Thread(target=first)
        thread.start()
        assert eventually(done.exists)
        with pytest.raises(ValueError, match="is being restarted already"):
            sweep.restart("gpu-1", "vllm.service")
        thread.join(60)
        assert [type(error) for error in failures] == [TimedOut]
        assert eventually(lambda: not any("sleep 300" in line for line in sshd.left())), sshd.left()


def test_a_machine_that_is_away_is_not_asked(sshd: Sshd, programs: Path) -> None:
    sweep = Sweep([machine_of(sshd, collect=("units",), restart=ALLOWED)])  # never started: not connected
    with pytest.raises(CollectorError, match="not connected"):
        sweep.restart("gpu-1", "vllm.service")
    sweep.stop()


def test_this_machine_too(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root(programs)
    done = recorder(programs, "systemctl")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    sweep = Sweep([Machine("local", collect=("host",), restart=("vllm.service",))])
    assert sweep.restart("local", "vllm.service").ok and done.read_text() == "restart vllm.service\n"
    sweep.stop()


# The audit log


def test_an_action_is_written_before_and_after(tmp_path: Path) -> None:
    now = [1_795_262_400.0]
    log = AuditLog(tmp_path / "data" / "audit.log", lambda: now[0])
    assert log.read() == []
    first = log.begin("10.0.0.3", "gpu-1", "restart vllm.service")
    assert [(action.outcome, action.ended_at) for action in log.read()] == [("asked", None)]
    now[0] += 2
    log.end(first, "failed", "Job failed.\nSee\x1b[31m journalctl")
    log.end(log.begin(None, "gpu-2", "restart docker:x"), "done")
    one, other = log.read()
    assert (one.machine, one.who, one.outcome) == ("gpu-2", None, "done")
    assert (other.at, other.ended_at) == ("2026-11-21T12:00:00.000+00:00", "2026-11-21T12:00:02.000+00:00")
    assert (other.who, other.text) == ("10.0.0.3", "Job failed. See [31m journalctl")
    assert log.read("gpu-1") == [other] and log.read(limit=1) == [one]
    assert len(log.path.read_text().splitlines()) == 4 and log.path.stat().st_mode & 0o777 == 0o600


def test_a_line_cannot_be_forged_and_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    log.end(log.begin("x\n{}", 'm"', "restart a\nb"), "done", '"}\n{"id": "forged"}')
    with log.path.open("ab") as file:
        file.write(b'{"id": "torn", "at"\n\xff\xfe\n[]\n"x"\n{"id": 1}')
    (action,) = log.read()
    assert (action.machine, action.what, action.outcome) == ('m"', "restart a b", "done")


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "audit.log").mkdir()
    with pytest.raises(OSError):
        AuditLog(tmp_path / "audit.log").begin(None, "m", "restart a")
