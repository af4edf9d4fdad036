"""What a machine to be watched is, and how it is read: the record of its settings and the protocol of the two readers.

Knows no transport and no schedule. `local`, the machine we run on, is always there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

from collectors.errors import CollectorError
from collectors.host_keys import Policy
from collectors.rates import rates
from collectors.readings import Host, Process, Record
from collectors.samples import Sample
from collectors.shell import Output
from collectors.ssh_config import Target

PartName = Literal["host", "gpus", "filesystems", "units", "containers"]
PARTS: tuple[PartName, ...] = get_args(PartName)
FAST: frozenset[PartName] = frozenset({"host", "gpus"})

LOCAL = "local"
PROCESS_SECONDS = 30.0  # 800 of them take 6 ms to parse, thirty times the rest of a sample


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of the settings. `address` None is the machine we run on; else a host, an alias of ~/.ssh/config, or
    `user@host:port`. `collect` are the parts to be read, `units` the systemd units to be listed besides those that failed, and
    `restart` what may be restarted on screen (`vllm.service`, `docker:whisper`): nothing else there is ever changed.

    `expected_gpus` None: as many as were seen in the last days. Host and GPUs are read every `every_seconds`, the rest every
    `slow_every_seconds`.
    """

    name: str
    address: str | None = None
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    passphrase: str | None = field(default=None, repr=False)
    jump: str | None = None
    host_key_policy: Policy = "strict"
    known_hosts: Path | None = None
    use_agent: bool = True
    collect: tuple[PartName, ...] = PARTS
    units: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    expected_gpus: int | None = None
    every_seconds: float = 2.0
    slow_every_seconds: float = 30.0

    @property
    def is_local(self) -> bool:
        return self.address is None

    @property
    def shown_address(self) -> str:
        """For people."""
        if self.address is None:
            return "this machine"
        user = f"{self.user}@" if self.user and "@" not in self.address else ""
        return f"{user}{self.address}" + (f":{self.port}" if self.port else "")

    @property
    def target(self) -> Target:
        """Where to log in. Only for a machine with an address."""
        assert self.address is not None
        return Target(
            address=self.address,
            user=self.user,
            port=self.port,
            key=self.key,
            passphrase=self.passphrase,
            jump=self.jump,
            host_key_policy=self.host_key_policy,
            known_hosts=self.known_hosts,
            use_agent=self.use_agent,
        )

    def every(self, part: PartName) -> float:
        """Seconds between two readings of a part."""
        return self.every_seconds if part in FAST else self.slow_every_seconds


class Reader(Protocol):
    """Reads one machine. Safe in several threads: a part that hangs must not hold up the others."""

    @property
    def connected(self) -> bool:
        """Whether `read` can be asked without `connect`."""

    def connect(self, timeout: float) -> None:
        """Reach the machine. Raises CollectorError."""

    def read(self, part: PartName, timeout: float) -> Record:
        """Host, Gpus, Filesystems, Units or Containers. Raises CollectorError."""

    def run(self, command: str, timeout: float) -> Output:
        """One command, for what is asked on demand. Raises CollectorError."""

    def rest(self, part: PartName) -> None:
        """A part is not there and will be asked for rarely: keep nothing open for it."""

    def disconnect(self) -> None:
        """Drop the connection and all that runs over it; `connect` makes another."""

    def close(self) -> None:
        """For good: a `connect` under way ends too."""


class HostRates:
    """Samples in, readings out: the rates of processes are taken between the samples that have them. One for a machine."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._previous: Sample | None = None
        self._with_processes: Sample | None = None
        self._processes: tuple[Process, ...] | None = None
        self._processes_at: float | None = None

    @property
    def wants_processes(self) -> bool:
        """Whether the next sample should have them: the second one soon after the first, so that there are rates."""
        return self._processes_at is None or self._monotonic() - self._processes_at >= PROCESS_SECONDS

    def reading(self, sample: Sample) -> Host:
        """The reading of a sample; its processes are the last that were seen."""
        host = rates(self._previous, sample)
        if sample.processes is not None:
            known = self._with_processes
            self._processes = rates(known, replace(sample, cores=None, disks=None, interfaces=None)).processes
            self._processes_at = None if known is None else self._monotonic()
            self._with_processes = sample
        self._previous = replace(sample, processes=None)
        return replace(host, processes=self._processes)


def unreachable(machine: Machine) -> CollectorError:
    """The error for asking something of a machine that is not connected."""
    return CollectorError(f"{machine.name} is not connected", next_step="Test its connection.", address=machine.shown_address)
