"""The numbers made from readings: every rule finds its metric, unknown stays unknown, and alerts on what is gone end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from collectors import derived
from collectors.alerts import Alerts, Observation
from collectors.machines import PARTS, PartName
from collectors.readings import (
    Container,
    Containers,
    Core,
    Cpu,
    Disk,
    Fault,
    Filesystem,
    Filesystems,
    Gpu,
    Gpus,
    Host,
    Load,
    Memory,
    Record,
    Unit,
    Units,
)
from collectors.rules import DEFAULTS, Rule
from collectors.services import Latency, ProbeResult, State

GIB = 1024**3
CPU = Cpu(4, 0.5, 0.3, 0.2, 0.0, 0.0)
MEMORY = Memory(8 * GIB, 2 * GIB, GIB, 6 * GIB, 0.75, None, None, None, None, None)
DISK = Disk("sda", 1.0, 2.0, 3.0, 4.0, 0.5, 0.001, 0.1)
HOST = Host(100.0, 2.0, CPU, (Core(0, 0.5, 0.0, 0.0),), Load(1.0, 2.0, 6.0), MEMORY, None, (DISK,), None, None)
BIG = Filesystem("/data", "/dev/sdb", "ext4", 100 * GIB, 90 * GIB, 10 * GIB, 0.9)
BOOT = Filesystem("/boot", "/dev/sda1", "ext4", GIB, GIB // 2, GIB // 2, 0.5)
GPU = Gpu(0, temperature_celsius=60.0, slowed=False, ecc_uncorrected=0, row_remap_failed=False, utilization_ratio=0.1)
FAILED = Unit("vllm.service", active="failed", result="exit-code", exit_status=1)
FAILURE = Fault("unit_failed", "vllm.service failed (exit-code, exit status 1)", "Read its log.", "vllm.service", "critical")
PROBE = ProbeResult(
    "rerank", "rerank", "functional", "ok", "http://x", Latency(0.2, first_byte_seconds=0.1), certificate_days=30.0
)

READINGS: tuple[Record, ...] = (
    HOST,
    Filesystems((BIG, BOOT), (Fault("df_failed", "df: /x: stale", "Look."),)),
    Units((FAILED,), (FAILURE,)),
    Containers((Container("api", "1f", state="running", health="healthy"),)),
    Gpus((GPU,)),
)


def everything() -> dict[str, float]:
    found: dict[str, float] = {}
    for reading in READINGS:
        found |= derived.numbers(reading, expected_gpus=1).metrics
    found |= derived.collection(False, 3.0, 0.1).metrics
    found |= derived.service_numbers(PROBE, failed=False, up=True).metrics
    return found


@pytest.mark.parametrize("rule", DEFAULTS, ids=lambda rule: rule.id)
def test_every_rule_finds_its_metric(rule: Rule) -> None:
    kind = rule.kinds[0] if rule.kinds else "machine"
    found = everything()
    matching = [name for name in found if rule.matches(kind, name)]
    assert matching
    assert set(matching) <= set(derived.watched(found))


def test_states_become_numbers_with_words() -> None:
    found = derived.numbers(READINGS[2])
    assert found.metrics["unit.vllm.service.failed"] == 1.0
    assert "exit status 1" in found.details["unit.vllm.service.failed"]
    assert "fault.unit_failed" not in found.metrics  # one thing, one alert
    active = derived.numbers(Units((replace(FAILED, active="active"), Unit("odd.service", active=None)))).metrics
    assert active["unit.vllm.service.failed"] == 0.0 and "unit.odd.service.failed" not in active


def test_containers_without_a_health_check_are_not_unhealthy() -> None:
    listed = Containers(
        (Container("a", "1", state="running"), Container("b", "2", state="running", health="unhealthy"), Container("c", "3"))
    )
    found = derived.numbers(listed).metrics
    assert (found["container.a.unhealthy"], found["container.b.unhealthy"]) == (0.0, 1.0)
    assert "container.c.unhealthy" not in found


def test_room_is_watched_on_large_filesystems_only() -> None:
    found = derived.numbers(READINGS[1]).metrics
    assert found["filesystem./data.room_bytes"] == 10 * GIB and "filesystem./boot.room_bytes" not in found
    unknown = derived.numbers(Filesystems((replace(BIG, available_bytes=None),))).metrics
    assert "filesystem./data.room_bytes" not in unknown


def test_load_is_by_core_and_unknown_without_cores() -> None:
    assert derived.numbers(HOST).metrics["load.per_core_15m"] == 1.5
    for host in (replace(HOST, cpu=None), replace(HOST, load=None), replace(HOST, cpu=replace(CPU, cores=None))):
        assert "load.per_core_15m" not in derived.numbers(host).metrics


def test_missing_gpus() -> None:
    found = derived.numbers(Gpus((GPU,)), expected_gpus=8)
    assert (found.metrics["gpus.count"], found.metrics["gpus.missing"]) == (1.0, 7.0)
    assert found.details["gpus.missing"] == "8 expected, 1 seen"
    assert derived.numbers(Gpus(()), expected_gpus=8).metrics["gpus.missing"] == 8.0
    assert "gpus.missing" not in derived.numbers(Gpus(None), expected_gpus=8).metrics  # cannot be read: a fault says so
    assert "gpus.missing" not in derived.numbers(Gpus((GPU,))).metrics


def test_faults_have_levels_and_texts() -> None:
    faults = (
        Fault("gpu_lost", "GPU is lost", "Reboot.", "gpu 3", "critical"),
        Fault("gpu_lost", "GPU is lost", "Reboot.", "gpu 5", "warning"),
        Fault("no_pressure", "no PSI", "psi=1", severity="note"),
        Fault("ecc_uncorrected", "2 errors", "Reset it.", "gpu 0", "critical"),
    )
    details: dict[str, str] = {}
    assert derived.fault_numbers(faults, details) == {"fault.gpu_lost": 2.0}
    assert details == {"fault.gpu_lost": "gpu 3: GPU is lost (Reboot.); gpu 5: GPU is lost"}


@pytest.mark.parametrize("state", ["failed", "loading"])
def test_the_latency_of_a_failure_is_no_latency(state: State) -> None:
    result = replace(PROBE, state=state, failure="refused", message="connection refused", next_step="Start it.")
    found = derived.service_numbers(result, failed=state == "failed", up=False)
    assert not [name for name in found.metrics if name.endswith("_seconds")]
    assert found.metrics["service.failed"] == float(state == "failed") and found.metrics["service.up"] == 0.0
    assert found.details["service.failed"] == "connection refused (Start it.)"


def test_what_is_kept_is_little() -> None:
    found = everything()
    kept = derived.kept(found)
    assert {"cpu.busy_ratio", "gpu.0.temperature_celsius", "filesystem./data.used_ratio", "service.up", "gpus.count"} <= set(kept)
    assert not [name for name in kept if name.startswith(("core.", "fault.", "host."))]
    assert len(kept) < len(found)


@pytest.mark.parametrize("part", PARTS)
def test_absent_is_what_the_machine_says_it_does_not_have(part: PartName) -> None:
    nothing: dict[PartName, Record] = {
        "host": HOST,
        "gpus": Gpus(None, faults=(Fault("no_nvidia_smi", "not found", "", severity="note"),)),
        "filesystems": Filesystems(None, (Fault("x", "x", "", severity="note"),)),
        "units": Units(None, (Fault("no_systemd", "not found", "", severity="note"),)),
        "containers": Containers(None, (Fault("no_docker", "not found", "", severity="note"),)),
    }
    assert derived.absent(part, nothing[part]) is (part != "host")
    assert not derived.absent("containers", Containers(None, (Fault("docker_down", "down", ""),)))
    assert not derived.absent("gpus", Gpus((GPU,), faults=(Fault("persistence_off", "off", "", severity="note"),)))


class Source:
    """A source that knows some metrics and can read some parts."""

    def __init__(self, readable: set[str | None]) -> None:
        self.readable = readable

    def is_readable(self, metric: str) -> bool:
        return derived.part_of(metric) in self.readable


def test_alerts_on_what_is_gone_end_when_it_could_be_read(tmp_path: Path) -> None:
    now = 1_000.0
    alerts = Alerts(tmp_path / "alerts.db", DEFAULTS, lambda: now)
    bad = {"unit.a.service.failed": 1.0, "fault.df_failed": 1.0, "service.certificate_days": 1.0, "load.per_core_15m": 9.0}
    alerts.evaluate([Observation("m", "machine", now, bad)])
    assert {alert.metric for alert in alerts.active()} == set(bad)

    def end(readable: set[str | None], known: dict[str, float]) -> set[str]:
        alerts.evaluate([], gone=derived.gone(alerts.active(), known, Source(readable).is_readable))
        return {alert.metric for alert in alerts.active()}

    assert end(set(), {}) == set(bad)  # nothing can be read: all may still be wrong
    assert end({"units"}, {}) == set(bad) - {"unit.a.service.failed"}
    assert end({"host", None}, {"load.per_core_15m": 9.0}) == {"load.per_core_15m"}
    told = {alert.metric: (alert.ended, alert.value) for alert in alerts.past()}
    assert told == {
        "unit.a.service.failed": ("no longer measured", 1.0),  # its last value, not one that was made up
        "fault.df_failed": ("no longer reported", 1.0),
        "service.certificate_days": ("no longer measured", 1.0),
    }
    alerts.close()


def test_a_machine_that_cannot_be_read_is_one_thing_and_not_three() -> None:
    known = derived.collection(True, 900.0, 7.0, "no answer")
    assert known.metrics == {"collection.failing": 1.0} and known.details == {"collection.failing": "no answer"}
    assert set(derived.collection(False, 900.0, 7.0).metrics) == {
        "collection.failing",
        "collection.age_seconds",
        "collection.seconds",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "squashfs", "device": "/dev/loop3"},
        {"type": "iso9660", "device": "/dev/sr0"},
        {"type": "ext4", "read_only": True},
        {"type": "fuse.snapfuse"},
    ],
)
def test_what_is_full_by_nature_raises_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    full = replace(BIG, used_bytes=100 * GIB, available_bytes=0, used_ratio=1.0, inodes_used_ratio=1.0)
    by_nature = replace(full, mount="/mnt/image", **changes)  # type: ignore[arg-type]
    found = derived.numbers(Filesystems((full, by_nature))).metrics
    alerts = Alerts(tmp_path / "alerts.db", DEFAULTS)
    for at in (0.0, 100.0):
        alerts.evaluate([Observation("m", "machine", at, found)])
    assert {alert.metric for alert in alerts.active()} == {"filesystem./data.used_ratio", "filesystem./data.room_bytes"}
    assert found["filesystem./mnt/image.used_bytes"] == 100 * GIB
    alerts.close()
