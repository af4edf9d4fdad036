"""What the sweep knew of other machines and of services while queries ran, kept from its snapshots. Knows no query.

A snapshot shows the last reading of each part; each counts once, by its time `at`, which is our own clock's. Bounded by time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import urlsplit

from collectors.readings import Containers, Gpus, Host, metrics
from collectors.views import MachineView, Part, ServiceView, Snapshot
from collectors.vllm_metrics import Engine
from latency.readings.gpus import IDLE
from latency.readings.host import NOTEWORTHY_CPU_RATIO
from latency.types import LOCAL, Use

KEPT_SECONDS = 900.0
MAX_LOOKS = 4_000
MODEL_KINDS = frozenset({"gpu_server", "openai-chat", "openai-embeddings", "rerank", "whisper", "ocr"})
# How programs that serve models call themselves, their containers, images and units.
SERVERS = ("vllm", "text-embeddings", "gpu_server", "gpu-server", "sglang", "triton", "ollama", "llama", "infinity")

_FIELDS: Mapping[str, frozenset[str]] = {
    "cpu": frozenset({"cores", "busy_ratio", "iowait_ratio", "steal_ratio"}),
    "memory": frozenset({"used_ratio", "swap_used_ratio"}),
    "pressure": frozenset({"some_10s_ratio"}),
    "disk": frozenset({"busy_ratio", "read_bytes_per_second", "written_bytes_per_second", "wait_seconds", "queue_length"}),
    "interface": frozenset({"received_bytes_per_second", "sent_bytes_per_second"}),
    "gpu": frozenset(
        {
            *("utilization_ratio", "memory_bandwidth_ratio", "memory_used_bytes", "memory_used_ratio", "memory_total_bytes"),
            *("power_watts", "power_limit_watts", "sm_clock_mhz", "sm_clock_max_mhz", "temperature_celsius", "slowed"),
            *("memory_clock_mhz", "memory_clock_max_mhz"),
        }
    ),
    "engine": frozenset(
        {
            *("running", "waiting", "swapped", "kv_cache_used_ratio", "prefix_cache_hit_ratio", "preemptions"),
            *("generation_tokens_per_second", "prompt_tokens_per_second", "requests_per_second", "queue_p95_seconds"),
            *("ttft_p50_seconds", "requests_total", "queue_seconds_total", "prefill_seconds_total", "decode_seconds_total"),
        }
    ),
}


class Look(NamedTuple):
    """One reading of one part of a source at `at` (Unix seconds): numbers, facts as (name, value), processes."""

    source: str
    part: str
    at: float
    values: Mapping[str, float]
    facts: tuple[tuple[str, str], ...] = ()
    uses: tuple[Use, ...] = ()


class RemoteLog:
    """The looks of the last quarter of an hour. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks: deque[Look] = deque(maxlen=MAX_LOOKS)
        self._seen: dict[tuple[str, str], float] = {}

    def take(self, snapshot: Snapshot) -> bool:
        """Keep what is new in a snapshot; False when nothing but this machine is watched."""
        machines = [each for each in snapshot.machines if each.name != LOCAL]
        new = [look for machine in machines for look in self._of_machine(machine, snapshot.services)]
        new += [look for service in snapshot.services for look in self._of_service(service)]
        with self._lock:
            self._looks.extend(new)
            while self._looks and self._looks[0].at < snapshot.at - KEPT_SECONDS:
                self._looks.popleft()
        return bool(machines or snapshot.services)

    def between(self, start: float, end: float, before: int = 2, reach: float = 30.0) -> dict[str, list[Look]]:
        """By source, oldest first: the looks of start <= at <= end, and of each source's parts the last `before` ones from up to
        `reach` seconds earlier. All in Unix seconds."""
        found: dict[str, list[Look]] = {}
        earlier: dict[tuple[str, str], int] = {}
        with self._lock:
            looks = sorted(self._looks, key=lambda look: look.at)
        for look in reversed(looks):
            if look.at > end or look.at < start - reach:
                continue
            if look.at < start:
                part = (look.source, look.part)
                earlier[part] = earlier.get(part, 0) + 1
                if earlier[part] > before:
                    continue
            found.setdefault(look.source, []).insert(0, look)
        return found

    def _is_new(self, name: str, part: str, at: float | None) -> bool:
        if at is None or self._seen.get((name, part)) == at:
            return False
        self._seen[name, part] = at
        return True

    def _of_machine(self, view: MachineView, services: tuple[ServiceView, ...]) -> Iterator[Look]:
        host, gpus = view.host, view.gpus
        if host is not None and host.value is not None and host.at is not None and self._is_new(view.name, "host", host.at):
            yield _host_look(view.name, host.at, host.value)
        if gpus is not None and gpus.value is not None and gpus.at is not None and self._is_new(view.name, "gpus", gpus.at):
            yield _gpus_look(view, gpus.at, gpus.value, serves_models(view, services))
        for engine in view.engines or ():
            at = None if host is None else host.at
            if at is not None and self._is_new(view.name, f"engine {engine.name}", at):
                yield Look(view.name, f"engine {engine.name}", at, _wanted(metrics(engine)))

    def _of_service(self, view: ServiceView) -> Iterator[Look]:
        engine: Part[Engine] | None = view.engine
        if engine is None or engine.value is None or engine.at is None or not self._is_new(view.name, "engine", engine.at):
            return
        facts = (("service.address", view.address), ("service.kind", view.kind))
        yield Look(view.name, "engine", engine.at, _wanted(metrics(engine.value)), facts)


