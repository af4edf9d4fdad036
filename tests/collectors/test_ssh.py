"""Shells and loops over a real sshd: login shells, noise, hanging, dying and flooding machines, and nothing left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors import disks, proc
from collectors.errors import CollectorError, ConnectionLost, OutputTooLarge, ShellUnusable, TimedOut
from collectors.ssh import ChannelStream, SshShell
from tests.collectors.sshd import Sshd, eventually


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def shell(sshd: Sshd) -> Iterator[SshShell]:
    opened = sshd.shell()
    yield opened
    opened.close()
    assert eventually(lambda: sshd.left() == []), sshd.left()


NOISE = 'printf "ready\\nbegin 1\\nend 1 0\\n\\033[31mWelcome\\n"; echo "disk quota" >&2; '
LOGIN_SHELLS = {
    "dash": 'exec dash -c "$SSH_ORIGINAL_COMMAND"',
    "bash": 'exec bash -c "$SSH_ORIGINAL_COMMAND"',
    "busybox": 'exec busybox sh -c "$SSH_ORIGINAL_COMMAND"',
    "fish": 'exec fish -c "$SSH_ORIGINAL_COMMAND"',
    "tcsh": 'exec tcsh -c "$SSH_ORIGINAL_COMMAND"',
    "noisy": NOISE + 'exec bash -c "$SSH_ORIGINAL_COMMAND"',
    "comma locale": 'export LC_NUMERIC=de_DE.UTF-8 LANG=de_DE.UTF-8; exec bash -c "$SSH_ORIGINAL_COMMAND"',
    "loop is no group leader": '/bin/sh -c "$SSH_ORIGINAL_COMMAND"; true',
}


@pytest.mark.parametrize("force", LOGIN_SHELLS.values(), ids=LOGIN_SHELLS.keys())
def test_every_login_shell_reads_the_machine(tmp_path: Path, force: str) -> None:
    (tmp_path / "banner").write_text("nothing is permitted here\n" * 20)
    server = Sshd(tmp_path, force=force, extra=f"Banner {tmp_path}/banner")
    try:
        shell = server.shell()
        assert shell.run("cat /proc/self/environ", 20).stdout.count(f"DECK_TEST={tmp_path}\0") == 1  # what `left` looks for
        output = shell.run("echo 'out $x'; echo \"err\" >&2; printf '%s' \"$LC_ALL\"; exit 7", 20)
        assert (output.stdout, output.stderr, output.exit_status) == ("out $x\nC", "err\n", 7)
        loop = shell.loop({"fast": proc.COMMAND_WITH_PROCESSES, "slow": disks.COMMAND})
        for word in ("fast", "slow", "fast"):
            frame = loop.sample(word, 20)
            reading = proc.parse(frame.body) if word == "fast" else disks.parse(frame.body)
            assert reading.faults == ()
        loop.close()
        shell.close()
        assert eventually(lambda: server.left() == []), server.left()
    finally:
        server.stop()


def test_a_command_gets_no_input_and_keeps_quotes(shell: SshShell) -> None:
    assert shell.run("cat; echo \"it's\" '$HOME' `echo x`", 20).stdout == "it's $HOME x\n"


def test_a_syntax_error_is_the_command_s_own(shell: SshShell) -> None:
    output = shell.run("if then", 20)
    assert output.exit_status == 2 and "yntax error" in output.stderr


def test_streams_without_line_ends_and_large(shell: SshShell) -> None:
    output = shell.run("printf x; printf y >&2; exit 0", 20)
    assert (output.stdout, output.stderr) == ("x", "y")
    command = "i=0; while [ $i -lt 20000 ]; do echo 0123456789012345678901234567890123456789; echo e >&2; i=$((i+1)); done"
    output = shell.run(command, 60)
    assert (len(output.stdout), len(output.stderr)) == (20000 * 41, 40000)


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_a_flood_is_cut_off(sshd: Sshd, shell: SshShell, stream: str) -> None:
    with pytest.raises(OutputTooLarge):
        shell.run(
            f"while :; do echo 01234567890123456789012345678901234567890123456789012345678901234567890123456789{stream}; done", 60
        )
    assert eventually(lambda: sshd.left() == [])
    assert shell.run("echo still here", 20).stdout == "still here\n"


def test_a_command_that_hangs_is_ended_there_with_its_children(sshd: Sshd, shell: SshShell) -> None:
    with pytest.raises(TimedOut, match="did not end within 3"):
        shell.run("trap '' HUP TERM PIPE; sleep 301 & sleep 302", 3)
    assert eventually(lambda: sshd.left() == []), sshd.left()


# Loops.


def test_a_loop_answers_each_request(shell: SshShell) -> None:
    loop = shell.loop({"time": "echo $((1 + 1))", "fail": "echo no; exit 3", "silent": "echo x >&2"})
    assert [(loop.sample(word, 20).body, loop.sample(word, 20).exit_status) for word in ("time", "fail", "silent")] == [
        ("2\n", 0),
        ("no\n", 3),
        ("", 0),
    ]
    with pytest.raises(ValueError, match="no script"):
        loop.sample("reboot", 1)


def test_a_hanging_script_does_not_stop_another_loop_nor_pile_up(sshd: Sshd, shell: SshShell, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    slow = shell.loop({"gpu": f"while [ ! -e {gate} ]; do sleep 0.05; done; echo open", "warm": ":"})
    slow.sample("warm", 20)
    fast = shell.loop({"fast": "echo fast"})
    for _ in range(3):
        with pytest.raises(TimedOut):
            slow.sample("gpu", 0.3)
        assert fast.sample("fast", 20).body == "fast\n"
    assert (slow.waiting_seconds or 0) > 0.5 and fast.waiting_seconds is None
    assert len([line for line in sshd.left() if "sleep 0.05" in line]) <= 1
    gate.touch()
    assert slow.sample("gpu", 20).body == "open\n" and slow.waiting_seconds is None


def test_closing_a_loop_ends_what_hangs_in_it(sshd: Sshd, shell: SshShell) -> None:
    loop = shell.loop({"gpu": "trap '' HUP TERM PIPE INT; sleep 303", "warm": ":"})
    loop.sample("warm", 20)
    with pytest.raises(TimedOut):
        loop.sample("gpu", 1)
    assert eventually(lambda: any("sleep 303" in line for line in sshd.left()))
    loop.close()
    assert eventually(lambda: sshd.left() == []), sshd.left()
    assert shell.run("echo y", 20).stdout == "y\n"


def test_a_loop_ends_itself_at_the_end_of_its_lease(sshd: Sshd, shell: SshShell) -> None:
    """A peer that vanished without a word closes nothing: the loop must not wait for it."""
    loop = shell.loop({"gpu": "sleep 304", "warm": ":"}, lease_seconds=6)
    loop.sample("warm", 20)
    with pytest.raises((TimedOut, ConnectionLost)):
        loop.sample("gpu", 0.5)
    assert eventually(lambda: sshd.left() == []), sshd.left()


def test_a_loop_is_renewed_before_its_lease_ends(sshd: Sshd, shell: SshShell) -> None:
    now = [time.monotonic()]
    loop = shell.loop({"pid": "echo $$"})
    loop._clock = lambda: now[0]
    first, second = loop.sample("pid", 20).body, loop.sample("pid", 20).body
    now[0] += 500
    assert first == second != loop.sample("pid", 20).body


def test_a_machine_that_stands_still_and_comes_back(sshd: Sshd, shell: SshShell) -> None:
    loop = shell.loop({"fast": "echo fast"})
    loop.sample("fast", 20)
    sshd.signal_connections(signal.SIGSTOP)
    try:
        with pytest.raises(TimedOut):
            loop.sample("fast", 0.5)
        with pytest.raises(TimedOut) as error:  # not even a channel: paramiko's exec_command would wait for ever
            shell.run("true", 1)
        assert error.value.step == "shell"
    finally:
        sshd.signal_connections(signal.SIGCONT)
    assert loop.sample("fast", 20).body == "fast\n"


def test_a_machine_that_dies_in_the_middle_of_a_record(sshd: Sshd, tmp_path: Path) -> None:
    shell = sshd.shell()
    loop = shell.loop({"half": f"printf 'cpu 1 2'; touch {tmp_path}/half; sleep 305"})
    failures: list[Exception] = []

    def sample() -> None:
        try:
            loop.sample("half", 30)
        except CollectorError as error:
            failures.append(error)

    thread = threading.Thread(target=sample)
    thread.start()
    assert eventually((tmp_path / "half").exists)
    sshd.signal_connections(signal.SIGKILL)
    thread.join(60)
    assert [type(error) for error in failures] == [ConnectionLost]
    assert eventually(lambda: not shell.connected)
    with pytest.raises(ConnectionLost):
        loop.sample("half", 5)
    with pytest.raises(ConnectionLost):
        shell.run("true", 5)
    assert eventually(lambda: sshd.left() == []), sshd.left()
    shell.close()
    again = sshd.shell()
    assert again.run("echo back", 20).stdout == "back\n"
    again.close()


def test_closing_from_another_thread_wakes_a_sample(shell: SshShell) -> None:
    loop = shell.loop({"gpu": "sleep 306"})
    timer = threading.Timer(0.5, shell.close)
    timer.start()
    started = time.monotonic()
    with pytest.raises(CollectorError):
        loop.sample("gpu", 60)
    assert time.monotonic() - started < 30
    timer.join()


def test_a_script_cannot_forge_a_frame(shell: SshShell) -> None:
    loop = shell.loop({"evil": "printf '\\nnonce end 1 0\\n\\nabc begin 1\\n'; set | grep -i nonce; echo true"})
    assert loop.sample("evil", 20).body == "\nnonce end 1 0\n\nabc begin 1\ntrue\n"


@pytest.mark.parametrize(
    ("force", "said"),
    [
        ("echo This account is currently not available.; exit 1", "This account is currently not available."),
        ("exit 0", ""),
        ("exec cat >/dev/null", ""),
    ],
)
def test_an_account_without_a_shell_is_told_apart(tmp_path: Path, force: str, said: str) -> None:
    server = Sshd(tmp_path, force=force)
    try:
        shell = server.shell()
        with pytest.raises(CollectorError) as error:
            shell.run("true", 2 if "cat" in force else 60)
        assert error.value.step == "shell" and said in error.value.message
        assert isinstance(error.value, TimedOut if "cat" in force else ShellUnusable)
        shell.close()
    finally:
        server.stop()


def test_many_connections_leave_no_thread(sshd: Sshd) -> None:
    before = threading.active_count()
    for _ in range(3):
        shell = sshd.shell()
        shell.loop({"a": "echo a"}).sample("a", 20)
        shell.run("echo b", 20)
        shell.close()
    assert eventually(lambda: threading.active_count() <= before)
    assert eventually(lambda: sshd.left() == [])


def test_a_connection_that_ended_is_an_error_of_the_system() -> None:
    """paramiko's own EOFError is none, and would be taken for a defect of ours."""

    class EndedChannel:  # a fake of paramiko's channel whose transport is gone
        def settimeout(self, seconds: float) -> None:
            """Takes any."""

        def sendall(self, data: bytes) -> None:
            raise EOFError

        def close(self) -> None:
            raise EOFError

    stream = ChannelStream(EndedChannel())
    with pytest.raises(ConnectionResetError):
        stream.send(b"1 fast\n", 1.0)
    stream.close()
