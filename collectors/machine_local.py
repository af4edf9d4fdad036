"""Reads the machine we run on: psutil, NVML, and commands in a local shell. Knows no schedule."""

from __future__ import annotations

import time
from collections.abc import Callable

from collectors import disks, docker, psutil_host, systemd
from collectors.connection_test import NEEDED, OPTIONAL, StepResult, Told, ignore
from collectors.errors import CollectorError
from collectors.local import LocalShell
from collectors.machines import HostRates, Machine, PartName
from collectors.nvml import Nvml
from collectors.readings import Record
from collectors.shell import Output, Shell


class LocalReader:
    """See `machines.Reader`. A driver that hangs in NVML cannot be interrupted: that call then never comes back."""

    def __init__(
        self,
        machine: Machine,
        *,
        shell: Shell | None = None,
        nvml: Nvml | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._units = systemd.build(machine.units)
        self._shell: Shell = shell or LocalShell()
        self._nvml = nvml or Nvml()
        self._rates = HostRates(monotonic)

    @property
    def connected(self) -> bool:
        return True

    def connect(self, timeout: float) -> None:
        """Nothing to do."""

    def read(self, part: PartName, timeout: float) -> Record:
        """See `Reader.read`."""
        if part == "host":
            return self._rates.reading(psutil_host.sample(processes=self._rates.wants_processes))
        if part == "gpus":
            return self._nvml.read()
        if part == "filesystems":
            return disks.parse(self._shell.run(disks.COMMAND, timeout).stdout)
        if part == "units":
            return systemd.parse(self._shell.run(self._units, timeout).stdout)
        return docker.parse(self._shell.run(docker.COMMAND, timeout).stdout)

    def run(self, command: str, timeout: float) -> Output:
        return self._shell.run(command, timeout)

    def rest(self, part: PartName) -> None:
        """Nothing is kept open."""

    def disconnect(self) -> None:
        """Nothing is connected."""

    def close(self) -> None:
        self._shell.close()
        self._nvml.close()


def try_local(timeout: float = 15.0, told: Told = ignore) -> tuple[StepResult, ...]:
    """The connection test of the machine we run on: its shell and the commands that are needed. `told` gets each step."""
    steps = _local_steps(timeout)
    for step in steps:
        told(step)
    return steps


def _local_steps(timeout: float) -> tuple[StepResult, ...]:
    names = " ".join([*NEEDED, *OPTIONAL])
    command = f"for name in {names}; do command -v $name >/dev/null 2>&1 || printf '%s\\n' $name; done"
    try:
        output = LocalShell().run(command, timeout)
    except (CollectorError, OSError) as error:
        return (StepResult("shell", False, str(error), "This machine needs a POSIX shell as /bin/sh."),)
    missing = output.stdout.split()
    lacking = [name for name in NEEDED if name in missing]
    said = f"not there: {', '.join(missing)}" if missing else ""
    next_step = "Install them: they are in every base system." if lacking else ""
    return StepResult("shell", True, seconds=output.seconds), StepResult("command", not lacking, said, next_step)
