"""Reads a machine over one SSH connection, with a channel for each thing that can hang by itself. Knows no schedule.

Nothing is installed there: the scripts go in through the channel, and what runs ends with it (see `frames`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from collectors import disks, docker, nvidia_smi, proc, systemd
from collectors.connection_test import StepResult, Told, ignore, try_connection
from collectors.errors import CollectorError, ConnectionLost, TimedOut
from collectors.loop import Loop
from collectors.machines import HostRates, Machine, PartName, unreachable
from collectors.readings import GpuProcess, Gpus, Host, MigDevice, Record
from collectors.shell import Output
from collectors.ssh import SshShell
from collectors.ssh_config import resolve

GPU_PROCESS_SECONDS = 10.0
GPU_LAYOUT_SECONDS = 120.0  # MIG and NVLink, which take a second on eight GPUs and hardly ever change

# A hung nvidia-smi, docker or df holds up its own channel only. Units share that of the file systems: three processes less there.
Channel = Literal["host", "gpus", "slow", "containers"]
CHANNELS: Mapping[PartName, Channel] = {
    "host": "host",
    "gpus": "gpus",
    "filesystems": "slow",
    "units": "slow",
    "containers": "containers",
}


@dataclass(slots=True)
class _GpuFacts:
    """What is known of the GPUs besides their query, which changes slowly; times are of the monotonic clock."""

    fields: tuple[str, ...]
    processes: tuple[GpuProcess, ...] | None = None
    processes_at: float | None = None
    mig_devices: tuple[MigDevice, ...] | None = None
    nvlinks: Mapping[int, tuple[int, int, float]] | None = None
    layout_at: float | None = None


@dataclass(slots=True)
class _Connection:
    """One connection and what hangs on it; replaced as a whole."""

    shell: SshShell
    loops: dict[Channel, Loop]
    gpu_facts: _GpuFacts | None = None


class RemoteReader:
    """See `machines.Reader`."""

    def __init__(self, machine: Machine, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._machine = machine
        self._monotonic = monotonic
        self._slow = {"filesystems": disks.COMMAND, "units": systemd.build(machine.units)}
        self._rates = HostRates(monotonic)
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._connecting: SshShell | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        connection = self._connection
        return connection is not None and connection.shell.connected

    def connect(self, timeout: float) -> None:
        """See `Reader.connect`: the address and ~/.ssh/config are looked at anew each time."""
        self.disconnect()
        shell = SshShell(resolve(self._machine.target))
        with self._lock:
            if self._closed:
                raise unreachable(self._machine)
            self._connecting = shell
        shell.connect(timeout)
        with self._lock:
            self._connecting = None
            if not self._closed:
                self._connection = _Connection(shell, {})
                return
        shell.close()
        raise unreachable(self._machine)

    def read(self, part: PartName, timeout: float) -> Record:
        """See `Reader.read`."""
        connection = self._connection
        if connection is None:
            raise ConnectionLost(f"{self._machine.name} is not connected", address=self._machine.shown_address)
        if part == "host":
            return self._host(connection, timeout)
        if part == "gpus":
            return self._gpus(connection, timeout)
        body = self._loop(connection, CHANNELS[part]).sample(part, timeout).body
        if part == "filesystems":
            return disks.parse(body)
        return systemd.parse(body) if part == "units" else docker.parse(body)

    def run(self, command: str, timeout: float) -> Output:
        """See `Reader.run`."""
        connection = self._connection
        if connection is None:
            raise unreachable(self._machine)
        return connection.shell.run(command, timeout)

    def rest(self, part: PartName) -> None:
        """See `Reader.rest`: closes the part's channel, if it is its own, so that nothing waits for it there."""
        connection = self._connection
        if connection is not None and CHANNELS[part] in ("gpus", "containers"):
            loop = connection.loops.pop(CHANNELS[part], None)
            if loop is not None:
                loop.close()

    def disconnect(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.shell.close()  # first: a loop's own close would wait for the network

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connecting = self._connecting
        if connecting is not None:
            connecting.close()
        self.disconnect()

    def _host(self, connection: _Connection, timeout: float) -> Host:
        word = "all" if self._rates.wants_processes else "host"
        frame = self._loop(connection, "host").sample(word, timeout)
        return self._rates.reading(proc.parse(frame.body))

    def _gpus(self, connection: _Connection, timeout: float) -> Gpus:
        deadline = self._monotonic() + timeout
        facts = connection.gpu_facts
        if facts is None:
            known = nvidia_smi.known_fields(connection.shell.run(nvidia_smi.HELP, timeout).stdout)
            facts = connection.gpu_facts = _GpuFacts(known)
        loop = self._loop(connection, "gpus")
        gpus = nvidia_smi.parse(loop.sample("gpus", timeout).body, facts.fields)
        if any(fault.code == "unknown_field" for fault in gpus.faults):  # another driver than at the start
            connection.gpu_facts = None
            self.rest("gpus")
        elif gpus.gpus:
            self._look_closer(loop, facts, deadline)
        return nvidia_smi.gpus_with(gpus, facts.processes, facts.mig_devices, facts.nvlinks)

    def _look_closer(self, loop: Loop, facts: _GpuFacts, deadline: float) -> None:
        """Processes, MIG and NVLink, each when it is due. One that hangs leaves what was known: the GPUs themselves were read."""
        now = self._monotonic()
        try:
            if facts.processes_at is None or now - facts.processes_at >= GPU_PROCESS_SECONDS:
                facts.processes_at = now
                facts.processes = nvidia_smi.parse_processes(self._ask(loop, "processes", deadline))
            if facts.layout_at is None or now - facts.layout_at >= GPU_LAYOUT_SECONDS:
                facts.layout_at = now
                facts.mig_devices = nvidia_smi.parse_mig(self._ask(loop, "mig", deadline))
                facts.nvlinks = nvidia_smi.parse_nvlinks(self._ask(loop, "nvlink", deadline))
        except TimedOut:
            return

    def _ask(self, loop: Loop, word: str, deadline: float) -> str:
        return loop.sample(word, max(0.1, deadline - self._monotonic())).body

    def _loop(self, connection: _Connection, channel: Channel) -> Loop:
        loop = connection.loops.get(channel)
        if loop is None:
            with self._lock:
                loop = connection.loops.setdefault(channel, connection.shell.loop(self._scripts(channel, connection)))
        return loop

    def _scripts(self, channel: Channel, connection: _Connection) -> Mapping[str, str]:
        if channel == "host":
            return {"host": proc.COMMAND, "all": proc.COMMAND_WITH_PROCESSES}
        if channel == "slow":
            return self._slow
        if channel == "containers":
            return {"containers": docker.COMMAND}
        assert connection.gpu_facts is not None
        query = nvidia_smi.query(connection.gpu_facts.fields)
        return {
            "gpus": query,
            "processes": nvidia_smi.PROCESSES,
            "mig": nvidia_smi.MIG,
            "nvlink": nvidia_smi.NVLINK,
        }


def try_machine(machine: Machine, timeout: float = 15.0, told: Told = ignore) -> tuple[StepResult, ...]:
    """The connection test of a machine with an address, step by step; see `try_connection`. Never raises for what the machine
    does."""
    try:
        route = resolve(machine.target)
    except CollectorError as error:
        failed = StepResult("name", False, error.message, error.next_step)
        told(failed)
        return (failed,)
    return try_connection(route, timeout, told=told)
