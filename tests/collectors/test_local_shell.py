"""The local Shell: what it returns, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from collectors.errors import OutputTooLarge, TimedOut
from collectors.local import LocalShell


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


def test_streams_status_and_locale() -> None:
    output = LocalShell().run("echo out; echo err >&2; printf '%s' \"$LC_ALL\"; exit 3", 10)
    assert (output.stdout, output.stderr, output.exit_status) == ("out\nC", "err\n", 3)


def test_no_input_and_broken_utf8() -> None:
    assert LocalShell().run("cat; printf '\\377x'", 10).stdout == "\ufffdx"


def test_a_signal_is_a_status_as_in_the_shell() -> None:
    assert LocalShell().run("kill -9 $$", 10).exit_status == 137


def test_time_limit_kills_the_whole_group(tmp_path: Path) -> None:
    with pytest.raises(TimedOut):
        LocalShell().run(f"sleep 300 & echo $! >{tmp_path}/child; trap '' TERM; echo $$ >{tmp_path}/parent; sleep 300", 3.0)
    pids = [int((tmp_path / name).read_text()) for name in ("child", "parent")]
    assert eventually(lambda: not any(map(alive, pids)))


def test_what_a_command_left_in_the_background_is_ended(tmp_path: Path) -> None:
    output = LocalShell().run(f"sleep 300 >/dev/null 2>&1 & echo $! >{tmp_path}/child; echo done", 10)
    assert output.stdout == "done\n"
    assert eventually(lambda: not alive(int((tmp_path / "child").read_text())))


def test_a_flood_is_cut_off() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OutputTooLarge):
        LocalShell().run("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done >&2", 60)
    assert eventually(lambda: set(os.listdir("/proc/self/fd")) <= before)  # other threads have some for a moment


def test_close_kills_what_runs() -> None:
    """A hung `docker` or `df` must not outlive the sweep."""
    shell = LocalShell()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(shell.run, "echo begun; sleep 1000", 900.0)
        deadline = time.monotonic() + 60
        while not running.done() and time.monotonic() < deadline:
            shell.close()
            time.sleep(0.01)
        assert running.result(1).exit_status == 137