def problems(snapshot: Snapshot) -> tuple[str, ...]:
    """A sentence for each machine and service whose readings are missing or old. Texts may come from machines: not escaped."""
    found = []
    for machine in snapshot.machines:
        if machine.name != LOCAL and machine.state not in ("ok", "waiting"):
            why = machine.problem.text if machine.problem is not None else "its readings are old"
            found.append(f"{machine.name} could not be read: {why}.")
    for service in snapshot.services:
        engine = service.engine
        if engine is not None and engine.problem is not None and not engine.absent:
            found.append(f"The metrics of {service.name} could not be read: {engine.problem.text}.")
    return tuple(found)


def serves_models(view: MachineView, services: tuple[ServiceView, ...]) -> bool:
    """Whether a model service that is watched runs on this machine, by its address."""
    host = view.address.rpartition("@")[2].partition(":")[0].lower()
    return bool(host) and any(service.kind in MODEL_KINDS and host_of(service.address) == host for service in services)


def host_of(address: str) -> str:
    """The host of a url or of `host:port`, lower case."""
    try:
        return (urlsplit(address if "://" in address else f"//{address}").hostname or "").lower()
    except ValueError:
        return ""


def is_server(*names: str | None) -> bool:
    """Whether a process, its unit, its container or its image is called like a program that serves models."""
    return any(word in name.lower() for name in names if name for word in SERVERS)


def _host_look(source: str, at: float, host: Host) -> Look:
    busy = [each for each in host.processes or () if (each.cpu_ratio or 0.0) >= NOTEWORTHY_CPU_RATIO]
    uses = tuple(Use(source, each.pid, each.name, cpu_ratio=each.cpu_ratio) for each in busy)
    return Look(source, "host", at, _wanted(metrics(replace(host, cores=None, processes=None))), (), uses)


def _gpus_look(view: MachineView, at: float, gpus: Gpus, serves: bool) -> Look:
    facts = [("driver_version", gpus.driver_version)] if gpus.driver_version else []
    for gpu in gpus.gpus or ():
        facts += [(f"gpu.{gpu.index}.throttle_reasons", reason) for reason in gpu.throttle_reasons or () if reason != IDLE]
        if gpu.name:
            facts.append((f"gpu.{gpu.index}.name", gpu.name))
        if gpu.persistence_enabled is not None:
            facts.append((f"gpu.{gpu.index}.persistence_enabled", "true" if gpu.persistence_enabled else "false"))
    indexes = {gpu.uuid: gpu.index for gpu in gpus.gpus or ()}
    called = _containers(view.containers)
    uses = tuple(
        Use(
            view.name,
            each.pid,
            each.name or "",
            each.owner,
            indexes.get(each.gpu_uuid),
            each.memory_bytes,
            ours=serves and is_server(each.name, each.owner, *called.get((each.owner or "").rpartition(" ")[2], ())),
        )
        for each in gpus.processes or ()
    )
    return Look(view.name, "gpus", at, _wanted(metrics(gpus)), tuple(facts), uses)


def _containers(part: Part[Containers] | None) -> dict[str, tuple[str | None, ...]]:
    """First 12 digits of a container's id -> its name and image."""
    listed = part.value.containers if part is not None and part.value is not None else None
    return {each.id[:12]: (each.name, each.image) for each in listed or ()}


def _wanted(found: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if _is_wanted(name)}


def _is_wanted(name: str) -> bool:
    return name.rpartition(".")[2] in _FIELDS.get(name.partition(".")[0], frozenset())
