"""What validation reads of a machine: its clock, what listens, what vLLM was started with, disks, memory, GPUs.

Commands with pure parsers; a reader (`collectors.machines.Reader`) carries them. Nothing is ever scanned from outside.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from collectors.errors import CollectorError
from collectors.machine_local import LocalReader
from collectors.machine_remote import RemoteReader
from collectors.machines import Machine, PartName, Reader
from collectors.readings import Filesystems, Gpus, Host, Record

CONNECT_SECONDS = 15.0
READ_SECONDS = 20.0
CLOCK = "date +%s.%N"  # BusyBox prints no fraction: then the second alone counts
LISTENERS = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null"
ENGINES = "ps -eo pid=,args= 2>/dev/null | grep -E '[v]llm' | head -n 100"
LISTEN_STATE = "0A"  # include/net/tcp_states.h: TCP_LISTEN
VLLM_DEFAULT_SHARE = 0.9  # vLLM's own default of --gpu-memory-utilization
_SHARE = re.compile(r"--gpu[-_]memory[-_]utilization[= ]+(\S+)")
_MODEL = re.compile(r"(?:vllm serve|--model)[= ]+(\S+)")


class Listener(NamedTuple):
    """A TCP port that takes connections at an address of the machine."""

    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.address).is_loopback


class ClockReading(NamedTuple):
    """The machine's clock less ours, in seconds; it is known to within `uncertainty_seconds`."""

    offset_seconds: float
    uncertainty_seconds: float


class EngineShare(NamedTuple):
    """A vLLM server as it was started: the share of the GPU's memory it takes, and whether that is only vLLM's default."""

    pid: int
    model: str | None
    share_ratio: float
    default: bool


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What was read; what could not be read is None, with the reason by name in `problems`."""

    name: str
    is_local: bool
    host_name: str | None = None
    clock: ClockReading | None = None
    listeners: tuple[Listener, ...] | None = None
    engines: tuple[EngineShare, ...] | None = None
    host: Host | None = None
    filesystems: Filesystems | None = None
    gpus: Gpus | None = None
    problems: dict[str, str] = field(default_factory=dict)


PARTS: tuple[PartName, ...] = ("host", "filesystems", "gpus")
ReaderOf = Callable[[Machine], Reader]


def reader_of(machine: Machine) -> Reader:
    return LocalReader(machine) if machine.is_local else RemoteReader(machine)


def read(machine: Machine, make: ReaderOf = reader_of, now: Callable[[], float] = time.time) -> MachineFacts:
    """Everything of one machine over one connection, closed again. Never raises for what the machine does."""
    problems: dict[str, str] = {}
    host_name = None if machine.is_local else machine.target.address
    reader = make(machine)
    try:
        reader.connect(CONNECT_SECONDS)
        texts = {name: _run(reader, name, command, problems) for name, command in _COMMANDS.items()}
        parts = {part: _part(reader, part, problems) for part in PARTS}
        clock = None if machine.is_local else _clock(reader, now, problems)
    except CollectorError as problem:
        return MachineFacts(machine.name, machine.is_local, host_name, problems={"connection": _said(problem)})
    finally:
        reader.close()
    listening, engines = texts["listeners"], texts["engines"]
    host, filesystems, gpus = parts["host"], parts["filesystems"], parts["gpus"]
    return MachineFacts(
        name=machine.name,
        is_local=machine.is_local,
        host_name=host_name,
        clock=clock,
        listeners=None if listening is None else parse_listeners(listening),
        engines=None if engines is None else parse_engines(engines),
        host=host if isinstance(host, Host) else None,
        filesystems=filesystems if isinstance(filesystems, Filesystems) else None,
        gpus=gpus if isinstance(gpus, Gpus) else None,
        problems=problems,
    )


_COMMANDS = {"listeners": LISTENERS, "engines": ENGINES}


def _run(reader: Reader, name: str, command: str, problems: dict[str, str]) -> str | None:
    try:
        return reader.run(command, READ_SECONDS).stdout
    except CollectorError as problem:
        problems[name] = _said(problem)
        return None


def _part(reader: Reader, part: PartName, problems: dict[str, str]) -> Record | None:
    try:
        return reader.read(part, READ_SECONDS)
    except CollectorError as problem:
        problems[part] = _said(problem)
        return None


def _clock(reader: Reader, now: Callable[[], float], problems: dict[str, str]) -> ClockReading | None:
    """As NTP does it, with one exchange: the machine's time is taken to lie in the middle of the question's journey."""
    before = now()
    text = _run(reader, "clock", CLOCK, problems)
    after = now()
    found = None if text is None else parse_clock(text)
    if found is None:
        problems.setdefault("clock", "`date` printed no time")
        return None
    there, resolution = found
    return ClockReading(there - (before + after) / 2, (after - before) / 2 + resolution)


def parse_clock(text: str) -> tuple[float, float] | None:
    """(Unix seconds, half the resolution in seconds); None for what is no time."""
    match = re.match(r"\s*(\d{9,11})(\.\d+)?", text)
    if match is None:
        return None
    return (float(match[0]), 0.0) if match[2] else (float(match[1]) + 0.5, 0.5)


def parse_listeners(text: str) -> tuple[Listener, ...]:
    """The listening sockets of `/proc/net/tcp` and `tcp6`: addresses are hexadecimal words in the machine's byte order
    (proc(5)), read here as little endian. Lines that cannot be read are left out."""
    found = set()
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[3] != LISTEN_STATE:
            continue
        words, _, port = fields[1].partition(":")
        try:
            found.add(Listener(_address(words), int(port, 16)))
        except ValueError:
            continue
    return tuple(sorted(found))


def _address(words: str) -> str:
    raw = b"".join(bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8))
    if len(raw) == 4:
        return str(ipaddress.IPv4Address(raw))
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def parse_engines(text: str) -> tuple[EngineShare, ...]:
    """The vLLM servers of a process list: those that say `vllm serve` or name vLLM's API server; workers are left out."""
    found = []
    for line in text.splitlines():
        pid, _, command = line.strip().partition(" ")
        if not pid.isdecimal() or not re.search(r"vllm serve|vllm\.entrypoints", command):
            continue
        share, model = _SHARE.search(command), _MODEL.search(command)
        try:
            ratio = float(share[1]) if share else VLLM_DEFAULT_SHARE
        except ValueError:
            continue
        found.append(EngineShare(int(pid), model[1] if model else None, ratio, share is None))
    return tuple(found)


def _said(problem: CollectorError) -> str:
    return f"{problem.message} ({problem.next_step})" if problem.next_step else problem.message
