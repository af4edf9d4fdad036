"""What lies beneath the components: network to each remote address, the disk under the models, the memory they take."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from collectors import probes
from collectors.readings import Gpus
from collectors.services import Service, ServiceError
from gpu_server.errors import EngineError
from latency.components.rows import Bench, Row, failed, skipped
from latency.components.targets import CODES

CONNECTS = 5
REQUESTS = 3
READ_BYTES = 1_000_000_000
READ_SECONDS = 20.0
PIECE_BYTES = 4 * 1024 * 1024
SHOWN_PROCESSES = 6

# network


def network(bench: Bench) -> Iterator[Row]:
    """Rows `network.connect:NAME` and `network.http:NAME` for each remote address."""
    if not bench.parts.endpoints:
        yield skipped("network.connect", CODES["network.connect"], "every part of the path runs in this process")
    for service in bench.parts.endpoints:
        yield _connects(bench, service)
        yield _request(bench, service)


def _connects(bench: Bench, service: Service) -> Row:
    code, name = f"network.connect:{service.name}", f"{CODES['network.connect']} to the {service.name}"
    try:
        host, port = service.endpoint
    except ServiceError as problem:
        return failed(code, name, f"{problem.message}. {problem.next_step}")
    bare = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    port_alone = replace(service, kind="tcp", url=bare, api_key=None, headers={})
    samples: list[float] = []
    for _ in range(CONNECTS):
        bench.check()
        found = probes.probe(port_alone)
        if not found.up or found.latency.connect_seconds is None:
            return failed(code, name, f"{found.message}. {found.next_step}".strip())
        samples.append(found.latency.connect_seconds)
    return Row(code, name, tuple(samples), f"{service.address}: one round trip each, the name looked up before")


def _request(bench: Bench, service: Service) -> Row:
    code, name = f"network.http:{service.name}", f"{CODES['network.http']} to the {service.name}"
    samples: list[float] = []
    for _ in range(REQUESTS):
        bench.check()
        found = probes.probe(service)
        if not found.up:
            return failed(code, name, f"{found.message}. {found.next_step}".strip())
        samples.append(found.latency.total_seconds)
    latency = {key: value for key, value in found.latency.to_json().items() if key != "total_seconds"}
    return Row(code, name, tuple(samples), f"{service.address}, a new connection each: {found.message}", latency)


# disk


def disk(bench: Bench) -> Iterator[Row]:
    """Rows `disk.read:KIND` for the folder of each model of this process."""
    if not bench.parts.folders:
        yield skipped("disk.read", CODES["disk.read"], "no model of this process lies in a folder")
    for kind, find in bench.parts.folders.items():
        code, name = f"disk.read:{kind}", f"{CODES['disk.read']} ({kind})"
        try:
            yield _read(bench, code, name, find())
        except EngineError as problem:
            yield failed(code, name, f"{problem.message}. {problem.next_step}")
        except OSError as problem:
            yield failed(code, name, f"{problem.filename or kind} cannot be read: {problem.strerror}")


class _Reading(NamedTuple):
    read_bytes: int
    seconds: float
    device_bytes: int | None
    whole: bool


def _read(bench: Bench, code: str, name: str, folder: Path) -> Row:
    found = read_through(bench, folder)
    rate = found.read_bytes / found.seconds if found.seconds > 0 else None
    values = {"read_bytes": found.read_bytes, "device_bytes": found.device_bytes, "bytes_per_second": rate}
    part = "all of it" if found.whole else f"the first {found.read_bytes / 1e6:.0f} MB"
    if found.device_bytes is None:
        cache = "the kernel was asked to forget the files first; whether it did is not known here"
    else:
        share = min(1.0, found.device_bytes / found.read_bytes) if found.read_bytes else 0.0
        cache = f"{100 * share:.0f} % came from the device, the rest from memory, although the kernel was asked to forget it"
        cache = cache if share < 0.995 else "all of it came from the device"
    return Row(code, name, (found.seconds,), f"{folder.name}, {part}; {cache}", values)


def read_through(bench: Bench, folder: Path, most_bytes: int = READ_BYTES, most_seconds: float = READ_SECONDS) -> _Reading:
    """Read the folder's files, largest first, within the limits; the kernel is asked to drop them from memory before.

    `device_bytes` is what this process fetched from storage meanwhile (/proc/self/io), None where the kernel does not tell: pages
    that another process holds, or that a file system keeps in memory, stay whatever is asked.
    """
    files = sorted((each for each in folder.rglob("*") if each.is_file()), key=lambda each: -each.stat().st_size)
    before, done, whole = _device_bytes(), 0, True
    spent = 0.0
    for file in files:
        with file.open("rb", buffering=0) as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
            while piece := handle.read(min(PIECE_BYTES, most_bytes - done)) if done < most_bytes else b"":
                bench.check()
                done += len(piece)
                if spent + time.perf_counter() - started > most_seconds:
                    break
            spent += time.perf_counter() - started
        if done >= most_bytes or spent > most_seconds:
            whole = done >= sum(each.stat().st_size for each in files)
            break
    after = _device_bytes()
    return _Reading(done, spent, None if before is None or after is None else after - before, whole)


def _device_bytes() -> int | None:
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)


# memory


def memory(bench: Bench) -> Iterator[Row]:
    """Rows `memory.KIND` for each model that tells what its weights take, and `memory.gpu:INDEX` for each GPU."""
    for model in bench.parts.models():
        code, name = f"memory.{model.kind}", f"Memory of the {model.kind}"
        if model.memory_bytes is None:
            yield skipped(code, name, f"{model.name} does not tell what it takes")
        else:
            place = f"at {model.address}" if model.where == "http" else f"on {model.device}"
            yield Row(code, name, detail=f"the weights of {model.name} {place}", values={"memory_bytes": model.memory_bytes})
    yield from _gpus(bench.parts.gpus())


def _gpus(reading: Gpus) -> Iterator[Row]:
    if not reading.gpus:
        reasons = "; ".join(fault.text for fault in reading.faults) or "there is none"
        yield skipped("memory.gpu", "GPU memory", f"no GPU can be read here: {reasons}")
        return
    for gpu in reading.gpus:
        values = {"memory_bytes": gpu.memory_used_bytes, "memory_total_bytes": gpu.memory_total_bytes}
        users = [each for each in reading.processes or () if each.gpu_uuid == gpu.uuid and each.memory_bytes]
        users.sort(key=lambda each: -(each.memory_bytes or 0))
        shown = [_process(each.pid, each.name, each.memory_bytes) for each in users[:SHOWN_PROCESSES]]
        detail = f"{gpu.name or 'GPU'} {gpu.index}: " + (", ".join(shown) or "no process that the driver tells of")
        yield Row(f"memory.gpu:{gpu.index}", f"GPU {gpu.index}: memory in use", detail=detail, values=values)


def _process(pid: int, name: str | None, size: int | None) -> str:
    who = "this process" if pid == os.getpid() else f"{Path(name).name if name else 'process'} {pid}"
    return f"{who} {(size or 0) / 1e9:.2f} GB"
