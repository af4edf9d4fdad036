"""A fake deployment, named as one: fixed readings of six machines and six services, and half an hour to a week of history.

GPU readings come from captures of real `nvidia-smi`, through the real parser. `FakeSweep` has the parts of `Sweep` that pages use.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from collectors import nvidia_smi
from collectors.alerts import Alerts, Observation
from collectors.audit import AuditLog
from collectors.connection_test import StepResult, Told, ignore
from collectors.errors import TimedOut
from collectors.history import History, Sample
from collectors.notify import Notifier
from collectors.own_metrics import OwnMetrics
from collectors.readings import (
    Container,
    Containers,
    Core,
    Cpu,
    Disk,
    Fault,
    Filesystem,
    Filesystems,
    GpuProcess,
    Gpus,
    Host,
    Interface,
    Load,
    Memory,
    Pressure,
    Process,
    Unit,
    Units,
)
from collectors.restart import Restarted
from collectors.rules import rules
from collectors.services import Latency, ProbeKind, ProbeResult, ServiceKind
from collectors.views import MachineView, Part, Problem, ServiceState, ServiceView, Snapshot
from collectors.vllm_metrics import Engine
from deployment import alert_rules
from settings import Settings

CAPTURES = Path(__file__).parents[1] / "collectors" / "data" / "nvidia_smi"
EVIL = '"><img src=x onerror=alert(1)>'
GIB = 2**30
NO_GPU = Fault("no_nvidia_smi", "nvidia-smi: not found", "No NVIDIA driver is installed there: leave GPUs out.", None, "note")


def gpus_of(capture: str) -> Gpus:
    """The reading of a capture."""
    head, _, text = (CAPTURES / capture).read_text().partition("\n")
    return nvidia_smi.parse(text, head.removeprefix("# ").split(","))


def host(busy: float = 0.23, cores: int = 4, memory_gib: float = 15.6, used: float = 0.61, name: str = "vllm") -> Host:
    total = int(memory_gib * GIB)
    return Host(
        uptime_seconds=912_345.0,
        seconds=2.0,
        cpu=Cpu(cores, busy, busy * 0.7, busy * 0.3, 0.04, 0.0),
        cores=tuple(
            Core(index, min(1.0, busy * (0.4 + index % 5 * 0.35)), 0.03 if index == 1 else 0.0, 0.0) for index in range(cores)
        ),
        load=Load(busy * cores, busy * cores * 0.9, busy * cores * 0.8),
        memory=Memory(
            total, int(total * (1 - used)), total // 9, int(total * used), used, total // 4, total // 40, 2 * GIB, GIB // 8, 0.06
        ),
        pressures=(Pressure("cpu", 0.02, 0.015, 0.01), Pressure("io", 0.11, 0.07, 0.03, 0.05, 0.02, 0.01)),
        disks=(Disk("nvme0n1", 48e6, 12.4e6, 910.0, 88.0, 0.34, 0.00061, 0.8), Disk("sdb", 0.0, 0.0, 0.0, 0.0, 0.0, None, 0.0)),
        interfaces=(Interface("ens4", 1.9e6, 402e3, 1400.0, 880.0, 0.0, 0.0),),
        processes=(
            Process(4120, name, "S", 0.91, 9 * GIB, 88),
            Process(811, "milvus", "S", 0.34, 3 * GIB, 210),
            Process(1, "systemd", "S", 0.0, 14 << 20, 1),
            Process(9001, EVIL, "R", None, None, None),
        ),
    )


def disks(root: float = 0.71, extra: str = "/data") -> Filesystems:
    def one(mount: str, size: float, used: float) -> Filesystem:
        total = int(size * GIB)
        return Filesystem(
            mount, "/dev/nvme0n1p1", "ext4", total, int(total * used), int(total * (1 - used)), used, 8_000_000, 400_000, 0.05
        )

    return Filesystems((one("/", 117, root), one(extra, 480, 0.44), one("/boot", 0.9, 0.31)))


def part(value: Any, at: float, age: float = 1.1, **more: Any) -> Part[Any]:
    return Part(value, at - age, age, 0.12, **more)


def machines(at: float) -> tuple[MachineView, ...]:
    def read(name: str, address: str, **parts: Any) -> MachineView:
        return MachineView(name, address, "ssh", "ok", **parts)

    l4 = replace(
        gpus_of("l4.csv"),
        processes=(
            GpuProcess(
                str(gpus_of("l4.csv").gpus[0].uuid),
                4120,
                "python3 -m vllm.entrypoints.openai.api_server",
                11 * GIB,
                "docker 3f2a9c11d0ab",
            ),
            GpuProcess("GPU-elsewhere", 4377, None, 2 * GIB, "unit gpu-server.service"),
        ),
    )
    unknown_key = Problem(
        "authentication", "host key", "the host key of 10.0.0.9 is not known", "Compare the fingerprint, then add the key.",
        "SHA256:4bJ6oZ0cC2y6r1W0kTq7B0o4vJmQw1i9S2m0yN8xV3k", "printf '%s\\n' '10.0.0.9 ssh-ed25519 AAAAC3Nz…' >> ~/.ssh/known_hosts",
    )  # fmt: skip
    return (
        MachineView("local", "this machine", "local", "ok", host=part(host(0.12, 2, 7.7, 0.44), at), gpus=part(Gpus(None, faults=(NO_GPU,)), at, absent=True),
                    filesystems=part(disks(), at, 12.0), units=part(Units(None, (Fault("no_systemd", "not found", "This machine does not run systemd.", None, "note"),)), at, absent=True),
                    containers=part(Containers(()), at, 9.0)),
        read("l4-vm", "ops@10.0.0.4", host=part(host(0.88, 4, 15.6, 0.93), at), gpus=part(l4, at), filesystems=part(disks(0.96), at, 14.0),
             units=part(units(), at, 14.0), containers=part(containers(), at, 14.0), expected_gpus=1, restart=("vllm.service", "docker:whisper")),
        read("h100-1", "10.0.0.7", host=part(host(0.31, 96, 2015, 0.22), at), gpus=part(gpus_of("h100x8.csv"), at, 2.6), expected_gpus=8,
             filesystems=part(disks(0.4), at)),
        read("h100-2", "10.0.0.8", host=part(host(0.2, 96, 2015, 0.3), at), gpus=part(gpus_of("h100x8_one_lost.csv"), at, 2.6), expected_gpus=8,
             filesystems=part(disks(0.4), at)),
        MachineView("vps", "10.0.0.9", "ssh", "failing", unknown_key, 41.0, host=Part(), gpus=Part(), filesystems=Part(), units=Part(), containers=Part()),
        MachineView("ocr-gpu", "ocr.example:2222", "ssh", "halted", Problem("authentication", "authentication", "it refuses the key of ops", "Add the key to ~/.ssh/authorized_keys there."),
                    None, host=Part(host(0.5), at - 700, 700.0, 0.2, None, True), gpus=Part(problem=Problem("timeout", "command", "not connected", ""))),
        MachineView("spark", EVIL, "prometheus", "stale", None, None, host=part(replace(host(0.1), processes=None), at, 61.0, stale=True),
                    gpus=part(gpus_of("gb10_unified_memory.csv"), at, 61.0, stale=True), engines=(engine(),)),
        MachineView("new", "10.0.0.20", "ssh", "waiting", host=Part(), gpus=Part()),
    )  # fmt: skip


def units() -> Units:
    found = (
        Unit(
            "gpu-server.service",
            "loaded",
            "active",
            "running",
            "success",
            "RAG Deck GPU server",
            0,
            93_000.0,
            3 * GIB,
            4377,
            0,
            "enabled",
        ),
        Unit(
            "nightly-index.service",
            "loaded",
            "failed",
            "failed",
            "exit-code",
            f"Index {EVIL}",
            3,
            5_400.0,
            None,
            0,
            1,
            "disabled",
        ),
    )
    return Units(
        found,
        (
            Fault(
                "unit_failed", "nightly-index.service failed: exit-code 1", "Read its log.", "nightly-index.service", "critical"
            ),
        ),
    )


def containers() -> Containers:
    return Containers(
        (
            Container("vllm", "3f2a9c11d0ab", "vllm/vllm-openai:v0.10", "running", "healthy", 0, None, False, 93_000.0, 9 * GIB),
            Container("whisper", "77b1c2d3e4f5", "whisper:1", "running", "unhealthy", 7, None, False, 640.0, 2 * GIB),
            Container("migrate", "0a1b2c3d4e5f", "app:3", "exited", None, 0, 137, False, 86_000.0, None),
        )
    )


def engine() -> Engine:
    return Engine(
        models="Qwen/Qwen3-8B-AWQ", seconds=10.0, running=2, waiting=1, kv_cache_used_ratio=0.31, prefix_cache_hit_ratio=0.44,
        prompt_tokens_per_second=812.0, generation_tokens_per_second=92.4, requests_per_second=0.4, preemptions=0,
        ttft_p50_seconds=0.31, ttft_p95_seconds=0.62, ttft_p99_seconds=0.9, per_token_p50_seconds=0.021, per_token_p95_seconds=0.026,
        per_token_p99_seconds=0.03, queue_p50_seconds=0.0004, queue_p95_seconds=0.11,
    )  # fmt: skip


def result(
    name: str, kind: ServiceKind, probe: ProbeKind, state: str, total: float, message: str = "", **more: Any
) -> ProbeResult:
    latency = Latency(total, 0.0004, total * 0.1, None, total * 0.7) if state != "failed" else Latency(total)
    return ProbeResult(name, kind, probe, state, f"http://10.0.0.4/{name}", latency, message=message, **more)  # type: ignore[arg-type]


def services(at: float) -> tuple[ServiceView, ...]:
    def one(
        name: str, kind: ServiceKind, state: ServiceState, live: ProbeResult | None, works: ProbeResult | None = None, **more: Any
    ) -> ServiceView:
        lively = part(live, at, more.pop("age", 3.0), stale=more.pop("stale", False)) if live else Part()
        return ServiceView(
            name,
            kind,
            f"http://10.0.0.4/{name}",
            state,
            lively,
            part(works, at, 22.0) if works else more.pop("functional", Part()),
            **more,
        )

    ok = result(
        "gpu-server", "gpu_server", "liveness", "ok", 0.0042, "warm", version="0.1.0", models=("BAAI/bge-m3",), device="cuda"
    )
    embedded = result(
        "gpu-server", "gpu_server", "functional", "ok", 0.0123, "a Hebrew sentence embedded", measures={"dimension": 1024.0}
    )
    vllm = result(
        "vllm", "openai-chat", "liveness", "ok", 0.011, version="0.10.2", models=("Qwen/Qwen3-8B-AWQ",), certificate_days=61.0
    )
    token = replace(result("vllm", "openai-chat", "functional", "ok", 0.24, "one token generated", measures={"ttft_seconds": 0.19}),
                    latency=Latency(0.24, 0.0004, 0.012, 0.021, 0.19))  # fmt: skip
    slow = result("rerank", "rerank", "functional", "degraded", 0.84, "slower than 500 ms", failure=None)
    down = result("whisper", "whisper", "liveness", "failed", 0.0021, "connection refused", failure="refused",
                  next_step="Check that the service runs, on which address and port it listens, and the firewall.")  # fmt: skip
    evil = result("web", "http", "liveness", "ok", 0.03, EVIL, version=EVIL, certificate_days=6.0)
    return (
        one(
            "gpu-server",
            "gpu_server",
            "ok",
            ok,
            embedded,
            engine=Part(problem=Problem("not_found", "command", "404", ""), absent=True),
        ),
        one("vllm", "openai-chat", "ok", vllm, token, engine=part(engine(), at, 4.0)),
        one("rerank", "rerank", "degraded", result("rerank", "rerank", "liveness", "ok", 0.004), slow),
        one("whisper", "whisper", "failed", down),
        one("web", "http", "ok", evil, functional=Part(absent=True)),
        one("ocr", "ocr", "waiting", None),
    )


@dataclass
class FakeSweep:
    """What pages need of a `Sweep`, over fixed readings; `tested`, `probed`, `asked` and `retried` keep what was asked of it."""

    at: float
    views: tuple[MachineView, ...] = ()
    watched: tuple[ServiceView, ...] = ()
    tested: list[str] = field(default_factory=list)
    probed: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def snapshot(self) -> Snapshot:
        return Snapshot(self.at, self.views, self.watched)

    def test(self, name: str, timeout: float = 15.0, told: Told = ignore) -> tuple[StepResult, ...]:
        self.tested.append(name)
        for step in connection_steps():
            if step.ok is not None:
                told(step)
        return connection_steps()

    def retry(self, name: str) -> None:
        self.retried.append(name)

    def probe(self, name: str, kind: ProbeKind = "functional") -> ProbeResult:
        view = self.snapshot().service(name)
        if view is None:
            raise KeyError(name)
        self.probed.append((name, kind))
        return view.functional.value or result(name, view.kind, kind, "ok", 0.05, "it works")

    def logs(self, machine: str, unit_or_container: str, lines: int = 50) -> str:
        self.asked.append((machine, unit_or_container, lines))
        if unit_or_container == "migrate":
            raise TimedOut("no answer within 10 s", next_step="Is Docker overloaded?")
        return f"2026-11-21 05:00:12 started\n\x1b[31mERROR\x1b[0m {EVIL} \x07$HOME\n"

    def burst(self, seconds: float) -> None:
        """A query runs: nothing is read here."""


def connection_steps() -> tuple[StepResult, ...]:
    return (
        StepResult("name", True, "10.0.0.9", seconds=0.002),
        StepResult("connect", True, seconds=0.021),
        StepResult("host key", False, f"the host key is not known {EVIL}", "Compare the fingerprint, then add the key.", 0.03,
                   "SHA256:4bJ6oZ0cC2y6r1W0kTq7B0o4vJmQw1i9S2m0yN8xV3k", "printf '%s\\n' '10.0.0.9 ssh-ed25519 AAAA' >> ~/.ssh/known_hosts"),
        StepResult("authentication", None),
        StepResult("shell", None),
        StepResult("command", None),
    )  # fmt: skip


def fake_sweep(at: float) -> FakeSweep:
    return FakeSweep(at, machines(at), services(at))


def fill_history(history: History, at: float, seconds: float = 5400.0, every: float = 30.0) -> None:
    """A wave for every chart of two machines and a service, with a gap of ten minutes in it."""

    def metrics(now: float) -> Mapping[str, float]:
        wave = (1 + math.sin(now / 400)) / 2
        quick = (1 + math.sin(now / 90)) / 2
        found = {"cpu.busy_ratio": 0.1 + 0.6 * wave * quick, "cpu.iowait_ratio": 0.05 * quick, "memory.used_bytes": (9 + wave) * GIB,
                 "load.per_core_15m": 0.4 + wave, f"disk.{EVIL}.busy_ratio": 0.2 * wave, "disk.nvme0n1.busy_ratio": 0.3 * quick, "filesystem./.used_ratio": 0.7 + 0.01 * wave,
                 "interface.ens4.received_bytes_per_second": 2e6 * quick, "interface.ens4.sent_bytes_per_second": 4e5 * wave}  # fmt: skip
        for index in range(8):
            found |= {f"gpu.{index}.utilization_ratio": min(1.0, 0.2 + 0.1 * index * wave), f"gpu.{index}.memory_used_bytes": (30 + index) * GIB,
                      f"gpu.{index}.temperature_celsius": 45 + 4 * index * wave, f"gpu.{index}.power_watts": 200 + 50 * index * quick}  # fmt: skip
        return found

    def service(now: float) -> Mapping[str, float]:
        wave = (1 + math.sin(now / 300)) / 2
        return {"service.functional_seconds": 0.2 + 0.1 * wave, "service.liveness_seconds": 0.01 + 0.004 * wave, "service.up": 1.0,
                "engine.running": 3 * wave, "engine.waiting": wave, "engine.kv_cache_used_ratio": 0.3 * wave, "engine.generation_tokens_per_second": 90 * wave}  # fmt: skip

    samples: list[Sample] = []
    steps = int(seconds / every)
    for step in range(steps):
        now = at - (steps - step) * every
        if not at - 2400 < now < at - 1800:
            known = metrics(now)
            plain = {name: value for name, value in known.items() if not name.startswith("gpu")}
            samples += [
                Sample("h100-1", now, known),
                Sample("l4-vm", now, plain | {k: v for k, v in known.items() if k.startswith("gpu.0")}),
            ]
            samples += [
                Sample("local", now, plain),
                *(Sample(name, now, service(now)) for name in ("vllm", "gpu-server", "rerank")),
            ]
    history.write(samples)


def raise_alerts(alerts: Alerts, at: float) -> None:
    """Three active ones, one of them acknowledged, and one that ended."""
    alerts.use(
        rules(
            {
                name: {"for_seconds": 0.0, "window_seconds": 0.0}
                for name in ("gpu-hot", "gpu-slowed", "reranker-slow", "memory-used")
            }
        )
    )

    def see(source: str, kind: str, ago: float, metrics: Mapping[str, float], details: Mapping[str, str] | None = None) -> None:
        alerts.evaluate([Observation(source, kind, at - ago, metrics, details or {})])

    see("local", "machine", 9000, {"memory.used_ratio": 0.97})
    see("local", "machine", 8000, {"memory.used_ratio": 0.41})
    see("rerank", "rerank", 360, {"service.functional_seconds": 0.84})
    see("h100-1", "machine", 900, {"gpu.3.temperature_celsius": 91.0})
    see(
        "l4-vm",
        "machine",
        90,
        {"unit.nightly-index.service.failed": 1.0},
        {"unit.nightly-index.service.failed": f"exit-code 1 {EVIL}"},
    )
    hot = next(alert for alert in alerts.active() if alert.rule == "gpu-hot")
    alerts.acknowledge(hot.id)


class FakeDeployment:
    """What a runtime needs of a `Deployment`: the fake sweep, and a real history and real alerts, filled beforehand."""

    def __init__(self, folder: Path, at: float) -> None:
        self.problems: list[str] = []
        self.own = OwnMetrics("fake")
        self.sweep = fake_sweep(at)
        self.history = History(folder / "fake-history.db")
        self.alerts = Alerts(folder / "fake-alerts.db", rules({}))
        self.notifier = Notifier([])
        self.audit = AuditLog(folder / "audit.log", lambda: at)
        self.restarted: list[tuple[str, str]] = []
        fill_history(self.history, at)
        raise_alerts(self.alerts, at)
        self.alerts.use(rules({}))

    def start(self) -> None:
        """Everything is read already."""

    def stop(self) -> None:
        self.alerts.close()
        self.history.close()

    def restart(self, machine: str, name: str, who: str | None = None) -> Restarted:
        """`docker:whisper` fails."""
        self.restarted.append((machine, name))
        failed = name == "docker:whisper"
        self.audit.end(self.audit.begin(who, machine, f"restart {name}"), "failed" if failed else "done", EVIL if failed else "")
        return Restarted(
            name, not failed, f"no such container {EVIL}" if failed else "", "Correct its name." if failed else "", 2.1
        )

    def forget(self, name: str) -> None:
        self.history.forget(name)

    def apply(self, settings: Settings) -> None:
        """The rules are put in force; the machines stay as they are."""
        self.alerts.use(alert_rules(settings))


def fake_deployment(runtime: Any, folder: Path, at: float) -> FakeDeployment:
    """Put a fake in the place of a runtime's deployment, which is stopped."""
    runtime.deployment.stop()
    runtime.deployment = FakeDeployment(folder, at)
    return runtime.deployment  # type: ignore[no-any-return]
