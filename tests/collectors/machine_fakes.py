"""Fakes for the sweep's tests, named as fakes: a program in the PATH of a real sshd, a reader that hangs when told to."""

from __future__ import annotations

import getpass
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collectors.errors import CollectorError, ConnectionLost, TimedOut
from collectors.machines import Machine, PartName
from collectors.readings import Gpu, Gpus, Host, Load, Record
from collectors.shell import Output
from tests.collectors.sshd import Sshd

DATA = Path(__file__).parent / "data"


class FakeProgram:
    """A command that first does what a test tells it to, in shell; `path` is put before the PATH of logins."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.file = directory / name
        self.says("")

    def says(self, script: str) -> None:
        written = self.file.with_suffix(".new")
        written.write_text(f"#!/bin/sh\n{script}\n")
        written.chmod(0o755)
        written.rename(self.file)  # at once: it may be running


def fake_nvidia_smi(directory: Path) -> FakeProgram:
    """An nvidia-smi of eight H100."""
    program = FakeProgram(directory, "nvidia-smi")
    program.says(nvidia_smi_script("h100x8.csv"))
    return program


def nvidia_smi_script(capture: str, before: str = "") -> str:
    data = DATA / "nvidia_smi"
    return f"""case "$1" in
--help-query-gpu) cat {data}/help_570.txt ;;
--query-gpu*) {before} sed '/^# /d' {data}/{capture} ;;
--query-compute-apps*) echo ;;
*) exit 1 ;;
esac"""


def with_path(directory: Path) -> str:
    """The ForceCommand of an sshd whose logins find the programs of a directory first."""
    return f'PATH={directory}:$PATH; export PATH; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'


def machine_of(sshd: Sshd, name: str = "gpu-1", **changes: Any) -> Machine:
    """The settings that lead to a test's sshd."""
    values: dict[str, Any] = {
        "name": name,
        "address": "127.0.0.1",
        "port": sshd.port,
        "user": getpass.getuser(),
        "key": sshd.key,
        "known_hosts": sshd.known_hosts,
        "use_agent": False,
        "every_seconds": 0.2,
        "slow_every_seconds": 0.5,
    }
    return Machine(**(values | changes))


@dataclass
class FakeReader:
    """A machine without transport: each part's number of readings is kept, and a part in `hung` is not answered until it is let go
    or the reader is closed; one in `errors` raises."""

    machine: Machine
    errors: dict[str, CollectorError] = field(default_factory=dict)
    hung: set[str] = field(default_factory=set)
    reads: dict[str, int] = field(default_factory=dict)
    connects: int = 0
    gpus: int = 2
    connected: bool = False
    rested: list[str] = field(default_factory=list)
    _freed: threading.Event = field(default_factory=threading.Event)

    def connect(self, timeout: float) -> None:
        self.connects += 1
        self._hang_or_raise("connect", timeout)
        self.connected = True

    def read(self, part: PartName, timeout: float) -> Record:
        if not self.connected:
            raise ConnectionLost("not connected")
        self.reads[part] = number = self.reads.get(part, 0) + 1
        self._hang_or_raise(part, timeout)
        if part == "gpus":
            return Gpus(tuple(Gpu(index) for index in range(self.gpus)))
        return Host(float(number), 1.0, None, None, Load(1.0, 1.0, 1.0), None, None, None, None, None)

    def _hang_or_raise(self, what: str, timeout: float) -> None:
        if what in self.hung and not self._freed.wait(timeout):
            raise TimedOut(f"{what} did not answer")
        if error := self.errors.get(what):  # one look: a test may take it away meanwhile
            raise error

    def release(self) -> None:
        """Let all that hangs go on."""
        self._freed.set()

    def run(self, command: str, timeout: float) -> Output:
        raise NotImplementedError

    def rest(self, part: PartName) -> None:
        self.rested.append(part)

    def disconnect(self) -> None:
        self.connected = False

    def close(self) -> None:
        self.connected = False
        self._freed.set()
