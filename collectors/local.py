"""The Shell of this machine, by subprocess. Knows no SSH."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from typing import IO

from collectors.errors import OutputTooLarge, TimedOut
from collectors.shell import MAX_OUTPUT_BYTES, Output

REAP_SECONDS = 1.0


class LocalShell:
    """Each command is a process group of its own, killed as a whole when its time is over, or at `close`."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: str, timeout: float) -> Output:
        """See `Shell.run`."""
        started = time.monotonic()
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        self._running.add(process)
        try:
            stdout, stderr = _read(process, command, started + timeout)
            status = process.wait(max(0.0, started + timeout - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise _timed_out(command, timeout) from None
        finally:
            self._running.discard(process)
            _end(process)
        return Output(stdout, stderr, status if status >= 0 else 128 - status, time.monotonic() - started)

    def close(self) -> None:
        """Kill what runs: its callers get what it printed so far, and the status of a killed command."""
        for process in list(self._running):
            _kill(process)


def _read(process: subprocess.Popen[bytes], command: str, deadline: float) -> tuple[str, str]:
    """Both streams to their ends, or an error at the deadline or past the cap."""
    assert process.stdout is not None and process.stderr is not None
    buffers: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in buffers:
            selector.register(stream, selectors.EVENT_READ, stream)
        while selector.get_map():
            remaining = deadline - time.monotonic()
            events = selector.select(remaining) if remaining > 0 else []
            if not events:
                raise subprocess.TimeoutExpired(command, 0)
            for event, _ in events:
                data = os.read(event.fd, 65536)
                if not data:
                    selector.unregister(event.fd)
                buffers[event.data] += data
            if sum(map(len, buffers.values())) > MAX_OUTPUT_BYTES:
                raise OutputTooLarge(
                    f"`{_short(command)}` printed more than {MAX_OUTPUT_BYTES} bytes", next_step="Ask for less of it."
                )
    stdout, stderr = (bytes(buffer).decode("utf-8", "replace") for buffer in buffers.values())
    return stdout, stderr


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group. A process in uninterruptible sleep is not waited for: it dies when it wakes."""
    _kill(process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(REAP_SECONDS)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _timed_out(command: str, timeout: float) -> TimedOut:
    return TimedOut(
        f"`{_short(command)}` did not end within {timeout:g} s",
        next_step="Run it by hand on the machine to see what it waits for.",
    )


def _short(command: str) -> str:
    line = " ".join(command.split())
    return line if len(line) <= 80 else line[:77] + "…"
